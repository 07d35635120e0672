"""Caption text -> tokens, the same for the vocabulary and the metrics. Knows one caption at a time, no files.

Penn Treebank rules as Stanford's PTBTokenizer 3.4.1 applies them with `-lowerCase` (Marcus et al. 1993 for the
rules; `ca n't`, `dog 's`, hyphenated words whole, abbreviations keep their period), then the punctuation that
coco-caption drops is dropped. Brackets become `-lrb-` and so on, and stay: coco-caption lists them in capitals.
"""

from __future__ import annotations

import re

DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""What coco-caption leaves out of a tokenized caption."""

_SPLIT = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "wanna": ("wan", "na"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ABBREVIATIONS = (
    "mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|pres"
    "|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|jr|sr|bros|blvd|rd|esq|inc|cos?|corp|ltd|plc|dept|assn|univ|intl"
    "|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|etc|vs|ft|al|alex|wm|jos|cf"
)
_PLAIN = re.compile(r"[a-z]+(?: +[a-z]+)*(?: *\.)? *", re.ASCII)
_ENDS_ABBREVIATED = re.compile(rf"(?:.* )?(?:{_ABBREVIATIONS})\. *", re.ASCII)
_HAS_SPLIT = re.compile(r"\b(?:cannot|gonna|gotta|lemme|gimme|wanna)\b", re.ASCII)
_LETTER = r"[^\W\d_]"
_CLITIC = r"'(?:s|m|d|ll|re|ve)(?!\w)"
_TOKEN = re.compile(
    rf"""
    https?://[^\s"<>()]+[^\s"<>().,:;!?'] | www\.[^\s"<>()]+[^\s"<>().,:;!?']
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
    | </?[a-z][a-z0-9]*\s*/?>                                            # a tag
    | (?:cannot|gonna|gotta|lemme|gimme|wanna)(?!\w)
    | '(?:tis|twas)(?!\w)
    | {_LETTER}+(?=n't(?!\w)) | n't(?!\w) | {_CLITIC}
    | (?:{_LETTER}\.)+{_LETTER}\.?(?!\w) | (?:{_ABBREVIATIONS}|[a-z](?=\.\s+\S))\.
    | '\d0s | '(?:em|til|n)(?:'|(?!\w))
    | o'clock | ma'am | {_LETTER}'{_LETTER}+(?:-{_LETTER}+)*(?!\w)
    | [+-]?(?:\d+(?:[.,:/]\d+)*|\.\d+)(?=%|\s|[ap]m\b|$)
    | \d+(?:[.,:/-]\d+)+ | \.\d+
    | \w+(?:[-/&.]\w+)*?(?=n't(?!\w))
    | [\#@]{_LETTER}\w*
    | \w+(?:[-/&.]\w+)*
    | \.\.+ | --+ | [!?]+
    | \S
    """,
    re.VERBOSE,
)
_CURLY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "–": "--", "—": "--", "´": "'"})


def tokenize(caption: str) -> list[str]:
    """Lower-case tokens of one caption; an empty list where nothing but punctuation is left.

    Any white space, line ends and control characters included, only separates tokens: a caption never
    reaches into its neighbour.
    """
    text = caption.lower()
    if _PLAIN.fullmatch(text) and not _HAS_SPLIT.search(text) and not _ENDS_ABBREVIATED.fullmatch(text):
        return text.replace(".", " ").split()
    tokens: list[str] = []
    for token in _TOKEN.findall(text.translate(_CURLY)):
        if token in _SPLIT:
            tokens.extend(_SPLIT[token])
        elif token == '"' or token.startswith("..") or token in DROPPED:
            continue
        elif token.startswith("--"):
            continue
        else:
            tokens.append(_BRACKETS.get(token, token))
    return tokens
