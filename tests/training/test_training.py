"""Training, from order and loss to the tools end to end on a few drawn scenes: resume, tracking, captions, scores."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.amp import GradScaler
from torch.nn import functional as F

from captioning.captioner.captioner import Captioner
from captioning.errors import Diverged, UserError
from captioning.loaders.batches import TrainingBatches
from captioning.models.decoders import SoftAttentionLSTMConfig, TransformerConfig
from captioning.tensors import Features
from captioning.text.vocabulary import Vocabulary
from captioning.training import TrainingConfig, step
from captioning.training.ema import EMA
from captioning.training.losses import cross_entropy, doubly_stochastic
from captioning.training.schedule import ConstantConfig, CosineConfig, NoamConfig, PlateauConfig, StepConfig
from tests.helpers.training import (
    CAPTIONS,
    encoded_captions,
    eventually,
    experiment,
    metrics_of,
    tiny_settings,
)

ROOT = Path(__file__).resolve().parents[2]


def test_cross_entropy_against_the_formula():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 11, dtype=torch.double), torch.tensor([1, 0, 10, 4, 4])
    logprob = torch.log(torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True))
    wanted = -sum(0.9 * logprob[i, t] + 0.1 * logprob[i].mean() for i, t in enumerate(targets))
    torch.testing.assert_close(cross_entropy(logits, targets, smoothing=0.1), wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_gradients_equal_torch(smoothing):
    torch.manual_seed(0)
    targets = torch.tensor([1, 0, 10, 4, 4])
    gradients = []
    for way in (
        lambda x: cross_entropy(x, targets, smoothing=smoothing),
        lambda x: F.cross_entropy(x, targets, label_smoothing=smoothing, reduction="sum"),
    ):
        logits = torch.randn(
            5, 11, dtype=torch.double, generator=torch.Generator().manual_seed(3)
        ).requires_grad_()
        (0.7 * way(logits)).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


def test_doubly_stochastic_against_a_plain_loop():
    torch.manual_seed(0)
    attention = torch.softmax(torch.randn(2, 3, 5, 7, dtype=torch.double), -1)
    lengths = [[5, 2, 0], [4, 4, 1]]
    counts = torch.tensor([[[t < n for t in range(5)] for n in row] for row in lengths])
    parts = []
    for b, row in enumerate(lengths):
        for k, length in enumerate(row):
            if length:
                total = attention[b, k, :length].sum(0)
                parts.append(((1 - total) ** 2).mean())
    torch.testing.assert_close(doubly_stochastic(attention, counts), sum(parts))


def test_schedules():
    cosine = CosineConfig(warmup=10, final=0.1)
    values = [cosine.factor(step, steps_per_epoch=11, epochs=10) for step in range(110)]
    assert values[0] == pytest.approx(0.1) and max(values) == pytest.approx(1.0)
    assert values[60] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.5)) / 2)
    assert cosine.factor(110, steps_per_epoch=11, epochs=10) == pytest.approx(0.1)
    step = StepConfig(every=3, decay=0.8)
    assert [step.factor(s, steps_per_epoch=5, epochs=9) for s in (0, 14, 15, 30)] == pytest.approx(
        [1, 1, 0.8, 0.64]
    )
    assert ConstantConfig(warmup=4).factor(1, steps_per_epoch=5, epochs=9) == pytest.approx(0.5)


def test_noam_is_the_papers_rate_over_its_highest():
    """Vaswani et al. 2017, eq. 3: d^-0.5 min(step^-0.5, step warmup^-1.5), with steps from 1."""
    noam, size = NoamConfig(warmup=40), 512
    paper = [size**-0.5 * min(n**-0.5, n * 40**-1.5) for n in range(1, 200)]
    ours = [noam.factor(n - 1, steps_per_epoch=5, epochs=9) for n in range(1, 200)]
    assert ours == pytest.approx([rate / max(paper) for rate in paper])


def test_plateau_falls_when_scores_stay():
    plateau = PlateauConfig(stale=2, decay=0.5)
    scores = [1.0, 2.0, 1.5, 1.9, 1.0, 3.0, 2.0, 2.0, 2.0, 2.0]
    factors = [
        plateau.factor(99, steps_per_epoch=5, epochs=9, scores=scores[:n]) for n in range(len(scores) + 1)
    ]
    assert factors == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


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
    said = []
    run = experiment(values, said.append)
    run.train()
    progress = json.loads((run.folder / "checkpoints" / "last" / "progress.json").read_text())
    assert progress["scaler"]["scale"] == 2**13 and progress["nonfinite_steps"] == 0
    assert not any("skipped" in line for line in said) and not (run.folder / "nonfinite_steps.jsonl").exists()
    lines = metrics_of(run.folder)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(4, 11))

    folders = []
    for name, scaler in (("plain", GradScaler), ("scaling", Scaling)):
        monkeypatch.setattr(torch.amp, "GradScaler", scaler)
        other = experiment(tiny_settings(tmp_path, name, epochs=1))
        other.train()
        folders.append(other.folder)
    one, other = (folder / "checkpoints" / "last" for folder in folders)
    assert json.loads((other / "progress.json").read_text())["scaler"]["scale"] == 2**16
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_average_is_in_place_only_inside_the_block():
    module = torch.nn.Linear(3, 2)
    average = EMA(module, 0.9)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1.0)
    average.update(10**6)
    with average.applied():
        torch.testing.assert_close(module.weight, before + 0.1)
    torch.testing.assert_close(module.weight, before + 1.0)
    with torch.no_grad():
        module.weight.add_(1.0)
    average.update(10**6)
    with average.applied():
        torch.testing.assert_close(module.weight, 0.9 * (before + 0.1) + 0.1 * (before + 2.0))


@pytest.mark.parametrize("kind", ["soft_attention_lstm", "hard_attention_lstm", "transformer"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, tmp_path, monkeypatch):
    check_resume(tmp_path, monkeypatch, kind)


OPTIONS = {
    "scheduled_sampling": {"start": 0.3, "increase": 0.3, "every": 1, "most": 0.6, "passes": 2},
    "caption_weights": {"kind": "consensus", "strength": 0.5},
    "word_weights": {"kind": "frequency"},
    "r_drop": 1.0,
    "embedding_dropout": 0.1,
    "max_tokens": 300,
    "accumulate": 2,
}


@pytest.mark.parametrize("kind", ["hard_attention_lstm", "transformer"])
def test_so_it_does_with_every_option(kind, tmp_path, monkeypatch):
    run = check_resume(tmp_path, monkeypatch, kind, encoder={"gradient_checkpointing": True}, **OPTIONS)
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


def test_a_run_is_not_overwritten_and_other_settings_are_not_resumed(tmp_path):
    values = tiny_settings(tmp_path, "run", epochs=1)
    experiment(values).train()
    with pytest.raises(UserError, match="this run exists"):
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


def test_diverging_training_stops_with_the_images(tmp_path):
    values = tiny_settings(tmp_path, "run", epochs=1)
    values["training"]["learning_rate"] = 1e30
    values["training"] |= {"grad_clip_norm": 0, "max_nonfinite_steps": 2}
    with pytest.raises(Diverged, match=r"the gradient is (nan|inf).*lower training\.learning_rate"):
        experiment(values).train()


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


def test_loss_of_a_batch_counts_only_its_tokens():
    """Against the plain way: all positions scored, padding ignored."""
    from captioning.training.objective import BatchStats, CrossEntropy

    captions, vocabulary = encoded_captions(5)
    for config in (
        SoftAttentionLSTMConfig(embedding=7, hidden=11, attention_size=5, dropout=0.0),
        TransformerConfig(hidden=14, feed_forward=23, heads=2, layers=2, dropout=0.0),
    ):
        torch.manual_seed(0)
        decoder = config.build(channels=3, vocabulary_size=len(vocabulary)).eval()
        features = torch.randn(5, 7, 3)

        dataset = TrainingBatches(
            list(range(5)),
            captions,
            lambda numbers, epoch, f=features: Features(f[numbers]),
            captions_per_image=5,
            pad=0,
            seed=0,
            epoch=0,
        )
        batch = dataset[np.arange(5)]
        holder = type(
            "Holder",
            (),
            {"decoder": decoder, "vocabulary": vocabulary, "features": staticmethod(lambda x: x)},
        )()
        goal = CrossEntropy(holder, TrainingConfig(label_smoothing=0.0))
        loss = goal(batch, BatchStats.of(batch, 0)).value
        logits = decoder.logits(
            decoder(batch.ids[..., :-1], decoder.encode_memory(Features(features))).hidden
        )
        plain = F.cross_entropy(logits.flatten(0, 2), batch.ids[..., 1:].flatten(), ignore_index=0)
        torch.testing.assert_close(loss, plain)


MIXED = {
    "soft_attention_lstm": {**OPTIONS, "doubly_stochastic": 1.0},
    "hard_attention_lstm": OPTIONS,
    "transformer": OPTIONS,
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
        lines = metrics_of(run.folder)
        return [line["train/loss"] for line in lines if "train/loss" in line]

    wanted = losses("float32")
    monkeypatch.setattr(step, "autocast_context", lambda config, device: torch.autocast("cpu", lower))
    monkeypatch.setattr(torch.amp, "GradScaler", Scaling if precision == "fp16" else GradScaler)
    found = losses("mixed")
    assert len(wanted) >= 3 and found != wanted and found == pytest.approx(wanted, rel=0.02)
