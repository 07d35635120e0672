"""An object detector as encoder: the features of the most confident boxes of an image, as regions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal
from urllib.error import URLError

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights, fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, nms

from captioning.errors import UserError
from captioning.images.preprocessing import Preprocessing
from captioning.models.encoders.base import BaseEncoderConfig, Encoder
from captioning.models.encoders.weights import check_state_dict, match_weights, read_weights
from captioning.tensors import Features

SMALLEST = 0.01
"""Side in pixels of the smallest box, as in torchvision's detection."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(BaseEncoderConfig):
    """Settings of `Detector`.

    Attributes:
        weights: "none" (random), "default" (torchvision's, trained on COCO's 80 kinds of objects, downloaded on first
            use), or the path of a .safetensors or .pth file with the network's `state_dict`.
        regions: boxes of an image, N.
        overlap: of two boxes with a larger intersection over union, the less confident one is left out.
        proposals: boxes that the region proposal network passes on to the classifier.
    """

    kind: Literal["detector"] = "detector"
    weights: str = "none"
    regions: Annotated[int, Field(ge=1)] = 36
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
    proposals: Annotated[int, Field(ge=1)] = 300

    def __post_init__(self) -> None:
        if self.proposals < self.regions:
            raise ValueError(f"proposals must be at least regions, got {self.proposals} and {self.regions}")

    def build(self) -> Detector:
        return Detector(self)

    def without_weights(self) -> DetectorConfig:
        return replace(self, weights="none")

    def default_preprocessing(self) -> Preprocessing:
        """A square of 640 pixels; torchvision trained it with images of 800 on the shorter side."""
        return Preprocessing(size=640, interpolation="bilinear")


class Detector(Encoder):
    """Torchvision's Faster R-CNN (Ren et al. 2015; Li et al. 2021), frozen: images -> N boxes and their features.

    Bottom-up attention (Anderson et al. 2018) with another detector: every box that the network proposes is moved and
    scored by its most likely class, non-maximum suppression over all classes leaves the most confident boxes, and
    the box head's vector (D = 1024) of each is a region. If fewer than N are left, suppressed boxes follow, the most
    confident first, so that every image has N regions.
    """

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.config = config
        self.network: Any = fasterrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, rpn_post_nms_top_n_test=config.proposals
        )
        if config.weights != "none":
            self._load(config.weights)
        self.channels = self.network.roi_heads.box_head[-2].out_features
        self.frozen = True
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> Detector:
        """The detector stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Features:
        sizes = [(pixels.shape[-2], pixels.shape[-1])] * len(pixels)
        heads = self.network.roi_heads
        maps = self.network.backbone(pixels)
        proposals, _ = self.network.rpn(ImageList(pixels, sizes), maps)
        logits, offsets = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, sizes)))
        counts = [len(boxes) for boxes in proposals]
        moved = heads.box_coder.decode(offsets, proposals)  # (boxes of the batch, classes, 4)
        chosen = [
            self._choose(boxes, scores, sizes[0])
            for boxes, scores in zip(moved.split(counts), logits.split(counts), strict=True)
        ]
        vectors = heads.box_head(heads.box_roi_pool(maps, chosen, sizes))
        scale = pixels.new_tensor([sizes[0][1], sizes[0][0]] * 2)
        return Features(
            regions=vectors.view(len(pixels), self.config.regions, -1), boxes=torch.stack(chosen) / scale
        )

    def _choose(self, moved: Tensor, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """The boxes (N, 4) of one image, in pixels, from each proposal's box and logit for every class."""
        scores, classes = F.softmax(logits, -1)[:, 1:].max(1)  # class 0 is the background
        boxes = moved[torch.arange(len(moved), device=moved.device), classes + 1]
        boxes = clip_boxes_to_image(boxes, size)
        empty = (boxes[:, 2:] - boxes[:, :2]).amin(1) < SMALLEST
        scores = scores.masked_fill(empty, -1)
        kept = nms(boxes, scores, self.config.overlap)  # the most confident first
        kept = kept[scores[kept] >= 0]
        suppressed = torch.ones_like(scores, dtype=torch.bool)
        suppressed[kept] = False
        rest = scores.masked_fill(~suppressed, -2).argsort(descending=True, stable=True)[
            : len(scores) - len(kept)
        ]
        order = torch.cat([kept, rest])[: self.config.regions]
        missing = self.config.regions - len(order)  # only where there are fewer proposals than regions
        whole = boxes.new_tensor([[0, 0, size[1], size[0]]]).expand(missing, 4)
        return torch.cat([boxes[order], whole])

    @property
    def identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "kind": config.kind,
            "regions": config.regions,
            "overlap": config.overlap,
            "proposals": config.proposals,
        }

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return []

    def _load(self, weights: str) -> None:
        if weights == "default":
            state, where = _default_weights(), "torchvision's weights for fasterrcnn_resnet50_fpn_v2"
        else:
            state, where = read_weights(weights), weights
        matched = match_weights(state, self.network.state_dict(), optional=(), where=where)
        self.network.load_state_dict(matched, strict=False)  # only BatchNorm's counters are missing


def _default_weights() -> dict[str, Tensor]:
    """Torchvision's weights, downloaded to torch's cache on first use."""
    try:
        state = FasterRCNN_ResNet50_FPN_V2_Weights.DEFAULT.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            "encoder.weights: default: torchvision's weights for fasterrcnn_resnet50_fpn_v2 cannot be downloaded "
            f"({' '.join(str(error).split())}); give the path of a file instead"
        ) from None
    return check_state_dict(state, "fasterrcnn_resnet50_fpn_v2")
