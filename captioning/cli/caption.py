#!/usr/bin/env python
"""Captions of image files on stdout. What is said is the doing of `captioning.captioner.predict`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from captioning.cli.options import add_allow_code, add_search, positive, search_of
from captioning.errors import UserError
from captioning.utils.paths import STDIN, ImageFile, find_images

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from captioning.captioner.captioner import Captioner
    from captioning.captioner.ensemble import EnsembleCaptioner
    from captioning.generation import SearchConfig
    from captioning.images.preprocessing import Preprocessing
    from captioning.inspection.rescoring import WordDetail
    from captioning.records import Prediction

DRAWN = 448
"""Longest side, in pixels, of the photos that `--attention` draws."""

EXAMPLES = """\
examples:
  captioning caption photo.jpg --model runs/shapes        the best model of a run
  captioning caption photos/ 'more/*.png' --model MODEL   folders with all below; quoted patterns
  curl -s URL | captioning caption - --model MODEL        an image from standard input
  captioning caption photos/ --model MODEL | cut -f2      the captions alone
  captioning caption photo.jpg --model MODEL --top 3      the three best, with their scores
  captioning caption photos/ --model MODEL --json         one JSON object a line
  captioning caption photos/ --model MODEL --json --words   with each word's probability and entropy
  captioning caption photo.jpg --model MODEL --search diverse_beam --top 5       five that differ
  captioning caption photo.jpg --model MODEL --search sample --top 5 --search-option top_p=0.9
  captioning caption photo.jpg --model MODEL --search-option prefix='a photo of' --search-option no_repeat=3
  captioning caption photo.jpg --model MODEL --search-option 'forced=[dog, "on the grass"]'   said somewhere
  captioning caption photo.jpg --model A --model B        several models of one vocabulary as one
  captioning caption val2017/ --model MODEL --out p.json  also COCO results, for captioning evaluate
  captioning caption photo.jpg --model MODEL --attention see/   where it looked at each word
  captioning caption photo.jpg --model MODEL --explain see/ --reference "a dog runs"
                       the beam's tree as JSON, and whether the model or the search missed that caption

output: PATH<TAB>CAPTION, and with --top <TAB>SCORE (log-probability under the length rule), one line a
caption, in the order of the files as given (a folder's in natural order). What cannot be printed of a path is
escaped; --json has the path itself. A file that cannot be captioned is named on stderr; the others are done.
exit code: 0 all captioned; 1 some were not; 2 stopped: the model or a setting is wrong"""


class Loaded(NamedTuple):
    """A file on its way to the model. `note` is for stderr: why there are no pixels, or what was left out."""

    found: ImageFile
    pixels: tuple[torch.Tensor, ...] | None  # each (3, size, size), as a model of the ensemble takes it
    photo: Image | None
    note: str


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Caption images with a trained model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s IMAGE|DIR|GLOB|- [...] --model FOLDER [options]",
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE|DIR|GLOB|-", help="files, folders, quoted patterns; - for stdin")
    add(
        "--model",
        required=True,
        action="append",
        metavar="FOLDER",
        help="a run's folder (runs/NAME) or a model folder; given several times, an ensemble of these",
    )
    add(
        "--average",
        choices=("probabilities", "log_probabilities"),
        default="probabilities",
        help="what an ensemble takes the mean of (default: probabilities)",
    )
    add("--json", action="store_true", help="one JSON object a line instead of PATH<TAB>CAPTION")
    add(
        "--words",
        action="store_true",
        help="with --json, of each word log-probability, probability and entropy (nats) of its distribution",
    )
    add("--top", type=positive, metavar="N", help="the N best captions of each image, best first")
    add_search(parser, default="the model's")
    add(
        "--out",
        metavar="FILE",
        help="also write COCO results; image_id is the file's name, or its path below the folder given",
    )
    add("--attention", metavar="DIR", help="also draw DIR/IMAGE.attention.png: where each word looked")
    add(
        "--explain",
        metavar="DIR",
        help="also write DIR/IMAGE.beam.json: the beam search step by step, and what each hypothesis lost to",
    )
    add(
        "--reference",
        action="append",
        default=[],
        metavar="TEXT",
        help="with --explain, a right caption of the one image: tells search error from model error",
    )
    add("--device", default="auto", help="auto (default: a GPU where there is one), cpu, cuda, cuda:1 ...")
    add("--batch", type=positive, default=16, metavar="N", help="images at a time (default: 16)")
    add_allow_code(parser)
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    if args.top and args.beam and args.top > args.beam:
        parser.error(f"--top {args.top} needs a beam at least as wide, but --beam is {args.beam}")
    if args.words and not args.json:
        parser.error("--words goes with --json")
    if args.reference and not args.explain:
        parser.error("--reference goes with --explain")
    if args.attention and len(args.model) > 1:
        parser.error("--attention is drawn of one model; give one --model")
    return args


def main() -> int:
    args = parse_arguments()
    folders = [model_folder(name) for name in args.model]
    if args.out:
        check_writable(args.out)
    files = find_images(args.images)
    if ImageFile(STDIN, STDIN) in files and sys.stdin.isatty():
        raise UserError("- reads an image from standard input: pipe one in, or name a file")
    if args.reference and len(files) > 1:
        raise UserError(f"--reference is of one image, and these are {len(files)}; name one")
    # now that what is cheap to find wrong is right: torch takes seconds
    from tqdm import tqdm

    from captioning.captioner.ensemble import open_captioners
    from captioning.inspection.beam_tree import require_beam_search
    from captioning.records import write_predictions

    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    device = choose_device(args.device)
    captioner = open_captioners(folders, device=device, average=args.average, allow_code=args.allow_code)
    search = search_of(captioner, args, n_best=args.top)
    if args.explain:
        require_beam_search(search)
    kept: list[Prediction] = []
    failed = 0
    loading = load_all(files, captioner.preprocessings, photos=bool(args.attention), ahead=2 * args.batch)
    # `progress.write` prints past the bar
    with tqdm(total=len(files), unit="image", leave=False, disable=None, delay=2) as progress:
        while batch := list(islice(loading, args.batch)):
            for loaded in batch:
                if loaded.note:
                    progress.write(loaded.note, file=sys.stderr)
            good = [loaded for loaded in batch if loaded.pixels is not None]
            failed += len(batch) - len(good)
            predictions = caption(captioner, good, search)
            words = details(captioner, good, predictions, search) if args.words else [None] * len(good)
            for loaded, prediction, each in zip(good, predictions, words, strict=True):
                progress.write(as_line(loaded.found, prediction, each, args), file=sys.stdout)
                if args.out:
                    kept.append(prediction)
                if args.attention:
                    draw(captioner, loaded, prediction, args.attention)
                if args.explain:
                    write_explanation(captioner, loaded, search, args)
            sys.stdout.flush()
            progress.update(len(batch))
    if args.out:
        write_predictions(args.out, kept)
        print(f"captions of {len(kept)} images: {args.out}", file=sys.stderr)
    if args.attention:
        print(f"attention of {len(files) - failed} images: {args.attention}", file=sys.stderr)
    if args.explain:
        print(f"beam searches of {len(files) - failed} images: {args.explain}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(files)} could not be captioned", file=sys.stderr)
    return 1 if failed else 0


def model_folder(name: str) -> Path:
    """The model's folder: `name`, or `name/model` of a run. Raises UserError where neither is one."""
    folder = Path(name)
    if (folder / "manifest.json").is_file():
        return folder
    # `.model.old`: see `files.recover_folder`
    if (folder / "model").is_dir() or (folder / ".model.old").is_dir():
        return folder / "model"
    if not folder.is_dir():
        raise UserError(f"{name}: no such folder; --model takes a run (runs/NAME) or a model folder")
    raise UserError(f"{name}: holds no model (no manifest.json, no model/); give a finished run")


def check_writable(out: str) -> None:
    """Raises UserError where `out` cannot become a file: now, and not after the last caption."""
    path = Path(out)
    if path.is_dir():
        raise UserError(f"--out {out}: a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: its folder cannot be made ({error.strerror})") from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--out {out}: its folder cannot be written to; name another")


def choose_device(name: str) -> torch.device:
    """Raises UserError where there is no such device."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not to be had here ({reason}); use --device cpu") from None


def load_all(
    files: Sequence[ImageFile], preprocessings: Sequence[Preprocessing], *, photos: bool, ahead: int
) -> Iterator[Loaded]:
    """The files in their order; threads load up to `ahead` of them while the model works."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting: deque[Future[Loaded]] = deque()
        try:
            for found in files:
                waiting.append(pool.submit(load, found, preprocessings, photos=photos))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def load(found: ImageFile, preprocessings: Sequence[Preprocessing], *, photos: bool) -> Loaded:
    """Read one file, prepared in each way; `photos` keeps a small copy to draw on."""
    from captioning.images.preprocessing import preprocess
    from captioning.images.reading import BadImage, printable, read_image

    if found.problem:
        return Loaded(found, None, None, f"{printable(found.path)}: {found.problem}")
    try:
        image, note = read_image(sys.stdin.buffer if found.path == STDIN else found.path)
    except BadImage as error:
        return Loaded(found, None, None, str(error))
    pixels = tuple(preprocess(image, each) for each in preprocessings)
    if photos:
        image.thumbnail((DRAWN, DRAWN))
    return Loaded(found, pixels, image if photos else None, note)


def images_of(captioner: Captioner | EnsembleCaptioner, batch: Sequence[Loaded]) -> Any:
    """The pixels of a batch, as `captioner.encode_memory` takes them."""
    import torch

    device = next(captioner.parameters()).device
    pixels = [loaded.pixels for loaded in batch if loaded.pixels is not None]
    images = [torch.stack(each).to(device) for each in zip(*pixels, strict=True)]
    return images[0] if len(images) == 1 else images


def caption(
    captioner: Captioner | EnsembleCaptioner, batch: Sequence[Loaded], search: SearchConfig
) -> list[Prediction]:
    """Predictions of a batch, in its order. Raises UserError where memory runs out."""
    import torch

    from captioning.captioner.predict import generate_captions

    if not batch:
        return []
    ids = [loaded.found.image_id for loaded in batch]
    try:
        return generate_captions(captioner, images_of(captioner, batch), ids, config=search)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise UserError(f"out of memory with {len(batch)} images at a time; lower --batch") from None
        raise


def details(
    captioner: Captioner | EnsembleCaptioner,
    batch: Sequence[Loaded],
    predictions: Sequence[Prediction],
    search: SearchConfig,
) -> list[list[list[WordDetail]]]:
    """Of each image, of its caption and each alternative, the words' numbers."""
    import torch

    from captioning.inspection.rescoring import word_details

    if not batch:
        return []
    with torch.inference_mode():
        memory = captioner.encode_memory(images_of(captioner, batch))
    return word_details(captioner, memory, predictions, search)


def as_line(
    found: ImageFile, prediction: Prediction, words: list[list[WordDetail]] | None, args: argparse.Namespace
) -> str:
    """What is printed for an image: JSON, or a line of text for each caption asked for."""
    from captioning.images.reading import printable
    from captioning.records import as_json

    if args.json:
        entry = {"path": found.path, **as_json(prediction)}
        if words is not None:
            for each, its in zip((entry, *entry.get("alternatives", ())), words, strict=True):
                each["words"] = [asdict(word) for word in its]
        return json.dumps(entry, ensure_ascii=False)
    path = printable(found.path)
    if not args.top:
        return f"{path}\t{prediction.caption}"
    ranked = (prediction, *prediction.alternatives)
    return "\n".join(f"{path}\t{each.caption}\t{each.score:.4f}" for each in ranked)


def safe_name(found: ImageFile) -> str:
    """The image's id as a file's name: the id of files of like name is their path, which may lead out of a folder."""
    name = found.image_id
    return name if not os.path.isabs(name) and ".." not in Path(name).parts else name.replace(os.sep, "_")


def draw(
    captioner: Captioner | EnsembleCaptioner, loaded: Loaded, prediction: Prediction, folder: str
) -> None:
    """Write FOLDER/IMAGE_ID.attention.png."""
    from captioning.captioner.captioner import Captioner
    from captioning.inspection import attention_maps

    assert isinstance(captioner, Captioner) and loaded.pixels is not None and loaded.photo is not None
    words = prediction.caption.split()
    device = next(captioner.parameters()).device
    maps = attention_maps.attention_of(captioner, loaded.pixels[0].to(device), words)
    attention_maps.draw(
        loaded.photo,
        words,
        maps,
        Path(folder) / f"{safe_name(loaded.found)}.attention.png",
        preprocessing=captioner.config.preprocessing,
    )


def write_explanation(
    captioner: Captioner | EnsembleCaptioner, loaded: Loaded, search: SearchConfig, args: argparse.Namespace
) -> None:
    """Write DIR/IMAGE_ID.beam.json."""
    from captioning.inspection.beam_tree import explain_search
    from captioning.utils.files import write_json

    images = images_of(captioner, [loaded])
    told = explain_search(captioner, images, loaded.found.image_id, search, references=args.reference)
    write_json(Path(args.explain) / f"{safe_name(loaded.found)}.beam.json", told)
