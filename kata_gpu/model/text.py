"""Somebody else's words, made fit to be repeated: they begin no line and steer no terminal."""


def printable(text: str) -> str:
    """Return *text* with a question mark for each character that does not print."""
    return "".join(c if c.isprintable() else "?" for c in text)


def one_line(text: str) -> str:
    """Return the words of *text* with one space between each two, and nothing that is not one."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
