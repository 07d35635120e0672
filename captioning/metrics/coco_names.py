"""COCO-style spelling of metric names in JSON files: "Bleu_4" there is `BLEU-4` everywhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from typing_extensions import NotRequired, TypedDict

from captioning.utils.files import read_json
from captioning.utils.validation import check_shape

V = TypeVar("V")

AGAIN = "run captioning evaluate again"


class Signature(TypedDict):
    """The part of the signature that is read: the model's fingerprint and the search's settings."""

    model: NotRequired[str | None]
    search: NotRequired[dict[str, Any] | None]


class ScoresOfFile(TypedDict):
    scores: dict[str, float]


class SignatureOfFile(TypedDict):
    signature: Signature


_PARTS = (
    ("NLTK-", "NLTK_"),
    ("oracle-", "oracle_"),
    ("BLEU-", "Bleu_"),
    ("ROUGE-L", "ROUGE_L"),
    ("Div-", "Div_"),
    ("self-CIDEr", "self_CIDEr"),
)
"""Parts of our names and how they are spelled in the files that pycocoevalcap's users read."""


def to_coco_name(name: str) -> str:
    """`ROUGE-L` -> "ROUGE_L"; names without a COCO spelling stay as they are."""
    for ours, coco in _PARTS:
        name = name.replace(ours, coco)
    return name


def from_coco_name(name: str) -> str:
    """The inverse of `to_coco_name`."""
    for ours, coco in _PARTS:
        name = name.replace(coco, ours)
    return name


def to_coco_names(values: Mapping[str, V]) -> dict[str, V]:
    """The same values under the names used in JSON files."""
    return {to_coco_name(name): value for name, value in values.items()}


def from_coco_names(values: Mapping[str, V]) -> dict[str, V]:
    """The same values, read from a JSON file, under our names."""
    return {from_coco_name(name): value for name, value in values.items()}


def read_scores(path: str | os.PathLike[str]) -> dict[str, float]:
    """The corpus scores in a `scores_SPLIT.json`, under our names.

    Raises:
        UserError: the file is missing, not JSON, or holds no scores.
    """
    values = check_shape(read_json(path), ScoresOfFile, where=path, advice=AGAIN)
    return from_coco_names(values["scores"])


def read_signature(path: str | os.PathLike[str]) -> Signature:
    """The signature in a `scores_SPLIT.json`. Raises UserError as `read_scores`."""
    values: SignatureOfFile = check_shape(read_json(path), SignatureOfFile, where=path, advice=AGAIN)
    return values["signature"]
