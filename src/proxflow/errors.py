"""Errors with a message for the user: what was wrong, what was expected, how to mend it.

Every error that the library raises on purpose derives from :class:`ProxflowError`; the command line prints its message
without a traceback. Wrong arguments are also a :class:`ValueError`, so that callers need not import this module.
"""

from operator import index


class ProxflowError(Exception):
    """Base of every error raised on purpose."""


class ArgumentError(ProxflowError, ValueError):
    """An argument has a wrong value, shape or type."""


class DataError(ProxflowError, ValueError):
    """A data file or folder is missing, truncated, corrupt or of an unexpected form."""


class CheckpointError(ProxflowError, ValueError):
    """A weight file or model folder is missing, corrupt, or belongs to another architecture."""


class MissingPackageError(ProxflowError, ImportError):
    """A part of the library needs a package that is not installed."""


class UnsupportedPairError(ProxflowError, TypeError):
    """No rule is known for this divergence and belief family."""


class ConvergenceError(ProxflowError, RuntimeError):
    """A numerical proximal step did not converge for some examples."""


class DivergedError(ProxflowError, RuntimeError):
    """Training met a loss or gradient that is not finite."""


class MemoryLimitError(ProxflowError, MemoryError):
    """Memory ran out; the message suggests sizes to try."""


class OutputError(ProxflowError, OSError):
    """A result could not be written."""


def whole_number(value: object, what: str, least: int | None = None) -> int:
    """Return an integer of any type as an int.

    Raises:
        ArgumentError: It is not an integer, or lower than ``least``; the message begins with ``what``.
    """
    try:
        found = index(value)  # type: ignore[arg-type]
    except TypeError:
        found = None
    if found is None or (least is not None and found < least):
        bound = "" if least is None else f" of at least {least}"
        raise ArgumentError(f"{what} must be a whole number{bound}, got {value!r:.80}") from None
    return found
