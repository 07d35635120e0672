"""Character tables, abbreviations and rules of the tokenizer.

They reproduce the behaviour of Stanford's PTBTokenizer 3.4.1, measured on every character and on generated text.
"""

from __future__ import annotations

import re

# ---- characters

_MARKS = (  # parts of a word, beside letters and digits
    "\u02c2-\u0379\u0384\u0385\u03f6\u0483-\u0487\u055a-\u055f\u058a\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4"
    "\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06fe\u070f-\u07b0\u07eb-\u07f3\u0900-\u0903"
    "\u093c-\u094e\u0951-\u0955\u0962\u0963\u0981-\u0983\u09bc-\u09c4\u09c7\u09c8\u09cb-\u09cd\u09d7\u09e2"
    "\u09e3\u0a01-\u0a03\u0a3c\u0a3e-\u0a4f\u0a81-\u0a83\u0abc-\u0acf\u0b82\u0bbe-\u0bc2\u0bc6-\u0bc8"
    "\u0bca-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d44\u0d46-\u0d48\u0e31-\u0e3a\u0e47-\u0e4e\u0eb1-\u0ebc"
    "\u0ec8-\u0ecd\u1885\u1886"
)
_SYMBOLS = (  # tokens of their own
    "\xa1\xa5-\xa9\xac\xae-\xb4\xb6-\xb9\xbf\xd7\xf7\u037e\u0387\u0589\u05be\u05c0\u05c3\u05c6\u05f3\u05f4"
    "\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d\u07f6-\u07f8\u0964"
    "\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070"
    "\u2074-\u207e\u2080-\u208e\u20a4\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123"
    "\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff"
    "\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1"
    "\uffe5\uffe6"
)
_NEWER = (  # letters and numbers of newer Unicode versions, unknown to the original
    "\u037f\u0528-\u052f\u0560\u0588\u05ef\u0860-\u088e\u08a1\u08ad-\u08c9\u0978\u0980\u09f4-\u09fc\u0af9"
    "\u0b72-\u0b77\u0bf0-\u0bf2\u0c34\u0c5a-\u0c5d\u0c78-\u0c80\u0cdd\u0d04\u0d54-\u0d5f\u0d70-\u0d78"
    "\u0de6-\u0def\u0e86\u0e89\u0e8c\u0e8e-\u0e93\u0e98\u0ea0\u0ea8\u0ea9\u0eac\u0f2a-\u0f33\u1369-\u137c"
    "\u13f5-\u13fd\u16ee-\u16f8\u170d\u171f\u17f0-\u17f9\u1878\u191d\u191e\u19b0-\u19c0\u19c8\u19c9\u19da"
    "\u1b4c\u1c80-\u1cbf\u1cf2\u1cf3\u1cfa\u2150-\u2152\u215f-\u2182\u2185-\u2189\u2c2f\u2c5f\u2cfd\u3007"
    "\u3021-\u3029\u3038-\u303a\u312e\u312f\u3192-\u3195\u31bb-\u31bf\u3220-\u32bf\u4db6-\u4dbf\u9fcd-\u9fff"
    "\ua698-\ua69d\ua6e6-\ua6ef\ua78f\ua794-\ua79f\ua7ab-\ua7f7\ua830-\ua835\ua8fd\ua8fe\ua9e0-\ua9fe\uaa7e"
    "\uaa7f\uab30-\uabbf"
)
_NUMERALS = "\xb2\xb3\xb9\xbc-\xbe\u2070\u2074-\u2079\u2080-\u2089\u2153-\u215e\u2460-\u249b\u24ea-\u2793"  # not digits
_QUOTE = "[`\x91-\x94\u2018-\u201f\u2039\u203a\xab\xbb]"
SPELLED = {
    "\xbc": "1/4",
    "\xbd": "1/2",
    "\xbe": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
    "\xa2": "cents",
    "\xa3": "#",
    **dict.fromkeys("\x80\xa4\u20a0\u20ac", "$"),
    **dict.fromkeys("\x85\u2026", "..."),
    **dict.fromkeys(["\x96", "\x97", "\u2013", "\u2014", "\u2015", "&mdash;", "&ndash;", "&md;"], "--"),
    "&lt;": "<",
    "&gt;": ">",
    "&amp;": "&",
}
"""Tokens and their replacements."""
QUOTES = str.maketrans(
    {
        **dict.fromkeys("\x92\u2019\u203a", "'"),
        **dict.fromkeys("\x91\u2018\u201b\u2039", "`"),
        **dict.fromkeys("\x93\u201c\xab", "``"),
        **dict.fromkeys('\x94\u201d\xbb"', "''"),
    }
)
"""Replacements of quotation marks in tokens that match `QUOTED`; elsewhere they stay."""
# the original skips characters without a rule: emoji, controls, everything above U+FFFF
UNKNOWN = re.compile(
    rf"[^!-~\w\x80\x91-\x94\x96\x97\xa1-\xac\xae-\xbf\u2010\u2011\u2013-\u2015\u2018-\u201f\u2026\u2039\u203a"
    rf"\u20a0\u20ac\u2153\u2154{_MARKS}{_SYMBOLS}]|[{_NEWER}\U00010000-\U0010ffff]"
)

# ---- abbreviations

_ENDING = r"""
    ph\.d al ala apr ariz assn aug bancorp bhd bldg blvd bros calif cos? colo conn corp ct dak dec esq
    est etc ext feb fla fri ga inc ind intl jan jr jul jun kans? ky ltd mar md mich minn mo mon mont neb
    nev nov oct okla penn plc p?ptes? p?ptys? ptes? ptys? rd rt sept? seq sq sr sys tel tenn thu thurs
    tues? univ va vt wed wisc? wyo
"""
_LEADING = """
    adj adm adv alex asst attys? ave brig capt cf cie cmdr col comdr cpl dept det drs? elec ens ft gen
    govs? hon insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres
    profs? pvt reps? rev sens? sfc sgt spc st ste supts? treas vs wm
"""
_CUT_SHORT = f"(?i:{'|'.join(_ENDING.split())})"  # may also end a sentence
_ABBREVIATION = f"(?i:{'|'.join((_ENDING + _LEADING).split())})"
BEFORE_NUMBERS = frozenset(["no", "nos", "fig", "figs", "p", "pp", "art", "ca", "prop"])
_EXTENSION = """(?i:bat|bmp|bz2|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|
    ps|py|sql|tar|txt|wav|x|xml|zip|wm[va])""".replace("\n    ", "")

_OPENINGS = """
    A According After An As At But Her Here He However If In It Last Many Now Once One Other Our She Since So
    Some Such That The Their Then There These They This We What When While Yet You
"""
# before one of these words the period of an initial is a full stop: "vitamin C. The dog"
STARTERS = frozenset(_OPENINGS.split())


# ---- rules: group 1 of a match is the token; the rest of the pattern must follow the token

_APOSTROPHE = "(?:['\x92\u2019]|&(?i:apos);)"
_ANY_APOSTROPHE = "(?:['`\x91\x92\u2018\u2019\u201b]|&(?i:apos);)"
_ACCENTED = r"&[aeiouAEIOU](?:acute|grave|uml);"
_LETTER = rf"[^\W\d_{_NUMERALS}]"
_ALNUM = rf"[^\W_{_NUMERALS}]"
_L = rf"(?:{_LETTER}|[{_MARKS}]|{_ACCENTED})"
_LD = rf"(?:{_ALNUM}|[{_MARKS}]|{_ACCENTED})"
_WORD = rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_OWNED = rf"(?:[dDoOlL]{_ANY_APOSTROPHE}{_ALNUM})?{_ALNUM}+"
_THING = rf"{_OWNED}(?:[-_\u2010\u2011]{_OWNED})*"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_NUMBER = r"[-+]?(?:\d+(?:[.,:]\d+)*|(?:[.,:]\d+)+)"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_AFTER = rf"(?:{_APOSTROPHE}(?:[msdMSD]|re|ve|ll|RE|VE|LL))"
_NOT = rf"[nN]{_ANY_APOSTROPHE}[tT]"
_EYES = r"[-^x=~<>']"

QUOTED = re.compile(rf"{_AFTER}|{_NOT}|{_APOSTROPHE}[tT]?|{_QUOTE}{{1,2}}|\"|&quot;")
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_NUMBERED = r"\d{3,4}[-GAP]?\d{3,5}"
_AREA = rf"\(\d{{2,3}}\)(?:GAP)?{_NUMBERED}"
_TELEPHONE = (
    rf"(?:(?:\+\+?)?(?:\d{{2,4}}[-GAP])?\d{{2,4}}[-GAP]{_NUMBERED}"
    r"|(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})"
)
_FRACTION = r"(?:\d{1,4}[-GAP])?\d{1,4}/\d{1,4}"
SPACED = re.compile(
    rf"(?<!<)<(?:[!?][A-Za-z-][^>]{{0,200}}|"
    rf"/?{_NAME}(?: +{_NAME}(?: *= *['\"][^'\"]{{0,200}}['\"])?){{0,20}} *(?:/ *)?)>"
    rf"|{_AREA}|(?<![^\s(\"'])(?:{_TELEPHONE}|{_FRACTION})".replace("GAP", " ")
)
"""Tokens that may contain spaces: HTML and SGML tags and comments, telephone numbers, fractions."""

_PLACE = r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])"

RULES = tuple(
    re.compile(rule)
    for rule in (
        r"((?i:can))(?i:not)",
        r"((?i:gon|wan))(?i:na)",
        r"((?i:got))(?i:ta)",
        r"((?i:lem|gim))(?i:me)",
        r"('(?i:t))(?i:is|was)",
        rf"({_WORD}){_AFTER}",
        rf"([A-Za-z]*?[A-MO-Za-mo-z]){_NOT}",
        rf"({_AFTER}|{_NOT})[^A-Za-z]",
        rf"({_WORD})",
        rf"({_CUT_SHORT}\.)..",
        rf"({_THING}\.)[,;:]",
        rf"({_WORD}\.)[,;:]",
        rf"({_THING})",
        r"([A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:" + _ACRONYM + r"\.|[A-Za-z0-9]+))+)",
        rf"({_SLASHED}(?:\\?/{_SLASHED}){{1,2}})",
        r"([A-Z]+(?:(?:\+|&(?:(?i:amp);)?)[A-Z]+)+|[Cc]\+\+|[CcFf]\#)",
        rf"([A-HJ-XZn]{_ANY_APOSTROPHE}{_L}{{2,}}|{_L}+[aeiouyAEIOUY]{_ANY_APOSTROPHE}[aeiouA-Z]{_L}*)",
        rf"({_APOSTROPHE}[nN]{_APOSTROPHE}?|[lLdDjJ]{_APOSTROPHE}|[Oo]l{_APOSTROPHE}|somethin{_APOSTROPHE})",
        rf"({_APOSTROPHE}(?:[Ee]m|[2-9]0s|till?|cause|[0-9][0-9](?!\S))|[Cc]'mon|[Ss]'mores|[Cc]ap'n)",
        rf"([Mm]a{_ANY_APOSTROPHE}am|[Oo]{_ANY_APOSTROPHE}clock|(?i:nor'easter|n?e'er|ev'ry|li'l|nat'l|c'est))",
        rf"([Yy]{_APOSTROPHE}){_L}",
        r"(')[A-Za-z]\S",
        rf"({_ABBREVIATION}\.)",
        rf"({_ACRONYM}\.|[A-Za-z]\.)",
        rf"((?i:{'|'.join(BEFORE_NUMBERS)})\.)\d",
        rf"({_ALNUM}+(?:\.{_ALNUM}+)*\.{_EXTENSION})[\s.?!,]",
        rf"({_NUMBER})",
        r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
        r"([\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+))",
        rf"({_AREA}|{_TELEPHONE})".replace("GAP", ""),
        rf"({_FRACTION})".replace("GAP", ""),
        r"(https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-])",
        # the original has "," to "_" as a range, by mistake: neither digits nor capitals before ".com"
        rf"((?:www\.(?:[^\s\"`<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}|(?:[^\s\"`'<>|.!?(){{}},-_$]+\.)+(?:com|net|org|edu)){_PLACE}?)",
        rf"(www\.(?:[^\s\"`<>|.!?(){{}},/]+\.)+[a-zA-Z]{{2,4}}{_PLACE})",  # the longest, not the first, of two readings
        r"((?:<|&lt;)?[a-zA-Z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|().{}]+\.)*[^\s\"<>|().{}]+(?:>|&gt;)?)",
        rf"(@[A-Za-z_][A-Za-z0-9_]*|@@+|\#{_L}+)",
        r"(&(?:(?i:amp|lt|gt|quot|mdash|ndash|md);|HT;|TL;|UR;|LR;|QC;|QL;|QR;|odq;|cdq;|\#\d+;))",
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z0-9])",
        rf"({_EYES}_{_EYES}|\({_EYES}[_.]?{_EYES}\)|[\^x=~<>]\.\[[\^x=~<>])",
        r"([A-Z]+\$|\*+|_+|-+|\.{3,5}|[?!]+|\#\#+|<<|>>|''|``)",
        rf"({_AFTER}|{_NOT}|{_QUOTE}{{1,2}}|{_APOSTROPHE})",
        r"(-(?:[LR][RCS]B|[lr][rcs]b)-)",
        r"([!-~]|[^\x00-\x7f\u058a\u2010\u2011])",
    )
)
