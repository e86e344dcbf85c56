"""Names from elsewhere, safe to print: a file name may hold line breaks and control sequences of a terminal."""


def printable(text: object) -> str:
    """The text with everything that does not print (control characters, marks of direction, broken UTF-8) escaped."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
