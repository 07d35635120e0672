"""Reports of text, tables and pictures, written as Markdown with image files and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from captioning.utils.files import atomic_write, write_text


class Heading(NamedTuple):
    text: str
    level: int = 2


class Text(NamedTuple):
    """A paragraph with `**strong**` and `` `code` `` markup. `kind`: "lead" is emphasised, "note" is smaller."""

    text: str
    kind: str = ""


class Bullets(NamedTuple):
    items: Sequence[str]


class Table(NamedTuple):
    """Rows of text; the first column is left-aligned, the others right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str


class Picture(NamedTuple):
    """An image file, its name in `figures/`, its alternative text and its caption."""

    name: str
    content: bytes
    alt: str
    caption: str


class Card(NamedTuple):
    """A photo, or the reason why there is none, with one line per system and the reference captions."""

    title: str
    photo: Picture | str
    lines: Sequence[tuple[str, str, str]]  # system, caption, score
    references: Sequence[str]


class Cards(NamedTuple):
    cards: Sequence[Card]


Block = Heading | Text | Bullets | Table | Picture | Cards


def write(folder: Path, title: str, blocks: Sequence[Block]) -> None:
    """Write `report.md`, `report.html` and `figures/` into `folder`."""
    pictures = [block for block in blocks if isinstance(block, Picture)]
    cards = [card for block in blocks if isinstance(block, Cards) for card in block.cards]
    for picture in [*pictures, *(card.photo for card in cards if isinstance(card.photo, Picture))]:
        with atomic_write(folder / "figures" / picture.name) as temporary:
            temporary.write_bytes(picture.content)
    write_text(folder / "report.md", markdown(title, blocks))
    write_text(folder / "report.html", page(title, blocks))


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report in Markdown; its pictures are in `figures/`."""
    return "\n\n".join([f"# {_escape(title)}", *(_markdown(block) for block in blocks)]) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_escape(block.text)}"
    if isinstance(block, Text):
        return f"> {_escape_prose(block.text)}" if block.kind == "lead" else _escape_prose(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_escape_prose(item)}" for item in block.items)
    if isinstance(block, Table):
        lines = [[_cell_text(cell) for cell in line] for line in (block.columns, *block.rows)]
        lines.insert(1, ["---", *["---:"] * (len(block.columns) - 1)])
        rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{_escape(block.title)}**\n\n{rows}"
    if isinstance(block, Picture):
        return f"{_markdown_image(block)}\n\n*{_escape(block.caption)}*"
    return "\n\n".join(_card(card) for card in block.cards)


def _cell_text(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\|", _escape_prose(text))  # of code, whose pipes would end the cell


def _card(card: Card) -> str:
    lines = [f"**{_escape(card.title)}**", ""]
    if isinstance(card.photo, Picture):
        lines += [_markdown_image(card.photo), ""]
    else:
        lines += [f"*photo not shown: {_escape(card.photo)}*", ""]
    lines += [
        f"- {_escape(system)}: “{_escape(caption)}” ({_escape(score)})"
        for system, caption, score in card.lines
    ]
    lines += [f"- reference: “{_escape(reference)}”" for reference in card.references]
    return "\n".join(lines)


def _markdown_image(picture: Picture) -> str:
    return f"![{_escape(picture.alt)}](figures/{picture.name})"


def _escape(text: str) -> str:
    """The text as Markdown that shows it literally, in one line.

    `<` and `&` become entities, which every Markdown program understands; `$` and `~` are marks on GitHub.
    """
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    # what begins a heading, list, quotation or line where it is the first of its line
    return re.sub(r"^( *(?:\d+(?=[.)](?: |$))|(?=[#+=-]+(?: |$)|>)))", r"\1\\", text)


def _escape_prose(text: str) -> str:
    """The same for text with `**strong**` and `` `code` `` markup, which stays."""
    pieces = re.split(r"(\*\*.+?\*\*|`.+?`)", text)
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            pieces[number] = _escape(piece)
        elif piece.startswith("**"):
            pieces[number] = f"**{_escape_prose(piece[2:-2])}**"
    return "".join(pieces)


WRAP_CELL = 26
"""Table cells with more characters than this may wrap."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #545d68; --line: #d0d7de;
  --band: #f3f5f8; --lead: #eaf2fb; --edge: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebef; --paper: #14181d; --soft: #a8b1bc; --line: #39414b;
  --band: #1d232a; --lead: #16273a; --edge: #6db3ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.6rem 0 .4rem; }
p { margin: .6rem 0; max-width: 48rem; }
p.lead { background: var(--lead); border-left: 4px solid var(--edge); padding: .8rem 1rem; font-size: 1.08rem;
  max-width: none; }
p.note, figcaption, .reference { color: var(--soft); font-size: .9rem; }
ul { padding-left: 1.2rem; max-width: 48rem; }
li { margin: .3rem 0; }
code { background: var(--band); padding: .1em .3em; border-radius: 3px; font-size: .9em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .2rem 0 .4rem; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8rem; }
thead th { background: var(--band); border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; }
td.long { white-space: normal; min-width: 9rem; max-width: 14rem; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; display: block; background: #ffffff; border-radius: 4px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1rem;
  margin: 1rem 0; }
.card { border: 1px solid var(--line); border-radius: 6px; overflow: hidden; background: var(--band); }
.card img { width: 100%; height: 12rem; object-fit: contain; display: block; background: #22272e; }
.card p.missing { height: 12rem; margin: 0; padding: 1rem; display: grid; place-items: center; background: #8a919a;
  color: #14181d; }
.card img.small { image-rendering: pixelated; }
.card div { padding: .7rem .9rem .9rem; }
.card h4 { margin: 0 0 .4rem; font-size: .92rem; overflow-wrap: anywhere; }
.card p { margin: .35rem 0; font-size: .93rem; overflow-wrap: anywhere; }
.card b { font-weight: 600; }
@media (max-width: 40rem) { main { padding: 1rem .8rem 3rem; } h1 { font-size: 1.4rem; }
  figure img { max-width: none; width: 42rem; }
  p.lead { font-size: 1rem; } th, td { padding: .25rem .5rem; } }
@media print { .scroll { overflow: visible; } .card { break-inside: avoid; } }
"""


def page(title: str, blocks: Sequence[Block]) -> str:
    """The report as one HTML page that loads nothing: pictures are embedded."""
    body = "\n".join(_html(block) for block in blocks)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        kind = f' class="{block.kind}"' if block.kind else ""
        return f"<p{kind}>{_inline(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Picture):
        alt, caption = html.escape(block.alt, quote=True), _inline(block.caption)
        image = f'<div class="scroll" tabindex="0"><img src="{_data(block)}" alt="{alt}"></div>'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    return f'<div class="cards">{"".join(_html_card(card) for card in block.cards)}</div>'


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{_inline(row[0])}</th>{"".join(_cell(cell) for cell in row[1:])}</tr>'
        for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{_inline(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    return f"<td{' class=long' if len(text) > WRAP_CELL else ''}>{_inline(text)}</td>"


def _html_card(card: Card) -> str:
    if isinstance(card.photo, str):
        photo = f'<p class="missing">photo not shown: {html.escape(card.photo)}</p>'
    else:
        kind = ' class="small"' if len(card.photo.content) < 6000 else ""
        photo = f'<img{kind} src="{_data(card.photo)}" alt="{html.escape(card.photo.alt, quote=True)}">'
    lines = "".join(
        f"<p><b>{html.escape(system)}</b> ({html.escape(score)}): {html.escape(caption) or '<i>empty</i>'}</p>"
        for system, caption, score in card.lines
    )
    references = "".join(f'<p class="reference">{html.escape(text)}</p>' for text in card.references)
    return f'<article class="card">{photo}<div><h4>{html.escape(card.title)}</h4>{lines}{references}</div></article>'


def _inline(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def _data(picture: Picture) -> str:
    kind = "jpeg" if picture.name.endswith(".jpg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture.content).decode('ascii')}"
