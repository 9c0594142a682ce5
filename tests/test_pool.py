"""Pieces of work side by side: in order of need, once more after a crash, and stopped with the process that began them."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from proxflow.errors import DataError, ProxflowError
from proxflow.runtime.pool import Piece, work_through


def begin(folder):
    os.chdir(folder)


def note(name, *needed):
    assert all(Path(other).exists() for other in needed)
    Path(name).touch()


def die_until(name, times):
    """Die without a word, as for want of memory, so many times."""
    seen = Path(name).stat().st_size if Path(name).exists() else 0
    Path(name).write_bytes(b"x" * (seen + 1))
    if seen < times:
        os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    while not Path("waiting").exists():
        time.sleep(0.002)
    raise DataError("nothing to be read")


def wait():
    Path("waiting").write_text(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path("interrupted").touch()
        raise


def run(folder, *pieces, processes=2, say=lambda line: None):
    work_through(pieces, processes, begin, (folder,), say)


def test_pieces_wait_for_what_they_need(tmp_path):
    said = []
    pieces = [
        Piece("c", note, ("c", "a", "b"), after=("a", "b")),
        Piece("a", note, ("a",)),
        Piece("b", note, ("b", "a"), after=("a",)),
    ]
    run(tmp_path, *pieces, say=said.append)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}
    assert said[-1] == "100 % done"


def test_a_piece_whose_process_dies_is_named_and_done_once_more(tmp_path):
    said, others = [], [Piece(name, note, (name,)) for name in "abc"]
    run(tmp_path, Piece("mortal", die_until, ("tries", 1)), *others, say=said.append)
    assert [line for line in said if "%" not in line] == [
        "mortal: its process was ended, from outside or by a crash; once more"
    ]
    assert (tmp_path / "tries").read_bytes() == b"xx"
    assert all((tmp_path / name).exists() for name in "abc")
    with pytest.raises(ProxflowError, match="mortal: its process was ended twice"):
        run(tmp_path, Piece("mortal", die_until, ("again", 5)))
    assert (tmp_path / "again").read_bytes() == b"xx"


def test_an_error_is_the_pieces_own_and_stops_the_others(tmp_path):
    with pytest.raises(DataError, match="nothing to be read"):
        run(tmp_path, Piece("bad", refuse), Piece("long", wait), Piece("never", note, ("never",), after=("long",)))
    assert (tmp_path / "interrupted").exists()
    assert not (tmp_path / "never").exists()


def alone(folder):
    """What a command does that works with a pool."""
    try:
        run(folder, Piece("long", wait), Piece("never", note, ("never",), after=("long",)))
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_what_stops_the_process_that_began_them_stops_all(number, status, tmp_path):
    words = f"import test_pool; test_pool.alone({str(tmp_path)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", words],
        cwd=Path(__file__).parent,
        # Whoever started the tests in the background had interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until(lambda: (tmp_path / "waiting").exists() and (tmp_path / "waiting").read_text())
    os.kill(process.pid, number)
    assert process.wait(60) == status
    until(partial(dead, int((tmp_path / "waiting").read_text())))
    assert (tmp_path / "interrupted").exists() == (number != signal.SIGKILL)
    assert not (tmp_path / "never").exists()


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


def dead(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").exists() and ") Z" in Path(f"/proc/{process}/stat").read_text()
