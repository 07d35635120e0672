"""The `captioning` command: finds the subcommand and runs it."""

from __future__ import annotations

import importlib
import sys

from captioning.errors import run

COMMANDS = {
    "quickstart": "draw a small data set, train on it, caption and evaluate: the whole way in minutes",
    "prepare": "download, unpack and check a data set; write or list shards",
    "features": "encode the images of a data set once, for all later runs",
    "train": "train a model from a config",
    "caption": "caption photographs with a trained model",
    "evaluate": "caption and score a split of a run, or score a file of captions",
    "compare": "run a study of several systems, or compare finished runs, and write a report",
    "inspect": "figures of a model's gates, states and gradients",
    "benchmark": "measure speed and memory on this machine",
}


def main(argv: list[str] | None = None) -> None:
    """Run `captioning COMMAND ...` and leave the process with its exit code.

    Exit codes: 0 done, 1 some inputs failed, 2 the input was refused, 3 a training diverged.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        command = importlib.import_module(f"captioning.cli.{argv[0]}")
        sys.argv = [f"captioning {argv[0]}", *argv[1:]]
        run(command.main)
    print(_usage(), file=sys.stdout if not argv or argv[0] in ("-h", "--help") else sys.stderr)
    if argv and argv[0] not in ("-h", "--help"):
        print(f"error: unknown command {argv[0]!r}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if argv else 2)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}s}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: captioning COMMAND ...\n\nTrain, use and compare image captioning models.\n\n"
        f"commands:\n{rows}\n\n`captioning COMMAND --help` explains a command and gives examples."
    )


if __name__ == "__main__":
    main()
