"""Decoders, images, search configs and independent implementations for the tests of searches."""

import itertools
import math

import torch
from hypothesis import strategies as st

from captioning.generation import (
    BeamConfig,
    ConstraintIds,
    GreedyConfig,
    SearchConfig,
    search,
)
from captioning.generation.base import option_names
from captioning.models.decoders import (
    AdaptiveAttentionConfig,
    AoAConfig,
    Att2inConfig,
    HardAttentionLSTMConfig,
    MeshedMemoryConfig,
    ShowTellConfig,
    SoftAttentionLSTMConfig,
    TransformerConfig,
    UpDownConfig,
    build,
)
from captioning.tensors import Features
from captioning.text.vocabulary import SpecialTokens
from captioning.utils.validation import members
from tests.helpers.toy import Toy

CONFIGS = {
    "soft_attention_lstm": SoftAttentionLSTMConfig(embedding=7, hidden=11, attention_size=3),
    "soft_attention_lstm, gru": SoftAttentionLSTMConfig(
        embedding=7, hidden=11, cell="gru", attention="multi_head", attention_size=6, heads=3
    ),
    "show_tell": ShowTellConfig(embedding=3, hidden=11),
    "hard_attention_lstm": HardAttentionLSTMConfig(embedding=7, hidden=11, attention_size=3),
    "adaptive_attention": AdaptiveAttentionConfig(embedding=7, hidden=11, attention_size=3),
    "att2in": Att2inConfig(embedding=7, hidden=11, attention_size=3),
    "aoa": AoAConfig(embedding=7, hidden=10, heads=2, refining=1),
    "up_down": UpDownConfig(embedding=7, hidden=11, attention_size=3),
    "meshed_memory": MeshedMemoryConfig(
        hidden=14, feed_forward=17, heads=2, layers=1, encoder_layers=2, slots=3
    ),
    "transformer": TransformerConfig(hidden=14, feed_forward=17, heads=2, layers=2),
}
DECODERS = ("toy", *CONFIGS)
FEW = ("toy", "soft_attention_lstm", "up_down", "transformer")  # one, one and two layers of state, a cache
CHANNELS, VOCABULARY = 5, 13
PAD, START, END, UNKNOWN = 0, 1, 2, 3
SUPPRESSED = (PAD, START, UNKNOWN)
SPECIAL = SpecialTokens(START, END, SUPPRESSED)
RULES = ("sum", "mean", "gnmt")


def make(name, *, vocabulary=VOCABULARY, seed=0, end=0.0):
    """A decoder in float64; `end` is added to the logit of <end>."""
    if name == "toy":
        decoder = Toy(channels=CHANNELS, vocabulary_size=vocabulary, seed=seed)
        decoder.bias.data[END] += end
        return decoder.eval()
    torch.manual_seed(seed)
    decoder = build(CONFIGS[name], channels=CHANNELS, vocabulary_size=vocabulary).double().eval()
    for parameter in decoder.parameters():  # as they begin, all captions are about equally likely
        parameter.data.add_(torch.randn_like(parameter) * 0.4)
    decoder.vocab_projection.bias.data[END] += end
    return decoder


def scene(images, *, regions=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Features(regions=torch.randn(images, regions, CHANNELS, generator=generator, dtype=torch.float64))


@torch.no_grad()
def run(decoder, features, config, suppress_ids=SUPPRESSED, **options):
    memory = decoder.encode_memory(features)
    special = SpecialTokens(START, END, tuple(suppress_ids))
    return search(decoder, memory, config, special=special, **options)


@torch.no_grad()
def read(decoder, features, words):
    """(B, K, T, V) log-probabilities after <start> and after each of `words` (B, K, T - 1), by `forward`."""
    started = torch.cat([torch.full((*words.shape[:2], 1), START), words], -1)
    steps = decoder(started, decoder.encode_memory(features))
    return decoder.logits(steps.hidden).log_softmax(-1)


def one(features, image):
    return Features(*(None if part is None else part[image : image + 1] for part in features))


def scored(logprob, length, rule, alpha):
    return {"sum": logprob, "mean": logprob / length, "gnmt": logprob / ((5 + length) / 6) ** alpha}[rule]


def captions(found, image):
    """[(words, finished, score)], without the empty rows."""
    return [
        (tuple(words[:length]), finished, score)
        for words, length, finished, score in zip(
            found.ids[image].tolist(),
            found.lengths[image].tolist(),
            found.finished[image].tolist(),
            found.scores[image].tolist(),
            strict=True,
        )
        if length
    ]


def assert_same(actual, expected):
    """Equal captions with scores that agree to rounding, in the same order."""
    assert [(words, finished) for words, finished, _ in actual] == [
        (w, finished) for w, finished, _ in expected
    ]
    torch.testing.assert_close(
        torch.tensor([score for *_, score in actual]), torch.tensor([score for *_, score in expected])
    )


def next_logprobs(decoder, features, words):
    """{word: log-probability} of what may come after `words` of the one image, unwanted words left out."""
    logprob = read(decoder, features, torch.tensor([[words]], dtype=torch.int64))[0, 0, -1].tolist()
    return {word: value for word, value in enumerate(logprob) if word not in SUPPRESSED}


def all_captions(decoder, features, high, shares):
    """{caption: probability} of the one image, captions of at most `high` words, word by word.

    `shares(words, {word: log-probability})` gives the probabilities {word: share} of the next word.
    """
    found, open_ = {}, {(): 1.0}
    while open_:
        words, mass = open_.popitem()
        for word, share in shares(words, next_logprobs(decoder, features, words)).items():
            longer = (*words, word)
            (found if word == END or len(longer) == high else open_)[longer] = mass * share
    return found


def renormalised(logprob):
    """{word: log-probability} -> {word: probability}, which sum to 1."""
    top = max(logprob.values())
    mass = {word: math.exp(value - top) for word, value in logprob.items()}
    return {word: value / sum(mass.values()) for word, value in mass.items()}


def chi_square(observed, expected):
    """p of the counts {outcome: count} under the probabilities {outcome: share}; rare outcomes are pooled.

    An outcome that is not expected at all gives p = 0.
    """
    draws = sum(observed.values())
    if not observed.keys() <= expected.keys():
        return 0.0
    cells, rest = [], [0.0, 0.0]
    for outcome, share in expected.items():
        pair = [observed.get(outcome, 0), share * draws]
        if pair[1] >= 5:
            cells.append(pair)
        else:
            rest = [rest[0] + pair[0], rest[1] + pair[1]]
    if rest[1] >= 5:
        cells.append(rest)
    if len(cells) == 1:
        return 1.0
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    degrees = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64)))


def allowed(words, ids, *, low, high, no_repeat=0):
    """Whether the rules allow the caption, each read as its definition says. Phrases share no words."""
    said = words[:-1] if words[-1] == END else words
    grams = [said[at : at + no_repeat] for at in range(len(said) - no_repeat + 1)] if no_repeat else []
    later = [at for at in range(len(grams)) if at + no_repeat > len(ids.prefix)]
    return (
        (words[-1] != END or (len(said) >= low and (not said or said[-1] not in ids.endings)))
        and said[: len(ids.prefix)] == ids.prefix
        and not set(said) & set(ids.banned)
        and all(grams[at] not in grams[:at] for at in later)
        and all(
            any(
                said[at : at + len(phrase)] == phrase
                for at in range(min(len(said), high - 1) - len(phrase) + 1)
            )
            for phrase in ids.forced
        )
    )


def exhaustive(decoder, features, *, low, high, rule, alpha, ids=None, no_repeat=0):
    """Every caption of one image that the rules allow, best first: the finished, then those cut off."""
    wanted = [word for word in range(decoder.vocabulary_size) if word not in (*SUPPRESSED, END)]
    found = []
    for length in range(1, high + 1):
        found += [(*words, END) for words in itertools.product(wanted, repeat=length - 1)]
    found += list(itertools.product(wanted, repeat=high))
    found = [
        words
        for words in found
        if allowed(words, ids or ConstraintIds(), low=low, high=high, no_repeat=no_repeat)
    ]
    listed = torch.tensor([[(*words, *[PAD] * (high - len(words))) for words in found]])  # (1, K, T)
    logprob = read(decoder, features, listed[..., :-1]).gather(-1, listed[..., None])[0, :, :, 0]
    ranked = [
        (words, words[-1] == END, scored(each[: len(words)].sum().item(), len(words), rule, alpha))
        for words, each in zip(found, logprob, strict=True)
    ]
    return sorted(ranked, key=lambda caption: (not caption[1], -caption[2]))


beams = st.builds(
    lambda width, share, max_length, min_share, rule, alpha, patience: BeamConfig(
        width=width,
        n_best=math.ceil(width * share),
        max_length=max_length,
        min_length=int(max_length * min_share),
        length_rule=rule,
        alpha=alpha,
        patience=patience,
    ),
    st.integers(1, 7),
    st.sampled_from([0.01, 0.5, 1.0]),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(RULES),
    st.sampled_from([0.0, 0.6, 2.0]),
    st.sampled_from([0.5, 1.0, 2.0, None]),
)
greedies = st.builds(
    lambda max_length, share: GreedyConfig(max_length=max_length, min_length=int(max_length * share)),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
)
ends = st.sampled_from([-2.0, 0.0, 2.0])


@st.composite
def ruled_searches(draw):
    """A search of any kind with any combination of constraints, and the ids of their words."""
    order = draw(st.permutations(range(4, VOCABULARY)))
    sizes = draw(st.sampled_from([(), (), (1,), (2,), (2, 1), (1, 1, 1)]))  # of the phrases
    ids = ConstraintIds(
        prefix=tuple(order[: draw(st.integers(0, 2))]),
        forced=tuple(tuple(order[2 + sum(sizes[:at]) :][:size]) for at, size in enumerate(sizes)),
        banned=tuple(order[5 : draw(st.integers(5, 7))]),
        endings=tuple(order[4 : draw(st.integers(4, 9))]),
    )
    fewest = len(ids.prefix) + sum(sizes) + 1
    high = draw(st.integers(fewest, 9))
    width, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    many = width * groups
    options = {
        "max_length": high,
        "min_length": draw(st.integers(0, high)),
        "no_repeat": draw(st.sampled_from([0, 0, 1, 2, 3])),
        "length_rule": draw(st.sampled_from(RULES)),
        "alpha": draw(st.sampled_from([0.0, 0.6, 2.0])),
        "patience": draw(st.sampled_from([0.5, 1.0, None])),
        "width": many,
        "groups": groups,
        "n_best": draw(st.sampled_from([many, math.ceil(many / 2)])),
        "diversity": 0.7,
        "samples": draw(st.integers(1, 5)),
        "seed": draw(st.integers(0, 99)),
        "temperature": draw(st.sampled_from([0.5, 1.0, 2.0])),
        "top_k": draw(st.sampled_from([None, None, 3])),
        "top_p": draw(st.sampled_from([None, None, 0.9])),
    }
    search = draw(st.sampled_from(list(members(SearchConfig).values())))
    return ids, search(**{name: options[name] for name in option_names(search) if name in options})


OPTIONS = {
    "beam": {"width": 3, "n_best": 3, "length_rule": "gnmt"},
    "diverse_beam": {"width": 4, "groups": 2, "n_best": 4},
    "sample": {"samples": 3, "temperature": 0.8, "top_p": 0.95},
    "stochastic_beam": {"samples": 3},
}
ONE_OF_EACH = tuple(
    search(max_length=7, **OPTIONS.get(kind, {})) for kind, search in members(SearchConfig).items()
)
