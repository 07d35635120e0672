"""Caption text -> tokens, the same for vocabulary and metrics. Knows one caption at a time, no files.

Penn Treebank rules as Stanford's PTBTokenizer 3.4.1 applies them with `-lowerCase`, and then the punctuation
that coco-caption drops is dropped: the tokens behind published scores. `can't` is `ca n't`, `dog's` `dog 's`,
a hyphenated word is one token, an abbreviation keeps its period. Brackets become `-lrb-` and so on, and stay,
because coco-caption lists them in capitals.

Like the original this is a longest-match scanner. It looks at one run of non-space characters at a time and
remembers what became of it, which makes it fast. Tokens still differ from the original's where
- emoji, private characters, control characters or odd spaces stand inside a web or e-mail address, which the
  original keeps whole, or directly after the period of an initial ("J.", "p.m." keep theirs all the same);
- a soft hyphen begins or ends a word;
- a telephone number or a fraction with a space in it begins within a run of characters ("x555 555 1234");
- "<<" stands before a tag, ". . ." directly after a letter, a mark or `&eacute;` directly after a few short
  forms ("ne'er&eacute;"), `&nbsp;` inside an address; and the Armenian hyphen alone is dropped there.
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
"""What coco-caption leaves out of a tokenized caption."""

_COMPOUND = re.compile(r"(?i:cannot|gonna|wanna|gotta|lemme|gimme)")
_DASHES = re.compile(r"-{1,4}|\.+")  # the original writes a longer row of hyphens as it is
_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
)
_DIGITS_APART = re.compile(r"\d\)? \d")
_ROUND = str.maketrans({"(": "-lrb-", ")": "-rrb-"})  # within a token
_NO_BREAK = re.compile("&nbsp;", re.IGNORECASE)
_JOINED = re.compile(r"[a-z]+(?:(?:\+|&|&amp;)[a-z]+)+")  # AT&T

_LONGEST = 200  # characters looked at in one go: some rules take time in the square of it


def tokenize(caption: str) -> list[str]:
    """Lower-case tokens of one caption; an empty list where nothing but punctuation is left.

    White space, line ends and control characters included, separates tokens and does no more: a caption
    never reaches into its neighbour.
    """
    if not caption.isascii():
        # a soft hyphen only says where a line may break
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
            if " " not in token:  # as any other
                continue
            token = token.translate(_ROUND)
        tokens += _plain(caption[end : spaced.start()], before=token)
        tokens += (part for part in token.lower().split() if part not in DROPPED)
        end = spaced.end()
    return tokens + _plain(caption[end:], before="")


def _plain(text: str, *, before: str) -> list[str]:
    """Tokens of text where no token holds a space; `before` what, if anything, it comes before."""
    chunks = text.split()
    if len(text) > _LONGEST:
        chunks = [chunk[at : at + _LONGEST] for chunk in chunks for at in range(0, len(chunk), _LONGEST)]
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

    `before_digit`: what comes after it begins with a digit; `ends`: nothing does, or a new sentence.
    """
    if chunk.isalpha() and not _COMPOUND.fullmatch(chunk):
        return (chunk.lower(),)
    tokens: list[str] = []
    text = chunk + "  "  # what comes after a token counts for its length, white space too
    at = 0
    while at < len(chunk):
        longest = None
        for rule in RULES:
            match = rule.match(text, at)
            if match and (not longest or match.end() > longest.end()):
                longest = match
        if longest is None:  # passed over
            at += 1
            continue
        token = longest[1]
        at = longest.end(1)
        if at == len(chunk):
            if ends and len(token) == 2 and token[1] == "." and token[0].isalpha():
                token = token[0]
            elif before_digit and token == "." and tokens and tokens[-1] in BEFORE_NUMBERS:
                tokens[-1] += "."
        token = _written(token)
        if token not in DROPPED and not _DASHES.fullmatch(token):
            tokens.append(token)
    return tuple(tokens)


def _written(token: str) -> str:
    """The token as the original writes it, in lower case."""
    if QUOTED.fullmatch(token):
        token = token.replace("&apos;", "'").replace("&quot;", '"').translate(QUOTES)
    token = token.lower()
    token = SPELLED.get(token, token)
    if _JOINED.fullmatch(token):
        token = token.replace("&amp;", "&")
    return token.translate(_ROUND if len(token) > 1 else _BRACKETS)
