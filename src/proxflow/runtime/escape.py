"""Texts that others chose, as names of files and folders, made harmless where they are shown."""

from __future__ import annotations

import html as _html
import re


def terminal(text: str) -> str:
    r"""Write what a terminal would obey or hide, and lone surrogates, as Python's texts do: ``\x1b``, ``\n``, ``\udce9``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def name(text: str) -> str:
    """Return the name of a file, or a word of the command line, as text: the same whatever the terminal's language is."""
    return terminal(text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))


def markdown(text: str) -> str:
    """Put a text on one line, with everything escaped that Markdown would read as markup."""
    flat = re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", terminal(" ".join(text.split())))
    return re.sub(r"^([-+=]|\d+[.)])(?=\s|$)", lambda found: found[1][:-1] + "\\" + found[1][-1], flat)


def html(text: str) -> str:
    """Put a text into a web page, in an element or an attribute."""
    return _html.escape(terminal_lines(text))


def terminal_lines(text: str) -> str:
    """Do as :func:`terminal`, and keep the ends of lines."""
    return "\n".join(map(terminal, text.split("\n")))
