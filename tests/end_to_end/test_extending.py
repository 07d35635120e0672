"""The examples of docs/extending.md: a decoder, encoder, data set, metric and search outside the package."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from captioning import datasets
from captioning.captioner.captioner import Captioner
from captioning.datasets import ShapesConfig
from captioning.errors import UserError
from tests.helpers.running import ROOT, Done, tool

EXAMPLES = ROOT / "docs" / "examples" / "extending"
MODULES = ("my_decoder", "my_encoder", "my_dataset", "my_metric", "my_search")


class Run(NamedTuple):
    folder: Path  # where the example files lie
    photo: Path
    train: Done

    def command(self, name: str, *arguments: str) -> Done:
        return tool(name, *arguments, cwd=self.folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training with the example files, unchanged, on a few drawn images."""
    folder = tmp_path_factory.mktemp("mine")
    for file in EXAMPLES.iterdir():
        shutil.copy(file, folder)
    shapes = ShapesConfig(root=str(folder / "shapes"), train=24, val=7, test=3, unseen=2, size=32)
    images = folder / "data" / "tabs"
    images.mkdir(parents=True)
    lines = []
    for record in datasets.load(shapes).records:
        name = f"{record.image_id}.png"
        shutil.copy(record.path, images / name)
        lines.append("\t".join([name, record.split, *record.captions]))
    (images / "captions.tsv").write_text("\n".join(lines) + "\n")
    done = tool("train", "my_experiment.yaml", cwd=folder)
    return Run(folder, next(images.glob("*.png")), done)


def test_train(run: Run) -> None:
    assert run.train.code == 0, run.train.err
    assert "best ROUGE-1" in run.train.out
    config = yaml.safe_load((run.folder / "runs/mine/model/config.yaml").read_text())
    assert [config[key]["kind"].partition(":")[0] for key in ("decoder", "encoder", "search")] == [
        "my_decoder", "my_encoder", "my_search",
    ]  # fmt: skip
    done = run.command("train", "runs/mine/config.yaml", "--resume")
    assert done.code == 0, done.err


def test_caption(run: Run) -> None:
    model = ("--model", "runs/mine")
    done = run.command("caption", str(run.photo), *model, "--allow-code")
    assert done.code == 0 and done.out.strip(), done.err
    wider = run.command("caption", str(run.photo), *model, "--allow-code", "--search", "beam")
    assert wider.code == 0 and wider.out.strip(), wider.err
    option = ("--search", "my_search:PenaltyConfig", "--search-option", "penalty=0.5")
    refused = run.command("caption", str(run.photo), *model, "--allow-code", *option)
    assert refused.code == 2 and "search.penalty" in refused.err and refused.err.count("\n") == 1


def test_a_models_code_is_not_imported_unless_allowed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run.command("caption", str(run.photo), "--model", "runs/mine")
    assert done.code == 2 and done.err.count("\n") == 1
    assert re.search(r"encoder\.kind: 'my_encoder:PatchesConfig' is code outside .*--allow-code", done.err)
    elsewhere = tool(
        "caption", str(run.photo), "--model", str(run.folder / "runs/mine"), "--allow-code", cwd=ROOT
    )
    assert elsewhere.code == 2 and elsewhere.err.count("\n") == 1
    assert "no module my_encoder in" in elsewhere.err and "PYTHONPATH" in elsewhere.err
    monkeypatch.chdir(run.folder)
    with pytest.raises(UserError, match="allow_code=True"):
        Captioner.open(run.folder / "runs/mine/model")


def test_evaluate_with_the_metric(run: Run) -> None:
    done = run.command("evaluate", "runs/mine", "--split", "test", "--allow-code")
    assert done.code == 0, done.err
    results = json.loads((run.folder / "runs/mine/predictions_test.json").read_text())
    shapes = datasets.load(
        ShapesConfig(root=str(run.folder / "shapes"), train=24, val=7, test=3, unseen=2, size=32)
    )
    records = [record for record in shapes.records if record.split == "test"]
    rows = [f"{record.image_id}.png,{caption}" for record in records for caption in record.captions]
    (run.folder / "references.csv").write_text("\n".join(["file_name,caption", *rows]) + "\n")
    truth = [{"image_id": f"{record.image_id}.png", "caption": record.captions[0]} for record in records]
    (run.folder / "truth.json").write_text(json.dumps(truth))
    (run.folder / "ours.json").write_text(json.dumps(results))
    scores = ("--references", "references.csv", "--metric", "my_metric:Rouge1")
    done = run.command("evaluate", "--predictions", "truth.json", *scores)
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("ROUGE-1")]
    assert float(line.split()[1]) == 100
    done = run.command("evaluate", "--predictions", "truth.json", "--against", "ours.json", *scores)
    assert done.code == 0 and "ROUGE-1" in done.out, done.err


def test_prepare_the_data_set(run: Run) -> None:
    done = run.command("prepare", "my_dataset:TabsConfig", "--needs")
    assert done.code == 0 and "captions.tsv" in done.out, done.err
    done = run.command("prepare", "my_dataset:TabsConfig", "--out", "report")
    assert done.code == 0 and "36 opened, 0 broken" in done.out, done.err


@pytest.mark.parametrize("module", MODULES)
def test_examples_are_short_and_on_the_page(module: str) -> None:
    assert len((EXAMPLES / f"{module}.py").read_text().splitlines()) < 70
    page = (ROOT / "docs" / "extending.md").read_text()
    assert f'--8<-- "docs/examples/extending/{module}.py"' in page
