"""`captioning quickstart --small`: a data set, a trained model, captions and scores from one command."""

import json
import re

from captioning.captioner.captioner import Captioner
from tests.helpers.running import tool


def test_the_small_quickstart_runs_all_stages(tmp_path):
    first = tool("quickstart", "--small", cwd=tmp_path)
    assert first.code == 0, first.err
    stages = [line.split(" ")[1] for line in first.out.splitlines() if re.match(r"\[\d/5\] ", line)]
    assert stages == ["Captioning", "Drawing", "Training", "Captioning", "Results"]

    run = tmp_path / "runs" / "shapes_small"
    assert len(Captioner.open(run / "model").vocabulary) > 50
    for split in ("test", "test_unseen"):
        predictions = json.loads((run / f"predictions_{split}.json").read_text())
        scores = json.loads((run / f"scores_{split}.json").read_text())["scores"]
        assert len(predictions) == 16
        assert scores["ROUGE_L"] > 0.2  # an untrained model has 0.01
        row = rf"{split} +{100 * scores['Bleu_4']:.1f} +{100 * scores['CIDEr-D']:.1f} +{100 * scores['ROUGE_L']:.1f}"
        assert re.search(row, first.out)
        if split == "test":
            assert f"  {predictions[0]['image_id']}: {predictions[0]['caption']}\n" in first.out

    weights = run / "model" / "model.safetensors"
    modified = weights.stat().st_mtime_ns
    again = tool("quickstart", "--small", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "already trained" in again.out and weights.stat().st_mtime_ns == modified


def test_settings_are_passed_to_the_training(tmp_path):
    done = tool("quickstart", "--small", "training.epochs=none", cwd=tmp_path)
    assert done.code == 2
    assert "training.epochs" in done.err and len(done.err.splitlines()) == 1


def test_a_failing_stage_ends_the_quickstart(tmp_path):
    """A checkpoint without a model: training refuses to start anew, and no later stage runs."""
    checkpoint = tmp_path / "runs" / "shapes_small" / "checkpoints" / "1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    done = tool("quickstart", "--small", "dataset.train=8", "dataset.val=2", cwd=tmp_path)
    assert done.code == 2
    assert "--resume" in done.err and len(done.err.splitlines()) == 1
    assert "[4/5]" not in done.out
