"""Shards: webdataset tars of images, or of stored features, with captions -> records. Reads no pixels, runs nothing.

A folder of shards holds `index.json`, tars, and beside each tar a listing `NAME.jsonl`: a line a record, with
its captions and the place of its image within the tar. A tar's members lie in it as they are, so the place is all
that reading one takes: any image can be had at any time, the order of training stays a function of (seed, epoch),
every process takes its part of it, and a run resumes at the very batch. A stream with a shuffle buffer gives none
of that, and mixes less. What is read is checked against the listing's CRC-32, byte for byte.

The tars are those of the webdataset library (a sample's members share a key: `KEY.jpg`, `KEY.json`), which reads
them; and its tars, or those of img2dataset, are read here once `adopt` has listed them. Only members whose
extension stands in the table below are let in; none is decoded by anything but the room for its kind.
"""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict
from tqdm import tqdm

from captioning.datasets import checks, disk
from captioning.datasets.checks import MaxBad
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord, Skip
from captioning.utils.file_slice import FileSlice
from captioning.utils.files import fingerprint, inside, read_json, replacing, sha256, write_json, write_jsonl

FORMAT = 1
INDEX = "index.json"
IMAGES = frozenset(("jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "ppm", "pgm"))
FEATURES = frozenset(("npy",))
CAPTIONS = frozenset(("json", "txt"))
EXTENSIONS = IMAGES | FEATURES | CAPTIONS
MOST_TEXT = 1 << 20
"""Bytes of a member with captions: more is none."""

RECORDS_PER_SHARD = 1000
"""Of images as COCO's 160 MB: large enough to be read in one go, small enough to be written again."""


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Shards that `captioning prepare shard` has written, or listed, under `root`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Literal["shards"] = "shards"
    root: str = "data/shards"
    max_bad: MaxBad = 0.01


class Sample(NamedTuple):
    """What a tar holds of one record: its image or features, and what its other members say."""

    key: str
    member: FileSlice
    content: dict[str, Any]


def read(config: ShardsConfig) -> Collection:
    """Records of the shards; a record's path leads into its tar.

    Raises:
        UserError: no index, or one that is unfinished or broken; a tar is missing or of another length; a listing is
            damaged, or names what is not in its tar.
    """
    disk.need_root(config.root, "shards")
    index = read_index(config.root)
    if not index.get("complete"):
        raise UserError(f"{config.root}: its writing was interrupted; run captioning prepare shard again")
    whole = Collection([], [])
    for shard in index["shards"]:
        _listed(config.root, shard, whole)
        whole.skipped.extend(Skip(*skip) for skip in shard["skipped"])
    return whole


def read_index(root: str | os.PathLike[str]) -> dict[str, Any]:
    """The folder's `index.json`.

    Raises:
        UserError: there is none, or it is not one of shards.
    """
    path = Path(root, INDEX)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; captioning prepare shard --adopt {root} lists the tars of others"
        )
    index = read_json(path)
    if not (isinstance(index, dict) and isinstance(index.get("shards"), list) and "holds" in index):
        raise UserError(f"{path}: not the index of a folder of shards")
    if index.get("format") != FORMAT:
        raise UserError(f"{path}: format {index.get('format')}, expected {FORMAT}; write the shards again")
    for number, shard in enumerate(index["shards"]):
        if not (isinstance(shard, dict) and shard.keys() >= _SHARD):
            raise UserError(f"{path}: shards entry {number} lacks {', '.join(sorted(_SHARD - set(shard)))}")
    return index


_SHARD = frozenset(("file", "bytes", "sha256", "records", "listing", "listing_sha256", "skipped"))


def _listed(root: str, shard: Mapping[str, Any], whole: Collection) -> None:
    """Add the records of one listing to `whole`."""
    tar = inside(root, shard["file"], entry=f"{root}/{INDEX}: entry {shard['file']!r}")
    path = inside(root, shard["listing"], entry=f"{root}/{INDEX}: entry {shard['listing']!r}")
    if problem := _cut(tar, shard):
        raise UserError(f"{problem}; copy the shard again")
    if not path.is_file() or sha256(path) != shard["listing_sha256"]:
        raise UserError(
            f"{path}: missing or damaged; copy it again, or list the tars with prepare.py shard --adopt"
        )
    container = os.path.normpath(os.path.join(root, shard["file"]))
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}: line {number}"
            try:
                entry = json.loads(line)
                member = FileSlice(
                    container, entry["offset"], entry["size"], int(entry["crc"], 16), entry["name"]
                )
                ends = member.offset + member.size
                found, image_id, split = entry["captions"], entry["id"], entry["split"]
                sound = 0 <= member.offset <= ends <= shard["bytes"] and "/" not in member.name
            except (ValueError, KeyError, TypeError):
                sound = False
            if not (
                sound and isinstance(found, list) and type(image_id) in (int, str) and type(split) is str
            ):
                raise UserError(
                    f"{where}: not a record of {shard['file']}; list the tars with prepare.py shard --adopt"
                )
            good = []
            for caption in found:
                if reason := checks.unusable(caption):
                    whole.skipped.append(Skip(where, reason))
                else:
                    good.append(caption.strip())
            if good:
                whole.records.append(ImageRecord(image_id, member.path, tuple(good), split))
            else:
                whole.skipped.append(Skip(where, "image without captions"))


def _cut(tar: Path, shard: Mapping[str, Any]) -> str | None:
    """What is wrong with a tar as far as its length tells."""
    if not tar.is_file():
        return f"{tar}: missing"
    size = tar.stat().st_size
    return None if size == shard["bytes"] else f"{tar}: {size} bytes, expected {shard['bytes']}"


def verify(root: str | os.PathLike[str]) -> None:
    """Read every tar and compare it with the index.

    Raises:
        UserError: tars are damaged, each named.
    """
    shards = read_index(root)["shards"]
    damaged = [
        shard["file"]
        for shard in tqdm(shards, desc="verifying", unit="shard", disable=None)
        if _cut(path := Path(root, shard["file"]), shard) or sha256(path) != shard["sha256"]
    ]
    if damaged:
        raise UserError(
            f"{root}: {len(damaged)} of {len(shards)} shards are damaged ({', '.join(damaged)}); copy these again"
        )


# ---- writing


class Unfit(Exception):
    """A record that cannot go into a shard, and why: it is passed over, and counted."""


Payload = Callable[[ImageRecord], tuple[str, bytes]]
"""A record -> the extension and the bytes of what its shard holds of it. Raises Unfit."""


def write(
    records: Sequence[ImageRecord],
    root: str | os.PathLike[str],
    payload: Payload,
    *,
    holds: Mapping[str, Any],
    per_shard: int = RECORDS_PER_SHARD,
    max_bad: float = 0.01,
) -> dict[str, Any]:
    """Write the records as shards, each split by itself; gives the index. Shards that are there are kept.

    Records are shuffled first (always alike), so that one shard is as good a sample as any other.

    Args:
        holds: what the index shall say of the content: `kind` ("images" or "features") and, of features, their origin.
        max_bad: share of the records that may be unfit.

    Raises:
        UserError: the folder holds shards of other records, too many are unfit, or the disk is full.
    """
    root = Path(root)
    plan = fingerprint([per_shard, dict(holds), [[r.image_id, r.path, r.captions, r.split] for r in records]])
    index: dict[str, Any] = {"format": FORMAT, "holds": dict(holds), "plan": plan, "complete": False}
    index |= {"splits": {}, "shards": []}
    if (root / INDEX).exists():
        index = read_index(root)
        if index.get("plan") != plan:
            raise UserError(
                f"{root}: holds shards of other records or settings; name another folder or delete it"
            )
    there = {shard["file"]: shard for shard in index["shards"]}
    for left in root.glob(".*.part"):
        left.unlink()  # of a run that was killed
    index["shards"], unfit = [], 0
    with tqdm(total=len(records), desc="writing shards", unit="image", disable=None) as bar:
        for name, part in _planned(records, per_shard):
            shard = there.get(name)
            if shard is None or _cut(root / name, shard) or not (root / shard["listing"]).is_file():
                try:
                    shard = _list(root, name, _write_tar(root / name, part, payload), own=True)
                except OSError as error:
                    raise UserError(
                        f"{root / name}: cannot be written ({error.strerror}); mend that and run again"
                    ) from None
            index["shards"].append(shard)
            unfit += len(shard["skipped"])
            if unfit > max_bad * len(records):
                raise UserError(
                    f"{root}: {unfit} of {len(records)} records are unfit, more than max_bad = {max_bad:g} allows "
                    f"(last: {': '.join(shard['skipped'][-1])})"
                )
            write_json(root / INDEX, index)
            bar.update(len(part))
    return _finished(root, index)


def _planned(records: Sequence[ImageRecord], per_shard: int) -> Iterator[tuple[str, list[ImageRecord]]]:
    """The tars' names and what goes into each."""
    for split in dict.fromkeys(record.split for record in records):
        inside(".", f"{split}-0.tar", entry=f"split {split!r}")
        mixed = [record for record in records if record.split == split]
        random.Random(0).shuffle(mixed)
        for start in range(0, len(mixed), per_shard):
            yield f"{split}-{start // per_shard:06d}.tar", mixed[start : start + per_shard]


def _write_tar(path: Path, records: Sequence[ImageRecord], payload: Payload) -> list[list[str]]:
    """Write one tar: the same bytes for the same records, whoever writes it. Gives what was passed over."""
    skipped: list[list[str]] = []
    with replacing(path) as part, tarfile.open(part, "x:", format=tarfile.USTAR_FORMAT) as tar:
        for number, record in enumerate(records):
            try:
                extension, content = payload(record)
            except Unfit as error:
                skipped.append([record.path, str(error)])
                continue
            said = {"image_id": record.image_id, "split": record.split, "captions": record.captions}
            key = f"{path.stem}-{number:06d}"  # an image's own name may hold dots, at which a key would end
            for name, data in ((f"{key}.{extension}", content), (f"{key}.json", json.dumps(said).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return skipped


def adopt(root: str | os.PathLike[str]) -> dict[str, Any]:
    """List the tars that lie in `root`, by whomever they were written; gives the index.

    A record's split is what its JSON member says, or else what stands before the first "-" of the tar's name, where
    that is train, val or test, or else train; its id what the JSON says as `image_id`, or else tar and key.

    Raises:
        UserError: no tars; one is damaged, or holds what is not let in (see `samples`).
    """
    root = Path(root)
    names = sorted(path.name for path in root.glob("*.tar"))
    if not names:
        raise UserError(f"{root}: no .tar files there")
    bar = tqdm(names, desc="listing", unit="shard", disable=None)
    shards = [_list(root, name, [], own=False) for name in bar]
    return _finished(root, {"format": FORMAT, "holds": {"kind": "images"}, "splits": {}, "shards": shards})


def _finished(root: Path, index: dict[str, Any]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for shard in index["shards"]:
        for split, count in shard["records"].items():
            counts[split] = counts.get(split, 0) + count
    index = {**index, "complete": True, "splits": counts}
    write_json(root / INDEX, index)
    return index


def _list(root: Path, name: str, skipped: list[list[str]], *, own: bool) -> dict[str, Any]:
    """Write the listing of one tar (our `own`, or that of others); gives its entry in the index."""
    tar, listing = root / name, root / f"{name.removesuffix('.tar')}.jsonl"
    usual = name.partition("-")[0] if name.startswith(("train-", "val-", "test-")) else "train"
    records: dict[str, int] = {}

    def lines() -> Iterator[dict[str, Any]]:
        for sample in samples(tar):
            said, member = sample.content, sample.member
            split = said.get("split", usual)
            captions = said.get("captions", said.get("caption"))
            records[split] = records.get(split, 0) + 1
            if not own and member.name.lower().endswith(tuple(FEATURES)):
                raise UserError(
                    f"{tar}: {member.name!r} holds features, and nothing says of which encoder; shards of "
                    "them are read where prepare.py shard wrote them"
                )
            yield {
                "id": said.get("image_id", f"{tar.stem}/{sample.key}"),
                "name": member.name,
                "offset": member.offset,
                "size": member.size,
                "crc": f"{member.crc:08x}",
                "split": split,
                "captions": captions if isinstance(captions, list) else [captions],
            }

    write_jsonl(listing, lines())
    return {
        "file": name,
        "bytes": tar.stat().st_size,
        "sha256": sha256(tar),
        "records": records,
        "listing": listing.name,
        "listing_sha256": sha256(listing),
        "skipped": skipped,
    }


def samples(tar: Path) -> Iterator[Sample]:
    """What a tar holds, which may be hostile. Members are looked at, not unpacked: nothing is written or run.

    Raises:
        UserError: not an uncompressed tar, or a damaged one; a member is a link or a device, points outside, has an
            extension that is not let in, or occurs twice; a sample without captions or with several images.
    """
    try:
        with tarfile.open(tar, "r:") as opened, open(tar, "rb") as file:
            key, found = "", dict[str, tarfile.TarInfo]()  # of the sample at hand
            past: set[str] = set()
            for number, info in enumerate(opened, 1):
                where = f"{tar}: entry {number}"
                name, extension = _admitted(info, where)
                if name != key:
                    if found:
                        yield _sample(tar, key, found, file)
                    if name in past:
                        raise UserError(
                            f"{where}: {info.name!r} is apart from its sample; not a webdataset tar"
                        )
                    past.add(name)
                    key, found = name, {}
                if extension in found:
                    raise UserError(f"{where}: {info.name!r} occurs twice")
                found[extension] = info
                opened.members.clear()  # type: ignore[attr-defined]  # which it would keep, all of them
            if found:
                yield _sample(tar, key, found, file)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{tar}: damaged, or no uncompressed tar ({error})") from None


def _admitted(info: tarfile.TarInfo, where: str) -> tuple[str, str]:
    """Key and extension of a member that may be used."""
    inside(".", info.name, entry=where)
    if not info.isreg() or info.issparse():
        kind = (
            "a link"
            if info.issym() or info.islnk()
            else "a sparse file"
            if info.issparse()
            else "no plain file"
        )
        raise UserError(f"{where}: {info.name!r} is {kind}, and nothing but plain files belongs in a shard")
    folder, slash, name = info.name.rpartition("/")
    stem, _, extension = name.partition(".")  # as webdataset has it: the key ends at the first dot
    if extension.lower() not in EXTENSIONS:
        raise UserError(
            f"{where}: {info.name!r} is not read: only {', '.join(sorted(EXTENSIONS))} belong in a shard"
        )
    return folder + slash + stem, extension.lower()


def _sample(tar: Path, key: str, found: Mapping[str, tarfile.TarInfo], file: Any) -> Sample:
    pictures = [extension for extension in found if extension not in CAPTIONS]
    if len(pictures) != 1:
        raise UserError(
            f"{tar}: sample {key!r} has {len(pictures)} images or features ({', '.join(found)}), not one"
        )

    def content(extension: str) -> bytes:
        info = found[extension]
        file.seek(info.offset_data)
        data = file.read(info.size)
        if len(data) != info.size:
            raise UserError(f"{tar}: {info.name!r} is cut; copy the tar again")
        return data

    said: dict[str, Any] = {}
    for extension in ("txt", "json"):  # what the second says counts
        if extension not in found:
            continue
        if found[extension].size > MOST_TEXT:
            raise UserError(f"{tar}: {found[extension].name!r} is larger than {MOST_TEXT:,} bytes")
        said |= _said(tar, found[extension].name, content(extension))
    picture = found[pictures[0]]
    crc = zlib.crc32(content(pictures[0]))
    name = picture.name.rpartition("/")[2]
    return Sample(key, FileSlice(str(tar), picture.offset_data, picture.size, crc, name), said)


def _said(tar: Path, name: str, data: bytes) -> dict[str, Any]:
    """What a member with captions says."""
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text) if name.lower().endswith("json") else {"captions": text.splitlines()}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{tar}: {name!r}: not UTF-8 text or broken JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{tar}: {name!r}: expected an object, found {disk.json_kind(value)}")
    if type(value.get("image_id", "")) not in (int, str) or type(value.get("split", "")) is not str:
        raise UserError(f"{tar}: {name!r}: image_id must be a number or a string, split a name")
    return {key: value[key] for key in ("image_id", "split", "captions", "caption") if key in value}
