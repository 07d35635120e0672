"""Command line: run a study of decoders, matched in size, and report on it."""

from __future__ import annotations

import argparse
import functools

from captioning.errors import run

EXAMPLES = """examples:
  python tools/compare.py configs/study_shapes.yaml --dry-run       sizes and runs, nothing is trained
  python tools/compare.py configs/study_shapes.yaml                 run what isn't there yet, then report
  python tools/compare.py configs/study_shapes.yaml --report-only   report on what is there

A study is run in RUNS/STUDY: killed at any point, the same command goes on with it."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compare captioning systems: train them as a study says, score and report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("study", help="a YAML file of configs/study_*.yaml")
    add("overrides", nargs="*", metavar="section.key=value", help="settings of all its runs to change")
    add("--dry-run", action="store_true", help="print the plan, with sizes, parameters and FLOPs")
    add("--report-only", action="store_true", help="train nothing")
    add("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_intermixed_args()

    from captioning import study as studies  # not before the arguments are read: it imports torch

    say = functools.partial(print, flush=True)
    plan = studies.plan(studies.read_study(options.study, options.overrides))
    say("\n".join(studies.describe(plan)))
    if options.dry_run:
        return 0
    if not options.report_only:
        studies.execute(plan, say=say)
    return 0


if __name__ == "__main__":
    run(main)
