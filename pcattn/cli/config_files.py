"""What a command line says: configurations that come with the package, by name, and classes of one's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pcattn.utils.errors import InputError

# Installed they lie in the package; in the repository, beside it.
_FOLDERS = tuple(Path(__file__).parents[i] / "configs" for i in (1, 2))  # installed, and in the repository

# Options whose value is a class, or a list of them.
_CLASSES = ("class_path", "model", "callbacks", "logger")


def bundled() -> dict[str, Path]:
    """All of them, by name."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_configuration(name: str) -> str:
    """A file as it is; the file of a bundled configuration by its name; anything else as it is.

    The name may be written as in the repository, `configs/smoke.yaml`, where there is no such file.

    Raises:
        InputError: it could be a name, but is none.
    """
    path = Path(name)
    if path.exists() or path.parent not in (Path(), Path("configs")) or path.suffix not in ("", ".yaml"):
        return name
    names = bundled()
    if path.stem not in names:
        close = difflib.get_close_matches(path.stem, names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"expected a configuration, a file or one of {', '.join(names)}, but got {name!r}{hint}")
    return str(names[path.stem])


def with_files(words: Sequence[str]) -> list[str]:
    """A command line with the names of bundled configurations replaced by their files."""
    found = list(words)
    for place, word in enumerate(found):
        option, equals, value = word.partition("=")
        if option in ("-c", "--config") and equals:
            found[place] = f"{option}={find_configuration(value)}"
        elif place and found[place - 1] in ("-c", "--config"):
            found[place] = find_configuration(word)
    return found


def class_paths(words: Sequence[str]) -> Iterator[str]:
    """The classes that a command line and its configurations name, for Lightning's parser to import.

    A pipe can be read once, which is the parser's to do: classes in a configuration of that kind are not seen.
    """
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        value = value if equals else "".join(words[place + 1 : place + 2])
        is_file = option in ("-c", "--config")
        try:
            if not is_file:
                yield from _class_paths(yaml.safe_load(value), option.rpartition(".")[2].strip("-+"))
            elif Path(value).is_file():
                yield from _class_paths(yaml.safe_load(Path(value).read_text()), "")
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the parser says what is wrong with it


def _class_paths(value: Any, name: str) -> Iterator[str]:
    """Those in the value of an option."""
    if isinstance(value, dict):
        for inner_name, inner in value.items():
            yield from _class_paths(inner, inner_name)
    elif isinstance(value, list):
        for inner in value:
            yield from _class_paths(inner, name)
    elif isinstance(value, str) and name in _CLASSES:
        yield value
