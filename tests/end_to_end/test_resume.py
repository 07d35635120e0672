"""A resumed run equals an uninterrupted one to the byte."""

import pytest
import torch

from tests.helpers.training import ALL_OPTIONS, experiment, metrics_of, tiny_settings


@pytest.mark.parametrize("kind", ["soft_attention_lstm", "hard_attention_lstm", "transformer"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, tmp_path, monkeypatch):
    check_resume(tmp_path, monkeypatch, kind)


@pytest.mark.parametrize("kind", ["hard_attention_lstm", "transformer"])
def test_a_resumed_run_with_every_option_equals_an_uninterrupted_one(kind, tmp_path, monkeypatch):
    run = check_resume(tmp_path, monkeypatch, kind, encoder={"gradient_checkpointing": True}, **ALL_OPTIONS)
    lines = metrics_of(run)
    assert all(line["train/divergence"] > 0 for line in lines if "train/loss" in line)


def check_resume(tmp_path, monkeypatch, kind, *, encoder=None, **training):
    """A run killed at its fourth save and resumed is, to the byte, one that was not; the folder of that one."""
    whole_values = tiny_settings(tmp_path, "whole", kind, epochs=3)
    values = tiny_settings(tmp_path, "cut", kind, epochs=3)
    for each in (values, whole_values):
        each["training"] |= {"save_every": 2, **training}  # the fourth save is within the second epoch
        each["encoder"] |= encoder or {}
    whole = experiment(whole_values)
    whole.train()
    cut = experiment(values)
    from captioning.training import checkpoint

    real, saves = checkpoint.save, []

    def killed_at_the_fourth_save(*args, **kwargs):
        saves.append(1)
        if len(saves) == 4:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", killed_at_the_fourth_save)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    monkeypatch.setattr(checkpoint, "save", real)
    torch.manual_seed(12345)  # a new process would not have the generator where the old one left it
    experiment(values).train(resume=True)
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        one, other = (run.folder / "checkpoints" / "last" / file for run in (whole, cut))
        assert one.read_bytes() == other.read_bytes(), f"{file} differs"
    one, other = ((run.folder / "metrics.jsonl").read_bytes() for run in (whole, cut))
    assert one == other and b"val/" in one
    return whole.folder
