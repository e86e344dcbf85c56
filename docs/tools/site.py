"""Hooks of MkDocs: pages generated from the package, the READMEs of the repository, and equations.

MkDocs calls the functions `on_*` (https://www.mkdocs.org/user-guide/plugins/#events).
"""

import argparse
import importlib
import inspect
import posixpath
import re
import sys
from contextlib import suppress
from html import unescape
from pathlib import Path
from typing import Any
from unittest import mock

import jsonargparse
import latex2mathml.converter
import pytorch_lightning
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import parsers  # noqa: E402  (beside this file)

from pcattn.cli.main import COMMANDS, LIGHTNING  # noqa: E402

#: Files of the repository that are pages of the site.
READMES = {
    "attention.md": "pcattn/attention/README.md",
    "changelog.md": "CHANGELOG.md",
    "configs.md": "configs/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "corruptions.md": "pcattn/CORRUPTIONS.md",
    "datasets.md": "datasets/README.md",
    "models.md": "pcattn/models/README.md",
    "ops.md": "pcattn/ops/README.md",
    "own_data.md": "datasets/own_data.md",
    "results.md": "configs/results.md",
    "security.md": "SECURITY.md",
    "tasks.md": "pcattn/tasks/README.md",
    "visualize.md": "pcattn/visualize/README.md",
    "weights.md": "pcattn/weights/README.md",
}

#: Links to these READMEs lead to pages that say the same at more length.
REPLACED = {"README.md": "index.md"}

#: Modules of the reference that export their names by `__all__`, and public names of those that do not.
MODULES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("attention", "models", "layers", "tasks", "training", "inference", "data"), ()),
    **dict.fromkeys(("datasets", "transforms", "metrics", "ops", "io"), ()),
    "visualize": ("montage.montage", "page.page", "window.open_window", "scene.Cloud", "scene.Field"),
    "utils": ("errors.InputError", "errors.DatasetError", "registry.resolve"),
}

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_MATH = re.compile(r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the READMEs with their pictures, the reference and the tables of options."""
    for page, name in READMES.items():
        text, pictures = readme_page(name)
        files.append(File.generated(config, page, content=text))
        for picture, path in pictures.items():
            files.append(File.generated(config, picture, abs_src_path=str(path)))
    files.append(File.generated(config, "options.md", content=options_page()))
    files.append(File.generated(config, "api/pcattn.md", content=reference_page("pcattn", ())))
    for module, members in MODULES.items():
        files.append(File.generated(config, f"api/{module}.md", content=reference_page(f"pcattn.{module}", members)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Pages link to files of the repository, so that they can be read there, too."""
    written = (REPOSITORY / "docs" / page.file.src_uri).is_file()
    return site_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri) if written else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Equations as MathML, which browsers draw by themselves."""
    return _MATH.sub(_to_mathml, html)


def _to_mathml(match: re.Match[str]) -> str:
    return latex2mathml.converter.convert(
        unescape(match[2]).strip(), display="block" if match[1] == "div" else "inline"
    )


def readme_page(name: str) -> tuple[str, dict[str, Path]]:
    """A file of the repository as a page at the root of the site, and the pictures that it shows by their place."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    pictures = {
        f"images/{posixpath.basename(target)}": REPOSITORY / posixpath.dirname(name) / target
        for mark, _, target in _LINK.findall(text)
        if mark and "://" not in target
    }
    return site_links(text, name, "index.md"), pictures


def site_links(text: str, file: str, page: str) -> str:
    """Links between files of the repository as links between pages.

    Args:
        text: Markdown.
        file: that it is from, relative to the repository.
        page: that it becomes, relative to the site.
    """

    def link(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        if (found := _page_of(path, bool(mark))) is None:  # a file that is no page
            return words if path in words else f"{words} (`{path}`)"
        return f"{mark}[{words}]({posixpath.relpath(found, posixpath.dirname(page) or '.')}{hash_}{anchor})"

    return _LINK.sub(link, text)


def _page_of(path: str, is_picture: bool) -> str | None:
    """The page that a file of the repository becomes, or that documents it."""
    pages = {name: page for page, name in READMES.items()} | REPLACED
    if path in pages:
        return pages[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if is_picture:
        return f"images/{posixpath.basename(path)}"
    module = path.removeprefix("pcattn/").split("/")[0]
    return f"api/{module}.md" if path.endswith(".py") and module in MODULES else None


def reference_page(module: str, members: tuple[str, ...]) -> str:
    """Every public name of a module, from its docstring."""
    exported = members or importlib.import_module(module).__all__
    entries = "\n\n".join(f"::: {module}.{name}" for name in exported)
    introduction = f"::: {module}\n    options: {{members: [], show_root_heading: false, show_root_toc_entry: false}}"
    return f"# `{module}`\n\n{introduction}\n\n{entries}\n"


def options_page() -> str:
    """Every option of every command, from its parser."""
    lines = [
        "# Options",
        "",
        "Every command with its options, generated from the parsers. `pcattn COMMAND --help` prints the same.",
        "",
    ]
    fit = parsers.parse(["fit", "-c", "smoke"])[0]
    training = fit._subcommands_action._name_parser_map["fit"]  # type: ignore[attr-defined]
    lines += ["## pcattn fit, validate, test, predict", ""]
    lines += [f"- `pcattn {name}`: {each.summary}" for name, each in COMMANDS.items() if each.module == LIGHTNING]
    lines += [
        "",
        "Each takes a configuration (`-c`) and any of the options below, which are also the keys of the YAML.",
    ]
    groups = {"of a run": lambda name: "." not in name or name.startswith("checkpoint."), "data": None, "trainer": None}
    for title, belongs in groups.items():
        select = belongs or (lambda name, prefix=f"{title}.": name.startswith(prefix))
        heading = f"### Options {title}" if belongs else f"### `{title}`"
        lines += ["", heading, "", *_table([action for action in training._actions if select(action.dest)])]
    for task in _tasks():
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(task, "model")
        lines += ["", f"### `model` for {task.__name__}", "", *_table(parser._actions)]
    for name, command in COMMANDS.items():
        if command.module != LIGHTNING:
            lines += ["", f"## pcattn {name}", "", f"What it does: {command.summary}.", ""]
            for title, parser in _parsers_of(name).items():
                lines += [*([f"### pcattn {title}", ""] if title != name else []), *_table(parser._actions), ""]
    return "\n".join(lines) + "\n"


def _tasks() -> list[type]:
    """The tasks by name; the base class, which takes nothing from the data, is left out."""
    module = importlib.import_module("pcattn.tasks")
    exported = [getattr(module, name) for name in module.__all__]
    tasks = [each for each in exported if inspect.isclass(each) and issubclass(each, pytorch_lightning.LightningModule)]
    return [task for task in tasks if "num_features" in inspect.signature(task).parameters]


def _parsers_of(command: str) -> dict[str, argparse.ArgumentParser]:
    """The parser of a command that is not Lightning's, or those of its subcommands."""
    found: list[argparse.ArgumentParser] = []

    def stop(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        found.append(self)
        raise SystemExit

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop), suppress(SystemExit):
        parsers.main([command])
    for action in found[0]._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {f"{command} {name}": parser for name, parser in action.choices.items()}
    return {command: found[0]}


def _table(actions: list[argparse.Action]) -> list[str]:
    """A row for every option that a user would give."""
    rows = ["| option | default | |", "| --- | --- | --- |"]
    for action in actions:
        text = " ".join((action.help or "").split())
        if len(text) > 300 and ". " in text:  # Lightning's own are pages long
            text = text.partition(". ")[0] + "."
        if action.dest == "help" or action.dest.endswith(".help") or text == argparse.SUPPRESS:
            continue
        if action.help == "Path to a configuration file." or not text:
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings if not name.endswith("+")) or f"`{action.dest}`"
        default = "" if action.default in (None, argparse.SUPPRESS, False) else f"`{action.default}`"
        text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`").replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| {names} | {default} | {text} |")
    return rows
