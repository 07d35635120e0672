"""Prepares a data set: says what it needs, downloads what may be, verifies and shows it."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioning.errors import UserError

if TYPE_CHECKING:
    from captioning.datasets import DatasetConfig
    from captioning.datasets.prepare.guide import Guide
    from captioning.datasets.prepare.survey import FileSurvey, Survey
    from captioning.datasets.shards import Payload
    from captioning.records import Collection, ImageRecord

KINDS = ("shapes", "flickr8k", "flickr30k", "coco", "karpathy", "folder", "shards")
EXAMPLES = """\
examples:
  captioning prepare shapes                             draw the shapes data and show it
  captioning prepare flickr8k --needs                   what belongs in data/flickr8k, and where it comes from
  captioning prepare flickr8k                           verify data/flickr8k once you filled it
  captioning prepare flickr8k --root ~/flickr splits=random     a copy without split lists
  captioning prepare coco --download captions,val train=null    0.25 + 0.82 GB into data/coco; then verify
  captioning prepare karpathy --download captions images=null   Karpathy's splits, captions alone
  captioning prepare folder --root photos --json        the report as JSON on stdout
  captioning prepare shard --help                       any data set as tars: one file a thousand images

KEY=VALUE are the data set's settings, as under `dataset:` in a config.
exit code: 0 fit for training; 2 not, with the reason on stderr."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Say what a data set needs, download what may be downloaded, verify it and show it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS, help="the data set")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the data set")
    parser.add_argument("--root", help="its folder (default: data/KIND; data/coco for karpathy)")
    parser.add_argument("--needs", action="store_true", help="only say what belongs in the folder")
    parser.add_argument("--download", metavar="PART,PART", help="download these first (--needs lists them)")
    parser.add_argument(
        "--quick", action="store_true", help="don't open the images: no search for broken ones"
    )
    parser.add_argument("--min-count", type=int, default=5, help="words seen so often are known (default: 5)")
    parser.add_argument("--out", help="folder for the report (default: runs/prepare-KIND)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_intermixed_args()


SHARD_EXAMPLES = """\
examples:
  captioning prepare shard flickr8k --to data/flickr8k-shards               images and captions
  captioning prepare shard coco --root /data/coco --to shards images=train2017
  captioning prepare shard flickr8k --to shards --features features/flickr8k-0123    stored features in their place
  captioning prepare shard --adopt /data/cc3m                               tars of webdataset or img2dataset
  captioning prepare shards --root data/flickr8k-shards                     what is in them; all bytes verified
  captioning train configs/flickr8k_lstm.yaml dataset.kind=shards dataset.root=data/flickr8k-shards

Killed, the same command goes on behind the last whole shard.
exit code: 0 written; 2 not, with the reason on stderr."""


def parse_shard_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="prepare.py shard",
        description="Write a data set as shards: webdataset tars that training reads from in any order.",
        epilog=SHARD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = [kind for kind in KINDS if kind != "shards"]
    parser.add_argument("kind", nargs="?", choices=kinds, help="the data set")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the data set")
    parser.add_argument("--root", help="its folder (default: data/KIND)")
    parser.add_argument("--to", metavar="FOLDER", help="folder to write to")
    parser.add_argument(
        "--features",
        metavar="FOLDER",
        help="write what this feature store has, no images (captioning features)",
    )
    parser.add_argument("--per-shard", type=int, default=1000, help="records in a tar (default: 1000)")
    parser.add_argument("--adopt", metavar="FOLDER", help="list the tars in this folder, whoever wrote them")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_intermixed_args(sys.argv[2:])
    if (args.adopt is None) == (args.kind is None) or (args.kind and not args.to):
        parser.error("name a data set and --to FOLDER, or --adopt FOLDER")
    if args.per_shard < 1:
        parser.error(f"--per-shard must be at least 1, got {args.per_shard}")
    return args


def shard(args: argparse.Namespace) -> int:
    """Write, or list, shards, and say what they hold."""
    from captioning.datasets import load, shards
    from captioning.datasets.prepare.survey import in_order

    if args.adopt:
        index = shards.adopt(args.adopt)
    else:
        config = read_settings(args.kind, args.root, args.settings)
        records = load(config).records
        payload, holds = features_of(args.features, records) if args.features else (image, {"kind": "images"})
        index = shards.write(
            records, args.to, payload, holds=holds, per_shard=args.per_shard, max_bad=config.max_bad
        )
    size = sum(entry["bytes"] for entry in index["shards"])
    found = ", ".join(f"{split} {index['splits'][split]:,}" for split in in_order(index["splits"]))
    skipped = sum(len(entry["skipped"]) for entry in index["shards"])
    print(
        f"{args.to or args.adopt}: {len(index['shards']):,} shards of {index['holds']['kind']}, {size / 1e9:.3f} GB: "
        f"{found}" + (f"; {skipped:,} passed over" if skipped else "")
    )
    return 0


def image(record: ImageRecord) -> tuple[str, bytes]:
    """What a shard holds of a record: its file, once it is sure that it can be opened."""
    import io

    from captioning.datasets.shards import IMAGES, Unfit
    from captioning.images.reading import BadImage, load_image
    from captioning.utils.file_slice import read_bytes

    extension = Path(record.path).suffix.lower().removeprefix(".")
    if extension not in IMAGES:
        raise Unfit(f"its name ends in none of {', '.join(sorted(IMAGES))}")
    try:
        content = read_bytes(record.path)
        load_image(io.BytesIO(content))
    except BadImage as error:
        raise Unfit(error.reason) from None
    except OSError as error:
        raise Unfit(error.strerror or str(error)) from None
    return extension, content


def features_of(folder: str, records: list[ImageRecord]) -> tuple[Payload, dict[str, Any]]:
    """How a record's features are had from a store, and what the shards' index says of them."""
    import io
    from dataclasses import asdict

    import numpy as np

    from captioning.datasets.shards import Unfit
    from captioning.loaders.feature_store import FeatureStore

    store = FeatureStore.open(folder)

    def payload(record: ImageRecord) -> tuple[str, bytes]:
        if record.image_id not in store:
            raise Unfit("not in the feature store")
        views = [store.rows([record.image_id], views=[view])[0] for view in range(store.views)]
        file = io.BytesIO()
        np.save(file, np.stack(views), allow_pickle=False)
        return "npy", file.getvalue()

    return payload, {"kind": "features", "views": store.views, "origin": asdict(store.origin)}


def main() -> int:
    if sys.argv[1:2] == ["shard"]:
        return shard(parse_shard_arguments())
    args = parse_arguments()
    # after the arguments are parsed: these take a second
    from captioning.datasets import load
    from captioning.datasets.prepare.guide import GUIDES, generate_captions, published
    from captioning.datasets.prepare.survey import survey
    from captioning.datasets.shards import verify
    from captioning.utils.files import write_json

    warnings.formatwarning = lambda message, *place, **line: f"note: {message}\n"
    config = read_settings(args.kind, args.root, args.settings)
    guide = GUIDES[args.kind]
    if args.needs:
        print(generate_captions(guide, config.root))
        return 0
    if args.download:
        download(guide, args.download.split(","), Path(config.root))
    if args.kind != "shapes" and not (os.path.isdir(config.root) and os.listdir(config.root)):
        print(generate_captions(guide, config.root), file=sys.stderr)
        raise UserError(f"{config.root}: empty or not there; fill it as said above, then run this again")
    out = Path(args.out or f"runs/prepare-{args.kind}")
    collection = load(config, skipped_csv=out / "skipped.csv")
    found = survey(collection.records, min_count=args.min_count)
    if args.kind == "shards":
        verify(config.root)
    has_images = getattr(config, "images", "") is not None and not collection.records[0].path.endswith(".npy")
    files = look_at_files(collection.records, args) if has_images and not args.quick else None
    sheet = draw(collection.records, out) if has_images else None
    report = as_json(config, collection, found, files, sheet, published(config, collection.records))
    write_json(out / "report.json", report)
    if args.json:
        import json

        print(json.dumps(report, ensure_ascii=False))
    else:
        show(report)
        print(f"report: {out / 'report.json'}")
    return verdict(config, collection, files, out)


def read_settings(kind: str, root: str | None, settings: list[str]) -> DatasetConfig:
    """The data set's config. Raises UserError for an unknown key or a wrong value."""
    import yaml

    from captioning.datasets import DatasetConfig
    from captioning.utils.validation import validate

    values: dict[str, Any] = {"kind": kind, **({} if root is None else {"root": os.path.expanduser(root)})}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise UserError(f"{setting!r}: a setting is written KEY=VALUE, for example splits=random")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"{setting!r}: the value is not YAML") from None
    return validate(DatasetConfig, values, where=kind, allow_code=True)


def download(guide: Guide, names: list[str], root: Path) -> None:
    """Fetch and unpack the named parts under `root`; archives stay in `root/downloads`."""
    from captioning.datasets.prepare.archives import unpack
    from captioning.datasets.prepare.download import fetch

    for name in names:
        if name not in guide.parts:
            there = ", ".join(guide.parts) or "nothing of this data set"
            raise UserError(f"--download {name}: no such part; {there} can be downloaded")
    for name in names:
        part = guide.parts[name]
        archive = fetch(part.source, root / "downloads")
        count = unpack(archive, root / part.to, most_bytes=part.most_bytes, wanted=part.wanted)
        print(f"{root / part.to}: {count:,} files of {archive} (which may be deleted)", file=sys.stderr)


def look_at_files(records: list[ImageRecord], args: argparse.Namespace) -> FileSurvey:
    from captioning.datasets.prepare.survey import survey_files
    from captioning.images.reading import load_image

    return survey_files(records, open_image=load_image, threads=os.cpu_count() or 1)


def draw(records: list[ImageRecord], out: Path) -> Path:
    from captioning.datasets.prepare.contact_sheet import draw_sheet
    from captioning.datasets.prepare.survey import in_order
    from captioning.images.reading import load_image

    path = out / "contact_sheet.png"
    splits = in_order({record.split for record in records})
    draw_sheet(records, path, open_image=load_image, splits=splits)
    return path


def as_json(
    config: DatasetConfig,
    collection: Collection,
    found: Survey,
    files: FileSurvey | None,
    sheet: Path | None,
    expected: Any,
) -> dict[str, Any]:
    """The whole report as JSON-able values."""
    from dataclasses import asdict

    from captioning.datasets.checks import count_reasons
    from captioning.datasets.prepare.survey import in_order

    def names(groups: list[list[ImageRecord]]) -> list[list[dict[str, str]]]:
        return [[{"path": record.path, "split": record.split} for record in group] for group in groups]

    return {
        "dataset": asdict(config),
        "splits": {
            split: {**found.splits[split]._asdict(), "published": expected.get(split)}
            for split in in_order(found.splits)
        },
        "absent": {split: count for split, count in expected.items() if split not in found.splits},
        "vocabulary": {
            "min_count": found.min_count,
            "words": found.vocabulary,
            "training_words": found.training_words,
        },
        "skipped": count_reasons(collection.skipped),
        "files": None
        if files is None
        else {
            "checked": files.checked,
            "broken": [bad._asdict() for bad in files.broken],
            "repeated_within_a_split": names(files.repeated),
            "repeated_across_splits": names(files.leaked),
        },
        "contact_sheet": None if sheet is None else str(sheet),
    }


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    print(f"{report['dataset']['kind']}: {report['dataset']['root']}\n")
    print(
        f"{'':12}{'images':>9}{'published':>11}{'captions':>10}{'an image':>10}   words a caption, percentile"
    )
    percentiles = list(next(iter(report["splits"].values()))["lengths"])
    print(f"{'':55}{''.join(f'{key:>6}' for key in percentiles)}")
    for split, row in report["splits"].items():
        fewest, *_, most = [*row["captions_per_image"]] * 2
        an_image = f"{fewest}" if fewest == most else f"{fewest}-{most}"
        lengths = "".join(f"{value:>6.0f}" for value in row["lengths"].values())
        counts = f"{row['images']:>9,}{number(row['published']):>11}{row['captions']:>10,}"
        print(f"{split:<12}{counts}{an_image:>10}   {lengths}")
    for split, count in report["absent"].items():
        print(f"{split:<12}{'absent':>9}{count:>11,}")
    show_words(report)
    for reason, (count, first) in report["skipped"].items():
        print(f"passed over: {count:,} {reason} (first {first})")
    show_files(report)
    if report["contact_sheet"]:
        print(f"contact sheet: {report['contact_sheet']}")


def show_words(report: dict[str, Any]) -> None:
    words = report["vocabulary"]
    if not words["training_words"]:
        print("\nno training split: no vocabulary")
        return
    print(
        f"\nvocabulary: {words['words']:,} of {words['training_words']:,} training words are seen "
        f"{words['min_count']} times or more"
    )
    for split, row in report["splits"].items():
        unknown = ", ".join(f"{token} {count}" for token, count in list(row["unknown"].items())[:6])
        shares = (
            f"{row['known_tokens']:>8.2%} of words known, {row['known_captions']:>7.2%} of captions wholly"
        )
        print(f"  {split:<12}{shares}" + (f"; unknown: {unknown}" if unknown else ""))


def show_files(report: dict[str, Any]) -> None:
    files = report["files"]
    if files is None:
        return
    within, across = len(files["repeated_within_a_split"]), len(files["repeated_across_splits"])
    print(
        f"files: {files['checked']:,} opened, {len(files['broken'])} broken; groups with the same bytes: "
        f"{within} within a split, {across} across splits"
    )
    for group in (files["repeated_across_splits"] + files["repeated_within_a_split"])[:5]:
        print("  " + " = ".join(f"{each['path']} ({each['split']})" for each in group))
    for bad in files["broken"][:5]:
        print(f"  {bad['item']}: {bad['reason']}")


def number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def verdict(config: DatasetConfig, collection: Collection, files: FileSurvey | None, out: Path) -> int:
    """0 where the data set is fit for training. Raises UserError where it is not."""
    from captioning.datasets.checks import write_skipped

    if files is None:
        return 0
    if files.leaked:
        first = " = ".join(f"{record.path} ({record.split})" for record in files.leaked[0])
        raise UserError(
            f"{config.root}: leakage: {len(files.leaked)} images are in two splits by content "
            f"(first {first}); leave each in one (all are in {out / 'report.json'})"
        )
    if files.broken:
        write_skipped(out / "broken.csv", files.broken)
        if len(files.broken) > config.max_bad * len(collection.records):
            raise UserError(
                f"{config.root}: {len(files.broken)} of {files.checked} images are broken, more than "
                f"max_bad = {config.max_bad:g} allows; all are listed in {out / 'broken.csv'}"
            )
    return 0
