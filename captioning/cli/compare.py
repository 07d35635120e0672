"""`captioning compare`: run a study of several systems, or compare finished runs or caption files, with a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from captioning.cli.options import add_allow_code, add_tokenizer, positive
from captioning.utils.paths import shipped_configs

if TYPE_CHECKING:
    from captioning.text.tokenizers import TokenizerName

EXAMPLES = """examples, a study (trains what is missing; after an interruption the same command continues):
  captioning compare study_shapes --dry-run                    sizes and runs; trains nothing
  captioning compare study_shapes                              -> runs/study_shapes/report/report.html
  captioning compare study_shapes --report-only                report on the runs so far
  captioning compare study_flickr8k dataset.root=data/flickr8k
  captioning compare my_study.yaml

examples, finished runs (runs that differ only in their seed are one system):
  captioning evaluate runs/a --split val                       first, for each run: captions of the split
  captioning compare runs/a runs/b --split val --out reports/a_b
  captioning compare --predictions a.json b.json --references captions_val2017.json --out reports/a_b

REPORT/ has report.html (one self-contained file), report.md with figures/, and report.json.
exit code: 0 report written; 2 not, with the reason on stderr"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare captioning systems: quality with intervals, learning curves, speed, and example images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s STUDY [section.key=value ...] [--dry-run | --report-only]\n"
        "       %(prog)s RUN RUN ... [--split NAME] [--out FOLDER]\n"
        "       %(prog)s --predictions FILE FILE ... --references FILE [--split NAME] [--out FOLDER]",
    )
    add = parser.add_argument
    add(
        "inputs",
        nargs="*",
        metavar="STUDY | RUN",
        help="a study (a YAML file, or the name of one that comes with the package) with section.key=value "
        "overrides; or folders of runs",
    )
    add("--dry-run", action="store_true", help="print a study's plan, with sizes, parameters and FLOPs")
    add("--report-only", action="store_true", help="train nothing")
    add(
        "--jobs",
        type=positive,
        metavar="N",
        help="a study's trainings at a time, each with its share of the cores (default: 1 on a GPU, else one per "
        "core, at most 4)",
    )
    add("--predictions", nargs="+", metavar="FILE", help="COCO results, one system per file")
    add("--references", metavar="FILE", help="their reference captions, in a format of captioning evaluate")
    add("--split", metavar="NAME", help="split of the runs (default: val) or of the references")
    add("--out", metavar="FOLDER", help="the report's folder (default: reports/compare)")
    add_tokenizer(parser)
    add("--no-speed", action="store_true", help="do not measure speed and memory")
    add_allow_code(parser)
    add("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_intermixed_args()
    if bool(options.inputs) == bool(options.predictions):
        parser.error("give a study, or runs, or --predictions with --references")
    if bool(options.predictions) != bool(options.references):
        parser.error("--predictions and --references go together")
    if options.tokenizer and not options.predictions:
        parser.error("--tokenizer is for --predictions; runs have their own")
    options.study = bool(options.inputs) and _is_study(options.inputs[0])
    if not options.study and (options.dry_run or options.report_only or options.jobs):
        parser.error("--dry-run, --report-only and --jobs are for a study")
    if options.study and (options.split or options.out):
        parser.error("--split and --out are not for a study, whose file has its split and its folder")
    return options


def _is_study(name: str) -> bool:
    if name.endswith((".yaml", ".yml")):
        return True
    return not Path(name).is_dir() and (shipped_configs() / f"{name}.yaml").is_file()


def main() -> int:
    options = parse_arguments()
    if options.predictions:
        folder = report_files(options)
    elif options.study:
        report = run_study(options)
        if report is None:
            return 0
        folder = report
    else:
        folder = report_runs(options)
    print(f"report: {folder / 'report.html'}   {folder / 'report.md'}   {folder / 'report.json'}")
    return 0


def run_study(options: argparse.Namespace) -> Path | None:
    """Run a study and report on it; returns the report's folder, or None after printing the plan of a dry run."""
    # imported after the arguments are parsed: importing torch takes seconds
    from captioning.comparison.plan import describe_plan, make_plan
    from captioning.comparison.processes import default_jobs
    from captioning.comparison.report import report_study
    from captioning.comparison.runner import run_states
    from captioning.comparison.runner import run_study as run
    from captioning.comparison.study import read_study
    from captioning.ops.cpu_kernels import keep_freed_memory

    keep_freed_memory()

    def log(line: str) -> None:
        print(line + "\n", end="", flush=True)  # in one piece: jobs print at the same time

    plan = make_plan(read_study(options.inputs[0], options.inputs[1:]))
    log("\n".join(describe_plan(plan, run_states(plan))))
    if options.dry_run:
        return None
    if not options.report_only:
        run(plan, log=log, jobs=options.jobs or default_jobs())
    return report_study(plan, log=log, speed=not options.no_speed)


def report_runs(options: argparse.Namespace) -> Path:
    from captioning.comparison import report
    from captioning.config import read_config

    folders = [Path(name) for name in options.inputs]
    if options.allow_code:
        for folder in folders:  # modules imported once may be used by everything that follows
            read_config(folder / "config.yaml", allow_code=True)
    return report.report_runs(
        folders,
        split=options.split or "val",
        out=Path(options.out or "reports/compare"),
        log=print,
        speed=not options.no_speed,
    )


def report_files(options: argparse.Namespace) -> Path:
    """Report on caption files. Needs no model and does not import torch."""
    from captioning.comparison import page, results
    from captioning.comparison.systems import systems_from_files

    systems, records, split = systems_from_files(options.predictions, options.references, split=options.split)
    tokenizer: TokenizerName = options.tokenizer or "ptb"
    scored, common_records, remarks = results.score_systems(
        systems, records, split=split, tokenizer=tokenizer
    )
    comparison = results.compare(scored, common_records, tokenizer=tokenizer)
    comparison |= {
        "split": split,
        "metric": comparison["primary"],
        "chosen_on": None,
        "remarks": remarks,
        "setup": ["Captions: " + ", ".join(f"`{file}`" for file in options.predictions) + "."],
    }
    out = Path(options.out or "reports/compare")
    title = "Comparison of " + ", ".join(system.label for system in systems)
    page.write_report(out, comparison, scored, common_records, title=title)
    print(comparison["headline"].replace("**", ""))
    return out
