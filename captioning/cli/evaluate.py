"""`captioning evaluate`: caption and score the splits of a run, or score anyone's captions."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from captioning.cli.options import (
    add_allow_code,
    add_search,
    add_tokenizer,
    not_negative,
    positive,
    search_of,
    share,
)
from captioning.errors import UserError

if TYPE_CHECKING:
    from captioning.captioner.captioner import Captioner
    from captioning.captioner.ensemble import EnsembleCaptioner
    from captioning.experiment import Experiment
    from captioning.generation import SearchConfig
    from captioning.inspection.rescoring import Verdict
    from captioning.loaders.sources import ImageSource
    from captioning.metrics import Metric
    from captioning.metrics.evaluation import Evaluation
    from captioning.models.decoders.ensemble import Average
    from captioning.records import ImageRecord, Prediction

EXAMPLES = """\
Caption and score a run of captioning train, on its own data set:
  captioning evaluate runs/shapes                                its validation split
  captioning evaluate runs/shapes --split test test_unseen       other splits
  captioning evaluate runs/shapes --beam 3 --length-rule gnmt    another search than the run's own
  captioning evaluate runs/shapes --search sample --search-option samples=5 --search-option top_p=0.9
  captioning evaluate runs/shapes --search-option no_repeat=3 --search-option no_bad_ending=true
  captioning evaluate runs/shapes --errors                       search errors and model errors
  captioning evaluate runs/a runs/b --out runs/a_and_b           an ensemble of runs with one vocabulary

Score captions of any system, without a model or images:
  captioning evaluate --predictions p.json --references captions_val2017.json
  captioning evaluate --predictions p.json --references dataset_coco.json --split test --json
  captioning evaluate --predictions p.json --references Flickr8k.token.txt --split val
  captioning evaluate --predictions a.json --against b.json --references c.json    is a better than b?

More metrics, in both cases:
  captioning evaluate runs/shapes --metric METEOR SPICE NLTK-BLEU-4
  captioning evaluate runs/shapes --metric my_module:MyMetric    a class of yours in my_module.py

PREDICTIONS are COCO results, [{"image_id": ..., "caption": ...}, ...]. If every image has n captions, as
"captions": ["...", ...] (captioning caption --top N --out writes that), their diversity is scored as well.
REFERENCES are COCO's captions_*.json, Karpathy's JSON, Flickr8k.token.txt or captions.txt (with the lists of images
beside them), Flickr30k's results.csv, or a CSV or JSONL file with file_name and caption.

Every image of the split needs a caption, because leaving out difficult images raises the scores. Tables show scores
times 100. Files and --json have pycocoevalcap's scale (BLEU 0..1) and names (Bleu_4, ROUGE_L), and a signature of
everything the scores depend on.

CIDEr-D is the metric that papers print as "CIDEr" and that pycocoevalcap's class Cider computes. CIDEr here is
without clipped counts and length penalty, and never lower than CIDEr-D.

--against tests whether two systems differ, by a paired bootstrap over images: the interval is of the difference, p is
two-sided, Holm's p is corrected for the number of metrics in the table.

exit code: 0 success; 2 the input was refused, with the reason on stderr"""

FILE_OPTIONS = ("allow_partial", "against", "training", "several", "max_bad", "tokenizer")
RUN_OPTIONS = ("search", "search_option", "beam", "max_length", "length_rule", "device", "errors")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score captions: BLEU-1 to BLEU-4, ROUGE-L, CIDEr, CIDEr-D and more.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RUN [RUN ...] [--split NAME ...] [options]\n"
        "       %(prog)s --predictions FILE --references FILE [--split NAME] [options]",
    )
    add_options(parser)
    args = parser.parse_args()
    ensemble = len(args.run) > 1
    if ensemble and not args.out:
        parser.error("several RUNs are an ensemble: give --out FOLDER for its captions and scores")
    if args.average and not ensemble:
        parser.error("--average is for an ensemble: give several RUNs")
    files = [name for name in ("predictions", "references") if getattr(args, name)]
    if not args.run and len(files) != 2:
        parser.error("give a RUN, or --predictions and --references (--split NAME goes behind RUN)")
    if args.run and files:
        parser.error(f"give a RUN or --{files[0]}, not both")
    if not args.run and args.split and len(args.split) > 1:
        parser.error("predictions are of one split: give one --split")
    if not args.against and (args.resamples is not None or args.seed is not None):
        parser.error("--resamples and --seed are for --against")
    foreign = (*FILE_OPTIONS, *(() if ensemble else ("out",))) if args.run else RUN_OPTIONS
    for name in foreign:
        value = getattr(args, name)
        if value or type(value) is float:  # a share of 0 was given as well
            parser.error(f"--{name.replace('_', '-')} is for {'--predictions' if args.run else 'a RUN'}")
    return args


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "run",
        nargs="*",
        metavar="RUN",
        help="folder of a run: writes predictions_SPLIT.json and scores_SPLIT.json into it, and for another search "
        "than the run's own predictions_SPLIT_width=5.json; several runs are an ensemble, evaluated on the first "
        "one's data set",
    )
    add("--split", nargs="+", action="extend", metavar="NAME", help="val (default for a RUN), test, ...")
    add(
        "--metric",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="more metrics: METEOR, SPICE (both need Java), NLTK-BLEU-1 to NLTK-BLEU-4, or my_module:MyMetric",
    )
    add("--json", action="store_true", help="print a JSON object (for a RUN: one line for each split)")
    add("--out", metavar="PATH", help="file for the scores of --predictions; folder for an ensemble")

    add_file_options(parser)
    add_run_options(parser)
    add("--debug", action="store_true", help="show the traceback of an error")


def add_file_options(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("scoring files")
    files.add_argument("--predictions", metavar="FILE", help="COCO results to score")
    files.add_argument("--references", metavar="FILE", help="reference captions")
    add_tokenizer(files)
    files.add_argument("--against", metavar="FILE", help="COCO results of a second system, to compare with")
    files.add_argument(
        "--resamples",
        type=positive,
        metavar="N",
        help="resamples of the bootstrap for --against (default: 10,000)",
    )
    files.add_argument(
        "--seed", type=not_negative, metavar="N", help="seed of the bootstrap for --against (default: 0)"
    )
    files.add_argument(
        "--training", metavar="FILE", help="training captions, for the rate of captions not among them"
    )
    files.add_argument(
        "--several", action="store_true", help="images may have several entries, one for each of n captions"
    )
    files.add_argument(
        "--allow-partial", action="store_true", help="score a part of the split; its size is printed"
    )
    files.add_argument(
        "--max-bad",
        type=share,
        metavar="SHARE",
        help="largest share of the references that may be unusable (default: 0.01); with --out they are listed "
        "beside that file",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    runs = parser.add_argument_group("evaluating a run")
    add_search(runs, default="the run's")
    runs.add_argument(
        "--average",
        choices=("probabilities", "log_probabilities"),
        help="what an ensemble averages (default: probabilities)",
    )
    runs.add_argument(
        "--errors",
        action="store_true",
        help="also write errors_SPLIT.json. Search error: the model finds a reference more likely than the caption "
        "that the search returned. Model error: it does not",
    )
    runs.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), help="default: the run's")
    runs.add_argument(
        "--batch", type=positive, default=32, metavar="N", help="images at a time (default: 32)"
    )
    add_allow_code(runs)


def main() -> int:
    args = parse_arguments()
    if args.run:
        evaluate_runs(args)
    else:
        from captioning.cli.score_files import score_files

        score_files(args)
    return 0


class Runs(NamedTuple):
    """The run, or the ensemble of runs, to evaluate."""

    folder: Path  # of the output
    model_fingerprint: Any
    members: Sequence[tuple[Experiment, Captioner]]
    captioner: Captioner | EnsembleCaptioner
    search: SearchConfig
    metrics: list[Metric]


class SplitResult(NamedTuple):
    evaluation: Evaluation
    files: dict[str, str]
    errors: dict[str, Any] | None  # shares of search and model errors, for --errors


def evaluate_runs(args: argparse.Namespace) -> None:
    """Caption and score the chosen splits with a run's model, or with the ensemble of several runs."""
    from captioning.cli.tables import split_table
    from captioning.datasets import of_split
    from captioning.datasets.checks import missing_images
    from captioning.loaders.sources import describe_notes
    from captioning.metrics.coco_names import to_coco_names

    runs = open_runs(args)
    collection = runs.members[0][0].load_dataset()
    splits = {split: of_split(collection, split) for split in args.split or ["val"]}
    records = [record for split_records in splits.values() for record in split_records]
    sources = [experiment.image_source(captioner.encoder, records) for experiment, captioner in runs.members]
    if noted := sources[0].noted:
        print(describe_notes(noted), file=sys.stderr)
    results = {}
    for split, split_records in splits.items():
        missing = missing_images(collection, split_records[0].split)
        result = results[split] = evaluate_split(runs, split, split_records, sources, args, missing=missing)
        if args.json:
            errors = {} if result.errors is None else {"errors": result.errors}
            scores = {"split": split, **to_coco_names(result.evaluation.scores), **errors}
            signature = result.evaluation.signature
            print(json.dumps({**scores, "signature": signature, "files": result.files}), flush=True)
    if args.json:
        return
    table = split_table({split: result.evaluation for split, result in results.items()})
    print("\n".join([f"{' + '.join(args.run)}: {describe_search(runs.search)}", "", *table, ""]))
    for split, result in results.items():
        if result.errors is not None:
            print(errors_line(split, result.errors))
    for result in results.values():
        print("\n".join(result.files.values()))


def open_runs(args: argparse.Namespace) -> Runs:
    """The models of the runs, checked and ready to caption."""
    # imported here because torch takes seconds
    from captioning.captioner.ensemble import EnsembleCaptioner, open_captioners
    from captioning.cli.score_files import metrics_of
    from captioning.metrics import get_metric
    from captioning.utils.files import sha256

    folders = [Path(name) for name in args.run]
    for folder in folders:
        check_run(folder)
    experiments = [open_experiment(folder, args) for folder in folders]
    models = [folder / "model" for folder in folders]
    average: Average = args.average or "probabilities"
    device = experiments[0].device
    captioner = open_captioners(models, device=device, average=average, allow_code=args.allow_code)
    captioners = captioner.members if isinstance(captioner, EnsembleCaptioner) else (captioner,)
    fingerprints = [sha256(model / "manifest.json")[:16] for model in models]
    own_metric = get_metric(experiments[0].config.training.metric, allow_code=args.allow_code)
    return Runs(
        folder=folders[0] if len(folders) == 1 else Path(args.out),
        model_fingerprint=fingerprints[0] if len(folders) == 1 else {"mean of": fingerprints, "in": average},
        members=list(zip(experiments, captioners, strict=True)),
        captioner=captioner,
        search=search_of(captioner, args),
        metrics=metrics_of(args, own_metric),
    )


def check_run(folder: Path) -> None:
    """Raises UserError if `folder` is not the folder of a run with a model."""
    if (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder}: a model folder, without a data set; give the folder of its run, or make captions with "
            "captioning caption --out and give --predictions and --references"
        )
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder}: not the folder of a run (no config.yaml); captioning train makes one in runs/NAME"
        )
    if not (folder / "model").is_dir() and not (folder / ".model.old").is_dir():
        raise UserError(f"{folder}: no model in it yet; it is written after the run's first validation")


def open_experiment(folder: Path, args: argparse.Namespace) -> Experiment:
    """The experiment of a run's folder, which may have been moved or renamed, on the chosen device."""
    from captioning.config import read_config
    from captioning.experiment import Experiment

    config = read_config(folder / "config.yaml", allow_code=args.allow_code)
    config = replace(config, runs=str(folder.parent), name=folder.name, device=args.device or config.device)
    return Experiment(config, log=lambda line: print(line, file=sys.stderr))


def evaluate_split(
    runs: Runs,
    split: str,
    records: Sequence[ImageRecord],
    sources: Sequence[ImageSource],
    args: argparse.Namespace,
    *,
    missing: int = 0,
) -> SplitResult:
    """Caption and score one split, of which `missing` further images have no file, and write its files."""
    from captioning.inspection.rescoring import as_json, error_shares
    from captioning.metrics.evaluation import evaluate
    from captioning.metrics.reference_set import ReferenceSet
    from captioning.records import write_predictions
    from captioning.utils.files import safe_join, write_json

    readable: Sequence[ImageRecord] = records
    for source in sources:
        readable = source.readable(readable)
    if len(readable) < len(records):
        print(f"{split}: {len(records) - len(readable)} images cannot be read, see coverage", file=sys.stderr)
    if missing:
        print(f"{split}: {missing} images have no file, see coverage", file=sys.stderr)
    predictions, verdicts = caption_split(runs, split, readable, sources, args)
    references = {record.image_id: record.captions for record in records}
    evaluation = evaluate(
        ReferenceSet(references, split_name=split, tokenizer=runs.captioner.vocabulary.tokenizer),
        {prediction.image_id: prediction.caption for prediction in predictions},
        split_name=split,
        search=asdict(runs.search),
        allow_partial=len(readable) < len(records),
        metrics=runs.metrics,
        missing=missing,
    )
    evaluation.signature["model"] = runs.model_fingerprint
    for note in evaluation.signature["notes"]:
        print(f"{split}: {note}", file=sys.stderr)
    safe_join(runs.folder, f"predictions_{split}.json", entry=f"split {split!r}")
    kinds = ("predictions", "scores", *(("errors",) if args.errors else ()))
    stem = split + search_suffix(runs.search, runs.captioner.search)
    files = {kind: str(runs.folder / f"{kind}_{stem}.json") for kind in kinds}
    write_predictions(files["predictions"], predictions)
    evaluation.write(files["scores"])
    errors = error_shares(verdicts) if args.errors else None
    if errors is not None:
        write_json(files["errors"], {**errors, "verdicts": as_json(verdicts)})
    return SplitResult(evaluation, files, errors)


def caption_split(
    runs: Runs,
    split: str,
    records: Sequence[ImageRecord],
    sources: Sequence[ImageSource],
    args: argparse.Namespace,
) -> tuple[list[Prediction], list[Verdict]]:
    """Captions of all records, in their order, and for `--errors` a verdict on each."""
    import torch

    from captioning.cli.running import caption_batch
    from captioning.inspection.rescoring import judge
    from captioning.training.validation import to_device
    from captioning.utils.prefetch import prefetch
    from captioning.utils.progress import progress

    device = next(runs.captioner.parameters()).device
    loaders = [source.images(records, training=False) for source in sources]
    predictions: list[Prediction] = []
    verdicts: list[Verdict] = []
    batches = [
        range(start, min(start + args.batch, len(records))) for start in range(0, len(records), args.batch)
    ]
    loading = prefetch(lambda numbers: [load(numbers, 0) for load in loaders], batches)
    with progress(total=len(records), desc=f"captioning {split}", unit="image", delay=2) as bar:
        for numbers, loaded in loading:
            moved = [to_device(images, device) for images in loaded]
            batch: Any = moved[0] if len(moved) == 1 else moved
            ids = [records[number].image_id for number in numbers]
            found = caption_batch(runs.captioner, batch, ids, runs.search)
            predictions += found
            if args.errors:
                with torch.inference_mode():
                    memory = runs.captioner.encode_memory(batch)
                references = [records[number].captions for number in numbers]
                verdicts += judge(runs.captioner, memory, found, references, runs.search)
            bar.update(len(ids))
    return predictions, verdicts


def describe_search(search: SearchConfig) -> str:
    """The kind of search and the settings that differ from its defaults."""
    default = type(search)()
    changed = [
        f"{name}={value!r}" for name, value in asdict(search).items() if value != getattr(default, name)
    ]
    return ", ".join([f"search {search.kind}", *changed])


def search_suffix(search: SearchConfig, own: SearchConfig) -> str:
    """Part of the file names that names the settings in which a search differs from the run's own; "" if in none."""
    from captioning.utils.files import fingerprint

    same_kind = search.kind == own.kind
    usual = asdict(own) if same_kind else {**asdict(type(search)()), "kind": own.kind}
    changed = {name: value for name, value in asdict(search).items() if value != usual[name]}
    text = "_".join(f"{name}={value}" for name, value in changed.items())
    if re.fullmatch(r"[\w.=-]{0,80}", text, re.ASCII):
        return text and f"_{text}"
    return f"_{search.kind}-{fingerprint(changed)}"


def errors_line(split: str, shares: Mapping[str, float]) -> str:
    """The shares of search and model errors in one line."""
    search, model, none, unknown = (
        f"{100 * shares[name]:.1f} %" for name in ("search_error", "model_error", "none", "unknown")
    )
    return (
        f"{split}: search errors {search} (the model finds a reference more likely than the caption returned), model "
        f"errors {model}; {none} of the captions are a reference, {unknown} have no reference the model can produce"
    )
