"""Caption text -> tokens, the same for vocabulary and metrics. Knows one caption at a time, no files.

Penn Treebank rules as Stanford's PTBTokenizer 3.4.1 applies them with `-lowerCase`, and then the punctuation
that coco-caption drops is dropped: the tokens behind published scores. `can't` is `ca n't`, `dog's` `dog 's`,
a hyphenated word is one token, an abbreviation keeps its period. Brackets become `-lrb-` and so on, and stay,
because coco-caption lists them in capitals.

Like the original this is a longest-match scanner. It looks at one run of non-space characters at a time and
remembers what became of it, which makes it fast; the few tokens of the original that hold a space (telephone
numbers, HTML tags with attributes) come apart here.
"""

from __future__ import annotations

import re
from functools import lru_cache

DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""What coco-caption leaves out of a tokenized caption."""

# ---- characters

_MARKS = (  # parts of a word
    "\u0300-\u036f\u0591-\u05bd\u064b-\u065e\u0670\u0900-\u0903\u093c\u093e-\u094e\u0e31\u0e34-\u0e3a"
    "\u0e47-\u0e4e"
)
_SYMBOLS = (  # tokens of their own
    "\xa1-\xa9\xac\xae-\xb4\xb6-\xb9\xbf\xd7\xf7\u060c\u061b\u061f\u0964\u0965\u0e3f\u2016\u2017\u201a\u201e\u201f"
    "\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070-\u207e\u2080-\u208e\u20a4\u2100\u2101\u2103-\u2106"
    "\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u2140-\u2144\u214a-\u214d\u2155-\u215e"
    "\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5"
)
_SPELLED = str.maketrans(
    dict.fromkeys("\x92\u2019\u203a", "'")
    | dict.fromkeys("\x91\u2018\u201b\u2039", "`")
    | dict.fromkeys("\x93\x94\u201c\u201d\xab\xbb", '"')
    | dict.fromkeys("\x96\x97\u2013\u2014\u2015", " -- ")
    | dict.fromkeys("\x80\xa4\u20a0\u20ac", " $ ")
    | dict.fromkeys("\xad\u2010\u2011", None)  # hyphens that only say where a line may break
    | {"\x85": " ... ", "\u2026": " ... ", "\xa3": " # ", "\xa2": " cents "}
    | {"\xbc": " 1/4 ", "\xbd": " 1/2 ", "\xbe": " 3/4 ", "\u2153": " 1/3 ", "\u2154": " 2/3 "}
)
# the original passes over what it has no rule for: emoji, all beyond the first 65,536 characters, controls
_UNKNOWN = re.compile(rf"[^!-~\w{_MARKS}{_SYMBOLS}]|[\U00010000-\U0010ffff]")

# ---- rules: group 1 of a match is the token; what the pattern goes on with must come after it

_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn asst attys? aug ave bancorp bhd bldg blvd brig bros calif
    capt cf cie cmdr col colo comdr conn corp cos? cpl ct dak dec dept det drs? elec ens esq est etc
    ext feb fla fri ft ga gen govs? hon inc ind insp intl invt jan jos jr jul jun kans? ky lieut lt
    ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov
    oct okla penn pfc ph plc p?ptes? p?ptys? ptes? ptys? pres profs? pvt rd reps? rev rt sen sens
    sept? seq sfc sgt spc sq sr ste? supts? sys tel tenn thu thurs treas tues? univ va vs vt wed
    wisc? wm wyo
"""
_ABBREVIATION = f"(?i:{'|'.join(_ABBREVIATIONS.split())})"
_L = rf"(?:[^\W\d_]|[{_MARKS}])"
_LD = rf"(?:[^\W_]|[{_MARKS}])"
_WORD = rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_NUMBER = r"[-+]?(?:\d+(?:[.,:]\d+)*|(?:[.,:]\d+)+)"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_AFTER = r"(?:[msdMSD]|re|ve|ll|RE|VE|LL)"

_RULES = tuple(
    re.compile(rule)
    for rule in (
        r"((?i:can))(?i:not)",
        r"((?i:gon|wan))(?i:na)",
        r"((?i:got))(?i:ta)",
        r"((?i:lem|gim))(?i:me)",
        r"('(?i:t))(?i:is|was)",
        rf"({_WORD})'{_AFTER}",
        r"([A-Za-z]*?[A-MO-Za-mo-z])(?i:n't)",
        rf"('{_AFTER}|(?i:n't))(?![A-Za-z])",
        rf"({_WORD})",
        rf"({_WORD}\.)[,;:]",
        rf"((?:[dDoOlL]'{_LD})?{_LD}+(?:-{_LD}+)*)",
        r"([A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:" + _ACRONYM + r"\.|[A-Za-z0-9]+))+)",
        rf"({_LD}+(?:_{_LD}+)+)",
        rf"({_SLASHED}(?:\\?/{_SLASHED}){{1,2}})",
        r"([A-Z]+(?:(?:\+|&(?:amp;)?)[A-Z]+)+|[A-Za-z]\+\+)",
        rf"([A-HJ-XZn]'{_L}{{2,}}|{_L}+[aeiouyAEIOUY]'[aeiouA-Z]{_L}*)",
        r"('n(?:'|(?![A-Za-z]))|[lLdDjJ]'|ol'|somethin'|'[Ee]m|[Cc]'mon|'[2-9]0s|'till?|'cause|[Ss]'mores|[Mm]a'am|[Oo]'clock)",
        r"((?i:nor'easter|n?e'er|ev'ry|li'l|nat'l|c'est)|[Cc]ap'n|'\d\d(?!\S))",
        rf"([Yy]'){_L}",
        rf"({_ABBREVIATION}\.|{_ACRONYM}\.|[A-Za-z]\.)",
        r"((?i:nos?|figs?|p)\.)\d",
        rf"({_NUMBER}|\d{{1,2}}[-/]\d{{1,2}}[-/]\d{{2,4}})",
        r"(\d{2,4}(?:[-.]\d{2,4})?[-.]\d{3,4}[-.]?\d{3,5}|(?:\d{1,4}-)?\d{1,4}/\d{1,4})",
        r"(https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-])",
        r"((?:www\.(?:[^\s\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}|(?:[^\s\"`'<>|.!?(){},\-_$/]+\.)+(?:com|net|org|edu))"
        r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?)",
        r"([a-zA-Z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|().{}]+\.)*[^\s\"<>|().{}]+)",
        rf"(@[A-Za-z_]\w*|\#{_L}{_LD}*)",
        r"(</?[A-Za-z!?][^<>\s]*>)",
        r"(&[aeiouAEIOU](?:acute|grave|uml);)",
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z])",
        r"([A-Z]+\$|\*+|_+|-+|\.{3,5}|[?!]+|\#\#+|<<|>>|''|``)",
        r"(-(?:[LR][RCS]B|[lr][rcs]b)-)",
        r"([!-~]|[^\x00-\x7f])",
    )
)
_COMPOUND = re.compile(r"(?i:cannot|gonna|wanna|gotta|lemme|gimme)")
_DASHES = re.compile(r"-{1,4}|\.+")  # the original writes a longer row of hyphens as it is
_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
)
_ROUND = str.maketrans({"(": "-lrb-", ")": "-rrb-"})  # in a smiley
_ENTITIES = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&apos;": "'",
    "&nbsp;": " ",
    "&mdash;": " -- ",
}
_ENTITY = re.compile("|".join(_ENTITIES))

_STARTERS = """
    A According After An As At But Her Here He However If In It Last Many Now Once One Other Our She Since So
    Some Such That The Their Then There These They This We What When While Yet You
"""
# before one of these words the period of an initial is a full stop: "vitamin C. The dog"
_SENTENCE_STARTERS = frozenset(_STARTERS.split())

_LONGEST = 200  # characters looked at in one go: some rules take time in the square of it


def tokenize(caption: str) -> list[str]:
    """Lower-case tokens of one caption; an empty list where nothing but punctuation is left.

    White space, line ends and control characters included, separates tokens and does no more: a caption
    never reaches into its neighbour.
    """
    if not caption.isascii():
        caption = _UNKNOWN.sub(" ", caption.translate(_SPELLED))
    if "&" in caption:
        caption = _ENTITY.sub(lambda match: _ENTITIES[match[0]], caption)
    chunks = caption.split()
    if len(caption) > _LONGEST:
        chunks = [chunk[at : at + _LONGEST] for chunk in chunks for at in range(0, len(chunk), _LONGEST)]
    tokens: list[str] = []
    for at, chunk in enumerate(chunks, 1):
        if chunk[-1] == ".":
            following = chunks[at] if at < len(chunks) else "."
            tokens += _scan(
                chunk, following[0].isdigit(), following == "." or following in _SENTENCE_STARTERS
            )
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
    at = 0
    while at < len(chunk):
        longest = None
        for rule in _RULES:
            match = rule.match(chunk, at)
            if match and (not longest or match.end() > longest.end()):
                longest = match
        if longest is None:  # a control character: passed over
            at += 1
            continue
        token = longest[1]
        at = longest.end(1)
        if at == len(chunk):
            if ends and len(token) == 2 and token[1] == "." and token[0].isalpha():
                token = token[0]
            elif before_digit and token == "." and tokens and tokens[-1] in ("no", "nos", "fig", "figs"):
                tokens[-1] += "."
        token = token.lower()
        if token != '"' and token not in DROPPED and not _DASHES.fullmatch(token):
            tokens.append(token.translate(_ROUND if len(token) > 1 else _BRACKETS))
    return tuple(tokens)
