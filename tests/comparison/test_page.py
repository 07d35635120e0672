"""The report as files: self-contained HTML, Markdown with its figures, and JSON."""

import base64
import html.parser
import json
import re

from PIL import Image

from captioning.comparison import page
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
    systems = [make_system(name, records, right=share, seeds=2) for name, share in (("a", 0.9), ("b", 0.1))]
    systems = [system._replace(runs=[run._replace(curve=curve) for run in system.runs]) for system in systems]
    comparison, scored, common_records = make_comparison(records, *systems)
    costs = dict.fromkeys(page.MEASURED_COSTS, 1.5) | {"repeats": 3}
    comparison["costs"] = {"a": costs, "b": costs}
    page.write_report(tmp_path / "out", comparison, scored, common_records, title="A < B & more")

    text = (tmp_path / "out" / "report.html").read_text()
    parsed = Page()
    parsed.feed(text)
    assert not parsed.open
    assert "A &lt; B &amp; more" in text and "<b>" not in re.sub(r"<b>[\w ]+</b>", "", text)
    assert len(parsed.images) >= 6 and all(len(image["alt"]) > 10 for image in parsed.images)
    assert all(link.startswith("data:image/") for link in parsed.links)
    assert not re.search(r"https?://|url\(|@import|<script", text)
    for image in parsed.images:
        assert base64.b64decode(image["src"].split(",")[1])[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")

    markdown = (tmp_path / "out" / "report.md").read_text()
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (tmp_path / "out" / name).is_file()
    assert comparison["headline"] in markdown
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert numbers["pairs"][0]["metrics"]["CIDEr-D"]["difference"] > 0
