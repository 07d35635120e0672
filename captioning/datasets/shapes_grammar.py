"""Random `shapes` scenes and the grammar of their captions.

A scene is one of three kinds; `A` and `B` are a size, a colour and a shape ("small red circle"):

    kind      things                                  `relation`
    count     one group of 1 to 4 equal shapes        ""
    beside    A and B, apart, of different colours    "left" (A is left of B) or "above" (A is above B)
    overlap   A and B, A drawn over part of B         "front" (A is in front of B)

Ordinary captions: every image has all five templates of its kind, so every wording occurs in the references. In
the order of the five captions:

    count     There are three A.
              The picture shows three A.
              Three A can be seen.
              You can count three A here.
              All three shapes are A.          (one: "The only shape is a A."; two: "Both shapes are A.")
    left      A A is to the left of a B.
              A B is to the right of a A.
              There is a A on the left and a B on the right.
              The picture shows a B with a A to its left.
              To the left of a B there is a A.
    above     A A is above a B.
              A B is below a A.
              There is a A at the top and a B at the bottom.
              The picture shows a B with a A above it.
              Above a B there is a A.
    overlap   A A is in front of a B.
              A B is behind a A.
              There is a A that overlaps a B behind it.
              The picture shows a B partly hidden by a A.
              In front of a B there is a A.

Captions of a given length (`long_captions`), 14 words and more:

    NAME looks at this picture.  STATEMENT*  So says NAME.

NAME is one of eight, equally likely and independent of the image; the five captions of an image have five
different names. The statements are true of the scene and in a fixed order, which caption k enters at a different
place: the five ordinary sentences, then the attributes of the shapes, then what the image lacks. No statement
occurs twice in a caption, and none contains a name, so the last word depends on the first sentence alone.
Captions of fewer than 14 words are two sentences:

    NAME sees THINGS [in this picture].  Thanks NAME. | So says NAME.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

SIZES = ("small", "large")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross")
NUMBERS = ("one", "two", "three", "four")
NAMES = ("Anna", "Boris", "Carla", "David", "Elena", "Felix", "Greta", "Henry")

HELD_OUT: tuple[tuple[str, str], ...] = (
    ("red", "cross"),
    ("green", "star"),
    ("blue", "triangle"),
    ("yellow", "square"),
    ("purple", "circle"),
    ("left", "triangle"),
    ("above", "star"),
    ("front", "cross"),
    ("three", "circle"),
    ("four", "square"),
)
"""Combinations of a shape with a colour, a place or a number that only `test_unseen` contains."""

PLACES = {"left": ("left", "right"), "above": ("above", "below"), "front": ("front", "behind")}
"""Places of the first and the second thing in each relation."""

KINDS = ("count",) * 3 + ("beside",) * 5 + ("overlap",) * 2  # frequencies of the kinds, in tenths
MIN_WORDS, MAX_WORDS = 5, 200  # words of a long caption
THREE_SENTENCES = 14  # words that a caption of three sentences needs


class Dice:
    """Random choices, the same on every machine and Python version: made from `Random.random` only."""

    def __init__(self, key: str) -> None:
        self._random = random.Random(key)

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random.random()

    def pick(self, values: Sequence[T]) -> T:
        """One of `values`, with equal probabilities."""
        return values[int(self._random.random() * len(values))]

    def deal(self, values: Sequence[T], count: int) -> list[T]:
        """`count` different values, in random order."""
        remaining = list(values)
        return [remaining.pop(int(self._random.random() * len(remaining))) for _ in range(count)]

    def bytes(self, count: int) -> bytes:
        """`count` random bytes."""
        return self._random.getrandbits(8 * count).to_bytes(count, "little")


class Thing(NamedTuple):
    """A group of `number` equal shapes; `number` is 1 in scenes of two things."""

    size: str
    colour: str
    shape: str
    number: int

    @property
    def noun(self) -> str:
        """The shape's name, in the plural for several."""
        return self.shape if self.number == 1 else self.shape + ("es" if self.shape.endswith("s") else "s")

    @property
    def words(self) -> str:
        """Size, colour and shape."""
        return f"{self.size} {self.colour} {self.noun}"


class Scene(NamedTuple):
    """The content of an image. `relation` is that of `things[0]` to `things[1]`, or "" for one group."""

    kind: str
    relation: str
    things: tuple[Thing, ...]

    def combinations(self) -> set[tuple[str, str]]:
        """All (colour, shape), (place, shape) and (number, shape) pairs of the scene."""
        if self.kind == "count":
            places: tuple[str, ...] = (NUMBERS[self.things[0].number - 1],)
        else:
            places = PLACES[self.relation]
        pairs = zip(self.things, places, strict=True)
        return {(value, thing.shape) for thing, place in pairs for value in (thing.colour, place)}

    def as_json(self) -> dict[str, Any]:
        """The scene as plain lists and dictionaries."""
        things = [thing._asdict() for thing in self.things]
        return {"kind": self.kind, "relation": self.relation, "things": things}


def random_scene(dice: Dice, unseen: tuple[str, str] | None = None) -> Scene:
    """A random scene without held-out combinations, or with `unseen` as its only one."""
    required = {unseen} if unseen else set()
    while True:
        kind = dice.pick(KINDS)
        things = tuple(
            Thing(
                dice.pick(SIZES), colour, dice.pick(SHAPES), dice.pick((1, 2, 3, 4)) if kind == "count" else 1
            )
            for colour in dice.deal(COLOURS, 1 if kind == "count" else 2)
        )
        relation = {"count": "", "beside": dice.pick(("left", "above")), "overlap": "front"}[kind]
        scene = Scene(kind, relation, things)
        if scene.combinations() & set(HELD_OUT) == required:
            return scene


def captions(scene: Scene) -> list[str]:
    """The five ordinary captions, one for each template."""
    if scene.kind == "count":
        return _count_captions(scene.things[0])
    a, b = (f"a {thing.words}" for thing in scene.things)
    sentences = {
        "left": (
            f"{a} is to the left of {b}",
            f"{b} is to the right of {a}",
            f"there is {a} on the left and {b} on the right",
            f"the picture shows {b} with {a} to its left",
            f"to the left of {b} there is {a}",
        ),
        "above": (
            f"{a} is above {b}",
            f"{b} is below {a}",
            f"there is {a} at the top and {b} at the bottom",
            f"the picture shows {b} with {a} above it",
            f"above {b} there is {a}",
        ),
        "front": (
            f"{a} is in front of {b}",
            f"{b} is behind {a}",
            f"there is {a} that overlaps {b} behind it",
            f"the picture shows {b} partly hidden by {a}",
            f"in front of {b} there is {a}",
        ),
    }
    return [_sentence(words) for words in sentences[scene.relation]]


def _count_captions(thing: Thing) -> list[str]:
    number, be = NUMBERS[thing.number - 1], "is" if thing.number == 1 else "are"
    total = {1: f"the only shape is a {thing.words}", 2: f"both shapes are {thing.words}"}
    sentences = (
        f"there {be} {number} {thing.words}",
        f"the picture shows {number} {thing.words}",
        f"{number} {thing.words} can be seen",
        f"you can count {number} {thing.words} here",
        total.get(thing.number, f"all {number} shapes are {thing.words}"),
    )
    return [_sentence(words) for words in sentences]


def long_captions(scene: Scene, dice: Dice, *, words: int) -> list[str]:
    """Five captions within two words of `words`; the first and the last word of a caption are the same name.

    Raises:
        ValueError: `words` is outside 5 to 200.
    """
    if not MIN_WORDS <= words <= MAX_WORDS:
        raise ValueError(f"captions can have {MIN_WORDS} to {MAX_WORDS} words, got {words}")
    write = _two_sentences if words < THREE_SENTENCES else _many_sentences
    return [write(scene, name, number, words) for number, name in enumerate(dice.deal(NAMES, 5))]


def _many_sentences(scene: Scene, name: str, caption_number: int, words: int) -> str:
    """The opening, statements in the order of the caption's number as far as they fit, and the closing."""
    opening, closing = f"{name} looks at this picture.", f"So says {name}."
    statements = [sentence for group in _statements(scene) for sentence in _rotate(group, caption_number)]
    chosen: list[str] = []
    words_left = words - length(opening) - length(closing)
    while length(statements[0]) <= words_left:
        chosen.append(statements.pop(0))
        words_left -= length(chosen[-1])
    while fitting := [sentence for sentence in statements if length(sentence) <= words_left]:
        chosen.append(max(fitting, key=length))
        statements.remove(chosen[-1])
        words_left -= length(chosen[-1])
    shortest = min(statements, key=length)
    if length(shortest) - words_left < words_left:
        chosen.append(shortest)
    return " ".join([opening, *chosen, closing])


def _two_sentences(scene: Scene, name: str, caption_number: int, words: int) -> str:
    """The wording whose length is nearest to `words`; the shorter of two equally near."""
    thing = scene.things[caption_number % len(scene.things)]
    number = NUMBERS[thing.number - 1] if scene.kind == "count" else "a"
    full = f"{number} {thing.words}"
    article = "an" if number == "a" and thing.colour == "orange" else number
    wordings = (
        f"{name} sees {number} {thing.noun}. Thanks {name}.",
        f"{name} sees {article} {thing.colour} {thing.noun}. Thanks {name}.",
        f"{name} sees {full}. Thanks {name}.",
        f"{name} sees {full}. So says {name}.",
        f"{name} sees {full} in this picture. Thanks {name}.",
        f"{name} sees {full} in this picture. So says {name}.",
    )
    return min(wordings, key=lambda caption: abs(words - length(caption)))


def _statements(scene: Scene) -> tuple[list[str], list[str], list[str]]:
    """Different true sentences in a fixed order: the ordinary captions, details, and what the image lacks."""
    details, absences = _details(scene), _absences(scene)
    return captions(scene), [_sentence(text) for text in details], [_sentence(text) for text in absences]


def _details(scene: Scene) -> list[str]:
    things = scene.things
    if scene.kind == "count":
        thing = things[0]
        subject = "the shape" if thing.number == 1 else "every shape"
        number, be = NUMBERS[thing.number - 1], "is" if thing.number == 1 else "are"
        shape = "shape" if thing.number == 1 else "shapes"
        return [
            f"there {be} {number} {shape} in all",
            f"{subject} is {thing.size}",
            f"{subject} is {thing.colour}",
            f"{subject} is a {thing.shape}",
        ]
    details = ["there are two shapes in all"]
    for thing in things:  # their colours differ, so a colour identifies a thing
        details += [
            f"the {thing.colour} shape is {thing.size}",
            f"the {thing.colour} shape is a {thing.shape}",
        ]
    colours = " and the other is ".join(thing.colour for thing in things)
    return [*details, f"one shape is {colours}"]


def _absences(scene: Scene) -> list[str]:
    things = scene.things
    sizes, colours, shapes = ({thing[field] for thing in things} for field in range(3))
    absences = [f"no shape is {value}" for value in (*SIZES, *COLOURS) if value not in sizes | colours]
    absences += [f"no shape is a {shape}" for shape in SHAPES if shape not in shapes]
    present = {(thing.colour, thing.shape) for thing in things}
    for number, colour in enumerate(COLOURS):
        for shape in SHAPES:
            if (colour, shape) in present:
                continue
            if number % 2:  # two lengths in alternation, so that short ones remain for the end
                article = "an" if colour == "orange" else "a"
                absences.append(f"nobody can find {article} {colour} {shape} in this picture")
            else:
                absences.append(f"there is no {colour} {shape}")
    return absences


def _rotate(sentences: list[str], fifths: int) -> list[str]:
    """The sentences in the same cyclic order, beginning `fifths` fifths into the list."""
    first = fifths * len(sentences) // 5
    return sentences[first:] + sentences[:first]


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def length(text: str) -> int:
    """Number of words in a caption of this grammar, whose only punctuation is full stops."""
    return len(text.split())


class Dependency(NamedTuple):
    """The names in the first and the last sentence, in lower case; None if a sentence has none."""

    first: str | None
    last: str | None


def dependency(tokens: Sequence[str]) -> Dependency:
    """The names that are the first and the last word of a caption; a long caption is right if they are equal.

    `tokens` are the caption's words from the tokenizer; full stops are ignored. A caption that is cut
    before its last sentence has no last name. Ordinary captions give (None, None).
    """
    words = [token.lower() for token in tokens if token != "."]
    names = {name.lower() for name in NAMES}
    if len(words) < 2:
        return Dependency(words[0] if words and words[0] in names else None, None)
    return Dependency(*(word if word in names else None for word in (words[0], words[-1])))
