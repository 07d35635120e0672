"""Systems that lack parts of Linux: Windows without fcntl, resource and SIGUSR1; Apple's GPUs without float64."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from captioning import tensors
from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import generate_captions
from captioning.config import parse
from captioning.errors import UserError
from captioning.experiment import choose_device
from captioning.generation.sampling import SampleConfig
from captioning.generation.stochastic_beam import StochasticBeamConfig
from captioning.images.preprocessing import preprocess
from captioning.images.reading import load_image
from captioning.ops.noise import gumbel, sequence_states
from tests.helpers.running import python
from tests.helpers.training import experiment, tiny_settings

WITHOUT_UNIX = """
import importlib, json, os, pickle, pkgutil, signal, sys
import filelock, matplotlib.pyplot, torch, torchvision, torch.distributed, torch.utils.data, wandb  # work there

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # importing it raises ImportError
for owner, names in ((signal, ("SIGUSR1", "SIGKILL", "SIGHUP")), (os, ("fork", "killpg", "setsid", "geteuid"))):
    for name in names:
        delattr(owner, name)

import captioning
optional = {"gradio", "onnx", "onnxruntime", "timm", "huggingface_hub", "tokenizers", "transformers"}
for module in pkgutil.walk_packages(captioning.__path__, "captioning."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in optional:
                raise

make = torch.utils.data.DataLoader.__init__
def picklable(self, dataset, *args, **options):  # processes are started, not forked
    pickle.dumps(dataset)
    pickle.dumps([options.get("collate_fn"), options.get("worker_init_fn")])
    make(self, dataset, *args, **options)
torch.utils.data.DataLoader.__init__ = picklable

from captioning.config import parse
from captioning.experiment import Experiment
experiment = Experiment(parse(json.loads(sys.argv[1]), where="test"), log=lambda _: None)
assert experiment.train().step == 2
assert experiment.train(resume=True).step == 2
sys.argv[1:] = ["--model", str(experiment.folder), experiment.load_dataset().records[0].path]
from captioning.cli.caption import main
main()
"""


def test_every_module_is_imported_and_a_run_trained_without_what_windows_lacks(tmp_path):
    values = tiny_settings(tmp_path, "run", epochs=1)
    values["dataset"]["train"] = 10
    done = python(WITHOUT_UNIX, json.dumps(values))
    assert done.code == 0, done.err
    assert len(done.out.split()) > 1


class NoFloat64(TorchDispatchMode):
    """Refuses every operation of torch whose result is float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(output, torch.Tensor) and output.dtype == torch.float64:
                raise TypeError(f"{function} gives float64")
        return result


@pytest.fixture
def without_float64(monkeypatch):
    monkeypatch.setattr(tensors, "WITHOUT_FLOAT64", ("cpu",))


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [
        ("soft_attention_lstm", {}),
        ("transformer", {"positions": "rotary"}),
        ("transformer", {"positions": "sinusoidal"}),
    ],
)
def test_training_and_searching_without_float64(kind, decoder, tmp_path, without_float64):
    values = tiny_settings(tmp_path, "run", kind, epochs=1)
    values["decoder"] |= decoder
    values["training"]["scheduled_sampling"] = {"start": 0.5, "most": 0.5}
    run = experiment(values)
    photos = [record.path for record in run.load_dataset().records[:2]]
    with NoFloat64():
        assert run.train().step == 5
        captioner = Captioner.open(run.folder / "model")
        for search in (SampleConfig(samples=2), StochasticBeamConfig(samples=3)):
            pixels = torch.stack([preprocess(load_image(path), run.config.preprocessing) for path in photos])
            captions = generate_captions(captioner, captioner.features(pixels), photos, config=search)
            assert len(captions) == 2


def test_noise_in_float32_is_that_of_float64_to_its_precision(monkeypatch):
    state = sequence_states(3, torch.arange(50), 4)
    exact = gumbel(state, 501)
    monkeypatch.setattr(tensors, "WITHOUT_FLOAT64", ("cpu",))
    rounded = gumbel(state, 501)
    assert exact.dtype == torch.float64 and rounded.dtype == torch.float32
    assert rounded.isfinite().all() and (exact - rounded).abs().median() < 1e-6
    largest = torch.full((1,), -1, dtype=torch.int64)  # all bits are set: the uniform number next to 1
    monkeypatch.setattr("captioning.ops.noise.mix", lambda *_: largest)
    assert gumbel(largest, 1).isfinite().all()


def test_apples_gpus_are_a_device_where_torch_finds_one(tmp_path, monkeypatch):
    assert parse(tiny_settings(tmp_path, "run") | {"device": "mps"}, where="test").device == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(
        UserError, match="device: mps asked for, but torch finds no such device here; use device=cpu"
    ):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
