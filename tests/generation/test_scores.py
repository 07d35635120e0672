"""Next-token log-probabilities, top-k, length rules and config checks against plain definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from captioning.generation import BeamConfig, GreedyConfig, SearchConfig, scores, search
from captioning.generation.scores import best, length_score, next_logprobs
from captioning.text.vocabulary import SpecialTokens
from tests.helpers.searching import END, START, VOCABULARY, make, scene


@settings(max_examples=150, deadline=None)
@given(
    images=st.integers(1, 3),
    width=st.integers(1, 5),
    size=st.integers(1, 700),
    count=st.integers(1, 17),
    levels=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 999),
)
def test_best_is_the_head_of_the_sorted_list(images, width, size, count, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    # few levels: ties; level 0: impossible
    draw = torch.randint(levels, (images, width, size), generator=generator)
    word_logprobs = (-draw / 7).double().masked_fill(draw == 0, -math.inf)
    logprob = -torch.randint(levels, (images, width), generator=generator) / 5
    top = best(word_logprobs, logprob.double(), count)
    sums = (word_logprobs + logprob.double()[..., None]).flatten(1)
    expected = sums.sort(1, descending=True).values[:, :count]
    assert torch.equal(top.logprob, expected)
    rows = torch.arange(images)[:, None]
    real = expected > -math.inf
    assert torch.equal(sums[rows, top.parents * size + top.ids][real], expected[real])
    assert torch.equal(word_logprobs[rows, top.parents, top.ids], top.word_logprobs)
    for row, parents, words in zip(real, top.parents, top.ids, strict=True):
        assert len(set(zip(parents[row].tolist(), words[row].tolist(), strict=True))) == row.sum()
    again = [
        best(word_logprobs[image : image + 1], logprob[image : image + 1].double(), count)
        for image in range(images)
    ]
    assert torch.equal(torch.cat([each.ids for each in again]), top.ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1, 31, 1 << 18])  # an image at a time, two, all of them
@pytest.mark.parametrize("grad", [False, True])
def test_next_logp_is_float32_at_least(dtype, block, grad, monkeypatch):
    monkeypatch.setattr(scores, "BLOCK", block)
    logits = (torch.randn(5, 3, 5, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    expected = logits.double() - logits.double().exp().sum(-1, keepdim=True).log()
    logprob = next_logprobs(logits.clone().requires_grad_(grad), torch.tensor([1, 4])).detach()
    assert logprob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (logprob[..., [1, 4]] == -math.inf).all()
    torch.testing.assert_close(
        logprob[..., [0, 2, 3]].double(), expected[..., [0, 2, 3]], rtol=1e-5, atol=1e-5
    )
    alone = next_logprobs(logits[3:4].clone(), torch.tensor([1, 4]))
    assert torch.equal(alone, logprob[3:4])  # where the blocks end changes no bit


def test_length_rules_on_paper():
    logprob = torch.tensor([-6.0])
    assert length_score(logprob, 4, "sum", 0.5).item() == -6.0
    assert length_score(logprob, 4, "mean", 0.5).item() == -1.5
    assert length_score(logprob, 19, "gnmt", 0.5).item() == -3.0  # ((5 + 19) / 6)^0.5 = 2


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "beam", "width": 0},
        {"kind": "beam", "width": 2, "n_best": 3},
        {"kind": "beam", "length_rule": "median"},
        {"kind": "beam", "patience": 0},
        {"kind": "beam", "alpha": -1},
        {"kind": "beam", "beam_size": 3},
        {"kind": "greedy", "max_length": 0, "min_length": 0},
        {"kind": "greedy", "min_length": 21},
        {"kind": "best_first"},
    ],
)
def test_configs_out_of_range_are_refused(value):
    with pytest.raises(ValidationError):
        TypeAdapter(SearchConfig).validate_python(value)


def test_configs_parse():
    parse = TypeAdapter(SearchConfig).validate_python
    assert parse({"kind": "greedy", "max_length": 7}) == GreedyConfig(max_length=7)
    assert parse({"kind": "beam", "width": 3, "patience": None}) == BeamConfig(width=3, patience=None)
    with pytest.raises(ValueError, match="n_best must be from 1 to width, got 5 and 3"):
        BeamConfig(width=3, n_best=5)


@pytest.mark.parametrize(
    ("end", "suppress_ids"), [(VOCABULARY, ()), (-1, ()), (END, (END,)), (END, (VOCABULARY,))]
)
def test_ids_outside_the_vocabulary_are_refused(end, suppress_ids):
    decoder = make("toy")
    for config in (GreedyConfig(), BeamConfig()):
        with pytest.raises(ValueError, match=r"ids run from 0 to 12|among the suppressed"):
            search(
                decoder,
                decoder.encode_memory(scene(1)),
                config,
                special=SpecialTokens(START, end, suppress_ids),
            )
