"""Outlines of networks: names and shapes of their weights, without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from proxflow.errors import ArgumentError

_FILLS = {"add_", "clamp_", "div_", "erfinv_", "fill_", "mul_", "normal_", "sub_", "uniform_", "zero_"}
_TABLES = {"arange", "full", "linspace", "logspace", "ones", "rand", "randn", "zeros"}
_SMALL = 2**22


@contextmanager
def outlined(tensors: int) -> Iterator[None]:
    """Let modules built in this context take no memory, draw no random numbers, and not import torch's compiler.

    Args:
        tensors: Largest number of tensors, as a file may claim any number of layers.

    Raises:
        ArgumentError: More tensors are created.
    """
    with torch.device("meta"), _Outline(tensors):
        yield


class _Outline(TorchFunctionMode):
    """A mode within ``torch.device("meta")``: weights stay empty, small tables are on the CPU, draws are zeros.

    Torch's arithmetic on meta tensors is written in Python and imports its compiler, which takes seconds.
    """

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self.left = tensors

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "empty" or name in _TABLES:  # other calls may not fail here: leaving no_grad is one
            self.left -= 1
            if self.left < 0:
                raise ArgumentError("another architecture: the model has many more layers than there are weights")
        if name in _FILLS:
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        if name in _TABLES and kwargs.get("device") is None and _count(name, args, kwargs) <= _SMALL:
            if name in ("rand", "randn"):  # no draw from the global generator
                func = torch.zeros
                kwargs.pop("generator", None)
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _count(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the number of elements of a table."""
    if name in ("linspace", "logspace"):
        return int(args[2] if len(args) > 2 else kwargs.get("steps", 0))
    if name == "arange":
        longest = max((abs(number) for number in args[:2]), default=kwargs.get("end", 0))
        return int(longest / abs(args[2] if len(args) > 2 else 1))
    listed = args[0] if args and isinstance(args[0], tuple | list) else [n for n in args if isinstance(n, int)]
    return torch.Size(kwargs.get("size") or listed).numel()
