"""`captioning prepare`: show what a data set needs, download it, verify it and report on it; write shards."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioning.cli.options import add_tokenizer, positive
from captioning.errors import UserError, notes_to

if TYPE_CHECKING:
    from captioning.datasets.base import BaseDatasetConfig, Guide
    from captioning.datasets.prepare.shards import ReadContent
    from captioning.datasets.prepare.survey import FileSurvey, Survey
    from captioning.records import Collection, ImageRecord

EXAMPLES = """\
examples:
  captioning prepare                                    list the data sets
  captioning prepare shapes                             draw the shapes data and report on it
  captioning prepare flickr8k --needs                   which files belong in data/flickr8k, and where to get them
  captioning prepare flickr8k                           verify data/flickr8k after adding the files
  captioning prepare flickr8k --root ~/flickr splits=random     a copy without split lists
  captioning prepare coco --download captions,val train=null    0.25 + 0.82 GB into data/coco; then verify
  captioning prepare karpathy --download captions images=null   Karpathy's splits, captions alone
  captioning prepare folder --root photos --json        the report as JSON on stdout
  captioning prepare shard --help                       write any data set as tars of a thousand images

KEY=VALUE are the data set's settings, as under `dataset:` in a config.
exit code: 0 fit for training; 2 unfit, with the reason on stderr."""

SHARD_EXAMPLES = """\
examples:
  captioning prepare shard flickr8k --to data/flickr8k-shards               images and captions
  captioning prepare shard coco --root /data/coco --to shards images=train2017
  captioning prepare shard flickr8k --to shards --features features/flickr8k-0123    stored features instead of images
  captioning prepare shard --adopt /data/cc3m                               list tars of webdataset or img2dataset
  captioning prepare shards --root data/flickr8k-shards                     verify all bytes, and report
  captioning train configs/flickr8k_lstm.yaml dataset.kind=shards dataset.root=data/flickr8k-shards

After an interruption the same command continues with the next shard.
exit code: 0 written; 2 not written, with the reason on stderr."""


def main() -> int:
    if sys.argv[1:2] == ["shard"]:
        return shard(parse_shard_arguments())
    args = parse_arguments()
    if args.kind is None:
        return list_data_sets()
    # imported after the arguments are parsed, because these imports take a second
    from captioning.datasets import load, refuse_equal_files
    from captioning.datasets.prepare.survey import survey
    from captioning.utils.files import write_json

    config = read_settings(args.kind, args.root, args.settings)
    if args.needs:
        print(config.guide.text(config.root))
        return 0
    if args.download:
        download(config.guide, args.download.split(","), Path(config.root))
    if not config.generates_files and not (os.path.isdir(config.root) and os.listdir(config.root)):
        print(config.guide.text(config.root), file=sys.stderr)
        raise UserError(f"{config.root}: missing or empty; add the files listed above and run this again")
    out = Path(args.out or f"runs/prepare-{args.kind}")
    notes: list[str] = []
    with notes_to(notes.append):
        collection = load(config, skipped_csv=out / "skipped.csv")
    statistics = survey(collection.records, min_count=args.min_count, tokenizer=args.tokenizer or "ptb")
    config.verify()
    has_images = config.has_images(collection.records)
    files = check_files(collection.records) if has_images and not args.quick else None
    sheet = draw_sheet(collection.records, out) if has_images else None
    report = {**as_json(config, collection, statistics, files, sheet), "notes": notes}
    write_json(out / "report.json", report)
    if args.json:
        import json

        print(json.dumps(report, ensure_ascii=False))
    else:
        print_report(report)
        print(f"report: {out / 'report.json'}")
    if files is not None:
        refuse_bad_files(config, collection, files, out)
    else:
        refuse_equal_files(config, collection)
    if config.has_training_split:
        refuse_untrainable(config, collection, statistics)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Show what a data set needs, download what may be downloaded, verify it and report on it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_set(parser)
    parser.add_argument("--needs", action="store_true", help="print which files the folder needs, and stop")
    parser.add_argument("--download", metavar="NAME,NAME", help="download these first (--needs lists them)")
    parser.add_argument(
        "--quick", action="store_true", help="don't open the images: broken ones are not found"
    )
    parser.add_argument(
        "--min-count", type=positive, default=5, help="occurrences that a known word needs (default: 5)"
    )
    add_tokenizer(parser)
    parser.add_argument("--out", help="folder for the report (default: runs/prepare-KIND)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_intermixed_args()


def parse_shard_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="captioning prepare shard",
        description="Write a data set as shards: webdataset tars that training reads from in any order.",
        epilog=SHARD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_set(parser)
    parser.add_argument("--to", metavar="FOLDER", help="folder to write to")
    parser.add_argument(
        "--features",
        metavar="FOLDER",
        help="write the features of this store instead of images (see captioning features)",
    )
    parser.add_argument("--per-shard", type=positive, default=1000, help="records in a tar (default: 1000)")
    parser.add_argument("--adopt", metavar="FOLDER", help="list the existing tars of this folder as shards")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_intermixed_args(sys.argv[2:])
    if (args.adopt is None) == (args.kind is None) or (args.kind and not args.to):
        parser.error("name a data set and --to FOLDER, or --adopt FOLDER")
    return args


def add_data_set(parser: argparse.ArgumentParser) -> None:
    # the kinds are not `choices`, because importing the data sets would slow down --help
    parser.add_argument(
        "kind", nargs="?", metavar="KIND", help="the data set (`captioning prepare` lists them)"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the data set")
    parser.add_argument("--root", help="its folder (default: data/KIND; data/coco for karpathy)")


def list_data_sets() -> int:
    from captioning.datasets import DATASETS

    print("data sets:")
    for kind, config in DATASETS.items():
        print(f"  {kind:<10}  {config.guide.title}")
    print(
        "\n`captioning prepare KIND --needs` lists a data set's files; `captioning prepare --help` gives examples."
    )
    return 0


def read_settings(kind: str, root: str | None, settings: list[str]) -> BaseDatasetConfig:
    """The data set's config. Raises UserError for an unknown data set, an unknown key or a wrong value."""
    from captioning.datasets import DatasetConfig
    from captioning.utils.parsing import parse_yaml_value
    from captioning.utils.validation import validate

    values: dict[str, Any] = {"kind": kind, **({} if root is None else {"root": os.path.expanduser(root)})}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise UserError(f"{setting!r}: write a setting as KEY=VALUE, for example splits=random")
        values[key] = parse_yaml_value(text, where=repr(setting))
    return validate(DatasetConfig, values, where=kind, allow_code=True)


def download(guide: Guide, names: list[str], root: Path) -> None:
    """Download and unpack the named archives under `root`; the archives are kept in `root/downloads`."""
    from captioning.datasets.prepare.archives import unpack
    from captioning.datasets.prepare.download import fetch

    for name in names:
        if name not in guide.downloads:
            available = ", ".join(guide.downloads) or "nothing of this data set"
            raise UserError(f"--download {name}: unknown; {available} can be downloaded")
    for name in names:
        item = guide.downloads[name]
        archive = fetch(item.file, root / "downloads")
        folder = root / item.folder
        count = unpack(archive, folder, max_bytes=item.max_bytes, wanted=item.matches)
        print(f"{folder}: {count:,} files of {archive} (which may be deleted)", file=sys.stderr)


def check_files(records: list[ImageRecord]) -> FileSurvey:
    from captioning.datasets.prepare.survey import survey_files
    from captioning.images.reading import read_image as open_image

    return survey_files(records, read_notes=lambda file: open_image(file).notes, threads=os.cpu_count() or 1)


def draw_sheet(records: list[ImageRecord], out: Path) -> Path:
    from captioning.datasets.prepare import contact_sheet
    from captioning.datasets.splits import sort_splits
    from captioning.images.reading import load_image

    path = out / "contact_sheet.png"
    splits = sort_splits({record.split for record in records})
    contact_sheet.draw_sheet(records, path, open_image=load_image, splits=splits)
    return path


def as_json(
    config: BaseDatasetConfig,
    collection: Collection,
    statistics: Survey,
    files: FileSurvey | None,
    sheet: Path | None,
) -> dict[str, Any]:
    """The report as JSON values."""
    from dataclasses import asdict

    from captioning.datasets.checks import count_reasons
    from captioning.datasets.splits import sort_splits

    def describe(groups: list[list[ImageRecord]]) -> list[list[dict[str, str]]]:
        return [[{"path": record.path, "split": record.split} for record in group] for group in groups]

    published = config.published_counts(collection.records)
    splits = statistics.splits
    return {
        "dataset": asdict(config),
        "splits": {
            split: {**splits[split]._asdict(), "published": published.get(split)}
            for split in sort_splits(set(splits))
        },
        "absent": {split: count for split, count in published.items() if split not in splits},
        "vocabulary": {
            "min_count": statistics.min_count,
            "words": statistics.vocabulary,
            "training_words": statistics.training_words,
        },
        "skipped": count_reasons(collection.skipped),
        "files": files
        and {
            "checked": files.checked,
            "broken": [skip._asdict() for skip in files.broken],
            "noted": [skip._asdict() for skip in files.noted],
            "repeated_within_a_split": describe(files.repeated),
            "repeated_across_splits": describe(files.leaked),
        },
        "contact_sheet": None if sheet is None else str(sheet),
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the report as text."""
    print(f"{report['dataset']['kind']}: {report['dataset']['root']}\n")
    print(
        f"{'':12}{'images':>9}{'published':>11}{'captions':>10}{'per image':>10}   words a caption, percentile"
    )
    percentiles = list(next(iter(report["splits"].values()))["lengths"])
    print(f"{'':55}{''.join(f'{percentile:>6}' for percentile in percentiles)}")
    for split, row in report["splits"].items():
        fewest, *_, most = [*row["captions_per_image"]] * 2
        per_image = f"{fewest}" if fewest == most else f"{fewest}-{most}"
        published = "-" if row["published"] is None else f"{row['published']:,}"
        lengths = "".join(f"{value:>6.0f}" for value in row["lengths"].values())
        counts = f"{row['images']:>9,}{published:>11}{row['captions']:>10,}"
        print(f"{split:<12}{counts}{per_image:>10}   {lengths}")
    for split, count in report["absent"].items():
        print(f"{split:<12}{'absent':>9}{count:>11,}")
    print_vocabulary(report)
    for note in report["notes"]:
        print(note)
    for reason, (count, first) in report["skipped"].items():
        print(f"skipped: {count:,} {reason} (first {first})")
    if report["files"]:
        print_files(report["files"])
    if report["contact_sheet"]:
        print(f"contact sheet: {report['contact_sheet']}")


def print_vocabulary(report: dict[str, Any]) -> None:
    vocabulary = report["vocabulary"]
    if not vocabulary["training_words"]:
        print("\nno training split: no vocabulary")
        return
    print(
        f"\nvocabulary: {vocabulary['words']:,} of {vocabulary['training_words']:,} training words occur "
        f"{vocabulary['min_count']} times or more"
    )
    for split, row in report["splits"].items():
        unknown = ", ".join(f"{token} {count}" for token, count in list(row["unknown"].items())[:6])
        shares = f"{row['known_tokens']:>8.2%} of words known, {row['known_captions']:>7.2%} of captions completely"
        print(f"  {split:<12}{shares}" + (f"; unknown: {unknown}" if unknown else ""))


def print_files(files: dict[str, Any]) -> None:
    within, across = files["repeated_within_a_split"], files["repeated_across_splits"]
    print(
        f"files: {files['checked']:,} opened, {len(files['broken'])} broken; groups of equal files: "
        f"{len(within)} within a split, {len(across)} across splits"
    )
    for group in (across + within)[:5]:
        print("  " + " = ".join(f"{file['path']} ({file['split']})" for file in group))
    for skip in files["broken"][:5]:
        print(f"  {skip['item']}: {skip['reason']}")
    by_kind: dict[str, list[dict[str, str]]] = {}
    for noted in files["noted"]:
        by_kind.setdefault(noted["reason"].rpartition("; ")[2], []).append(noted)
    for kind, all_noted in by_kind.items():
        first = f"{all_noted[0]['item']}: {all_noted[0]['reason']}"
        print(f"accepted with a note: {len(all_noted):,} {kind} (first {first})")


def refuse_untrainable(config: BaseDatasetConfig, collection: Collection, statistics: Survey) -> None:
    """Raise UserError if `captioning train` would refuse the splits or find no words."""
    from captioning.datasets.splits import training_splits

    training_splits(collection, where=config.root)
    if not statistics.vocabulary:
        raise UserError(
            f"{config.root}: no word occurs {statistics.min_count} times in the training captions; lower "
            "vocabulary.min_count for training, and give it here as --min-count"
        )


def refuse_bad_files(config: BaseDatasetConfig, collection: Collection, files: FileSurvey, out: Path) -> None:
    """Raise UserError if files are in two splits or too many are broken; broken files are listed in `broken.csv`."""
    from captioning.datasets.checks import content_leakage, refuse_bad_split, write_skipped

    if files.leaked:
        raise content_leakage(files.leaked, where=config.root, listed=str(out / "report.json"))
    if files.broken:
        write_skipped(out / "broken.csv", files.broken)
        if len(files.broken) > config.max_bad * len(collection.records):
            raise UserError(
                f"{config.root}: {len(files.broken)} of {files.checked} images are broken, more than "
                f"max_bad = {config.max_bad:g} allows; all are listed in {out / 'broken.csv'}"
            )
        refuse_bad_split(
            {skip.item: skip.split or "" for skip in files.broken},
            (record.split for record in collection.records),
            max_bad=config.max_bad,
            where=config.root,
        )


def shard(args: argparse.Namespace) -> int:
    """Write or list shards, and print their sizes."""
    from captioning.datasets import load
    from captioning.datasets.prepare import shards
    from captioning.datasets.splits import sort_splits

    if args.adopt:
        index = shards.adopt(args.adopt)
    else:
        config = read_settings(args.kind, args.root, args.settings)
        records = load(config, skipped_csv=Path(args.to, "skipped.csv")).records
        read_content, holds = (
            read_features(args.features) if args.features else (read_image, {"kind": "images"})
        )
        index = shards.write(
            records, args.to, read_content, holds=holds, per_shard=args.per_shard, max_bad=config.max_bad
        )
    size = sum(entry["bytes"] for entry in index["shards"])
    counts = ", ".join(f"{split} {index['splits'][split]:,}" for split in sort_splits(set(index["splits"])))
    skipped = sum(len(entry["skipped"]) for entry in index["shards"])
    print(
        f"{args.to or args.adopt}: {len(index['shards']):,} shards of {index['holds']['kind']}, {size / 1e9:.3f} GB: "
        f"{counts}" + (f"; {skipped:,} skipped" if skipped else "")
    )
    return 0


def read_image(record: ImageRecord) -> tuple[str, bytes]:
    """The extension and bytes of a record's image file, after checking that it opens."""
    import io

    from captioning.datasets.prepare.shards import IMAGES, UnusableRecord
    from captioning.images.reading import BadImage, load_image
    from captioning.utils.file_slice import read_bytes

    extension = Path(record.path).suffix.lower().removeprefix(".")
    if extension not in IMAGES:
        raise UnusableRecord(f"its extension is none of {', '.join(sorted(IMAGES))}")
    try:
        content = read_bytes(record.path)
        load_image(io.BytesIO(content))
    except BadImage as error:
        raise UnusableRecord(error.reason) from None
    except OSError as error:
        raise UnusableRecord(error.strerror or str(error)) from None
    return extension, content


def read_features(folder: str) -> tuple[ReadContent, dict[str, Any]]:
    """A function that reads a record's features from a feature store, and their description for the index."""
    import io
    from dataclasses import asdict

    import numpy as np

    from captioning.datasets.prepare.shards import UnusableRecord
    from captioning.loaders.feature_store import FeatureStore

    store = FeatureStore.open(folder)

    def read_content(record: ImageRecord) -> tuple[str, bytes]:
        if record.image_id not in store:
            raise UnusableRecord("not in the feature store")
        views = [store.rows([record.image_id], views=[view])[0] for view in range(store.views)]
        file = io.BytesIO()
        np.save(file, np.stack(views), allow_pickle=False)
        return "npy", file.getvalue()

    return read_content, {"kind": "features", "views": store.views, "provenance": asdict(store.provenance)}
