"""Make text from files and users safe to print: a file name may hold line breaks or terminal control sequences."""

import html


def escape_unprintable(text: object) -> str:
    """Escape every character that does not print: control characters, text direction marks, broken UTF-8."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_html(text: object) -> str:
    """Escape text for HTML."""
    return html.escape(escape_unprintable(text))


def in_markdown(text: object) -> str:
    """Escape text for a table cell in Markdown: no HTML tags and no `|`."""
    return in_html(text).replace("|", "\\|")
