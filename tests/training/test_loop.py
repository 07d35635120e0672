"""The loop: phases, an existing run, trained encoders, log lines."""

import io
import math
import re
from pathlib import Path

import pytest
import torch

from captioning.captioner.captioner import Captioner
from captioning.errors import UserError
from captioning.text.vocabulary import Vocabulary
from captioning.training import checkpoint
from captioning.training.checkpoint import Progress
from captioning.utils import progress
from tests.helpers.training import CAPTIONS, experiment, small_run, tiny_settings


def test_a_second_phase_starts_from_the_best_model_and_continues_counting(tmp_path):
    values = tiny_settings(tmp_path, "two", epochs=2)
    values["phases"] = [{**values["training"], "epochs": 1, "learning_rate": 1e-9}]
    run = experiment(values)
    best = []
    real = checkpoint.Progress.begin_phase
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            checkpoint.Progress, "begin_phase", lambda self: (best.append(self.best), real(self))[1]
        )
        progress = run.train()
    assert (progress.phase, progress.epoch, progress.step) == (1, 1, 15)
    assert [each["epoch"] for each in progress.history] == [1, 2, 3]
    assert progress.history[-1]["CIDEr-D"] == pytest.approx(best[0], abs=1e-6)  # hardly moved from the best


def test_a_run_is_not_overwritten_and_other_settings_are_not_resumed(tmp_path):
    values = tiny_settings(tmp_path, "run", epochs=1)
    experiment(values).train()
    with pytest.raises(UserError, match="this run exists; continue it with --resume"):
        experiment(values).train()
    values["training"]["learning_rate"] = 0.1
    with pytest.raises(UserError, match="made with other settings"):
        experiment(values).train(resume=True)


def test_an_unfrozen_encoder_learns_and_test_images_are_not_touched(tmp_path):
    values = tiny_settings(tmp_path, "run", epochs=1)
    run = experiment(values)
    collection = run.load_dataset()
    for record in collection.records:
        if record.split.startswith("test"):
            size = Path(record.path).stat().st_size
            Path(record.path).write_bytes(b"x" * size)  # training must do without them
    before = run.build_captioner(Vocabulary.build(CAPTIONS, min_count=1)).encoder.state_dict()
    run.train()
    after = Captioner.open(run.folder / "model").encoder.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_epoch_lines_have_losses_scores_and_minutes(tmp_path):
    lines = []
    small_run(tmp_path, log=lines.append, validate_every=2, epochs=3).train()
    epochs = [line for line in lines if line.startswith("epoch")]
    assert [line[:10] for line in epochs] == ["epoch  1/3", "epoch  2/3", "epoch  3/3"]
    assert ["no validation" in line for line in epochs] == [True, False, False]
    for line in epochs:
        assert re.search(
            r"train loss \d\.\d{3}  .*\d\.\d min  \d+ captions/s, [\d.]+ % waiting for data$", line
        )
    assert re.search(r"val loss \d\.\d{3}  BLEU-4 [\d.]+  ROUGE-L [\d.]+  CIDEr-D [\d.]+", epochs[1])


def test_one_line_a_minute_within_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_FIRST_LINES", 0.0)
    monkeypatch.setattr("sys.stderr", io.StringIO())  # no terminal
    lines = []
    small_run(tmp_path, log=lines.append, epochs=1).train()
    updates = [line for line in lines if line.startswith("epoch 1/1: update")]
    assert [line.split(",")[0] for line in updates] == [f"epoch 1/1: update {n}/5" for n in range(1, 6)]
    assert all(re.search(r", loss \d\.\d{3}, \d+ captions/s, .* left$", line) for line in updates)


def test_the_train_loss_of_an_epoch_is_the_mean_over_its_tokens():
    state = Progress()
    for tokens, loss in ((2, 6.0), (6, 10.0)):
        state.add({"loss": loss, "of": tokens})
        state.sums = {}  # logged in between
    assert state.epoch_loss == 16 / 8 and state.mean_losses() == {}
    state.end_epoch(epochs=3)
    assert math.isnan(state.epoch_loss) and (state.epoch, state.done) == (1, False)
