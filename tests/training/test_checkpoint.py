"""Checkpoints: damage, faults while saving, full disks, format versions."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from captioning.errors import UserError
from captioning.text.vocabulary import Vocabulary
from captioning.training import checkpoint
from captioning.training.identity import Identity
from captioning.utils.files import check_manifest, write_manifest
from tests.helpers.training import checkpoint_weights, small_run


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, damage):
    whole = small_run(tmp_path, "whole")
    whole.train()
    lines = []
    run = small_run(tmp_path, log=lines.append)
    run.train()
    path = run.folder / "checkpoints" / "last" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content[: len(content) // 3] if damage == "cut" else content)
    lines.clear()
    run.train(resume=True)
    assert any("optimizer.safetensors" in line and "before-1" in line for line in lines)
    assert checkpoint_weights(run) == checkpoint_weights(whole)
    assert (run.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("manifest", ["[]", "{}", "{", '{"progress.json": 5}'])
def test_a_checkpoint_with_a_broken_manifest_is_left_for_the_one_before(tmp_path, manifest):
    lines = []
    run = small_run(tmp_path, epochs=2)
    run.train()
    folder = run.folder / "checkpoints"
    (folder / "last" / "manifest.json").write_text(manifest)
    assert checkpoint.latest(run.folder, log=lines.append) == folder / "before-1"
    assert len(lines) == 1 and "manifest.json" in lines[0] and "going on from" in lines[0]


def test_moments_and_averages_of_other_sizes_are_refused(tmp_path):
    run = small_run(tmp_path, epochs=1)
    run.train()
    last = run.folder / "checkpoints" / "last"
    for name, edit in (("ema", lambda t: t.to(torch.int8)), ("optimizer", lambda t: t.flatten()[:1].clone())):
        path = last / f"{name}.safetensors"
        content = path.read_bytes()
        state = load_file(path)
        key = next(key for key, tensor in state.items() if tensor.numel() > 1)
        save_file({**state, key: edit(state[key])}, path)
        write_again(last)
        with pytest.raises(UserError, match=rf"{name}\.safetensors: weight {key} "):
            run.train(resume=True)
        path.write_bytes(content)
        write_again(last)


def write_again(folder):
    (folder / "manifest.json").unlink()
    write_manifest(folder)


def test_only_damaged_checkpoints_are_an_error(tmp_path):
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


def test_a_full_disk_stops_the_checkpoint_but_not_the_run(tmp_path, monkeypatch):
    lines = []
    run = small_run(tmp_path, log=lines.append)
    real, calls = checkpoint.save_weights, []

    def full(*args):
        calls.append(1)
        if len(calls) > 3:  # the first checkpoint is written
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(checkpoint, "save_weights", full)
    progress = run.train()
    assert progress.epoch == 2
    line = next(line for line in lines if "checkpoint is not saved" in line)
    assert "MB free" in line and "takes" in line
    folders = list((run.folder / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["last"]  # no debris
    check_manifest(folders[0], needed=checkpoint.FILES)
    monkeypatch.undo()
    whole = small_run(tmp_path, "whole")
    whole.train()
    small_run(tmp_path).train(resume=True)  # from the first epoch's end
    assert checkpoint_weights(run) == checkpoint_weights(whole)


@pytest.mark.parametrize("fault", ["write", "rename", "fsync"])
def test_a_fault_anywhere_in_a_save_leaves_a_complete_checkpoint(tmp_path, fault, monkeypatch):
    """Each write, rename and fsync of a save fails in turn; there is always a whole one, and it is old or new."""
    from pathlib import Path

    run = small_run(tmp_path, epochs=1)
    run.train()
    config = run.config.training
    captioner = run.build_captioner(Vocabulary.open(str(run.folder / "vocabulary.json")))
    state = checkpoint.TrainState.create(captioner, config, torch.device("cpu"))
    kept = checkpoint.latest(run.folder)
    checkpoint.load(kept, state)
    progress = checkpoint.read_progress(kept)
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
            checkpoint.save(run.folder, state, progress, identity=Identity({}, {}), keep=2)
            break
        except KeyboardInterrupt:
            struck += 1
        finally:
            monkeypatch.setattr(owner, name, real)
        assert checkpoint.read_step(checkpoint.latest(run.folder)) in (5, 1000)
    assert struck >= 2


def test_another_format_version_is_refused(tmp_path):
    run = small_run(tmp_path, epochs=1)
    run.train()
    path = run.folder / "checkpoints" / "last" / "progress.json"
    values = json.loads(path.read_text())
    assert values.pop("format") == checkpoint.FORMAT
    for version, extra in ((1, {}), (99, {"format": 99})):
        path.write_text(json.dumps({**values, **extra}))
        with pytest.raises(UserError, match=rf"last: checkpoint format {version}, but .* train the run anew"):
            checkpoint.read_progress(path.parent)
