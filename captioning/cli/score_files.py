"""`captioning evaluate --predictions`: score files of captions, of any system, without torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captioning.cli.tables import cider_note, comparison_table
from captioning.datasets.checks import count_reasons
from captioning.datasets.references import MAX_BAD, References, match_ids, read_references
from captioning.errors import UserError
from captioning.metrics import NAMES, Metric, get_metric
from captioning.metrics.caption_statistics import TrainingCaptions
from captioning.metrics.coco_names import to_coco_name, to_coco_names
from captioning.metrics.evaluation import Evaluation, evaluate
from captioning.metrics.reference_set import ReferenceSet
from captioning.metrics.significance import METHOD, RESAMPLES, comparable_metrics, holm, paired_bootstrap
from captioning.records import ImageRecord, Result, read_results
from captioning.text.tokenizers import TokenizerName


def score_files(args: argparse.Namespace) -> None:
    """Score the file `--predictions`, and with `--against` a second one and the difference."""
    metrics = metrics_of(args)
    tokenizer: TokenizerName = args.tokenizer or "ptb"
    paths = [path for path in (args.predictions, args.against) if path]
    results = [read_results(path, several=args.several) for path in paths]
    references = references_of(args, args.references, args.split[0] if args.split else None, "references")
    for reason, (count, example) in count_reasons(references.skipped).items():
        print(f"{args.references}: passed over {count} {reason} (first {example})", file=sys.stderr)
    training = None
    if args.training:
        records = references_of(args, args.training, "train", "training").records
        training = TrainingCaptions(
            (text for record in records for text in record.captions), tokenizer=tokenizer
        )
    split = ReferenceSet(references.captions(), split_name=references.split, tokenizer=tokenizer)
    evaluations = [
        score_results(file_results, path, references.records, split, training, metrics, args)
        for path, file_results in zip(paths, results, strict=True)
    ]
    comparison = compare(evaluations, paths, args) if args.against else None
    first = evaluations[0]
    if args.out:
        first.write(args.out)
    if args.json:
        against = {"against": with_coco_names(comparison)} if comparison else {}
        print(json.dumps({**to_coco_names(first.scores), "signature": first.signature, **against}))
        return
    print(f"{references.split}: {len(references.records):,} images of {args.references}")
    print("\n".join([*first.lines(), *cider_note(first.scores)]))
    if comparison:
        print("\n" + "\n".join(comparison_table(comparison, first.scales)))
    if args.out:
        print(f"scores: {args.out}")


def references_of(args: argparse.Namespace, path: str, split: str | None, name: str) -> References:
    """The captions of a file by the options; with `--out` unusable ones are listed beside it."""
    max_bad = MAX_BAD if args.max_bad is None else args.max_bad
    skipped_csv = str(Path(args.out).with_suffix(f".{name}-skipped.csv")) if args.out else None
    return read_references(path, split=split, max_bad=max_bad, skipped_csv=skipped_csv)


def metrics_of(args: argparse.Namespace, *more: Metric) -> list[Metric]:
    """The default metrics, `more` and those of `--metric`.

    Raises:
        UserError: there is no metric of that name.
    """
    try:
        metrics = [*map(get_metric, NAMES), *more, *map(get_metric, args.metric)]
    except ValueError as error:
        raise UserError(f"--metric: {error}") from None
    return list({metric.name: metric for metric in metrics}.values())


def score_results(
    results: Sequence[Result],
    path: str,
    records: Sequence[ImageRecord],
    split: ReferenceSet,
    training: TrainingCaptions | None,
    metrics: Sequence[Metric],
    args: argparse.Namespace,
) -> Evaluation:
    """Score the results of one file, with warnings on stderr."""
    matched, matched_by = match_ids([(result.image_id, result) for result in results], records)
    if matched_by != "image id":
        print(f"{path}: its images are matched by {matched_by}", file=sys.stderr)
    sizes = sorted({len(result.captions) for result in results})
    if len(sizes) > 1:
        print(f"{path}: {sizes[0]} to {sizes[-1]} captions an image, so no diversity", file=sys.stderr)
    several = sizes[0] == sizes[-1] > 1
    evaluation = evaluate(
        split,
        [(image_id, result.caption) for image_id, result in matched],
        split_name=split.split_name,
        search=None,
        allow_partial=args.allow_partial,
        metrics=metrics,
        captions={image_id: result.captions for image_id, result in matched} if several else None,
        training=training,
    )
    evaluation.signature["matched_by"] = matched_by
    for note in evaluation.signature["notes"]:
        print(f"{path}: {note}", file=sys.stderr)
    return evaluation


def compare(
    evaluations: Sequence[Evaluation], paths: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    """The second system's scores, and the comparison of both on every metric that can be resampled.

    Raises:
        UserError: the systems were scored on different images.
    """
    a, b = evaluations
    if a.image_ids != b.image_ids:
        raise UserError(
            f"{paths[0]} and {paths[1]}: {len(a.image_ids)} and {len(b.image_ids)} images are scored, and not the "
            "same ones; compare captions of the same images"
        )
    comparable = comparable_metrics(b.metrics)
    names = [name for name in comparable_metrics(a.metrics) if name in comparable]
    resamples, seed = args.resamples or RESAMPLES, args.seed or 0
    tests = paired_bootstrap(a.metrics, b.metrics, metrics=names, resamples=resamples, seed=seed)
    corrected = holm([test.p for test in tests.values()])
    return {
        "predictions": list(paths),
        "scores": b.scores,
        "signature": b.signature,
        "comparison": {
            name: {**test._asdict(), "p_holm": p}
            for (name, test), p in zip(tests.items(), corrected, strict=True)
        },
        "not_compared": [name for name in a.metrics.corpus if name not in names],
        "method": METHOD,
        "resamples": resamples,
        "seed": seed,
    }


def with_coco_names(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison as `--json` prints it."""
    named = {key: to_coco_names(comparison[key]) for key in ("scores", "comparison")}
    not_compared = [to_coco_name(name) for name in comparison["not_compared"]]
    return {**comparison, **named, "not_compared": not_compared}
