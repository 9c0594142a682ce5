"""The command line."""

from proxflow.cli.main import main

__all__ = ["main"]
