"""What a run survives: damaged checkpoints, signals, a full disk, gradients without number, hostile YAML."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from captioning.comparison.study import read_study
from captioning.config import parse, read_config
from captioning.errors import Stopped, UserError
from captioning.experiment import Experiment
from captioning.loaders.batches import TrainingBatches
from captioning.training import checkpoint, epoch_batches
from captioning.training.objective import CrossEntropy, Loss
from captioning.training.validation import Validator
from captioning.utils.files import check_manifest
from tests.helpers.training import experiment, metrics_of, tiny_settings


def small_run(folder, name="run", *, said=None, epochs=2, **training):
    values = tiny_settings(folder, name, epochs=epochs)
    values["training"] |= training
    return Experiment(parse(values, where="test"), log=(lambda _: None) if said is None else said.append)


def weights(run):
    return (run.folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(tmp_path, damage):
    whole = small_run(tmp_path, "whole")
    whole.train()
    said = []
    run = small_run(tmp_path, said=said)
    run.train()
    path = run.folder / "checkpoints" / "last" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content[: len(content) // 3] if damage == "cut" else content)
    said.clear()
    run.train(resume=True)
    assert any("optimizer.safetensors" in line and "before-1" in line for line in said)
    assert weights(run) == weights(whole)
    assert (run.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


def test_no_whole_checkpoint_is_an_error(tmp_path):
    run = small_run(tmp_path, epochs=1)
    run.train()
    for folder in (run.folder / "checkpoints").iterdir():
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged.*start anew"):
        run.train(resume=True)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    run = small_run(tmp_path, epochs=1)
    (run.folder / "checkpoints" / ".part").mkdir(parents=True)
    (run.folder / "checkpoints" / ".part" / "model.safetensors").write_bytes(b"half")
    assert run.train().epoch == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("where", ["step", "validation"])
def test_a_signal_saves_and_ends_and_the_resumed_run_is_the_same(tmp_path, number, where, monkeypatch):
    whole = small_run(tmp_path, "whole", validation_images=2)  # in several batches, a signal between them
    whole.train()
    run = small_run(tmp_path, validation_images=2)
    at = "forward" if where == "step" else "_loss"
    owner = CrossEntropy if where == "step" else Validator
    real, calls = getattr(owner, at), []

    def struck(self, *args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return real(self, *args)

    monkeypatch.setattr(owner, at, struck)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="--resume") as caught:
        run.train()
    assert caught.value.code == (130 if number == signal.SIGINT else 143)
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    step = json.loads((run.folder / "checkpoints" / "last" / "progress.json").read_text())["step"]
    assert step == (3 if where == "step" else 5)
    run.train(resume=True)
    assert weights(run) == weights(whole)
    assert (run.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, monkeypatch):
    said = []
    run = small_run(tmp_path, said=said)
    real, calls = checkpoint.save_weights, []

    def full(*args):
        calls.append(1)
        if len(calls) > 3:  # the first checkpoint is written
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(checkpoint, "save_weights", full)
    progress = run.train()
    assert progress.epoch == 2
    line = next(line for line in said if "checkpoint is not saved" in line)
    assert "MB free" in line and "takes" in line
    folders = list((run.folder / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["last"]  # no debris
    check_manifest(folders[0])
    monkeypatch.undo()
    whole = small_run(tmp_path, "whole")
    whole.train()
    small_run(tmp_path).train(resume=True)  # from the first epoch's end
    assert weights(run) == weights(whole)


@pytest.mark.parametrize("fault", ["write", "rename", "fsync"])
def test_a_fault_anywhere_in_a_save_leaves_a_whole_checkpoint(tmp_path, fault, monkeypatch):
    """Each write, rename and fsync of a save fails in turn; there is always a whole one, and it is old or new."""
    from pathlib import Path

    run = small_run(tmp_path, epochs=1)
    run.train()
    config = run.config.training
    captioner = run.build_captioner(checkpoint_vocabulary(run))
    state = checkpoint.TrainState.create(captioner, config, torch.device("cpu"))
    kept = checkpoint.latest(run.folder)
    checkpoint.load(kept, state)
    progress = checkpoint.read_progress(kept, run.config.fingerprint)
    keep = run.folder.with_name("kept")
    shutil.copytree(run.folder, keep)
    owner, name = {
        "write": (checkpoint, "save_weights"),
        "rename": (Path, "rename"),
        "fsync": (os, "fsync"),
    }[fault]
    real, struck = getattr(owner, name), 0
    for at in range(1, 30):
        shutil.rmtree(run.folder)
        shutil.copytree(keep, run.folder)
        calls = []

        def failing(*args, at=at, calls=calls):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt  # as sudden as it can be told in a process that goes on
            return real(*args)

        monkeypatch.setattr(owner, name, failing)
        progress.step = 1000
        try:
            checkpoint.save(run.folder, state, progress, experiment="x", keep=2)
            break
        except KeyboardInterrupt:
            struck += 1
        finally:
            monkeypatch.setattr(owner, name, real)
        assert checkpoint.read_step(checkpoint.latest(run.folder)) in (5, 1000)
    assert struck >= 2


def checkpoint_vocabulary(run):
    from captioning.text.vocabulary import Vocabulary

    return Vocabulary.open(str(run.folder / "vocabulary.json"))


def test_an_update_without_a_finite_gradient_is_skipped_and_noted(tmp_path, monkeypatch):
    said = []
    run = small_run(tmp_path, said=said, epochs=1)
    real, calls = CrossEntropy.forward, []

    def poisoned(self, batch, update):
        calls.append(batch.image_ids)
        loss = real(self, batch, update)
        return Loss(loss.value * float("nan"), loss.sums, loss.of) if len(calls) == 2 else loss

    monkeypatch.setattr(CrossEntropy, "forward", poisoned)
    run.train()
    assert any("step 1 is skipped: its gradient is nan" in line for line in said)
    (noted,) = [json.loads(line) for line in (run.folder / "nonfinite_steps.jsonl").read_text().splitlines()]
    assert noted["step"] == 1 and noted["images"] == calls[1]


def test_a_killed_loader_process_is_one_sentence_and_the_run_goes_on_from_its_checkpoint(
    tmp_path, monkeypatch
):
    whole = small_run(tmp_path, "whole", workers=1)
    whole.train()
    run = small_run(tmp_path, workers=1)
    real, parent = TrainingBatches.__getitem__, os.getpid()

    def dying(self, numbers):
        if os.getpid() != parent and self.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingBatches, "__getitem__", dying)
        with pytest.raises(
            UserError, match=r"a process that loads images ended .*lower training\.workers"
        ) as told:
            run.train()
    assert "\n" not in str(told.value)
    run.train(resume=True)
    assert weights(run) == weights(whole)
    assert (run.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!mkdir"])
def test_yaml_that_would_run_something_is_refused_and_runs_nothing(tmp_path, tag):
    ran = tmp_path / "ran"
    hostile = f"{tag} [{ran}]"
    for name, content in (("config", f"name: {hostile}\n"), ("study", f"name: a\nbase: {hostile}\n")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(content)
        with pytest.raises(UserError, match=f"{name}.yaml: broken YAML"):
            (read_config if name == "config" else read_study)(path)
    path.write_text("name: a\n")
    with pytest.raises(UserError, match="the value is not YAML"):
        read_config(path, [f"name={hostile}"])
    assert not ran.exists()


def test_accumulated_batches_update_as_one_large_batch_does(tmp_path):
    """With nothing drawn: two batches of 6 images give the gradient of one of 12."""
    runs = []
    for name, images, accumulate in (("large", 12, 1), ("small", 6, 2)):
        values = tiny_settings(tmp_path, name, epochs=1)
        values["decoder"]["dropout"] = 0.0
        values["encoder"] = {"kind": "torchvision", "name": "squeezenet1_1", "grid": 2, "weights": "none"}
        values["features"] = {"root": str(tmp_path / "features"), "dtype": "float32"}
        values["training"] |= {"batch_size": images, "accumulate": accumulate, "ema_decay": 0, "log_every": 1}
        run = experiment(values)
        large = [
            each.tolist() for each in epoch_batches.bucketed_batches(_captions(run), size=12, seed=0, epoch=0)
        ]
        with pytest.MonkeyPatch.context() as patch:  # the same images in the same updates
            halves = [np.array(half) for each in large for half in (each[:6], each[6:])]
            whole = [np.array(each) for each in large]
            patch.setattr(
                epoch_batches,
                "bucketed_batches",
                lambda *_, use=halves if accumulate == 2 else whole, **__: use,
            )
            torch.manual_seed(3)
            run.train()
        runs.append(run)
    lines = [metrics_of(run.folder) for run in runs]
    assert len(lines[0]) == 3
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def _captions(run):
    from captioning.datasets import of_split
    from captioning.loaders.captions import EncodedCaptions
    from captioning.text.vocabulary import Vocabulary

    records = of_split(run.load_dataset(), "train")
    vocabulary = Vocabulary.build((c for r in records for c in r.captions), min_count=1)
    return EncodedCaptions.from_records(records, vocabulary, max_length=30)


def test_a_second_phase_begins_with_the_best_model_and_counts_on(tmp_path):
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


def test_a_second_run_in_the_folder_is_refused_and_harms_nothing(tmp_path, monkeypatch):
    run, refused = small_run(tmp_path, epochs=1), []
    forward = CrossEntropy.forward

    def try_another(*args):
        if not refused:
            with pytest.raises(
                UserError, match=rf"process {os.getpid()} on .*choose another name="
            ) as caught:
                small_run(tmp_path, epochs=1).train()
            refused.append(caught.value)
        return forward(*args)

    monkeypatch.setattr(CrossEntropy, "forward", try_another)
    run.train()
    alone = small_run(tmp_path, "alone", epochs=1)
    alone.train()
    assert refused and weights(run) == weights(alone)
