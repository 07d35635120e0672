"""Vocabulary: which words are known, encoding and decoding, files."""

import json
from collections import Counter

import pytest

from captioning.errors import UserError
from captioning.text.tokenizer import tokenize
from captioning.text.vocabulary import SPECIALS, Vocabulary

CAPTIONS = ["A dog runs.", "a dog, a red ball", "The red dog!", "a cat"]


@pytest.mark.parametrize("min_count", [1, 2, 3])
def test_words_by_frequency(min_count):
    """Compared with counts made by hand; ties are in alphabetical order."""
    counts = Counter({"a": 4, "dog": 3, "red": 2, "ball": 1, "cat": 1, "runs": 1, "the": 1})
    expected = sorted(
        (word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word)
    )
    vocabulary = Vocabulary.build(CAPTIONS, min_count=min_count)
    assert vocabulary.words == ("<pad>", "<start>", "<end>", "<unk>", *expected)
    assert vocabulary == Vocabulary.build(CAPTIONS[::-1], min_count=min_count)
    assert len(vocabulary) == 4 + len(expected) and vocabulary.ids[expected[-1]] == 3 + len(expected)


def test_no_frequent_word_is_an_error():
    with pytest.raises(UserError, match="no word occurs 5 times"):
        Vocabulary.build(CAPTIONS, min_count=5)


def test_encode_and_decode():
    vocabulary = Vocabulary(words=(*SPECIALS, "a", "dog", "runs"))
    assert vocabulary.encode(["a", "dog", "flies"], max_length=3) == [1, 4, 5, 3, 2]
    assert vocabulary.encode(["a", "dog", "runs"], max_length=2) == [1, 4, 5]  # truncated: no <end>
    assert vocabulary.encode([], max_length=2) == [1, 2]
    assert vocabulary.decode([1, 4, 3, 6, 0, 2, 5]) == ["a", "<unk>", "runs"]
    for caption in ("a dog runs", "dog"):
        assert " ".join(vocabulary.decode(vocabulary.encode(tokenize(caption), max_length=5))) == caption


@pytest.mark.parametrize("token", SPECIALS)
def test_text_that_looks_like_a_special_token_is_unknown(token):
    vocabulary = Vocabulary.build([f"{token} a dog"], min_count=1)
    assert vocabulary.words.count(token) == 1
    assert vocabulary.encode([token], max_length=1) == [1, 3, 2]


def test_special_tokens():
    special = Vocabulary(words=(*SPECIALS, "a")).special_tokens
    assert (special.start, special.end, sorted(special.suppress_ids)) == (1, 2, [0, 1, 3])


@pytest.mark.parametrize("words", [("a", "b", "c", "d"), (*SPECIALS, "a", "a")])
def test_wrong_words_are_refused(words):
    with pytest.raises(UserError, match=r"must begin with <pad>|must be unique"):
        Vocabulary(words=words)


def test_saved_and_opened(tmp_path):
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    path = str(tmp_path / "vocabulary.json")
    vocabulary.save(path)
    assert Vocabulary.open(path) == vocabulary and Vocabulary.open(path).fingerprint == vocabulary.fingerprint
    assert Vocabulary.build(CAPTIONS, min_count=1).fingerprint != vocabulary.fingerprint


@pytest.mark.parametrize("content", [[], {}, {"words": "abc"}, {"words": [1]}])
def test_a_file_that_is_not_a_vocabulary_is_refused(content, tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"vocabulary\.json: not in the form expected here"):
        Vocabulary.open(str(path))
