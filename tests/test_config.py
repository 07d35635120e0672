"""Settings of a run: every shipped config builds, and a wrong setting is one sentence."""

from pathlib import Path

import pytest
import torch

from captioning.config import read_config
from captioning.errors import UserError
from captioning.experiment import Experiment
from captioning.tensors import Features
from captioning.text.vocabulary import Vocabulary
from tests.helpers.training import (
    CAPTIONS,
)

ROOT = Path(__file__).resolve().parents[1]


CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if not path.name.startswith("study_"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_builds(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# captioning "), "the first line gives the command"
    config = read_config(path, ["encoder.weights=none"] if "torchvision" in path.read_text() else [])
    captioner = Experiment(config).build_captioner(Vocabulary.build(CAPTIONS, min_count=1))
    channels, size = captioner.encoder.channels, config.preprocessing.size
    given = config.encoder.precomputed  # what stands in files is no work of the encoder's
    images = Features(torch.zeros(1, 7, channels)) if given else torch.zeros(1, 3, size, size)
    with torch.inference_mode():
        features = captioner.eval().features(images)
        decoder, memory = captioner.decoder, captioner.decoder.encode_memory(features)
        step, _ = decoder.step(torch.zeros(1, 2, dtype=torch.int64), decoder.init_state(memory, 2), memory)
        assert decoder.logits(step.hidden).shape == (1, 2, decoder.vocabulary_size)
    assert features.regions.shape[2] == channels


def test_a_mistake_is_laid_to_the_file_or_the_override_it_came_with(tmp_path):
    path = tmp_path / "x.yaml"
    good = "name: x\nencoder: {kind: small}\nsearch: {kind: beam}\n"
    path.write_text(good + "seed: -1.5\n")
    two = ["training.epochs=3", "training.epoch=4"]
    for overrides in ([], ["training.epochs=3"], two):
        with pytest.raises(UserError) as caught:
            read_config(path, overrides)
        assert str(caught.value).startswith(f"{path}: seed:")  # the first of the mistakes
    path.write_text(good)
    for overrides in (two, two[::-1], ["training={epochs: 3, epoch: 4}"]):
        with pytest.raises(UserError) as caught:
            read_config(path, overrides)
        blamed = next(override for override in overrides if "epoch" in override.replace("epochs", ""))
        assert str(caught.value).startswith(f"{blamed!r}: training.epoch: unknown key")
    with pytest.raises(
        UserError, match=r"^'search.max_length=99': settings: the decoder reads no more than 64"
    ):
        read_config(path, ["seed=1", "decoder={kind: transformer}", "search.max_length=99"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decoder.dropuot=0.1"], r"decoder\.dropuot: unknown key; did you mean decoder\.dropout\?"),
        (
            ["decoder={kind: transformer, max_length: 7}", "search.max_length=5", "vocabulary.max_length=7"],
            r"settings: the decoder reads no more than 7 words, but with vocabulary\.max_length up to 8; lower",
        ),
        (
            ["decoder={kind: transformer}", "search.max_length=65"],
            r"settings: the decoder reads no more than 64 words, but with search\.max_length up to 65; lower",
        ),
        (["trainign.epochs=3"], r"trainign: unknown key; did you mean training\?"),
        (
            ["phases=[{epochs: 1}, {epoch: 2}]"],
            r"phases\.1\.epoch: unknown key; did you mean phases\.1\.epochs\?",
        ),
        (["training.epochs=many"], r"training\.epochs: .*got 'many'"),
        (["training.epochs=0"], r"training\.epochs: .*got 0"),
        (["search.width=0"], r"search\.width: .*got 0"),
        (["decoder.kind=lstmm"], r"decoder.*soft_attention_lstm"),
        (["training"], "an override is written section.key=value"),
        (["training.learning_rate=.inf"], r"training\.learning_rate: expected a finite number, got inf"),
        (["training.learning_rate=inf"], r"training\.learning_rate: expected a finite number, got inf"),
        (["training.learning_rate=1e400"], r"training\.learning_rate: expected a finite number, got inf"),
        (["training.weight_decay=.nan"], r"training\.weight_decay: .*got nan"),
        (["training.grad_clip_norm=.inf"], r"training\.grad_clip_norm: expected a finite number"),
        (["decoder.forget_bias=.nan"], r"decoder\.forget_bias: expected a finite number, got nan"),
        (["preprocessing.mean=[.nan, 0, 0]"], r"preprocessing\.mean\.0: expected a finite number, got nan"),
        (["seed=-1"], r"seed: .*greater than or equal to 0, got -1"),
        (["dataset.seed=-1"], r"dataset\.seed: .*greater than or equal to 0, got -1"),
        (["search={kind: sample, seed: -3}"], r"search\.seed: .*greater than or equal to 0, got -3"),
        ([f"seed={2**63}"], rf"seed: expected a number of at most 64 bits, got {2**63}"),
        (
            ["decoder.hidden=10000000000000000000000"],
            r"decoder\.hidden: .*less than or equal to 100000, got 1000",
        ),
        (["decoder.hidden=1.0e+22"], r"decoder\.hidden: .*exceeded maximum size, got 1e\+22"),
        (
            ["decoder={kind: transformer, layers: 2147483648}"],
            r"decoder\.layers: .*less than or equal to 1000",
        ),
        (["preprocessing.size=1000000"], r"preprocessing\.size: .*less than or equal to 4096"),
        (["preprocessing.crop=0.00001"], r"size / crop must be at most 4096 pixels, got 64 / 1e-05"),
        (["search.width=1000000000"], r"search\.width: .*less than or equal to 10000"),
        (['dataset.root="a\\0b"'], r"dataset\.root: expected text without NUL and lone surrogates"),
        (['features.root="\\ud800"'], r"features\.root: expected text without NUL and lone surrogates"),
        (["name="], "name: .*got None"),
        (["name=''"], r"name: expected a path below the folder of runs, .*got ''"),
        (["name=../../out"], r"name: expected a path below the folder of runs, .*got '\.\./\.\./out'"),
        (["name=a/../../b"], r"name: expected a path below"),
        (["name=."], r"name: expected a path below"),
        (["name=/tmp/x"], r"name: expected a path below the folder of runs, .*got '/tmp/x'"),
        (["name='C:\\x'"], r"name: expected a path below"),
        (['name="a\\0b"'], r"name: expected at most 200 printable characters"),
        (['name="a\\nb"'], r"name: expected at most 200 printable characters"),
        (["name=" + 300 * "a"], r"name: expected at most 200 printable characters, got 'a{80}'"),
        (["name=" + 90 * "ü" + 90 * "é"], r"name: expected at most 200 printable characters"),
    ],
)
def test_wrong_settings_are_told_in_one_sentence(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        read_config(ROOT / "configs" / "shapes.yaml", overrides)
    assert "\n" not in str(caught.value)


def test_a_run_may_lie_in_a_folder_of_runs():
    config = read_config(ROOT / "configs" / "shapes.yaml", ["name=first try/seed 1.é"])
    assert config.folder == Path("runs", "first try", "seed 1.é")


def test_sizes_that_memory_cannot_hold_are_refused(monkeypatch):
    def build(*_, **__):  # not by real sizes: some systems promise any memory and kill who uses it
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: ..."
        )

    monkeypatch.setattr("captioning.models.decoders.build", build)
    config = read_config(ROOT / "configs" / "shapes.yaml")
    with pytest.raises(UserError, match="too large for the memory of this machine; lower the sizes"):
        Experiment(config).build_captioner(Vocabulary.build(CAPTIONS, min_count=1))


def test_yaml_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(UserError, match="broken YAML"):
        read_config(path)
    assert not (tmp_path / "ran").exists()
