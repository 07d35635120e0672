"""Search settings changed from the command line, and the errors for impossible ones."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import generate_captions
from captioning.errors import UserError
from captioning.generation import (
    BeamConfig,
    DiverseBeamConfig,
    GreedyConfig,
    SampleConfig,
    SearchConfig,
    StochasticBeamConfig,
)
from captioning.generation.base import option_names
from captioning.generation.overrides import override_search
from captioning.images.preprocessing import preprocess
from captioning.images.reading import load_image
from captioning.utils.validation import members
from tests.helpers.models import WORDS, save_tiny_model
from tests.helpers.running import tool

BEAM = BeamConfig(width=4, n_best=3, max_length=9, min_length=2, length_rule="gnmt", alpha=0.9, no_repeat=2)


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        (BEAM, {}, BEAM),
        (BEAM, {"width": 2}, replace(BEAM, width=2, n_best=2)),
        (BEAM, {"n_best": 7}, replace(BEAM, width=7, n_best=7)),
        (BEAM, {"n_best": 1, "max_length": 5}, replace(BEAM, n_best=1, max_length=5)),
        (BEAM, {"options": ["patience=null", "search.alpha=0"]}, replace(BEAM, patience=None, alpha=0.0)),
        (BEAM, {"options": ["banned=[a, the]"]}, replace(BEAM, banned=("a", "the"))),
        (BEAM, {"options": ["prefix=a photo of"]}, replace(BEAM, prefix="a photo of")),
        (BEAM, {"kind": "greedy"}, GreedyConfig(max_length=9, min_length=2, no_repeat=2)),
        (
            BEAM,
            {"kind": "sample", "options": ["top_p=0.9", "seed=3"], "n_best": 7},
            SampleConfig(
                samples=7,
                top_p=0.9,
                seed=3,
                max_length=9,
                min_length=2,
                length_rule="gnmt",
                alpha=0.9,
                no_repeat=2,
            ),
        ),
        (
            BEAM,
            {"kind": "diverse_beam", "options": ["groups=2", "width=4"], "n_best": 3},
            DiverseBeamConfig(
                groups=2,
                width=4,
                n_best=3,
                max_length=9,
                min_length=2,
                length_rule="gnmt",
                alpha=0.9,
                no_repeat=2,
            ),
        ),
        (BeamConfig(), {"kind": "stochastic_beam"}, StochasticBeamConfig()),
        (SampleConfig(samples=2), {"n_best": 5}, SampleConfig(samples=5)),
        (GreedyConfig(max_length=7), {"width": 3}, BeamConfig(width=3, max_length=7)),
        (GreedyConfig(max_length=7), {"n_best": 3}, BeamConfig(width=3, n_best=3, max_length=7)),
        (GreedyConfig(), {"length_rule": "sum"}, BeamConfig(width=1, length_rule="sum")),
        (SampleConfig(top_k=3), {"width": 3}, BeamConfig(width=3)),
    ],
)
def test_changes_from_a_command_line(config, asked, expected):
    assert override_search(config, **asked) == expected


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"width": 2, "n_best": 3}, "--top 3: a beam of 2 returns at most 2 captions; give --beam 3"),
        ({"max_positions": 8}, "search.max_length=9: this model's decoder reads at most 8 words"),
        (
            {"max_length": 10, "max_positions": 9},
            "--max-length 10: this model's decoder reads at most 9 words",
        ),
    ],
)
def test_changes_that_contradict(asked, said):
    with pytest.raises(UserError, match=said):
        override_search(BEAM, **asked)


@pytest.mark.parametrize("name", ["caption", "evaluate"])
def test_help_names_every_kind_and_setting(name):
    told = tool(name, "--help").out
    kinds = members(SearchConfig)
    assert all(kind in told for kind in kinds)
    settings = re.search(r"--search-option KEY=VALUE(.*?)--beam", told, re.DOTALL)
    assert settings is not None
    assert set(re.findall(r"\w+", settings[1])) >= {
        each for kind in kinds.values() for each in option_names(kind)
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose search is a beam of 3, captions of 9 words at most; it knows 9 words."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), search=BeamConfig(width=3, max_length=9))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "x.png"
    noise = np.random.default_rng(3).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((37, 23), Image.Resampling.NEAREST).save(path)
    return path


def option(*settings):
    return [part for setting in settings for part in ("--search-option", setting)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--beam", "10"], "search.width: a beam of 10, but the model has 9 words; lower it to 9 or less"),
        (["--top", "100000"], "a beam of 100,000, but the model has 9 words"),
        (["--search", "diverse_beam", *option("width=12")], "a beam of 12, but the model has 9 words"),
        (option("forced=elephant"), "search.forced: 'elephant' is not among the model's 13 words"),
        (option("forced=[dog]", "banned=[dog]"), "search.forced: 'dog' is also in search.banned"),
        (option("prefix=a dog runs on a cat on the grass"), "has 9 words, but captions end at max_length=9"),
        (option("prefix=a dog", "max_length=2"), "has 2 words, but captions end at max_length=2"),
        (option("forced=[a dog, the cat, on grass]", "max_length=6"), "are 7 words, but max_length=6"),
        (
            option("min_length=12"),
            "search: min_length must be from 0 to max_length, and max_length at least 1, got 12 and 9",
        ),
        (["--max-length", "4", *option("min_length=5")], "min_length must be from 0 to max_length"),
        (
            option(f"banned={json.dumps(WORDS)}", "min_length=2"),
            "no caption satisfies the search's constraints",
        ),
        (
            option("no_repeats=3"),
            "search.no_repeats: not an option of the search beam; did you mean no_repeat?",
        ),
        (option("width=[1]"), "search.width: input should be a valid integer, got [1]"),
        (option("width"), "--search-option width: write it KEY=VALUE, as in max_length=12"),
        (option("banned=[a"), "--search-option banned=[a: the value is not YAML"),
        (
            ["--search", "sample", *option("top_p=1.5")],
            "search.top_p: input should be less than or equal to 1, got 1.5",
        ),
        (
            ["--search", "sample", *option("temperature=0")],
            "search.temperature: input should be greater than 0",
        ),
        (["--search", "diverse_beam", *option("width=7")], "width must be a multiple of groups, got 7 and 3"),
        (["--search", "greedy", "--beam", "3"], "search.width: not an option of the search greedy"),
        (
            ["--search", "greedy", "--top", "3"],
            "--top 3: greedy search returns one caption; use --search beam",
        ),
        (["--search", "best_first"], "--search: unknown kind 'best_first'"),
    ],
)
def test_what_cannot_be_had_is_one_sentence_and_writes_nothing(model, photo, tmp_path, arguments, said):
    out = tmp_path / "out"
    done = tool(
        "caption", photo, "--model", model, *arguments, "--out", out / "p.json", "--explain", out / "x"
    )
    assert (done.code, done.out) == (2, "")
    assert said in done.err and "Traceback" not in done.err
    assert len([line for line in done.err.splitlines() if "error: " in line]) == 1
    assert not [path for path in out.rglob("*") if path.is_file()]


CHANGED = BeamConfig(width=4, max_length=6)


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (["--search", "greedy"], GreedyConfig(max_length=9)),
        (["--beam", "4", "--max-length", "6"], CHANGED),
        (option("width=4", "max_length=6"), CHANGED),
        (
            option("prefix=a red", "forced=[on grass]"),
            BeamConfig(width=3, max_length=9, prefix="a red", forced=("on grass",)),
        ),
        (
            option("no_repeat=1", "no_bad_ending=true"),
            BeamConfig(width=3, max_length=9, no_repeat=1, no_bad_ending=True),
        ),
        (["--search", "diverse_beam", "--top", "3"], DiverseBeamConfig(max_length=9, n_best=3)),
        (
            ["--search", "sample", "--top", "4", *option("temperature=0.7", "seed=5")],
            SampleConfig(samples=4, temperature=0.7, seed=5, max_length=9),
        ),
        (["--search", "stochastic_beam", "--top", "6"], StochasticBeamConfig(samples=6, max_length=9)),
    ],
)
def test_the_tool_s_options_are_those_of_the_search(model, photo, arguments, config):
    done = tool("caption", photo, "--model", model, "--json", *arguments)
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    captioner = Captioner.open(model)
    pixels = preprocess(load_image(photo), captioner.config.preprocessing)
    expected = generate_captions(captioner, pixels[None], ["x.png"], config=config)[0]
    captions = [expected.caption, *(each.caption for each in expected.alternatives)]
    assert told["caption"] == expected.caption
    assert told.get("captions", [told["caption"]]) == captions
    assert told["logprob"] == pytest.approx(expected.logprob, abs=1e-4)
