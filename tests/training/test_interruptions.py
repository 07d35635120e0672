"""Signals and dying loader processes."""

import json
import os
import signal

import pytest

from captioning.errors import Stopped, UserError
from captioning.loaders.batches import TrainingBatches
from captioning.training.objective import CrossEntropy
from captioning.training.validation import Validator
from tests.helpers.training import checkpoint_weights, small_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs in one folder share the drawn data set."""
    return tmp_path_factory.mktemp("interruptions")


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted run that validates in several batches, so that a signal can come between them."""
    run = small_run(folder, "whole", validation_images=2)
    run.train()
    return run


def assert_same(run, whole):
    """Weights and metrics are equal to the byte."""
    assert checkpoint_weights(run) == checkpoint_weights(whole)
    assert (run.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("where", ["step", "validation"])
def test_a_signal_saves_and_stops_and_the_resumed_run_is_the_same(folder, whole, number, where, monkeypatch):
    run = small_run(folder, f"{where}-{number}", validation_images=2)
    at = "forward" if where == "step" else "_loss"
    owner = CrossEntropy if where == "step" else Validator
    real, calls = getattr(owner, at), []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return real(self, *args)

    monkeypatch.setattr(owner, at, interrupted)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="--resume") as caught:
        run.train()
    assert caught.value.code == (130 if number == signal.SIGINT else 143)
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    step = json.loads((run.folder / "checkpoints" / "last" / "progress.json").read_text())["step"]
    assert step == (3 if where == "step" else 5)
    run.train(resume=True)
    assert_same(run, whole)


def test_a_killed_loader_process_gives_one_sentence_and_a_checkpoint_to_resume(folder, whole, monkeypatch):
    run = small_run(folder, "worker", workers=1, validation_images=2)
    real, parent = TrainingBatches.__getitem__, os.getpid()

    def dying(self, numbers):
        if os.getpid() != parent and self.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingBatches, "__getitem__", dying)
        with pytest.raises(
            UserError, match=r"a process that loads images ended .*lower training\.workers"
        ) as raised:
            run.train()
    assert "\n" not in str(raised.value)
    run.train(resume=True)
    assert_same(run, whole)


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
    assert refused and checkpoint_weights(run) == checkpoint_weights(alone)
