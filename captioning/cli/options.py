"""Command line options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioning.captioner.captioner import Captioner
    from captioning.captioner.ensemble import EnsembleCaptioner
    from captioning.generation import SearchConfig
    from captioning.models.encoders import BaseEncoderConfig


def positive(text: str) -> int:
    """Type of an option: a number from 1 on."""
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def not_negative(text: str) -> int:
    """Type of an option: an integer >= 0."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected an integer from 0 on, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """Type of an option: a number from 0 to 1."""
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")


def add_allow_code(parser: Any) -> None:
    """Add the option that consents to importing code outside the package."""
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help='import the Python modules that a model names ("kind: my_module:MyConfig"); read them first',
    )


def add_tokenizer(parser: Any) -> None:
    """Add the option that chooses how captions are split into words."""
    parser.add_argument(
        "--tokenizer",
        choices=("ptb", "whitespace", "characters"),
        help="the words of captions: ptb (coco-caption's, the default), whitespace (words between spaces), characters "
        "(for languages without spaces between words)",
    )


def add_search(parser: Any, *, default: str) -> None:
    """Add the options that `search_of` reads; `default`: whose search is used without them, for the help."""
    add = parser.add_argument
    add(
        "--search",
        metavar="KIND",
        help="the kind of search: greedy, beam, diverse_beam, sample, stochastic_beam, or one of your own as "
        f"my_module:MyConfig (default: {default})",
    )
    add(
        "--search-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of a config's search section, its value in YAML; can be repeated. For all: max_length, "
        "min_length, prefix, forced, banned, no_repeat, no_bad_ending; all but greedy: length_rule, alpha; beam and "
        "diverse_beam: width, n_best, patience (diverse_beam: groups, diversity); sample and stochastic_beam: samples, "
        "temperature, top_k, top_p, typical, min_p, seed",
    )
    add("--beam", type=positive, metavar="N", help=f"width of the beam search (default: {default})")
    add("--max-length", type=positive, metavar="N", help="longest caption in words; its end counts as one")
    add(
        "--length-rule",
        choices=("sum", "mean", "gnmt"),
        help="how scores of captions of different lengths compare",
    )


def search_of(
    captioner: Captioner | EnsembleCaptioner, args: argparse.Namespace, *, n_best: int | None = None
) -> SearchConfig:
    """The model's own search with the changes of the command line.

    Args:
        n_best: captions an image; None: the search's setting.

    Raises:
        UserError: the model cannot be searched so.
    """
    from captioning.generation import constraint_ids
    from captioning.generation.overrides import override_search

    config = override_search(
        captioner.search,
        kind=args.search,
        options=args.search_option,
        width=args.beam,
        n_best=n_best,
        max_length=args.max_length,
        length_rule=args.length_rule,
        max_positions=captioner.max_positions,
    )
    constraint_ids(
        config, captioner.vocabulary
    )  # raises UserError for unknown words before the first image is read
    return config


def encoder_of(text: str, **settings: Any) -> BaseEncoderConfig:
    """The encoder of an option `--encoder`: a network of torchvision by its name, or KEY=VALUE,KEY=VALUE.

    Args:
        settings: of other options; they override those in `text`. Weights are the default ones unless stated.

    Raises:
        UserError: a setting is unknown or wrong.
    """
    from captioning.errors import UserError
    from captioning.models.encoders import EncoderConfig
    from captioning.utils.parsing import parse_yaml_value
    from captioning.utils.validation import members, validate

    values: dict[str, Any] = {}
    if "=" not in text:
        values = {"kind": "torchvision", "name": text}
    else:
        for setting in text.split(","):
            key, sign, value = setting.partition("=")
            if not sign:
                raise UserError(f"--encoder {text}: write KEY=VALUE,KEY=VALUE, as in kind=timm,name=resnet50")
            values[key.strip()] = parse_yaml_value(value, where=f"--encoder {setting}")
    if hasattr(members(EncoderConfig).get(str(values.get("kind"))), "weights"):
        values.setdefault("weights", "default")
    return validate(EncoderConfig, values | settings, where="", section="encoder", allow_code=True)
