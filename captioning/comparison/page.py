"""A comparison's numbers -> the report people read. Words, tables, photos; computes no score."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from captioning.comparison import figures, results
from captioning.comparison.document import Block, Bullets, Card, Cards, Heading, Picture, Table, Text, write
from captioning.comparison.results import Scored, Shown
from captioning.metrics import NAMES
from captioning.records import ImageRecord
from captioning.utils.files import write_json

PHOTOS = 4  # in each direction of a pair
FAILURES = 6
PAIRS_SHOWN = 3
SIDE = 360  # pixels of a photo in the report, at most
REFERENCES = 3


def write_report(
    folder: Path,
    found: dict[str, Any],
    scored: Sequence[Scored],
    records: Sequence[ImageRecord],
    *,
    title: str,
    extra: Sequence[Block] = (),
) -> None:
    """Write report.md, report.html, report.json and figures/ into `folder`.

    Args:
        found: `compare.results`, with "split", "metric", "chosen_on", "remarks", "plan" and "costs" where known.
        extra: comes first: the length study's part.
    """
    split = found["split"]
    found["headline"] = found.get("headline") or results.headline(found, split=split)
    found["findings"] = [each._asdict() for each in results.findings(found)]
    found["limits"] = results.limits(found, split=split, chosen_on=found.get("chosen_on"))
    blocks: list[Block] = [Text(found["headline"], "lead")]
    blocks += [Text(f"**{remark}**") for remark in found.get("remarks", [])]
    blocks += extra
    if found["pairs"]:
        blocks += [
            Heading("What the data support" + found.get("of", "")),
            Bullets([each["sentence"] for each in found["findings"]]),
            Heading("What they do not", 3),
            Bullets(found["limits"]),
        ]
    blocks += _quality(found)
    if found["by_length"]:
        blocks += [
            Heading("Quality by reference length"),
            figures.lengths(found),
            _length_table(found),
        ]
    blocks += _training(found)
    blocks += _photos(found, scored, records)
    blocks += _made(found)
    write(folder, title, blocks)
    write_json(folder / "report.json", found)


def _quality(found: Mapping[str, Any]) -> list[Block]:
    systems = found["systems"]
    rows = []
    for name in systems[0]["scores"]:
        rows.append(
            [
                figures.metric_name(name),
                *(_spread(system["scores"][name], name) for system in systems),
            ]
        )
    several = any(len(system["seeds"]) > 1 for system in systems)
    blocks: list[Block] = [
        Heading("Quality"),
        figures.quality(found),
        Table(
            ["", *(system["label"] for system in systems)],
            rows,
            f"Scores on {found['split']}, {found['images']:,} images"
            + (", mean ± standard deviation over seeds" if several else ""),
        ),
        Text("Metrics and rates times 100; length in tokens.", "note"),
    ]
    if not found["pairs"]:
        return blocks
    labels = {system["name"]: system["label"] for system in systems}
    rows = []
    for pair in found["pairs"]:
        for name in NAMES:
            test = pair["metrics"][name]
            rows.append(
                [
                    f"{labels[pair['a']]} − {labels[pair['b']]}",
                    figures.metric_name(name),
                    _signed(test["difference"]),
                    f"{_signed(test['low'])} to {_signed(test['high'])}",
                    results.shown_p(test["p"]),
                    results.shown_p(test["holm"]),
                    "yes" if test["separated"] else "no",
                ]
            )
    return [
        *blocks,
        Heading("Differences between systems", 3),
        figures.differences(found),
        Table(
            ["pair", "metric", "difference", "95 % interval", "p", "p, Holm", "seeds apart"],
            rows,
            f"Paired bootstrap, {found['resamples']:,} resamples of the images",
        ),
        Text(
            f"Method: {found['method']}. The seeds of a system are pooled: BLEU from their summed counts, other "
            "metrics from the mean of an image's scores. “Seeds apart”: every seed of one system is above every seed "
            "of the other.",
            "note",
        ),
    ]


def _signed(share: float) -> str:
    """Times 100, with a sign unless it is nothing."""
    text = f"{100 * share:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def _length_table(found: Mapping[str, Any]) -> Table:
    systems, primary = found["systems"], found["primary"]
    return Table(
        ["words of the references", "images", *(system["label"] for system in systems)],
        [
            [
                f"{row['from']:.1f} to {row['to']:.1f}",
                str(row["images"]),
                *(_spread(row["systems"][system["name"]][primary], primary) for system in systems),
            ]
            for row in found["by_length"]
        ],
        f"{primary} by mean reference length",
    )


def _training(found: Mapping[str, Any]) -> list[Block]:
    systems = found["systems"]
    blocks: list[Block] = []
    curves = figures.curves(found) if any(system["curves"] for system in systems) else None
    if curves:
        blocks += [Heading("Learning"), curves]
        if not any("seconds" in point for system in systems for curve in system["curves"] for point in curve):
            blocks.append(
                Text("These runs recorded no seconds: there is no curve against seconds or FLOPs.", "note")
            )
    rows = [
        ("parameters of the decoder", [_whole(each.get("parameters")) for each in systems]),
        ("its MFLOP a caption, training", [_whole(each.get("flops"), 1e6) for each in systems]),
        ("widths", [each.get("widths", "") for each in systems]),
        ("learning rate", [f"{each['rate']:g}" if each.get("rate") else "" for each in systems]),
        ("rates tried, validation score", [_rates(each.get("rates")) for each in systems]),
    ]
    costs = found.get("costs", {})
    for key, title in COSTS.items():
        rows.append((title, [_number(costs.get(each["name"], {}).get(key)) for each in systems]))
    for key, title in LOGGED.items():
        rows.append((title, [_logged(each, key) for each in systems]))
    rows = [(title, cells) for title, cells in rows if any(cells)]
    if rows:
        blocks += [Heading("Size, speed and memory")]
        if costs:
            blocks.append(_cost_figure(found))
        blocks.append(
            Table(
                ["", *(each["label"] for each in systems)],
                [[title, *cells] for title, cells in rows],
                "Size, speed and memory",
            )
        )
        if costs:
            blocks.append(
                Text(
                    "Measured: the decoders one after another in turns, in one process "
                    f"({found.get('measured_on', 'this machine')}), the encoder left out, medians of "
                    f"{next(iter(costs.values())).get('repeats', '?')}; decoding is the study's own search. Logged: "
                    "what each training wrote down, with whatever else the machine did.",
                    "note",
                )
            )
    return blocks


COSTS = {
    "train_captions_per_s": "training, captions/s (measured)",
    "train_tokens_per_s": "training, tokens/s (measured)",
    "train_memory_mb": "training step, MB beyond the weights (measured)",
    "decode_captions_per_s": "decoding, captions/s (measured)",
    "decode_ms_per_word": "decoding, ms a word (measured)",
    "decode_memory_mb": "decoding, MB (measured)",
}
LOGGED = {
    "captions_per_s": "training, captions/s (logged, with the encoder)",
    "seconds": "seconds of training a run (logged)",
    "memory_mb": "most memory of the process, MB (logged)",
}


def _cost_figure(found: Mapping[str, Any]) -> Picture:
    shown = [
        ("train_captions_per_s", "training, captions/s"),
        ("decode_captions_per_s", "decoding, captions/s"),
        ("train_memory_mb", "training step, MB"),
    ]
    costs = found["costs"]
    rows = [
        (
            title,
            [(each["label"], costs[each["name"]][key]) for each in found["systems"] if each["name"] in costs],
        )
        for key, title in shown
    ]
    said = "; ".join(
        f"{title}: " + ", ".join(f"{label} {value:.0f}" for label, value in values) for title, values in rows
    )
    return figures.bars(
        rows,
        "costs",
        alt=said,
        caption="Speed (longer is faster) and memory (longer is more), measured in turns.",
    )


def _rates(rates: Mapping[str, float | None] | None) -> str:
    if not rates:
        return ""
    return ", ".join(
        f"{float(rate):g}: {'diverged' if value is None else f'{100 * value:.1f}'}"
        for rate, value in rates.items()
    )


def _whole(value: int | None, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:,.0f}" if value >= 10 * unit else f"{value / unit:.2f}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _logged(system: Mapping[str, Any], key: str) -> str:
    values = [each[key] for each in system["logged"] if key in each]
    return _number(sum(values) / len(values)) if values else ""


def _spread(values: Mapping[str, Any], name: str) -> str:
    times = 100 if name in NAMES or name.endswith("_rate") else 1
    digits = 0 if name == "vocabulary_used" else 2 if times == 1 else 1
    text = f"{times * values['mean']:.{digits}f}"
    return text if values["sd"] is None else f"{text} ± {times * values['sd']:.{max(1, digits)}f}"


def _photos(
    found: Mapping[str, Any], scored: Sequence[Scored], records: Sequence[ImageRecord]
) -> list[Block]:
    labels = {system["name"]: system["label"] for system in found["systems"]}
    primary = found["primary"]
    blocks: list[Block] = []
    pairs = sorted(found["pairs"], key=lambda pair: -abs(pair["metrics"][primary]["difference"]))[
        :PAIRS_SHOWN
    ]
    shown = 0
    if pairs:
        blocks.append(Heading("Where they differ most"))
        blocks.append(
            Text(
                f"Images with the largest differences in {primary}, the mean over seeds; the captions are the first "
                "seed's. Numbers in brackets: the image's score, times 100. They are extremes, chosen by the score.",
                "note",
            )
        )
    for pair in pairs:
        for better, worse in ((pair["a"], pair["b"]), (pair["b"], pair["a"])):
            chosen = results.differ_most(scored, records, better, worse, primary=primary, count=PHOTOS)
            if chosen:
                blocks.append(Heading(f"{labels[better]} above {labels[worse]}", 3))
                blocks.append(
                    Cards([_image(each, scored, number) for number, each in enumerate(chosen, shown)])
                )
                shown += len(chosen)
    chosen = results.fail_most(scored, records, primary=primary, count=FAILURES)
    blocks.append(Heading("Where all fail" if len(scored) > 1 else "Where it fails"))
    blocks.append(Text(f"Images on which the best system has the lowest {primary}.", "note"))
    blocks.append(Cards([_image(each, scored, number) for number, each in enumerate(chosen, shown)]))
    return blocks


def _image(shown: Shown, scored: Sequence[Scored], number: int) -> Card:
    record = shown.record
    lines = [
        (
            each.system.label,
            each.system.runs[0].captions[record.image_id],
            f"{100 * shown.values[each.system.name]:.0f}",
        )
        for each in scored
    ]
    return Card(
        f"image {record.image_id}",
        photo(record, f"photo-{number:03d}"),
        lines,
        record.captions[:REFERENCES],
    )


def photo(record: ImageRecord, name: str) -> Picture | None:
    """The photo, small enough for a page; None where it cannot be read."""
    try:
        with Image.open(record.path) as image:
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((SIDE, SIDE))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    content = io.BytesIO()
    if max(small.size) < 128:  # a drawn one, which JPEG would blur
        small.save(content, format="PNG")
        name += ".png"
    else:
        small.save(content, format="JPEG", quality=82)
        name += ".jpg"
    return Picture(name, content.getvalue(), f"photo of which a person says: {record.captions[0]}", "")


def _made(found: Mapping[str, Any]) -> list[Block]:
    lines = [
        f"References: {found['images']:,} images of `{found['split']}`, fingerprint "
        f"`{found['references_fingerprint']}`, the same for every system. Tokenizer: {found['tokenizer']}.",
        *found.get("made", []),
    ]
    return [Heading("How this was made"), Bullets(lines)]
