"""Filling a feature store: images are encoded once and written in shards."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.datasets.checks import write_skipped
from captioning.errors import UserError
from captioning.images.preprocessing import Preprocessing, normalize, preprocess_uint8
from captioning.images.reading import BadImage, read_image
from captioning.loaders.feature_store import FORMAT, INDEX, FeatureStore, Precision, read_index
from captioning.loaders.provenance import FeatureProvenance, refuse_other_provenance
from captioning.models.encoders import Encoder, for_inference
from captioning.records import ImageId, ImageRecord, Skip
from captioning.utils.file_slice import FileSlice, FileState, content_crc
from captioning.utils.files import atomic_write, explain_full_disk, sha256, write_json
from captioning.utils.locks import folder_lock
from captioning.utils.packed_strings import PackedStrings
from captioning.utils.progress import duration, print_to_stderr, progress

ROWS_PER_SHARD = 1024


class LoadedImage(NamedTuple):
    """A preprocessed image, or the reason why it cannot be read."""

    number: int
    pixels: Tensor | None  # (3, size, size) uint8
    reason: str = ""
    state: FileState = FileState(0, 0)
    crc: int = 0  # CRC-32 of the file
    notes: tuple[str, ...] = ()


class _Images(Dataset):
    """Loads and preprocesses images, in any worker process."""

    def __init__(self, paths: list[str], preprocessing: Preprocessing):
        self.paths, self.preprocessing = PackedStrings(paths), preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> LoadedImage:
        path = str(self.paths[number])
        try:
            image, notes = read_image(path)
            state, crc = FileState.of(path), content_crc(path)
        except BadImage as error:
            return LoadedImage(number, None, error.reason)
        except OSError as error:
            return LoadedImage(number, None, f"cannot be read ({error.strerror})")
        pixels = preprocess_uint8(image, self.preprocessing)
        return LoadedImage(number, pixels, state=state, crc=crc, notes=notes)


def build_store(
    records: Sequence[ImageRecord],
    encoder: Encoder,
    preprocessing: Preprocessing,
    folder: str | os.PathLike[str],
    *,
    dtype: Precision = "float16",
    flip: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    max_bad: float = 0.01,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> FeatureStore:
    """Encode the images that the store in `folder` does not contain yet, and open it.

    Args:
        encoder: a copy in eval mode is used, on the encoder's device.
        flip: also store the mirrored image, as view 1.
        workers: processes that load images; 0: this one.
        max_bad: share of the records that may be unreadable. They are listed in `skipped.csv` in the folder.

    Raises:
        UserError: the folder holds features of another provenance, precision or number of views; an image has
            changed since it was encoded; too many images are unreadable; features don't fit the precision or the disk.
    """
    folder = Path(folder)
    provenance = FeatureProvenance.of(encoder, preprocessing)
    ids = [record.image_id for record in records]
    if len(set(ids)) != len(ids):
        raise UserError(f"{folder}: an image id occurs twice among the records; give each image its own id")
    advice = "free some, or set features.root to a folder on another disk; what is encoded already is kept"
    with (
        explain_full_disk(folder, advice=advice),
        folder_lock(folder, advice="wait until it has ended", wait=True),
    ):
        for part in folder.glob(".*.part"):
            part.unlink()  # of a build that was killed; no other is running
        index = _open_index(folder, provenance, dtype=dtype, views=2 if flip else 1)
        _refuse_changed(folder, index, records)
        stored = {image_id for shard in index["shards"] for image_id in shard["ids"]}
        todo = [record for record in records if record.image_id not in stored]
        if todo:
            writer = _Writer(folder, index, encoder, preprocessing)
            writer.encode(
                todo,
                batch_size=batch_size,
                workers=min(workers, -(-len(todo) // batch_size)),
                rows_per_shard=rows_per_shard,
                max_bad=max_bad * len(records),
            )
    return FeatureStore.open(folder)


def _open_index(
    folder: Path, provenance: FeatureProvenance, *, dtype: Precision, views: int
) -> dict[str, Any]:
    """The index of an existing store, without shards whose files are incomplete; or a new index."""
    index = read_index(folder)
    if index is None:
        return {
            "format": FORMAT,
            "fingerprint": provenance.fingerprint,
            "provenance": asdict(provenance),
            "dtype": dtype,
            "views": views,
            "shape": None,
            "shards": [],
            "skipped": [],
        }
    store = FeatureStore(folder, index)
    refuse_other_provenance(folder, store.provenance, provenance)
    for key, wanted in (("dtype", dtype), ("views", views)):
        if index[key] != wanted:
            raise UserError(
                f"{folder}: this store has {key} {index[key]}, requested is {wanted}; name another folder"
            )
    index["shards"] = [shard for shard in index["shards"] if store.length_problem(shard) is None]
    return index


def _refuse_changed(folder: Path, index: dict[str, Any], records: Sequence[ImageRecord]) -> None:
    """Raises UserError if an image's file has another size or content than when it was encoded."""
    places = {
        image_id: (shard, row) for shard in index["shards"] for row, image_id in enumerate(shard["ids"])
    }
    times = [list(shard.get("mtimes_ns", [])) for shard in index["shards"]]
    for record in progress(records, desc="comparing images", unit="image", delay=2):
        try:
            place = places.get(record.image_id)
            change = _change(*place, record.path) if place else ""
        except OSError:
            continue  # stored features can be used without the images
        if change:
            raise UserError(
                f"{record.path}: changed since its features were stored ({change}); delete {folder} and run again"
            )
    if times != [shard.get("mtimes_ns", []) for shard in index["shards"]]:
        write_json(folder / INDEX, index)


def _change(shard: dict[str, Any], row: int, path: str) -> str:
    """How a file differs from the one that was encoded; "" if it does not.

    It is read only if its time is another, as after a copy; the new time is then put into the index.
    """
    state, size = FileState.of(path), shard["sizes"][row]
    if state.size != size:
        return f"{size} bytes, now {state.size}"
    if "crcs" not in shard:  # of an earlier version
        return ""
    if state.mtime_ns == shard["mtimes_ns"][row] and not FileSlice.parse(path):
        return ""
    if (crc := content_crc(path)) != shard["crcs"][row]:
        return f"CRC-32 {shard['crcs'][row]:08x}, now {crc:08x}"
    shard["mtimes_ns"][row] = state.mtime_ns
    return ""


class _Writer:
    """Encodes images and adds shards to a store."""

    def __init__(self, folder: Path, index: dict[str, Any], encoder: Encoder, preprocessing: Preprocessing):
        self.folder, self.index, self.preprocessing = folder, index, preprocessing
        self.device = next(encoder.parameters()).device
        self.blank = torch.zeros(1, 3, preprocessing.size, preprocessing.size, dtype=torch.uint8)
        self.encoder = for_inference(encoder, normalize(self.blank.to(self.device), preprocessing))
        self.skipped: list[Skip] = []

    def encode(
        self,
        todo: Sequence[ImageRecord],
        *,
        batch_size: int,
        workers: int,
        rows_per_shard: int,
        max_bad: float,
    ) -> None:
        """Add shards with the features of `todo`, and list unreadable images in `skipped.csv`."""
        loader = DataLoader(
            _Images([record.path for record in todo], self.preprocessing),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=list,
        )
        self.index["shape"] = list(self.regions(self.blank).shape[2:])
        self.announce(len(todo), self.blank.expand(8, -1, -1, -1))
        batches = iter(loader)
        bar: Any = progress(total=len(todo), desc="encoding features", unit="image")
        with bar:
            for _ in range(0, len(loader), per_shard := max(1, rows_per_shard // batch_size)):
                self.write_shard(islice(batches, per_shard), todo, per_shard * batch_size, bar)
                self.refuse_too_many(max_bad)
        self.index["skipped"] = [list(skip) for skip in self.skipped]
        if not self.index["shards"]:
            raise UserError(f"{self.folder}: no image can be read ({_first(self.skipped)})")
        write_json(self.folder / INDEX, self.index)
        if self.skipped:
            write_skipped(self.folder / "skipped.csv", self.skipped)
        else:
            (self.folder / "skipped.csv").unlink(missing_ok=True)

    def announce(self, images: int, blank: Tensor) -> None:
        """Print the size of the features of `images` images, and the time that encoding will take."""
        start = time.perf_counter()
        self.regions(blank)
        seconds = images * (time.perf_counter() - start) / len(blank)
        (regions, channels), views = self.index["shape"], self.index["views"]
        size = images * views * regions * channels * np.dtype(self.index["dtype"]).itemsize
        print_to_stderr(
            f"{self.folder}: {images:,} images{' and their mirror images' if views == 2 else ''}, {regions} regions of "
            f"{channels} channels in {self.index['dtype']}: {size / 1e9:.2f} GB, about {duration(seconds)}"
        )

    def write_shard(
        self, batches: Iterator[list[LoadedImage]], todo: Sequence[ImageRecord], max_rows: int, bar: Any
    ) -> None:
        """Write the next shard and add it to the index; unreadable images leave rows unused."""
        path = self._next_path()
        ids: list[ImageId] = []
        stored: list[LoadedImage] = []
        shape = (min(max_rows, len(todo)), self.index["views"], *self.index["shape"])
        dtype = np.dtype(self.index["dtype"])
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        # a plain file, since writing to a memory map on a full disk would kill the process
        with atomic_write(path) as part, open(part, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            begin = file.tell()
            for batch in batches:
                good = [image for image in batch if image.pixels is not None]
                self.skipped += [
                    Skip(todo[bad.number].path, bad.reason) for bad in batch if bad.pixels is None
                ]
                if good:
                    pixels = torch.stack([image.pixels for image in good if image.pixels is not None])
                    file.write(self.encode_batch(pixels, [todo[i.number] for i in good]).tobytes())
                    ids += [todo[image.number].image_id for image in good]
                    stored += [image._replace(pixels=None) for image in good]
                bar.update(len(batch))
            file.truncate(begin + math.prod(shape) * dtype.itemsize)
        if not ids:
            path.unlink()
            return
        entry = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
            "ids": ids,
            "sizes": [image.state.size for image in stored],
            "mtimes_ns": [image.state.mtime_ns for image in stored],
            "crcs": [image.crc for image in stored],
            "notes": [
                [image_id, note] for image_id, image in zip(ids, stored, strict=True) for note in image.notes
            ],
        }
        self.index["shards"].append(entry)
        write_json(self.folder / INDEX, self.index)

    def _next_path(self) -> Path:
        """The first free name of a shard."""
        names = {shard["file"] for shard in self.index["shards"]}
        numbers = range(len(names) + 1)
        return self.folder / next(name for n in numbers if (name := f"shard-{n:05d}.npy") not in names)

    def encode_batch(self, pixels: Tensor, records: Sequence[ImageRecord]) -> np.ndarray:
        """(B, 3, size, size) uint8 -> (B, views, N, D) in the store's precision."""
        regions = self.regions(pixels)
        limit = np.finfo(self.index["dtype"]).max
        fits = (regions.abs() <= limit).flatten(1).all(1)  # False for NaN as well
        if not fits.all():
            bad = records[int(fits.int().argmin())]
            raise UserError(
                f"{bad.path}: its features are not finite in {self.index['dtype']}; "
                "use features.dtype=float32, or check the encoder's weights"
            )
        return regions.numpy().astype(self.index["dtype"])

    @torch.inference_mode()
    def regions(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) uint8 -> (B, views, N, D) float32 on the CPU."""
        normal = normalize(pixels.to(self.device), self.preprocessing)
        views = [normal, normal.flip(-1)][: self.index["views"]]
        return torch.stack([self.encoder(view).regions for view in views], 1).float().cpu()

    def refuse_too_many(self, max_bad: float) -> None:
        """Raises UserError if more than `max_bad` images are unreadable; shards already written are kept."""
        if len(self.skipped) > max_bad:
            write_skipped(self.folder / "skipped.csv", self.skipped)
            raise UserError(
                f"{self.folder}: {len(self.skipped)} images are unreadable, more than max_bad allows "
                f"({_first(self.skipped)}); all are listed in {self.folder / 'skipped.csv'}"
            )


def _first(skipped: Sequence[Skip]) -> str:
    return f"first {skipped[0].item}: {skipped[0].reason}"
