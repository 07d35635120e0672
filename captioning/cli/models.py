"""`captioning models`: the models that come with the package, and compact copies of trained ones."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from captioning.captioner.pretrained import DEFAULT, find_model, pretrained_models
from captioning.errors import UserError
from captioning.utils.files import read_text

EXAMPLES = """\
examples:
  captioning models                                   the models that come with the package
  captioning models flickr8k-lstm                     the model card of one: data, licence, scores, limits
  captioning models runs/mine --pack mine             a compact copy: the decoder in float16, no encoder

A compact copy takes a few megabytes. It needs a frozen encoder with encoder.weights=default, which must be
installed (or downloaded) where the copy is used."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="List the models that come with the package, show a model's card, or pack a model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a run, a model folder or a model's name")
    parser.add_argument("--pack", metavar="FOLDER", help="write a compact copy of MODEL to FOLDER")
    parser.add_argument(
        "--card", metavar="FILE", help="with --pack: the copy's model card (default: the model's)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    if args.pack and not args.model:
        parser.error("--pack needs a MODEL")
    if args.card and not args.pack:
        parser.error("--card needs --pack")
    return args


def main() -> int:
    args = parse_arguments()
    if args.pack:
        pack(find_model(args.model), Path(args.pack), card=args.card)
    elif args.model:
        folder = find_model(args.model)
        print(f"{folder}\n\n{read_text(folder / 'README.md').strip()}")
    else:
        list_models()
    return 0


def list_models() -> None:
    """Print name, size and description of the models that come with the package."""
    models = pretrained_models()
    if not models:
        print("no models come with this installation; train one: captioning train --help")
        return
    for model in models:
        default = ", the default of `captioning caption`" if model.name == DEFAULT else ""
        print(f"{model.name}  ({model.bytes / 1e6:.1f} MB{default})")
        print(textwrap.indent(textwrap.fill(model.description, 96), "  "))
    print(
        f"\nuse: captioning caption photo.jpg --model {models[-1].name}   card: captioning models {models[0].name}"
    )


def pack(source: Path, target: Path, *, card: str | None) -> None:
    """Write a compact copy of the model folder `source` to the new folder `target`."""
    from captioning.captioner.captioner import Captioner

    if target.exists():
        raise UserError(f"{target}: exists already; name a new folder")
    text = read_text(card if card else source / "README.md")
    Captioner.open(source).save(target, card=text, compact=True)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"packed {source}: {target} ({size / 1e6:.1f} MB)")
