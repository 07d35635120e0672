"""The tokenizer beside the Java one it follows, beside NLTK, and on captions meant to upset it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.tokenizer import DROPPED, tokenize

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# caption -> what Stanford's PTBTokenizer 3.4.1 and coco-caption's drop list made of it
FROM_JAVA = {
    "A man can't, won't and shouldn't've.": "a man ca n't wo n't and should n't 've",
    "The dogs' owner's dog - it's \"big\"!": "the dogs owner 's dog it 's big",
    "a t-shirt -- well-known -tall and--short": "a t-shirt well-known tall and short",
    "St. Louis, the U.S., Mr. Smith 5 p.m. on Main St.": "st. louis the u.s. mr. smith 5 p.m. on main st.",
    "a jeep by J. Smith, vitamin c.": "a jeep by j. smith vitamin c",
    "50% of $5.00, 1,000 at 10:30 5:30pm '60s #1": "50 % of $ 5.00 1,000 at 10:30 5:30 pm '60s # 1",
    "and/or a/b/c/d (a) [square] {c}": "and/or a/b/c / d -lrb- a -rrb- -lsb- square -rsb- -lcb- c -rcb-",
    "gonna wanna gotta lemme gimme cannot 'tis": "gon na wan na got ta lem me gim me can not 't is",
    "AT&T, at&t & R&B's": "at&t at & t & r&b 's",
    "Ho'ohu o'clock y'all 'em rock'n'roll abc'def": "ho'ohu o'clock y' all 'em rock 'n' roll abc def",
    "wait... what?? a!! ?! really? yes! a;b": "wait what ?? a !! ?! really yes a b",
    "“curly” ‘single’ it’s … – —": "curly single it 's",
    "½ cup, 5¢, £5, €5": "1/2 cup 5 cents # 5 $ 5",
    "café naïve 日本語 \U0001f436dog\U0001f436": "café naïve 日本語 dog",
    "www.google.com foo@bar.com, http://x.y/z.": "www.google.com foo@bar.com, http://x.y/z",
    "<unk> on a <unk>.": "<unk> on a <unk>",
    "a smile :) and 6'2\" tall 8x10": "a smile :-rrb- and 6 2 tall 8x10",
    "hello.world man.The dog": "hello.world man.the dog",
}


@pytest.mark.parametrize("caption", FROM_JAVA)
def test_as_the_java_tokenizer(caption: str) -> None:
    assert " ".join(tokenize(caption)) == FROM_JAVA[caption]


def java(captions: list[str], folder: Path) -> list[list[str]]:
    """The Java tokenizer's tokens; captions must not hold a line end of any kind."""
    package = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if not shutil.which("java"):
        pytest.skip("no Java here")
    file = folder / "captions.txt"
    # a line that begins a sentence after each caption: the original looks across line ends to find one
    file.write_text("".join(f"{caption}\nA dog\n" for caption in captions), encoding="utf-8")
    jar = Path(package.__file__).parent / package.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(file)],
        env=environment,
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode().split("\n")[: 2 * len(captions) : 2]
    # scorers split the joined line once more, at no-break spaces too
    return [" ".join(word for word in line.split(" ") if word not in DROPPED).split() for line in lines]


def test_fixed_expectations_are_the_java_tokenizers(tmp_path: Path) -> None:
    assert [" ".join(tokens) for tokens in java(list(FROM_JAVA), tmp_path)] == list(FROM_JAVA.values())


def test_real_captions_as_java(tmp_path: Path) -> None:
    if not SHARED.exists():
        pytest.skip("the shared captions are not here")
    coco = json.loads((SHARED / "captions_val2017.json").read_text())["annotations"]
    lines = (SHARED / "flickr8k" / "Flickr8k.token.txt").read_text().splitlines()
    captions = [entry["caption"] for entry in coco] + [line.split("\t", 1)[1] for line in lines]
    captions = [" ".join(caption.splitlines()) for caption in captions]
    theirs = java(captions, tmp_path)
    differing = [
        caption for caption, tokens in zip(captions, theirs, strict=True) if tokenize(caption) != tokens
    ]
    assert len(captions) > 50_000
    assert differing == []


def test_contractions_as_nltk() -> None:
    from nltk.tokenize import NLTKWordTokenizer

    captions = [
        "I can't and she won't but he's here",
        "they've gone and we'll go if you'd like",
        "gonna cannot wanna gotta lemme gimme",
        "the dog's ball isn't the dogs",
    ]
    for caption in captions:
        assert tokenize(caption) == [token.lower() for token in NLTKWordTokenizer().tokenize(caption)]


@pytest.mark.parametrize("gap", [*"\r\n\t\v\f\0\x1c\x85\u2028\u2029\xa0\u3000", "\r\n", "\U0001f600", "\x7f"])
def test_nothing_odd_joins_or_shifts(gap: str) -> None:
    assert tokenize(f"a dog{gap}on grass{gap}") == ["a", "dog", "on", "grass"]
    assert tokenize(gap) == []


@pytest.mark.parametrize("caption", ["", " ", ".", "...", "-- - ,;:", "'' `` ' `", "“”", "!", "?"])
def test_only_punctuation_is_empty(caption: str) -> None:
    assert tokenize(caption) == []


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.text(alphabet="aT5.,'-\"()/& \n", max_size=40))
def test_tokens_are_clean(anything: str, nasty: str) -> None:
    for text in (anything, nasty):
        tokens = tokenize(text)
        assert all(token and token == token.lower() and token.split() == [token] for token in tokens)
        assert not DROPPED.intersection(tokens)
        assert tokenize(text) == tokens  # the second time from memory


def test_long_captions_take_no_more_than_their_share() -> None:
    assert tokenize("word " * 10_000) == ["word"] * 10_000
    start = time.perf_counter()
    for unit in ("1,", "a@", "a.", "x/", "<a", "a'"):
        tokenize(unit * 50_000)
    assert time.perf_counter() - start < 10  # seconds; quadratic rules would take hours
