"""What holds for every encoder in the union."""

from __future__ import annotations

import json

import pytest
import torch

from captioning.errors import UserError
from captioning.models.encoders import BaseEncoderConfig, EncoderConfig, build
from captioning.utils.validation import dump, members, validate

SMALLEST = {
    "torchvision": {"name": "squeezenet1_1"},
    "timm": {"name": "test_resnet"},
    "detector": {"regions": 5, "proposals": 7},
    "regions": {"folder": "regions"},
}
"""Settings that a kind needs, or that make it small; other kinds are tested with their defaults."""

KINDS = members(EncoderConfig)


def config_of(kind: str) -> BaseEncoderConfig:
    return validate(EncoderConfig, {"kind": kind, **SMALLEST.get(kind, {})}, where="test")


@pytest.mark.parametrize("kind", KINDS)
def test_settings_survive_a_round_trip(kind: str) -> None:
    config = config_of(kind)
    assert validate(EncoderConfig, json.loads(json.dumps(dump(config))), where="test") == config
    with pytest.raises(UserError, match="unknown key"):
        validate(EncoderConfig, {**dump(config), "unheard_of": 1}, where="test")


@pytest.mark.parametrize("kind", KINDS)
def test_features_parameters_and_fingerprint(kind: str) -> None:
    torch.manual_seed(0)
    encoder = build(config_of(kind)).eval()
    json.dumps(encoder.identity)
    trained = {id(parameter) for parameter in encoder.parameters() if parameter.requires_grad}
    groups = encoder.parameter_groups(1e-3)
    assert {id(parameter) for group in groups for parameter in group["params"]} == trained
    assert encoder.frozen == (not trained)
    fresh = build(config_of(kind).without_weights())
    fresh.load_state_dict(encoder.state_dict())
    assert fresh.fingerprint() == encoder.fingerprint()
    pixels = torch.randn(3, 3, 64, 80)
    if config_of(kind).precomputed:
        with pytest.raises(UserError, match="precomputed regions"):
            encoder(pixels)
        return
    regions = encoder(pixels).regions
    assert regions.shape[0] == 3 and regions.shape[2] == encoder.channels
    torch.testing.assert_close(encoder(pixels[1:2]).regions, regions[1:2], atol=3e-4, rtol=1e-3)
