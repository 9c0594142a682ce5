"""Escaping of untrusted texts, as names of files and folders, for display."""

from __future__ import annotations

import html as _html
import re


def terminal(text: str) -> str:
    r"""Escape control and invisible characters and lone surrogates as in Python strings: ``\x1b``, ``\n``, ``\udce9``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def name(text: str) -> str:
    """Return a file name, or an argument of the command line, as text, independent of the terminal's locale."""
    return terminal(text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))


def markdown(text: str) -> str:
    """Return a text on one line with Markdown markup escaped."""
    flat = re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", terminal(" ".join(text.split())))
    return re.sub(r"^([-+=]|\d+[.)])(?=\s|$)", lambda found: found[1][:-1] + "\\" + found[1][-1], flat)


def html(text: str) -> str:
    """Escape a text for HTML, in an element or an attribute."""
    return _html.escape(terminal_lines(text))


def terminal_lines(text: str) -> str:
    """Escape as :func:`terminal`, but keep line ends."""
    return "\n".join(map(terminal, text.split("\n")))
