#!/usr/bin/env python
"""Captions a split with a run's model and scores that, or scores anyone's captions. Computes no score."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from captioning import errors
from captioning.errors import UserError
from captioning.options import add_search, positive, search_of

if TYPE_CHECKING:
    import torch

    from captioning.batches import Images
    from captioning.captioner import Captioner
    from captioning.metrics.evaluation import Evaluation
    from captioning.records import ImageRecord, Prediction
    from captioning.search import SearchConfig
    from captioning.tensors import Features

THREADS = min(8, os.cpu_count() or 1)
"""Load images, a batch each."""

EXAMPLES = """\
examples, captioning and scoring (needs a run of tools/train.py and its data set):
  python tools/evaluate.py runs/shapes                            its validation split
  python tools/evaluate.py runs/shapes --split test test_unseen   other splits
  python tools/evaluate.py runs/shapes --beam 3 --length-rule gnmt   another search than the run's own

examples, scoring alone (no model, no images, no torch; any system's captions):
  python tools/evaluate.py --predictions p.json --references captions_val2017.json
  python tools/evaluate.py --predictions p.json --references dataset_coco.json --split test --json
  python tools/evaluate.py --predictions p.json --references Flickr8k.token.txt --split val

PREDICTIONS are COCO results, [{"image_id": ..., "caption": ...}]; REFERENCES one of COCO's captions_*.json,
Karpathy's JSON, Flickr8k.token.txt or captions.txt (with their lists beside them), Flickr30k's results.csv, a
CSV or JSONL with file_name and caption. Every image of the split needs one caption: leaving out hard ones
raises the scores. Numbers are printed times 100; files and --json have pycocoevalcap's scale (BLEU 0..1), and
a signature of all that a score depends on. What pycocoevalcap and papers call CIDEr is CIDEr-D here.
exit code: 0 scored; 2 not, with the reason on stderr"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score captions: BLEU-1..4, ROUGE-L, CIDEr, CIDEr-D.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RUN [--split NAME ...] [options]\n"
        "       %(prog)s --predictions FILE --references FILE [--split NAME] [options]",
    )
    add = parser.add_argument
    add(
        "run",
        nargs="?",
        metavar="RUN",
        help="a run's folder: writes predictions_SPLIT.json, scores_SPLIT.json",
    )
    add("--predictions", metavar="FILE", help="COCO results to be scored")
    add("--references", metavar="FILE", help="the captions to score them by")
    add("--split", nargs="+", action="extend", metavar="NAME", help="val (default of a run), test ...")
    add("--json", action="store_true", help="print one JSON object (of a run: one a line for each split)")
    add("--allow-partial", action="store_true", help="score a part of the split; says how much of it")
    add("--out", metavar="FILE", help="write the scores, with each image's own (of predictions)")
    add_search(parser, default="the run's")
    add("--device", default=None, choices=("auto", "cpu", "cuda"), help="default: the run's")
    add("--batch", type=positive, default=32, metavar="N", help="images at a time (default: 32)")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    files = [name for name in ("predictions", "references") if getattr(args, name)]
    if args.run is None and len(files) != 2:
        parser.error("give a RUN, or --predictions and --references (--split NAME goes behind RUN)")
    if args.run is not None and files:
        parser.error(f"give a RUN or --{files[0]}, not both")
    if args.run is None and args.split and len(args.split) > 1:
        parser.error("predictions are of one split: give one --split")
    only = (
        ("allow_partial", "out") if args.run is not None else ("beam", "max_length", "length_rule", "device")
    )
    if wrong := [name for name in only if getattr(args, name)]:
        what = "is for --predictions" if args.run is not None else "is for a RUN"
        parser.error(f"--{wrong[0].replace('_', '-')} {what}")
    return args


def main() -> int:
    args = parse_arguments()
    if args.run is None:
        score_files(args)
    else:
        evaluate_run(args)
    return 0


def score_files(args: argparse.Namespace) -> None:
    """Score a file of predictions."""
    # after the arguments are parsed; torch is not among what these import
    from captioning.datasets.checks import count_reasons
    from captioning.datasets.references import match_ids, read_references
    from captioning.metrics.evaluation import evaluate
    from captioning.records import read_predictions

    predictions = read_predictions(args.predictions)
    references = read_references(args.references, split=args.split[0] if args.split else None)
    for reason, (count, first) in count_reasons(references.skipped).items():
        print(f"{args.references}: passed over {count} {reason} (first {first})", file=sys.stderr)
    matched, how = match_ids(predictions, references.records)
    if how != "image id":
        print(f"{args.predictions}: images are told by {how}", file=sys.stderr)
    evaluation = evaluate(
        references.captions(),
        matched,
        split_name=references.split,
        search=None,
        allow_partial=args.allow_partial,
    )
    evaluation.signature["matched_by"] = how
    if args.out:
        evaluation.write(args.out)
    if args.json:
        print(json.dumps({**evaluation.scores, "signature": evaluation.signature}))
        return
    print(f"{references.split}: {len(references.records):,} images of {args.references}")
    print("\n".join(evaluation.lines()))
    if args.out:
        print(f"scores: {args.out}")


def evaluate_run(args: argparse.Namespace) -> None:
    """Caption and score the splits asked for with a run's model."""
    # after the arguments are parsed: torch takes seconds
    from captioning.captioner import Captioner
    from captioning.datasets import of_split
    from captioning.experiment import Experiment, read_config
    from captioning.files import inside, sha256
    from captioning.metrics.evaluation import evaluate
    from captioning.records import write_predictions

    run = Path(args.run)
    check_run(run)
    config = read_config(run / "config.yaml")
    # a run that was moved or renamed is where it is now
    config = replace(config, runs=str(run.parent), name=run.name, device=args.device or config.device)
    experiment = Experiment(config, say=lambda line: print(line, file=sys.stderr))
    captioner = Captioner.open(run / "model", device=experiment.device)
    search = search_of(captioner, args, n_best=1)
    collection = experiment.collect()
    splits = {split: of_split(collection, split) for split in args.split or ["val"]}
    source = experiment.source(captioner, [record for records in splits.values() for record in records])
    evaluations: dict[str, Evaluation] = {}
    files: list[str] = []
    for split, records in splits.items():
        readable = source.of(records)
        if len(readable) < len(records):
            print(
                f"{split}: {len(records) - len(readable)} images cannot be read, see coverage",
                file=sys.stderr,
            )
        images = source.images(readable, training=False)
        predictions = caption_all(captioner, readable, images, search, size=args.batch, title=split)
        evaluation = evaluations[split] = evaluate(
            {record.image_id: record.captions for record in records},
            {prediction.image_id: prediction.caption for prediction in predictions},
            split_name=split,
            search=asdict(search),
            allow_partial=len(readable) < len(records),
        )
        evaluation.signature["model"] = sha256(run / "model" / "manifest.json")[:16]
        inside(run, f"predictions_{split}.json", entry=f"split {split!r}")
        paths = {what: str(run / f"{what}_{split}.json") for what in ("predictions", "scores")}
        write_predictions(paths["predictions"], predictions)
        evaluation.write(paths["scores"])
        files += paths.values()
        if args.json:
            told = {"split": split, **evaluation.scores, "signature": evaluation.signature, "files": paths}
            print(json.dumps(told), flush=True)
    if not args.json:
        print(f"{run}: {describe_search(search)}\n\n{table(evaluations)}\n")
        print("\n".join(files))


def table(evaluations: Mapping[str, Evaluation]) -> str:
    """A column a split, a row a number: metrics times 100, rates in %."""
    from captioning.metrics import NAMES

    rows = [["", *evaluations]]
    coverages = [evaluation.signature["coverage"] for evaluation in evaluations.values()]
    whole = all(coverage["share"] == 1 for coverage in coverages)
    rows.append(
        ["images", *(f"{each['scored']}" + f" of {each['images']}" * (not whole) for each in coverages)]
    )
    for name in next(iter(evaluations.values())).scores:
        times, unit = (100, "") if name in NAMES else (100, " %") if name.endswith("_rate") else (1, "")
        rows.append([name + unit, *(f"{each.scores[name] * times:.2f}" for each in evaluations.values())])
    widths = [max(9, *(len(row[column]) + 3 for row in rows)) for column in range(len(rows[0]))]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def check_run(run: Path) -> None:
    """Raises UserError where `run` is not a run's folder with a model."""
    if (run / "manifest.json").is_file():
        raise UserError(
            f"{run}: a model's folder, which knows no data; give the run's folder, or caption by "
            "tools/caption.py --out and give --predictions and --references"
        )
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"{run}: not the folder of a run (no config.yaml); tools/train.py makes one in runs/NAME"
        )
    if not (run / "model").is_dir() and not (run / ".model.old").is_dir():
        raise UserError(f"{run}: no model in it yet; it is written after the run's first validation")


def describe_search(search: SearchConfig) -> str:
    """The settings that matter most, in a few words."""
    if search.kind == "greedy":
        return "greedy search"
    return f"beam {search.width}, length rule {search.length_rule}"


def caption_all(
    captioner: Captioner,
    records: Sequence[ImageRecord],
    images: Images,
    search: SearchConfig,
    *,
    size: int,
    title: str,
) -> list[Prediction]:
    """Captions of all records, in their order; threads load images while the model works."""
    from tqdm import tqdm

    from captioning.describe import describe
    from captioning.training.validation import to_device

    device = next(captioner.parameters()).device
    found: list[Prediction] = []
    title = f"captioning {title}"
    with tqdm(total=len(records), desc=title, unit="image", leave=False, disable=None, delay=2) as progress:
        for numbers, batch in load_all(images, len(records), size=size):
            ids = [records[number].image_id for number in numbers]
            found += describe(captioner, to_device(batch, device), ids, config=search)
            progress.update(len(ids))
    return found


def load_all(images: Images, count: int, *, size: int) -> Iterator[tuple[range, Features | torch.Tensor]]:
    """Batches of the images 0 .. count - 1, with their numbers."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[tuple[range, Future[Features | torch.Tensor]]] = deque()
        try:
            for start in range(0, count, size):
                numbers = range(start, min(start + size, count))
                waiting.append((numbers, pool.submit(images, numbers, 0)))
                if len(waiting) > THREADS:
                    numbers, batch = waiting.popleft()
                    yield numbers, batch.result()
            for numbers, batch in waiting:
                yield numbers, batch.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    errors.run(main)
