"""The prepare tool as a person runs it, and the figures of its report against a count by hand."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from captioning.cli import prepare
from captioning.cli.main import main
from captioning.datasets import DATASETS, CocoConfig, Flickr8kConfig, FolderConfig, KarpathyConfig
from captioning.datasets.base import Download, Guide, RemoteFile
from captioning.datasets.prepare.survey import survey, survey_files
from captioning.errors import UserError
from captioning.records import ImageRecord
from captioning.text.vocabulary import Vocabulary
from tests.helpers.datasets import write_coco


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the tool in `tmp_path`, in this process: torch is imported once for all tests."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", list(sys.argv))
        with pytest.raises(SystemExit) as end:
            main(["prepare", *arguments])
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


def photograph(path: Path, seed: int, *, size: tuple[int, int] = (37, 23)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def folder(root: Path, *, splits: str = "ttttvvx") -> Path:
    """Seven photographs with two captions each; t train, v val, x test."""
    names = {"t": "train", "v": "val", "x": "test"}
    lines = ["file_name,caption,split"]
    for number, split in enumerate(splits):
        photograph(root / "images" / f"{number}.jpg", number)
        lines.append(f"{number}.jpg,A dog runs .,{names[split]}")
        lines.append(
            f"{number}.jpg,Costs $5 and ${number} {'cat' if split == 't' else 'bird'},{names[split]}"
        )
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    return root


def test_help_teaches_and_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from captioning.cli.main import main\n"
        "try: main(['prepare', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'PIL', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert "examples:" in done.stdout and "splits=random" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_empty_folder_is_told_what_belongs_there(tmp_path: Path, run: Run) -> None:
    done = run("flickr8k")
    assert done.returncode == 2 and done.stdout == ""
    assert "Flickr_8k.trainImages.txt" in done.stderr and "forms.illinois.edu" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: data/flickr8k: missing or empty")
    assert list(tmp_path.iterdir()) == []


def test_report_of_a_folder(tmp_path: Path, run: Run) -> None:
    folder(tmp_path / "photos")
    (tmp_path / "photos/images/3.jpg").write_bytes(b"<html>")
    done = run("folder", "--root", "photos", "--min-count", "4", "max_bad=0.25", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "runs/prepare-folder/report.json").read_text())
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert (train["images"], train["captions"], train["captions_per_image"]) == (4, 8, {"2": 4})
    # "a dog runs" and "costs $ 5 and $ N cat": 3 and 7 tokens
    assert train["lengths"]["0"] == 3 and train["lengths"]["100"] == 7 and train["mean_length"] == 5
    assert report["vocabulary"] == {"min_count": 4, "words": 8, "training_words": 12}
    # of val's 20 tokens bird is unknown twice, and the numbers 4 and 5: 5 is known
    assert val["unknown"] == {"bird": 2, "4": 1} and val["known_tokens"] == pytest.approx(1 - 3 / 20)
    assert val["known_captions"] == 0.5
    assert report["files"]["checked"] == 7
    assert [bad["item"] for bad in report["files"]["broken"]] == ["photos/images/3.jpg"]
    assert (tmp_path / "runs/prepare-folder/broken.csv").read_text().count("\n") == 2
    with Image.open(tmp_path / report["contact_sheet"]) as sheet:
        assert sheet.format == "PNG" and sheet.width == 1600
        assert np.asarray(sheet.convert("L")).std() > 20


def test_report_for_a_person_and_too_many_broken_files(tmp_path: Path, run: Run) -> None:
    folder(tmp_path / "photos")
    (tmp_path / "photos/images/3.jpg").write_bytes(b"")
    done = run("folder", "--root", "photos", "--out", "shown")
    assert done.returncode == 2
    assert "error: photos: 1 of 7 images are broken, more than max_bad = 0.01" in done.stderr
    assert "7 opened, 1 broken" in done.stdout and "contact sheet: shown/contact_sheet.png" in done.stdout
    assert "Traceback" not in done.stderr
    done = run("folder", "--root", "photos", "--quick")
    assert done.returncode == 0 and "opened" not in done.stdout


def test_same_photograph_in_two_splits_is_found_by_its_bytes(tmp_path: Path, run: Run) -> None:
    images = folder(tmp_path / "photos") / "images"
    (images / "6.jpg").write_bytes((images / "0.jpg").read_bytes())
    (images / "2.jpg").write_bytes((images / "1.jpg").read_bytes())
    done = run("folder", "--root", "photos")
    assert done.returncode == 2
    assert (
        "leakage: 1 images are in two splits by content (first photos/images/0.jpg (train) =" in done.stderr
    )
    report = json.loads((tmp_path / "runs/prepare-folder/report.json").read_text())
    assert [len(group) for group in report["files"]["repeated_within_a_split"]] == [2]


def test_pictures_that_may_have_lost_their_end_are_counted(tmp_path: Path, run: Run) -> None:
    images = folder(tmp_path / "photos") / "images"
    for name, rows in (("0.jpg", 10), ("5.jpg", 15), ("2.jpg", 1)):  # of 23
        pixels = np.random.default_rng(int(name[0])).integers(0, 256, (23, 37, 3), dtype=np.uint8)
        pixels[-rows:] = 77
        Image.fromarray(pixels).save(images / name, "BMP")
    done = run("folder", "--root", "photos")
    assert done.returncode == 0
    assert (
        "accepted with a note: 2 the file may have lost its end "
        "(first photos/images/0.jpg: lower 43 % is one colour; the file may have lost its end)"
    ) in done.stdout
    report = json.loads((tmp_path / "runs/prepare-folder/report.json").read_text())
    assert [noted["item"] for noted in report["files"]["noted"]] == [
        "photos/images/0.jpg", "photos/images/5.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize("quick", [(), ("--quick",)])
def test_what_cannot_be_trained_on_is_unfit(tmp_path: Path, run: Run, quick: tuple[str, ...]) -> None:
    for splits, message in (
        ("x", "photos: cannot be trained on: no images in the split train"),
        ("t", "photos: cannot be trained on: training needs two images or more"),
    ):
        folder(tmp_path / "photos", splits=splits)
        done = run("folder", "--root", "photos", "--min-count", "1", *quick)
        assert done.returncode == 2 and f"error: {message}" in done.stderr
        assert "images" in done.stdout  # the report comes first
    images = folder(tmp_path / "photos", splits="tttt") / "images"
    done = run("folder", "--root", "photos", *quick)
    note = "note: photos: has no split val; 1 of its 4 training images are drawn for it (split_seed 0)"
    assert done.returncode == 0 and note in done.stdout
    assert json.loads((tmp_path / "runs/prepare-folder/report.json").read_text())["notes"] == [note]
    done = run("folder", "--root", "photos", "--min-count", "100", *quick)
    assert done.returncode == 2 and "no word occurs 100 times in the training captions" in done.stderr
    folder(tmp_path / "photos")
    (images / "6.jpg").write_bytes((images / "0.jpg").read_bytes())
    assert (
        "leakage: 1 images are in two splits by content" in run("folder", "--root", "photos", *quick).stderr
    )


def test_a_data_set_without_training_captions_on_purpose_is_fit(tmp_path: Path, run: Run) -> None:
    """The example in --help: COCO's val2017 alone."""
    write_coco(tmp_path / "coco", split="val")
    for path in (tmp_path / "coco/val2017").iterdir():
        photograph(path, int(path.stem))
    assert run("coco", "--root", "coco", "train=null").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "rot=x"], "folder: rot: unknown key; did you mean root?"),
        (["folder", "max_bad=2"], "folder: max_bad: input should be less than or equal to 1, got 2"),
        (["folder", "root"], "'root': write a setting as KEY=VALUE"),
        (["flickr8k", "--download", "images"], "--download images: unknown; splits can be downloaded"),
    ],
)
def test_mistakes_on_the_command_line(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_shapes_are_drawn_and_shown(run: Run) -> None:
    done = run("shapes", "--root", "drawn", "train=11", "val=7", "test=5", "unseen=3")
    assert done.returncode == 0, done.stderr
    assert "26 opened, 0 broken" in done.stdout and "test_unseen" in done.stdout


def test_download_and_unpack_of_a_part(tmp_path: Path) -> None:
    """`--download` against a server here: only the wanted entries arrive, in their folder, and once."""
    site = tmp_path / "site"
    site.mkdir()
    with zipfile.ZipFile(site / "all.zip", "w") as archive:
        archive.writestr("dataset_coco.json", "{}")
        archive.writestr("readme.txt", "no")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        file = RemoteFile(url=f"http://127.0.0.1:{server.server_port}/all.zip")
        item = Download(
            file=file, max_bytes=100, content="", prefix="dataset_", suffix=".json", folder="texts"
        )
        guide = Guide(title="", layout="", source="", licence="", downloads={"captions": item})
        for _ in range(2):
            prepare.download(guide, ["captions"], tmp_path / "root")
        server.shutdown()
        thread.join()
    assert sorted(
        str(p.relative_to(tmp_path / "root")) for p in (tmp_path / "root").rglob("[!.]*") if p.is_file()
    ) == [
        "downloads/all.zip",
        "downloads/checksums.json",
        "texts/dataset_coco.json",
    ]


def test_every_part_is_pinned() -> None:
    downloads = [item for config in DATASETS.values() for item in config.guide.downloads.values()]
    assert len(downloads) == 8
    for item in downloads:
        assert item.file.size and item.file.sha256 and len(item.file.sha256) == 64
        assert item.file.size < item.max_bytes


def test_published_counts_stand_only_beside_what_they_are_of() -> None:
    coco, flickr = [ImageRecord(1, "", ("a",), "train")], [ImageRecord("1.jpg", "", ("a",), "train")]
    assert sum(KarpathyConfig().published_counts(coco).values()) == 123_287
    assert sum(KarpathyConfig().published_counts(flickr).values()) == 8000
    assert sum(KarpathyConfig().published_counts(flickr * 10_001).values()) == 31_014
    assert Flickr8kConfig(splits="random").published_counts(flickr) == {}
    assert CocoConfig(train="annotations/captions_train2014.json").published_counts(coco) == {"val": 5000}
    assert FolderConfig().published_counts(flickr) == {}


def test_survey_agrees_with_the_vocabulary_that_is_trained_on() -> None:
    captions = [
        ("A dog runs.", "The dog sits."),
        ("A cat sits.", "Dogs don't run."),
        ("The bird can't run.",),
    ]
    records = [ImageRecord(n, f"{n}", each, "train" if n < 2 else "val") for n, each in enumerate(captions)]
    for min_count in (1, 2, 3):
        try:
            words = set(
                Vocabulary.build([c for each in captions[:2] for c in each], min_count=min_count).words
            )
        except UserError:  # no word is so frequent
            words = set()
        found = survey(records, min_count=min_count)
        assert found.vocabulary == max(0, len(words) - 4)
        tokens = ["the", "bird", "ca", "n't", "run"]
        known = sum(token in words for token in tokens) / len(tokens)
        assert found.splits["val"].known_tokens == pytest.approx(known)


def test_files_that_cannot_be_read_do_not_stop_the_survey(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")

    def read_notes(file: Any) -> tuple[str, ...]:
        content = file.read()
        if content == b"two":
            raise UserError("b: not an image")
        return ("looks odd",)

    records = [ImageRecord(name, str(tmp_path / name), ("x",), "train") for name in "abc"]
    found = survey_files(records, read_notes=read_notes, threads=2)
    assert [(Path(noted.item).name, noted.reason) for noted in found.noted] == [("a", "looks odd")]
    assert found.checked == 3 and found.repeated == [] and found.leaked == []
    assert [(Path(bad.item).name, bad.reason) for bad in found.broken] == [
        ("b", "b: not an image"),
        ("c", "No such file or directory"),
    ]
