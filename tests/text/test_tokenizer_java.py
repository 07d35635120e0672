"""The tokenizer compared with Stanford's in Java: real captions, every character, generated difficult text.

`pytest -s tests/text/test_tokenizer_java.py` prints the share of generated captions that agree in each class, and
the first that differ.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from captioning.text.tokenizer import tokenize
from tests.helpers.shared_data import SHARED, needs_shared
from tests.helpers.stanford import stanford


@needs_shared
def test_real_captions(tmp_path: Path) -> None:
    """COCO's validation captions and all of Flickr8k's: all are equal."""
    coco = json.loads((SHARED / "captions_val2017.json").read_text())["annotations"]
    lines = (SHARED / "flickr8k" / "Flickr8k.token.txt").read_text().splitlines()
    captions = [entry["caption"] for entry in coco] + [line.split("\t", 1)[1] for line in lines]
    theirs = stanford(captions, tmp_path)
    differing = [
        caption for caption, tokens in zip(captions, theirs, strict=True) if tokenize(caption) != tokens
    ]
    assert len(captions) > 50_000
    assert differing == []


def test_every_character(tmp_path: Path) -> None:
    """The first 65,536 characters, alone and within a word."""
    characters = [chr(code) for code in range(1, 0x10000) if not 0xD800 <= code < 0xE000]
    captions = [text for char in characters for text in (f"a {char} b", f"a{char}b x")]
    pairs = zip(captions, stanford(captions, tmp_path), strict=True)
    differing = [caption for caption, tokens in pairs if tokenize(caption) != tokens]
    assert differing == ["a \u058a b"]  # the Armenian hyphen


PIECES = {  # of each class, in hypothesis's patterns or as a list
    "numbers": r"[-+]?[0-9]{1,4}([.,:][0-9]{1,3}){0,2}(%|K|lb|s|'s|\+|x[0-9])?",
    "prices": r"(US|A|C)?[$£€¥#]?[0-9]{1,4}([.,][0-9]{2,3})?[$£€¥¢]?",
    "fractions": r"([0-9]{1,2}[- ]?)?([0-9]{1,2}/[0-9]{1,2}|[½¼¾⅓⅔⅛])|[0-9]{0,2}[½¼¾⅓⅔²³](\"|')?",
    "ordinals": "1st 2nd 3rd 4TH 21st 1ST nth 10th. 2nd-floor 19th-century 1sts mid-20th 5ths",
    "dates, times": r"[0-9]{1,2}[-/.:][0-9]{1,2}([-/.:][0-9]{2,4})?( ?[ap]\.?m\.?| ?[AP]M| ?o'clock)?|'?[1-9]0'?s",
    "telephones": r"(\+?1[-. ])?(\([0-9]{3}\) ?|[0-9]{3}[-. ])[0-9]{3}[-. ]?[0-9]{4}",
    "degrees": r"-?[0-9]{1,3} ?[°º] ?[CF]?|[0-9]['′’] ?[0-9]{0,2}[\"″”]?",
    "abbreviations": """a.m. p.m. P.M. U.S. U.S.A. e.g. i.e. etc. Mr. Mrs. Dr. St. st. No. no. vs. Ave. Inc. Co.
        Jr. jr. ft. Ft. J. J.R.R. Ph.D. B.C. D.C. Mt. Jan. Sept. approx. lbs. oz. in. pt. Sat. sun. t.v. L.A. fig.
        a.k.a. yrs. Blvd. hwy. No.5 no.1 no.#1 al. est. Rd. gov. univ. St.-like etc.b Inc.-made U.S.-built R.V.s""",
    "apostrophes": r"(dog|O|y|rock|ma|it|s|don|[A-Z]|)['’‘`´′‛](s|t|all|Neil|n|am|em|ll|re|60s|clock|[a-z])?['’]?",
    "contractions": """can't won't shouldn't've I'd've ain't cannot wanna gimme dunno rock'n'roll 'n o'er l'eau d'Or
        Ol' somethin' runnin' jack-o'-lantern cap'n c'mon d'oh ne'er s' dogs' it's its' that'd y'all o'clock
        ma'am 'em 'til 'tis 'twas 'cause CAN'T Don't it’s don’t can‘t gonna's gotta.""",
    "hyphens": r"[a-zA-Z0-9]{1,4}([-‐‑–—]{1,3}[a-zA-Z0-9.']{1,4}){1,3}|-{1,6}[a-z]{0,3}-?",
    "slashes": r"[a-zA-Z0-9]{1,3}([/\\][a-zA-Z0-9]{1,3}){1,3}|w/o?|[/\\]{1,3}|and/or",
    "ellipses, dashes": r"([a-z]{1,3})?(\.{2,6}|…{1,2}|[–—―-]{1,3}|\. \. \.)([a-zA-Z]{1,3})?",
    "emoji, smileys": """\U0001f436 \U0001f600! dog\U0001f436 \U0001f468‍\U0001f469 ☺ ❤️ ♥dog ★★ :) :-( ;) :D :P
        <3 :/ ^_^ (-_-) (^^) xD :'( >:( =) 8-) \\o/ ¯\\_(ツ)_/¯ :-)dog (: =D:""",
    "addresses": r"(https?://|www\.|ftp://)?[a-z]{1,5}(\.[a-z]{2,5}){1,2}(/[a-z0-9.?=&_-]{0,6}){0,2}[.,)]?",
    "e-mail, handles": r"[a-z.]{1,4}@[a-z]{1,4}(\.(com|co\.uk)){0,2}|<[a-z]@[a-z]\.com>|[@#]{1,2}[A-Za-z0-9é-]{1,4}",
    "accents, scripts": """café naïve Élan São e\u0301 cafe\u0301s İstanbul straße ﬁsh ª º µm Ελλάδα привет 日本語
        한국어 العربية עִבְרִית हिन्दी ไทย x² H₂O Ⅷ № ℃ Å l’été déjà-vu señor's d’été""",
    "brackets": r"[(\[{<]{1,2}[a-zA-Z0-9.,]{0,4}[)\]}>]{1,2}[.,]?|\([a-z]\)[a-z]{0,2}",
    "quotes": r"[\"'`“”‘’„‚«»‹›]{1,3}[a-zA-Z]{0,3}[.,!?]?[\"'`“”‘’„‚«»‹›]{0,3}",
    "entities": """&amp; &lt; &gt; &quot; &apos; &nbsp; &mdash; &ndash; &eacute; caf&eacute; &#39; dog&#39;s &#x27;
        &AMP; &copy; &hellip; &rsquo; R&amp;B AT&amp;T AT&T a&b &lt;b&gt; & && &amp;amp; it&apos;s don&apos;t &QUOT;""",
    "tags": """<b> </b> <br> <br/> <unk> <UNK> <s> </s> <a~href='x'> <!--~c~--> <!DOCTYPE~html> <?xml?> < > <> <<
        >> <3 <= => -> <- <b>dog</b> <p>x</p> <1> <a_b> <dog~on> <b""",
    "punctuation": r"[a-z]{0,2}[.,;:!?#$%^&*_+=~|@]{1,4}[a-zA-Z]{0,2}",
    "odd characters": """\u00ad \u200b \u200d \ufeff a\u202fb a\u2009b \u3000 a\u3000b a\xa0b \x01 \x7f \x80 \x93 \x99
        ™ ® © • · ¿ ¡ § ¶ Ａ ｂ １ ！ ． Ａｂ１ ｄｏｇ＇ｓ so\u00adft \ue000 \ufffd \U0001d54f → − × ÷ ≤ ① ㎏
        「dog」 a・b ー""",
    "any ASCII": r"[ -~]{1,7}",
    "any characters": st.text(st.characters(codec="utf-8"), min_size=1, max_size=4),
}
WORDS = ["a", "A", "the", "The", "man", "dog", "Dog", "in", "runs", "on", "US", "it", "I", "we", "with"]


def pieces_of(kind: str) -> list[str]:
    """Pieces of a class, the same in every run."""
    source = PIECES[kind]
    if isinstance(source, str) and "[" not in source:
        source = re.split(r"[ \n]+", source)  # not at other white space
    if isinstance(source, list):
        return [piece.replace("~", " ") for piece in source]
    strategy = st.from_regex(source, fullmatch=True) if isinstance(source, str) else source
    found: set[str] = set()

    @settings(
        max_examples=12,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(strategy, min_size=30, max_size=30, unique=True))
    def collect(pieces: list[str]) -> None:
        found.update(pieces)

    collect()
    return sorted(found)


def generated(kind: str, count: int) -> list[str]:
    """Captions of common words and up to three pieces of a class, some followed by punctuation."""
    draw, pieces = random.Random(kind), pieces_of(kind)
    captions = []
    for _ in range(count):
        words = []
        for _ in range(draw.randint(1, 3)):
            if draw.random() < 0.7:
                words.append(draw.choice(WORDS))
            words.append(draw.choice(pieces) + draw.choice(["", "", "", ".", ",", "!", "'s", ")", "..."]))
        captions.append(" ".join(words))
    return captions


def joined_pieces(count: int) -> list[str]:
    """Pieces of all classes, joined without spaces."""
    draw = random.Random("glued")
    pieces = [pieces_of(kind) for kind in PIECES]
    return [
        "".join(draw.choice(draw.choice(pieces)) for _ in range(draw.randint(2, 4))) for _ in range(count)
    ]


def test_generated_captions(tmp_path: Path) -> None:
    """By class and in total; pieces joined without spaces agree least."""
    captions = {kind: generated(kind, count=800) for kind in PIECES}
    captions["joined"] = joined_pieces(count=4_000)
    theirs = iter(stanford([caption for own in captions.values() for caption in own], tmp_path))
    shares, same = {}, 0
    for kind, own in captions.items():
        differing = [(caption, tokens) for caption in own if tokenize(caption) != (tokens := next(theirs))]
        shares[kind] = 1 - len(differing) / len(own)
        same += len(own) - len(differing)
        print(f"{kind:<18}{len(own):6d} captions  {shares[kind]:7.2%} agree")
        for caption, tokens in differing[:20]:
            print(f"    {caption!r}: Java {' '.join(tokens)!r}, here {' '.join(tokenize(caption))!r}")
    total = sum(map(len, captions.values()))
    print(f"{'all':<18}{total:6d} captions  {same / total:7.2%} agree")
    assert shares.pop("joined") > 0.97
    assert min(shares.values()) > 0.99, shares
    assert same / total > 0.995
