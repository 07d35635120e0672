"""The report of a comparison: headline, findings, tables, figures and photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from captioning.comparison import figures, verdicts
from captioning.comparison.document import Block, Bullets, Card, Cards, Heading, Picture, Table, Text, write
from captioning.comparison.results import ImageScores, ScoredSystem, largest_differences, worst_scores
from captioning.images.reading import BadImage, load_image
from captioning.records import ImageRecord
from captioning.utils.files import write_json

PHOTOS_PER_DIRECTION = 4
"""Photos in each direction of a pair of systems."""

FAILURES = 6
PAIRS_WITH_PHOTOS = 3
PHOTO_SIDE = 360
"""Largest side of a photo in the report, in pixels."""

REFERENCES = 3

METHOD_NOTE = (
    "Method: {method}. “Seeds apart”: every seed of one system is better than every seed of the other; empty with one "
    "seed."
)
SPEED_NOTE = (
    "Measured: all decoders in turns in one process ({machine}), without the encoder, medians of {repeats} repeats; "
    "decoding is the study's own search. Logged: recorded during training, together with whatever else the machine did."
)
NO_SECONDS_NOTE = "These runs recorded no seconds, so there is no curve against seconds or FLOPs."
PHOTO_NOTE = (
    "Images with the largest differences in {metric}, the mean over seeds; the captions are the first seed's. In "
    "brackets: the image's score, times 100. These are extremes, chosen by the score."
)

MEASURED_COSTS = {
    "train_captions_per_s": "training, captions/s (measured)",
    "train_tokens_per_s": "training, tokens/s (measured)",
    "train_memory_mb": "training step, MB beyond the weights (measured)",
    "decode_captions_per_s": "decoding, captions/s (measured)",
    "decode_ms_per_word": "decoding, ms per word (measured)",
    "decode_memory_mb": "decoding, MB (measured)",
}
LOGGED_COSTS = {
    "updates": "updates per run",
    "epochs": "epochs per run",
    "captions_per_s": "training, captions/s (logged, with the encoder)",
    "seconds": "seconds of training per run (logged)",
    "memory_mb": "peak memory of the process, MB (logged)",
}
COST_BARS = {
    "train_captions_per_s": "training, captions/s",
    "decode_captions_per_s": "decoding, captions/s",
    "train_memory_mb": "training step, MB",
}


def write_report(
    folder: Path,
    comparison: dict[str, Any],
    scored: Sequence[ScoredSystem],
    records: Sequence[ImageRecord],
    *,
    title: str,
    extra: Sequence[Block] = (),
) -> None:
    """Write report.md, report.html, report.json and figures/ into `folder`.

    Args:
        comparison: `results.compare` with "split", "metric", "chosen_on", "remarks", and "setup", "costs" and
            "headline" if known. The verdicts are added to it.
        extra: blocks that come first, such as the length study's.
    """
    split = comparison["split"]
    comparison["headline"] = comparison.get("headline") or verdicts.headline(comparison, split=split)
    comparison["findings"] = [finding._asdict() for finding in verdicts.findings(comparison)]
    comparison["limits"] = verdicts.limits(comparison, split=split, chosen_on=comparison.get("chosen_on"))
    blocks: list[Block] = [Text(comparison["headline"], "lead")]
    blocks += [Text(f"**{remark}**") for remark in comparison.get("remarks", [])]
    blocks += extra
    if comparison["pairs"]:
        blocks += [
            Heading("What the data support" + comparison.get("scope", "")),
            Bullets([finding["sentence"] for finding in comparison["findings"]]),
            Heading("What the data do not support", 3),
            Bullets(comparison["limits"]),
        ]
    blocks += _quality(comparison)
    blocks += _learning(comparison)
    blocks += _costs(comparison)
    blocks += _examples(comparison, scored, records)
    blocks += _setup(comparison)
    write(folder, title, blocks)
    write_json(folder / "report.json", comparison)


def _quality(comparison: Mapping[str, Any]) -> list[Block]:
    systems = comparison["systems"]
    columns = ["", *(system["label"] for system in systems)]
    scores = [
        [
            figures.metric_title(name),
            *(_mean_and_sd(system["scores"][name], name, comparison["scales"][name]) for system in systems),
        ]
        for name in systems[0]["scores"]
    ]
    several = any(len(system["seeds"]) > 1 for system in systems)
    title = f"Scores on {comparison['split']}, {comparison['images']:,} images"
    blocks: list[Block] = [
        Heading("Quality"),
        figures.quality(comparison),
        Table(columns, scores, title + (", mean ± standard deviation over seeds" if several else "")),
        Text("Metrics and rates times 100; length in tokens.", "note"),
    ]
    if comparison["pairs"]:
        blocks += _differences(comparison)
    if comparison["by_length"]:
        primary = comparison["primary"]
        scale = comparison["scales"][primary]
        rows = [
            [
                f"{row['from']:.1f} to {row['to']:.1f}",
                str(row["images"]),
                *(
                    _mean_and_sd(row["systems"][system["name"]][primary], primary, scale)
                    for system in systems
                ),
            ]
            for row in comparison["by_length"]
        ]
        blocks += [
            Heading("Quality by reference length"),
            figures.quality_by_length(comparison),
            Table(
                ["words of the references", "images", *columns[1:]],
                rows,
                f"{primary} by mean reference length",
            ),
        ]
    return blocks


def _differences(comparison: Mapping[str, Any]) -> list[Block]:
    primary, resamples = comparison["primary"], f"{comparison['resamples']:,} resamples of the images"
    others = [name for name in comparison["metrics"] if name != primary]
    columns = ["pair", "metric", "difference", "95 % interval", "p", "seeds apart"]
    blocks: list[Block] = [
        Heading("Differences between systems", 3),
        figures.differences(comparison),
        Table(
            [*columns[:5], "p, Holm", columns[5]],
            _difference_rows(comparison, [primary], corrected=True),
            f"Tests of {primary}, {resamples}",
        ),
    ]
    if others:
        title = "Exploratory: other metrics, p not corrected, no conclusions drawn"
        blocks.append(Table(columns, _difference_rows(comparison, others, corrected=False), title))
    return [*blocks, Text(METHOD_NOTE.format(method=comparison["method"]), "note")]


def _difference_rows(
    comparison: Mapping[str, Any], metrics: Sequence[str], *, corrected: bool
) -> list[list[str]]:
    labels = {system["name"]: system["label"] for system in comparison["systems"]}
    apart = {True: "yes", False: "no", None: ""}
    rows = []
    for pair in comparison["pairs"]:
        for name in metrics:
            test, scale = pair["metrics"][name], comparison["scales"][name]
            keys = ("p", "holm") if corrected else ("p",)
            rows.append(
                [
                    f"{labels[pair['a']]} − {labels[pair['b']]}",
                    figures.metric_title(name),
                    _signed(scale * test["difference"]),
                    f"{_signed(scale * test['low'])} to {_signed(scale * test['high'])}",
                    *(verdicts.format_p(test[key], at_floor=test["at_floor"]) for key in keys),
                    apart[test["separated"]],
                ]
            )
    return rows


def _learning(comparison: Mapping[str, Any]) -> list[Block]:
    curves = figures.learning_curves(comparison)
    if curves is None:
        return []
    blocks: list[Block] = [Heading("Learning"), curves]
    points = [point for system in comparison["systems"] for curve in system["curves"] for point in curve]
    if not any("seconds" in point for point in points):
        blocks.append(Text(NO_SECONDS_NOTE, "note"))
    return blocks


def _costs(comparison: Mapping[str, Any]) -> list[Block]:
    systems, costs = comparison["systems"], comparison.get("costs", {})
    rows = [
        ("parameters of the decoder", [_scaled(system.get("parameters"), 1) for system in systems]),
        ("MFLOP per training caption", [_scaled(system.get("flops"), 1e6) for system in systems]),
        ("widths", [system.get("widths", "") for system in systems]),
        ("learning rate", [f"{s['learning_rate']:g}" if s.get("learning_rate") else "" for s in systems]),
        (
            "validation score by learning rate",
            [_rates(system.get("learning_rates", {})) for system in systems],
        ),
    ]
    for key, title in MEASURED_COSTS.items():
        rows.append((title, [_number(costs.get(system["name"], {}).get(key)) for system in systems]))
    for key, title in LOGGED_COSTS.items():
        rows.append((title, [_logged(system, key) for system in systems]))
    rows = [(title, cells) for title, cells in rows if any(cells)]
    if not rows:
        return []
    title = "Size, speed and memory"
    columns = ["", *(system["label"] for system in systems)]
    table = Table(columns, [[name, *cells] for name, cells in rows], title)
    if not costs:
        return [Heading(title), table]
    repeats = next(iter(costs.values())).get("repeats", "?")
    machine = comparison.get("measured_on", "this machine")
    note = Text(SPEED_NOTE.format(machine=machine, repeats=repeats), "note")
    return [Heading(title), _cost_bars(comparison), table, note]


def _cost_bars(comparison: Mapping[str, Any]) -> Picture:
    costs = comparison["costs"]
    systems = [system for system in comparison["systems"] if system["name"] in costs]
    rows = [
        (title, [(system["label"], costs[system["name"]][key]) for system in systems])
        for key, title in COST_BARS.items()
    ]
    numbers = "; ".join(
        f"{title}: " + ", ".join(f"{label} {value:.0f}" for label, value in values) for title, values in rows
    )
    caption = "Speed (longer is faster) and memory (longer is more), measured in turns."
    return figures.bars(rows, "costs", alt=numbers, caption=caption)


def _examples(
    comparison: Mapping[str, Any], scored: Sequence[ScoredSystem], records: Sequence[ImageRecord]
) -> list[Block]:
    """Photos on which the systems differ most, and photos on which all score badly."""
    labels = {system["name"]: system["label"] for system in comparison["systems"]}
    primary, scale = comparison["primary"], comparison["scales"][comparison["primary"]]
    metric: Any = {"primary": primary, "higher_is_better": comparison["higher_is_better"]}
    pairs = sorted(comparison["pairs"], key=lambda pair: -abs(pair["metrics"][primary]["difference"]))
    photo_names = (f"photo-{number:03d}" for number in range(1000))
    blocks: list[Block] = []
    if pairs:
        blocks = [Heading("Largest differences"), Text(PHOTO_NOTE.format(metric=primary), "note")]
    for pair in pairs[:PAIRS_WITH_PHOTOS]:
        for better, worse in ((pair["a"], pair["b"]), (pair["b"], pair["a"])):
            images = largest_differences(scored, records, better, worse, count=PHOTOS_PER_DIRECTION, **metric)
            if images:
                blocks += [
                    Heading(f"{labels[better]} better than {labels[worse]}", 3),
                    _cards(images, scored, photo_names, scale),
                ]
    images = worst_scores(scored, records, count=FAILURES, **metric)
    return [
        *blocks,
        Heading("Worst scores"),
        Text(f"Images on which the best system has the worst {primary}.", "note"),
        _cards(images, scored, photo_names, scale),
    ]


def _cards(
    images: Sequence[ImageScores], scored: Sequence[ScoredSystem], names: Iterator[str], scale: float
) -> Cards:
    cards = []
    for image in images:
        record = image.record
        lines = [
            (
                system.system.label,
                system.system.runs[0].captions[record.image_id],
                f"{scale * image.scores[system.system.name]:.0f}",
            )
            for system in scored
        ]
        photo = read_photo(record, next(names))
        cards.append(Card(f"image {record.image_id}", photo, lines, record.captions[:REFERENCES]))
    return Cards(cards)


def read_photo(record: ImageRecord, name: str) -> Picture | str:
    """The photo, reduced to `PHOTO_SIDE`, or the reason why it cannot be shown."""
    try:
        small = load_image(record.path)
    except BadImage as error:
        return error.reason
    small.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    content = io.BytesIO()
    if max(small.size) < 128:  # a drawn image, which JPEG would blur
        small.save(content, format="PNG")
        name += ".png"
    else:
        small.save(content, format="JPEG", quality=82)
        name += ".jpg"
    return Picture(name, content.getvalue(), f"photo with the reference: {record.captions[0]}", "")


def _setup(comparison: Mapping[str, Any]) -> list[Block]:
    references = (
        f"References: {comparison['images']:,} images of `{comparison['split']}`, fingerprint "
        f"`{comparison['references_fingerprint']}`, the same for every system. Tokenizer: {comparison['tokenizer']}."
    )
    return [Heading("How this was made"), Bullets([references, *comparison.get("setup", [])])]


def _signed(value: float) -> str:
    """Two decimals, with a sign unless it rounds to 0."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def _mean_and_sd(values: Mapping[str, Any], name: str, factor: float) -> str:
    decimals = 0 if name == "vocabulary_used" else 2 if factor == 1 else 1
    mean = f"{factor * values['mean']:.{decimals}f}"
    return mean if values["sd"] is None else f"{mean} ± {factor * values['sd']:.{max(1, decimals)}f}"


def _rates(scores: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{float(rate):g}: {'diverged' if score is None else f'{100 * score:.1f}'}"
        for rate, score in scores.items()
    )


def _scaled(value: int | None, unit: float) -> str:
    if value is None:
        return ""
    return f"{value / unit:,.0f}" if value >= 10 * unit else f"{value / unit:.2f}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _logged(system: Mapping[str, Any], key: str) -> str:
    values = [facts[key] for facts in system["logged"] if key in facts]
    return _number(sum(values) / len(values)) if values else ""
