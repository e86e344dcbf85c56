"""Docstrings write mathematics and code blocks as Sphinx does; here they become Markdown."""

import re
import textwrap
from pathlib import Path
from typing import Any

import griffe

_INLINE = re.compile(r":math:`([^`]+)`")
_BLOCK = re.compile(r"^( *)\.\. (math|code-block)::([^\n]*)\n((?:[ ]*\n|\1[ ]+\S[^\n]*(?:\n|\Z))+)", re.MULTILINE)
# "Shape:", "Source:" and "Differs ..." are paragraphs with a title, as "Args:" is.
_TITLE = re.compile(r"^(Shape|Source|Sources|Differs):(?=\s)", re.MULTILINE)

# "a, b: text" in the sections of arguments and attributes, with the lines that go on.
_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:[ ]+\S.*\n?|\n(?=[ ]))+)", re.MULTILINE)
_GROUP = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+)(:.*\n?(?:\1[ ]+.*\n?)*)", re.MULTILINE)


def to_markdown(text: str) -> str:
    """A docstring with `.. math::`, `:math:` and `.. code-block::` as Markdown, and one entry per argument."""
    text = _BLOCK.sub(_block, text)
    text = _SECTION.sub(lambda section: _GROUP.sub(_split, section[0]), text)
    return _TITLE.sub(r"**\1:**", _INLINE.sub(r"$\1$", text))


def _block(match: re.Match[str]) -> str:
    indent, kind, language, body = match.groups()
    body = textwrap.dedent(body).strip("\n")
    if kind == "math":
        # Lines of one equation that are aligned at &, as Sphinx allows without an environment.
        if "&" in body and "\\begin" not in body:
            body = f"\\begin{{aligned}}{body}\\end{{aligned}}"
        body = f"$$\n{body}\n$$"
    else:
        body = f"```{language.strip()}\n{body}\n```"
    return f"\n{textwrap.indent(body, indent)}\n\n"


def _split(match: re.Match[str]) -> str:
    indent, names, text = match.groups()
    return "".join(f"{indent}{name}{text.rstrip()}\n" for name in names.split(", "))


def _comment(lines: list[str], line: int) -> str:
    """The comment `#:` at the end of a line, or in the lines before it."""
    _, mark, text = lines[line].partition("  #: ")
    if mark:
        return text
    above: list[str] = []
    while line > 0 and lines[line - 1].strip().startswith("#:"):
        line -= 1
        above.insert(0, lines[line].strip()[2:].strip())
    return " ".join(above)


class MarkdownDocstrings(griffe.Extension):
    """Converts every docstring before it is parsed, and reads comments `#:` as docstrings of attributes."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Called by griffe for every attribute, before `on_instance`."""
        if attr.docstring is None and attr.lineno and isinstance(attr.filepath, Path) and attr.parent is not None:
            text = _comment(attr.filepath.read_text(encoding="utf-8").splitlines(), attr.lineno - 1)
            if text:
                attr.docstring = griffe.Docstring(to_markdown(text), parent=attr)

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every object with a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
