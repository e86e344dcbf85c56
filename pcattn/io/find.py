"""The files behind paths, folders and patterns: only regular files, and each once."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pcattn.io.cloud import SUFFIXES


def find_files(
    arguments: Iterable[str], out: Path | None = None
) -> tuple[list[tuple[Path, Path]], list[tuple[str, str]]]:
    """Find clouds and meshes on disk, in the order of the arguments.

    Folders are searched through, and links are followed, but no folder is entered twice. Hidden files and the
    `__MACOSX` folders of archives are passed over.

    Args:
        arguments: files, folders, and patterns such as `scans/**/*.ply`.
        out: a folder of results, which is not searched.

    Returns:
        Pairs of a file and its path below the folder that was named (or its name), and pairs of an argument that cannot
        be used and the reason.
    """
    found: dict[str, tuple[Path, Path]] = {}  # by real path
    wrong = []
    for argument in arguments:
        matches = [argument] if os.path.lexists(argument) else sorted(set(_expand(Path(argument))))
        if not matches:
            wrong.append((argument, "there is no such file or folder, and no file matches"))
        for path in map(Path, matches):
            if path.is_dir():
                inside = [file for folder in _walk(path) for file in _clouds(folder) if not _is_below(file, out)]
                if not inside:
                    wrong.append((str(path), f"expected files in this folder, of {', '.join(SUFFIXES)}, but got none"))
                for file in sorted(inside):
                    found.setdefault(os.path.realpath(file), (file, file.relative_to(path)))
            elif path.is_file():
                found.setdefault(os.path.realpath(path), (path, Path(path.name)))
            else:
                wrong.append((str(path), "expected a regular file, but got a device, a pipe or a broken link"))
    return list(found.values()), wrong


def _expand(pattern: Path) -> Iterator[str]:
    """The paths that match a pattern. `glob` alone follows links to their own folder for ever."""
    if "**" not in pattern.parts:
        yield from glob.glob(str(pattern))
        return
    index = pattern.parts.index("**")
    for base in _expand(Path(*pattern.parts[:index])) if index else ["."]:
        for folder in _walk(Path(base)) if os.path.isdir(base) else ():
            inside = Path(glob.escape(str(folder)), *pattern.parts[index + 1 :])
            yield from _expand(inside) if index + 1 < len(pattern.parts) else [str(folder)]


def _walk(root: Path) -> Iterator[Path]:
    """A folder and those in it, each real one once."""
    seen, left = set(), [root]
    while left:
        folder = left.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        yield folder
        try:
            left += [path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path)]
        except OSError:  # a folder that may not be read holds nothing for us
            continue


def _clouds(folder: Path) -> list[Path]:
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not _is_hidden(path)]
    except OSError:
        return []
    is_cache = (folder / "index.json").is_file()  # `pcattn.io.cache` names its arrays .bin, too
    return [path for path in files if path.is_file() and not (is_cache and path.suffix == ".bin")]


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "__MACOSX"


def _is_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and folder.resolve() in path.resolve().parents
