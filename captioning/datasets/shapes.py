"""The `shapes` data set: draws scenes and keeps them on disk. Knows pixels and files; the sentences come from
`shapes_grammar`.

On disk, `ROOT/FINGERPRINT/` holds `captions.jsonl`, one line an image,

    {"image_id", "file_name", "split", "captions", "bytes", "scene": {"kind", "relation", "things", "marks",
     "unseen"}}

and the PNG files. `marks` gives for each drawn shape, in drawing order, the thing it belongs to and its
centre and radius in pixels; `unseen` is the held-out combination that a `test_unseen` scene shows. The folder
gets its name when all of it is there, so one that is there is whole.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field
from tqdm import tqdm

from captioning.datasets.checks import MaxBad
from captioning.datasets.shapes_grammar import (
    HELD_OUT,
    LONGEST,
    SHORTEST,
    Dice,
    Scene,
    captions,
    invent,
    long_captions,
)
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord
from captioning.utils.files import fingerprint, fsync_folder, read_jsonl, write_jsonl

DRAWING = 2  # goes up with every change of pictures or sentences: an older folder is then not taken
IDS = 1_000_000  # image ids of a split: an image keeps its id, whatever the numbers of images are
SPLITS = ("train", "val", "test", "test_unseen")
FINE = 4  # drawn this many times larger and averaged down: smooth edges
REACH = 1.12  # no outline goes further from its centre, in radii
FORGOTTEN = 3600  # seconds after which an unfinished folder belongs to nobody

RGB = {
    "red": (222, 36, 40),
    "orange": (250, 138, 20),
    "yellow": (252, 226, 40),
    "green": (32, 156, 56),
    "blue": (40, 84, 226),
    "purple": (146, 44, 186),
    "black": (22, 22, 22),
    "white": (248, 248, 248),
}
RADIUS = {"small": (0.12, 0.135), "large": (0.19, 0.205)}  # shares of the picture's width

Count = Annotated[int, Field(ge=0, le=IDS)]


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """How many scenes are drawn, and how. Image i of a split depends on `seed`, the split and i only."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    kind: Literal["shapes"] = "shapes"
    root: str = "data/shapes"
    train: Annotated[int, Field(ge=1, le=IDS)] = 2000
    val: Count = 200
    test: Count = 200
    unseen: Count = 200
    """Images of `test_unseen`: each shows one combination that no other split has."""
    seed: int = 0
    size: Annotated[int, Field(ge=32, le=1024)] = 64
    """Width and height in pixels."""
    words: Annotated[int, Field(ge=SHORTEST, le=LONGEST)] | None = None
    """Words of a caption whose last sentence depends on its first; none: the ordinary captions."""
    max_bad: MaxBad = 0.0


def read(config: ShapesConfig) -> Collection:
    """The scenes' records; draws them first where they are not there yet.

    Raises:
        UserError: the folder cannot be written, or something in it is missing or was changed.
    """
    folder = folder_of(config)
    try:
        if not folder.is_dir():
            _draw_all(config, folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder}: cannot be written ({reason}); give another data root") from error
    return _read_folder(folder)


def folder_of(config: ShapesConfig) -> Path:
    """Where the pictures of `config` lie; the same numbers with another root get the same name."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("root", "max_bad")}
    return Path(config.root) / fingerprint({**settings, "drawing": DRAWING})


def _read_folder(folder: Path) -> Collection:
    index = folder / "captions.jsonl"
    again = f"delete the folder {folder} and it is drawn anew"
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
        except (TypeError, KeyError) as error:
            raise UserError(f"{index}: line {number} is not a scene ({error}); {again}") from None
        if sizes.get(name) != expected:
            raise UserError(f"{record.path}: missing or not the file that was drawn; {again}")
        records.append(record)
    if len(records) != len(sizes):
        raise UserError(f"{index}: {len(records)} scenes for {len(sizes)} pictures; {again}")
    return Collection(records, [])


def _draw_all(config: ShapesConfig, folder: Path) -> None:
    """Draw everything beside `folder`, then give it its name. Of two at once the first to finish is kept."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):  # its owner may be clearing it away just now
            newest = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if time.time() - newest > FORGOTTEN:
                shutil.rmtree(left, ignore_errors=True)
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
    """Draw each image into `folder` and give its line of `captions.jsonl`."""
    counts = (config.train, config.val, config.test, config.unseen)
    with tqdm(total=sum(counts), desc="drawing shapes", unit=" images", disable=None) as bar:
        for start, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
            (folder / split).mkdir()
            for number in range(count):
                name = f"{split}/{number:06d}.png"
                image, line = draw(config, split, number)
                image.save(folder / name, compress_level=1)  # the noise hardly compresses at any level
                place = {"image_id": start * IDS + number, "file_name": name, "split": split}
                yield {**place, **line, "bytes": (folder / name).stat().st_size}
                bar.update()


def draw(config: ShapesConfig, split: str, number: int) -> tuple[Image.Image, dict[str, Any]]:
    """Image `number` of a split, RGB, `config.size` square; and its captions and scene as JSON."""
    dice = Dice(f"{config.seed}/{split}/{number}")
    unseen = HELD_OUT[number % len(HELD_OUT)] if split == "test_unseen" else None
    scene = invent(dice, unseen)
    marks = _place(scene, dice)
    image = _paint(scene, marks, dice, size=config.size)
    # last, so that the pictures are the same for every caption length
    texts = captions(scene) if config.words is None else long_captions(scene, dice, words=config.words)
    pixels = [
        {
            "thing": mark.thing,
            **{key: round(getattr(mark, key) * config.size, 2) for key in ("x", "y", "radius")},
        }
        for mark in marks
    ]
    return image, {"captions": texts, "scene": {**scene.as_json(), "marks": pixels, "unseen": unseen}}


class Mark(NamedTuple):
    """One shape to draw: its thing's index, centre and radius as shares of the width, turn in radians."""

    thing: int
    x: float
    y: float
    radius: float
    turn: float


def _place(scene: Scene, dice: Dice) -> list[Mark]:
    """Marks in drawing order, whole inside the picture: what is behind comes first."""
    if scene.kind == "count":
        return _scatter(scene, dice)
    if scene.kind == "beside":
        return _beside(scene, dice)
    return _overlap(scene, dice)


def _mark(scene: Scene, thing: int, dice: Dice) -> Mark:
    """A mark with its size and turn, anywhere inside the picture."""
    radius = dice.between(*RADIUS[scene.things[thing].size])
    edge = _edge(radius)
    x, y = dice.between(edge, 1 - edge), dice.between(edge, 1 - edge)
    return Mark(thing, x, y, radius, math.radians(dice.between(-10, 10)))


def _edge(radius: float) -> float:
    """The least distance of a centre from the picture's edge."""
    return REACH * radius + 0.015


def _scatter(scene: Scene, dice: Dice) -> list[Mark]:
    """Equal shapes that don't touch: small ones anywhere, several large ones each in a quarter of its own."""
    thing = scene.things[0]
    if thing.number > 1 and thing.size == "large":
        quarters = dice.deal([(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)], thing.number)
        marks = []
        for left, top in quarters:
            mark = _mark(scene, 0, dice)
            edge = _edge(mark.radius)
            x, y = (corner + dice.between(edge, 0.5 - edge) for corner in (left, top))
            marks.append(mark._replace(x=x, y=y))
        return marks
    while True:
        marks = [_mark(scene, 0, dice) for _ in range(thing.number)]
        pairs = [(a, b) for i, a in enumerate(marks) for b in marks[:i]]
        if all(math.dist(a[1:3], b[1:3]) > REACH * (a.radius + b.radius) + 0.03 for a, b in pairs):
            return marks


def _beside(scene: Scene, dice: Dice) -> list[Mark]:
    """Two shapes with a gap between them, the second at most 17 degrees off the axis of the relation."""
    while True:
        first, second = (_mark(scene, thing, dice) for thing in (0, 1))
        near, far = _edge(first.radius), 1 - _edge(second.radius)
        least = REACH * (first.radius + second.radius) + 0.03
        along = dice.between(least, far - near)
        start = dice.between(near, far - along)
        across = first.y if scene.relation == "left" else first.x
        aside = across + dice.between(-0.3, 0.3) * along
        if not _edge(second.radius) <= aside <= 1 - _edge(second.radius):
            continue
        if scene.relation == "left":
            return [first._replace(x=start, y=across), second._replace(x=start + along, y=aside)]
        return [first._replace(x=across, y=start), second._replace(x=aside, y=start + along)]


def _overlap(scene: Scene, dice: Dice) -> list[Mark]:
    """The first shape covers 15 to 40 % of the second, which is drawn before it."""
    while True:
        front, back = (_mark(scene, thing, dice) for thing in (0, 1))
        angle, share = dice.between(0, 2 * math.pi), dice.between(0.5, 0.85)
        distance = share * (front.radius + back.radius)
        front = front._replace(x=back.x + distance * math.cos(angle), y=back.y + distance * math.sin(angle))
        edge = _edge(front.radius)
        if not all(edge <= value <= 1 - edge for value in (front.x, front.y)):
            continue
        covers, covered = (_mask(scene, mark) for mark in (front, back))
        if 0.15 <= (covers & covered).sum() / covered.sum() <= 0.40:
            return [back, front]


def _mask(scene: Scene, mark: Mark, size: int = 64) -> np.ndarray:
    """The pixels of a mark, (size, size) bool."""
    image = Image.new("1", (size, size))
    _fill(ImageDraw.Draw(image), scene.things[mark.thing].shape, mark, size, 1)
    return np.asarray(image)


def _paint(scene: Scene, marks: list[Mark], dice: Dice, *, size: int) -> Image.Image:
    """The picture: a light grey ground, the marks with shades of their own, a little grain."""
    grey = dice.between(166, 186)
    ground = tuple(round(grey + dice.between(-6, 6)) for _ in range(3))
    image = Image.new("RGB", (size * FINE, size * FINE), ground)
    canvas = ImageDraw.Draw(image)
    for mark in marks:
        thing = scene.things[mark.thing]
        light = dice.between(-14, 14)
        shade = tuple(
            round(min(255, max(0, base + light + dice.between(-8, 8)))) for base in RGB[thing.colour]
        )
        _fill(canvas, thing.shape, mark, size * FINE, shade)
    pixels = np.asarray(image.reduce(FINE), dtype=np.int16)  # (S, S, 3)
    grain = np.frombuffer(dice.bytes(size * size), dtype=np.uint8).reshape(size, size, 1)
    return Image.fromarray(np.clip(pixels + (grain % 13).astype(np.int16) - 6, 0, 255).astype(np.uint8))


def _fill(canvas: ImageDraw.ImageDraw, shape: str, mark: Mark, size: int, fill: Any) -> None:
    """Fill a shape's outline on a canvas `size` pixels wide."""
    x, y, radius = (value * size for value in (mark.x, mark.y, mark.radius))
    if shape == "circle":
        reach = 0.92 * radius
        canvas.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)
        return
    cos, sin = math.cos(mark.turn) * radius, math.sin(mark.turn) * radius
    canvas.polygon([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in OUTLINES[shape]], fill=fill)


def _ring(corners: int, *radii: float) -> list[tuple[float, float]]:
    """Points on circles of the given radii by turns, the first at the top (y goes down)."""
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [
        (radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a))
        for i, a in enumerate(angles)
    ]


def _cross(arm: float, half: float) -> list[tuple[float, float]]:
    """The twelve corners of an upright cross."""
    quarter = [(half, -arm), (half, -half), (arm, -half)]
    corners = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


OUTLINES = {
    "square": [(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)],
    "triangle": _ring(3, REACH),
    "star": _ring(10, REACH, 0.46),
    "cross": _cross(1.02, 0.34),
}
"""Corners in radii, none further than `REACH` from the centre."""
