"""Torchvision's CNNs without classifiers, frozen or trained from a stage on. Knows pixels, no words."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal
from urllib.error import URLError

import torch
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torchvision import models

from captioning.errors import UserError
from captioning.models.encoders.base import Encoder, as_regions, run_layers
from captioning.models.encoders.weights import check_state, fit_weights, read_weights
from captioning.tensors import Features

NAMES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
    "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn",
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3",
    "efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7",
    "efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l",
    "convnext_tiny", "convnext_small", "convnext_base", "convnext_large",
    "regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_x_3_2gf", "regnet_x_8gf", "regnet_x_16gf",
    "regnet_x_32gf", "regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf", "regnet_y_8gf",
    "regnet_y_16gf", "regnet_y_32gf",
    "squeezenet1_0", "squeezenet1_1",
)  # fmt: skip
"""What torchvision calls them; those whose maps come from layers that run one after the other."""


def known_network(name: str) -> str:
    """`name`, if it is one of `NAMES`; else an error that names the nearest, not all of them."""
    if name in NAMES:
        return name
    near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.3)
    raise PydanticCustomError(
        "network", "no network of this name; near it are {near}", {"near": ", ".join(near or NAMES[:3])}
    )


Name = Annotated[str, AfterValidator(known_network)]

PROBE = 64
"""Side of the image that a network is tried on once to find where its stages begin."""


@dataclass(frozen=True, kw_only=True)
class TorchvisionConfig:
    """A network of torchvision by its name there.

    weights: "none" (random), "default" (torchvision's own, downloaded when first used), or a path to a
        .safetensors or .pth file with the network's `state_dict`, with or without the classifier.
    grid: regions are averaged to grid x grid; None keeps the network's own (7 x 7 at 224 px for most,
        14 x 14 for VGG as in Xu et al. 2015, 13 x 13 for SqueezeNet).
    trainable_from: None: frozen. Otherwise the first stage that trains; see `TorchvisionCNN`.
    lr: the learning rate of what trains; None: the decoder's.
    recompute: what is inside a stage that trains is computed again in the backward pass, to save memory.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    kind: Literal["torchvision"] = "torchvision"
    name: Name = "resnet101"
    weights: str = "none"
    grid: Annotated[int, Field(ge=1)] | None = None
    trainable_from: Annotated[int, Field(ge=0)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = 1e-4
    recompute: bool = False

    def build(self) -> TorchvisionCNN:
        return TorchvisionCNN(self)


class TorchvisionCNN(Encoder):
    """The convolutional part of a network, in stages.

    Stage s is the layers whose output is 1 / 2**(s + 1) of the image's side; stage 0 also takes those that
    keep the full side. So ResNet's and RegNet's stages 1 .. 4 are their blocks `layer1` .. `layer4` and
    stage 0 the stem; MobileNet and EfficientNet have 0 .. 4; ConvNeXt, whose stem makes a quarter of the
    side at once, 1 .. 4; VGG and SqueezeNet 0 .. 3.
    Training from stage s leaves the stages below frozen: no gradient, and eval mode whatever mode the model
    is in, so that BatchNorm statistics stay.
    VGG ends before its last pooling, as Xu et al. 2015 (section 4.3) use it.
    """

    def __init__(self, config: TorchvisionConfig):
        super().__init__()
        self.config = config
        model = models.get_model(config.name, weights=None)
        heads = set(model.state_dict())
        for head in ("avgpool", "fc", "classifier"):
            if hasattr(model, head):
                delattr(model, head)
        if config.name.startswith("vgg"):
            del model.features[-1]  # type: ignore[index, union-attr, operator]
        self.backbone = model
        heads -= set(model.state_dict())
        self._load(heads)
        self._stages, self.channels = stages_of(layers_of(model))
        if config.trainable_from is not None and config.trainable_from > max(self._stages):
            raise UserError(
                f"encoder.trainable_from: the last stage of {config.name} is {max(self._stages)}, "
                f"got {config.trainable_from}; null trains none"
            )
        self.frozen = config.trainable_from is None
        for layer, trains in self._layers():
            layer.requires_grad_(trains)
        self.train(self.training)

    def _layers(self) -> list[tuple[nn.Module, bool]]:
        """The layers in order, each with whether it trains."""
        first = self.config.trainable_from
        return [
            (layer, first is not None and stage >= first)
            for layer, stage in zip(layers_of(self.backbone), self._stages, strict=True)
        ]

    def train(self, mode: bool = True) -> TorchvisionCNN:
        """As `nn.Module.train`, for the stages that train; the others stay in eval mode."""
        super().train(mode and not self.frozen)
        for layer, trains in self._layers():
            if not trains:
                layer.eval()
        return self

    def forward(self, pixels: Tensor) -> Features:
        """Normalised pixels (B, 3, height, width) float -> regions (B, N, D)."""
        maps = pixels.contiguous(memory_format=torch.channels_last)  # the faster order on CPU and GPU
        first = self.config.trainable_from
        layers = zip(self._stages, layers_of(self.backbone), strict=True)
        for stage, group in itertools.groupby(layers, key=lambda each: each[0]):
            trains = first is not None and stage >= first
            with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
                maps = run_layers([layer for _, layer in group], maps, recompute=self.config.recompute)
        return as_regions(maps, self.config.grid)

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": self.config.kind, "name": self.config.name, "grid": self.config.grid}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": parameters, "lr": self.config.lr or lr}] if parameters else []

    def _load(self, heads: set[str]) -> None:
        if self.config.weights == "none":
            return
        if self.config.weights == "default":
            given, where = _default_weights(self.config.name), f"torchvision's weights for {self.config.name}"
        else:
            given, where = read_weights(self.config.weights), self.config.weights
        fitted = fit_weights(given, self.backbone.state_dict(), heads=heads, where=where)
        self.backbone.load_state_dict(fitted, strict=False)  # only BatchNorm's counters are left out


def _default_weights(name: str) -> dict[str, Tensor]:
    """Torchvision's own weights; downloaded to torch's cache when first asked for."""
    try:
        state = models.get_model_weights(name).DEFAULT.get_state_dict(  # type: ignore[attr-defined]
            progress=False, check_hash=True, weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"encoder.weights: default: torchvision's weights for {name} cannot be downloaded "
            f"({' '.join(str(error).split())}); give the path of a file instead"
        ) from None
    return check_state(state, name)


def layers_of(backbone: nn.Module) -> list[nn.Module]:
    """A network without its classifier as layers to be run one after the other."""
    layers: list[nn.Module] = []
    for name, child in backbone.named_children():
        if name in ("features", "trunk_output"):
            layers.extend(child.children())
        else:
            layers.append(child)
    return layers


@torch.no_grad()
def stages_of(layers: list[nn.Module]) -> tuple[list[int], int]:
    """Each layer's stage, found by running a small image through, and the channels of the last layer."""
    maps = torch.zeros(1, 3, PROBE, PROBE)
    stages: list[int] = []
    for layer in layers:
        training = layer.training
        maps = layer.eval()(maps)
        layer.train(training)
        stages.append(max(0, round(PROBE / maps.shape[-1]).bit_length() - 2))
    return stages, maps.shape[1]
