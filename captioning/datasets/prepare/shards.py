"""Write records as shards, and list existing tars of webdataset or img2dataset as shards.

The tars follow webdataset's convention: the members of a sample share a key (`KEY.jpg`, `KEY.json`). Tars of other
programs may be hostile: only members with the extensions below are accepted, and their content is not decoded here.
"""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from captioning.datasets.checks import list_captions, refuse_bad_split
from captioning.datasets.disk import json_type
from captioning.datasets.shards import FEATURE_SUFFIX, FORMAT, INDEX, length_problem, read_index
from captioning.errors import UserError
from captioning.records import ImageRecord, Skip
from captioning.utils.file_slice import FileSlice
from captioning.utils.files import atomic_write, fingerprint, safe_join, sha256, write_json, write_jsonl
from captioning.utils.locks import folder_lock
from captioning.utils.parsing import parse_json
from captioning.utils.progress import progress

IMAGES = frozenset(("jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "ppm", "pgm"))
FEATURES = FEATURE_SUFFIX.removeprefix(".")
CAPTIONS = frozenset(("json", "txt"))
EXTENSIONS = IMAGES | CAPTIONS | {FEATURES}
MAX_TEXT_BYTES = 1 << 20
"""Largest member with captions that is read."""

RECORDS_PER_SHARD = 1000
"""160 MB of COCO's images: large enough to be read in one go, small enough to be written again."""


class UnusableRecord(Exception):
    """A record that cannot be written to a shard, with the reason. It is skipped and counted."""


ReadContent = Callable[[ImageRecord], tuple[str, bytes]]
"""A record -> the extension and bytes of its image or features. Raises UnusableRecord."""


def write(
    records: Sequence[ImageRecord],
    root: str | os.PathLike[str],
    read_content: ReadContent,
    *,
    holds: Mapping[str, Any],
    per_shard: int = RECORDS_PER_SHARD,
    max_bad: float = 0.01,
) -> dict[str, Any]:
    """Write the records as shards, each split separately, and return the index. Existing shards are kept.

    Records are shuffled first, always in the same order, so that every shard is a random sample of its split.

    Args:
        holds: description of the content for the index: `kind` ("images" or "features"), and the origin of features.
        max_bad: largest share of the records that may be unusable.

    Raises:
        UserError: the folder contains shards of other records, too many are unusable, the disk is full, or another
            process writes there.
    """
    with folder_lock(root, advice="wait until it has ended, or name another folder"):
        return _write_shards(
            records, Path(root), read_content, holds=holds, per_shard=per_shard, max_bad=max_bad
        )


def _write_shards(
    records: Sequence[ImageRecord],
    root: Path,
    read_content: ReadContent,
    *,
    holds: Mapping[str, Any],
    per_shard: int,
    max_bad: float,
) -> dict[str, Any]:
    plan = fingerprint([per_shard, dict(holds), [[r.image_id, r.path, r.captions, r.split] for r in records]])
    index = _open_index(root, plan, holds)
    existing = {shard["file"]: shard for shard in index["shards"]}
    index["shards"], unusable = [], 0
    with progress(total=len(records), desc="writing shards", unit="image", delay=2.0) as bar:
        for name, shard_records in _assign_records(records, per_shard):
            shard = existing.get(name)
            if shard is None or length_problem(root / name, shard) or not (root / shard["listing"]).is_file():
                try:
                    skipped = _write_tar(root / name, shard_records, read_content)
                    shard = _list_tar(root, name, skipped, allow_features=True)
                except OSError as error:
                    raise UserError(
                        f"{root / name}: cannot be written ({error.strerror}); fix this and run the command again"
                    ) from None
            index["shards"].append(shard)
            unusable += len(shard["skipped"])
            if unusable > max_bad * len(records):
                raise UserError(
                    f"{root}: {unusable} of {len(records)} records are unusable, more than "
                    f"max_bad = {max_bad:g} allows (last: {': '.join(shard['skipped'][-1][:2])})"
                )
            write_json(root / INDEX, index)
            bar.update(len(shard_records))
    unusable_images = [Skip(*skip) for shard in index["shards"] for skip in shard["skipped"]]
    refuse_bad_split(
        {skip.item: skip.split or "" for skip in unusable_images},
        (record.split for record in records),
        max_bad=max_bad,
        where=str(root),
    )
    return _write_index(root, index)


def _open_index(root: Path, plan: str, holds: Mapping[str, Any]) -> dict[str, Any]:
    """The index of an interrupted run with the same plan, or an empty one."""
    for unfinished in root.glob(".*.part"):
        unfinished.unlink()
    if not (root / INDEX).exists():
        return {
            "format": FORMAT, "holds": dict(holds), "plan": plan, "complete": False, "splits": {}, "shards": [],
        }  # fmt: skip
    index = read_index(root)
    if index.get("plan") != plan:
        raise UserError(
            f"{root}: contains shards of other records or settings; name another folder or delete it"
        )
    return index


def _assign_records(
    records: Sequence[ImageRecord], per_shard: int
) -> Iterator[tuple[str, list[ImageRecord]]]:
    """The names of the tars and the records of each."""
    for split in dict.fromkeys(record.split for record in records):
        safe_join(".", f"{split}-0.tar", entry=f"split {split!r}")
        shuffled = [record for record in records if record.split == split]
        random.Random(0).shuffle(shuffled)
        for start in range(0, len(shuffled), per_shard):
            yield f"{split}-{start // per_shard:06d}.tar", shuffled[start : start + per_shard]


def _write_tar(path: Path, records: Sequence[ImageRecord], read_content: ReadContent) -> list[Skip]:
    """Write one tar, with the same bytes for the same records; returns the skipped records with their reasons."""
    skipped: list[Skip] = []
    with atomic_write(path) as part, tarfile.open(part, "x:", format=tarfile.USTAR_FORMAT) as tar:
        for number, record in enumerate(records):
            try:
                extension, content = read_content(record)
            except UnusableRecord as error:
                skipped.append(Skip(record.path, str(error), record.split, is_image=True))
                continue
            description = {"image_id": record.image_id, "split": record.split, "captions": record.captions}
            # not the image's name as the key: it may contain dots, and a key ends at the first dot
            key = f"{path.stem}-{number:06d}"
            text = json.dumps(description).encode()
            for name, data in ((f"{key}.{extension}", content), (f"{key}.json", text)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return skipped


def adopt(root: str | os.PathLike[str]) -> dict[str, Any]:
    """List the existing tars in `root` as shards, and return the index.

    A record's split is that of its JSON member, or else the part of the tar's name before the first "-" if that is
    train, val or test, or else train. Its id is the JSON member's `image_id`, or else the tar's name and the key.

    Raises:
        UserError: there are no tars, or one is damaged or contains members that are not accepted (see
            `read_samples`).
    """
    root = Path(root)
    names = sorted(path.name for path in root.glob("*.tar"))
    if not names:
        raise UserError(f"{root}: contains no .tar files; name the folder of the tars")
    bar = progress(names, desc="listing", unit="shard", delay=2.0)
    shards = [_list_tar(root, name, [], allow_features=False) for name in bar]
    return _write_index(root, {"format": FORMAT, "holds": {"kind": "images"}, "splits": {}, "shards": shards})


def _write_index(root: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Write the completed index with the number of records of each split, and return it."""
    counts: dict[str, int] = {}
    for shard in index["shards"]:
        for split, count in shard["records"].items():
            counts[split] = counts.get(split, 0) + count
    index = {**index, "complete": True, "splits": counts}
    write_json(root / INDEX, index)
    return index


def _list_tar(root: Path, name: str, skipped: list[Skip], *, allow_features: bool) -> dict[str, Any]:
    """Write the listing of one tar, and return its entry in the index."""
    tar, listing = root / name, root / f"{name.removesuffix('.tar')}.jsonl"
    default_split = name.partition("-")[0] if name.startswith(("train-", "val-", "test-")) else "train"
    counts: dict[str, int] = {}

    def lines() -> Iterator[dict[str, Any]]:
        for key, part, description in read_samples(tar):
            if not allow_features and part.name.lower().endswith(FEATURE_SUFFIX):
                raise UserError(
                    f"{tar}: {part.name!r} contains features of an unknown encoder; features are read only "
                    "from shards that captioning prepare shard --features has written"
                )
            split = description.get("split", default_split)
            counts[split] = counts.get(split, 0) + 1
            captions = description.get("captions", description.get("caption", []))
            yield {
                "id": description.get("image_id", f"{tar.stem}/{key}"),
                "name": part.name,
                "offset": part.offset,
                "size": part.size,
                "crc": f"{part.crc:08x}",
                "split": split,
                "captions": list_captions(captions),
            }

    write_jsonl(listing, lines())
    return {
        "file": name,
        "bytes": tar.stat().st_size,
        "sha256": sha256(tar),
        "records": counts,
        "listing": listing.name,
        "listing_sha256": sha256(listing),
        "skipped": skipped,
    }


class Sample(NamedTuple):
    """A record of a tar: its key, the slice with its image or features, and the values of its other members."""

    key: str
    part: FileSlice
    description: dict[str, Any]


def read_samples(tar: Path) -> Iterator[Sample]:
    """The samples of a tar, which may be hostile: members are read in place, nothing is unpacked or executed.

    Raises:
        UserError: the file is damaged or not an uncompressed tar; a member is a link or a device, has a path
            outside the folder or an extension that is not accepted, or occurs twice; a sample has several images
            or none.
    """
    try:
        with tarfile.open(tar, "r:") as opened, open(tar, "rb") as file:
            key, members = "", dict[str, tarfile.TarInfo]()  # of the current sample
            finished: set[str] = set()
            for number, info in enumerate(opened, 1):
                where = f"{tar}: entry {number}"
                member_key, extension = _check_member(info, where)
                if member_key != key:
                    if members:
                        yield _read_sample(tar, key, members, file)
                    if member_key in finished:
                        raise UserError(
                            f"{where}: {info.name!r} is apart from its sample; not a webdataset tar"
                        )
                    finished.add(member_key)
                    key, members = member_key, {}
                if extension in members:
                    raise UserError(f"{where}: {info.name!r} occurs twice; not a webdataset tar")
                members[extension] = info
                opened.members.clear()  # type: ignore[attr-defined]  # otherwise all headers stay in memory
            if members:
                yield _read_sample(tar, key, members, file)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{tar}: damaged, or not an uncompressed tar ({error})") from None


def _check_member(info: tarfile.TarInfo, where: str) -> tuple[str, str]:
    """Key and extension of a member. Raises UserError if it is not accepted."""
    safe_join(".", info.name, entry=where)
    if not info.isreg() or info.issparse():
        is_link = info.issym() or info.islnk()
        kind = "a link" if is_link else "a sparse file" if info.issparse() else "a device or pipe"
        raise UserError(f"{where}: {info.name!r} is {kind}; a shard may contain plain files only")
    folder, slash, name = info.name.rpartition("/")
    stem, _, extension = name.partition(".")  # as in webdataset, the key ends at the first dot
    if extension.rpartition(".")[2].lower() in EXTENSIONS and "." in extension:
        raise UserError(
            f"{where}: the key of {info.name!r} ends at its first dot, as in webdataset, so its extension is "
            f"{extension!r}; write the tar again with keys without dots"
        )
    if extension.lower() not in EXTENSIONS:
        raise UserError(
            f"{where}: {info.name!r} is not accepted; a shard may contain only {', '.join(sorted(EXTENSIONS))}"
        )
    return folder + slash + stem, extension.lower()


def _read_sample(tar: Path, key: str, members: Mapping[str, tarfile.TarInfo], file: BinaryIO) -> Sample:
    contents = [extension for extension in members if extension not in CAPTIONS]
    if len(contents) != 1:
        raise UserError(
            f"{tar}: sample {key!r} has {len(contents)} images or features ({', '.join(members)}), not one"
        )
    description: dict[str, Any] = {}
    for extension in ("txt", "json"):  # the JSON member's values take precedence
        if info := members.get(extension):
            if info.size > MAX_TEXT_BYTES:
                raise UserError(f"{tar}: {info.name!r} is larger than {MAX_TEXT_BYTES:,} bytes")
            description |= _parse_description(tar, info.name, _read_member(tar, info, file))
    info = members[contents[0]]
    crc = zlib.crc32(_read_member(tar, info, file))
    name = info.name.rpartition("/")[2]
    return Sample(key, FileSlice(str(tar), info.offset_data, info.size, crc, name), description)


def _read_member(tar: Path, info: tarfile.TarInfo, file: BinaryIO) -> bytes:
    file.seek(info.offset_data)
    data = file.read(info.size)
    if len(data) != info.size:
        raise UserError(f"{tar}: {info.name!r} is cut off; copy the tar again")
    return data


def _parse_description(tar: Path, name: str, data: bytes) -> dict[str, Any]:
    """Captions, id and split of a JSON or text member, as far as it contains them."""
    try:
        text = data.decode("utf-8-sig")
    except ValueError as error:
        raise UserError(f"{tar}: {name!r}: not UTF-8 text or broken JSON ({error})") from None
    is_json = name.lower().endswith("json")
    value = parse_json(text, where=f"{tar}: {name!r}") if is_json else {"captions": text.splitlines()}
    if not isinstance(value, dict):
        raise UserError(f"{tar}: {name!r}: expected an object, found {json_type(value)}")
    if type(value.get("image_id", "")) not in (int, str) or type(value.get("split", "")) is not str:
        raise UserError(f"{tar}: {name!r}: image_id must be a number or a string, split a name")
    return {key: value[key] for key in ("image_id", "split", "captions", "caption") if key in value}
