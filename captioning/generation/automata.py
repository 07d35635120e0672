"""Finite automata that follow phrases through a caption, one token at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from captioning.text.bpe import END_OF_WORD
from captioning.text.tokenizers import SEPARATORS
from captioning.text.vocabulary import SPECIALS, Vocabulary

_END = "\0"  # stands for <end> in a pattern


class Automaton(NamedTuple):
    """States of a caption with respect to phrases. The last state, which is never left: one of them has occurred."""

    table: np.ndarray  # (S, V) int64: the state after each token
    start: int  # of an empty caption
    remaining: np.ndarray  # (S,) int64: the smallest number of tokens to the last state
    next_ids: np.ndarray  # (S,) int64: a token on the way there

    @classmethod
    def build(cls, table: np.ndarray, start: int) -> Automaton:
        """Completes a table. Special tokens are not on the way to the last state."""
        words = table[:, len(SPECIALS) :]
        remaining = np.full(len(table), len(table))
        remaining[-1] = 0
        while (shorter := np.minimum(remaining, 1 + remaining[words].min(1))).sum() < remaining.sum():
            remaining = shorter
        return cls(table, start, remaining, remaining[words].argmin(1) + len(SPECIALS))


def phrase_of_ids(phrase: Sequence[int], vocabulary_size: int) -> Automaton:
    """The automaton of a phrase of token ids (Knuth, Morris and Pratt 1977); in state s, s of them are matched."""
    size = len(phrase)
    table = np.zeros((size + 1, vocabulary_size), np.int64)
    shorter = 0  # the state after the phrase without its first token
    for state, token in enumerate(phrase):
        if state:
            table[state] = table[shorter]
            shorter = int(table[shorter, token])
        table[state, token] = state + 1
    table[size] = size
    return Automaton(table, 0, size - np.arange(size + 1), np.array([*phrase, phrase[0]]))


@functools.lru_cache(maxsize=32)
def phrase_of_text(text: str, vocabulary: Vocabulary) -> Automaton:
    """`texts_of_tokens` of one text, which the usual tokens continue where they can."""
    automaton = texts_of_tokens((text,), vocabulary)
    next_ids, state = automaton.next_ids.copy(), automaton.start
    for token in vocabulary.tokenize(text):
        next_ids[state] = vocabulary.ids[token]
        state = int(automaton.table[state, vocabulary.ids[token]])
    return automaton._replace(next_ids=next_ids)


@functools.lru_cache(maxsize=32)
def texts_of_tokens(texts: tuple[str, ...], vocabulary: Vocabulary, *, at_end: bool = False) -> Automaton:
    """The automaton of texts, however pieces of words or characters spell them (Aho and Corasick 1975).

    Where there are spaces between words, a text is found as whole words.

    Args:
        texts: one or more.
        at_end: a text is found only if `<end>` follows.
    """
    boundary = END_OF_WORD if SEPARATORS[vocabulary.tokenizer] else ""
    patterns = [
        boundary + "".join(word + boundary for word in vocabulary.split(text)) + _END * at_end
        for text in texts
    ]
    steps = _character_steps(patterns)
    size = len(next(iter(steps.values())))
    if boundary:  # two ends in a row are one
        at_boundary = np.isin(np.arange(size), steps[boundary])
        steps[boundary] = np.where(at_boundary, np.arange(size), steps[boundary])
    elsewhere = np.zeros(size, np.int64)
    elsewhere[-1] = size - 1

    def read(text: str) -> np.ndarray:
        """(S,) the state after `text`, from each state."""
        states = np.arange(size)
        for character in text:
            states = steps.get(character, elsewhere)[states]
        return states

    table = np.stack([read(token) for token in vocabulary.words], 1)
    table[:, : len(SPECIALS)] = np.arange(size)[:, None]
    # <end> also ends a word that its last piece has left open
    table[:, vocabulary.end] = np.maximum(read(_END), read(boundary + _END)) if at_end else read(boundary)
    return Automaton.build(table, int(read(boundary)[0]))


def _character_steps(patterns: Sequence[str]) -> dict[str, np.ndarray]:
    """For each character of the patterns, (S,) the state after it; the last state means that one is found."""
    nodes: list[dict[str, int]] = [{}]  # of the trie
    ends: set[int] = set()
    for pattern in patterns:
        node = 0
        for character in pattern:
            if character not in nodes[node]:
                nodes[node][character] = len(nodes)
                nodes.append({})
            node = nodes[node][character]
        ends.add(node)
    found = len(nodes)
    steps = {character: np.zeros(found + 1, np.int64) for pattern in patterns for character in pattern}
    fallback = [0] * found  # the longest other beginning of a pattern with which a node's text ends
    queue = [0]
    for node in queue:  # breadth first: a fallback is shorter, so it is finished
        if fallback[node] in ends:
            ends.add(node)
        for character, column in steps.items():
            after = int(column[fallback[node]]) if node else 0
            if (child := nodes[node].get(character)) is None:
                column[node] = after
                continue
            queue.append(child)
            fallback[child] = after
            column[node] = child
    for column in steps.values():
        column[np.isin(column, list(ends))] = found
        column[found] = found
    return steps
