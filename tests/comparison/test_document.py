"""Reports as Markdown and HTML."""

import html
import re

import pytest

from captioning.comparison import document
from captioning.comparison.document import Bullets, Card, Cards, Heading, Picture, Table, Text

HOSTILE = [
    "<img src=x onerror=alert(1)> & &lt;b&gt;",
    "[a](http://b) ![c](d)",
    "# a",
    "1. a",
    "- a + b",
    "> a",
    "---",
    "a\n\n# b\n| c | d |",
    "*a* __b__ ~~c~~ snake_case_name _d_",
    "a | b \\| c",
    "a ` b `` c",
    "\\*a",
]


def test_cells_are_escaped_in_both_forms():
    table = document.Table(["", "a|b"], [["x", "1 < 2"]], "title")
    assert "| x | 1 &lt; 2 |" in document.markdown("t", [table])
    assert "a\\|b" in document.markdown("t", [table])
    assert "<td>1 &lt; 2</td>" in document.page("t", [table])


def blocks_of(text):
    """Each kind of block with `text` wherever it takes any."""
    prose = text.replace("`", "'")  # in prose, these mark code
    picture = Picture("a.png", b"", text, text)
    card = Card(text, picture, [(text, text, "1")], [text])
    return [
        Heading(text),
        Text(f"x {prose}"),
        Text(prose, "lead"),
        Bullets([prose]),
        Table(["", prose], [[prose, prose]], text),
        Cards([card, card._replace(photo=text)]),
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_stays_text_in_markdown(text):
    """Run names, captions and file names, as a renderer of GitHub's Markdown shows them."""
    renderer = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    renderer.enable(["table", "strikethrough"])
    rendered, plain = (
        renderer.render(document.markdown(content, blocks_of(content))) for content in (text, "word")
    )
    assert re.findall(r"<(\w+)", rendered) == re.findall(r"<(\w+)", plain)
    words = re.sub(r"<[^>]*>", " ", rendered).replace("'", "`")
    shown = html.unescape(" ".join(words.split()))
    assert (
        shown.count(" ".join(text.replace("'", "`").split())) == plain.count("word") - 1
    )  # one is an alternative text


def test_markup_of_our_own_sentences_stays():
    text = document.markdown("t", [Text("**a_ is < b** by `x_|`"), Table(["`a|b`"], [], "")])
    assert "**a\\_ is &lt; b** by `x_|`" in text and "| `a\\|b` |" in text
