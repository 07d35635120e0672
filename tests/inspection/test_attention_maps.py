"""Attention maps against step-by-step decoding, and their position on the photo."""

import numpy as np
import pytest
import torch
from PIL import Image

from captioning.errors import UserError
from captioning.images.preprocessing import Preprocessing, preprocess
from captioning.inspection.attention_figure import draw_attention
from captioning.inspection.attention_maps import (
    Attention,
    attention_maps,
    project_box,
    project_map,
    visible_box,
)
from captioning.models.decoders import unroll
from tests.helpers.models import ATTENDING, GRID, PREPROCESSING, tiny_captioner

WAYS = [
    Preprocessing(size=70, resize=resize, crop=crop, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
    for resize in ("stretch", "short_side", "long_side")
    for crop in (1.0, 0.8)
]
SIZES = [(131, 89), (61, 97), (211, 53)]


@pytest.mark.parametrize("kind", ATTENDING)
def test_attention_is_that_of_reading_the_words_one_by_one(kind):
    captioner = tiny_captioner(kind)
    pixels = torch.randn(
        3, PREPROCESSING.size, PREPROCESSING.size, generator=torch.Generator().manual_seed(5)
    )
    words = ["the", "café", "dog", "on"]
    attention = attention_maps(captioner, pixels, words)
    assert attention.weights.shape == (4, GRID * GRID) and attention.boxes is None
    maps = np.stack([attention.map(word) for word in range(4)])
    vocabulary = captioner.vocabulary
    read = torch.tensor([[[vocabulary.start, *(vocabulary.ids[word] for word in words[:-1])]]])
    with torch.no_grad():
        memory = captioner.decoder.encode_memory(captioner.encoder(pixels[None]))
        stepped = unroll(captioner.decoder, read, memory).attention
    assert stepped is not None
    for row in range(GRID):
        for column in range(GRID):
            expected = stepped[0, 0, :, GRID * row + column].numpy()
            np.testing.assert_allclose(maps[:, row, column], expected, atol=1e-6)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
    assert np.ptp(maps) > 0.01


def test_words_it_does_not_know():
    pixels = torch.zeros(3, PREPROCESSING.size, PREPROCESSING.size)
    with pytest.raises(UserError, match="'zebra' is not in the model's vocabulary"):
        attention_maps(tiny_captioner(), pixels, ["a", "zebra"])
    assert len(attention_maps(tiny_captioner(), pixels, []).weights) == 0


@pytest.mark.parametrize("preprocessing", WAYS, ids=lambda way: f"{way.resize} {way.crop}")
@pytest.mark.parametrize("size", SIZES)
def test_the_box_is_what_the_encoder_sees(preprocessing, size):
    """A photo whose colour is its place, prepared: each pixel tells where it came from."""
    width, height = size
    rows, columns = np.mgrid[:height, :width] + 0.5
    place = np.stack([columns / width, rows / height, np.ones_like(rows)], -1)
    pixels = preprocess(Image.fromarray((255 * place).round().astype(np.uint8)), preprocessing).numpy()
    left, top, right, bottom = visible_box(width, height, preprocessing)
    centres = (np.arange(preprocessing.size) + 0.5) / preprocessing.size
    inside = pixels[2] > 0.99  # the rest is what was filled in
    assert inside.any()
    for channel, (low, high), length in ((0, (left, right), width), (1, (top, bottom), height)):
        expected = np.broadcast_to(low + centres * (high - low), pixels[0].shape)
        expected = expected if channel == 0 else expected.T
        close = 3.5 * max(
            1, (high - low) / preprocessing.size
        )  # the edges, where nothing lies to interpolate with
        assert np.abs(pixels[channel] * length - expected)[inside].max() < close
        assert np.abs(pixels[channel] * length - expected)[inside].mean() < close / 4


@pytest.mark.parametrize("preprocessing", WAYS, ids=lambda way: f"{way.resize} {way.crop}")
@pytest.mark.parametrize("size", SIZES)
def test_light_falls_where_the_region_lies(preprocessing, size):
    """A photo that is white in one place: the region that sees the most of it is lit there and not elsewhere."""
    width, height = size
    photo = np.zeros((height, width, 3), np.uint8)
    y, x = round(0.4 * height), round(0.55 * width)
    photo[y - 8 : y + 8, x - 8 : x + 8] = 255
    pixels = preprocess(Image.fromarray(photo), preprocessing)[:1]
    weights = torch.nn.functional.adaptive_avg_pool2d(pixels, 7)[0].numpy()  # (7, 7): what each region sees
    light = project_map(weights / weights.sum(), size, preprocessing)
    assert light.shape == (height, width) and light.min() >= 0 and light.max() <= 1
    total = light.sum()
    left, top, right, bottom = visible_box(width, height, preprocessing)
    cell = np.array([(bottom - top) / 7, (right - left) / 7])
    centre = (
        np.array([(light.sum(1) * np.arange(height)).sum(), (light.sum(0) * np.arange(width)).sum()]) / total
    )
    assert (np.abs(centre - [y, x]) < cell).all()
    assert light[y, x] > 0.5 > 4 * np.median(light)


def test_an_even_map_lights_all_that_is_seen():
    even = np.full((5, 5), 0.04)
    light = project_map(even, (60, 40), Preprocessing(size=20, resize="short_side", crop=0.5))
    assert light[12:28, 22:38].min() > 0.99
    assert light[:8].max() == light[:, :18].max() == 0


def test_drawing(tmp_path):
    attention = Attention(np.random.default_rng(0).dirichlet(np.ones(25), 7), None)
    image = Image.new("RGB", (67, 41), "orange")
    words = ["a", "$", "café", "_{x}", "_x^2", "\\alpha", "end"]
    path = tmp_path / "new" / "x.png"
    draw_attention(image, words, attention, path, preprocessing=PREPROCESSING)
    drawn = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert ((drawn == (255, 165, 0)).all(1)).sum() > 1000  # the photo itself
    assert len(np.unique(drawn, axis=0)) > 100


def test_the_map_of_boxes_is_the_largest_weight_at_each_place():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 1.0], [0.9, 0.9, 0.9, 0.9]])
    attention = Attention(np.array([[0.2, 0.7, 0.1], [0.6, 0.1, 0.3]]), boxes)
    first, second = attention.map(0), attention.map(1)
    side = len(first)
    assert first.shape == (side, side)
    for x, y, expected in (
        (0.1, 0.1, (0.2, 0.6)),
        (0.4, 0.4, (0.7, 0.6)),
        (0.6, 0.9, (0.7, 0.1)),
        (0.8, 0.2, (0, 0)),
    ):
        place = round(y * side), round(x * side)
        np.testing.assert_allclose((first[place], second[place]), expected, rtol=1e-6)


def test_a_box_lies_on_the_photo_where_the_encoder_saw_it():
    """The middle of the encoder's square is the middle of the photo, however it is fitted."""
    for preprocessing in WAYS:
        for width, height in SIZES:
            left, top, right, bottom = project_box(np.array([0.5, 0.5, 1, 1]), (width, height), preprocessing)
            assert (left, top) == pytest.approx((width / 2, height / 2))
            assert (right, bottom) == pytest.approx(visible_box(width, height, preprocessing)[2:])


def test_the_strongest_box_is_framed(tmp_path):
    attention = Attention(
        np.array([[0.1, 0.9]], np.float32), np.array([[0, 0, 0.2, 0.2], [0.3, 0.3, 0.9, 0.8]])
    )
    draw_attention(
        Image.new("RGB", (200, 200), "white"),
        ["dog"],
        attention,
        tmp_path / "x.png",
        preprocessing=Preprocessing(),
    )
    drawn = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).astype(int)
    frame = (np.abs(drawn - (255, 127, 14)).sum(-1) < 30).nonzero()
    assert len(frame[0]) > 100
    width, height = np.ptp(frame[1]), np.ptp(frame[0])
    assert width / height == pytest.approx(0.6 / 0.5, rel=0.05)
