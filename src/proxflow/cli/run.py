"""Parse a command's arguments, run it, and turn every intended error into one line and an exit status."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib import import_module
from typing import Annotated, Any, Union

import proxflow
from proxflow.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    MemoryLimitError,
    OutputError,
    ProxflowError,
)
from proxflow.runtime.escape import terminal
from proxflow.runtime.files import anything_written, begin_writing

WRONG_INPUT, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143
"""Exit statuses: arguments or files are not as expected; the work itself failed; stopped by SIGINT; by SIGTERM."""

COMMANDS = (
    "sample",
    "restore",
    "prepare",
    "train",
    "reflow",
    "times",
    "evaluate",
    "reproduce",
    "export",
    "page",
    "list",
)
_GO_ON = ("prepare", "train", "reflow", "reproduce")
"""Each command is a module beside this one, with a class of options whose docstring is the help, and
``run(options, device)``. Those in ``_GO_ON`` resume when they are repeated."""

_DESCRIPTION = """Proximal flow networks: generative models that improve a belief step by step.

Begin with "proxflow sample", which draws digits from the model that comes with the package, or with "proxflow reproduce",
which repeats the paper's experiment. "proxflow COMMAND --help" explains a command, "proxflow list" shows every name that an
option takes, and "proxflow --version" prints the version.

Exit status: 0 done; 1 the work failed; 2 wrong arguments or files; 130 interrupted; 143 terminated."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, see :func:`proxflow.cli.main`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows missing characters as \\u2026
            stream.reconfigure(errors="backslashreplace")
    begin_writing()
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version"]:
        sys.stdout.write(f"proxflow {proxflow.__version__}\n")
        return 0
    try:
        _work(_parse(words))
    except (ArgumentError, DataError, CheckpointError, OutputError) as error:
        return _fail(f"error: {error}", WRONG_INPUT)
    except ProxflowError as error:
        return _fail(f"error: {error}", FAILED)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {_left(words)}", INTERRUPTED)
    except SystemExit as stop:
        if stop.code != TERMINATED:
            raise
        return _fail(f"terminated; {_left(words)}", TERMINATED)
    except BrokenPipeError:  # the reader has gone; Python would fail again when it closes the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _fail(f"error: {error}", FAILED)
    return 0


def _left(words: list[str]) -> str:
    """Say what an interrupted command has left."""
    if words[:1] and words[0] in _GO_ON:
        return "give the same command again to go on"
    return (
        "what was written is whole; give the same command again for the rest"
        if anything_written()
        else "nothing was written"
    )


def _parse(words: list[str]) -> Any:
    import tyro

    kinds = tuple(
        # The list of commands shows the first line of each docstring, a command's own help all of it.
        Annotated[kind, tyro.conf.subcommand(name, description=None if name in words[:1] else _first_line(kind))]
        for name, kind in (
            (name, getattr(import_module(f"proxflow.cli.{name}"), name.capitalize())) for name in COMMANDS
        )
    )
    union: Any = Union[kinds]  # noqa: UP007
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            options = tyro.cli(union, prog="proxflow", description=_DESCRIPTION, args=words)
    except SystemExit as stop:
        if stop.code != WRONG_INPUT or not told.getvalue():
            raise
        raise ArgumentError(_sentence(told.getvalue(), words)) from None
    if words.count("--class") > 1:  # of other options the last one counts, as usual
        raise ArgumentError("--class is given twice: name all classes behind one, as --class 3 7")
    if "--class" in words and not options.classes:  # as an empty variable of a shell leaves it
        raise ArgumentError(
            "--class names no class: give some, as --class 3 7, or leave it out to draw of all as the data were"
        )
    return options


def _sentence(page: str, words: list[str]) -> str:
    """Return the parser's page of errors as one sentence, or its beginning if it is not recognised."""
    title, *lines = (line.strip("│|╭╰╮╯+ ") for line in page.splitlines())
    parts = "\n".join("" if set(line) <= {"─", "-"} else line for line in lines).strip()  # between rules
    begin, _, rest = parts.partition("\n\n")
    title, told = title.strip("─- "), " ".join(begin.split())
    if not words or words[0] not in COMMANDS:
        wrong = f"there is no command {words[0]!r:.80}" if words else title
        return f"{wrong}: expected one of {', '.join(COMMANDS)}"
    command = f"proxflow {words[0]}"
    mend = f"; see {command} --help"
    if found := re.match(r"Unrecognized .*?options: (\S+?)(,| |$)", told):
        offered = re.findall(r"^(--[\w-]+)(.*(?:\n(?!--).*)*)", rest, re.MULTILINE)
        meant = [name for name, where in offered if f"in {command} --help" in where]
        hint = f"; did you mean {' or '.join(meant)}?" if meant else mend
        return f"{words[0]} takes no {'option ' if found[1].startswith('-') else 'further word '}{found[1]}{hint}"
    if needed := re.findall(r"^--.*", begin, re.MULTILINE) if told.startswith("Missing from") else []:
        return f"{words[0]} needs {' and '.join(needed)}{mend}"
    whole = " ".join(parts.split())
    for shown, wanted in (
        (r"invalid literal for int\(\) with base 10: ('.*?')", "a whole number"),
        (r"could not convert string to float: ('.*?')", "a number"),
        (r"invalid choice ('.*?') for argument", ""),
    ):
        option, value = re.search(r"(?:parsing|argument) '?(--[\w-]+)", whole), re.search(shown, whole)
        if option and value:
            choices = re.findall(r"'(.*?)'", whole.partition("Expected one of")[2])
            wanted = wanted or ", ".join(sorted({*choices} - {"None"}))
            return f"{option[1]}: expected {wanted}, got {value[1]}{mend}"
    return f"{(told or title).rstrip('.')}{mend}"


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _work(options: Any) -> None:
    """Run a command.

    Raises:
        ProxflowError: Any error of the library; this class itself when memory ran out.
    """
    module = sys.modules[type(options).__module__]
    seed = getattr(getattr(options, "training", options), "seed", 0)
    if not 0 <= seed < 2**63:
        raise ArgumentError(f"--seed must be at least 0 and below 2^63, got {seed}")
    if not hasattr(options, "device"):
        module.run(options)
        return
    from safetensors import SafetensorError

    from proxflow.cli._common import device_of
    from proxflow.runtime.machine import out_of_memory, take_free_cores
    from proxflow.runtime.processes import joined

    try:
        with joined(device_of(options.device)) as device:
            if device.type == "cpu":
                take_free_cores()
            module.run(options, device)
    except MemoryLimitError:
        raise
    except SafetensorError as error:  # from writing: reading such files has its own error
        raise OutputError(f"cannot write the weights: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            reason = " ".join(str(error).split())[:200]
            raise ProxflowError(f"the network cannot be compiled here, leave out --compile: {reason}") from error
        if not out_of_memory(error):
            raise
        raise ProxflowError(f"out of memory: {options.with_less_memory}") from error


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"proxflow: {terminal(' '.join(message.split()))}\n")
    return status
