"""The interface of beliefs: distributions over data given by their parameters, one per example of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.random import Generator


class Belief(ABC):
    """A batch of distributions over events.

    Subclasses are frozen dataclasses of tensors, batch first, and final: do not derive from them. Example i of every
    tensor belongs to example i of the batch.
    """

    factorised: bool = False
    """Whether the coordinates of an event are independent, so that :meth:`sites` may split them."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Number of examples."""

    if TYPE_CHECKING:  # a property in some subclasses, a field in others, which ABC cannot express

        @property
        def mean(self) -> Tensor:
            """Expected event, (batch, *event); for categories their probabilities (batch, *event, classes)."""

    @property
    @abstractmethod
    def mode(self) -> Tensor:
        """Most probable event, (batch, *event)."""

    @abstractmethod
    def sample(self, generator: Generator) -> Tensor:
        """Draw one event per example, (batch, *event)."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density (nats) of the events ``x`` (batch, *event) → (batch,).

        Raises:
            ArgumentError: ``x`` has another shape.
        """

    @abstractmethod
    def coordinates(self) -> Tensor:
        """Return unconstrained coordinates, (batch, number): any real vector is a valid belief of the family."""

    @abstractmethod
    def at(self, coordinates: Tensor) -> Self:
        """Make the belief of this family and shape with the given coordinates; inverse of :meth:`coordinates`."""

    def features(self) -> Tensor:
        """Return the network's input for the belief, (batch, …): the mean, unless a family has more.

        Along the flows' paths the standard deviation of Gaussian beliefs is a function of time only.
        """
        return self.mean

    def sites(self) -> Self:
        """Return each coordinate of each event as a separate example, (batch · sites, 1); only if ``factorised``."""
        raise ArgumentError(f"{type(self).__name__} does not factorise over the coordinates of an event")

    def unsites(self, sites: Self) -> Self:
        """Undo :meth:`sites`, with the event shape of this belief."""
        raise ArgumentError(f"{type(self).__name__} does not factorise over the coordinates of an event")

    def tensors(self) -> dict[str, Tensor]:
        """Return every parameter tensor, by name."""
        return {name: getattr(self, name) for name in self.__match_args__}  # type: ignore[attr-defined]

    def shapes(self) -> list[torch.Size]:
        """Return their shapes, in the same order."""
        return [tensor.shape for tensor in self.tensors().values()]

    def with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        """Make the belief of this family with the given parameter tensors; inverse of :meth:`tensors`."""
        values: dict[str, Any] = tensors
        return type(self)(**values)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``fn`` to every tensor, e.g. ``belief.map(torch.Tensor.double)`` or ``belief.map(lambda a: a[:4])``."""
        return self.with_tensors({name: fn(tensor) for name, tensor in self.tensors().items()})

    def _repr_html_(self) -> str:
        from proxflow.beliefs.shown import as_html

        return as_html(self)

    @staticmethod
    def _check_event(x: Tensor, shape: torch.Size) -> None:
        if x.shape != shape:
            raise ArgumentError(f"expected events of shape {tuple(shape)}, got {tuple(x.shape)}")
