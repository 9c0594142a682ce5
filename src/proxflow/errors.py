"""Errors with a message for the user: what was wrong, what was expected, how to mend it.

Every error that the library raises on purpose derives from :class:`ProxflowError`; the command line prints its message
without a traceback. Wrong arguments are also :class:`ValueError`, so that callers need not know this module.
"""


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
    """Memory ran out; the message names sizes to try."""


class OutputError(ProxflowError, OSError):
    """A result could not be written."""
