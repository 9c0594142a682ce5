"""Text: the embedded corpus, text files and folders of them, and text reduced to letters.

The corpus is the King James Version of the Bible, in the public domain; see ``files/LICENSE`` for its origin. Each
verse is a line, and chapters are separated by blank lines.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
from collections.abc import Iterator
from pathlib import Path

from proxflow.errors import DataError
from proxflow.runtime.files import open_plain

BIBLE = Path(__file__).parent / "files" / "kjv.txt.xz"
SHA256 = "6b40e3f13a6cf83937165995b4868d7eb1f429d0c96ddb8574bea5544101a914"
"""Checksum of the decompressed corpus."""

LETTERS = " abcdefghijklmnopqrstuvwxyz"
"""The 27 symbols of text8."""

LARGEST = 2**31
"""Largest size of text in bytes."""

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def load_bible(path: Path = BIBLE) -> str:
    """Read the embedded corpus, 4,139,037 characters.

    Raises:
        DataError: The file is missing, or its content has another sha256 than the original.
    """
    try:
        with open_plain(path) as file, lzma.open(file, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read ({error}); reinstall it") from error
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise DataError(f"{path}: sha256 of the content is {found}, expected {SHA256}; reinstall it")
    return content.decode()


def letters(text: str) -> str:
    """Reduce text to :data:`LETTERS` as in the data set text8: lower case, digits spelt out, a space for all else."""
    spelt = re.sub("[0-9]", lambda found: f" {_DIGITS[int(found[0])]} ", text.lower())
    return re.sub("[^a-z]+", " ", spelt).strip()


def text_files(source: Path, exclude: Path | None = None) -> list[Path]:
    """Return the documents of a source: the file, or all .txt files of a folder and its subfolders, by name.

    Args:
        source: File or folder.
        exclude: A folder whose files are skipped.

    Raises:
        DataError: There is no such source, or a folder without text.
    """
    if not os.path.isdir(source):
        return [source]
    found = sorted(file for file in _below(source) if exclude is None or not file.resolve().is_relative_to(exclude))
    if not found:
        raise DataError(f"the folder {source} holds no files .txt: give a folder of text files, or one text file")
    return found


def holds_text(folder: Path) -> bool:
    """Return whether a folder or its subfolders contain a .txt file."""
    return next(_below(folder), None) is not None


def _below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(".txt"):
                yield Path(place) / name


def read_bytes(path: Path) -> bytes:
    """Read a text file unchanged.

    Raises:
        DataError: It does not exist, cannot be read, is empty or larger than :data:`LARGEST`.
    """
    try:
        with open_plain(path) as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist; expected a text file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a text file") from error
    if not content:
        raise DataError(f"{path}: is empty; expected a text file to learn from")
    if len(content) > LARGEST:
        raise DataError(f"{path}: is larger than {LARGEST} bytes; give a part of it")
    return content


def read_text(path: Path) -> str:
    r"""Read a text file in UTF-8; ``\r\n`` becomes ``\n``, and a byte order mark is left out.

    Raises:
        DataError: As :func:`read_bytes`, or it is not UTF-8; the message has the position.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte 0x{content[error.start]:02x} at place {error.start} is no UTF-8: save the file as UTF-8, or give "
            "--tokens bytes, which reads any file"
        ) from error
    return text.replace("\r\n", "\n")
