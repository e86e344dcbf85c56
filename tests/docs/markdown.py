"""What Markdown files hold: fenced blocks, command lines, links, headings."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]

#: The README, the guide for contributors, and the pages of the site.
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]

#: All that users read. The changelog names commands of earlier versions.
MARKDOWN = [
    *PAGES,
    *(REPOSITORY / name for name in ("SECURITY.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md")),
    *sorted(path for folder in ("configs", "datasets", "pcattn") for path in (REPOSITORY / folder).rglob("*.md")),
]

_BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    title: str  #: name of the file that it is, or empty
    text: str
    line: int  #: of its first line in the file


def name(path: Path) -> str:
    """A file as tests call it."""
    return path.relative_to(REPOSITORY).as_posix()


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a file."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        language = match[2].split()[0] if match[2].strip() else ""
        title = _TITLE.search(match[2])
        found.append(Block(language, title[1] if title else "", match[3], text.count("\n", 0, match.start(3)) + 1))
    return found


def commands(path: Path) -> Iterator[list[str]]:
    """The words of each line `pcattn ...`, without that word."""
    for block in blocks(path):
        if block.language not in ("", "bash", "console", "shell"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(re.sub(r"\$\w+", "0", line), comments=True)  # variables of a loop
            except ValueError:  # not a command line
                continue
            if words and Path(words[0]).name == "pcattn":
                yield words[1:]


def links(path: Path) -> list[str]:
    """The targets of the links and pictures of a file, outside code."""
    text = re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", path.read_text(encoding="utf-8")))
    return _LINK.findall(text)


def anchors(path: Path) -> set[str]:
    """The anchors of the headings of a file."""
    text = _BLOCK.sub("", path.read_text(encoding="utf-8"))
    found = set(re.findall(r"\{#([\w-]+)\}", text))
    for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-"))
    return found
