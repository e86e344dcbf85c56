"""Download data sets: resumable, from several mirrors, with checksums, and unpacked safely.

Data sets themselves read only local files; nothing is downloaded unless `download` is called.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import shutil
import stat
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from pcattn.utils.errors import DatasetError, InputError
from pcattn.utils.locks import exclusive_lock

_GIB = 1 << 30
_CHUNK = 1 << 20
_TRIES = 3  # per source
_TIMEOUT = 30  # seconds without data


class DownloadError(DatasetError):
    """No source has the data set. The message lists the reasons and what to do by hand."""


class Archive(NamedTuple):
    """A zip file on one or several hosts."""

    folder: str  #: folder that it unpacks to
    urls: tuple[str, ...]  #: sources, tried in this order
    max_bytes: int  #: maximum size of the unpacked files
    md5: str | None = None  #: MD5 of the archive, if a public source states it
    files: Mapping[str, str] = {}  #: MD5 of unpacked files by name, if public sources state them
    terms: str = ""  #: terms of use that the owners ask for


#: Archives by name of their data set. The checksums are those that public projects state.
ARCHIVES: dict[str, Archive] = {
    "modelnet40": Archive(
        "modelnet40_ply_hdf5_2048",
        (
            "https://huggingface.co/datasets/Msun/modelnet40/resolve/main/modelnet40_ply_hdf5_2048.zip",
            "https://github.com/ma-xu/pointMLP-pytorch/releases/download/Modenet40_dataset/modelnet40_ply_hdf5_2048.zip",
            "https://shapenet.cs.stanford.edu/media/modelnet40_ply_hdf5_2048.zip",
        ),
        4 * _GIB,
        files={
            "ply_data_train0.h5": "3176385ffc31a7b6b5af22191fd920d1",
            "ply_data_train1.h5": "e3f613fb500559403b34925112754dc4",
            "ply_data_train2.h5": "0c56e233a090ff87c3049d4ce08e7d8b",
            "ply_data_train3.h5": "9d2af465adfa33a3285c369f3ca66c45",
            "ply_data_train4.h5": "dff38de489b2c41bfaeded86c2208984",
            "ply_data_test0.h5": "e9732e6d83b09e79e9a7617df058adee",
            "ply_data_test1.h5": "aba4b12a67c34391cc3c015a6f08ed4b",
        },
    ),
    "shapenetpart": Archive(
        "shapenetcore_partanno_segmentation_benchmark_v0_normal",
        (
            "https://huggingface.co/datasets/ShapeSplats/sharing/resolve/main/"
            "shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
            "https://shapenet.cs.stanford.edu/media/shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
        ),
        16 * _GIB,
    ),
    "shapenetpart_hdf5": Archive(
        "hdf5_data", ("https://shapenet.cs.stanford.edu/media/shapenet_part_seg_hdf5_data.zip",), 8 * _GIB
    ),
    "scanobjectnn": Archive(
        "h5_files",
        ("https://hkust-vgd.ust.hk/scanobjectnn/h5_files.zip",),
        64 * _GIB,
        md5="36876af479f9ad39abad5ebcd89038dd",
        terms="the terms of use at https://forms.gle/g29a6qSgjatjb1vZ6 (the archive has 13 GB)",
    ),
    "scanobjectnn_hardest": Archive(
        "h5_files",
        ("https://github.com/ma-xu/pointMLP-pytorch/releases/download/dataset/h5_files.zip",),
        16 * _GIB,
        terms="the terms of use at https://forms.gle/g29a6qSgjatjb1vZ6",
    ),
}


def download(name: str, root: str | Path, archive: Archive | None = None) -> Path:
    """Fetch, check and unpack a data set into `<root>/<folder>`, which appears only when it is complete.

    An interrupted transfer is resumed, in this call (three tries per source) or in the next one. If a source does not
    answer, or its file has another checksum, the next source is tried.

    Args:
        name: name of the data set, a key of `ARCHIVES`.
        root: folder to unpack into.
        archive: archive to use instead of `ARCHIVES[name]`.

    Returns:
        The unpacked folder. If it exists already, nothing is downloaded.

    Raises:
        DownloadError: no source has the data set, or the archive is not safe to unpack.
        InputError: there is no data set of this name.
    """
    if archive is None:
        if name not in ARCHIVES:
            raise InputError(f"expected one of {', '.join(ARCHIVES)}, but got {name!r}")
        archive = ARCHIVES[name]
    root = Path(root)
    target = root / archive.folder
    if target.exists():
        return target
    root.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in archive.urls:
        file = root / PurePosixPath(urlsplit(url).path).name
        if file.exists():  # the user put it there: use it, and keep it
            _check(file, archive.md5)
            unpack(file, target, archive.max_bytes, files=archive.files)
            return target
        try:
            fetch(url, file)
        except OSError as error:
            reasons.append(f"{url}: {error}")
            continue
        try:
            _check(file, archive.md5)
            unpack(file, target, archive.max_bytes, files=archive.files)
        except DownloadError as error:
            reasons.append(f"{url}: {error}")
            file.unlink()
            continue
        file.unlink()
        return target
    raise DownloadError(f"{name} cannot be downloaded: {'; '.join(reasons)}. {manual_steps(archive, root)}")


def manual_steps(archive: Archive, root: Path) -> str:
    """Instructions for a machine without network access."""
    file = archive.urls[0].rpartition("/")[2]
    return f"By hand: fetch {file} in a browser from one of the addresses, and: unzip {file} -d {root}"


def fetch(url: str, target: Path) -> None:
    """Download a file. An incomplete transfer stays in `<target>.part`, and a later call resumes it.

    Raises:
        OSError: the source does not answer, or breaks off three times.
        InputError: another process is downloading the file.
    """
    part, note = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
    with part.open("ab+") as file, exclusive_lock(part, timeout=0):
        for attempt in range(_TRIES):
            try:
                _receive(url, file, note)
                break
            except (OSError, http.client.HTTPException) as error:
                permanent = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if permanent or attempt == _TRIES - 1:
                    if not part.stat().st_size:
                        part.unlink()
                        note.unlink(missing_ok=True)
                    reason = error.reason if isinstance(error, urllib.error.URLError) else error
                    raise OSError(str(reason) or type(error).__name__) from error
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, target)
    note.unlink(missing_ok=True)


def unpack(
    file: Path, target: Path, max_bytes: int, max_files: int = 1_000_000, files: Mapping[str, str] | None = None
) -> None:
    """Unpack a zip archive to the folder `target`, which appears only when it is complete.

    If the archive holds a single folder, its content becomes the content of `target`.

    Args:
        file: the archive.
        target: folder to make, which must not exist.
        max_bytes: maximum size of all files.
        max_files: maximum number of files.
        files: MD5 of some of the files, by name.

    Raises:
        DownloadError: the file is not a zip archive or is damaged, a member would lie outside of the folder or is a
            link, the archive exceeds a limit, or a checksum is wrong. Nothing is left behind.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if not m.filename.startswith("__MACOSX/")]
            _check_members(file.name, members, max_bytes, max_files)
            free = shutil.disk_usage(target.parent).free
            needed = sum(member.file_size for member in members)
            if needed > free:
                raise OSError(f"expected {needed / _GIB:.1f} GiB free in {target.parent}, but got {free / _GIB:.1f}")
            temporary.mkdir()
            for member in tqdm(members, desc=f"unpacking {file.name}", leave=False, disable=None):
                try:  # zipfile writes at most the declared size and compares the checksum
                    archive.extract(member, temporary)
                except OSError as error:
                    if error.errno is not None:
                        raise
                    raise DownloadError(f"expected {file.name} to be a zip archive, but got: {error}") from error
        inside = list(temporary.iterdir())
        content = inside[0] if len(inside) == 1 and inside[0].is_dir() else temporary
        for name, md5 in (files or {}).items():
            if not (content / name).is_file():
                raise DownloadError(f"expected {name} in {file.name}, but it is not there")
            _check(content / name, md5)
        content.rename(target)
    except (DownloadError, MemoryError):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, None):
            raise
        raise DownloadError(
            f"expected {file.name} to unpack to files and folders, but got: {error.strerror}"
        ) from error
    except Exception as error:  # damaged bytes make zipfile and its decompressors raise anything
        raise DownloadError(f"expected {file.name} to be a zip archive, but got: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _SameSecurity(urllib.request.HTTPRedirectHandler):
    """Refuses redirections from https to another scheme."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """See `urllib.request.HTTPRedirectHandler`."""
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise OSError(f"expected a redirection to https, but got {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(url: str, file: BinaryIO, note: Path) -> None:
    """Append the missing bytes to the open file, or start over if the source has another file by now."""
    known = _read_note(note)
    start = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"User-Agent": "pcattn", "Accept-Encoding": "identity"})
    if start and known.get("url") == url and known.get("version"):
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", known["version"])
    else:
        start = file.truncate(0)
        file.seek(0)
    # The default TLS context verifies certificates and host names.
    with urllib.request.build_opener(_SameSecurity).open(request, timeout=_TIMEOUT) as answer:
        if answer.status != 206:
            start = file.truncate(0)
            file.seek(0)
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        # A weak tag does not promise the same bytes.
        note.write_text(json.dumps({"url": url, "version": "" if version.startswith("W/") else version}))
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        name = note.name.removesuffix(".part.json")
        with tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    received = file.tell()
    if total is not None and received != total:
        raise OSError(f"the connection broke off after {received} of {total} bytes")


def _read_note(note: Path) -> dict[str, str]:
    try:
        content = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _check(file: Path, md5: str | None) -> None:
    if md5 is None:
        return
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "md5").hexdigest()
    if found != md5:
        raise DownloadError(f"expected {file.name} with MD5 {md5}, but got {found}")


def _check_members(name: str, members: Sequence[zipfile.ZipInfo], max_bytes: int, max_files: int) -> None:
    """Refuse an unsafe archive before anything is unpacked."""
    if not members:
        raise DownloadError(f"expected files in {name}, but it is empty")
    total = sum(member.file_size for member in members)
    if total > max_bytes or len(members) > max_files:
        raise DownloadError(
            f"expected at most {max_bytes} bytes in {max_files} files, but {name} has {total} in {len(members)}"
        )
    seen: set[str] = set()
    for member in members:
        path = PurePosixPath(member.filename)
        outside = path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename
        mode = member.external_attr >> 16
        if outside:
            raise DownloadError(f"expected files inside the folder, but {name} has {member.filename!r}")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DownloadError(
                f"expected files and folders alone in {name}, but {member.filename!r} is a link or a device"
            )
        if str(path).lower() in seen:
            raise DownloadError(f"expected every file once, but {name} has {member.filename!r} twice")
        seen.add(str(path).lower())
