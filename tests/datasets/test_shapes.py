"""The `shapes` data set: what its captions claim is read back from them, and held against scene and pixels.

The reader here shares no code with the grammar: it takes sentences apart with regular expressions.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from captioning.datasets import shapes
from captioning.datasets.shapes import ShapesConfig, draw
from captioning.datasets.shapes_drawing import RGB
from captioning.datasets.shapes_grammar import HELD_OUT, NAMES, Dice, dependency, long_captions, random_scene
from captioning.errors import UserError
from captioning.text.tokenizer import tokenize
from captioning.utils.files import fingerprint

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]
SHAPES = ["circle", "square", "triangle", "star", "cross"]
THING = r"(small|large) (\w+) (circle|square|triangle|star|cross)(?:e?s)?"
A = rf"a {THING}"
FIRST_THEN_SECOND = {  # the first thing named is left of, above, in front of the second
    "left": [
        rf"{A} is to the left of {A}",
        rf"there is {A} on the left and {A} on the right",
    ],
    "above": [rf"{A} is above {A}", rf"there is {A} at the top and {A} at the bottom"],
    "front": [rf"{A} is in front of {A}", rf"there is {A} that overlaps {A} behind it"],
}
SECOND_THEN_FIRST = {
    "left": [
        rf"{A} is to the right of {A}",
        rf"the picture shows {A} with {A} to its left",
        rf"to the left of {A} there is {A}",
    ],
    "above": [
        rf"{A} is below {A}",
        rf"the picture shows {A} with {A} above it",
        rf"above {A} there is {A}",
    ],
    "front": [
        rf"{A} is behind {A}",
        rf"the picture shows {A} partly hidden by {A}",
        rf"in front of {A} there is {A}",
    ],
}
COUNTS = [
    rf"there (is|are) (\w+) {THING}",
    rf"the picture shows() (\w+) {THING}",
    rf"()(\w+) {THING} can be seen",
    rf"you can count ()(\w+) {THING} here",
    rf"()(all \w+|both) shapes are {THING}",
    rf"()(the only) shape is a {THING}",
]


def sentences(caption: str) -> list[str]:
    """Lower-cased sentences without their full stops; every one must begin with a capital."""
    assert caption.endswith(".") and "  " not in caption
    parts = caption[:-1].split(". ")
    assert all(part[0].isupper() for part in parts), caption
    return [part[0].lower() + part[1:] for part in parts]


def drawn(scene: dict) -> list[tuple[str, str, str]]:
    """(size, colour, shape) of each shape in the picture, in drawing order."""
    things = [(thing["size"], thing["colour"], thing["shape"]) for thing in scene["things"]]
    return [things[mark["thing"]] for mark in scene["marks"]]


def holds(relation: str, first: dict, second: dict, scene: dict) -> bool:
    """Whether the geometry of two marks says what the relation's word says."""
    if relation == "left":
        return second["x"] - first["x"] > first["radius"] + second["radius"]
    if relation == "above":
        return second["y"] - first["y"] > first["radius"] + second["radius"]
    distance = float(np.hypot(first["x"] - second["x"], first["y"] - second["y"]))
    return scene["marks"].index(first) > scene["marks"].index(second) and distance < (
        first["radius"] + second["radius"]
    )


def is_true(sentence: str, scene: dict) -> bool:
    """Whether a sentence of the grammar is true of a scene; fails on a sentence it cannot read."""
    shown = drawn(scene)
    kinds = Counter(shown)
    for order, patterns in ((1, FIRST_THEN_SECOND), (-1, SECOND_THEN_FIRST)):
        for relation, alternatives in patterns.items():
            for pattern in alternatives:
                if match := re.fullmatch(pattern, sentence):
                    a, b, c, d, e, f = match.groups()
                    named = [(a, b, c), (d, e, f)][::order]
                    if kinds != Counter(named):
                        return False
                    first, second = (scene["marks"][shown.index(thing)] for thing in named)
                    return holds(relation, first, second, scene)
    for pattern in COUNTS:
        if match := re.fullmatch(pattern, sentence):
            verb, number, *thing = match.groups()
            stated = {"both": 2, "the only": 1, **NUMBERS}[number.removeprefix("all ")]
            plural = sentence.split(" ".join(thing), 1)[1][:1] in ("s", "e")
            agrees = plural == (stated > 1) and verb in ("", "is" if stated == 1 else "are")
            return agrees and kinds == Counter({tuple(thing): stated})
    if match := re.fullmatch(r"there (is|are) (\w+) shapes? in all", sentence):
        return NUMBERS[match[2]] == len(shown) and ("shapes" in sentence, match[1]) in (
            (True, "are"),
            (False, "is"),
        )
    if match := re.fullmatch(r"(the|every) (?:(\w+) )?shape is (?:an? )?(\w+)", sentence):
        which, colour, value = match.groups()
        meant = [thing for thing in shown if colour in (None, thing[1])]
        assert which == "every" or len(meant) == 1, f"{sentence!r} does not say which"
        return len(meant) > 0 and all(value in thing for thing in meant)
    if match := re.fullmatch(r"one shape is (\w+) and the other is (\w+)", sentence):
        return sorted(match.groups()) == sorted(thing[1] for thing in shown) and len(shown) == 2
    if match := re.fullmatch(r"no shape is (?:an? )?(\w+)", sentence):
        assert match[1] in ("small", "large", *COLOURS, *SHAPES)
        return not any(match[1] in thing for thing in shown)
    if match := re.fullmatch(r"nobody can find (an?) (\w+) (\w+) in this picture", sentence):
        assert match[2] in COLOURS and match[3] in SHAPES
        article_fits = (match[1] == "an") == (match[2][0] in "aeiou")
        return article_fits and not any(thing[1:] == match.groups()[1:] for thing in shown)
    if match := re.fullmatch(r"there is no (\w+) (\w+)", sentence):
        assert match[1] in COLOURS and match[2] in SHAPES
        return not any(thing[1:] == match.groups() for thing in shown)
    raise AssertionError(f"not a sentence of the grammar: {sentence!r}")


def combinations(scene: dict) -> set[tuple[str, str]]:
    """(value, shape) for colours, places and numbers, from the marks and not from the scene's own account."""
    shown = drawn(scene)
    found = {(colour, shape) for _, colour, shape in shown}
    if scene["kind"] == "count":
        return found | {(["one", "two", "three", "four"][len(shown) - 1], shown[0][2])}
    (a, shape_a), (b, shape_b) = zip(scene["marks"], (thing[2] for thing in shown), strict=True)
    if scene["kind"] == "overlap":  # b is drawn over a
        return found | {("behind", shape_a), ("front", shape_b)}
    if abs(a["x"] - b["x"]) > abs(a["y"] - b["y"]):
        first, second = ("left", "right") if a["x"] < b["x"] else ("right", "left")
    else:
        first, second = ("above", "below") if a["y"] < b["y"] else ("below", "above")
    return found | {(first, shape_a), (second, shape_b)}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShapesConfig, list[dict]]:
    """The default data set, drawn once, and the lines of its captions.jsonl."""
    config = ShapesConfig(root=str(tmp_path_factory.mktemp("shapes")))
    config.load()
    index = config.folder / "captions.jsonl"
    return config, [json.loads(line) for line in index.read_text().splitlines()]


def test_checker_refuses_false_sentences(everything):
    """The checker itself can say no: each sentence is false of most other scenes."""
    _, lines = everything
    train = lines[:200]
    verdicts = [
        is_true(sentences(caption)[0], other["scene"])
        for line, other in itertools.pairwise(train)
        for caption in line["captions"]
    ]
    assert np.mean(verdicts) < 0.03


def test_every_ordinary_caption_is_true(everything):
    _, lines = everything
    for line in lines:
        assert len(set(line["captions"])) == 5
        for caption in line["captions"]:
            (sentence,) = sentences(caption)
            assert is_true(sentence, line["scene"]), (line["file_name"], caption)


def test_kinds_numbers_and_words_are_all_there(everything):
    """Every attribute value, and every word of any split, is in the training captions."""
    _, lines = everything
    words = {
        split: {
            word
            for line in lines
            if line["split"] == split
            for text in line["captions"]
            for word in tokenize(text)
        }
        for split in shapes.SPLITS
    }
    assert words["test_unseen"] <= words["train"] and words["val"] | words["test"] <= words["train"]
    assert {*COLOURS, *SHAPES, *NUMBERS, "small", "large", "left", "right", "above", "below"} <= words[
        "train"
    ]
    kinds = Counter(line["scene"]["kind"] for line in lines if line["split"] == "train")
    assert kinds["count"] > 400 and kinds["beside"] > 700 and kinds["overlap"] > 200
    numbers = Counter(len(line["scene"]["marks"]) for line in lines if line["scene"]["kind"] == "count")
    assert set(numbers) == {1, 2, 3, 4}


def test_held_out_combinations_are_in_no_ordinary_split(everything):
    _, lines = everything
    seen: set[tuple[str, str]] = set()
    for line in lines:
        found = combinations(line["scene"])
        if line["split"] == "test_unseen":
            assert found & set(HELD_OUT) == {tuple(line["scene"]["unseen"])}
        else:
            assert not found & set(HELD_OUT), line["file_name"]
            assert line["scene"]["unseen"] is None
            if line["split"] == "train":
                seen |= found
    unseen = Counter(tuple(line["scene"]["unseen"]) for line in lines if line["split"] == "test_unseen")
    assert set(unseen) == set(HELD_OUT) and set(unseen.values()) == {20}
    # each half of a held-out combination is known from training, with other partners; all others are there
    assert {value for value, _ in HELD_OUT} <= {value for value, _ in seen}
    places = [*COLOURS, *NUMBERS, "left", "right", "above", "below", "front", "behind"]
    assert seen == {(value, shape) for value in places for shape in SHAPES} - set(HELD_OUT)


def test_pixels_show_what_the_scene_says(everything):
    """The pixels around a mark's centre have its colour; the number of coloured pixels fits the sizes."""
    config, lines = everything
    folder = config.folder
    for line in lines[::7]:
        pixels = np.asarray(Image.open(folder / line["file_name"]).convert("RGB")).astype(float)
        assert pixels.shape == (64, 64, 3)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        inked = np.abs(pixels - ground).max(-1) > 24
        assert not inked[[0, -1]].any() and not inked[:, [0, -1]].any(), "a shape is cut by the edge"
        marks = line["scene"]["marks"]
        for number, (mark, (size, colour, _)) in enumerate(zip(marks, drawn(line["scene"]), strict=True)):
            assert 7.6 < mark["radius"] < 8.7 if size == "small" else 12.1 < mark["radius"] < 13.2
            y, x = np.mgrid[:64, :64] + 0.5
            centre = np.hypot(x - mark["x"], y - mark["y"]) < 2
            for other in marks[number + 1 :]:  # drawn later, may cover it
                centre &= np.hypot(x - other["x"], y - other["y"]) > 1.2 * other["radius"]
            if centre.any():
                mean = pixels[centre].mean(0)
                nearest = min(RGB, key=lambda name: np.abs(mean - RGB[name]).sum())
                assert nearest == colour, (line["file_name"], mark, mean)


def test_overlaps_leave_enough_of_what_is_behind(everything):
    """Of what is behind, at least half shows, and the two touch: counted in pixels by colour."""
    config, lines = everything
    overlaps = [line for line in lines if line["scene"]["kind"] == "overlap"]
    for line in overlaps[::5]:
        pixels = np.asarray(Image.open(config.folder / line["file_name"])).astype(float)
        colour = RGB[drawn(line["scene"])[0][1]]
        radius = line["scene"]["marks"][0]["radius"]
        shown = (np.abs(pixels - colour).max(-1) < 45).sum() / radius**2
        assert shown > 0.4, line["file_name"]  # the least whole area of any outline is 1.3 (triangle 1.6)


def test_what_is_in_front_covers_what_is_behind(everything):
    """Where two circles or squares share pixels, those have the colour of the one said to be in front."""
    config, lines = everything
    checked = 0
    for line in lines:
        scene = line["scene"]
        if scene["kind"] != "overlap" or {thing["shape"] for thing in scene["things"]} - {"circle", "square"}:
            continue
        pixels = np.asarray(Image.open(config.folder / line["file_name"])).astype(float)
        y, x = np.mgrid[:64, :64] + 0.5
        insides = [np.hypot(x - m["x"], y - m["y"]) < 0.76 * m["radius"] - 1 for m in scene["marks"]]
        shared = insides[0] & insides[1]
        if shared.sum() >= 3:
            mean = pixels[shared].mean(0)
            named = re.fullmatch(rf"{A} is in front of {A}", sentences(line["captions"][0])[0])
            assert named is not None
            assert min(RGB, key=lambda name: np.abs(mean - RGB[name]).sum()) == named[2]
            checked += 1
    assert checked > 20


def test_relations_are_clear(everything):
    """Left/right scenes are at most 20 degrees off the horizontal; above/below, off the vertical."""
    _, lines = everything
    angles = []
    for line in lines:
        if line["scene"]["kind"] == "beside":
            a, b = line["scene"]["marks"]
            along, across = abs(a["x"] - b["x"]), abs(a["y"] - b["y"])
            if line["scene"]["relation"] == "above":
                along, across = across, along
            angles.append(np.degrees(np.arctan2(across, along)))
    assert 10 < max(angles) < 20


def test_same_config_same_bytes(tmp_path):
    roots = [str(tmp_path / name) for name in "ab"]
    contents = []
    for root in roots:
        config = ShapesConfig(root=root, train=11, val=3, test=5, unseen=7, seed=13)
        config.load()
        folder = config.folder
        assert folder.name == dataclasses.replace(config, root="elsewhere").folder.name
        contents.append(
            {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        )
    assert contents[0] == contents[1] and len(contents[0]) == 1 + 11 + 3 + 5 + 7


def test_an_image_depends_on_seed_split_and_number_only():
    def pixels(config: ShapesConfig, split: str, number: int) -> bytes:
        return draw(config, split, number)[0].tobytes()

    config = ShapesConfig(train=5)
    same = [dataclasses.replace(config, train=977, val=2), dataclasses.replace(config, words=31)]
    assert all(pixels(other, "val", 3) == pixels(config, "val", 3) for other in same)
    different = {
        pixels(config, "val", 3),
        pixels(config, "val", 4),
        pixels(config, "test", 3),
        pixels(dataclasses.replace(config, seed=1), "val", 3),
    }
    assert len(different) == 4
    large = draw(dataclasses.replace(config, size=128), "val", 3)
    assert large[0].size == (128, 128) and large[1]["captions"] == draw(config, "val", 3)[1]["captions"]


def test_drawing_is_pinned():
    """Pictures and sentences may change only together with `DRAWING`, or old folders are taken for new ones."""
    lines = [
        draw(ShapesConfig(words=words), split, number)
        for words in (None, 8, 61)
        for split in ("train", "test_unseen")
        for number in range(7)
    ]
    texts = fingerprint([line["captions"] for _, line in lines])
    mean = np.mean([np.asarray(image) for image, _ in lines])  # not the bytes: Pillow's versions may differ
    assert (shapes.DRAWING_VERSION, texts) == (2, "9556b0f33a6ef0c0")
    assert mean == pytest.approx(170.235, abs=0.05)


# --- captions of a given length


@pytest.mark.parametrize("words", [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 23, 31, 47, 64, 100, 149, 200])
def test_long_captions_are_true_whole_and_of_the_length_asked_for(words):
    for number in range(12):
        split = ("train", "test_unseen")[number % 2]
        _, line = draw(ShapesConfig(words=words, seed=5), split, number)
        assert len(set(line["captions"])) == 5
        names = set()
        for caption in line["captions"]:
            tokens = tokenize(caption)
            assert abs(len(tokens) - words) <= 2, (len(tokens), caption)
            first, last = dependency(tokens)
            assert first is not None and first == last
            names.add(first)
            opening, *middle, closing = sentences(caption)
            assert tokens.count(first) == 2
            assert re.fullmatch(rf"{first} (looks at this picture|sees .*)", opening), opening
            assert re.fullmatch(rf"(so says|thanks) {first}", closing.lower()), closing
            assert len(set(middle)) == len(middle)
            for sentence in middle:
                assert is_true(sentence, line["scene"]), (caption, sentence)
            if seen := re.fullmatch(rf"{first} sees (an?|\w+) (.*?)( in this picture)?", opening):
                assert not middle
                shown = drawn(line["scene"])
                said = seen[2].split()
                said[-1] = next(shape for shape in SHAPES if said[-1].startswith(shape))
                assert any(set(said) <= set(thing) for thing in shown), caption
                if seen[1] in NUMBERS:
                    assert NUMBERS[seen[1]] == len(shown)
                else:
                    assert (seen[1] == "an") == (said[0] == "orange")
        assert len(names) == 5


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), words=st.integers(5, 200))
def test_long_captions_for_any_length(seed, words):
    dice = Dice(str(seed))
    for caption in long_captions(random_scene(dice), dice, words=words):
        tokens = tokenize(caption)
        assert abs(len(tokens) - words) <= 2
        assert dependency(tokens).first == dependency(tokens).last is not None


def test_names_are_equally_likely_and_tell_nothing_of_the_picture():
    """Every name opens about an eighth of the captions, of each kind of scene as of the others."""
    counts: dict[str, Counter[str]] = {}
    for number in range(1500):
        _, line = draw(ShapesConfig(words=5), "train", number)
        kind = line["scene"]["kind"]
        counts.setdefault(kind, Counter()).update(text.split()[0] for text in line["captions"])
    for kind, names in counts.items():
        assert set(names) == set(NAMES)
        share = np.array(list(names.values())) / sum(names.values())
        assert np.abs(share - 1 / 8).max() < 0.025, (kind, share)


def test_dependency_reads_first_and_last_word():
    def of(text: str) -> tuple[str | None, ...]:
        return tuple(dependency(text.split()))

    assert of("anna looks at this picture so says anna") == ("anna", "anna")
    assert of("Anna looks at this picture . So says Boris .") == ("anna", "boris")
    assert of("anna looks at this picture there is a small") == ("anna", None)
    assert of("there are two small red circles") == (None, None)
    assert of("anna") == ("anna", None)
    assert of("") == of(".") == (None, None)


@pytest.mark.parametrize("words", [4, 201])
def test_lengths_out_of_range_are_refused(words):
    with pytest.raises(ValueError, match=f"5 to 200 words, got {words}"):
        draw(ShapesConfig(words=words), "train", 0)
    with pytest.raises(ValidationError, match="words"):
        TypeAdapter(ShapesConfig).validate_python({"kind": "shapes", "words": words})
    with pytest.raises(ValidationError, match="trian"):
        TypeAdapter(ShapesConfig).validate_python({"kind": "shapes", "trian": 10})


# --- on disk


def small(root: Path, **changes) -> ShapesConfig:
    return dataclasses.replace(ShapesConfig(root=str(root), train=7, val=3, test=2, unseen=5), **changes)


def test_records(tmp_path):
    records, skipped = small(tmp_path).load()
    assert Counter(record.split for record in records) == {"train": 7, "val": 3, "test": 2, "test_unseen": 5}
    assert len({record.image_id for record in records}) == len({record.path for record in records}) == 17
    assert all(isinstance(record.image_id, int) and len(record.captions) == 5 for record in records)
    assert all(Image.open(record.path).size == (64, 64) for record in records)
    assert skipped == []
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert small(tmp_path).load().records == records
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "drawn again"
    more = small(tmp_path, train=11).load().records
    ids = {record.image_id: record.captions for record in more}
    assert all(ids[record.image_id] == record.captions for record in records), "ids moved with the numbers"


def test_changed_files_are_refused(tmp_path):
    config = small(tmp_path)
    records = config.load().records
    folder = config.folder
    victim = Path(records[3].path)
    whole = victim.read_bytes()
    for damage in (whole[:-1], b""):
        victim.write_bytes(damage)
        with pytest.raises(UserError, match=rf"{victim.name}: .*delete the folder"):
            config.load()
    victim.unlink()
    with pytest.raises(UserError, match=rf"{victim.name}: missing"):
        config.load()
    victim.write_bytes(whole)
    assert config.load().records == records
    index = folder / "captions.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="16 scenes for 17 images; delete the folder"):
        config.load()
    index.write_text('{"image_id": 1}\n')
    with pytest.raises(UserError, match="line 1 is not a scene"):
        config.load()
    index.unlink()
    with pytest.raises(UserError, match="no such file"):
        config.load()


def test_a_failure_while_drawing_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        return draw(*arguments)

    monkeypatch.setattr(shapes, "draw", fails)
    with pytest.raises(UserError, match="No space left on device"):
        small(tmp_path / "data").load()
    assert list((tmp_path / "data").iterdir()) == []


def test_a_root_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*cannot be written"):
        small(tmp_path / "file" / "shapes").load()


STUCK = """
import sys, time
from captioning.datasets import shapes
draw = shapes.draw
def stuck(config, split, number):
    if number == 3:
        print("drawing", flush=True)
        time.sleep(600)
    return draw(config, split, number)
shapes.draw = stuck
shapes.ShapesConfig(root=sys.argv[1], train=7, val=3, test=2, unseen=5).load()
"""


def test_a_kill_midway_leaves_nothing_that_is_believed(tmp_path, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", STUCK, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"drawing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".part") and (left / "train" / "000002.png").stat().st_size > 0
    assert not small(tmp_path).folder.exists()
    # another process may be drawing there: it goes only when it has been left alone for long
    assert len(small(tmp_path).load().records) == 17 and left.exists()
    shapes_folder = small(tmp_path).folder
    shapes_folder.rename(tmp_path / "away")
    monkeypatch.setattr(shapes, "ABANDONED_SECONDS", -1)
    small(tmp_path).load()
    assert not left.exists()
    assert {p.name: p.read_bytes() for p in shapes_folder.rglob("*.*")} == {
        p.name: p.read_bytes() for p in (tmp_path / "away").rglob("*.*")
    }


def _read_at_once(config: ShapesConfig, barrier, answers) -> None:
    barrier.wait()
    answers.put(config.load().records)


def test_processes_at_once_agree(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(3), context.Queue()
    config = small(tmp_path, train=41)
    processes = [context.Process(target=_read_at_once, args=(config, barrier, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    records = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert records[0] == records[1] == records[2] and len(records[0]) == 51
    assert [path.name for path in tmp_path.iterdir()] == [config.folder.name]
