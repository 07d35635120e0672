"""Download files over HTTP, resuming after interruptions and verifying size and checksum.

A download is written to `.NAME.part` beside its target and renamed after its size and checksum are verified. The
server's version of the file (its ETag) is kept in `.NAME.part.json`, so that a later run resumes only the same
file. If no checksum is published, that of the first download is stored in `checksums.json`, and later downloads
must equal it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from captioning.datasets.base import RemoteFile
from captioning.errors import UserError
from captioning.utils.files import fsync_folder, read_json, write_json
from captioning.utils.locks import folder_lock
from captioning.utils.progress import progress

CHUNK = 1 << 20
CHECKSUMS = "checksums.json"


class ServerFile(NamedTuple):
    """The file on the server: its total size, and its version, which changes with the content ("" if unknown)."""

    size: int | None
    version: str


class ConnectionLost(Exception):
    """The connection ended early or the server is busy; another attempt may succeed."""


def fetch(
    remote: RemoteFile,
    folder: str | os.PathLike[str],
    *,
    tries: int = 5,
    wait: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """Download `remote` to `folder` unless it exists, verify its size and checksum, and return its path.

    An interrupted download is resumed by HTTP Range, or restarted if the server doesn't support ranges or the
    file changed meanwhile. It is given up after `tries` attempts in a row without a byte, which are `wait`,
    2 `wait`, 4 `wait` ... seconds apart. While another process downloads to this folder, it is waited for.

    Raises:
        UserError: the server refuses, doesn't answer, or offers a different file; or the disk is full.
    """
    folder = Path(folder)
    name = remote.name
    if urlsplit(remote.url).scheme not in ("http", "https") or name in ("", ".", ".."):
        raise UserError(f"{remote.url}: not the http(s) address of a file")
    with folder_lock(folder, advice="wait until it has ended", wait=True):
        remote = _with_recorded(remote, folder)
        target = folder / name
        if target.exists():
            digest = _verify(target, remote, advice="delete it and run this again")
        else:
            digest = _download(remote, target, tries=tries, wait=wait, timeout=timeout)
        _record(folder, target, remote.url, digest)
    return target


def _download(remote: RemoteFile, target: Path, *, tries: int, wait: float, timeout: float) -> str:
    """Download to `target`; the file's sha256."""
    part, state = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.part.json")
    with open(part, "ab") as file:
        _complete(remote, file, state, tries=tries, wait=wait, timeout=timeout)
        file.flush()
        os.fsync(file.fileno())
    try:
        digest = _verify(part, remote, advice="it was deleted; run this again to download it afresh")
    except UserError:
        part.unlink()
        state.unlink(missing_ok=True)
        raise
    os.replace(part, target)
    state.unlink(missing_ok=True)
    fsync_folder(target.parent)
    return digest


def _complete(
    remote: RemoteFile, file: IO[bytes], state: Path, *, tries: int, wait: float, timeout: float
) -> None:
    """Append the rest of `remote` to `file`, over as many connections as necessary."""
    failures = 0
    with progress(total=remote.size, desc=remote.name, unit="byte", unit_scale=True, delay=2.0) as bar:
        while True:
            known = _known_version(state, remote)
            if known is None:
                file.truncate(0)
            before = file.seek(0, os.SEEK_END)
            try:
                return _connect(remote, file, state, known=known, timeout=timeout, bar=bar)
            except ConnectionLost as lost:
                failures = 0 if file.seek(0, os.SEEK_END) > before else failures + 1
                if failures >= tries:
                    raise UserError(
                        f"{remote.url}: {lost} ({failures} times in a row); "
                        f"{file.tell():,} bytes are kept; run this again to resume"
                    ) from None
                time.sleep(wait * 2 ** max(0, failures - 1))
            except OSError as error:  # of the disk: network errors are ConnectionLost
                raise UserError(f"{file.name}: cannot be written ({error.strerror or error})") from None


def _connect(
    remote: RemoteFile, file: IO[bytes], state: Path, *, known: str | None, timeout: float, bar: Any
) -> None:
    """Append the rest of the file over one connection.

    Raises:
        ConnectionLost: the connection ended early. The bytes received are in `file`.
        UserError: the server refuses, or its file has another size than `remote`.
    """
    offset = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "captioning-prepare/1", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if known:
            headers["If-Range"] = known
    with _open(urllib.request.Request(remote.url, headers=headers), timeout=timeout) as response:
        resumed = response.status == 206
        start, size = _content_range(response) if resumed else (0, _content_length(response))
        if response.status == 416 and _content_range(response)[1] == offset:
            return  # no bytes follow: the file is complete
        server_file = ServerFile(size, _version(response))
        if response.status == 416 or (resumed and (start != offset or server_file.version != (known or ""))):
            file.truncate(0)  # not the file of which the beginning was downloaded
            raise ConnectionLost("the file changed on the server")
        if not resumed:
            file.truncate(0)
        _check_server_file(remote, server_file, file)
        write_json(state, {"url": remote.url, "version": server_file.version, "size": server_file.size})
        bar.total = server_file.size
        bar.n = start
        bar.refresh()
        _copy(response, file, bar)
    expected = remote.size if server_file.size is None else server_file.size
    if expected is not None and file.seek(0, os.SEEK_END) < expected:
        raise ConnectionLost(f"the connection ended after {file.tell():,} of {expected:,} bytes")


def _open(request: urllib.request.Request, *, timeout: float) -> Any:
    """The response to `request`; a status of 416 is a response, not an error."""
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise ConnectionLost(f"the server answers {error.code} {error.reason}") from None
        raise UserError(
            f"{request.full_url}: the server answers {error.code} {error.reason}; "
            "the file may have moved: download it in a browser"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise ConnectionLost(f"no connection ({reason})") from None


def _copy(response: Any, file: IO[bytes], bar: Any) -> None:
    while True:
        try:
            chunk = response.read(CHUNK)
        except http.client.IncompleteRead as error:
            file.write(error.partial)
            raise ConnectionLost("the connection ended early") from None
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLost(f"the connection broke ({error or type(error).__name__})") from None
        if not chunk:
            return
        file.write(chunk)
        bar.update(len(chunk))


def _version(response: Any) -> str:
    """The strong ETag, or the time of the last change: the values that If-Range permits."""
    etag = str(response.headers.get("ETag", ""))
    return etag if etag and not etag.startswith("W/") else str(response.headers.get("Last-Modified", ""))


def _content_length(response: Any) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _content_range(response: Any) -> tuple[int, int | None]:
    """First byte and total size of `Content-Range: bytes 5-9/10` (or `*/10`); (0, None) if malformed."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None:
        return 0, None
    return int(match[1] or 0), None if match[2] == "*" else int(match[2])


def _known_version(state: Path, remote: RemoteFile) -> str | None:
    """The version of the partial download; None if there is none, or its version can't be verified."""
    if not state.exists():
        return None
    try:
        value = read_json(state)
    except UserError:  # left damaged by a crash: restart the download
        return None
    if not isinstance(value, dict) or value.get("url") != remote.url:
        return None
    # without an ETag or date a changed file shows only in the checksum, so one must be published
    return str(value.get("version", "")) if value.get("version") or remote.sha256 else None


def _check_server_file(remote: RemoteFile, server_file: ServerFile, file: IO[bytes]) -> None:
    if remote.size is not None and server_file.size is not None and server_file.size != remote.size:
        raise UserError(
            f"{remote.url}: the server offers {server_file.size:,} bytes, expected {remote.size:,}; "
            "the file has changed: download it in a browser and compare"
        )
    needed = (server_file.size or 0) - file.seek(0, os.SEEK_END)
    free = shutil.disk_usage(Path(file.name).parent).free
    if needed > free:
        raise UserError(f"{file.name}: {needed:,} bytes are missing, {free:,} are free; free some disk space")


def _verify(path: Path, remote: RemoteFile, *, advice: str) -> str:
    """The file's sha256. Raises UserError if its size or checksum is not that of `remote`."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        raise UserError(f"{path}: has {size:,} bytes, expected {remote.size:,}; {advice}")
    digest = hashlib.sha256()
    with (
        open(path, "rb") as file,
        progress(total=size, desc=f"checking {remote.name}", unit="byte", unit_scale=True, delay=2.0) as bar,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if remote.sha256 is not None and digest.hexdigest() != remote.sha256:
        raise UserError(
            f"{path}: its sha256 is {digest.hexdigest()}, expected {remote.sha256}: "
            f"damaged or another file; {advice}"
        )
    return digest.hexdigest()


def _with_recorded(remote: RemoteFile, folder: Path) -> RemoteFile:
    """`remote`, with the checksum of an earlier download if none is published."""
    path = folder / CHECKSUMS
    if remote.sha256 is not None or not path.exists():
        return remote
    entries = read_json(path)
    entry = entries.get(remote.name) if isinstance(entries, dict) else None
    if not isinstance(entry, dict) or entry.get("url") != remote.url:
        return remote
    size, digest = entry.get("size"), entry.get("sha256")
    if type(size) is not int or type(digest) is not str:
        return remote
    return RemoteFile(url=remote.url, size=size, sha256=digest)


def _record(folder: Path, target: Path, url: str, digest: str) -> None:
    path = folder / CHECKSUMS
    entries = read_json(path) if path.exists() else {}
    entries = entries if isinstance(entries, dict) else {}
    entry = {"url": url, "size": target.stat().st_size, "sha256": digest}
    if entries.get(target.name) != entry:
        write_json(path, {**entries, target.name: entry})
