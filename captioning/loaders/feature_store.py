"""What a frozen encoder gives for each image, kept on disk. Knows no captions.

A store is a folder: `index.json` and shards `shard-00000.npy`, each (rows, views, N, D). A shard stands in
the index once it is whole on disk; a build that was killed goes on behind the last of these.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from captioning.datasets.checks import write_skipped
from captioning.errors import UserError
from captioning.images.preprocessing import Preprocessing, normalize, preprocess_uint8
from captioning.images.reading import BadImage, read_image
from captioning.models.encoders import Encoder, for_inference
from captioning.records import ImageId, ImageRecord, Skip
from captioning.tensors import Features
from captioning.utils.file_slice import file_size
from captioning.utils.files import atomic_write, fingerprint, read_json, sha256, write_json
from captioning.utils.packed_strings import PackedStrings


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """The feature store. `use: auto` is yes whenever the encoder is frozen and pixels are not augmented.

    `flip` also stores the features of the mirrored image and trains on either, at random; an image of which a
    caption says left or right is never mirrored.
    """

    __pydantic_config__ = {"extra": "forbid"}
    use: Literal["auto", "never"] = "auto"
    root: str = "features"
    dtype: Literal["float16", "float32"] = "float16"
    flip: bool = False


FORMAT = 1
INDEX = "index.json"
ROWS_PER_SHARD = 1024
SOUND = ".sound.json"
SETTLED = 100_000_000  # ns; file systems count time in steps of up to 10 ms

Precision = Literal["float16", "float32"]


@dataclass(frozen=True)
class FeatureProvenance:
    """What features were made with: equal origins, equal features."""

    encoder: dict[str, Any]  # `Encoder.identity`
    weights: str  # `Encoder.fingerprint()`
    preprocessing: dict[str, Any]

    @classmethod
    def of(cls, encoder: Encoder, preprocessing: Preprocessing) -> FeatureProvenance:
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(preprocessing).items()}
        return cls(encoder=encoder.identity, weights=encoder.fingerprint(), preprocessing=plain)

    @property
    def fingerprint(self) -> str:
        return fingerprint(asdict(self))

    def differences(self, other: FeatureProvenance) -> list[str]:
        """What is not the same in the two, named as in a config, this one's value first."""
        found = []
        for room in ("encoder", "preprocessing"):
            ours, theirs = getattr(self, room), getattr(other, room)
            for key in sorted({*ours, *theirs}):
                if ours.get(key) != theirs.get(key):
                    found.append(f"{room}.{key} {ours.get(key)} / {theirs.get(key)}")
        if not any(line.startswith("encoder.") for line in found) and self.weights != other.weights:
            found.append(f"encoder weights {self.weights} / {other.weights}")
        return found


class Place(NamedTuple):
    shard: int
    row: int


class FeatureStore:
    """The features of images by their ids, read from memory-mapped shards. Written by `build_store`."""

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.folder, self._index = folder, index
        self.origin = FeatureProvenance(**index["origin"])
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
            expect: the origin that the features must have (what differs is then named), or its fingerprint.

        Raises:
            UserError: no store, a shard is missing or cut, or the features have another origin.
        """
        folder = Path(folder)
        index = read_index(folder)
        if index is None:
            raise UserError(f"{folder}: not a feature store (no {INDEX}); build it with captioning features")
        store = cls(folder, index)
        refuse_other_origin(folder, store.origin, expect)
        for shard in index["shards"]:
            if problem := store._cut(shard):
                raise UserError(f"{problem}; run captioning features again to encode its images anew")
        store.verify(all_of_it=False)
        return store

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)"""
        regions, channels = self._index["shape"]
        return regions, channels

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the encoder, its weights and the preprocessing."""
        return self.origin.fingerprint

    @property
    def skipped(self) -> list[Skip]:
        """The images that could not be read when the store was built."""
        return [Skip(*skip) for skip in self._index["skipped"]]

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def rows(
        self, image_ids: Sequence[ImageId], *, views: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """The images' regions, (B, N, D) in the store's dtype: a copy, the caller's own.

        Args:
            views: for each image 0 (as it is) or 1 (mirrored, if the store has that); None: all as they are.

        Raises:
            UserError: an image is not in the store.
        """
        return self.rows_at(self.places(image_ids), views=views)

    def places(self, image_ids: Sequence[ImageId]) -> np.ndarray:
        """Where the images' features lie, (B, 2): shard and row. Raises UserError as `require` does."""
        self.require(image_ids)
        return np.array([self._places[image_id] for image_id in image_ids], np.int32).reshape(-1, 2)

    def rows_at(self, places: np.ndarray, *, views: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """As `rows`, for images whose `places` are known."""
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
        """As `rows`, as a decoder takes them: regions (B, N, D) float32."""
        return Features(torch.from_numpy(self.rows(image_ids, views=views)).float())

    def require(self, image_ids: Sequence[ImageId]) -> None:
        """Raises UserError, with the first five, where images are not in the store."""
        missing = [image_id for image_id in image_ids if image_id not in self._places]
        if missing:
            raise UserError(
                f"{self.folder}: {len(missing)} images are not in this feature store (first {missing[:5]}); "
                "run captioning features on all records"
            )

    def verify(self, *, all_of_it: bool = True) -> None:
        """Read shards and compare their sha256 with the index: every one, or those not found sound as they are now.

        Which have been found sound is kept in `.sound.json`, each by its file's number, length and times, so a store is
        read through when it is opened for the first time. A bit that the disk itself loses later changes none of
        these; `captioning features --verify` reads everything.

        Raises:
            UserError: shards are damaged, each named.
        """
        shards = self._index["shards"]
        known = set() if all_of_it else _read_sound(self.folder)
        unread = [shard for shard in shards if _state(self.folder, shard) not in known]
        with ThreadPoolExecutor(
            min(8, os.cpu_count() or 1)
        ) as pool:  # hashing leaves Python's lock to others
            bar = tqdm(unread, desc="verifying", unit="shard", disable=None, delay=2)
            sound = list(pool.map(self._sound, bar))
        damaged = [shard["file"] for shard, good in zip(unread, sound, strict=True) if not good]
        if damaged:
            raise UserError(
                f"{self.folder}: {len(damaged)} of {len(shards)} shards are damaged ({', '.join(damaged)}); "
                "delete these files and run captioning features again"
            )
        if unread:
            _write_sound(self.folder, shards)

    def _sound(self, shard: dict[str, Any]) -> bool:
        return not self._cut(shard) and sha256(self.folder / shard["file"]) == shard["sha256"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": [None] * len(self._maps)}  # another process maps the files itself

    def _map(self, shard: int) -> np.ndarray:
        return np.load(self.folder / self._index["shards"][shard]["file"], mmap_mode="r", allow_pickle=False)

    def _cut(self, shard: dict[str, Any]) -> str | None:
        """What is wrong with a shard as far as the length of its file tells."""
        path = self.folder / shard["file"]
        if not path.is_file():
            return f"{path}: missing"
        if path.stat().st_size != shard["bytes"]:
            return f"{path}: {path.stat().st_size} bytes, expected {shard['bytes']}"
        return None


def _state(folder: Path, shard: dict[str, Any]) -> str:
    """What changes when a shard's file does, and what it should hold."""
    try:
        found = (folder / shard["file"]).stat()
    except OSError:
        return f"{shard['file']} is not there"
    times = f"{found.st_mtime_ns} {found.st_ctime_ns}"  # the second is not the user's to set
    return f"{shard['sha256']} {found.st_ino} {found.st_size} {times}"


def _read_sound(folder: Path) -> set[str]:
    """The states in which shards were found sound; none where that is not known."""
    try:
        known = read_json(folder / SOUND)
    except UserError:
        return set()
    return {state for state in known if isinstance(state, str)} if isinstance(known, list) else set()


def _write_sound(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    """Note these shards as sound, but for files so new that a change to them might leave their times as they are."""
    settled = time.time_ns() - SETTLED
    states = [
        _state(folder, shard) for shard in shards if (folder / shard["file"]).stat().st_ctime_ns < settled
    ]
    with contextlib.suppress(OSError):  # a store that may only be read is verified each time
        write_json(folder / SOUND, states)


def read_index(folder: Path) -> dict[str, Any] | None:
    """The store's index; None where there is none.

    Raises:
        UserError: it is broken, or of a format that this version does not know.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    index = read_json(path)
    if not isinstance(index, dict) or "shards" not in index:
        raise UserError(f"{path}: not the index of a feature store")
    if index.get("format") != FORMAT:
        raise UserError(f"{path}: format {index.get('format')}, expected {FORMAT}; build the store again")
    return index


def refuse_other_origin(
    where: str | os.PathLike[str], origin: FeatureProvenance, expect: FeatureProvenance | str | None
) -> None:
    """Raises UserError where the features in `where`, made with `origin`, were to be made with something else."""
    wanted = expect.fingerprint if isinstance(expect, FeatureProvenance) else expect
    if wanted is None or wanted == origin.fingerprint:
        return
    what = ""
    if isinstance(expect, FeatureProvenance):
        what = f" (there / asked for: {'; '.join(origin.differences(expect))})"
    raise UserError(
        f"{where}: features of another encoder or preprocessing: there they have {origin.fingerprint}, "
        f"asked for is {wanted}{what}; name another folder or delete this one"
    )


class Loaded(NamedTuple):
    """One image on its way to the encoder: its pixels, or why there are none."""

    number: int
    pixels: Tensor | None  # (3, size, size) uint8
    bytes: int
    reason: str


class _Images(Dataset):
    """Loads and scales images, in whatever process asks."""

    def __init__(self, paths: list[str], preprocessing: Preprocessing):
        self.paths, self.preprocessing = PackedStrings(paths), preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Loaded:
        path = str(self.paths[number])
        try:
            image = read_image(path).image
        except BadImage as error:
            return Loaded(number, None, 0, error.reason)
        return Loaded(number, preprocess_uint8(image, self.preprocessing), file_size(path), "")


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
    """Encode each image once. What the folder already holds is kept; only what is missing is encoded.

    Args:
        encoder: a copy in eval mode is used, on the device where it is.
        flip: store each image mirrored as well, as view 1.
        workers: processes that load images; 0: this one does.
        max_bad: share of the records that may be unreadable. They are listed in `skipped.csv` in the folder.

    Raises:
        UserError: the folder holds features of another origin, precision or number of views; an image changed
            since it was encoded; too many images are bad; features do not fit in the precision.
    """
    folder = Path(folder)
    origin = FeatureProvenance.of(encoder, preprocessing)
    ids = [record.image_id for record in records]
    if len(set(ids)) != len(ids):
        raise UserError(f"{folder}: an image id occurs twice among the records; give each image its own")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        for part in folder.glob(".*.part"):
            part.unlink()  # of a build that was killed; no other one runs
        index = _index_to_fill(folder, origin, dtype=dtype, views=2 if flip else 1)
        _refuse_changed(folder, index, records)
        done = {image_id for shard in index["shards"] for image_id in shard["ids"]}
        todo = [record for record in records if record.image_id not in done]
        if todo:
            writer = _Writer(folder, index, encoder, preprocessing)
            writer.encode(
                todo,
                batch_size=batch_size,
                workers=min(workers, -(-len(todo) // batch_size)),
                rows_per_shard=rows_per_shard,
                most_bad=max_bad * len(records),
            )
    return FeatureStore.open(folder)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time, the others wait; the lock goes with the process, however it ends."""
    with open(folder / ".lock", "wb") as lock:
        # not flock: that is inherited, and loading processes outlive a killed build by seconds
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            print(
                f"{folder}: another process is building this feature store; waiting for it", file=sys.stderr
            )
            fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _index_to_fill(
    folder: Path, origin: FeatureProvenance, *, dtype: Precision, views: int
) -> dict[str, Any]:
    """The index of the store to go on with, without the shards whose file is lost; or a new one."""
    index = read_index(folder)
    if index is None:
        return {
            "format": FORMAT,
            "fingerprint": origin.fingerprint,
            "origin": asdict(origin),
            "dtype": dtype,
            "views": views,
            "shape": None,
            "shards": [],
            "skipped": [],
        }
    store = FeatureStore(folder, index)
    refuse_other_origin(folder, store.origin, origin)
    for key, wanted in (("dtype", dtype), ("views", views)):
        if index[key] != wanted:
            raise UserError(
                f"{folder}: a store of {key} {index[key]}, asked for is {wanted}; name another folder"
            )
    index["shards"] = [shard for shard in index["shards"] if store._cut(shard) is None]
    return index


def _refuse_changed(folder: Path, index: dict[str, Any], records: Sequence[ImageRecord]) -> None:
    """Raises UserError where an image's file has not the length that it had when it was encoded."""
    sizes = {i: n for shard in index["shards"] for i, n in zip(shard["ids"], shard["sizes"], strict=True)}
    for record in records:
        if (size := sizes.get(record.image_id)) is None:
            continue
        try:
            now = file_size(record.path)
        except OSError:
            continue  # features are made to do without the images
        if now != size:
            raise UserError(
                f"{record.path}: changed since its features were stored ({size} bytes, now {now}); "
                f"delete {folder} and run again"
            )


class _Writer:
    """Encodes images and adds shards to a store."""

    def __init__(self, folder: Path, index: dict[str, Any], encoder: Encoder, preprocessing: Preprocessing):
        self.folder, self.index, self.preprocessing = folder, index, preprocessing
        self.encoder = for_inference(encoder)
        self.device = next(encoder.parameters()).device
        self.skipped: list[Skip] = []

    def encode(
        self,
        todo: Sequence[ImageRecord],
        *,
        batch_size: int,
        workers: int,
        rows_per_shard: int,
        most_bad: float,
    ) -> None:
        """Add shards with the features of `todo`; the list of what is unreadable goes to `skipped.csv`."""
        loader = DataLoader(
            _Images([record.path for record in todo], self.preprocessing),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=list,
        )
        blank = torch.zeros(1, 3, self.preprocessing.size, self.preprocessing.size, dtype=torch.uint8)
        self.index["shape"] = list(self.regions(blank).shape[2:])
        batches = iter(loader)
        with tqdm(total=len(todo), desc="encoding", unit="image", disable=None) as progress:
            for _ in range(0, len(loader), per_shard := max(1, rows_per_shard // batch_size)):
                self.shard(islice(batches, per_shard), todo, per_shard * batch_size, progress)
                self.refuse_too_many(most_bad)
        self.index["skipped"] = [list(skip) for skip in self.skipped]
        if not self.index["shards"]:
            raise UserError(f"{self.folder}: not one image could be read ({_first(self.skipped)})")
        write_json(self.folder / INDEX, self.index)
        if self.skipped:
            write_skipped(self.folder / "skipped.csv", self.skipped)
        else:
            (self.folder / "skipped.csv").unlink(missing_ok=True)

    def shard(
        self, batches: Iterator[list[Loaded]], todo: Sequence[ImageRecord], most: int, progress: tqdm
    ) -> None:
        """Write the next shard from these batches and note it in the index; bad images leave rows unused."""
        taken = {shard["file"] for shard in self.index["shards"]}
        path = next(
            p for n in range(len(taken) + 1) if (p := self.folder / f"shard-{n:05d}.npy").name not in taken
        )
        ids: list[ImageId] = []
        sizes: list[int] = []
        with atomic_write(path) as part:
            shape = (min(most, len(todo)), self.index["views"], *self.index["shape"])
            rows = np.lib.format.open_memmap(part, mode="w+", dtype=self.index["dtype"], shape=shape)
            for batch in batches:
                good = [image for image in batch if image.pixels is not None]
                self.skipped += [
                    Skip(todo[bad.number].path, bad.reason) for bad in batch if bad.pixels is None
                ]
                if good:
                    pixels = torch.stack([image.pixels for image in good if image.pixels is not None])
                    rows[len(ids) : len(ids) + len(good)] = self.stored(
                        pixels, [todo[i.number] for i in good]
                    )
                    ids += [todo[image.number].image_id for image in good]
                    sizes += [image.bytes for image in good]
                progress.update(len(batch))
            rows.flush()
            del rows
        if not ids:
            path.unlink()
            return
        entry = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
            "ids": ids,
            "sizes": sizes,
        }
        self.index["shards"].append(entry)
        write_json(self.folder / INDEX, self.index)

    def stored(self, pixels: Tensor, records: Sequence[ImageRecord]) -> np.ndarray:
        """(B, 3, size, size) uint8 -> (B, views, N, D) in the store's precision."""
        regions = self.regions(pixels)
        limit = np.finfo(self.index["dtype"]).max
        fits = (regions.abs() <= limit).flatten(1).all(1)  # False for NaN as well
        if not fits.all():
            bad = records[int(fits.int().argmin())]
            raise UserError(
                f"{bad.path}: its features are not finite in {self.index['dtype']}; "
                "store float32, or look at the encoder's weights"
            )
        return regions.numpy().astype(self.index["dtype"])

    @torch.inference_mode()
    def regions(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) uint8 -> (B, views, N, D) float32 on the CPU."""
        normal = normalize(pixels.to(self.device), self.preprocessing)
        views = [normal, normal.flip(-1)][: self.index["views"]]
        return torch.stack([self.encoder(view).regions for view in views], 1).float().cpu()

    def refuse_too_many(self, most_bad: float) -> None:
        """Raises UserError where more images are unreadable than may be; the shards written so far stay."""
        if len(self.skipped) > most_bad:
            write_skipped(self.folder / "skipped.csv", self.skipped)
            raise UserError(
                f"{self.folder}: {len(self.skipped)} images are bad, more than max_bad allows "
                f"({_first(self.skipped)}); all are listed in {self.folder / 'skipped.csv'}"
            )


def _first(skipped: Sequence[Skip]) -> str:
    return f"first {skipped[0].item}: {skipped[0].reason}"
