"""Train, resume, caption and evaluate from the command line, as a user does."""

import json
import subprocess
import sys

from tests.helpers.running import ROOT
from tests.helpers.training import eventually, metrics_of, tiny_settings


def tool(name, *arguments, env=None):
    return subprocess.run(
        [sys.executable, "-m", "captioning", name, *arguments], capture_output=True, text=True, env=env
    )


def test_end_to_end_as_a_user(tmp_path):
    import yaml

    config = tmp_path / "tiny.yaml"
    values = tiny_settings(tmp_path, "tiny")
    values["tracking"] = {"mode": "offline"}
    config.write_text(yaml.safe_dump(values))
    trained = tool("train", str(config), "training.learning_rate=0.003")
    assert trained.returncode == 0, trained.stderr
    run = tmp_path / "runs" / "tiny"
    assert str(run / "model") in trained.stdout
    lines = metrics_of(run)
    assert [line["step"] for line in lines if "val/CIDEr-D" in line] == [5, 10]
    # wandb's process may still be starting when so short a run ends
    assert eventually(lambda: list((run / "wandb").glob("offline-run-*/*.wandb"))), (
        "wandb wrote no offline run"
    )
    again = tool("train", str(run / "config.yaml"), "--resume")
    assert again.returncode == 0, again.stderr
    image = next((tmp_path / "shapes").rglob("*.png"))
    captioned = tool("caption", str(image), "--model", str(run / "model"))
    assert captioned.returncode == 0 and captioned.stdout.strip(), captioned.stderr
    evaluated = tool("evaluate", str(run), "--split", "test", "test_unseen", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    predictions = json.loads((run / "predictions_test.json").read_text())
    assert len(predictions) == 6 and {"image_id", "caption"} <= predictions[0].keys()
    scores = json.loads((run / "scores_test_unseen.json").read_text())
    assert scores["signature"]["coverage"]["scored"] == 5


def test_a_user_error_is_one_sentence_and_exit_code_2(tmp_path):
    done = tool("train", str(ROOT / "configs" / "shapes.yaml"), "training.epochz=3")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("training.epochz: unknown key; did you mean training.epochs?")
    assert "Traceback" not in done.stderr
