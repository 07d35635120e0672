"""COCO-style spelling of metric names in JSON files: "Bleu_4" there is `BLEU-4` everywhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

from captioning.utils.files import read_json

V = TypeVar("V")

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
        UserError: the file is missing or not JSON.
    """
    return from_coco_names(read_json(path)["scores"])
