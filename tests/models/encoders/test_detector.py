"""Faster R-CNN as encoder: the boxes of an image, their features, and attention drawn on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import detection
from torchvision.ops import box_iou

from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import generate_captions
from captioning.errors import UserError
from captioning.generation import BeamConfig
from captioning.images.preprocessing import Preprocessing
from captioning.inspection.attention_maps import attention_maps
from captioning.models.decoders import UpDownConfig
from captioning.models.encoders import DetectorConfig, build, detector
from captioning.models.encoders.detector import Detector
from captioning.text.vocabulary import SPECIALS, Vocabulary

CONFIG = DetectorConfig(regions=4, proposals=40, overlap=0.4)
SIDE = 96


@pytest.fixture(scope="module")
def encoder() -> Detector:
    torch.manual_seed(0)
    encoder = CONFIG.build()
    for name, value in encoder.network.state_dict().items():  # random weights see the same everywhere
        if name.endswith(("cls_score.weight", "bbox_pred.weight")):
            value *= 30
    return encoder.eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def test_the_boxes_are_torchvisions_detections(encoder: Detector, pixels: Tensor):
    """Its own `forward`, one class at a time, finds every box that is kept for its most likely class."""
    features = encoder(pixels)
    assert features.regions.shape == (2, 4, 1024) and features.boxes is not None
    network = encoder.network
    heads = network.roi_heads
    saved = heads.score_thresh, heads.nms_thresh, heads.detections_per_img, network.transform
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = 0.0, 1.0, 10**6
    network.transform = detection.transform.GeneralizedRCNNTransform(
        SIDE, SIDE, image_mean=[0, 0, 0], image_std=[1, 1, 1]
    )
    try:
        with torch.no_grad():
            detections = network(list(pixels))
    finally:
        heads.score_thresh, heads.nms_thresh, heads.detections_per_img, network.transform = saved
    for boxes, found in zip(features.boxes * SIDE, detections, strict=True):
        distance = (boxes[:, None] - found["boxes"]).abs().amax(2).min(1)
        assert distance.values.max() < 1e-3
        assert found["scores"][distance.indices[0]] == found["scores"].max()  # the most confident one first


def test_no_two_boxes_overlap_more_than_allowed_unless_there_are_too_few(encoder: Detector, pixels: Tensor):
    boxes = encoder(pixels[:1]).boxes
    assert boxes is not None
    overlap = box_iou(boxes[0], boxes[0]).fill_diagonal_(0)
    assert overlap.max() <= CONFIG.overlap
    torch.manual_seed(0)
    crowded = build(DetectorConfig(regions=40, proposals=40, overlap=0.01)).eval()
    crowded.load_state_dict(encoder.state_dict())
    more = crowded(pixels[:1])
    assert more.boxes is not None and more.regions.shape == (1, 40, 1024)
    assert box_iou(more.boxes[0], more.boxes[0]).fill_diagonal_(0).nan_to_num().max() > 0.01
    assert torch.isfinite(more.regions).all() and more.boxes.min() >= 0 and more.boxes.max() <= 1


def test_regions_are_the_box_heads_vectors_of_their_boxes(encoder: Detector, pixels: Tensor):
    features = encoder(pixels)
    assert features.boxes is not None
    heads = encoder.network.roi_heads
    with torch.no_grad():
        maps = encoder.network.backbone(pixels[1:])
        pooled = heads.box_roi_pool(maps, [features.boxes[1] * SIDE], [(SIDE, SIDE)])
        expected = heads.box_head(pooled)
    torch.testing.assert_close(features.regions[1], expected, atol=1e-3, rtol=1e-3)
    assert expected.std(0).max() > 0.01


def test_up_down_captions_a_photo_and_its_attention_lies_on_boxes(
    encoder: Detector, pixels: Tensor, tmp_path: Path
):
    torch.manual_seed(1)
    captioner = Captioner.build(
        encoder=CONFIG,
        preprocessing=Preprocessing(size=SIDE),
        decoder=UpDownConfig(embedding=7, attention_size=5, hidden=11),
        search=BeamConfig(width=2, max_length=5),
        vocabulary=Vocabulary(words=(*SPECIALS, "a", "dog")),
    ).eval()
    captioner.encoder.load_state_dict(encoder.state_dict())
    captioner.save(tmp_path / "model", card="")
    opened = Captioner.open(tmp_path / "model")
    assert len(generate_captions(opened, pixels, [0, 1])) == 2
    attention = attention_maps(opened, pixels[0], ["a", "dog"])
    assert attention.weights.shape == (2, 4) and attention.boxes is not None
    boxes = encoder(pixels[:1]).boxes
    assert boxes is not None
    np.testing.assert_allclose(attention.boxes, boxes[0].numpy(), atol=1e-5)
    assert attention.map(1).shape[0] == attention.map(1).shape[1]


def test_weights_are_read_from_a_file_and_others_refused(encoder: Detector, tmp_path: Path):
    file = tmp_path / "w.safetensors"
    save_file({name: value.contiguous() for name, value in encoder.network.state_dict().items()}, file)
    read = build(DetectorConfig(regions=4, proposals=40, overlap=0.4, weights=str(file)))
    assert read.fingerprint() == encoder.fingerprint()
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"w\.safetensors: weight"):
        build(DetectorConfig(weights=str(file)))


def test_default_weights_that_cannot_be_had_are_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def fail(self: object, **options: object) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(detector.FasterRCNN_ResNet50_FPN_V2_Weights, "get_state_dict", fail)
    with pytest.raises(UserError, match=r"cannot be downloaded .no network at all.; give the path"):
        build(DetectorConfig(weights="default"))


def test_more_regions_than_proposals_are_refused():
    with pytest.raises(ValueError, match="proposals must be at least regions"):
        DetectorConfig(regions=50, proposals=40)
