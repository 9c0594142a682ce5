"""Reading of regular files only, and atomic writing: a crash, a full disk or a kill leaves the previous version intact."""

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
    """Delay an interrupt (SIGINT) until the end of the block; also a decorator, ``@uninterrupted()``.

    The safetensors library reports an interrupt within its work as a corrupt file.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # only the main thread can handle signals
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
    """A path is not a regular file, or one too large to be read."""


def check_plain(path: Path) -> None:
    """Refuse what is not a regular file before opening it: reading a pipe would block, and a device may be endless.

    Raises:
        OSError: It does not exist; :class:`NotPlainError` if it is a folder, pipe, socket or device.
    """
    _refuse(os.stat(path).st_mode)


def _refuse(mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = next((name for test, name in _NOT_PLAIN if test(mode)), "something else")
        raise NotPlainError(f"it is {what}, not a plain file")


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes.

    Raises:
        OSError: As :func:`check_plain`, or reading is not permitted.
    """
    check_plain(path)  # a device may act on being opened
    # A file put in its place meanwhile cannot make this block.
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
    """Read all bytes of a regular file.

    Raises:
        OSError: As :func:`open_plain`; :class:`NotPlainError` if it has more than ``largest`` bytes.
    """
    with open_plain(path) as file:
        # Not more than its size: a buffer of the allowed maximum would be large.
        content = file.read(min(os.fstat(file.fileno()).st_size, largest) + 1)
    if len(content) > largest:
        raise NotPlainError(f"it is larger than {largest / 2**20:g} MiB")
    return content


_SETTLED = 2 * 10**9


def stamp(path: Path) -> list[int] | None:
    """Return the size of a file in bytes and its modification time in ns, which reveal later changes.

    ``None`` if it changed within the last 2 seconds: file system clocks are coarse, so a further change might have the
    same time.

    Raises:
        OSError: There is no such file.
    """
    found = path.stat()
    return [found.st_size, found.st_mtime_ns] if abs(time.time_ns() - found.st_mtime_ns) > _SETTLED else None


def writable_folder(folder: Path) -> Path:
    """Make a folder and check that it is writable, before work starts.

    Temporary files of killed processes are removed, see :func:`sweep`.

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
    """Return 8 digits that identify the scope of process numbers: the machine since its boot, and a container."""
    told = [platform.node()]
    with suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        told.append(os.readlink("/proc/self/ns/pid"))
    return f"{zlib.crc32(repr(told).encode('utf-8', 'replace')):08x}"


def _token() -> str:
    """Return a unique part of temporary names: scope and number of the process, and 16 random digits."""
    return f"{_here()}{os.getpid():08x}{secrets.token_hex(8)}"


_TEMPORARY = re.compile(r"\..{1,40}\.([0-9a-f]{8})([0-9a-f]{8})[0-9a-f]{16}(\.[^.]*)?", re.DOTALL)
_UNFINISHED = re.compile(r"\.(step-[0-9]{8}|removed-[0-9a-f]{16})")
"""Names of temporary files, see :func:`_token`, and of folders of incomplete checkpoints."""


def sweep(folder: Path, *, owned: bool = False) -> None:
    """Remove the temporary files of killed processes in a folder; those of living processes stay.

    Args:
        folder: The folder.
        owned: Whether no other process writes in it or its subfolders: then these are swept as well, including
            incomplete checkpoints and files of processes on other machines. Links are not followed.
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
    """Return whether a file was finished since :func:`begin_writing`."""
    return _written.is_set()


def begin_writing() -> None:
    """Reset :func:`anything_written` at the start of a command."""
    _written.clear()


def write_atomically(path: Path, write: Callable[[Path], None], *, flush: bool = True) -> None:
    """Call ``write`` with a temporary name beside ``path``, flush the file to disk and rename it into place.

    The temporary file is created first, with an unpredictable name: nothing is written through a link. A link at
    ``path`` is replaced by the file. Its mode is 666 less the umask, whatever ``write`` sets.

    Args:
        path: The file.
        write: Function that writes the file of a given name.
        flush: Whether to wait for the disk; without it a crash of the machine may leave the new file truncated.

    Raises:
        OutputError: The file cannot be written; a previous version is left unchanged.
    """
    # The suffix stays last: some writers choose the format by it. A long name is shortened.
    temporary = path.with_name(f".{path.stem[:40]}.{_token()}{path.suffix}")
    try:
        handle = os.open(temporary, os.O_WRONLY | _NEW, 0o666)
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
        finally:
            os.close(handle)
        write(temporary)
        # Some writers create their own file there, readable only by its owner.
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
    """Append to a text file, created if needed; never through a link.

    Raises:
        OutputError: It cannot be written, or is not a regular file.
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
    """Flush a folder's entries to disk, if the system supports it."""
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
        CheckpointError: The file is missing, unreadable, too large, not a regular file or not JSON.
    """
    try:
        return json.loads(read_plain(path).decode("utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable as JSON: {error}") from error
