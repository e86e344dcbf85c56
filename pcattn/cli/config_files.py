"""Configuration files: bundled ones by name, classes from the current folder, and import paths of earlier releases."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from pcattn.cli.messages import hint
from pcattn.utils.errors import InputError
from pcattn.utils.registry import look_here

#: Import paths, and beginnings of them, that configurations of earlier releases may name.
MOVED = {
    "pcattn.datasets.PointCloudDataModule": "pcattn.training.PointCloudDataModule",
    "pcattn.datasets.datamodule": "pcattn.training.datamodule",
    "pcattn.visualize.Pictures": "pcattn.training.Pictures",
    "pcattn.visualize.callback": "pcattn.training.pictures",
    "pcattn.saving": "pcattn.training.checkpointing",
    "pcattn.metrics_log.MetricsLog": "pcattn.training.logger.ResumableCSVLogger",
    "pcattn.stopwatch": "pcattn.training.timer",
    "pcattn.attention.layer": "pcattn.layers.attention",
    "pcattn.corruptions": "pcattn.transforms.corruptions",
}
_MOVED = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, MOVED))})(?!\w)")

# Options whose value is a class or a list of classes.
_CLASS_OPTIONS = ("class_path", "model", "callbacks", "logger")


def bundled_configs() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    package = Path(__file__).parents[1]
    # The folder lies in an installed package, and beside the package in the repository.
    folder = next((path for path in (package / "configs", package.parent / "configs") if path.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> str:
    """The file of a bundled configuration by its name; any other path is returned as it is.

    The name may have the form `configs/smoke.yaml`, as in the repository, if there is no such file.

    Raises:
        InputError: it looks like a name, but no bundled configuration has it.
    """
    path = Path(name)
    if path.exists() or path.parent not in (Path(), Path("configs")) or path.suffix not in ("", ".yaml"):
        return name
    configs = bundled_configs()
    if path.stem not in configs:
        close = difflib.get_close_matches(path.stem, configs, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"expected a configuration, a file or one of {', '.join(configs)}, but got {name!r}{meant}")
    return str(configs[path.stem])


def resolve_args(args: Sequence[str]) -> list[str]:
    """Replace names of bundled configurations by their files, and import paths of earlier releases by today's."""
    found = list(map(translate, args))
    for place, word in enumerate(found):
        option, equals, value = word.partition("=")
        if option in ("-c", "--config") and equals:
            found[place] = f"{option}={find_config(value)}"
        elif place and found[place - 1] in ("-c", "--config"):
            found[place] = find_config(word)
    return found


def load(text: str, folder: Path) -> Any:
    """Load YAML, the content of a configuration or the value of an option, for the parser of Lightning's commands.

    Import paths of earlier releases are translated. The classes that it names may lie in modules of `folder`, as with
    `python -m`.
    """
    value = get_loader("yaml")(translate(text))
    with chdir(folder):
        for path in _class_paths(value, "class_path"):
            look_here(path)
    return value


def translate(text: str) -> str:
    """Replace import paths of earlier releases, with a hint."""

    def replace(found: re.Match[str]) -> str:
        _hint_once(found[0])
        return MOVED[found[0]]

    return _MOVED.sub(replace, text)


@cache
def _hint_once(path: str) -> None:
    hint(f"{path} is now {MOVED[path]}")


def _class_paths(value: Any, option: str) -> Iterator[str]:
    """The import paths of classes in the value of an option."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _class_paths(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _class_paths(inner, option)
    elif isinstance(value, str) and option in _CLASS_OPTIONS and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value):
        yield value


#: What `load` may raise.
LOAD_ERRORS = (yaml.YAMLError,)
