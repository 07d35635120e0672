"""Precomputed regions, one .npz or .npy file per image, used in place of an encoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import numpy as np
from pydantic import Field
from torch import Tensor

from captioning.errors import UserError
from captioning.models.encoders.base import BaseEncoderConfig, Encoder
from captioning.records import ImageRecord
from captioning.utils.files import ARRAY_ERRORS

ARRAY_NAMES = ("features", "feat", "x", "arr_0")
"""Names under which an .npz may hold the regions; the first one present is read. Boxes and the like are ignored."""

SUFFIXES = (".npz", ".npy")


@dataclass(frozen=True, kw_only=True)
class RegionsConfig(BaseEncoderConfig):
    """A folder of .npz or .npy files, such as bottom-up features (Anderson et al. 2018).

    Attributes:
        folder: each file is named after the image id or the image file, plus .npz or .npy.
        channels: D of the regions; 2048 for bottom-up features.
        max_regions: use only the first `max_regions` regions of an image; null: all.
    """

    precomputed: ClassVar[bool] = True
    kind: Literal["regions"] = "regions"
    folder: str
    channels: Annotated[int, Field(ge=1, le=100_000)] = 2048
    max_regions: Annotated[int, Field(ge=1)] | None = None

    def build(self) -> Regions:
        return Regions(self)

    def open_regions(self) -> RegionFiles:
        return RegionFiles(self)


class Regions(Encoder):
    """Stand-in for an encoder when regions are precomputed: it has their size, but cannot encode pixels."""

    def __init__(self, config: RegionsConfig):
        super().__init__()
        self.config, self.channels, self.frozen = config, config.channels, True

    def forward(self, pixels: Tensor) -> NoReturn:
        """Raises UserError: regions are read from files, not computed from pixels."""
        raise UserError(
            f"this model was trained on precomputed regions (encoder.folder {self.config.folder}) and cannot "
            "encode images; caption a data set that has such regions with captioning evaluate RUN"
        )

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": self.config.kind, "channels": self.channels, "max_regions": self.config.max_regions}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return []


class RegionFiles:
    """The files of a folder of precomputed regions."""

    def __init__(self, config: RegionsConfig):
        """Raises UserError if the folder cannot be read or holds no .npz or .npy file."""
        self.config = config
        try:
            names = sorted(os.listdir(config.folder))
        except OSError as error:
            raise UserError(f"encoder.folder {config.folder}: cannot be read ({error.strerror})") from None
        self._paths = {
            os.path.splitext(name)[0]: os.path.join(config.folder, name)
            for suffix in reversed(SUFFIXES)  # if an image has both, the .npz wins
            for name in names
            if name.endswith(suffix)
        }
        if not self._paths:
            raise UserError(f"encoder.folder {config.folder}: holds no .npz or .npy files")

    @property
    def location(self) -> str:
        """Where the regions are, for messages."""
        return f"the regions in {self.config.folder}"

    def find(self, record: ImageRecord) -> str | None:
        """Path of the image's file, named after its id or its image file; None if there is neither."""
        return next((self._paths[name] for name in _names(record) if name in self._paths), None)

    def why_missing(self, record: ImageRecord) -> str:
        """The names under which `find` looked for the image's file, as a reason to skip it."""
        tried = ", ".join(name + suffix for name in _names(record) for suffix in SUFFIXES)
        return f"no file of its regions in {self.config.folder} (tried {tried})"

    def read(self, path: str) -> np.ndarray:
        """The regions (N, D) float32 in a file. Raises UserError as `read_regions` does."""
        return read_regions(path, channels=self.config.channels, max_regions=self.config.max_regions)


def _names(record: ImageRecord) -> list[str]:
    """The names, without suffix, that an image's file may have."""
    return list(dict.fromkeys((str(record.image_id), Path(record.path).stem)))


def read_regions(path: str, *, channels: int, max_regions: int | None) -> np.ndarray:
    """Regions (N, D) float32 of one image. Never unpickles.

    Args:
        channels: D, the size of the array's last axis; the other axes are flattened into N.
        max_regions: keep the first `max_regions`; None: all.

    Raises:
        UserError: the file is missing or damaged, holds Python objects, or its array is of the wrong size or
            not finite.
    """
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            array = content if isinstance(content, np.ndarray) else _array_of_npz(content, path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of regions") from None
    except ARRAY_ERRORS as error:
        if "allow_pickle" in str(error):
            raise UserError(f"{path}: refused as unsafe: holds Python objects; save plain numbers") from None
        raise UserError(
            f"{path}: damaged, or not an .npy or .npz file ({' '.join(str(error).split())[:100]}); fetch it again"
        ) from None
    if array.ndim < 2 or array.shape[-1] != channels or not array.size:
        raise UserError(
            f"{path}: expected regions of {channels} numbers (encoder.channels), found an array {array.shape}"
        )
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: expected numbers, found {array.dtype}")
    regions = array.reshape(-1, channels)[:max_regions].astype(np.float32)
    if not np.isfinite(regions).all():
        raise UserError(f"{path}: holds values that are not finite; compute it again")
    return regions


def _array_of_npz(content: Any, path: str) -> np.ndarray:
    for name in ARRAY_NAMES:
        if name in content.files:
            return content[name]
    raise UserError(
        f"{path}: holds {', '.join(content.files) or 'nothing'}; store the regions under {ARRAY_NAMES[0]}"
    )


def pad_regions(regions: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """B arrays (N_b, D) -> zero-padded (B, N, D) float32 and the mask (B, N) bool of real regions."""
    counts = np.array([len(array) for array in regions])
    padded = np.zeros((len(regions), counts.max(), regions[0].shape[1]), np.float32)
    for row, array in zip(padded, regions, strict=True):
        row[: len(array)] = array
    return padded, np.arange(counts.max()) < counts[:, None]
