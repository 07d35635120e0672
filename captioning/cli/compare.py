"""Command line: run a study of decoders matched in size, and report; or report on runs or captions that are there."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from captioning.cli.options import add_allow_code, positive

EXAMPLES = """examples, a study (trains what isn't there yet; killed at any point, the same command goes on):
  captioning compare configs/study_shapes.yaml --dry-run       sizes and runs, nothing is trained
  captioning compare configs/study_shapes.yaml                 -> runs/study_shapes/report/report.html
  captioning compare configs/study_shapes.yaml --report-only   report on what is there
  captioning compare configs/study_flickr8k.yaml dataset.root=data/flickr8k

examples, what others trained (runs that differ in their seed only are one system):
  captioning evaluate runs/a --split val                       first, for each: captions of the split
  captioning compare runs/a runs/b --split val --out reports/a_b
  captioning compare --predictions a.json b.json --references captions_val2017.json --out reports/a_b

REPORT/ has report.html (one file, nothing is fetched), report.md with figures/, report.json.
exit code: 0 reported; 2 not, with the reason on stderr"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare captioning systems: quality with intervals, learning curves, speed, captions that differ.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s STUDY.yaml [section.key=value ...] [--dry-run | --report-only]\n"
        "       %(prog)s RUN RUN ... [--split NAME] [--out FOLDER]\n"
        "       %(prog)s --predictions FILE FILE ... --references FILE [--split NAME] [--out FOLDER]",
    )
    add = parser.add_argument
    add(
        "what",
        nargs="*",
        metavar="STUDY.yaml | RUN",
        help="a study, with settings to change; or folders of runs",
    )
    add("--dry-run", action="store_true", help="print the study's plan, with sizes, parameters and FLOPs")
    add("--report-only", action="store_true", help="train nothing")
    add(
        "--jobs",
        type=positive,
        metavar="N",
        help="a study's trainings at a time, each with its share of the cores (default: with a GPU 1, without "
        "one for every core, 4 at most)",
    )
    add("--predictions", nargs="+", metavar="FILE", help="COCO results, a system each")
    add(
        "--references",
        metavar="FILE",
        help="the captions to score them by, as captioning evaluate reads them",
    )
    add("--split", metavar="NAME", help="of runs (default: val) or of the references")
    add("--out", metavar="FOLDER", help="the report's folder (default: reports/compare; a study's: its own)")
    add("--no-speed", action="store_true", help="measure neither speed nor memory")
    add_allow_code(parser)
    add("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_intermixed_args()
    if bool(options.what) == bool(options.predictions):
        parser.error("give a study, or runs, or --predictions with --references")
    if bool(options.predictions) != bool(options.references):
        parser.error("--predictions and --references go together")
    options.study = bool(options.what) and options.what[0].endswith((".yaml", ".yml"))
    if not options.study and (options.dry_run or options.report_only or options.jobs):
        parser.error("--dry-run, --report-only and --jobs are for a study")
    if options.study and (options.split or options.out):
        parser.error("a study's file says its split, and its report goes into its folder")
    return options


def main() -> int:
    options = parse_arguments()
    folder: Path | None
    if options.predictions:
        folder = report_files(options)
    elif options.study:
        folder = study(options)
    else:
        folder = report_runs(options)
    if folder:
        print(f"report: {folder / 'report.html'}   {folder / 'report.md'}   {folder / 'report.json'}")
    return 0


def study(options: argparse.Namespace) -> Path | None:
    from captioning.comparison import report  # after the arguments are read: torch takes seconds
    from captioning.comparison import study as studies
    from captioning.ops.cpu_kernels import keep_freed_memory

    keep_freed_memory()
    log = functools.partial(print, flush=True)
    plan = studies.plan(studies.read_study(options.what[0], options.what[1:]))
    log("\n".join(studies.generate_captions(plan)))
    if options.dry_run:
        return None
    if not options.report_only:
        studies.execute(plan, log=log, jobs=options.jobs or studies.usual_jobs())
    return report.report_study(plan, log=log, speed=not options.no_speed)


def report_runs(options: argparse.Namespace) -> Path:
    from captioning.comparison import report
    from captioning.config import read_config

    folders = [Path(name) for name in options.what]
    if options.allow_code:
        for folder in folders:  # once imported, the modules may be used by all that follows
            read_config(folder / "config.yaml", allow_code=True)
    return report.report_runs(
        folders,
        split=options.split or "val",
        out=Path(options.out or "reports/compare"),
        log=print,
        speed=not options.no_speed,
    )


def report_files(options: argparse.Namespace) -> Path:
    """Report on files of captions: no model, no torch."""
    from captioning.comparison import page, results
    from captioning.comparison import systems as system_files

    systems, records, split = system_files.bare_systems(
        options.predictions, options.references, split=options.split
    )
    scored, kept, remarks = results.score_all(systems, records, split=split)
    found = results.results(scored, kept)
    found |= {
        "split": split,
        "metric": found["primary"],
        "chosen_on": None,
        "remarks": remarks,
        "made": ["Captions: " + ", ".join(f"`{file}`" for file in options.predictions) + "."],
    }
    out = Path(options.out or "reports/compare")
    page.write_report(
        out, found, scored, kept, title="Comparison of " + ", ".join(each.label for each in systems)
    )
    print(found["headline"].replace("**", ""))
    return out
