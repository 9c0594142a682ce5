"""The command line: parses, runs, and turns every error raised on purpose into one line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

import proxflow
from proxflow.cli.options import Evaluate, Options, Reflow, Reproduce, Sample, Times, Train
from proxflow.errors import ArgumentError, CheckpointError, DataError, OutputError, ProxflowError

WRONG_INPUT, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143
"""Exit statuses: arguments or files are not as expected; the work itself failed; stopped by SIGINT; by SIGTERM."""

_DESCRIPTION = """Proximal flow networks: generative models that improve a belief step by step.

Begin with "proxflow sample", which draws digits from the model that comes with the package, or with "proxflow reproduce",
which repeats the paper's experiment. "proxflow COMMAND --help" explains a command; "proxflow --version" prints the version.

Exit status: 0 done; 1 the work failed; 2 wrong arguments or files; 130 interrupted; 143 terminated."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: The words after the program's name; ``None`` takes those of the process.

    Raises:
        SystemExit: Of status 2 for words that do not parse, of status 0 after ``--help``.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version"]:
        sys.stdout.write(f"proxflow {proxflow.__version__}\n")
        return 0
    try:
        options = _parse(words)
        from proxflow.cli import commands  # brings torch, which parsing and --help do without

        commands.run(options)
    except (ArgumentError, DataError, CheckpointError, OutputError) as error:
        return _fail(f"error: {error}", WRONG_INPUT)
    except ProxflowError as error:
        return _fail(f"error: {error}", FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted; give the same command again to go on", INTERRUPTED)
    except SystemExit as stop:
        if stop.code != TERMINATED:
            raise
        return _fail("terminated; give the same command again to go on", TERMINATED)
    except BrokenPipeError:  # whoever read our output has gone; Python would complain again when it closes it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _fail(f"error: {error}", FAILED)
    return 0


def _parse(words: list[str]) -> Options:
    kinds = {
        "sample": Sample,
        "train": Train,
        "reflow": Reflow,
        "times": Times,
        "evaluate": Evaluate,
        "reproduce": Reproduce,
    }
    commands = tuple(
        # The list of commands shows the first line of each, the command's own help all of it.
        Annotated[kind, tyro.conf.subcommand(name, description=None if name in words[:1] else _first_line(kind))]
        for name, kind in kinds.items()
    )
    kind: Any = Union[commands]  # noqa: UP007
    options: Options = tyro.cli(kind, prog="proxflow", description=_DESCRIPTION, args=words)
    return options


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"proxflow: {' '.join(message.split())}\n")
    return status
