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
from typing import TYPE_CHECKING, Any

from captioning.cli.options import add_allow_code, add_search, positive, search_of
from captioning.errors import UserError

if TYPE_CHECKING:
    import torch

    from captioning.captioner.captioner import Captioner
    from captioning.captioner.ensemble import EnsembleCaptioner
    from captioning.experiment import Experiment
    from captioning.generation import SearchConfig
    from captioning.inspection.rescoring import Verdict
    from captioning.loaders.batches import Images
    from captioning.metrics.caption_statistics import TrainingCaptions
    from captioning.metrics.evaluation import Evaluation
    from captioning.metrics.reference_set import ReferenceSet
    from captioning.models.decoders.ensemble import Average
    from captioning.records import ImageRecord, Prediction, Result
    from captioning.tensors import Features

THREADS = min(8, os.cpu_count() or 1)
"""Load images, a batch each."""

EXAMPLES = """\
examples, captioning and scoring (needs a run of captioning train and its data set):
  captioning evaluate runs/shapes                            its validation split
  captioning evaluate runs/shapes --split test test_unseen   other splits
  captioning evaluate runs/shapes --beam 3 --length-rule gnmt   another search than the run's own
  captioning evaluate runs/shapes --search sample --search-option samples=5 --search-option top_p=0.9
  captioning evaluate runs/shapes --search-option no_repeat=3 --search-option no_bad_ending=true
  captioning evaluate runs/shapes --errors                   is it the search that errs, or the model?
  captioning evaluate runs/a runs/b --out runs/a_and_b       an ensemble of models of one vocabulary

examples, scoring alone (no model, no images, no torch; any system's captions):
  captioning evaluate --predictions p.json --references captions_val2017.json
  captioning evaluate --predictions p.json --references dataset_coco.json --split test --json
  captioning evaluate --predictions p.json --references Flickr8k.token.txt --split val
  captioning evaluate --predictions a.json --against b.json --references c.json    is a better than b?
  captioning evaluate --predictions p.json --references c.json --metric METEOR SPICE NLTK-BLEU-4

PREDICTIONS are COCO results, [{"image_id": ..., "caption": ...}]; where all images have n captions, as
"captions": ["...", ...] (captioning caption --top N --out writes that), their diversity is told too. REFERENCES
are one of COCO's captions_*.json, Karpathy's JSON, Flickr8k.token.txt or captions.txt (with their lists beside
them), Flickr30k's results.csv, a CSV or JSONL with file_name and caption.

Every image of the split needs one caption: leaving out hard ones raises the scores. Numbers are printed times
100; files and --json have pycocoevalcap's scale (BLEU 0..1), and a signature of all that a score depends on.
What pycocoevalcap and papers call CIDEr is CIDEr-D here. --against resamples the images (paired bootstrap): its
interval is of the difference, p is two-sided, Holm's p corrected for the number of metrics in the table.

exit code: 0 scored; 2 not, with the reason on stderr"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score captions: BLEU-1..4, ROUGE-L, CIDEr, CIDEr-D.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RUN [RUN ...] [--split NAME ...] [options]\n"
        "       %(prog)s --predictions FILE --references FILE [--split NAME] [options]",
    )
    add = parser.add_argument
    add(
        "run",
        nargs="*",
        metavar="RUN",
        help="a run's folder: writes predictions_SPLIT.json, scores_SPLIT.json; of several their ensemble, into "
        "--out, on the first one's data",
    )
    add("--predictions", metavar="FILE", help="COCO results to be scored")
    add("--references", metavar="FILE", help="the captions to score them by")
    add("--against", metavar="FILE", help="another system's COCO results, to be told from PREDICTIONS")
    add("--resamples", type=positive, metavar="N", help="of the images, for --against (default: 10,000)")
    add("--seed", type=positive, default=0, metavar="N", help="of the resamples (default: 0)")
    add("--metric", nargs="+", metavar="NAME", help="further ones: METEOR, SPICE (by Java), NLTK-BLEU-1 .. 4")
    add("--training", metavar="FILE", help="training captions: tells the share of captions not among them")
    add("--several", action="store_true", help="an image may have several entries: its n captions")
    add("--split", nargs="+", action="extend", metavar="NAME", help="val (default of a run), test ...")
    add("--json", action="store_true", help="print one JSON object (of a run: one a line for each split)")
    add("--allow-partial", action="store_true", help="score a part of the split; says how much of it")
    add(
        "--out",
        metavar="FILE",
        help="write the scores, with each image's own (of predictions); an ensemble's folder",
    )
    add(
        "--average",
        choices=("probabilities", "log_probabilities"),
        help="what an ensemble takes the mean of (default: probabilities)",
    )
    add(
        "--errors",
        action="store_true",
        help="also write errors_SPLIT.json: for each image, whether the model holds a reference likelier than what "
        "was found (a search error), or not (a model error)",
    )
    add_search(parser, default="the run's")
    add("--device", default=None, choices=("auto", "cpu", "cuda"), help="default: the run's")
    add("--batch", type=positive, default=32, metavar="N", help="images at a time (default: 32)")
    add_allow_code(parser)
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    args.run = args.run or None
    several = args.run is not None and len(args.run) > 1
    if several and not args.out:
        parser.error("several RUNs are an ensemble: give --out FOLDER for its captions and scores")
    if args.average and not several:
        parser.error("--average is for an ensemble: give several RUNs")
    files = [name for name in ("predictions", "references") if getattr(args, name)]
    if args.run is None and len(files) != 2:
        parser.error("give a RUN, or --predictions and --references (--split NAME goes behind RUN)")
    if args.run is not None and files:
        parser.error(f"give a RUN or --{files[0]}, not both")
    if args.run is None and args.split and len(args.split) > 1:
        parser.error("predictions are of one split: give one --split")
    if not args.against and (args.resamples or args.seed):
        parser.error("--resamples and --seed are for --against")
    only = (
        ("allow_partial", *(() if several else ("out",)), "against", "metric", "training", "several")
        if args.run is not None
        else ("search", "search_option", "beam", "max_length", "length_rule", "device", "errors")
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
    """Score a file of predictions; with --against two, and how they differ."""
    # after the arguments are parsed; torch is not among what these import
    from captioning.datasets.checks import count_reasons
    from captioning.datasets.references import read_references
    from captioning.metrics import get_metric
    from captioning.metrics.caption_statistics import TrainingCaptions
    from captioning.metrics.coco_names import to_coco_names
    from captioning.metrics.reference_set import ReferenceSet
    from captioning.records import read_results

    try:
        for name in args.metric or ():
            get_metric(name)
    except ValueError as error:
        raise UserError(f"--metric: {error}") from None
    paths = [path for path in (args.predictions, args.against) if path]
    results = [read_results(path, several=args.several) for path in paths]
    references = read_references(args.references, split=args.split[0] if args.split else None)
    for reason, (count, example) in count_reasons(references.skipped).items():
        print(f"{args.references}: passed over {count} {reason} (first {example})", file=sys.stderr)
    training = None
    if args.training:
        records = read_references(args.training, split="train").records
        training = TrainingCaptions([text for record in records for text in record.captions])
    split = ReferenceSet(references.captions(), split_name=references.split)
    evaluations = [
        score_results(each, path, references.records, split, training, args)
        for path, each in zip(paths, results, strict=True)
    ]
    against = compare(evaluations, paths, args) if args.against else None
    first = evaluations[0]
    if args.out:
        first.write(args.out)
    if args.json:
        compared = {"against": with_coco_names(against)} if against else {}
        print(json.dumps({**to_coco_names(first.scores), "signature": first.signature, **compared}))
        return
    print(f"{references.split}: {len(references.records):,} images of {args.references}")
    print("\n".join(first.lines()))
    if against:
        print(f"\n{comparison_table(against)}")
    if args.out:
        print(f"scores: {args.out}")


def score_results(
    results: Sequence[Result],
    path: str,
    records: Sequence[ImageRecord],
    split: ReferenceSet,
    training: TrainingCaptions | None,
    args: argparse.Namespace,
) -> Evaluation:
    """Score the results of one file, and say on stderr what is to be known of that."""
    from captioning.datasets.references import match_ids
    from captioning.metrics import NAMES
    from captioning.metrics.evaluation import evaluate

    matched, how = match_ids([(result.image_id, result) for result in results], records)
    if how != "image id":
        print(f"{path}: images are told by {how}", file=sys.stderr)
    sizes = sorted({len(result.captions) for result in results})
    if len(sizes) > 1:
        print(
            f"{path}: {sizes[0]} to {sizes[-1]} captions an image, so their diversity is not told",
            file=sys.stderr,
        )
    evaluation = evaluate(
        split,
        [(image_id, result.caption) for image_id, result in matched],
        split_name=split.split_name,
        search=None,
        allow_partial=args.allow_partial,
        metrics=[*NAMES, *(args.metric or ())],
        captions={image_id: result.captions for image_id, result in matched}
        if sizes[0] == sizes[-1] > 1
        else None,
        training=training,
    )
    evaluation.signature["matched_by"] = how
    for note in evaluation.signature["notes"]:
        print(f"{path}: {note}", file=sys.stderr)
    return evaluation


def compare(
    evaluations: Sequence[Evaluation], paths: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    """The second system's scores, and for each metric that images can be resampled for how the two differ."""
    from captioning.metrics.significance import METHOD, RESAMPLES, comparable_metrics, holm, paired_bootstrap

    a, b = evaluations
    if a.image_ids != b.image_ids:
        raise UserError(
            f"{paths[0]} and {paths[1]}: {len(a.image_ids)} and {len(b.image_ids)} images are scored, and not the "
            "same ones; compare captions of the same images"
        )
    there = [comparable_metrics(each.metrics) for each in evaluations]
    names = [name for name in there[0] if name in there[1]]
    resamples = args.resamples or RESAMPLES
    found = paired_bootstrap(a.metrics, b.metrics, metrics=names, resamples=resamples, seed=args.seed)
    corrected = holm([each.p for each in found.values()])
    return {
        "predictions": list(paths),
        "scores": b.scores,
        "signature": b.signature,
        "comparison": {
            name: {**each._asdict(), "p_holm": p}
            for (name, each), p in zip(found.items(), corrected, strict=True)
        },
        "not_compared": [name for name in a.metrics.corpus if name not in names],
        "method": METHOD,
        "resamples": resamples,
        "seed": args.seed,
    }


def with_coco_names(against: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison as `--json` prints it."""
    from captioning.metrics.coco_names import to_coco_name, to_coco_names

    named = {key: to_coco_names(against[key]) for key in ("scores", "comparison")}
    return {**against, **named, "not_compared": [to_coco_name(name) for name in against["not_compared"]]}


def comparison_table(against: Mapping[str, Any]) -> str:
    """A row a metric, times 100: both systems, the difference with its interval, p and Holm's p."""
    rows = [["", "a", "b", "a - b", "95 % interval", "p", "Holm's p"]]
    for name, each in against["comparison"].items():
        a, b, difference, low, high = (100 * each[key] for key in ("a", "b", "difference", "low", "high"))
        numbers = [f"{a:.2f}", f"{b:.2f}", f"{difference:+.2f}", f"{low:+.2f} .. {high:+.2f}"]
        rows.append([name, *numbers, f"{each['p']:.4f}", f"{each['p_holm']:.4f}"])
    lines = [f"a: {against['predictions'][0]}", f"b: {against['predictions'][1]}", *aligned(rows)]
    if against["not_compared"]:
        lines.append(f"not compared, having no score of a resample: {', '.join(against['not_compared'])}")
    return "\n".join([*lines, f"{against['resamples']:,} resamples: {against['method']}"])


def evaluate_run(args: argparse.Namespace) -> None:
    """Caption and score the splits asked for with a run's model, or the ensemble of several."""
    # after the arguments are parsed: torch takes seconds
    from captioning.captioner.ensemble import EnsembleCaptioner, open_captioners
    from captioning.datasets import of_split
    from captioning.inspection.rescoring import as_json, error_shares
    from captioning.metrics.coco_names import to_coco_names
    from captioning.metrics.evaluation import evaluate
    from captioning.records import write_predictions
    from captioning.utils.files import safe_join, sha256, write_json

    runs = [Path(name) for name in args.run]
    for run in runs:
        check_run(run)
    experiments = [experiment_of(run, args) for run in runs]
    models = [run / "model" for run in runs]
    average: Average = args.average or "probabilities"
    captioner = open_captioners(
        models, device=experiments[0].device, average=average, allow_code=args.allow_code
    )
    members = captioner.members if isinstance(captioner, EnsembleCaptioner) else (captioner,)
    folder = runs[0] if len(runs) == 1 else Path(args.out)
    search = search_of(captioner, args)
    collection = experiments[0].collect()
    splits = {split: of_split(collection, split) for split in args.split or ["val"]}
    every = [record for records in splits.values() for record in records]
    sources = [
        experiment.source(member, every) for experiment, member in zip(experiments, members, strict=True)
    ]
    evaluations: dict[str, Evaluation] = {}
    files: list[str] = []
    blamed: list[str] = []
    for split, records in splits.items():
        readable = records
        for source in sources:
            readable = source.of(readable)
        if len(readable) < len(records):
            print(
                f"{split}: {len(records) - len(readable)} images cannot be read, see coverage",
                file=sys.stderr,
            )
        images = [source.images(readable, training=False) for source in sources]
        predictions, verdicts = caption_all(captioner, readable, images, search, split, args)
        evaluation = evaluations[split] = evaluate(
            {record.image_id: record.captions for record in records},
            {prediction.image_id: prediction.caption for prediction in predictions},
            split_name=split,
            search=asdict(search),
            allow_partial=len(readable) < len(records),
        )
        prints = [sha256(model / "manifest.json")[:16] for model in models]
        evaluation.signature["model"] = prints[0] if len(prints) == 1 else {"mean of": prints, "in": average}
        safe_join(folder, f"predictions_{split}.json", entry=f"split {split!r}")
        whats = ("predictions", "scores", *(("errors",) if args.errors else ()))
        paths = {what: str(folder / f"{what}_{split}.json") for what in whats}
        write_predictions(paths["predictions"], predictions)
        evaluation.write(paths["scores"])
        files += paths.values()
        errors = {"errors": error_shares(verdicts)} if args.errors else {}
        if args.errors:
            write_json(paths["errors"], {**errors["errors"], "verdicts": as_json(verdicts)})
            blamed.append(errors_line(split, errors["errors"]))
        if args.json:
            told = {"split": split, **to_coco_names(evaluation.scores), **errors}
            told["signature"] = evaluation.signature
            told["files"] = paths
            print(json.dumps(told), flush=True)
    if not args.json:
        print(f"{' + '.join(args.run)}: {describe_search(search)}\n\n{table(evaluations)}\n")
        print("\n".join([*blamed, *files]))


def experiment_of(run: Path, args: argparse.Namespace) -> Experiment:
    """The experiment of a run's folder, on the device asked for."""
    from captioning.config import read_config
    from captioning.experiment import Experiment

    config = read_config(run / "config.yaml", allow_code=args.allow_code)
    # a run that was moved or renamed is where it is now
    config = replace(config, runs=str(run.parent), name=run.name, device=args.device or config.device)
    return Experiment(config, log=lambda line: print(line, file=sys.stderr))


def errors_line(split: str, shares: Mapping[str, float]) -> str:
    """Who is to blame, in a sentence."""
    search, model, none, unknown = (
        f"{100 * shares[name]:.1f} %" for name in ("search_error", "model_error", "none", "unknown")
    )
    return (
        f"{split}: search errors {search} (the model holds a reference likelier than what was found), model errors "
        f"{model}, {none} say a reference, {unknown} could say none"
    )


def table(evaluations: Mapping[str, Evaluation]) -> str:
    """A column a split, a row a number: metrics times 100, rates in %."""
    rows = [["", *evaluations]]
    coverages = [evaluation.signature["coverage"] for evaluation in evaluations.values()]
    whole = all(coverage["share"] == 1 for coverage in coverages)
    rows.append(
        ["images", *(f"{each['scored']}" + f" of {each['images']}" * (not whole) for each in coverages)]
    )
    for name in next(iter(evaluations.values())).scores:
        values = [each.printed(name) for each in evaluations.values()]
        rows.append([name + values[0][1], *(f"{value:.2f}" for value, _ in values)])
    return "\n".join(aligned(rows))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns: the first to the left, the others to the right."""
    widths = [max(9, *(len(row[column]) + 3 for row in rows)) for column in range(len(rows[0]))]
    return [
        row[0].ljust(widths[0])
        + "".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def check_run(run: Path) -> None:
    """Raises UserError where `run` is not a run's folder with a model."""
    if (run / "manifest.json").is_file():
        raise UserError(
            f"{run}: a model's folder, which knows no data; give the run's folder, or caption by "
            "captioning caption --out and give --predictions and --references"
        )
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"{run}: not the folder of a run (no config.yaml); captioning train makes one in runs/NAME"
        )
    if not (run / "model").is_dir() and not (run / ".model.old").is_dir():
        raise UserError(f"{run}: no model in it yet; it is written after the run's first validation")


def describe_search(search: SearchConfig) -> str:
    """The settings that matter most, in a few words."""
    default = type(search)()
    changed = [
        f"{name}={value!r}" for name, value in asdict(search).items() if value != getattr(default, name)
    ]
    return ", ".join([f"search {search.kind}", *changed])


def caption_all(
    captioner: Captioner | EnsembleCaptioner,
    records: Sequence[ImageRecord],
    images: Sequence[Images],
    search: SearchConfig,
    split: str,
    args: argparse.Namespace,
) -> tuple[list[Prediction], list[Verdict]]:
    """Captions of all records, in their order; threads load images while the model works. Verdicts for --errors.

    `images`: of the captioner, or of each that an ensemble has.
    """
    import torch
    from tqdm import tqdm

    from captioning.captioner.predict import generate_captions
    from captioning.inspection.rescoring import judge
    from captioning.training.validation import to_device

    device = next(captioner.parameters()).device
    found: list[Prediction] = []
    verdicts: list[Verdict] = []
    title = f"captioning {split}"
    with tqdm(total=len(records), desc=title, unit="image", leave=False, disable=None, delay=2) as progress:
        for numbers, batches in load_all(images, len(records), size=args.batch):
            ids = [records[number].image_id for number in numbers]
            moved = [to_device(batch, device) for batch in batches]
            batch: Any = moved[0] if len(moved) == 1 else moved
            found += generate_captions(captioner, batch, ids, config=search)
            if args.errors:
                with torch.inference_mode():
                    memory = captioner.encode_memory(batch)
                references = [records[number].captions for number in numbers]
                verdicts += judge(captioner, memory, found[-len(ids) :], references, search)
            progress.update(len(ids))
    return found, verdicts


def load_all(
    images: Sequence[Images], count: int, *, size: int
) -> Iterator[tuple[range, list[Features | torch.Tensor]]]:
    """Batches of the images 0 .. count - 1, with their numbers; each as often as there are ways to load it."""

    def load(numbers: range) -> list[Features | torch.Tensor]:
        return [each(numbers, 0) for each in images]

    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[tuple[range, Future[list[Features | torch.Tensor]]]] = deque()
        try:
            for start in range(0, count, size):
                numbers = range(start, min(start + size, count))
                waiting.append((numbers, pool.submit(load, numbers)))
                if len(waiting) > THREADS:
                    numbers, batch = waiting.popleft()
                    yield numbers, batch.result()
            for numbers, batch in waiting:
                yield numbers, batch.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
