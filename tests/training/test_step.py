"""One update: clipping, loss scaling, accumulation, mixed precision, non-finite gradients."""

import json
import math

import numpy as np
import pytest
import torch
from torch.amp import GradScaler

from captioning.errors import Diverged
from captioning.loaders.captions import EncodedCaptions
from captioning.text.vocabulary import Vocabulary
from captioning.training import epoch_batches, objective, step
from captioning.training.distributed import World
from captioning.training.objective import CrossEntropy, Loss
from captioning.training.step import TrainingStep
from tests.helpers.training import ALL_OPTIONS, experiment, metrics_of, small_run, tiny_settings


@pytest.mark.parametrize(("clip", "value"), [(0.01, 0), (0, 1e-4), (0.01, 1e-4), (0, 0)])
def test_gradients_are_clipped_by_norm_and_by_value(clip, value, tmp_path, monkeypatch):
    norms, most = [], []
    real = torch.amp.GradScaler.step

    def step(scaler, optimizer):
        each = torch.cat(
            [p.grad.flatten() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        )
        norms.append(float(each.norm()))
        most.append(float(each.abs().max()))
        return real(scaler, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "step", step)
    values = tiny_settings(tmp_path, "run", epochs=1)
    values["training"] |= {"grad_clip_norm": clip, "grad_clip_value": value}
    experiment(values).train()
    assert len(norms) == 5
    for limit, found in ((clip, norms), (value, most)):
        assert max(found) <= (limit * 1.0001 or math.inf)
    if clip and not value:
        assert norms == pytest.approx([clip] * 5, rel=1e-3)  # not clipped to less
    if not clip and not value:
        assert min(norms) > 0.02 and min(most) > 2e-4  # the limits above were ones


class Scaling(GradScaler):
    """On, on a CPU as well."""

    def __init__(self, device, enabled):
        super().__init__(device, enabled=True)


class Overflowing(Scaling):
    """As of fp16 on a GPU: what is scaled by more than 2^13 has no finite gradient."""

    def scale(self, outputs):
        return super().scale(outputs) * (math.inf if self.get_scale() > 2**13 else 1)


def test_a_scaler_finds_its_scale_and_changes_no_update(tmp_path, monkeypatch):
    """Three updates overflow, which is no fault; scaled by a power of two, the others are what they are without."""
    monkeypatch.setattr(torch.amp, "GradScaler", Overflowing)
    values = tiny_settings(tmp_path, "scaled", epochs=2)
    values["training"] |= {"max_nonfinite_steps": 1, "ema_decay": 0, "log_every": 1}
    values["decoder"]["dropout"] = 0.0
    lines = []
    run = experiment(values, lines.append)
    run.train()
    progress = json.loads((run.folder / "checkpoints" / "last" / "progress.json").read_text())
    assert progress["scaler"]["scale"] == 2**13 and progress["nonfinite_steps"] == 0
    assert (
        not any("skipped" in line for line in lines) and not (run.folder / "nonfinite_steps.jsonl").exists()
    )
    entries = metrics_of(run.folder)
    assert [line["step"] for line in entries if "train/loss" in line] == list(range(4, 11))

    folders = []
    for name, scaler in (("plain", GradScaler), ("scaling", Scaling)):
        monkeypatch.setattr(torch.amp, "GradScaler", scaler)
        other = experiment(tiny_settings(tmp_path, name, epochs=1))
        other.train()
        folders.append(other.folder)
    one, other = (folder / "checkpoints" / "last" for folder in folders)
    assert json.loads((other / "progress.json").read_text())["scaler"]["scale"] == 2**16
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


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

    records = of_split(run.load_dataset(), "train")
    vocabulary = Vocabulary.build((c for r in records for c in r.captions), min_count=1)
    return EncodedCaptions.from_records(records, vocabulary, max_length=30)


MIXED = {
    "soft_attention_lstm": {**ALL_OPTIONS, "doubly_stochastic": 1.0},
    "hard_attention_lstm": ALL_OPTIONS,
    "transformer": ALL_OPTIONS,
    "self-critical": {"self_critical": {"samples": 3}},
}


@pytest.mark.parametrize(
    ("kind", "precision"), [*((kind, "bf16") for kind in MIXED), ("transformer", "fp16")]
)
def test_training_in_mixed_precision_is_near_that_in_float32(kind, precision, tmp_path, monkeypatch):
    """As on a GPU: under autocast, with a scaler for fp16."""
    decoder = "soft_attention_lstm" if kind == "self-critical" else kind
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def losses(name):
        values = tiny_settings(tmp_path, name, decoder, epochs=1)
        values["decoder"]["dropout"] = 0.0
        values["training"] |= {**MIXED[kind], "log_every": 1}
        run = experiment(values)
        run.train()
        entries = metrics_of(run.folder)
        return [line["train/loss"] for line in entries if "train/loss" in line]

    wanted = losses("float32")
    monkeypatch.setattr(step, "autocast_context", lambda config, device: torch.autocast("cpu", lower))
    monkeypatch.setattr(torch.amp, "GradScaler", Scaling if precision == "fp16" else GradScaler)
    found = losses("mixed")
    assert len(wanted) >= 3 and found != wanted and found == pytest.approx(wanted, rel=0.02)


def test_the_baseline_of_hard_attention_moves_once_an_update(tmp_path, monkeypatch):
    """With two batches an update, and a second process that has had 7 captions of log-likelihood -30 more."""
    values = tiny_settings(tmp_path, "run", "hard_attention_lstm", epochs=1)
    values["training"] |= {"accumulate": 2}
    seen, after = [], []
    real = objective.sampled_logprob, World.all_reduce, TrainingStep.__call__

    def sampled_logprob(sampled, logprob, valid):
        chosen = logprob[sampled.sampled.expand_as(logprob) & valid.any(-1)]
        seen.append((float(chosen.sum()), len(chosen)))
        return real[0](sampled, logprob, valid)

    def all_reduce(world, sums):
        sums = real[1](world, sums)
        if len(sums) == 4:  # loss, sum and number of log-likelihoods, tokens
            sums = [sums[0], sums[1] - 210, sums[2] + 7, sums[3]]
        return sums

    def update(step, *args, **settings):
        seen.clear()
        stats = real[2](step, *args, **settings)
        after.append((list(seen), float(step.state.module.decoder.baseline)))
        return stats

    monkeypatch.setattr(objective, "sampled_logprob", sampled_logprob)
    monkeypatch.setattr(World, "all_reduce", all_reduce)
    monkeypatch.setattr(TrainingStep, "__call__", update)
    run = experiment(values)
    run.train()
    assert [len(batches) for batches, _ in after] == [2, 2, 1]
    wanted = None
    for batches, baseline in after:
        mean = (sum(total for total, _ in batches) - 210) / (sum(count for _, count in batches) + 7)
        wanted = mean if wanted is None else 0.9 * wanted + 0.1 * mean
        assert baseline == pytest.approx(wanted, rel=1e-5)
    assert not any("sampled" in name for line in metrics_of(run.folder) for name in line)


def test_an_update_with_a_nonfinite_gradient_is_skipped_and_logged(tmp_path, monkeypatch):
    lines = []
    run = small_run(tmp_path, log=lines.append, epochs=1)
    real, calls = CrossEntropy.forward, []

    def poisoned(self, batch, update):
        calls.append(batch.image_ids)
        loss = real(self, batch, update)
        return Loss(loss.value * float("nan"), loss.sums, loss.of) if len(calls) == 2 else loss

    monkeypatch.setattr(CrossEntropy, "forward", poisoned)
    run.train()
    assert any("step 1 is skipped: its gradient is nan" in line for line in lines)
    (noted,) = [json.loads(line) for line in (run.folder / "nonfinite_steps.jsonl").read_text().splitlines()]
    assert noted["step"] == 1 and noted["images"] == calls[1]


def test_diverging_training_stops_with_the_images(tmp_path):
    values = tiny_settings(tmp_path, "run", epochs=1)
    values["training"]["learning_rate"] = 1e30
    values["training"] |= {"grad_clip_norm": 0, "max_nonfinite_steps": 2}
    with pytest.raises(Diverged, match=r"the gradient is (nan|inf).*lower training\.learning_rate"):
        experiment(values).train()
