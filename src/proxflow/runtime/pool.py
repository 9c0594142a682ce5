"""Independent pieces of work, in parallel processes. Imports no torch.

Small networks gain little from a second thread, and lose much if its core is busy; independent pieces use every core
fully. If a process dies, this is reported and its piece is repeated once; an interrupt reaches every piece, and all of
them end with the process that started them, however it ends.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from proxflow.errors import ProxflowError
from proxflow.runtime import progress

_LOOK = 0.2
"""Seconds between checks of progress."""


@dataclass(frozen=True)
class Piece:
    """An independent piece of work.

    Args:
        name: Unique name, for messages.
        do: A module-level function.
        words: Its arguments, which can be pickled.
        work: Amount of work, in the common unit of all pieces.
        after: Names of the pieces that must be finished before.
    """

    name: str
    do: Callable[..., None]
    words: tuple[Any, ...] = ()
    work: float = 1.0
    after: tuple[str, ...] = ()


class _Worker:
    """A process that does one piece at a time."""

    def __init__(self, context: Any, begin: Callable[..., None], given: tuple[Any, ...]) -> None:
        self.line, self._theirs = multiprocessing.Pipe()
        self.pool = ProcessPoolExecutor(1, context, _begin, (self._theirs, begin, given))
        self.share = 0.0

    def do(self, piece: Piece) -> Future[None]:
        self.heard()  # reports of the previous piece
        self.share = 0.0
        return self.pool.submit(_do, piece.do, piece.words)

    def heard(self) -> float:
        """Return the last reported fraction of its piece."""
        with suppress(EOFError, OSError):  # it has died, which its future reports
            while self.line.poll():
                self.share = self.line.recv()
        return self.share

    def interrupt(self) -> None:
        with suppress(OSError):  # it has died
            self.line.send(None)

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.line.close()
        self._theirs.close()


def work_through(
    pieces: Sequence[Piece],
    processes: int,
    begin: Callable[..., None],
    given: tuple[Any, ...],
    say: Callable[[str], None],
) -> None:
    """Run pieces of work in processes, in order, each as soon as those that it needs are finished.

    Args:
        pieces: What to do.
        processes: Number of processes.
        begin: Called in each process before its first piece; a module-level function. It sets the number of threads.
        given: Its arguments, which can be pickled.
        say: Called with a line when a piece is repeated.

    Raises:
        ProxflowError: A piece failed, with its own error, or its process died twice. Other running pieces are
            interrupted first.
        KeyboardInterrupt: The process was interrupted; ``SystemExit`` if it was terminated.
    """
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    work = {piece.name: piece.work for piece in pieces}
    waiting, done, died = list(pieces), set[str](), set[str]()
    workers = [_Worker(context, begin, given) for _ in range(min(processes, len(pieces)))]
    busy = dict[Future[None], tuple[_Worker, Piece]]()
    with _terminable(), _closing(workers), progress.bars(sum(work.values()), say) as show:
        while waiting or busy:
            taken = [worker for worker, _ in busy.values()]
            idle = [worker for worker in workers if worker not in taken]
            ready = [piece for piece in waiting if done.issuperset(piece.after)]
            for worker, piece in zip(idle, ready, strict=False):
                waiting.remove(piece)
                busy[worker.do(piece)] = worker, piece
            finished, _ = wait(busy, _LOOK, FIRST_COMPLETED)
            for future in finished:
                worker, piece = busy.pop(future)
                try:
                    future.result()
                    done.add(piece.name)
                except BrokenProcessPool as error:
                    if piece.name in died:
                        raise ProxflowError(
                            f"{piece.name}: its process was ended twice, from outside or for want of memory; free some, or "
                            "take fewer cores (taskset), and give the same command again, which goes on"
                        ) from error
                    died.add(piece.name)
                    say(f"{piece.name}: its process was ended, from outside or by a crash; once more")
                    worker.close()
                    workers[workers.index(worker)] = _Worker(context, begin, given)
                    waiting.insert(0, piece)
            running = {piece.name: worker.heard() for worker, piece in busy.values()}
            show(sum(work[name] for name in done) + sum(work[name] * share for name, share in running.items()), running)


@contextmanager
def _closing(workers: list[_Worker]) -> Iterator[None]:
    """Wait for all processes at the end; after an error, interrupt them first."""
    try:
        yield
    except BaseException:
        for worker in workers:
            worker.interrupt()
        raise
    finally:
        for worker in workers:
            worker.close()


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise ``SystemExit`` within the block."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# In a process of the pool --------------------------------------------------------------------------------------------

_stopped = threading.Event()


def _begin(line: Connection, begin: Callable[..., None], given: tuple[Any, ...]) -> None:
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # a terminal's interrupt goes to the parent, which forwards it to all
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_listen, args=(line,), daemon=True).start()
    progress.report_to(line.send)
    begin(*given)


def _listen(line: Connection) -> None:
    """Wait for an interrupt, and for the end of the parent process, which ends this one."""
    with suppress(EOFError, OSError):
        line.recv()
        _stopped.set()
        if hasattr(signal, "pthread_kill"):  # which also interrupts system calls
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            _thread.interrupt_main()
        line.recv()
    os._exit(1)


def _do(function: Callable[..., None], words: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if _stopped.is_set():
            raise KeyboardInterrupt
        function(*words)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
