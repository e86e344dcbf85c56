"""Names from elsewhere, safe to print: a file name may hold line breaks and control sequences of a terminal."""

import html


def printable(text: object) -> str:
    """The text with everything that does not print (control characters, marks of direction, broken UTF-8) escaped."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_html(text: object) -> str:
    """Printable text without tags."""
    return html.escape(printable(text))


def in_markdown(text: object) -> str:
    """Printable text that Markdown leaves as it is: without tags, nor bars that would end a cell of a table."""
    return in_html(text).replace("|", "\\|")
