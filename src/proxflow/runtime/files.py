"""Reading plain files alone, and writing so that a crash, a full disk or a kill leaves the previous version whole."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import signal
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from types import FrameType
from typing import Any

from proxflow.errors import CheckpointError, OutputError


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let an interrupt (SIGINT) wait for the end of the block; also a decorator, ``@uninterrupted()``.

    The safetensors library takes an interrupt within its work for a corrupt file.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # only the main thread may handle signals, and here nobody does
        return
    waiting: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            before(*waiting[0])


LARGEST_TEXT = 2**26
"""Bytes of the largest text or JSON file that is read, 64 MiB: no file may claim unbounded memory."""

_NOT_PLAIN = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotPlainError(OSError):
    """A path names no plain file, or one too large to be read."""


def check_plain(path: Path) -> None:
    """Refuse what is no plain file, before it is opened: reading a pipe would wait, and a device need not end.

    Raises:
        OSError: It does not exist; :class:`NotPlainError` if it is a folder, pipe, socket or device.
    """
    _refuse(os.stat(path).st_mode)


def _refuse(mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = next((name for test, name in _NOT_PLAIN if test(mode)), "something else")
        raise NotPlainError(f"it is {what}, not a plain file")


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file to read its bytes.

    Raises:
        OSError: As :func:`check_plain`, or it may not be read.
    """
    check_plain(path)  # a device may act on being opened
    # What was put in its place since cannot make this wait.
    handle = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        _refuse(os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NEW = os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | _FLAGS


def read_plain(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """Read all bytes of a plain file.

    Raises:
        OSError: As :func:`open_plain`; :class:`NotPlainError` where there are more than ``largest`` bytes.
    """
    with open_plain(path) as file:
        # No more than there is: a buffer of the most that is allowed would itself be large.
        content = file.read(min(os.fstat(file.fileno()).st_size, largest) + 1)
    if len(content) > largest:
        raise NotPlainError(f"it is larger than {largest / 2**20:g} MiB")
    return content


_SETTLED = 2 * 10**9


def stamp(path: Path) -> list[int] | None:
    """Return the size of a file in bytes and the time of its last change in ns, by which another change shows.

    ``None`` where it changed within the last 2 seconds: the clocks of file systems are coarse, so another change might have
    the same time.

    Raises:
        OSError: There is no such file.
    """
    found = path.stat()
    return [found.st_size, found.st_mtime_ns] if abs(time.time_ns() - found.st_mtime_ns) > _SETTLED else None


def writable_folder(folder: Path) -> Path:
    """Make a folder and prove that it can be written to, before any work is done for it.

    What killed processes left there is removed, see :func:`sweep`.

    Raises:
        OutputError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{_token()}"
        os.close(os.open(probe, os.O_WRONLY | _NEW))
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = "it is a file; expected a folder" if isinstance(error, FileExistsError) else _reason(error)
        raise OutputError(f"cannot write to the folder {folder}: {reason}") from error
    sweep(folder)
    return folder


def _here() -> str:
    """Return 8 digits that tell where process numbers are counted: the machine since it was started, and a container."""
    told = [platform.node()]
    with suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        told.append(os.readlink("/proc/self/ns/pid"))
    return f"{zlib.crc32(repr(told).encode('utf-8', 'replace')):08x}"


def _token() -> str:
    """Return what no other temporary name has: where the process is, its number, and 16 digits that nobody can know."""
    return f"{_here()}{os.getpid():08x}{secrets.token_hex(8)}"


_TEMPORARY = re.compile(r"\..{1,40}\.([0-9a-f]{8})([0-9a-f]{8})[0-9a-f]{16}(\.[^.]*)?", re.DOTALL)
_UNFINISHED = re.compile(r"\.(step-[0-9]{8}|removed-[0-9a-f]{16})")
"""Names of temporary files, see :func:`_token`, and of folders of checkpoints that are not whole."""


def sweep(folder: Path, *, owned: bool = False) -> None:
    """Remove the temporary files that killed processes left in a folder; those of living processes stay.

    Args:
        folder: The folder.
        owned: Whether no other process writes in it, or in folders within it: then these are swept as well, of
            checkpoints that are not whole, too, and of what processes on other machines left. Links are not followed.
    """
    here = _here()
    for place, folders, names in os.walk(folder):
        for name in names:
            found = _TEMPORARY.fullmatch(name)
            if found and (owned if found[1] != here else not _lives(int(found[2], 16))):
                _forget(Path(place) / name)
        if not owned:
            return
        for name in filter(_UNFINISHED.fullmatch, folders):
            shutil.rmtree(Path(place) / name, ignore_errors=True)


def _lives(process: int) -> bool:
    if process == os.getpid() or os.name != "posix":  # elsewhere signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


_written = threading.Event()


def anything_written() -> bool:
    """Tell whether a file was put in its place since :func:`begin_writing`."""
    return _written.is_set()


def begin_writing() -> None:
    """Forget what was written before, as a command begins."""
    _written.clear()


def write_atomically(path: Path, write: Callable[[Path], None], *, flush: bool = True) -> None:
    """Call ``write`` with a temporary name beside ``path``, flush the file to disk and rename it into place.

    The temporary file is made first, under a name that nobody can know: nothing is written through a link. A link in the
    place of ``path`` gives way to the file. Its mode is what the umask leaves of 666, whatever ``write`` makes it.

    Args:
        path: The file.
        write: Writes the file of the name that it is called with.
        flush: Whether to wait for the disk; without it a crash of the machine may leave the new name with less content.

    Raises:
        OutputError: The file cannot be written; a previous version is left as it was.
    """
    # The ending stays last: some writers choose the format by it. A long name leaves no room for more.
    temporary = path.with_name(f".{path.stem[:40]}.{_token()}{path.suffix}")
    try:
        handle = os.open(temporary, os.O_WRONLY | _NEW, 0o666)
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
        finally:
            os.close(handle)
        write(temporary)
        # Some writers put a file of their own there, which only its owner can read.
        handle = os.open(temporary, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | _FLAGS)
        try:
            _refuse(os.fstat(handle).st_mode)
            if hasattr(os, "fchmod"):
                os.fchmod(handle, mode)
            if flush:
                os.fsync(handle)
        finally:
            os.close(handle)
        with uninterrupted():
            temporary.replace(path)
            _written.set()
    except (OSError, UnicodeEncodeError) as error:
        _forget(temporary)
        raise OutputError(f"cannot write {path}: {_reason(error)}") from error
    except BaseException:
        _forget(temporary)
        raise


def _forget(temporary: Path) -> None:
    with suppress(OSError, ValueError):
        temporary.unlink()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def append_text(path: Path, text: str) -> None:
    """Append to a text file, which is made if need be; never through a link.

    Raises:
        OutputError: It cannot be written, or is no plain file.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | _FLAGS, 0o666)
        with os.fdopen(handle, "a", encoding="utf-8") as file:
            _refuse(os.fstat(handle).st_mode)
            file.write(text)
    except OSError as error:
        reason = "it is a link, and links are not written through" if path.is_symlink() else _reason(error)
        raise OutputError(f"cannot write {path}: {reason}") from error


def flush_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically.

    Raises:
        OutputError: It cannot be written, or JSON cannot hold it, as NaN.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OutputError(f"cannot write {path}: JSON cannot hold what belongs there ({error})") from error
    write_text(path, text + "\n")


def _no_number(name: str) -> None:
    raise ValueError(f"it has {name}, which is no number of JSON")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of at most :data:`LARGEST_TEXT` bytes.

    Raises:
        CheckpointError: The file is missing, unreadable, too large, no plain file or not JSON.
    """
    try:
        return json.loads(read_plain(path).decode("utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable as JSON: {error}") from error
