"""The `shapes` data set: coloured shapes drawn by this program, with captions from a grammar.

On disk, `ROOT/FINGERPRINT/` contains the PNG files and `captions.jsonl`, one line an image:

    {"image_id", "file_name", "split", "captions", "bytes", "scene": {"kind", "relation", "things", "marks",
     "unseen"}}

`marks` gives for each drawn shape, in drawing order, the index of its thing, and its centre and radius in pixels;
`unseen` is the held-out combination of a `test_unseen` scene. The folder gets its final name only when it is
complete.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from PIL import Image
from pydantic import Field

from captioning.datasets.base import BaseDatasetConfig, Guide
from captioning.datasets.shapes_drawing import draw_scene
from captioning.datasets.shapes_grammar import (
    HELD_OUT,
    MAX_WORDS,
    MIN_WORDS,
    Dice,
    captions,
    long_captions,
    random_scene,
)
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord
from captioning.utils.files import fingerprint, fsync_folder, read_jsonl, write_jsonl
from captioning.utils.progress import progress
from captioning.utils.validation import Seed, dump, validate

DRAWING_VERSION = 2
"""Increased with every change of images or captions, so that older folders are not reused."""
IDS_PER_SPLIT = 1_000_000
"""Range of image ids of a split; an image's id doesn't depend on the sizes of the splits."""
NOT_DRAWN = ("root", "max_bad", "split_seed")
"""Settings that the images and captions don't depend on."""
SPLITS = ("train", "val", "test", "test_unseen")
ABANDONED_SECONDS = 3600
"""Age after which an unfinished folder is deleted: no process can still be drawing into it."""

Count = Annotated[int, Field(ge=0, le=IDS_PER_SPLIT)]


@dataclass(frozen=True, kw_only=True)
class ShapesConfig(BaseDatasetConfig):
    """Numbers of scenes and how they are drawn. Image i of a split depends on `seed`, the split and i only."""

    guide: ClassVar[Guide] = Guide(
        title="shapes: coloured shapes drawn by this program, with captions from a grammar",
        layout="drawn on first use; there is nothing to add",
        source="nothing to download",
        licence="none needed",
    )
    generates_files: ClassVar[bool] = True

    kind: Literal["shapes"] = "shapes"
    root: str = "data/shapes"
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.0
    train: Annotated[int, Field(ge=1, le=IDS_PER_SPLIT)] = 2000
    val: Count = 200
    test: Count = 200
    unseen: Count = 200
    """Images of `test_unseen`; each shows one combination that no other split contains."""
    seed: Seed = 0
    size: Annotated[int, Field(ge=32, le=1024)] = 64
    """Width and height in pixels."""
    words: Annotated[int, Field(ge=MIN_WORDS, le=MAX_WORDS)] | None = None
    """Words of a caption whose last sentence depends on its first; None for the ordinary captions."""

    def with_caption_length(self, words: int) -> ShapesConfig:
        return validate(ShapesConfig, {**dump(self), "words": words}, where=f"captions of {words} words")

    def load(self) -> Collection:
        """The scenes' records. Scenes that don't exist yet are drawn first.

        Raises:
            UserError: the folder cannot be written, or a file in it is missing or was changed.
        """
        folder = self.folder
        try:
            if not folder.is_dir():
                _draw_folder(self, folder)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{folder}: cannot be written ({reason}); set `root` to another folder"
            ) from error
        return _read_folder(folder)

    @property
    def folder(self) -> Path:
        """The folder of the images; its name depends on the settings that decide what is drawn."""
        settings = {key: value for key, value in asdict(self).items() if key not in NOT_DRAWN}
        return Path(self.root) / fingerprint({**settings, "drawing": DRAWING_VERSION})


def _read_folder(folder: Path) -> Collection:
    index = folder / "captions.jsonl"
    advice = f"delete the folder {folder} and it will be drawn again"
    sizes = {
        f"{split.name}/{file.name}": file.stat().st_size
        for split in os.scandir(folder)
        if split.is_dir()
        for file in os.scandir(split.path)
    }
    records = []
    for number, line in read_jsonl(index):
        try:
            name = line["file_name"]
            record = ImageRecord(line["image_id"], str(folder / name), tuple(line["captions"]), line["split"])
            expected = line["bytes"]
            texts = (name, record.split, *record.captions)
            if type(record.image_id) is not int or not all(isinstance(text, str) for text in texts):
                raise TypeError("a value of another type")
        except (TypeError, KeyError) as error:
            raise UserError(f"{index}: line {number} is not a scene ({error}); {advice}") from None
        if sizes.get(name) != expected:
            raise UserError(f"{record.path}: missing, or not the file that was drawn; {advice}")
        records.append(record)
    if len(records) != len(sizes):
        raise UserError(f"{index}: {len(records)} scenes for {len(sizes)} images; {advice}")
    return Collection(records, [])


def _draw_folder(config: ShapesConfig, folder: Path) -> None:
    """Draw into a temporary folder, then rename it. Of two processes that draw at once, the first to finish wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.parent.glob(f".{folder.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process may be deleting it
            newest = max(path.stat().st_mtime for path in (unfinished, *unfinished.iterdir()))
            if time.time() - newest > ABANDONED_SECONDS:
                shutil.rmtree(unfinished, ignore_errors=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir()
        write_jsonl(part / "captions.jsonl", _draw_splits(config, part))
        try:
            os.rename(part, folder)
        except OSError:
            if not folder.is_dir():
                raise
        else:
            fsync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _draw_splits(config: ShapesConfig, folder: Path) -> Iterator[dict[str, Any]]:
    """Draw all images into `folder`; yields the lines of `captions.jsonl`."""
    counts = (config.train, config.val, config.test, config.unseen)
    with progress(total=sum(counts), desc="drawing shapes", unit="image", delay=2.0) as bar:
        for split_number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
            (folder / split).mkdir()
            for number in range(count):
                name = f"{split}/{number:06d}.png"
                image, scene = draw(config, split, number)
                image.save(folder / name, compress_level=1)  # noise hardly compresses at any level
                entry = {
                    "image_id": split_number * IDS_PER_SPLIT + number,
                    "file_name": name,
                    "split": split,
                }
                yield {**entry, **scene, "bytes": (folder / name).stat().st_size}
                bar.update()


def draw(config: ShapesConfig, split: str, number: int) -> tuple[Image.Image, dict[str, Any]]:
    """Image `number` of a split, RGB, (config.size, config.size); and its captions and scene as JSON values."""
    dice = Dice(f"{config.seed}/{split}/{number}")
    unseen = HELD_OUT[number % len(HELD_OUT)] if split == "test_unseen" else None
    scene = random_scene(dice, unseen)
    image, marks = draw_scene(scene, dice, size=config.size)
    # the captions are drawn last, so that the images are the same for every caption length
    texts = captions(scene) if config.words is None else long_captions(scene, dice, words=config.words)
    return image, {"captions": texts, "scene": {**scene.as_json(), "marks": marks, "unseen": unseen}}
