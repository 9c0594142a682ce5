"""Products of independent beliefs, for mixed data such as numbers and categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from proxflow.beliefs.base import Belief
from proxflow.errors import ArgumentError
from proxflow.random import Generator


@dataclass(frozen=True, eq=False)
class Product(Belief):
    """Independent beliefs of several families over the columns of one table.

    An event is a row, (batch, columns): the parts' flattened events concatenated in order, with classes as their
    indices. Rows are floating point, as the parameters: float32 holds every class index up to 2²⁴.

    Args:
        parts: Beliefs of one batch size, at least one.

    Raises:
        ArgumentError: No parts, or parts of different batch sizes.
    """

    parts: tuple[Belief, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        sizes = [part.batch_size for part in self.parts]
        if not sizes or any(size != sizes[0] for size in sizes):
            raise ArgumentError(f"a product needs parts, all of one batch size; got batch sizes {sizes}")

    @property
    def batch_size(self) -> int:
        return self.parts[0].batch_size

    @property
    def mean(self) -> Tensor:
        """Expected rows, in which a category has a column for each class, with its probability."""
        return torch.cat([_flat(part.mean) for part in self.parts], dim=1)

    @property
    def mode(self) -> Tensor:
        return self._row([part.mode for part in self.parts])

    def sample(self, generator: Generator) -> Tensor:
        return self._row([part.sample(generator) for part in self.parts])

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.stack([p.log_prob(event) for p, event in zip(self.parts, self.split(x), strict=True)]).sum(0)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each part's events, in its own shape and type, from rows (batch, columns).

        Raises:
            ArgumentError: ``x`` has another shape.
        """
        modes = [part.mode for part in self.parts]
        widths = [mode.shape[1:].numel() for mode in modes]
        self._check_event(x, torch.Size([self.batch_size, sum(widths)]))
        return tuple(a.reshape(m.shape).to(m.dtype) for a, m in zip(torch.split(x, widths, dim=1), modes, strict=True))

    def coordinates(self) -> Tensor:
        """Return those of the parts, concatenated."""
        return torch.cat([part.coordinates() for part in self.parts], dim=1)

    def at(self, coordinates: Tensor) -> Self:
        widths = [part.coordinates().shape[1] for part in self.parts]
        return type(self)(
            tuple(p.at(a) for p, a in zip(self.parts, torch.split(coordinates, widths, dim=1), strict=True))
        )

    def features(self) -> Tensor:
        """Return those of the parts, flattened and concatenated, (batch, …)."""
        return torch.cat([_flat(part.features()) for part in self.parts], dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """Return every parameter tensor of every part, by the part's number and the tensor's name: ``0.mean``."""
        return {f"{i}.{name}": a for i, part in enumerate(self.parts) for name, a in part.tensors().items()}

    def with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        def of(i: int) -> dict[str, Tensor]:
            return {n.partition(".")[2]: a for n, a in tensors.items() if n.partition(".")[0] == str(i)}

        return type(self)(tuple(part.with_tensors(of(i)) for i, part in enumerate(self.parts)))

    def _row(self, events: list[Tensor]) -> Tensor:
        dtype = next(iter(self.tensors().values())).dtype
        return torch.cat([_flat(a).to(dtype) for a in events], dim=1)


def _flat(a: Tensor) -> Tensor:
    return a.reshape(a.shape[0], -1)
