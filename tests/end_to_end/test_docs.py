"""The documentation's commands and snippets: those marked `<!-- run -->` are run, the others name existing options."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.helpers.running import ROOT, python, tool

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(<!-- run -->\n)?```sh\n(.*?)```", re.DOTALL)


def commands(page: Path, *, run: bool) -> list[str]:
    """The `captioning` commands of a page, one per line; only those marked to be run, or all."""
    found = []
    for marked, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if marked or not run:
            lines = block.replace("\\\n", " ").splitlines()
            found += [
                line.split("captioning ", 1)[1] for line in lines if re.match(r"(\S+/)?captioning ", line)
            ]
    return found


RUN = [(page.name, command) for page in PAGES for command in commands(page, run=True)]
NAMED = [(page.name, command) for page in PAGES for command in commands(page, run=False)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages assume: a small run, a photo, photos with captions, files of captions."""
    folder = tmp_path_factory.mktemp("docs")
    done = tool("quickstart", "--small", "name=shapes", cwd=folder)
    assert done.code == 0, done.err
    pictures = sorted((folder / "data").rglob("*.png"))[:7]
    (folder / "photos" / "images").mkdir(parents=True)
    rows = ["file_name,caption,split"]
    for number, picture in enumerate(pictures):
        shutil.copy(picture, folder / "photos" / "images" / f"{number}.png")
        split = "train" if number < 5 else "val"
        rows += [
            f"{number}.png,a red shape number {number},{split}",
            f"{number}.png,there is one shape,{split}",
        ]
    (folder / "photos" / "captions.csv").write_text("\n".join(rows) + "\n")
    shutil.copy(pictures[0], folder / "photo.png")
    ids = range(1, 6)
    references = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in ids],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "caption": f"a dog number {i} runs on {place}"}
            for i in ids
            for k, place in enumerate(("grass", "sand"))
        ],
    }
    (folder / "references.json").write_text(json.dumps(references))
    for name, text in (("predictions", "a dog number {} runs"), ("other", "a cat {} on sand")):
        results = [{"image_id": i, "caption": text.format(i)} for i in ids]
        (folder / f"{name}.json").write_text(json.dumps(results))
    return folder


@pytest.mark.parametrize(("page", "command"), RUN, ids=[f"{page}: {command[:60]}" for page, command in RUN])
def test_commands_marked_to_be_run_end_well(page, command, workplace):
    name, *arguments = shlex.split(command, comments=True)
    done = tool(name, *arguments, cwd=workplace)
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", sorted({command.split()[0] for _, command in NAMED}))
def test_options_in_the_documentation_exist(name):
    done = tool(name, "--help")
    assert done.code == 0
    known = set(re.findall(r"--[a-z][a-z-]+", done.out))
    if name == "prepare":
        known |= set(re.findall(r"--[a-z][a-z-]+", tool(name, "shard", "--help").out))
    for page, command in NAMED:
        if command.split()[0] == name:
            options = {word for word in shlex.split(command, comments=True) if re.match(r"--[a-z]", word)}
            assert options <= known, f"{page}: captioning {command}"


@pytest.mark.parametrize("snippet", ["caption_from_python", "count_flops", "score_from_python"])
def test_python_snippets_run(snippet, workplace):
    path = ROOT / "docs" / "examples" / f"{snippet}.py"
    code = "import os, runpy, sys; os.chdir(sys.argv[1]); runpy.run_path(sys.argv[2])"
    done = python(code, str(workplace), str(path))
    assert done.code == 0 and done.out.strip(), done.err


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 900
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
