"""Proximal flow networks: generative models that improve a belief step by step, with any divergence.

Names are imported at first use, so that ``import proxflow`` and ``proxflow --help`` start at once. They are listed,
with their modules, only in ``__init__.pyi``.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_LINES = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOME = {name: home for home, name in re.findall(r"^from proxflow\.?(\S*) import (\w+) as", _LINES, re.MULTILINE)}

__all__ = sorted(["__version__", *_HOME])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'proxflow' has no attribute {name!r}")
    home = _HOME[name]
    return getattr(import_module(f"proxflow.{home}"), name) if home else import_module(f"proxflow.{name}")


def __dir__() -> list[str]:
    return __all__
