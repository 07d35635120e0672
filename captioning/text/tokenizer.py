"""The tokenizer of captions, equal to Stanford's PTBTokenizer 3.4.1 as coco-caption calls it.

Penn Treebank rules with `-lowerCase`, then the punctuation that coco-caption removes is removed; published scores
are computed on these tokens. `can't` becomes `ca n't`, `dog's` becomes `dog 's`, a hyphenated word is one token, an
abbreviation keeps its period. Brackets become `-lrb-` and so on and stay, because coco-caption lists them in capitals.

Like the original this is a longest-match scanner. It scans one run of non-space characters at a time and caches the
result, which makes it fast. Tokens differ from the original's in these known cases:
- emoji, private use characters, control characters or unusual spaces inside a web or e-mail address, or directly after
  the period of an initial ("J.", "p.m."); the original keeps these tokens whole;
- a soft hyphen at the beginning or end of a word;
- a telephone number or a fraction with a space that begins within a run of characters ("x555 555 1234");
- "<<" before a tag, ". . ." directly after a letter, a mark or `&eacute;` directly after a few short forms
  ("ne'er&eacute;"), `&nbsp;` inside an address; only the Armenian hyphen is removed there.
"""

from __future__ import annotations

import re
from functools import lru_cache

from captioning.text.tokenizer_rules import (
    BEFORE_NUMBERS,
    QUOTED,
    QUOTES,
    RULES,
    SPACED,
    SPELLED,
    STARTERS,
    UNKNOWN,
)

DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""Tokens that coco-caption removes from a tokenized caption."""

_COMPOUND = re.compile(r"(?i:cannot|gonna|wanna|gotta|lemme|gimme)")
_DASHES = re.compile(r"-{1,4}|\.+")  # the original keeps longer rows of hyphens as they are
_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
)
_DIGITS_APART = re.compile(r"\d\)? \d")
_ROUND = str.maketrans({"(": "-lrb-", ")": "-rrb-"})  # within a token
_NO_BREAK = re.compile("&nbsp;", re.IGNORECASE)
_JOINED = re.compile(r"[a-z]+(?:(?:\+|&|&amp;)[a-z]+)+")  # AT&T

_MAX_CHUNK = 200  # characters scanned at once: some rules take quadratic time


def tokenize(caption: str) -> list[str]:
    """Lower-case tokens of one caption; an empty list if it has only punctuation.

    White space, including line ends and control characters, separates tokens and has no other effect.
    """
    if not caption.isascii():
        # a soft hyphen only marks a possible line break
        caption = UNKNOWN.sub(" ", caption.replace("\xad", ""))
    if "&" in caption:
        caption = _NO_BREAK.sub(" ", caption)
    if "<" not in caption and not _DIGITS_APART.search(caption):
        return _plain(caption, before="")
    tokens: list[str] = []
    end = 0
    for spaced in SPACED.finditer(caption):
        token = spaced[0]
        if token[0] != "<":
            if " " not in token:  # handled by `_plain` like other tokens
                continue
            token = token.translate(_ROUND)
        tokens += _plain(caption[end : spaced.start()], before=token)
        tokens += (word for word in token.lower().split() if word not in DROPPED)
        end = spaced.end()
    return tokens + _plain(caption[end:], before="")


def _plain(text: str, *, before: str) -> list[str]:
    """Tokens of text in which no token contains a space; `before` is the token after the text, if any."""
    chunks = text.split()
    if len(text) > _MAX_CHUNK:
        chunks = [chunk[at : at + _MAX_CHUNK] for chunk in chunks for at in range(0, len(chunk), _MAX_CHUNK)]
    tokens: list[str] = []
    for at, chunk in enumerate(chunks, 1):
        if chunk[-1] == ".":
            following = chunks[at] if at < len(chunks) else before
            tokens += _scan(chunk, following[:1].isdecimal(), not following or following in STARTERS)
        else:
            tokens += _scan(chunk, False, False)
    return tokens


@lru_cache(maxsize=1 << 16)
def _scan(chunk: str, before_digit: bool, ends: bool) -> tuple[str, ...]:
    """Tokens of one run of non-space characters.

    before_digit: whether the following text begins with a digit.
    ends: whether the text ends here or a new sentence follows.
    """
    if chunk.isalpha() and not _COMPOUND.fullmatch(chunk):
        return (chunk.lower(),)
    tokens: list[str] = []
    text = chunk + "  "  # rules match the characters after a token too, white space included
    at = 0
    while at < len(chunk):
        longest = None
        for rule in RULES:
            match = rule.match(text, at)
            if match and (not longest or match.end() > longest.end()):
                longest = match
        if longest is None:  # no rule: the original skips the character
            at += 1
            continue
        token = longest[1]
        at = longest.end(1)
        if at == len(chunk):
            if ends and len(token) == 2 and token[1] == "." and token[0].isalpha():
                token = token[0]
            elif before_digit and token == "." and tokens and tokens[-1] in BEFORE_NUMBERS:
                tokens[-1] += "."
        token = _spell(token)
        if token not in DROPPED and not _DASHES.fullmatch(token):
            tokens.append(token)
    return tuple(tokens)


def _spell(token: str) -> str:
    """The token in lower case and in the original's spelling."""
    if QUOTED.fullmatch(token):
        token = token.replace("&apos;", "'").replace("&quot;", '"').translate(QUOTES)
    token = token.lower()
    token = SPELLED.get(token, token)
    if _JOINED.fullmatch(token):
        token = token.replace("&amp;", "&")
    return token.translate(_ROUND if len(token) > 1 else _BRACKETS)
