"""Cross-entropy with its options against loops over tokens; torch.compile."""

import copy
import dataclasses
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from captioning.config import parse
from captioning.errors import UserError
from captioning.loaders.batches import TrainingBatches
from captioning.loaders.captions import EncodedCaptions
from captioning.models.decoders import (
    HardAttentionLSTMConfig,
    SoftAttentionLSTMConfig,
    TransformerConfig,
    build,
)
from captioning.tensors import Features
from captioning.text.vocabulary import Vocabulary
from captioning.training import TrainingConfig
from captioning.training.batch_stats import BatchStats
from captioning.training.loss_weights import Weights
from captioning.training.objective import CrossEntropy, build_objective
from tests.helpers.decoders import CHANNELS, CONFIGS
from tests.helpers.training import CAPTIONS, encoded_captions, experiment, records, tiny_settings

DECODERS = {
    "lstm": SoftAttentionLSTMConfig(embedding=7, hidden=11, attention_size=5, dropout=0.0),
    "transformer": TransformerConfig(hidden=14, feed_forward=23, heads=2, layers=2, dropout=0.0, tied=True),
}


class Holder(torch.nn.Module):
    """What an objective sees of a captioner."""

    def __init__(self, decoder, vocabulary):
        super().__init__()
        self.decoder, self.vocabulary = decoder, vocabulary

    def features(self, images):
        return images


def small_model(kind, *, seed=0, **changes):
    """A small model, and batches of 5 images with up to 3 captions; `weights` are of all captions."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    captions = EncodedCaptions.from_records(records(5), vocabulary, max_length=6)
    config = dataclasses.replace(DECODERS[kind], **changes)
    decoder = config.build(channels=3, vocabulary_size=len(vocabulary)).double()
    regions = torch.randn(5, 7, 3, dtype=torch.double)

    def batch(numbers, weights=None):
        return TrainingBatches(
            range(5), captions, lambda n, epoch: Features(regions[n]), captions_per_image=3, pad=0, seed=0, epoch=0,
            weights=weights,
        )[np.asarray(numbers)]  # fmt: skip

    return Holder(decoder, vocabulary), captions, batch


def loss_of(holder, batch, update=None, *, words=None, seed=None, **settings):
    # `to_device` makes features float32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captioning.training.objective.to_device", lambda images, device: images)
        goal = CrossEntropy(holder, TrainingConfig(**settings), token_weights=words)
        if seed is not None:
            torch.manual_seed(seed)
        return goal(batch, update or BatchStats.of(batch, 0))


def plain_loss(holder, batch, *, word_weights, caption_weights, smoothing):
    """A token at a time."""
    decoder = holder.decoder
    hidden = decoder(batch.ids[..., :-1], decoder.encode_memory(batch.images)).hidden
    total, tokens = 0.0, 0
    for b, k, t in np.ndindex(tuple(hidden.shape[:3])):
        target = int(batch.ids[b, k, t + 1])
        if not target:
            continue
        logprob = torch.log(torch.softmax(decoder.logits(hidden[b, k, t][None])[0].float(), -1))
        # <pad>, <start> and <unk> get no share of the smoothing
        nats = -(1 - smoothing) * logprob[target] - smoothing * logprob[[2, *range(4, len(logprob))]].mean()
        total = total + float(word_weights[target]) * float(caption_weights[b, k]) * nats
        tokens += 1
    return total / tokens


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
        from captioning.tensors import Features

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


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("r_drop", [0.0, 3.0])
def test_a_weighted_loss_against_a_loop_over_tokens(kind, r_drop):
    """Without dropout the two readings of R-Drop are one, and the loss is that without it."""
    holder, captions, batch = small_model(kind)
    rng = np.random.default_rng(0)
    own = rng.uniform(0, 2, captions.image_offsets[-1]).astype(np.float32)
    words = torch.from_numpy(rng.uniform(0, 2, len(holder.vocabulary)).astype(np.float32))
    whole = batch(range(5), own)
    found = loss_of(holder, whole, words=words, label_smoothing=0.1, r_drop=r_drop)
    wanted = plain_loss(holder, whole, word_weights=words, caption_weights=whole.weights, smoothing=0.1)
    torch.testing.assert_close(found.value, wanted.to(found.value), rtol=1e-5, atol=1e-6)
    for b, image in enumerate(range(5)):  # a caption stands beside its own weight
        for k, ids in enumerate(whole.ids[b]):
            if ids[0]:
                same = [
                    own[n]
                    for n in range(captions.image_offsets[image], captions.image_offsets[image + 1])
                    if captions.caption(n).tolist() == ids[ids != 0].tolist()
                ]
                assert whole.weights[b, k] in same
            else:
                assert whole.weights[b, k] == 0


@pytest.mark.parametrize("kind", DECODERS)
def test_weighted_parts_add_up_to_the_whole(kind):
    """So accumulated batches, and those of several processes, are one large batch."""
    holder, captions, batch = small_model(kind)
    own = np.random.default_rng(0).uniform(0, 2, captions.image_offsets[-1]).astype(np.float32)
    whole = batch(range(5), own)
    size = BatchStats.of(whole, 0)
    settings = {"r_drop": 1.0, "doubly_stochastic": 0.0 if kind == "transformer" else 0.5}
    parts = [loss_of(holder, batch(numbers, own), size, **settings).value for numbers in ([0, 3], [1, 2, 4])]
    torch.testing.assert_close(sum(parts), loss_of(holder, whole, **settings).value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CONFIGS)
def test_padded_regions_change_no_loss(name):
    """Images with 3, 7 and 5 regions, one by one and padded to 11 in one batch, with every term that applies."""
    config = CONFIGS[name]
    if isinstance(config, HardAttentionLSTMConfig):  # else padding would change the sampled regions
        config = dataclasses.replace(config, expected=1.0)
    torch.manual_seed(0)
    captions, vocabulary = encoded_captions(3)
    decoder = build(config, channels=CHANNELS, vocabulary_size=len(vocabulary))
    sizes = torch.tensor([3, 7, 5])
    features = Features(torch.randn(3, 11, CHANNELS), torch.arange(11) < sizes[:, None])

    def batch(numbers, features):
        return TrainingBatches(
            range(3), captions, lambda n, epoch: features, captions_per_image=3, pad=0, seed=0, epoch=0
        )[np.asarray(numbers)]

    holder, whole = Holder(decoder, vocabulary), batch(range(3), features)
    attended = decoder(whole.ids[..., :-1], decoder.encode_memory(features)).attention is not None
    settings = {"doubly_stochastic": 2.0 if attended else 0.0, "r_drop": 0.5}
    alone = [
        loss_of(
            holder,
            batch([n], Features(features.regions[n : n + 1, :size])),
            BatchStats.of(whole, 0),
            **settings,
        ).value
        for n, size in enumerate(sizes.tolist())
    ]
    torch.testing.assert_close(loss_of(holder, whole, **settings).value, sum(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", DECODERS)
def test_r_drop_pulls_two_passes_over_one_memory_together(kind):
    holder, _, batch = small_model(kind, dropout=0.4)
    whole, decoder, calls = batch(range(5)), holder.decoder.train(), []
    encode_memory = decoder.encode_memory
    decoder.encode_memory = lambda features: calls.append(1) or encode_memory(features)
    found = loss_of(holder, whole, seed=5, r_drop=3.0, label_smoothing=0.0)
    assert len(calls) == 1
    torch.manual_seed(5)  # the same dropout, and each token by itself
    memory = encode_memory(whole.images)
    twice = whole.ids.repeat_interleave(2, 1)
    batch_sizes = tuple(2 * n for n in whole.batch_sizes)
    hidden = decoder(twice[..., :-1], memory, batch_sizes).hidden
    targets = twice[..., 1:]
    logits = torch.zeros(*targets.shape, decoder.vocabulary_size)
    logits[targets != 0] = decoder.logits(hidden[targets != 0]).float()
    p = torch.softmax(logits, -1)
    entropy, apart = 0.0, 0.0
    for b, k, t in np.ndindex(5, 3, targets.shape[2]):
        word = targets[b, 2 * k, t]
        if word:
            one, other = p[b, 2 * k, t], p[b, 2 * k + 1, t]
            entropy -= one[word].log() + other[word].log()
            apart += 0.5 * (one * (one / other).log()).sum() + 0.5 * (other * (other / one).log()).sum()
    wanted = (entropy + 3.0 * apart) / 2 / whole.tokens  # half of the paper's loss
    torch.testing.assert_close(found.value, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sums["divergence"], apart.detach(), rtol=1e-4, atol=1e-6)
    assert apart > 0.1


@pytest.mark.parametrize("kind", DECODERS)
def test_embedding_dropout_drops_all_occurrences_of_a_word(kind):
    """As with a matrix in which their rows are zero; a tied one stays whole where words are chosen."""
    holder, _, batch = small_model(kind)
    whole = batch(range(5))
    found = loss_of(holder, whole, seed=5, embedding_dropout=0.5).value
    found.backward()
    gradient = holder.decoder.embedding.weight.grad
    torch.manual_seed(5)
    kept = F.dropout(torch.ones(len(holder.vocabulary), 1, dtype=torch.double), 0.5)
    assert {0.0, 2.0} == set(kept.flatten().tolist())
    other = copy.deepcopy(holder)
    other.decoder.embedding.weight = torch.nn.Parameter(holder.decoder.embedding.weight.detach() * kept)
    torch.testing.assert_close(found, loss_of(other, whole).value)
    read = whole.ids[..., :-1].unique()
    dropped = [word for word in read.tolist() if not kept[word]]
    assert dropped
    if kind == "lstm":
        assert not gradient[dropped].any() and gradient.any()
    assert found != loss_of(holder, whole).value


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
    holder, captions, batch = small_model("transformer", layers=1)
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


def test_without_a_compiler_the_run_logs_one_line_and_continues(tmp_path, monkeypatch):
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


def test_decoders_that_cannot_be_compiled_are_refused(tmp_path):
    holder, captions, _ = small_model("lstm")
    with pytest.raises(
        UserError, match=r"training\.compile: this decoder runs one time step after the other"
    ):
        objective_of(holder, captions, print, compile=True)
    values = tiny_settings(tmp_path, "run", "transformer")
    values["training"] |= {"compile": True, "embedding_dropout": 0.1}
    with pytest.raises(UserError, match=r"does not work with embedding_dropout"):
        parse(values, where="test")


def test_unused_options_of_cross_entropy_are_refused(tmp_path):
    values = tiny_settings(tmp_path, "run")
    values["training"] |= {"self_critical": {}, "scheduled_sampling": {}}
    with pytest.raises(UserError, match=r"scheduled_sampling is an option of cross-entropy; leave it out"):
        parse(values, where="test")
    values = tiny_settings(tmp_path, "run")
    values["training"]["scheduled_sampling"] = {"start": 0.5}
    with pytest.raises(UserError, match=r"start cannot be above most, got 0\.5 and 0\.25"):
        parse(values, where="test")
