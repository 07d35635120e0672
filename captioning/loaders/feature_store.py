"""The feature store: features of a frozen encoder in memory-mapped files, found by image id.

A store is a folder with `index.json` and shards `shard-00000.npy`, each an array (rows, views, N, D). A shard is listed
in the index once it is complete on disk, so a build that was killed continues after the last listed shard.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from captioning.errors import UserError
from captioning.loaders.provenance import FeatureProvenance, refuse_other_provenance
from captioning.records import ImageId, Skip
from captioning.tensors import Features
from captioning.utils.files import ARRAY_ERRORS, read_json, sha256, write_json
from captioning.utils.progress import progress
from captioning.utils.validation import check_shape


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Settings of the feature store.

    Attributes:
        use: `auto` uses the store if the encoder is frozen and pixels are not augmented.
        root: folder of the stores.
        dtype: precision of stored features.
        flip: also store the features of the mirrored image, and train on either at random; an image with a
            caption that says left or right is never mirrored.
    """

    __pydantic_config__ = {"extra": "forbid"}
    use: Literal["auto", "never"] = "auto"
    root: str = "features"
    dtype: Literal["float16", "float32"] = "float16"
    flip: bool = False


FORMAT = 2
INDEX = "index.json"
VERIFIED = ".verified.json"
"""States of the shards whose checksums were found correct."""

SETTLED_NS = 100_000_000
"""Age after which a change to a file changes its times; file systems count time in steps of up to 10 ms."""

Precision = Literal["float16", "float32"]


class StoredShard(TypedDict):
    """A shard in the index."""

    file: str
    bytes: int
    sha256: str
    ids: list[int | str]
    sizes: list[int]
    mtimes_ns: NotRequired[list[int]]  # these two are missing in stores of earlier versions
    crcs: NotRequired[list[int]]


class StoredProvenance(TypedDict):
    encoder: dict[str, Any]
    weights: str
    preprocessing: dict[str, Any]


class StoreIndex(TypedDict):
    """The contents of `index.json`."""

    format: int
    fingerprint: str
    provenance: StoredProvenance
    dtype: Precision
    views: Literal[1, 2]
    shape: Annotated[list[int], Field(min_length=2, max_length=2)] | None
    shards: list[StoredShard]
    skipped: list[Skip]


class Place(NamedTuple):
    shard: int
    row: int


class FeatureStore:
    """Features by image id, read from memory-mapped shards. Written by `build_store`."""

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.folder, self._index = folder, index
        provenance: StoredProvenance = index["provenance"]
        self.provenance = FeatureProvenance(
            provenance["encoder"], provenance["weights"], provenance["preprocessing"]
        )
        self.dtype = np.dtype(index["dtype"])
        self.views: int = index["views"]
        self._places = {
            image_id: Place(number, row)
            for number, shard in enumerate(index["shards"])
            for row, image_id in enumerate(shard["ids"])
        }
        self._maps: list[np.ndarray | None] = [None] * len(index["shards"])

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, expect: FeatureProvenance | str | None = None
    ) -> FeatureStore:
        """The store in `folder`.

        Args:
            expect: provenance that the features must have, or its fingerprint; None: any.

        Raises:
            UserError: there is no store, a shard is missing, truncated or damaged, or the provenance is another.
        """
        folder = Path(folder)
        index = read_index(folder)
        if index is None:
            raise UserError(f"{folder}: not a feature store (no {INDEX}); build it with captioning features")
        store = cls(folder, index)
        refuse_other_provenance(folder, store.provenance, expect)
        for shard in index["shards"]:
            if problem := store.length_problem(shard):
                raise UserError(f"{problem}; run captioning features again to encode its images again")
        store.verify(everything=False)
        return store

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)"""
        regions, channels = self._index["shape"]
        return regions, channels

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the provenance, 16 hex digits."""
        return self.provenance.fingerprint

    @property
    def skipped(self) -> list[Skip]:
        """The images that could not be read when the store was built."""
        return [Skip(*skip) for skip in self._index["skipped"]]

    @property
    def noted(self) -> list[tuple[ImageId, str]]:
        """Image ids and notes of images that were used: frames that are left out, a part that may be lost."""
        return [
            (image_id, note) for shard in self._index["shards"] for image_id, note in shard.get("notes", ())
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def rows(
        self, image_ids: Sequence[ImageId], *, views: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """A copy of the images' regions, (B, N, D) in the store's dtype.

        Args:
            views: for each image 0 (as it is) or 1 (mirrored, if the store has that view); None: all 0.

        Raises:
            UserError: an image is not in the store.
        """
        return self.rows_at(self.places(image_ids), views=views)

    def places(self, image_ids: Sequence[ImageId]) -> np.ndarray:
        """Positions of the images' features, (B, 2): shard and row. Raises UserError as `require` does."""
        self.require(image_ids)
        return np.array([self._places[image_id] for image_id in image_ids], np.int32).reshape(-1, 2)

    def rows_at(self, places: np.ndarray, *, views: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """As `rows`, by the result of `places`."""
        if views is not None and len(views) and not 0 <= min(views) <= max(views) < self.views:
            raise UserError(
                f"{self.folder}: holds {self.views} view(s) of an image; build it with flip for two"
            )
        out = np.empty((len(places), *self.shape), self.dtype)
        for i, (shard, row) in enumerate(places):
            rows = self._maps[shard]
            if rows is None:
                rows = self._maps[shard] = self._map(shard)
            out[i] = rows[row, 0 if views is None else views[i]]
        return out

    def features(
        self, image_ids: Sequence[ImageId], *, views: Sequence[int] | np.ndarray | None = None
    ) -> Features:
        """As `rows`, as float32 features for a decoder."""
        return Features(torch.from_numpy(self.rows(image_ids, views=views)).float())

    def require(self, image_ids: Sequence[ImageId]) -> None:
        """Raises UserError, with the first five, if images are missing in the store."""
        missing = [image_id for image_id in image_ids if image_id not in self._places]
        if missing:
            raise UserError(
                f"{self.folder}: {len(missing)} images are not in this feature store (first {missing[:5]}); "
                "run captioning features on all records"
            )

    def contents(self, image_ids: Sequence[ImageId]) -> list[tuple[int, int | None]]:
        """Size and CRC-32 of the image files when they were encoded; no CRC-32 in stores of earlier versions.

        Raises:
            UserError: an image is not in the store.
        """
        self.require(image_ids)
        places = (self._places[image_id] for image_id in image_ids)
        shards = self._index["shards"]
        return [
            (shard["sizes"][row], shard["crcs"][row] if "crcs" in shard else None)
            for shard, row in ((shards[place.shard], place.row) for place in places)
        ]

    def verify(self, *, everything: bool = True) -> None:
        """Compare the sha256 of the shards with the index.

        Args:
            everything: also read shards that were verified before and whose inode, length and times haven't changed
                since, as `.verified.json` records. This finds bits that the disk itself has lost.

        Raises:
            UserError: shards are damaged; all are named.
        """
        shards = self._index["shards"]
        known = set() if everything else _read_verified(self.folder)
        unread = [shard for shard in shards if _state(self.folder, shard) not in known]
        with ThreadPoolExecutor(
            min(8, os.cpu_count() or 1)
        ) as pool:  # hashing releases the interpreter's lock
            results = pool.map(self._intact, unread)
            intact = list(progress(results, total=len(unread), desc="verifying", unit="shard", delay=2))
        damaged = [shard["file"] for shard, good in zip(unread, intact, strict=True) if not good]
        if damaged:
            raise UserError(
                f"{self.folder}: {len(damaged)} of {len(shards)} shards are damaged ({', '.join(damaged)}); "
                "delete these files and run captioning features again"
            )
        if unread:
            _write_verified(self.folder, shards)

    def _intact(self, shard: dict[str, Any]) -> bool:
        return not self.length_problem(shard) and sha256(self.folder / shard["file"]) == shard["sha256"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": [None] * len(self._maps)}  # every process maps the files itself

    def _map(self, shard: int) -> np.ndarray:
        entry = self._index["shards"][shard]
        path, shape = self.folder / entry["file"], (self.views, *self.shape)
        try:
            rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except ARRAY_ERRORS as error:
            raise UserError(f"{path}: cannot be read as an array ({error}); build the store again") from None
        if rows.shape[1:] != shape or rows.dtype != self.dtype or len(rows) < len(entry["ids"]):
            raise UserError(
                f"{path}: an array {rows.shape} of {rows.dtype}, but the index names {len(entry['ids'])} images of "
                f"shape {shape} in {self.dtype}; build the store again"
            )
        return rows

    def length_problem(self, shard: dict[str, Any]) -> str | None:
        """Why a shard cannot be complete, judged by the length of its file; None if the length is right."""
        path = self.folder / shard["file"]
        if not path.is_file():
            return f"{path}: missing"
        if path.stat().st_size != shard["bytes"]:
            return f"{path}: {path.stat().st_size} bytes, expected {shard['bytes']}"
        return None


def _state(folder: Path, shard: dict[str, Any]) -> str:
    """A string that changes when a shard's file or its expected checksum does."""
    try:
        stat = (folder / shard["file"]).stat()
    except OSError:
        return f"{shard['file']} is missing"
    times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"  # users cannot set the second
    return f"{shard['sha256']} {stat.st_ino} {stat.st_size} {times}"


def _read_verified(folder: Path) -> set[str]:
    """The states in which shards were verified; empty if they are not recorded."""
    try:
        known = read_json(folder / VERIFIED)
    except UserError:
        return set()
    return {state for state in known if isinstance(state, str)} if isinstance(known, list) else set()


def _write_verified(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    """Record verified shards, except files so new that a change might leave their times as they are."""
    settled = time.time_ns() - SETTLED_NS
    states = [
        _state(folder, shard) for shard in shards if (folder / shard["file"]).stat().st_ctime_ns < settled
    ]
    with contextlib.suppress(OSError):  # a read-only store is verified each time
        write_json(folder / VERIFIED, states)


def read_index(folder: Path) -> dict[str, Any] | None:
    """The store's index; None if there is none.

    Raises:
        UserError: it is broken, or has another format.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    index = read_json(path)
    if isinstance(index, dict) and index.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path}: format {index['format']}, expected {FORMAT}; build the store again")
    check_shape(index, StoreIndex, where=path, advice="build the store again")
    row = index["views"] * math.prod(index["shape"] or (0,)) * np.dtype(index["dtype"]).itemsize
    for shard in index["shards"]:
        name, rows = shard["file"], len(shard["ids"])
        lists = [shard[key] for key in ("sizes", "mtimes_ns", "crcs") if key in shard]
        equal = all(len(values) == rows for values in lists)
        if Path(name).name != name or not equal or not 0 < rows * row <= shard["bytes"]:
            raise UserError(f"{path}: its entry of {name!r} contradicts itself; build the store again")
    return index
