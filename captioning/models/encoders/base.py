"""Base class of encoders (pixels -> regions), and functions that encoders share."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from captioning.images.preprocessing import Preprocessing
from captioning.tensors import Features

if TYPE_CHECKING:
    from captioning.models.encoders.region_files import RegionFiles

IGNORED_BUFFER = "num_batches_tracked"
"""BatchNorm's counter has no influence on the output: it is neither required in weight files nor fingerprinted."""


@dataclass(frozen=True, kw_only=True)
class BaseEncoderConfig(ABC):
    """Settings of an encoder: a frozen dataclass with a literal `kind`, and `build`."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    precomputed: ClassVar[bool] = False
    """Whether regions are read from files (`open_regions`) instead of being computed from pixels."""

    kind: str

    @abstractmethod
    def build(self) -> Encoder:
        """The encoder with its initial weights, read from where the settings say."""

    def without_weights(self) -> BaseEncoderConfig:
        """Settings that build the same encoder without reading a weight file: a model folder holds the weights."""
        return self

    def default_preprocessing(self) -> Preprocessing:
        """The preprocessing where a config does not state it."""
        return Preprocessing()

    def open_regions(self) -> RegionFiles:
        """The files of precomputed regions; only of encoders that are `precomputed`."""
        raise NotImplementedError


class Encoder(nn.Module, ABC):
    """Base class of encoders: images -> a grid of regions.

    Attributes:
        channels: D of the regions.
        frozen: whether no parameter is trained, so that features can be computed once and stored.
    """

    channels: int
    frozen: bool

    @abstractmethod
    def forward(self, pixels: Tensor) -> Features:
        """Normalised pixels (B, 3, height, width) float -> regions (B, N, D), row by row."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """The settings that the features depend on, as plain values; not where the weights come from."""

    @abstractmethod
    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Trained parameters in groups, as optimizers take them, each with its learning rate; [] if frozen.

        `lr` is for groups without a learning rate of their own.
        """

    def fingerprint(self) -> str:
        """Hash of `identity` and the weights (names, shapes, types, bytes), 16 hex digits; equal on any device."""
        return fingerprint_weights(self.identity, self.state_dict().items())


def fingerprint_weights(identity: dict[str, Any], weights: Iterable[tuple[str, Tensor]]) -> str:
    """First 16 hex digits of the sha256 over settings and named tensors, independent of their order."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for name, tensor in sorted(weights):
        if name.endswith(IGNORED_BUFFER):
            continue
        digest.update(f"\n{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        values = tensor.detach().cpu().contiguous()
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def for_inference(encoder: Encoder, pixels: Tensor) -> Encoder:
    """A faster copy in eval mode with the same output (up to rounding). Not for training or saving.

    BatchNorm is fused into the preceding convolution and convolution weights are `channels_last`: 1.6 times the
    images per second for MobileNetV2 on a CPU. timm's BatchNormAct2d leaves its activation behind.

    Args:
        pixels: images (B, 3, height, width) of the size that will be encoded; the copy encodes them once to find out
            which convolution a BatchNorm follows.
    """
    copied = copy.deepcopy(encoder).eval().requires_grad_(False)
    for parent, name, next_name in _convolutions_before_norms(copied, pixels):
        convolution, norm = getattr(parent, name), getattr(parent, next_name)
        setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
        setattr(parent, next_name, getattr(norm, "act", nn.Identity()))
    for module in copied.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return copied


def _convolutions_before_norms(encoder: Encoder, pixels: Tensor) -> list[tuple[nn.Module, str, str]]:
    """Modules, each with the names of a convolution and the BatchNorm that alone reads its output.

    The order of children only suggests it: in pre-activation and Lambda networks the neighbours of some convolutions
    normalise something else.
    """
    neighbours = [
        (parent, name, next_name)
        for parent in encoder.modules()
        for (name, layer), (next_name, following) in itertools.pairwise(parent.named_children())
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d)
    ]
    before = {getattr(parent, norm): getattr(parent, name) for parent, name, norm in neighbours}
    outputs: dict[nn.Module, Tensor] = {}
    follows: dict[nn.Module, bool] = {}

    def keep(convolution: nn.Module, _: Any, output: Tensor) -> None:
        outputs[convolution] = output

    def compare(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        follows[norm] = follows.get(norm, True) and inputs[0] is outputs.get(before[norm])

    hooks = [convolution.register_forward_hook(keep) for convolution in before.values()]
    hooks += [norm.register_forward_pre_hook(compare) for norm in before]
    with torch.no_grad():
        encoder(pixels)
    for hook in hooks:
        hook.remove()
    return [place for place in neighbours if follows.get(getattr(place[0], place[2]), False)]


def run_layers(layers: Sequence[nn.Module], maps: Tensor, *, gradient_checkpointing: bool) -> Tensor:
    """Apply layers in sequence.

    With `gradient_checkpointing` the activations between them are recomputed in the backward pass (Chen et al.
    2016): the same gradients for less memory and a second forward pass. The random numbers are the same in both
    passes, and BatchNorm's statistics are updated once.
    """
    block = nn.Sequential(*layers)
    if not (gradient_checkpointing and torch.is_grad_enabled()):
        return block(maps)
    return checkpoint(
        block, maps, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _keep_buffers(block))
    )


@contextlib.contextmanager
def _keep_buffers(module: nn.Module) -> Iterator[None]:
    """Protect BatchNorm's statistics: inside the context the module updates copies of its buffers."""
    saved = [(layer._buffers, dict(layer._buffers)) for layer in module.modules()]
    for buffers, originals in saved:
        buffers.update(
            {name: buffer if buffer is None else buffer.clone() for name, buffer in originals.items()}
        )
    try:
        yield
    finally:
        for buffers, originals in saved:
            buffers.update(originals)


def flatten_maps(maps: Tensor, grid: int | None) -> Features:
    """Feature maps (B, D, height, width) -> regions (B, N, D), average-pooled to N = grid x grid if given."""
    if grid is not None and maps.shape[-2:] != (grid, grid):
        maps = F.adaptive_avg_pool2d(maps, grid)
    return Features(maps.flatten(2).transpose(1, 2).contiguous())
