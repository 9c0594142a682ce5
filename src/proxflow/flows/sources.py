"""Sources: distributions of prior draws of barycentric flows other than the standard normal."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from proxflow.errors import ArgumentError
from proxflow.random import BatchRows, Generator, Streams, rand


class Source(ABC):
    """A distribution of prior draws. Known elsewhere as a base or source distribution."""

    @abstractmethod
    def draw(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw (batch, *event)."""

    def log_prob(self, x: Tensor) -> Tensor | None:
        """Return the log density of draws (batch, *event) → (batch,); ``None`` if it is unknown."""
        return None


class Rows(Source):
    """The rows of a tensor, with equal probability, for a flow from data to data.

    Args:
        x: Real numbers (number, *event).

    Raises:
        ArgumentError: There are no rows, or they are not finite.
    """

    def __init__(self, x: Tensor) -> None:
        if not x.is_floating_point() or x.ndim < 2 or not x.numel() or not bool(x.isfinite().all()):
            raise ArgumentError(
                f"a source is finite real numbers (number, *event) or a torch distribution, got {x.dtype} {tuple(x.shape)}"
            )
        self.x = x

    def draw(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
        if tuple(shape[1:]) != tuple(self.x.shape[1:]):
            raise ArgumentError(f"the source has events {tuple(self.x.shape[1:])}, and {tuple(shape[1:])} are drawn")
        chance = rand(torch.Size([shape[0]]), generator, torch.float64, device)
        self.x = self.x.to(device)
        return self.x[(chance * len(self.x)).long().clamp_(max=len(self.x) - 1)].to(dtype)

    def __repr__(self) -> str:
        content = self.x.detach().cpu().double().contiguous().numpy().tobytes()
        return f"Rows({tuple(self.x.shape)}, sha256 {hashlib.sha256(content).hexdigest()[:16]})"


class Law(Source):
    """A torch distribution. It draws from torch's global generator, which is seeded for this and restored.

    Args:
        distribution: Distribution over events, or over the coordinates of an event: its shape broadcasts against the
            event's.
    """

    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution

    def draw(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
        def drawn(number: int, own: torch.Generator) -> Tensor:
            seed = int(torch.randint(2**62, (), generator=own, device=own.device))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return self.distribution.sample(torch.Size([number, *self._more(shape)]))

        made: Tensor = by_torch(drawn, shape[0], generator, lambda parts: torch.cat(list(parts)))
        return made.to(device, dtype)

    def _more(self, shape: Sequence[int]) -> list[int]:
        """Return the dimensions of an event that the distribution lacks."""
        event, own = list(shape[1:]), [*self.distribution.batch_shape, *self.distribution.event_shape]
        if own != event[len(event) - len(own) :]:
            raise ArgumentError(f"the source draws events {tuple(own)}, which are no end of {tuple(event)}")
        return event[: len(event) - len(own)]

    def log_prob(self, x: Tensor) -> Tensor:
        return self.distribution.log_prob(x).reshape(len(x), -1).sum(1)

    def __repr__(self) -> str:
        return f"Law({self.distribution!r})"


def source_of(given: Any) -> Source:
    """Return a source: the rows of a tensor, a torch distribution, or itself.

    Raises:
        ArgumentError: The argument is none of these.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, Distribution):
        return Law(given)
    if isinstance(given, Tensor):
        return Rows(given)
    raise ArgumentError(f"a source is a tensor, a torch distribution or a proxflow Source, got {type(given).__name__}")


def by_torch(
    draw: Callable[[int, torch.Generator], Any], batch: int, generator: Generator, join: Callable[[Sequence[Any]], Any]
) -> Any:
    """Draw with torch generators seeded by the library's streams, so that draws do not depend on the batch.

    Args:
        draw: Function of a number of rows and a torch generator that returns draws.
        batch: Number of rows.
        generator: Random generator, or streams.
        join: Function that concatenates draws.
    """
    if isinstance(generator, torch.Generator):
        return draw(batch, generator)
    if isinstance(generator, BatchRows):
        whole = draw(generator.batch, generator.generator)
        part = slice(generator.rows.start, generator.rows.stop)
        return whole[part] if isinstance(whole, Tensor) else whole.map(lambda tensor: tensor[part])
    return join([draw(1, own) for own in _own(generator, batch)])


def _own(streams: Streams, batch: int) -> list[torch.Generator]:
    """Return a torch generator for each row, seeded by the row's own stream."""
    seeds = streams.uniform(torch.Size([batch]), torch.float64).mul(2**53).long().tolist()
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
