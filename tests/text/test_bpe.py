"""Byte-pair vocabularies: the merges beside a plain implementation, captions split and joined, files."""

import json
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.errors import UserError
from captioning.text.vocabulary import SPECIALS, Vocabulary, VocabularyConfig
from tests.helpers.training import CAPTIONS

CHINESE = ["一只狗在草地上跑", "两只狗在草地上", "一个男人在公园里", "公园里有一只狗。"]


def plain_merges(words, count):
    """Sennrich et al. 2016, algorithm 1; of equally frequent pairs the one of older pieces."""
    spelled = {word: list(word) for word in words}
    age = {piece: number for number, piece in enumerate(sorted({c for word in words for c in word}))}
    merges = []
    for _ in range(count):
        pairs = Counter()
        for word, pieces in spelled.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], age[pair[0]], age[pair[1]]))
        merges.append(best)
        age.setdefault("".join(best), len(age))
        for pieces in spelled.values():
            at = 0
            while at + 1 < len(pieces):
                if (pieces[at], pieces[at + 1]) == best:
                    pieces[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def test_merges_are_those_of_the_paper():
    words = Counter(word + "▁" for caption in CAPTIONS for word in caption.replace(".", "").split())
    vocabulary = Vocabulary.build_bpe(CAPTIONS, size=40, min_count=1)
    characters = len({character for word in words for character in word})
    assert len(vocabulary) == 4 + 40 and vocabulary.words[:4] == SPECIALS
    assert list(vocabulary.merges) == plain_merges(words, 40 - characters)
    assert vocabulary == Vocabulary.build_bpe(CAPTIONS[::-1], size=40, min_count=1)
    most = Vocabulary.build_bpe(CAPTIONS, size=4000, min_count=3).merges
    assert list(most) == plain_merges(words, len(most)) and 0 < len(most) < 40


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["dog", "god", "the", "thedog", "a", "mat", "m", "looks"]), max_size=9))
def test_captions_are_joined_to_their_words(words):
    vocabulary = Vocabulary.build_bpe(CAPTIONS, size=30, min_count=1)
    text = " ".join(words)
    ids = vocabulary.encode(vocabulary.tokenize(f"{text}."), max_length=99)
    assert vocabulary.text(ids) == text and vocabulary.unk not in ids


def test_characters_make_pieces_across_words():
    vocabulary = Vocabulary.build_bpe(CHINESE, size=25, min_count=1, tokenizer="characters")
    assert vocabulary.tokenize("一只狗 在公园里。") == ["一只狗", "在", "公园里"]
    assert (
        vocabulary.text([1, *map(vocabulary.ids.get, ["一只狗", "在", "公园里"]), 2, 5]) == "一只狗在公园里"
    )
    assert (vocabulary.unit, vocabulary.unknown_words("一只猫在跑")) == ("pieces", ["猫"])
    words = Vocabulary.build(CHINESE, min_count=2, tokenizer="characters")
    assert words.text(words.encode(words.tokenize("一只狗在跑"), max_length=4)) == "一只狗在"
    assert (words.unit, words.unknown_words("一只猫在跑")) == ("characters", ["猫", "跑"])


def test_unknown_characters_and_text_that_looks_like_special_tokens():
    vocabulary = Vocabulary.build_bpe(["<pad> <pad> <pad> a dog ▁", "x<unk>"], size=30, min_count=1)
    assert vocabulary.encode(vocabulary.tokenize("<pad> ä ▁"), max_length=9).count(vocabulary.pad) == 0
    assert vocabulary.unknown_words("a dög") == ["dög"]
    assert vocabulary.text(vocabulary.encode(vocabulary.tokenize("a dog"), max_length=9)) == "a dog"


def test_the_largest_number_of_words():
    assert Vocabulary.build(CAPTIONS, min_count=1, size=2).words == (*SPECIALS, "dog", "a")
    config = VocabularyConfig(min_count=1, size=2)
    assert config.build(CAPTIONS, tokenizer="ptb").words == (*SPECIALS, "dog", "a")


def test_saved_and_opened(tmp_path):
    path = str(tmp_path / "vocabulary.json")
    fingerprints = set()
    for tokenizer in ("ptb", "whitespace", "characters"):
        for build in (Vocabulary.build, Vocabulary.build_bpe):
            size = {"size": 30} if build == Vocabulary.build_bpe else {}
            vocabulary = build(CAPTIONS, min_count=1, tokenizer=tokenizer, **size)
            vocabulary.save(path)
            assert Vocabulary.open(path) == vocabulary
            assert Vocabulary.open(path).tokenize("a dog runs") == vocabulary.tokenize("a dog runs")
            fingerprints.add(vocabulary.fingerprint)
    assert len(fingerprints) == 6
    Vocabulary.build(CAPTIONS, min_count=1).save(path)  # as before there were others
    assert json.loads((tmp_path / "vocabulary.json").read_text()).keys() == {"min_count", "words"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"merges": [["d", "x"]]}, r"merges must be of its pieces, found \('d', 'x'\)"),
        ({"tokenizer": "jieba"}, r"vocabulary\.json: not in the form expected here \(tokenizer"),
        ({"merges": [["d"]]}, r"not in the form expected here \(merges\.0"),
        ({"merges": "do"}, r"not in the form expected here \(merges"),
        ({"merges": [["d", 1]]}, r"not in the form expected here \(merges\.0\.1"),
    ],
)
def test_a_damaged_file_is_refused(more, message, tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"min_count": 1, "words": [*SPECIALS, "d", "o", "do"], **more}))
    with pytest.raises(UserError, match=message):
        Vocabulary.open(str(path))


def test_too_few_pieces_and_no_library(monkeypatch):
    with pytest.raises(UserError, match=r"vocabulary\.size: 9 pieces are too few for captions with 18 diff"):
        Vocabulary.build_bpe(CAPTIONS, size=9, min_count=1)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r'kind=bpe needs .* pip install "captioning\[bpe\]"'):
        VocabularyConfig(kind="bpe").build(CAPTIONS, tokenizer="ptb")
    with pytest.raises(UserError, match="without spaces between words"):
        VocabularyConfig(kind="bpe").build(CHINESE, tokenizer="ptb")
