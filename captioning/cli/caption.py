"""`captioning caption`: captions of image files on stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from captioning.captioner.pretrained import DEFAULT, find_model
from captioning.cli.options import add_allow_code, add_search, positive, search_of
from captioning.cli.running import caption_batch, choose_device
from captioning.errors import UserError, reader_left
from captioning.utils.paths import STDIN, ImageFile, find_images
from captioning.utils.prefetch import prefetch

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from captioning.captioner.captioner import Captioner
    from captioning.captioner.ensemble import EnsembleCaptioner
    from captioning.generation import SearchConfig
    from captioning.images.preprocessing import Preprocessing
    from captioning.inspection.rescoring import WordDetail
    from captioning.records import Prediction

PHOTO_SIZE = 448
"""Longest side, in pixels, of the photos in the figures of `--attention`."""

EXAMPLES = """\
Captions:
  captioning caption photo.jpg                                 with the model that comes with the package
  captioning caption photo.jpg --model flickr8k-transformer    another one; `captioning models` lists them
  captioning caption photo.jpg --model runs/shapes             the best model of a run
  captioning caption photos/ 'more/*.png' --model MODEL        folders with their subfolders; quoted patterns
  curl -s URL | captioning caption - --model MODEL             an image from standard input
  captioning caption photo.jpg --model A --model B             an ensemble of models with one vocabulary

Output:
  captioning caption photos/ --model MODEL | cut -f2           the captions alone
  captioning caption photos/ --model MODEL --json              one JSON object a line
  captioning caption photos/ --model MODEL --json --words      with each word's probability and entropy
  captioning caption val2017/ --model MODEL --out p.json       also COCO results, for captioning evaluate

Searches:
  captioning caption photo.jpg --model MODEL --top 3           the three best, with their scores
  captioning caption photo.jpg --model MODEL --search diverse_beam --top 5       five different ones
  captioning caption photo.jpg --model MODEL --search sample --top 5 --search-option top_p=0.9
  captioning caption photo.jpg --model MODEL --search-option prefix='a photo of' --search-option no_repeat=3
  captioning caption photo.jpg --model MODEL --search-option 'forced=[dog, "on the grass"]'   must contain these

Explanations:
  captioning caption photo.jpg --model MODEL --attention figures/   attention over the photo at each word
  captioning caption photo.jpg --model MODEL --explain beams/ --reference "a dog runs"
      the beam search as a JSON tree, and why it did not return the reference: a search error or a model error

Each caption is one line, PATH<TAB>CAPTION, and with --top <TAB>SCORE (log-probability under the length rule), in the
order of the files (a folder's in natural order: img2 before img10). Unprintable characters of a path are escaped;
--json has the path itself. Files that cannot be captioned are named on stderr, and the others are captioned.

exit code: 0 all images captioned; 1 some were not; 2 the input was refused, with the reason on stderr"""


class Loaded(NamedTuple):
    """A file that was read."""

    file: ImageFile
    pixels: tuple[torch.Tensor, ...] | None  # (3, size, size) for each model; None if it cannot be read
    photo: Image | None  # for `--attention`
    note: str  # for stderr: why there are no pixels, or what was ignored


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Caption images with a trained model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s IMAGE|DIR|GLOB|- [...] [--model MODEL] [options]",
    )
    add_options(parser)
    args = parser.parse_args()
    if args.top and args.beam and args.top > args.beam:
        parser.error(f"--top {args.top} needs a beam at least as wide, but --beam is {args.beam}")
    if args.words and not args.json:
        parser.error("--words needs --json")
    if args.reference and not args.explain:
        parser.error("--reference needs --explain")
    if args.attention and len(args.model) > 1:
        parser.error("--attention is for a single model; give one --model")
    return args


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE|DIR|GLOB|-", help="files, folders, quoted patterns; - for stdin")
    add(
        "--model",
        action="append",
        default=[],
        metavar="MODEL",
        help="a run (runs/NAME), a model folder, or a model of the package by its name (default: "
        f"{DEFAULT}); several are an ensemble",
    )
    add(
        "--average",
        choices=("probabilities", "log_probabilities"),
        default="probabilities",
        help="what an ensemble averages (default: probabilities)",
    )
    add("--json", action="store_true", help="one JSON object a line instead of PATH<TAB>CAPTION")
    add(
        "--words",
        action="store_true",
        help="with --json: log-probability, probability and entropy (nats) of each word",
    )
    add("--top", type=positive, metavar="N", help="the N best captions of each image, best first")
    add_search(parser, default="the model's")
    add(
        "--out",
        metavar="FILE",
        help="also write COCO results; image_id is the file's name, or its path below the given folder",
    )
    add("--attention", metavar="DIR", help="also draw the attention at each word, DIR/IMAGE.attention.png")
    add(
        "--explain",
        metavar="DIR",
        help="also write the steps of the beam search, and what each hypothesis lost to, DIR/IMAGE.beam.json",
    )
    add(
        "--reference",
        action="append",
        default=[],
        metavar="TEXT",
        help="with --explain: a correct caption of the image, to tell search errors from model errors",
    )
    add("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1, ...")
    add("--batch", type=positive, default=16, metavar="N", help="images at a time (default: 16)")
    add_allow_code(parser)
    add("--debug", action="store_true", help="show the traceback of an error")


def main() -> int:
    args = parse_arguments()
    folders = [find_model(name) for name in args.model or [DEFAULT]]
    if not args.model:
        print(f"model: {DEFAULT}; --model NAME or RUN chooses another", file=sys.stderr)
    if args.out:
        check_writable(args.out)
    files = find_images(args.images)
    if ImageFile(STDIN, STDIN) in files and sys.stdin.isatty():
        raise UserError("- reads an image from standard input: pipe one in, or name a file")
    if args.reference and len(files) > 1:
        raise UserError(f"--reference is for one image, and these are {len(files)}; name one")
    # imported after these checks because torch takes seconds
    from captioning.captioner.ensemble import open_captioners
    from captioning.inspection.beam_tree import require_beam_search
    from captioning.records import write_predictions

    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    device = choose_device(args.device)
    captioner = open_captioners(folders, device=device, average=args.average, allow_code=args.allow_code)
    search = search_of(captioner, args, n_best=args.top)
    if args.explain:
        require_beam_search(search)
    predictions: list[Prediction] = []
    count = 0
    for prediction in caption_files(captioner, files, search, args):
        count += 1
        if args.out:
            predictions.append(prediction)
    if args.out:
        write_predictions(args.out, predictions)
        print(f"captions of {count} images: {args.out}", file=sys.stderr)
    if args.attention:
        print(f"attention of {count} images: {args.attention}", file=sys.stderr)
    if args.explain:
        print(f"beam searches of {count} images: {args.explain}", file=sys.stderr)
    if failed := len(files) - count:
        print(f"{failed} of {len(files)} could not be captioned", file=sys.stderr)
    return 1 if failed else 0


def caption_files(
    captioner: Captioner | EnsembleCaptioner,
    files: Sequence[ImageFile],
    search: SearchConfig,
    args: argparse.Namespace,
) -> Iterator[Prediction]:
    """Caption the files that can be read; print the captions and write what `--attention` and `--explain` ask for."""
    from tqdm import tqdm

    from captioning.utils.progress import progress

    load = partial(load_file, preprocessings=captioner.preprocessings, keep_photo=bool(args.attention))
    loading = (loaded for _, loaded in prefetch(load, files, ahead=2 * args.batch))
    with progress(total=len(files), desc="captioning", unit="image", delay=2) as bar:
        while batch := list(islice(loading, args.batch)):
            for loaded in batch:
                if loaded.note:
                    tqdm.write(loaded.note, file=sys.stderr)  # does not break the bar
            readable = [loaded for loaded in batch if loaded.pixels is not None]
            for loaded, prediction, words in caption_loaded(captioner, readable, search, args):
                tqdm.write(as_line(loaded.file, prediction, words, args), file=sys.stdout)
                if args.attention:
                    draw_attention(captioner, loaded, prediction, args.attention)
                if args.explain:
                    write_explanation(captioner, loaded, search, args)
                yield prediction
            sys.stdout.flush()
            bar.update(len(batch))
            if reader_left() and not (args.out or args.attention or args.explain):
                raise SystemExit(0)


def check_writable(out: str) -> None:
    """Raises UserError if `out` cannot become a file, before the first caption and not after the last."""
    path = Path(out)
    if path.is_dir():
        raise UserError(f"--out {out}: a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot create its folder ({error.strerror})") from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--out {out}: its folder is not writable; name another")


def load_file(file: ImageFile, *, preprocessings: Sequence[Preprocessing], keep_photo: bool) -> Loaded:
    """Read one file and preprocess it for each model; `keep_photo` keeps a small copy to draw on."""
    from captioning.images.preprocessing import preprocess
    from captioning.images.reading import BadImage, printable, read_image

    if file.problem:
        return Loaded(file, None, None, f"{printable(file.path)}: {file.problem}")
    source = sys.stdin.buffer if file.path == STDIN else file.path
    try:
        image, notes = read_image(source)
    except BadImage as error:
        return Loaded(file, None, None, str(error))
    pixels = tuple(preprocess(image, preprocessing) for preprocessing in preprocessings)
    if keep_photo:
        image.thumbnail((PHOTO_SIZE, PHOTO_SIZE))
    note = f"{printable(source)}: {'; '.join(notes)}" if notes else ""
    return Loaded(file, pixels, image if keep_photo else None, note)


def stack_pixels(captioner: Captioner | EnsembleCaptioner, batch: Sequence[Loaded]) -> Any:
    """The pixels of a batch, in the form that `captioner.encode_memory` takes."""
    import torch

    device = next(captioner.parameters()).device
    pixels = [loaded.pixels for loaded in batch if loaded.pixels is not None]
    images = [torch.stack(images_of_model).to(device) for images_of_model in zip(*pixels, strict=True)]
    return images[0] if len(images) == 1 else images


def caption_loaded(
    captioner: Captioner | EnsembleCaptioner,
    batch: Sequence[Loaded],
    search: SearchConfig,
    args: argparse.Namespace,
) -> list[tuple[Loaded, Prediction, list[list[WordDetail]] | None]]:
    """The caption of each image; with `--words` also the details of its words and of each alternative's."""
    import torch

    from captioning.inspection.rescoring import word_details

    if not batch:
        return []
    images = stack_pixels(captioner, batch)
    predictions = caption_batch(captioner, images, [loaded.file.image_id for loaded in batch], search)
    words: Sequence[list[list[WordDetail]] | None] = [None] * len(batch)
    if args.words:
        with torch.inference_mode():
            memory = captioner.encode_memory(images)
        words = word_details(captioner, memory, predictions, search)
    return list(zip(batch, predictions, words, strict=True))


def as_line(
    file: ImageFile, prediction: Prediction, words: list[list[WordDetail]] | None, args: argparse.Namespace
) -> str:
    """The output for an image: a JSON object, or a line of text for each caption."""
    from captioning.images.reading import printable
    from captioning.records import as_json

    if args.json:
        entry = {"path": file.path, **as_json(prediction)}
        if words is not None:
            captions = (entry, *entry.get("alternatives", ()))
            for caption, details in zip(captions, words, strict=True):
                caption["words"] = [asdict(word) for word in details]
        return json.dumps(entry, ensure_ascii=False)
    path = printable(file.path)
    if not args.top:
        return f"{path}\t{prediction.caption}"
    ranked = (prediction, *prediction.alternatives)
    return "\n".join(f"{path}\t{caption.caption}\t{caption.score:.4f}" for caption in ranked)


def safe_name(file: ImageFile) -> str:
    """The image's id as a file name that stays inside its folder; an id may be a path."""
    name = file.image_id
    return name if not os.path.isabs(name) and ".." not in Path(name).parts else name.replace(os.sep, "_")


def draw_attention(
    captioner: Captioner | EnsembleCaptioner, loaded: Loaded, prediction: Prediction, folder: str
) -> None:
    """Write FOLDER/IMAGE_ID.attention.png."""
    from captioning.captioner.captioner import Captioner
    from captioning.inspection.attention_figure import draw_attention
    from captioning.inspection.attention_maps import attention_maps

    assert isinstance(captioner, Captioner) and loaded.pixels is not None and loaded.photo is not None
    words = captioner.vocabulary.decode(prediction.ids)
    device = next(captioner.parameters()).device
    attention = attention_maps(captioner, loaded.pixels[0].to(device), words)
    draw_attention(
        loaded.photo,
        words,
        attention,
        Path(folder) / f"{safe_name(loaded.file)}.attention.png",
        preprocessing=captioner.config.preprocessing,
    )


def write_explanation(
    captioner: Captioner | EnsembleCaptioner, loaded: Loaded, search: SearchConfig, args: argparse.Namespace
) -> None:
    """Write DIR/IMAGE_ID.beam.json."""
    from captioning.inspection.beam_tree import explain_search
    from captioning.utils.files import write_json

    images = stack_pixels(captioner, [loaded])
    explanation = explain_search(captioner, images, loaded.file.image_id, search, references=args.reference)
    write_json(Path(args.explain) / f"{safe_name(loaded.file)}.beam.json", explanation)
