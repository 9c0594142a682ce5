"""Locks of folders: one process at a time writes a run. A crash leaves no lock behind."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxflow.errors import OutputError

try:
    import fcntl
except ImportError:  # on systems without such locks, folders are not locked
    fcntl = None  # type: ignore[assignment]

_NAME = ".lock"
_held: dict[str, int] = {}
"""Real paths of the folders locked by this process, with counts."""

_handles: set[int] = set()
"""Open files that hold locks. Forked children inherit them, and would keep the locks of a parent that died."""

_guard = threading.Lock()


def _let_go() -> None:
    while _handles:
        os.close(_handles.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder within a block; the same process may lock it again.

    The system releases the lock when the process ends, in any way.

    Args:
        folder: An existing folder.
        what: What is done there, for the message.

    Raises:
        OutputError: Another process has it; the message says which.
    """
    place = os.path.realpath(folder)
    with _guard:
        again = place in _held
        _held[place] = _held.get(place, 0) + 1
    handle = None
    try:
        if not again and fcntl is not None:
            handle = _taken(Path(place) / _NAME, f"{what}, process {os.getpid()} on {platform.node()}", folder)
            if handle is not None:
                _handles.add(handle)
        yield
    finally:
        with _guard:
            _held[place] -= 1
            if not _held[place]:
                del _held[place]
        if handle in _handles:
            _handles.discard(handle)
            (Path(place) / _NAME).unlink(missing_ok=True)
            os.close(handle)


def _taken(path: Path, holder: str, folder: Path) -> int | None:
    """Return the open, locked file; ``None`` on a file system that has no locks."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            by = os.read(handle, 200).decode("utf-8", "replace").strip()
            os.close(handle)
            raise OutputError(
                f"{folder} is in use{f' by {by}' if by else ''}: wait for it to end, or choose another folder"
            ) from None
        except OSError:
            os.close(handle)
            return None
        try:
            if path.stat().st_ino == os.fstat(handle).st_ino:  # not removed by its former holder meanwhile
                os.ftruncate(handle, 0)
                os.write(handle, holder.encode("utf-8", "replace"))
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)
