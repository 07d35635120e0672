"""Torchvision's CNNs without their classifiers, frozen or trained from a given stage on."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal
from urllib.error import URLError

import torch
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torchvision import models

from captioning.errors import UserError
from captioning.models.encoders.base import BaseEncoderConfig, Encoder, flatten_maps, run_layers
from captioning.models.encoders.weights import check_state_dict, match_weights, read_weights
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
"""Torchvision's names of the networks whose feature maps come from layers in sequence."""


def check_name(name: str) -> str:
    """`name` if it is one of `NAMES`; otherwise an error with the closest ones."""
    if name in NAMES:
        return name
    closest = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.3)
    raise PydanticCustomError(
        "network",
        "no network of this name; the closest are {names}",
        {"names": ", ".join(closest or NAMES[:3])},
    )


Name = Annotated[str, AfterValidator(check_name)]

PROBE = 64
"""Side in pixels of the image that is passed through a network once to find its stages."""


@dataclass(frozen=True, kw_only=True)
class TorchvisionConfig(BaseEncoderConfig):
    """Settings of `TorchvisionCNN`.

    Attributes:
        name: torchvision's name of the network.
        weights: "none" (random), "default" (torchvision's, downloaded on first use), or the path of a .safetensors
            or .pth file with the network's `state_dict`, with or without the classifier.
        grid: average-pool the regions to grid x grid; null: keep the network's own grid (7 x 7 at 224 px for most,
            14 x 14 for VGG as in Xu et al. 2015, 13 x 13 for SqueezeNet).
        trainable_from: first stage that is trained, see `TorchvisionCNN`; null: all are frozen.
        lr: learning rate of the trained stages; null: the decoder's.
        gradient_checkpointing: recompute the activations of trained stages in the backward pass, to save memory.
    """

    kind: Literal["torchvision"] = "torchvision"
    name: Name = "resnet101"
    weights: str = "none"
    grid: Annotated[int, Field(ge=1, le=4096)] | None = None
    trainable_from: Annotated[int, Field(ge=0)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = 1e-4
    gradient_checkpointing: bool = False

    def build(self) -> TorchvisionCNN:
        return TorchvisionCNN(self)

    def without_weights(self) -> TorchvisionConfig:
        return replace(self, weights="none")


class TorchvisionCNN(Encoder):
    """The convolutional part of a network, divided into stages.

    Stage s consists of the layers whose output side is 1 / 2**(s + 1) of the image's; stage 0 also includes the
    layers at full size. For ResNet and RegNet, stages 1 .. 4 are the blocks `layer1` .. `layer4` and stage 0 is
    the stem; MobileNet and EfficientNet have stages 0 .. 4; ConvNeXt, whose stem reduces by four at once, 1 .. 4;
    VGG and SqueezeNet 0 .. 3.
    Stages below `trainable_from` are frozen: they get no gradient and stay in eval mode, so their BatchNorm
    statistics do not change.
    VGG is cut before its last pooling, as in Xu et al. 2015 (section 4.3).
    """

    def __init__(self, config: TorchvisionConfig):
        super().__init__()
        self.config = config
        model = models.get_model(config.name, weights=None)
        classifier_names = set(model.state_dict())
        for head in ("avgpool", "fc", "classifier"):
            if hasattr(model, head):
                delattr(model, head)
        if config.name.startswith("vgg"):
            del model.features[-1]  # type: ignore[index, union-attr, operator]
        self.backbone = model
        classifier_names -= set(model.state_dict())
        self._load(classifier_names)
        self._stages, self.channels = find_stages(list_layers(model))
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
        """The layers in order, with whether they are trained."""
        first = self.config.trainable_from
        return [
            (layer, first is not None and stage >= first)
            for layer, stage in zip(list_layers(self.backbone), self._stages, strict=True)
        ]

    def train(self, mode: bool = True) -> TorchvisionCNN:
        """Set training mode for the trained stages; the frozen ones stay in eval mode."""
        super().train(mode and not self.frozen)
        for layer, trains in self._layers():
            if not trains:
                layer.eval()
        return self

    def forward(self, pixels: Tensor) -> Features:
        maps = pixels.contiguous(memory_format=torch.channels_last)  # faster on CPU and GPU
        first, checkpointing = self.config.trainable_from, self.config.gradient_checkpointing
        layers = zip(self._stages, list_layers(self.backbone), strict=True)
        for stage, group in itertools.groupby(layers, key=lambda pair: pair[0]):
            trains = first is not None and stage >= first
            with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
                maps = run_layers([layer for _, layer in group], maps, gradient_checkpointing=checkpointing)
        return flatten_maps(maps, self.config.grid)

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": self.config.kind, "name": self.config.name, "grid": self.config.grid}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": parameters, "lr": self.config.lr or lr}] if parameters else []

    def _load(self, classifier_names: set[str]) -> None:
        if self.config.weights == "none":
            return
        if self.config.weights == "default":
            weights, where = (
                _default_weights(self.config.name),
                f"torchvision's weights for {self.config.name}",
            )
        else:
            weights, where = read_weights(self.config.weights), self.config.weights
        matched = match_weights(weights, self.backbone.state_dict(), optional=classifier_names, where=where)
        self.backbone.load_state_dict(matched, strict=False)  # only BatchNorm's counters are missing


def _default_weights(name: str) -> dict[str, Tensor]:
    """Torchvision's weights, downloaded to torch's cache on first use."""
    try:
        state = models.get_model_weights(name).DEFAULT.get_state_dict(  # type: ignore[attr-defined]
            progress=False, check_hash=True, weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"encoder.weights: default: torchvision's weights for {name} cannot be downloaded "
            f"({' '.join(str(error).split())}); give the path of a file instead"
        ) from None
    return check_state_dict(state, name)


def list_layers(backbone: nn.Module) -> list[nn.Module]:
    """The layers of a network without its classifier, in order."""
    layers: list[nn.Module] = []
    for name, child in backbone.named_children():
        if name in ("features", "trunk_output"):
            layers.extend(child.children())
        else:
            layers.append(child)
    return layers


@torch.no_grad()
def find_stages(layers: list[nn.Module]) -> tuple[list[int], int]:
    """Stage of each layer, found by passing a small image through, and the last layer's channels."""
    maps = torch.zeros(1, 3, PROBE, PROBE)
    stages: list[int] = []
    for layer in layers:
        training = layer.training
        maps = layer.eval()(maps)
        layer.train(training)
        stages.append(max(0, round(PROBE / maps.shape[-1]).bit_length() - 2))
    return stages, maps.shape[1]
