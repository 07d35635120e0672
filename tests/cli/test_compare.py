"""`captioning compare`: caption files without torch, dry runs from any folder, refused arguments."""

import json

import pytest

from tests.helpers.comparison import make_records, make_system, write_study
from tests.helpers.running import python, tool


def test_caption_files_are_compared_without_torch(tmp_path):
    records = make_records(19)
    references = {
        "images": [{"id": record.image_id, "file_name": f"{record.image_id}.jpg"} for record in records],
        "annotations": [
            {"id": 5 * record.image_id + k, "image_id": record.image_id, "caption": caption}
            for record in records
            for k, caption in enumerate(record.captions)
        ],
    }
    (tmp_path / "references.json").write_text(json.dumps(references))
    for name, share in (("one", 0.9), ("two", 0.2)):
        captions = make_system(name, records, right=share, seeds=1).runs[0].captions
        results = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    code = (
        "import sys\n"
        "from captioning.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    files = [str(tmp_path / f"{name}.json") for name in ("one", "two", "references")]
    arguments = ["compare", "--predictions", *files[:2], "--references", files[2]]
    done = python(code, *arguments, "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert "single trained models, not of kinds of model: one better than two" in done.out
    comparison = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [system["name"] for system in comparison["systems"]] == ["one", "two"]
    assert "curves" not in {path.stem for path in (tmp_path / "out" / "figures").iterdir()}


def test_a_dry_run_prints_sizes_and_trains_nothing(tmp_path):
    done = tool("compare", write_study(tmp_path), "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "study tiny: 2 decoders x 2 seeds, matched by parameters to lstm" in done.out
    assert "4 runs, 0 trained already:" in done.out
    assert not (tmp_path / "runs").exists()


def test_a_shipped_study_is_planned_by_name_from_any_folder(tmp_path):
    settings = ["dataset.train=23", "dataset.val=5", "dataset.test=7", "dataset.unseen=1"]
    done = tool("compare", "study_shapes", *settings, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "study study_shapes: 4 decoders x 3 seeds" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a study"),
        (["--predictions", "a.json"], "go together"),
        (["runs/a", "--dry-run"], "for a study"),
        (["a.yaml", "--split", "val"], "not for a study"),
        (["runs/none"], "not the folder of a run"),
        (["none.yaml"], "no such file"),
    ],
)
def test_refused_arguments(arguments, message):
    done = tool("compare", *arguments)
    assert done.code == 2 and message in done.err
