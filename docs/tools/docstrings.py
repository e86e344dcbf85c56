"""Docstrings write mathematics and code blocks as Sphinx does; here they become Markdown."""

import re
import textwrap
from typing import Any

import griffe

_INLINE = re.compile(r":math:`([^`]+)`")
_BLOCK = re.compile(r"^( *)\.\. (math|code-block)::([^\n]*)\n((?:[ ]*\n|\1[ ]+\S[^\n]*(?:\n|\Z))+)", re.MULTILINE)
# "Shape:", "Source:" and "Differs ..." are paragraphs with a title, as "Args:" is.
_TITLE = re.compile(r"^(Shape|Source|Sources|Differs):(?=\s)", re.MULTILINE)


def to_markdown(text: str) -> str:
    """A docstring with `.. math::`, `:math:` and `.. code-block::` as Markdown."""
    text = _BLOCK.sub(_block, text)
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


class MarkdownDocstrings(griffe.Extension):
    """Converts every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every object with a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
