"""The command `captioning`: runs a subcommand."""

from __future__ import annotations

import difflib
import importlib
import sys
from functools import partial
from typing import NoReturn

from captioning import __version__
from captioning.errors import USER_ERROR, UserError, run_command

COMMANDS = {
    "quickstart": "draw a small data set, train a model on it, caption and score its test images",
    "prepare": "download, unpack and check a data set; write or index webdataset shards",
    "features": "encode the images of a data set once, for all later runs",
    "train": "train a model from a config",
    "caption": "caption photographs with a trained model",
    "models": "list the models that come with the package, or pack one of your own",
    "evaluate": "caption and score a split with a trained model, or score a file of captions",
    "compare": "compare systems: train and report a study, or report finished runs",
    "inspect": "plot attention, gates, states and gradients of a trained model",
    "benchmark": "measure speed and memory",
}


def main(argv: list[str] | None = None) -> NoReturn:
    """Run `captioning COMMAND ...` and exit with its code.

    Exit codes: 0 success, 1 some inputs failed, 2 the input was refused, 3 a training diverged.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        sys.argv = [f"captioning {argv[0]}", *argv[1:]]
    run_command(partial(_run, argv))


def _run(argv: list[str]) -> int | None:
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"captioning.cli.{argv[0]}").main()
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else USER_ERROR
    if argv[0] == "--version":
        print(f"captioning {__version__}")
        return 0
    raise UserError(_unknown(argv[0]))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}s}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: captioning [--help] [--version] COMMAND ...\n\n"
        f"Train, use and compare image captioning models.\n\ncommands:\n{rows}\n\n"
        "examples:\n"
        "  captioning quickstart --small        train, caption and score a tiny model in under a minute\n"
        "  captioning train --help              options and examples of a command"
    )


def _unknown(name: str) -> str:
    kind = "option" if name.startswith("-") else "command"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean `captioning {near[0]}`?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"unknown {kind} {name!r}; {hint}"


if __name__ == "__main__":
    main()
