"""Command line options that several tools share. Imports torch only when a model is there to be asked."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioning.captioner import Captioner
    from captioning.search import SearchConfig


def positive(text: str) -> int:
    """Type of an option: a number from 1 on."""
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def add_search(parser: Any, *, default: str) -> None:
    """Add the options that `search_of` reads; `default` says whose search is used without them."""
    add = parser.add_argument
    add("--beam", type=positive, metavar="N", help=f"width of the beam search (default: {default})")
    add("--max-length", type=positive, metavar="N", help="most words, the caption's end counted as one")
    add("--length-rule", choices=("sum", "mean", "gnmt"), help="how scores of different lengths compare")


def search_of(captioner: Captioner, args: argparse.Namespace, *, n_best: int) -> SearchConfig:
    """The model's own search with what the command line changes; it finds `n_best` captions.

    Raises:
        UserError: the model cannot do what is asked for.
    """
    from captioning.search.adjust import adjusted

    return adjusted(
        captioner.config.search,
        width=args.beam,
        n_best=n_best,
        max_length=args.max_length,
        length_rule=args.length_rule,
        longest=captioner.config.decoder.longest,
    )
