"""Regions that others computed, a file an image, in place of an encoder. Knows arrays, no pixels, no words."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import numpy as np
from pydantic import Field
from torch import Tensor

from captioning.errors import UserError
from captioning.models.encoders.base import Encoder
from captioning.records import ImageRecord

NAMES = ("features", "feat", "x", "arr_0")
"""What the regions are called in an .npz, the first that there is; boxes and the like may stand beside them."""

SUFFIXES = (".npz", ".npy")


@dataclass(frozen=True, kw_only=True)
class RegionsConfig:
    """A folder of .npz or .npy files, such as bottom-up features (Anderson et al. 2018).

    Attributes:
        folder: its files are called by image id, or as the image is, but for the suffix.
        channels: D of the regions; 2048 for bottom-up features.
        most: regions of an image that are used, the first; null: all.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    kind: Literal["regions"] = "regions"
    folder: str
    channels: Annotated[int, Field(ge=1)] = 2048
    most: Annotated[int, Field(ge=1)] | None = None

    def build(self) -> Regions:
        return Regions(self)


class Regions(Encoder):
    """Stands where an encoder would: it knows the size of the regions, and makes none."""

    def __init__(self, config: RegionsConfig):
        super().__init__()
        self.config, self.channels, self.frozen = config, config.channels, True

    def forward(self, pixels: Tensor) -> NoReturn:
        """Raises UserError: regions are read, by `read_regions`, not made of pixels."""
        raise UserError(
            f"this model was trained on regions that others computed (encoder.folder {self.config.folder}), "
            "which it cannot make of an image; caption a data set that has them with captioning evaluate RUN"
        )

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": self.config.kind, "channels": self.channels, "most": self.config.most}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return []


def list_files(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Paths of the folder's .npz and .npy files by their names without suffix.

    Raises:
        UserError: there is no such folder, or none of these in it.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"encoder.folder {folder}: cannot be read ({error.strerror})") from None
    found = {
        os.path.splitext(name)[0]: os.path.join(folder, name)
        for suffix in reversed(SUFFIXES)  # of two for one image the .npz is taken
        for name in names
        if name.endswith(suffix)
    }
    if not found:
        raise UserError(f"encoder.folder {folder}: holds no .npz or .npy files")
    return found


def file_of(record: ImageRecord, files: Mapping[str, str]) -> str | None:
    """The image's file: called by its id, or as the image is; None where there is neither."""
    return files.get(str(record.image_id)) or files.get(Path(record.path).stem)


def read_regions(path: str, *, channels: int, most: int | None) -> np.ndarray:
    """An image's regions (N, D) float32. No code in the file is run.

    Args:
        channels: D, the length of the array's last axis; the others are taken together.
        most: at most so many, the first.

    Raises:
        UserError: missing, damaged, holding objects, of another size, or not finite.
    """
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            array = content if isinstance(content, np.ndarray) else _named(content, path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of regions") from None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise UserError(f"{path}: refused as unsafe: holds Python objects; save plain numbers") from None
        raise UserError(
            f"{path}: damaged, or no .npy or .npz ({' '.join(str(error).split())[:100]}); fetch it again"
        ) from None
    if array.ndim < 2 or array.shape[-1] != channels or not array.size:
        raise UserError(
            f"{path}: expected regions of {channels} numbers (encoder.channels), found an array {array.shape}"
        )
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: expected numbers, found {array.dtype}")
    regions = array.reshape(-1, channels)[:most].astype(np.float32)
    if not np.isfinite(regions).all():
        raise UserError(f"{path}: holds values that are not finite; compute it again")
    return regions


def _named(content: Any, path: str) -> np.ndarray:
    for name in NAMES:
        if name in content.files:
            return content[name]
    raise UserError(
        f"{path}: holds {', '.join(content.files) or 'nothing'}; the regions are to be called {NAMES[0]}"
    )


def padded(regions: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """B arrays (N_b, D) -> (B, N, D) float32, zeros behind an image's regions, and (B, N) bool: where there are."""
    counts = np.array([len(each) for each in regions])
    out = np.zeros((len(regions), counts.max(), regions[0].shape[1]), np.float32)
    for row, each in zip(out, regions, strict=True):
        row[: len(each)] = each
    return out, np.arange(counts.max()) < counts[:, None]
