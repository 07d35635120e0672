"""Downloads from a local server that cuts, lies and refuses; archives that attack."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotFinished
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from captioning.datasets.base import RemoteFile
from captioning.datasets.prepare.archives import unpack
from captioning.datasets.prepare.download import fetch
from captioning.errors import UserError
from captioning.utils.locks import folder_lock

CONTENT = bytes(range(251)) * 997  # 250,247 bytes: every offset tells where it came from
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """A server's file and its manners. `cuts`: after how many bytes each connection in turn breaks."""

    content: bytes = CONTENT
    etag: str = '"one"'
    ranges: bool = True
    if_range: bool = True
    length: bool = True
    cuts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.asked.append(dict(self.headers))
        if site.answers:
            self.send_error(site.answers.pop(0))
            return
        start = 0
        wanted = self.headers.get("Range", "")
        unchanged = not site.if_range or self.headers.get("If-Range", site.etag) == site.etag
        if wanted and site.ranges and unchanged:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(site.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(site.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
        else:
            self.send_response(200)
        body = site.content[start:]
        if site.length:
            self.send_header("Content-Length", str(len(body)))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        cut = site.cuts.pop(0) if site.cuts else None
        self.wfile.write(body if cut is None else body[:cut])
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    handler = type("OneSite", (Handler,), {"site": site})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}/some/file%20name.bin?x=1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def get(site: Site, folder: Path, *, tries: int = 3, **source: Any) -> Path:
    return fetch(RemoteFile(url=site.url, **source), folder, tries=tries, wait=0.001, timeout=5)


def ranges(site: Site) -> list[str]:
    return [headers.get("Range", "") for headers in site.asked]


def test_whole_file_in_one_go_and_nothing_else_left(site: Site, tmp_path: Path) -> None:
    path = get(site, tmp_path / "new", size=len(CONTENT), sha256=DIGEST)
    assert path.name == "file name.bin" and path.read_bytes() == CONTENT
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock", "checksums.json", "file name.bin"]
    assert get(site, path.parent, sha256=DIGEST) == path
    assert len(site.asked) == 1  # what is there and right is not asked for again


def test_cut_connection_is_taken_up_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.cuts = [100_003, 50_021]
    assert get(site, tmp_path, sha256=DIGEST).read_bytes() == CONTENT
    assert ranges(site) == ["", "bytes=100003-", "bytes=150024-"]
    assert site.asked[1]["If-Range"] == '"one"'


def test_a_later_run_goes_on_where_the_former_gave_up(site: Site, tmp_path: Path) -> None:
    site.cuts = [70_001, 0, 0, 0]
    with pytest.raises(UserError, match=r"3 times in a row\); 70,001 bytes are kept; run this again"):
        get(site, tmp_path)
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert ranges(site)[-1] == "bytes=70001-"


def test_server_without_ranges_is_asked_from_the_start(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cuts = False, [100_003]
    assert get(site, tmp_path, size=len(CONTENT), sha256=DIGEST).read_bytes() == CONTENT


@pytest.mark.parametrize("if_range", [True, False])
def test_file_that_changed_meanwhile_is_never_mixed(site: Site, tmp_path: Path, if_range: bool) -> None:
    site.cuts = [100_003, 0, 0, 0]
    with pytest.raises(UserError):
        get(site, tmp_path)
    site.content, site.etag, site.if_range = CONTENT[::-1], '"two"', if_range
    assert get(site, tmp_path).read_bytes() == CONTENT[::-1]


def test_part_without_a_version_is_resumed_only_under_a_checksum(site: Site, tmp_path: Path) -> None:
    site.etag, site.cuts = "", [100_003]
    assert get(site, tmp_path / "a", sha256=DIGEST).read_bytes() == CONTENT
    assert ranges(site)[1] == "bytes=100003-"
    site.asked.clear()
    site.cuts = [100_003]
    assert get(site, tmp_path / "b").read_bytes() == CONTENT
    assert ranges(site) == ["", ""]


def test_all_bytes_there_already(site: Site, tmp_path: Path) -> None:
    site.length, site.cuts = False, []
    (tmp_path / ".file name.bin.part").write_bytes(CONTENT)
    state = {"url": site.url, "version": site.etag, "size": None}
    (tmp_path / ".file name.bin.part.json").write_text(json.dumps(state))
    assert get(site, tmp_path, sha256=DIGEST).read_bytes() == CONTENT
    assert ranges(site) == [f"bytes={len(CONTENT)}-"]


def test_cut_without_a_content_length_shows_by_the_published_size(site: Site, tmp_path: Path) -> None:
    site.length, site.cuts = False, [100_003]
    assert get(site, tmp_path, size=len(CONTENT)).read_bytes() == CONTENT


def test_wrong_size_is_refused_before_the_download(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"offers 250,247 bytes, expected 250,248"):
        get(site, tmp_path, size=len(CONTENT) + 1)
    assert not (tmp_path / "file name.bin").exists()


def test_wrong_checksum_leaves_no_file_and_the_next_run_starts_afresh(site: Site, tmp_path: Path) -> None:
    site.content = CONTENT[:-1] + b"?"
    with pytest.raises(UserError, match=f"expected {DIGEST}: damaged or another file; it was deleted"):
        get(site, tmp_path, sha256=DIGEST)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    site.content = CONTENT
    assert get(site, tmp_path, sha256=DIGEST).read_bytes() == CONTENT


def test_first_checksum_is_kept_and_later_downloads_must_equal_it(site: Site, tmp_path: Path) -> None:
    path = get(site, tmp_path)
    assert json.loads((tmp_path / "checksums.json").read_text())["file name.bin"]["sha256"] == DIGEST
    path.unlink()
    site.content = CONTENT[:-1] + b"?"
    with pytest.raises(UserError, match=f"expected {DIGEST}"):
        get(site, tmp_path)
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(UserError, match="delete it and run this again"):
        get(site, tmp_path)


def test_busy_server_is_tried_again_and_a_refusal_is_not(site: Site, tmp_path: Path) -> None:
    site.answers = [503, 429]
    assert get(site, tmp_path).read_bytes() == CONTENT
    site.answers = [404]
    before = len(site.asked)
    with pytest.raises(UserError, match="404"):
        get(site, tmp_path / "other")
    assert len(site.asked) == before + 1


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no connection .* \(2 times in a row\)"):
        fetch(RemoteFile(url="http://127.0.0.1:9/x.zip"), tmp_path, tries=2, wait=0.001)
    with pytest.raises(UserError, match="not the http"):
        fetch(RemoteFile(url="file:///etc/passwd"), tmp_path)


def test_full_disk_is_told_before_the_download(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1009})())
    with pytest.raises(UserError, match="250,247 bytes are missing, 1,009 are free"):
        get(site, tmp_path)


def test_two_processes_do_not_write_one_file(site: Site, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with folder_lock(tmp_path, advice="-"):
            second = pool.submit(get, site, tmp_path)
            with pytest.raises(NotFinished):
                second.result(0.3)
            assert not [path for path in tmp_path.iterdir() if ".lock" not in path.name]
        assert second.result(60).read_bytes() == CONTENT


# archives


def make_zip(path: Path, entries: dict[str, bytes], *, modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = ((modes or {}).get(name, stat.S_IFREG | 0o644)) << 16
            archive.writestr(info, content)
    return path


def make_tar(path: Path, entries: list[tuple[str, bytes, bytes, str]]) -> Path:
    """Entries: name, type, content, link target."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, content, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_good_archives_unpack_the_same(tmp_path: Path) -> None:
    files = {"a/b.txt": b"two", "c.bin": CONTENT, "a/empty": b""}
    zipped = make_zip(tmp_path / "x.zip", {"a/": b"", **files})
    tarred = make_tar(tmp_path / "x.tgz", [(n, tarfile.REGTYPE, c, "") for n, c in files.items()])
    for archive in (zipped, tarred):
        folder = tmp_path / f"out of {archive.name}"
        assert unpack(archive, folder, max_bytes=10**6) == 3
        assert tree(folder) == files
    only = tmp_path / "only"
    assert unpack(zipped, only, max_bytes=10**6, wanted=lambda name: name.endswith(".txt")) == 1
    assert tree(only) == {"a/b.txt": b"two"}


def test_unpacking_goes_on_after_an_interruption(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"done": b"12345", "half": b"12345"})
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "done").write_bytes(b"54321")  # the right size: taken as done
    (folder / "half").write_bytes(b"12")
    unpack(archive, folder, max_bytes=100)
    assert tree(folder) == {"done": b"54321", "half": b"12345"}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", ".."])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_outside_stop_and_nothing_is_written(tmp_path: Path, name: str, kind: str) -> None:
    if kind == "zip":
        archive = make_zip(tmp_path / "x.zip", {"good": b"1", name: b"2"})
    else:
        good = ("good", tarfile.REGTYPE, b"1", "")
        archive = make_tar(tmp_path / "x.tar.gz", [good, (name, tarfile.REGTYPE, b"2", "")])
    with pytest.raises(UserError, match=r"entry 2: .* points outside the data root"):
        unpack(archive, tmp_path / "root" / "out", max_bytes=100)
    assert tree(tmp_path) == {archive.name: archive.read_bytes()}


def test_links_and_devices_stop(tmp_path: Path) -> None:
    link = make_zip(tmp_path / "link.zip", {"x": b"/etc"}, modes={"x": stat.S_IFLNK | 0o777})
    with pytest.raises(UserError, match=r"entry 1: 'x' is a link, .* outside the data root"):
        unpack(link, tmp_path / "out", max_bytes=100)
    kinds = [
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.FIFOTYPE, "device or a pipe"),
    ]
    for kind, said in kinds:
        archive = make_tar(
            tmp_path / "x.tar.gz", [("x", kind, b"", "/etc"), ("x/y", tarfile.REGTYPE, b"2", "")]
        )
        with pytest.raises(UserError, match=f"entry 1: 'x' .*{said}"):
            unpack(archive, tmp_path / "out", max_bytes=100)
    assert not (tmp_path / "out").exists()


def test_bombs_stop(tmp_path: Path) -> None:
    bomb = make_zip(tmp_path / "bomb.zip", {f"{n}": bytes(10**6) for n in range(7)})
    assert bomb.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"entry 4: unpacks to more than 3,000,000 bytes"):
        unpack(bomb, tmp_path / "out", max_bytes=3 * 10**6)
    rolled = make_tar(tmp_path / "bomb.tgz", [("x", tarfile.REGTYPE, bytes(10**7), "")])
    with pytest.raises(UserError, match=r"entry 1: unpacks to more than"):
        unpack(rolled, tmp_path / "out", max_bytes=10**6)
    assert not (tmp_path / "out").exists()


def test_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"x": bytes(5003)})
    raw = archive.read_bytes()
    assert raw.count((5003).to_bytes(4, "little")) == 2
    archive.write_bytes(raw.replace((5003).to_bytes(4, "little"), (13).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"damaged|has not the 13 bytes"):
        unpack(archive, tmp_path / "out", max_bytes=100)
    assert tree(tmp_path / "out") == {}


def test_damaged_and_other_files(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "x.zip", {"x": CONTENT}).read_bytes()
    middle = len(whole) // 2
    (tmp_path / "x.zip").write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(UserError, match="damaged"):
        unpack(tmp_path / "x.zip", tmp_path / "out", max_bytes=10**6)
    (tmp_path / "page.zip").write_text("<html>404</html>")
    with pytest.raises(UserError, match="neither a zip nor a tar"):
        unpack(tmp_path / "page.zip", tmp_path / "out", max_bytes=10**6)
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    with pytest.raises(UserError, match=r"neither a zip nor a tar|damaged"):
        unpack(tmp_path / "cut.zip", tmp_path / "out", max_bytes=10**6)
    twice = tmp_path / "twice.tar.gz"
    make_tar(twice, [("x", tarfile.REGTYPE, b"1", ""), ("./x", tarfile.REGTYPE, b"2", "")])
    with pytest.raises(UserError, match=r"entry 2: '\./x' occurs twice"):
        unpack(twice, tmp_path / "out", max_bytes=10**6)
    assert tree(tmp_path / "out") == {}
