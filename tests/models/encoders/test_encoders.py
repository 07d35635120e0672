"""Encoders: what they give, what they refuse to load, and what stays still while they are frozen."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from captioning.errors import UserError
from captioning.models.encoders import (
    Encoder,
    EncoderConfig,
    SmallCNNConfig,
    TorchvisionConfig,
    build,
    for_inference,
)
from captioning.models.encoders.torchvision_cnn import NAMES
from tests.helpers.shared_data import SHARED, needs_shared

NAME = "mobilenet_v3_small"  # the quickest to build that has BatchNorm


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """BatchNorm with statistics and weights that matter; fresh ones are nearly the identity."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.2, 0.2),
                (layer.running_var, 0.5, 2.0),
                (layer.weight.data, 0.5, 1.5),
                (layer.bias.data, -0.2, 0.2),
            ):
                tensor.uniform_(low, high, generator=generator)  # type: ignore[union-attr]
    return module


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_buffers() if "running" in name}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return stirred(models.get_model(NAME, weights=None)).eval()


@pytest.fixture
def weights(network: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "whole.pth"
    torch.save(network.state_dict(), path)
    return path


# --- what comes out ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "node", "shape"),
    [
        ("resnet18", "layer4", (512, 3, 5)),
        ("mobilenet_v2", "features", (1280, 3, 5)),
        ("mobilenet_v3_small", "features", (576, 3, 5)),
        ("efficientnet_b0", "features", (1280, 3, 5)),
        ("regnet_y_400mf", "trunk_output", (440, 3, 5)),
        ("squeezenet1_1", "features", (512, 5, 8)),
    ],
)
def test_regions_are_torchvisions_own_maps(tmp_path: Path, name: str, node: str, shape: tuple[int, int, int]):
    """A whole network saved, and its maps taken out by torchvision's feature extractor."""
    torch.manual_seed(0)
    network = stirred(models.get_model(name, weights=None)).eval()
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    encoder = build(TorchvisionConfig(name=name, weights=str(path)))  # type: ignore[arg-type]
    pixels = torch.randn(2, 3, 96, 144)
    expected = create_feature_extractor(network, {node: "maps"})(pixels)["maps"]
    assert expected.shape == (2, *shape) and encoder.channels == shape[0]
    regions, mask, boxes = encoder(pixels)
    assert mask is boxes is None and regions.is_contiguous()
    scale = expected.abs().max()
    for row in range(shape[1]):
        for column in range(shape[2]):
            ours, theirs = regions[:, row * shape[2] + column], expected[:, :, row, column]
            torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-5, rtol=0)


def test_vgg_ends_before_its_last_pooling():
    encoder = build(TorchvisionConfig(name="vgg11"))
    pixels = torch.randn(1, 3, 64, 64)
    regions = encoder(pixels).regions
    assert regions.shape == (1, 4 * 4, 512)
    assert (regions >= 0).all()  # the ReLU is there


def test_a_grid_is_the_mean_of_its_cells():
    torch.manual_seed(0)
    encoder = build(TorchvisionConfig(name=NAME, grid=3))
    assert encoder(torch.randn(2, 3, 75, 160)).regions.shape == (2, 9, 576)
    native = build(TorchvisionConfig(name=NAME))
    native.load_state_dict(encoder.state_dict())
    pixels = torch.randn(2, 3, 192, 192)
    cells = native(pixels).regions.reshape(2, 3, 2, 3, 2, 576)  # 6 x 6 as 3 x 3 of 2 x 2
    torch.testing.assert_close(
        encoder(pixels).regions, cells.mean((2, 4)).reshape(2, 9, 576), atol=1e-6, rtol=1e-4
    )


def test_every_name_is_torchvisions():
    known = set(models.list_models(module=models))
    assert set(NAMES) <= known
    for family in (
        "resnet101",
        "vgg19",
        "mobilenet_v3_large",
        "efficientnet_b0",
        "convnext_tiny",
        "regnet_y_400mf",
    ):
        assert family in NAMES


def test_an_image_alone_and_in_a_batch_are_the_same():
    encoder = build(TorchvisionConfig(name=NAME))
    pixels = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(
        encoder(pixels).regions[1:2], encoder(pixels[1:2]).regions, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "convnext_tiny"])
def test_the_inference_copy_gives_the_same(name: str):
    torch.manual_seed(0)
    encoder = build(TorchvisionConfig(name=name))  # type: ignore[arg-type]
    stirred(encoder)
    before = encoder.fingerprint()
    pixels = torch.randn(2, 3, 64, 96)
    copy = for_inference(encoder, pixels[:1])
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in copy.modules())
    expected = encoder(pixels).regions
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(
        copy(pixels).regions, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4
    )
    assert encoder.fingerprint() == before


# --- frozen means frozen ----------------------------------------------------------------------


class Parent(nn.Module):
    """A model with an encoder in it, as training has it."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.channels, 5)


def test_batchnorm_of_a_frozen_encoder_does_not_move(weights: Path):
    parent = Parent(build(TorchvisionConfig(name=NAME, weights=str(weights))))
    before = statistics(parent.encoder)
    assert before and parent.encoder.frozen
    for mode in (True, False, True):
        parent.train(mode)
        assert parent.training is mode and not any(layer.training for layer in parent.encoder.modules())
        regions = parent.encoder(3 + torch.randn(2, 3, 64, 64)).regions
        assert not regions.requires_grad
        parent.head(regions).sum().backward()
    for name, value in statistics(parent.encoder).items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in parent.encoder.parameters())
    assert parent.encoder.parameter_groups(1e-3) == []


def test_the_freeze_is_what_holds_the_statistics(weights: Path):
    """The same data does move them in torchvision's own network: the test above can fail."""
    network = models.get_model(NAME, weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    before = statistics(network)
    network.train()(3 + torch.randn(2, 3, 64, 64))
    assert any(not torch.equal(value, before[name]) for name, value in statistics(network).items())


@pytest.mark.parametrize("trainable_from", [0, 2, 4])
def test_training_from_a_stage(trainable_from: int):
    torch.manual_seed(0)
    config = TorchvisionConfig(name="resnet18", trainable_from=trainable_from, lr=3e-5)
    parent = Parent(build(config)).train()
    encoder = parent.encoder
    assert not encoder.frozen
    before = statistics(encoder)
    stage = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}
    parent.head(encoder(torch.randn(2, 3, 64, 64)).regions).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        trains = stage[name.split(".")[1]] >= trainable_from
        assert parameter.requires_grad is trains and (parameter.grad is not None) is trains, name
    for name, value in statistics(encoder).items():
        assert torch.equal(value, before[name]) is (stage[name.split(".")[1]] < trainable_from), name
    (group,) = encoder.parameter_groups(1e-3)
    assert group["lr"] == 3e-5
    assert len(group["params"]) == sum(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(layer.training for layer in parent.eval().modules())


TRAINED = {
    "small": SmallCNNConfig(channels=(4, 6)),
    "resnet18": TorchvisionConfig(name="resnet18", trainable_from=2),
    "vgg11": TorchvisionConfig(name="vgg11", trainable_from=0),
    "efficientnet_b0": TorchvisionConfig(
        name="efficientnet_b0", trainable_from=3
    ),  # drops whole paths at random
}


@pytest.mark.parametrize("name", TRAINED)
def test_recomputing_changes_nothing_but_the_memory(name: str):
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    gradients, moved, kept = [], [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = build(dataclasses.replace(TRAINED[name], gradient_checkpointing=checkpointing)).train()
        sizes = {}  # of what the forward pass leaves for the backward pass

        def keep(tensor: torch.Tensor, sizes=sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = encoder(pixels).regions.square().sum()
        kept.append(sum(sizes.values()))
        loss.backward()
        gradients.append({key: each.grad for key, each in encoder.named_parameters()})
        moved.append({key: each.clone() for key, each in encoder.named_buffers()})
    for plain, other in ((gradients[0], gradients[1]), (moved[0], moved[1])):
        assert plain.keys() == other.keys()
        for key, value in plain.items():
            assert (value is None) == (other[key] is None) and (
                value is None or torch.equal(value, other[key])
            ), key
    counters = {int(value) for key, value in moved[1].items() if key.endswith("num_batches_tracked")}
    assert counters <= {0, 1}, "statistics have moved twice"
    assert kept[1] < 0.6 * kept[0]
    with torch.no_grad():
        encoder(pixels)


def test_a_stage_that_there_is_not():
    with pytest.raises(UserError, match=r"trainable_from: the last stage of resnet18 is 4, got 5"):
        build(TorchvisionConfig(name="resnet18", trainable_from=5))


# --- weights ----------------------------------------------------------------------------------


def test_a_whole_state_dict_and_its_features_alone_load_alike(
    tmp_path: Path, network: nn.Module, weights: Path
):
    features = tmp_path / "features.safetensors"
    kept = {n: t for n, t in network.state_dict().items() if n.startswith("features") and "tracked" not in n}
    save_file(kept, features)
    prints = {
        build(TorchvisionConfig(name=NAME, weights=str(path))).fingerprint() for path in (weights, features)
    }
    assert len(prints) == 1
    assert build(TorchvisionConfig(name=NAME)).fingerprint() not in prints


def test_half_precision_weights_are_read_as_float32(tmp_path: Path, network: nn.Module):
    path = tmp_path / "half.safetensors"
    save_file(
        {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}, path
    )
    encoder = build(TorchvisionConfig(name=NAME, weights=str(path)))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def refused(path: Path, name: str = NAME) -> str:
    with pytest.raises(UserError) as caught:
        build(TorchvisionConfig(name=name, weights=str(path)))  # type: ignore[arg-type]
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_that_do_not_fit_are_named(tmp_path: Path, network: nn.Module, suffix: str):
    path = tmp_path / f"w{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    good = network.state_dict()
    key = "features.3.block.1.0.weight"
    save({n: t for n, t in good.items() if n != key}, path)
    assert f"{key} is missing" in refused(path)
    save({**good, "features.99.weight": torch.zeros(3)}, path)
    assert "features.99.weight is not in this architecture" in refused(path)
    save({**good, key: torch.zeros(2, 3)}, path)
    assert f"{key} has shape [2, 3]" in refused(path)
    save({**good, key: torch.full_like(good[key], torch.nan)}, path)
    assert f"{key} holds values that are not finite" in refused(path)
    save({name: tensor for name, tensor in good.items() if "classifier" not in name}, path)
    build(TorchvisionConfig(name=NAME, weights=str(path)))


def test_another_networks_weights_are_refused(weights: Path):
    assert "and " in refused(weights, "resnet18") and "missing" in refused(weights, "resnet18")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_files_are_refused(tmp_path: Path, weights: Path, suffix: str):
    path = tmp_path / f"w{suffix}"
    assert "no such file" in refused(path)
    whole = weights.read_bytes()
    for content in (
        b"",
        b"<!DOCTYPE html><html>404</html>",
        whole[: len(whole) // 2],
        b"\x80\x02garbage",
        bytes(999),
    ):
        path.write_bytes(content)
        refused(path)
    path.unlink()
    path.mkdir()
    assert "a folder" in refused(path)


class Bomb:
    """A pickle that writes a file when it is loaded by pickle itself."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_with_code_are_refused_and_nothing_runs(tmp_path: Path):
    ran, path = tmp_path / "ran", tmp_path / "w.pth"
    pickle.loads(pickle.dumps(Bomb(ran)))
    assert ran.exists()  # the bomb works
    ran.unlink()
    torch.save({"features.0.0.weight": Bomb(ran)}, path)
    assert "refused as unsafe" in refused(path)
    torch.save({"features.0.0.weight": Bomb(ran)}, path, _use_new_zipfile_serialization=False)
    assert "refused as unsafe" in refused(path)
    path.write_bytes(pickle.dumps(Bomb(ran), protocol=2))
    assert "refused as unsafe" in refused(path)
    assert not ran.exists()


def test_whole_models_and_other_content_are_refused(tmp_path: Path, network: nn.Module):
    path = tmp_path / "w.pth"
    torch.save(network, path)
    assert "refused as unsafe" in refused(path)
    torch.save([1, 2, 3], path)
    assert "expected a state_dict" in refused(path)
    torch.save({"epoch": 7, "state_dict": {}}, path)
    assert "expected a tensor under 'epoch', found int" in refused(path)


def test_default_weights_are_asked_of_torchvision(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module, weights: Path
):
    asked = {}

    def download(url: str, **options: object):
        asked.update(options, url=url)
        return network.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    encoder = build(TorchvisionConfig(name=NAME, weights="default"))
    assert encoder.fingerprint() == build(TorchvisionConfig(name=NAME, weights=str(weights))).fingerprint()
    assert "mobilenet_v3_small" in asked["url"] and asked["check_hash"] and asked["weights_only"]

    def offline(*_: object, **__: object):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded .*no network.*; give the path of a file"):
        build(TorchvisionConfig(name=NAME, weights="default"))


def test_no_weights_means_no_download(monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object):
        raise AssertionError("downloaded")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", never)
    build(TorchvisionConfig(name=NAME, weights="default").without_weights())


@needs_shared
@pytest.mark.parametrize(
    ("name", "file", "shape"),
    [
        ("mobilenet_v2", "mobilenet_v2_imagenet_features.safetensors", (49, 1280)),
        ("squeezenet1_1", "squeezenet1_1_imagenet.pth", (169, 512)),
    ],
)
def test_the_real_weight_files_load(name: str, file: str, shape: tuple[int, int]):
    path = SHARED / "weights" / file
    regions = build(TorchvisionConfig(name=name, weights=str(path)))(torch.randn(1, 3, 224, 224)).regions  # type: ignore[arg-type]
    assert regions.shape == (1, *shape) and regions.isfinite().all() and regions.std() > 0.1


# --- fingerprints -----------------------------------------------------------------------------


def test_the_fingerprint_is_of_weights_and_what_shapes_the_features(weights: Path):
    def made(**changes: object) -> Encoder:
        return build(TorchvisionConfig(name=NAME, weights=str(weights), **changes))  # type: ignore[arg-type]

    original = made().fingerprint()
    assert len(original) == 16
    assert made(trainable_from=2, lr=1.0).fingerprint() == original
    assert made(grid=3).fingerprint() != original
    opened = build(TorchvisionConfig(name=NAME))  # as a model folder does it
    opened.load_state_dict(made().state_dict())
    assert opened.fingerprint() == original
    touched = made()
    counter = next(value for name, value in touched.named_buffers() if "tracked" in name)
    counter += 1
    assert touched.fingerprint() == original
    with torch.no_grad():
        next(touched.parameters()).view(-1)[-1] += 1e-4
    assert touched.fingerprint() != original
    assert made().to(memory_format=torch.channels_last).fingerprint() == original


# --- configs ----------------------------------------------------------------------------------


def test_configs_are_told_apart_by_kind():
    adapter: TypeAdapter[EncoderConfig] = TypeAdapter(EncoderConfig)
    config = adapter.validate_python({"kind": "torchvision", "name": "vgg16", "grid": 7})
    assert config == TorchvisionConfig(name="vgg16", grid=7)
    assert adapter.validate_python({"kind": "small", "channels": [16, 24]}) == SmallCNNConfig(
        channels=(16, 24)
    )
    assert adapter.validate_python(adapter.dump_python(config, mode="json")) == config
    for wrong in (
        {"kind": "torchvision", "name": "vgg17"},
        {"kind": "torchvision", "gird": 7},
        {"kind": "torchvision", "grid": 0},
        {"kind": "torchvision", "lr": 0},
        {"kind": "small", "channels": []},
        {"kind": "big"},
        {},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    with pytest.raises(ValidationError, match="no network of this name; the closest are mobilenet_v2"):
        adapter.validate_python({"kind": "torchvision", "name": "mobilenetv2"})


# --- the small one ----------------------------------------------------------------------------


def test_the_small_encoder():
    torch.manual_seed(0)
    config = SmallCNNConfig(channels=(16, 24, 40))
    assert config.without_weights() is config
    encoder = build(config)
    assert encoder.channels == 40 and not encoder.frozen
    assert encoder(torch.randn(2, 3, 64, 88)).regions.shape == (2, 8 * 11, 40)
    assert build(SmallCNNConfig(channels=(16, 24), grid=5))(torch.randn(2, 3, 64, 88)).regions.shape == (
        2,
        25,
        24,
    )
    (group,) = encoder.parameter_groups(7e-4)
    assert group["lr"] == 7e-4 and len(group["params"]) == len(list(encoder.parameters()))
    assert build(SmallCNNConfig(lr=2e-3)).parameter_groups(7e-4)[0]["lr"] == 2e-3
    encoder(torch.randn(2, 3, 32, 32)).regions.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_regions_of_the_small_encoder_know_their_place():
    """A picture of one colour: without places all inner regions are the same, with them all differ."""
    torch.manual_seed(0)
    pixels = torch.ones(1, 3, 72, 72)
    for frequencies in (0, 4):
        encoder = build(SmallCNNConfig(channels=(16, 24), frequencies=frequencies))
        inner = encoder(pixels).regions.reshape(18, 18, 24)[4:-4, 4:-4].flatten(0, 1)
        apart = torch.cdist(inner, inner)
        if frequencies == 0:
            assert apart.max() < 1e-4
        else:
            assert (apart + torch.eye(len(inner))).min() > 1e-3
