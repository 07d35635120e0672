"""torch.compile: the same loss, the same checkpoints, and a sentence where there is nothing to compile with."""

import shutil

import numpy as np
import pytest
import torch

from captioning.config import parse
from captioning.errors import UserError
from captioning.training import TrainingConfig
from captioning.training.batch_stats import BatchStats
from captioning.training.loss_weights import Weights
from captioning.training.objective import build_objective
from tests.helpers.training import experiment, tiny_settings
from tests.training.test_options import made


def objective_of(holder, captions, log, **settings):
    return build_objective(
        holder,
        TrainingConfig(**settings),
        ids=list(range(5)),
        captions=captions,
        weights=Weights(),
        seed=0,
        log=log,
    )


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU; there is none"
)
def test_a_compiled_decoder_gives_the_same_loss_and_gradients():
    holder, captions, batch = made("transformer", layers=1)
    holder.float()
    said, found = [], []
    keys = list(holder.state_dict())
    for settings in ({}, {"compile": True}):
        goal = objective_of(holder, captions, said.append, **settings)
        assert not settings or goal.compiled_forward is not None
        losses, slopes = [], []
        for numbers in ([0, 1, 2, 3, 4], [1, 3]):  # of several sizes; compiled once
            each = batch(np.array(numbers))
            each = each._replace(images=each.images._replace(regions=each.images.regions.float()))
            loss = goal(each, BatchStats.of(each, 0)).value
            holder.zero_grad()
            loss.backward()
            losses.append(loss.detach())
            slopes.append(torch.cat([p.grad.flatten() for p in holder.parameters() if p.grad is not None]))
        found.append((torch.stack(losses), torch.stack(slopes)))
    assert said == []
    torch.testing.assert_close(*(losses for losses, _ in found), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*(slopes for _, slopes in found), rtol=1e-3, atol=1e-5)
    assert list(holder.state_dict()) == keys


def test_without_a_compiler_one_sentence_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    def broken(function, **_):
        def fails(*_):
            raise RuntimeError("No working C++ compiler found.\nTraceback of many lines")

        return fails

    runs = []
    for name, settings in (("plain", {}), ("compiled", {"compile": True})):
        values, said = tiny_settings(tmp_path, name, "transformer", epochs=1), []
        values["training"] |= settings
        with monkeypatch.context() as patch:
            patch.setattr(torch, "compile", broken)
            run = experiment(values, said.append)
            run.train()
        runs.append(run.folder)
    told = [line for line in said if "compile" in line]
    assert told == [
        "training.compile: nothing is compiled, torch.compile does not work here (No working C++ compiler found.)"
    ]
    one, other = (folder / "checkpoints" / "last" / "model.safetensors" for folder in runs)
    assert one.read_bytes() == other.read_bytes()


def test_what_cannot_be_compiled_is_told(tmp_path):
    holder, captions, _ = made("lstm")
    with pytest.raises(
        UserError, match=r"training\.compile: this decoder runs one time step after the other"
    ):
        objective_of(holder, captions, print, compile=True)
    values = tiny_settings(tmp_path, "run", "transformer")
    values["training"] |= {"compile": True, "embedding_dropout": 0.1}
    with pytest.raises(UserError, match=r"does not work with embedding_dropout"):
        parse(values, where="test")
