"""Downloads from a server on this machine, and archives that must not be unpacked."""

import hashlib
import io
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pcattn.datasets import DATASETS
from pcattn.io.download import ARCHIVES, Archive, DownloadError, download, fetch, unpack
from pcattn.utils.errors import DatasetNotFoundError, InputError
from pcattn.utils.locks import exclusive_lock


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


NOISE = np.random.default_rng(0).bytes(100_000)
CONTENT = zipped({"shapes/a.bin": NOISE, "shapes/sub/b.txt": b"hello"})


class Server(ThreadingHTTPServer):
    """Serves CONTENT under every path but `/gone`; breaks off after `cut` bytes of an answer."""

    content = CONTENT
    cut = 1 << 30
    ranges: list[str | None]
    tag = '"one"'


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        resumed = wanted is not None and self.headers.get("If-Range") == self.server.tag
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if resumed and wanted else 0
        body = self.server.content[start:]
        self.send_response(206 if resumed else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.server.tag)
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.ranges = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def url(server: Server, path: str = "/shapes.zip") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def archive(*urls: str, **known: object) -> Archive:
    return Archive("shapes", urls, 1 << 20, **known)  # type: ignore[arg-type]


class TestFetch:
    def test_broken_off_and_resumed(self, server: Server, tmp_path: Path) -> None:
        server.cut = 40_000
        fetch(url(server), tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == CONTENT
        assert server.ranges == [None, "bytes=40000-", "bytes=80000-"]
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_resumed_by_a_later_call(self, server: Server, tmp_path: Path) -> None:
        server.cut = 10_000
        with pytest.raises(OSError, match=f"broke off after 30000 of {len(CONTENT)} bytes"):
            fetch(url(server), tmp_path / "file")
        assert (tmp_path / "file.part").stat().st_size == 30_000
        assert not (tmp_path / "file").exists()
        server.cut = 1 << 30
        fetch(url(server), tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == CONTENT
        assert server.ranges[-1] == "bytes=30000-"

    @pytest.mark.parametrize("other", ["another file there by now", "another source"])
    def test_parts_of_different_files_are_not_joined(self, other: str, server: Server, tmp_path: Path) -> None:
        server.cut = 10_000
        with pytest.raises(OSError, match="broke off"):
            fetch(url(server), tmp_path / "file")
        server.cut, server.content = 1 << 30, CONTENT[::-1]
        if "by now" in other:
            server.tag = '"two"'
        fetch(url(server, "/shapes.zip" if "by now" in other else "/mirror/shapes.zip"), tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == CONTENT[::-1]

    @pytest.mark.skipif(sys.platform == "win32", reason="files cannot be locked")
    def test_one_process_at_a_time(self, server: Server, tmp_path: Path) -> None:
        part = tmp_path / "file.part"
        part.touch()
        with exclusive_lock(part), pytest.raises(InputError, match=r"file\.part to be unused, but another process"):
            fetch(url(server), tmp_path / "file")
        fetch(url(server), tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == CONTENT


class TestDownload:
    def test_whole_way(self, server: Server, tmp_path: Path) -> None:
        sums = {"a.bin": md5(NOISE)}
        folder = download("shapes", tmp_path / "data", archive(url(server), md5=md5(CONTENT), files=sums))
        assert (folder / "a.bin").read_bytes() == NOISE
        assert (folder / "sub" / "b.txt").read_text() == "hello"
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["shapes"]
        download("shapes", tmp_path / "data", archive(url(server)))
        assert len(server.ranges) == 1  # it is there already

    def test_the_second_source(self, server: Server, tmp_path: Path) -> None:
        dead = "http://127.0.0.1:9/shapes.zip"
        sources = archive(dead, url(server, "/gone/shapes.zip"), url(server))
        assert (download("shapes", tmp_path, sources) / "a.bin").read_bytes() == NOISE

    def test_wrong_checksums(self, server: Server, tmp_path: Path) -> None:
        for wrong in ({"md5": md5(b"other")}, {"files": {"a.bin": md5(b"other")}}, {"files": {"c.bin": md5(b"other")}}):
            with pytest.raises(DownloadError, match=r"expected (shapes\.zip|a\.bin) with MD5|expected c\.bin in"):
                download("shapes", tmp_path, archive(url(server), **wrong))
            assert not list(tmp_path.iterdir())

    def test_no_source(self, tmp_path: Path) -> None:
        dead = "http://127.0.0.1:9/shapes.zip"
        with pytest.raises(
            DownloadError, match=rf"{dead}: .*refused.*By hand: fetch shapes\.zip .*unzip shapes\.zip -d"
        ):
            download("shapes", tmp_path, archive(dead))
        assert not list(tmp_path.iterdir())

    def test_what_was_fetched_by_hand_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "shapes.zip").write_bytes(CONTENT)
        source = "http://127.0.0.1:9/shapes.zip"
        with pytest.raises(DownloadError, match=r"shapes\.zip with MD5"):
            download("shapes", tmp_path, archive(source, md5=md5(b"other")))
        assert (download("shapes", tmp_path, archive(source)) / "a.bin").is_file()
        assert (tmp_path / "shapes.zip").read_bytes() == CONTENT


class TestUnpack:
    def refused(self, tmp_path: Path, content: bytes, reason: str, **limits: int) -> None:
        file = tmp_path / "some.zip"
        file.write_bytes(content)
        with pytest.raises(DownloadError, match=reason):
            unpack(file, tmp_path / "target", **{"max_bytes": 1 << 20, **limits})
        assert [path.name for path in tmp_path.iterdir()] == ["some.zip"]

    @pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:evil"])
    def test_paths_outside(self, name: str, tmp_path: Path) -> None:
        self.refused(tmp_path, zipped({"fine": b"x", name: b"x"}), "inside the folder")

    def test_links(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as made:
            link = zipfile.ZipInfo("link")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            made.writestr(link, "/etc/passwd")
        self.refused(tmp_path, buffer.getvalue(), "is a link")

    def test_bombs(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("zeros", bytes(2 << 20))
        self.refused(tmp_path, buffer.getvalue(), "at most 1048576 bytes")
        self.refused(tmp_path, zipped({str(i): b"" for i in range(11)}), "10 files", max_files=10)
        # A header that says less than what comes out: no more than it says is written.
        content = buffer.getvalue().replace((2 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
        self.refused(tmp_path, content, "zip archive")

    def test_damaged(self, tmp_path: Path) -> None:
        self.refused(tmp_path, b"<html>not found</html>", "to be a zip archive")
        self.refused(tmp_path, CONTENT[:-500], "to be a zip archive")
        self.refused(tmp_path, CONTENT.replace(NOISE[:100], bytes(100)), "Bad CRC-32")
        self.refused(tmp_path, zipped({"a": b"1", "A": b"2"}), "twice")


def test_archives_are_fetched_under_tls() -> None:
    assert all(url.startswith("https://") for archive in ARCHIVES.values() for url in archive.urls)


@pytest.mark.parametrize("name", ["modelnet40", "shapenetpart", "scanobjectnn"])
def test_data_sets_that_are_not_there_name_the_command(name: str, tmp_path: Path) -> None:
    assert name in ARCHIVES
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DatasetNotFoundError, match=f"`pcattn download {name} --root data`"):
            DATASETS[name](root)
