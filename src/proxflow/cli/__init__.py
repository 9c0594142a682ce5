"""The command line: one file for each command, with its options and its work."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: Arguments after the program's name; ``None`` takes those of the process.

    Raises:
        SystemExit: Status 2 for arguments that do not parse, status 0 after ``--help``.
    """
    try:
        from proxflow.cli.run import run
    except KeyboardInterrupt:
        return 130
    return run(arguments)
