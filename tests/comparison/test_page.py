"""The report as files: self-contained HTML, Markdown with its figures, and JSON."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from captioning.comparison import document, page
from captioning.records import ImageRecord
from tests.helpers.comparison import make_comparison, make_records, make_system


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.links, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.images.append(values)
        self.links += [values[key] for key in ("href", "src", "srcset") if key in values]
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_self_contained_and_its_pictures_have_alternative_texts(tmp_path):
    Image.new("RGB", (500, 400), "red").save(tmp_path / "photo.jpg")
    photo = str(tmp_path / "photo.jpg")
    records = [ImageRecord(r.image_id, photo, ("<b>", *r.captions[1:]), "val") for r in make_records(13)]
    curve = [{"step": 5, "score": 0.1, "loss": 2.0, "seconds": 3.0, "tokens": 9.0, "teraflop": 0.2}]
    systems = [
        make_system(name, records, right=share, seeds=2) for name, share in (("a $\\x$", 0.9), ("b", 0.1))
    ]
    systems = [system._replace(runs=[run._replace(curve=curve) for run in system.runs]) for system in systems]
    comparison, scored, common_records = make_comparison(records, *systems)
    costs = dict.fromkeys(page.MEASURED_COSTS, 1.5) | {"repeats": 3}
    comparison["costs"] = {"a $\\x$": costs, "b": costs}
    page.write_report(tmp_path / "out", comparison, scored, common_records, title="A < B & more")

    text = (tmp_path / "out" / "report.html").read_text()
    parsed = Page()
    parsed.feed(text)
    assert not parsed.open
    assert "A &lt; B &amp; more" in text and "<b>" not in re.sub(r"<b>[\w $\\]+</b>", "", text)
    assert len(parsed.images) >= 6 and all(len(image["alt"]) > 10 for image in parsed.images)
    assert all(link.startswith("data:image/") for link in parsed.links)
    assert not re.search(r"https?://|url\(|@import|<script", text)
    for image in parsed.images:
        assert base64.b64decode(image["src"].split(",")[1])[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")

    markdown = (tmp_path / "out" / "report.md").read_text()
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (tmp_path / "out" / name).is_file()
    assert comparison["headline"] in markdown.replace("\\$", "$").replace("\\\\", "\\")
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert numbers["pairs"][0]["metrics"]["CIDEr-D"]["difference"] > 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format not allowed (EPS)"),
        (b"P6 12000 12000 255\n", "over 50 megapixels"),
        (b"<html>", "looks like HTML"),
        (None, "no such file"),
    ],
)
def test_a_photo_that_cannot_be_shown_leaves_its_reason(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "photo.jpg").write_bytes(content)
    record = ImageRecord(7, str(tmp_path / "photo.jpg"), ("a dog",), "val")
    shown = page.read_photo(record, "photo")
    assert isinstance(shown, str) and reason in shown
    card = document.Card("image 7", shown, [("a", "a dog", "1")], ["a dog"])
    assert f'class="missing">photo not shown: {shown}' in document.page("t", [document.Cards([card])])
    assert f"photo not shown: {shown}" in document.markdown("t", [document.Cards([card])])


@pytest.mark.parametrize(
    ("image", "mean"),
    [
        (Image.new("RGBA", (200, 200), (255, 0, 0, 0)), 255),  # transparent: the paper's white
        (Image.fromarray(np.full((200, 200), 40 * 257, np.uint16)), 40),
    ],
    ids=["alpha", "16 bits"],
)
def test_photos_are_read_as_the_encoder_reads_them(tmp_path, image, mean):
    image.save(tmp_path / "photo.png")
    picture = page.read_photo(ImageRecord(7, str(tmp_path / "photo.png"), ("a dog",), "val"), "photo")
    assert np.abs(np.asarray(Image.open(io.BytesIO(picture.content)), float) - mean).max() < 2
