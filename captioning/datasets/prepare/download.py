"""Downloads that survive cut connections, verified before they get their name. Knows HTTP, no data sets.

A download goes to `.NAME.part` beside its target and is renamed when its size and checksum are right;
what the server said of it (its ETag) lies in `.NAME.part.json`, so that a later run goes on only with the
same file. Where no checksum is published, the one of the first download is kept in `checksums.json` and
later ones must equal it.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from captioning.errors import UserError
from captioning.utils.files import fsync_folder, read_json, write_json

CHUNK = 1 << 20
CHECKSUMS = "checksums.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that may be fetched: `size` in bytes and `sha256` in hex, where they are published."""

    url: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


class Offer(NamedTuple):
    """What the server says of the file: its whole size, and a version (may be empty) that changes with it."""

    size: int | None
    version: str


class Cut(Exception):
    """The connection ended early, or the server is busy: worth another try."""


def fetch(
    source: Source,
    folder: str | os.PathLike[str],
    *,
    tries: int = 5,
    wait: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """The file of `source` in `folder`, downloaded where it is not there yet, its size and checksum verified.

    A cut connection is taken up where it broke, by HTTP Range; where the server has no ranges, or the file
    changed meanwhile, from the start. `tries` are those in a row that bring no byte; they are `wait`,
    2 `wait`, 4 `wait` ... seconds apart.

    Raises:
        UserError: the server refuses, stays away, or gives another file than expected; the disk is full; or
            another process is downloading the same file.
    """
    folder = Path(folder)
    name = source.name
    if urlsplit(source.url).scheme not in ("http", "https") or name in ("", ".", ".."):
        raise UserError(f"{source.url}: not the http(s) address of a file")
    target = folder / name
    source = _with_recorded(source, folder)
    if target.exists():
        digest = _verify(target, source, advice="delete it and run this again")
        _record(folder, target, source.url, digest)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part, state = folder / f".{name}.part", folder / f".{name}.part.json"
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{part}: another process is downloading this file; wait for it") from None
        _complete(source, file, state, tries=tries, wait=wait, timeout=timeout)
        file.flush()
        os.fsync(file.fileno())
        try:
            digest = _verify(part, source, advice="it was deleted; run this again for a fresh copy")
        except UserError:
            part.unlink()
            state.unlink(missing_ok=True)
            raise
        os.replace(part, target)
    state.unlink(missing_ok=True)
    fsync_folder(folder)
    _record(folder, target, source.url, digest)
    return target


def _complete(
    source: Source, file: IO[bytes], state: Path, *, tries: int, wait: float, timeout: float
) -> None:
    """Bring `file`, open for appending, to the whole of `source`, through as many connections as it takes."""
    failures = 0
    with tqdm(
        total=source.size, desc=source.name, unit="B", unit_scale=True, unit_divisor=1024, disable=None
    ) as bar:
        while True:
            known = _known_version(state, source)
            if known is None:
                file.truncate(0)
            before = file.seek(0, os.SEEK_END)
            try:
                return _connect(source, file, state, known=known, timeout=timeout, bar=bar)
            except Cut as cut:
                failures = 0 if file.seek(0, os.SEEK_END) > before else failures + 1
                if failures >= tries:
                    raise UserError(
                        f"{source.url}: {cut} ({failures} times in a row); "
                        f"{file.tell():,} bytes are kept, run this again to go on"
                    ) from None
                time.sleep(wait * 2 ** max(0, failures - 1))
            except OSError as error:  # of our own disk: the network's are Cut
                raise UserError(f"{file.name}: cannot be written ({error.strerror or error})") from None


def _connect(
    source: Source, file: IO[bytes], state: Path, *, known: str | None, timeout: float, bar: tqdm[Any]
) -> None:
    """One connection: the rest of the file is appended.

    Raises:
        Cut: it ended early. What came is in `file`.
        UserError: the server refuses, or offers another size than `source` has.
    """
    have = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "captioning-prepare/1", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known
    with _open(urllib.request.Request(source.url, headers=headers), timeout=timeout) as response:
        resumed = response.status == 206
        start, size = _content_range(response) if resumed else (0, _content_length(response))
        if response.status == 416 and _content_range(response)[1] == have:
            return  # there is nothing after what we have: it is all there
        offer = Offer(size, _version(response))
        if response.status == 416 or (resumed and (start != have or offer.version != (known or ""))):
            file.truncate(0)  # not the file that we began with
            raise Cut("the file changed on the server")
        if not resumed:
            file.truncate(0)
        _check_offer(source, offer, file)
        write_json(state, {"url": source.url, "version": offer.version, "size": offer.size})
        bar.total = offer.size
        bar.n = start
        bar.refresh()
        _copy(response, file, bar)
    expected = source.size if offer.size is None else offer.size
    if expected is not None and file.seek(0, os.SEEK_END) < expected:
        raise Cut(f"the connection ended after {file.tell():,} of {expected:,} bytes")


def _open(request: urllib.request.Request, *, timeout: float) -> Any:
    """The answer to `request`, 416 among them."""
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise Cut(f"the server answers {error.code} {error.reason}") from None
        raise UserError(
            f"{request.full_url}: the server answers {error.code} {error.reason}; "
            "the file may have moved: fetch it by hand"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise Cut(f"no connection ({reason})") from None


def _copy(response: Any, file: IO[bytes], bar: tqdm[Any]) -> None:
    while True:
        try:
            chunk = response.read(CHUNK)
        except http.client.IncompleteRead as error:
            file.write(error.partial)
            raise Cut("the connection ended early") from None
        except (OSError, http.client.HTTPException) as error:
            raise Cut(f"the connection broke ({error or type(error).__name__})") from None
        if not chunk:
            return
        file.write(chunk)
        bar.update(len(chunk))


def _version(response: Any) -> str:
    """The strong ETag, or the time of the last change; only these may stand in If-Range."""
    etag = str(response.headers.get("ETag", ""))
    return etag if etag and not etag.startswith("W/") else str(response.headers.get("Last-Modified", ""))


def _content_length(response: Any) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _content_range(response: Any) -> tuple[int, int | None]:
    """First byte and whole size of `Content-Range: bytes 5-9/10` (or `*/10`); (0, None) where unreadable."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None:
        return 0, None
    return int(match[1] or 0), None if match[2] == "*" else int(match[2])


def _known_version(state: Path, source: Source) -> str | None:
    """The version of the file that was begun; None where none was, or one that cannot be told apart."""
    if not state.exists():
        return None
    try:
        value = read_json(state)
    except UserError:  # a crash may have left anything here; the download then begins again
        return None
    if not isinstance(value, dict) or value.get("url") != source.url:
        return None
    # without an ETag or a date the checksum at the end must do, so there has to be one
    return str(value.get("version", "")) if value.get("version") or source.sha256 else None


def _check_offer(source: Source, offer: Offer, file: IO[bytes]) -> None:
    if source.size is not None and offer.size is not None and offer.size != source.size:
        raise UserError(
            f"{source.url}: the server offers {offer.size:,} bytes, expected {source.size:,}; "
            "it is another file now: fetch it by hand and compare"
        )
    needed = (offer.size or 0) - file.seek(0, os.SEEK_END)
    free = shutil.disk_usage(Path(file.name).parent).free
    if needed > free:
        raise UserError(f"{file.name}: {needed:,} bytes to come, {free:,} free; make room")


def _verify(path: Path, source: Source, *, advice: str) -> str:
    """The file's sha256. Raises UserError where its size or its checksum is not what `source` says."""
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        raise UserError(f"{path}: has {size:,} bytes, expected {source.size:,}; {advice}")
    digest = hashlib.sha256()
    with (
        open(path, "rb") as file,
        tqdm(total=size, desc=f"checking {source.name}", unit="B", unit_scale=True, disable=None) as bar,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if source.sha256 is not None and digest.hexdigest() != source.sha256:
        raise UserError(
            f"{path}: its sha256 is {digest.hexdigest()}, expected {source.sha256}: "
            f"damaged or another file; {advice}"
        )
    return digest.hexdigest()


def _with_recorded(source: Source, folder: Path) -> Source:
    """The source, with the checksum of an earlier download where none is published."""
    path = folder / CHECKSUMS
    if source.sha256 is not None or not path.exists():
        return source
    entries = read_json(path)
    entry = entries.get(source.name) if isinstance(entries, dict) else None
    if not isinstance(entry, dict) or entry.get("url") != source.url:
        return source
    return Source(url=source.url, size=entry.get("size"), sha256=entry.get("sha256"))


def _record(folder: Path, target: Path, url: str, digest: str) -> None:
    path = folder / CHECKSUMS
    entries = read_json(path) if path.exists() else {}
    entries = entries if isinstance(entries, dict) else {}
    entry = {"url": url, "size": target.stat().st_size, "sha256": digest}
    if entries.get(target.name) != entry:
        write_json(path, {**entries, target.name: entry})
