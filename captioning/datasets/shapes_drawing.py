"""Positions and pixels of a `shapes` scene: where its shapes lie, and their drawing as an image."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from captioning.datasets.shapes_grammar import Dice, Scene

SUPERSAMPLING = 4  # drawn this many times larger and averaged down, for smooth edges
MAX_EXTENT = 1.12  # greatest distance of an outline from its centre, in radii

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
RADIUS = {"small": (0.12, 0.135), "large": (0.19, 0.205)}  # shares of the image's width


class Mark(NamedTuple):
    """A shape to draw: index of its thing, centre and radius as shares of the image's width, angle in radians."""

    thing: int
    x: float
    y: float
    radius: float
    angle: float


def draw_scene(scene: Scene, dice: Dice, *, size: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """The scene as an RGB image, (size, size), and its marks in pixels, in drawing order."""
    marks = _place(scene, dice)
    image = _paint(scene, marks, dice, size=size)
    return image, [
        {"thing": mark.thing, **{key: round(getattr(mark, key) * size, 2) for key in ("x", "y", "radius")}}
        for mark in marks
    ]


def _place(scene: Scene, dice: Dice) -> list[Mark]:
    """Marks in drawing order (what lies behind comes first), all inside the image."""
    if scene.kind == "count":
        return _place_group(scene, dice)
    if scene.kind == "beside":
        return _place_beside(scene, dice)
    return _place_overlapping(scene, dice)


def _random_mark(scene: Scene, thing: int, dice: Dice) -> Mark:
    """A mark with the size of its thing, anywhere inside the image."""
    radius = dice.between(*RADIUS[scene.things[thing].size])
    margin = _margin(radius)
    x, y = dice.between(margin, 1 - margin), dice.between(margin, 1 - margin)
    return Mark(thing, x, y, radius, math.radians(dice.between(-10, 10)))


def _margin(radius: float) -> float:
    """Smallest distance of a centre from the image's edge."""
    return MAX_EXTENT * radius + 0.015


def _place_group(scene: Scene, dice: Dice) -> list[Mark]:
    """Equal shapes that don't touch: small ones anywhere, several large ones in a quarter each."""
    thing = scene.things[0]
    if thing.number > 1 and thing.size == "large":
        quarters = dice.deal([(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)], thing.number)
        marks = []
        for left, top in quarters:
            mark = _random_mark(scene, 0, dice)
            margin = _margin(mark.radius)
            x, y = (corner + dice.between(margin, 0.5 - margin) for corner in (left, top))
            marks.append(mark._replace(x=x, y=y))
        return marks
    while True:
        marks = [_random_mark(scene, 0, dice) for _ in range(thing.number)]
        pairs = [(a, b) for i, a in enumerate(marks) for b in marks[:i]]
        if all(math.dist(a[1:3], b[1:3]) > MAX_EXTENT * (a.radius + b.radius) + 0.03 for a, b in pairs):
            return marks


def _place_beside(scene: Scene, dice: Dice) -> list[Mark]:
    """Two shapes with a gap between them, the second at most 17 degrees off the axis of the relation."""
    while True:
        first, second = (_random_mark(scene, thing, dice) for thing in (0, 1))
        low, high = _margin(first.radius), 1 - _margin(second.radius)
        min_distance = MAX_EXTENT * (first.radius + second.radius) + 0.03
        distance = dice.between(min_distance, high - low)
        start = dice.between(low, high - distance)
        first_across = first.y if scene.relation == "left" else first.x
        second_across = first_across + dice.between(-0.3, 0.3) * distance
        if not _margin(second.radius) <= second_across <= 1 - _margin(second.radius):
            continue
        if scene.relation == "left":
            return [
                first._replace(x=start, y=first_across),
                second._replace(x=start + distance, y=second_across),
            ]
        return [
            first._replace(x=first_across, y=start),
            second._replace(x=second_across, y=start + distance),
        ]


def _place_overlapping(scene: Scene, dice: Dice) -> list[Mark]:
    """The first shape covers 15 to 40 % of the second, which is drawn before it."""
    while True:
        front, back = (_random_mark(scene, thing, dice) for thing in (0, 1))
        angle, share = dice.between(0, 2 * math.pi), dice.between(0.5, 0.85)
        distance = share * (front.radius + back.radius)
        front = front._replace(x=back.x + distance * math.cos(angle), y=back.y + distance * math.sin(angle))
        margin = _margin(front.radius)
        if not all(margin <= value <= 1 - margin for value in (front.x, front.y)):
            continue
        front_mask, back_mask = (_mask(scene, mark) for mark in (front, back))
        if 0.15 <= (front_mask & back_mask).sum() / back_mask.sum() <= 0.40:
            return [back, front]


def _mask(scene: Scene, mark: Mark, size: int = 64) -> np.ndarray:
    """The pixels of a mark, (size, size) bool."""
    image = Image.new("1", (size, size))
    _fill(ImageDraw.Draw(image), scene.things[mark.thing].shape, mark, size, 1)
    return np.asarray(image)


def _paint(scene: Scene, marks: list[Mark], dice: Dice, *, size: int) -> Image.Image:
    """The image: a light grey background, the marks in random shades of their colours, and some noise."""
    grey = dice.between(166, 186)
    background = tuple(round(grey + dice.between(-6, 6)) for _ in range(3))
    image = Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING), background)
    canvas = ImageDraw.Draw(image)
    for mark in marks:
        thing = scene.things[mark.thing]
        brightness = dice.between(-14, 14)
        shade = tuple(
            round(min(255, max(0, base + brightness + dice.between(-8, 8)))) for base in RGB[thing.colour]
        )
        _fill(canvas, thing.shape, mark, size * SUPERSAMPLING, shade)
    pixels = np.asarray(image.reduce(SUPERSAMPLING), dtype=np.int16)  # (size, size, 3)
    noise = np.frombuffer(dice.bytes(size * size), dtype=np.uint8).reshape(size, size, 1)
    return Image.fromarray(np.clip(pixels + (noise % 13).astype(np.int16) - 6, 0, 255).astype(np.uint8))


def _fill(canvas: ImageDraw.ImageDraw, shape: str, mark: Mark, size: int, colour: Any) -> None:
    """Fill a shape's outline on a canvas `size` pixels wide."""
    x, y, radius = (value * size for value in (mark.x, mark.y, mark.radius))
    if shape == "circle":
        extent = 0.92 * radius
        canvas.ellipse((x - extent, y - extent, x + extent, y + extent), fill=colour)
        return
    cos, sin = math.cos(mark.angle) * radius, math.sin(mark.angle) * radius
    corners = [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in OUTLINES[shape]]
    canvas.polygon(corners, fill=colour)


def _polygon(corners: int, *radii: float) -> list[tuple[float, float]]:
    """Corners at equal angles, at the given radii by turns, the first at the top (y points down)."""
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [
        (radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a))
        for i, a in enumerate(angles)
    ]


def _cross(arm: float, half_width: float) -> list[tuple[float, float]]:
    """The twelve corners of an upright cross."""
    quarter = [(half_width, -arm), (half_width, -half_width), (arm, -half_width)]
    corners = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


OUTLINES = {
    "square": [(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)],
    "triangle": _polygon(3, MAX_EXTENT),
    "star": _polygon(10, MAX_EXTENT, 0.46),
    "cross": _cross(1.02, 0.34),
}
"""Corners in radii, at most `MAX_EXTENT` from the centre."""
