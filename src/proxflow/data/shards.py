"""Tar files of WebDataset: a picture and its class for each example, under one name.

They are scanned once, header by header, and an index is saved beside them, so that any example can be read by itself.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxflow.data.left_out import LeftOut
from proxflow.data.pictures import ENDINGS, check_size, common_sides, fitted, header, opened
from proxflow.data.stored import Pictures
from proxflow.errors import DataError, OutputError
from proxflow.runtime.files import open_plain, stamp, write_json

PREFIX = "shards:"

_LOOKED_AT = 256
"""Number of pictures whose headers determine the shape of all."""

_LONGEST = 2**26
"""Largest picture, in bytes."""

Member = tuple[str, int, int, str | None]
"""Name, offset of the picture in the file, its size, and its class."""


def shard_files(pattern: str) -> list[Path]:
    """Return the files of a pattern with ranges as ``{000..127}`` and wildcards.

    Raises:
        DataError: A file of a range does not exist, or there are none; a range is invalid; the pattern is a URL.
    """
    if "://" in pattern:
        raise DataError(f"{PREFIX}{pattern}: addresses are not read: download the files, and give their names")
    names = _names(pattern)
    found = [sorted(glob.glob(name)) for name in names]
    files = [Path(file) for one in found for file in one]
    if not files:
        raise DataError(f"no tar files {pattern}: expected a name, as pictures-{{000..127}}.tar or pictures-*.tar")
    if missing := [name for name, one in zip(names, found, strict=True) if not one]:
        are = "is" if len(missing) == 1 else f"and {len(missing) - 1} more are"
        there = "the other one is" if len(files) == 1 else f"the other {len(files)} are"
        raise DataError(f"{missing[0]} {are} missing; {there} there")
    return files


def _names(pattern: str) -> list[str]:
    """Return the names of a pattern with ranges."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    if int(last) < int(first):
        raise DataError(f"the range {match[0]} of {pattern} counts down: give {{{last}..{first}}}")
    if int(last) - int(first) > 10**6:
        raise DataError(f"the range {match[0]} of {pattern} has more than a million numbers")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for k in range(int(first), int(last) + 1) for name in _names(f"{before}{k:0{len(first)}d}{after}")]


class Shards(Pictures):
    """The pictures of tar files.

    Args:
        pattern: Their names, see :func:`shard_files`.
        size: Side of the squares that pictures are scaled and cropped to; ``None`` for the medians of some, scaled down
            to a shorter side of at most 64.

    Raises:
        ArgumentError: The size is out of range.
        DataError: There are no files, or no picture in them.
    """

    def __init__(self, pattern: str, size: int | None = None) -> None:
        check_size(size)
        left_out = LeftOut()
        self.tars = shard_files(pattern)
        found = [_indexed(path, left_out) for path in self.tars]
        counts = torch.tensor([len(members) for members in found])
        number = int(counts.sum())
        if not number:
            raise DataError(f"{pattern}: holds no pictures ({', '.join(sorted(ENDINGS))}); left out: {left_out.text}")
        self.shard = torch.repeat_interleave(torch.arange(len(found)), counts)
        self.places = torch.tensor([member[1:3] for members in found for member in members])
        told = [member[3] for members in found for member in members]
        labels, classes = _classes(told, left_out)
        digest = hashlib.sha256(json.dumps([[list(m) for m in members] for members in found]).encode()).hexdigest()
        self.shape = (3, 1, 1)
        seen = []
        for k in torch.linspace(0, number - 1, min(_LOOKED_AT, number)).long().tolist():
            try:
                with opened(self.name(k), self._bytes(k)) as picture:
                    seen.append(header(picture))
            except DataError as error:
                left_out.add("pictures whose header cannot be read", error)
        if not seen:
            raise DataError(
                f"{pattern}: none of {min(_LOOKED_AT, number)} pictures can be read; left out: {left_out.text}"
            )
        height, width = common_sides([sides for sides, _ in seen], size)
        channels = 1 if all(grey for _, grey in seen) else 3
        alike = {sides for sides, _ in seen} == {(height, width)}
        super().__init__(
            (channels, height, width), number, labels, classes, f"{number} pictures of {len(found)} shards, sha256 {digest}",
            scaling="" if alike else f", scaled and cut to {height} x {width}", left_out=left_out,
        )  # fmt: skip

    def name(self, index: int) -> str:
        """Return the name of a picture, for messages."""
        return f"{self.tars[int(self.shard[index])]}, at byte {int(self.places[index, 0])}"

    def _bytes(self, index: int) -> bytes:
        start, size = self.places[index].tolist()
        try:
            with open_plain(self.tars[int(self.shard[index])]) as file:
                file.seek(start)
                found = file.read(size)
        except OSError as error:
            raise DataError(f"{self.name(index)}: cannot be read ({error.strerror or error})") from error
        if len(found) < size:
            raise DataError(f"{self.name(index)}: the file is cut short")
        return found

    def files(self, places: range) -> list[Path]:
        return [self.tars[k] for k in sorted(set(self.shard[places.start : places.stop].tolist()))]

    def checksum(self, index: int) -> bytes:
        try:
            return hashlib.sha256(self._bytes(index)).digest()
        except DataError:
            return b""

    def picture(self, index: int) -> Tensor:
        with opened(self.name(index), self._bytes(index)) as picture:
            return fitted(picture, self.shape, self.name(index), None, None)


def _indexed(path: Path, left_out: LeftOut) -> list[Member]:
    """Return the pictures of a tar file, from the index beside it or by scanning it.

    The index is valid if the file has the same size and modification time.
    """
    kept = path.with_name(f".{path.name}.index.json")
    own, now = LeftOut(), None
    with suppress(OSError):
        now = stamp(path)
    try:
        if now is not None and kept.exists():
            held = json.loads(kept.read_bytes())
            if held["form"] == 2 and held["file"] == now:
                left_out.found |= {reason: (number, example) for reason, number, example in held["left_out"]}
                return [(str(n), int(a), int(b), c) for n, a, b, c in held["members"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # read again
    members = list(_members(path, own))
    for reason, (number, example) in own.found.items():
        left_out.add(reason, example, number)
    told = [[reason, number, example] for reason, (number, example) in own.found.items()]
    if now is not None:
        with suppress(OutputError):  # otherwise it is scanned again the next time
            write_json(kept, {"form": 2, "file": now, "left_out": told, "members": members})
    return members


def _members(path: Path, left_out: LeftOut) -> Iterator[Member]:
    """Scan a tar file; yield each picture with its class, which is after or before it."""
    size = path.stat().st_size
    pictures: dict[str, tuple[int, int]] = {}
    classes: dict[str, str] = {}
    try:
        with open_plain(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                key, ending = f"{folder}/{key}", f".{ending.lower()}"
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    left_out.add("shards cut short", path.name)
                    break
                if ending in ENDINGS and member.size <= _LONGEST:
                    pictures[key] = (member.offset_data, member.size)
                elif ending in (".cls", ".txt", ".json") and member.size <= 2**20:
                    file.seek(member.offset_data)
                    if (told := _class(ending, file.read(member.size))) is not None:
                        classes.setdefault(key, told)
                else:
                    left_out.add("files of other kinds in shards", f"{path.name}/{member.name}")
            file.seek(tar.offset)
            if "shards cut short" not in left_out.found and len(file.read(512)) < 512:  # a complete file has end blocks
                left_out.add("shards cut short", path.name)
    except (tarfile.TarError, OSError, EOFError) as error:
        if not pictures:
            raise DataError(f"{path}: cannot be read as a tar file ({error})") from error
        left_out.add("shards cut short", path.name)
    yield from ((key, *place, classes.get(key)) for key, place in pictures.items())


def _class(ending: str, data: bytes) -> str | None:
    text = data.decode("utf-8", "replace").strip()
    if ending == ".cls":
        return text or None
    if ending == ".json":
        try:
            found: Any = json.loads(text)
        except ValueError:
            return None
        told = (
            next((found[name] for name in ("label", "class", "cls") if name in found), None)
            if isinstance(found, dict)
            else None
        )
        return None if told is None or isinstance(told, dict | list) else str(told)
    return None  # texts describe


def _classes(told: list[str | None], left_out: LeftOut) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the indices of classes among their names, in the order of their numbers or else of their names."""
    names = {name for name in told if name is not None}
    if not names:
        return None, ()
    ordered = sorted(names, key=(lambda name: int(name)) if all(name.isdecimal() for name in names) else None)
    place = {name: k for k, name in enumerate(ordered)}
    if lacking := sum(name is None for name in told):
        left_out.add("labels that are missing", "trained on without a class", lacking)
    return torch.tensor([-1 if name is None else place[name] for name in told]), tuple(ordered)
