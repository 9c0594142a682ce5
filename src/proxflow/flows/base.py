"""What a flow is, and the times its training draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from proxflow.beliefs import Belief
from proxflow.couplings import Coupling
from proxflow.errors import ArgumentError
from proxflow.paths import GaussianPath
from proxflow.random import Generator, rand

B = TypeVar("B", bound=Belief)
Predict = Callable[[Any, Tensor], Any]
"""A belief of the flow's family and times (batch,) → the predicted target, a belief of the same family."""


class Flow(ABC, Generic[B]):
    """What training and sampling need to know of a proximal flow."""

    path: GaussianPath | None
    """Coefficients of the training beliefs' means where they are Gaussian around a x, else ``None``."""

    coupling: Coupling | None = None
    """How training pairs the noise of its beliefs with the data; ``None`` where they are independent."""

    passes: ClassVar[float] = 3.0
    """Network passes an example in a training step: one forward, and a backward that is counted as two."""

    @abstractmethod
    def prior(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> B:
        """Beliefs at t = 0 for a batch of events of the given shape (batch, *event)."""

    @abstractmethod
    def belief(self, x: Tensor, t: Tensor, generator: Generator) -> B:
        """Draw training beliefs at times ``t`` (batch,) for data ``x`` (batch, *event)."""

    @abstractmethod
    def update(self, belief: B, target: B, t: Tensor, s: Tensor, generator: Generator | None) -> B:
        """Move a belief from time ``t`` to ``s`` (scalars) toward a predicted target.

        Without a generator the message is the target itself; with one it is a noisy draw around it.
        """

    @abstractmethod
    def loss(self, predict: Predict, x: Tensor, generator: Generator, t: Tensor | None = None) -> Tensor:
        """Training loss of each example, (batch,), a mean over the coordinates of an event.

        Args:
            predict: Function of a belief and times (batch,) that returns the predicted target.
            x: Data (batch, *event): real numbers for Gaussian beliefs, class indices for categorical ones.
            generator: Source of the times and of the beliefs' noise.
            t: Times (batch,) in [0, 1]; ``None`` draws them.

        Raises:
            ArgumentError: ``x`` has the wrong type for this flow's beliefs.
        """

    def weight(self, t: Tensor) -> Tensor:
        """Weight of the squared error of predicted data at times ``t``; 1 where the loss has none."""
        return torch.ones_like(t)

    @abstractmethod
    def times(self, nfe: int) -> list[float]:
        """Times at which a proximal sampler that spends ``nfe`` evaluations calls the network, starting at 0.

        The prediction at the last of them is the sample.
        """

    @property
    def latent_path(self) -> GaussianPath | None:
        """Coefficients of the path a u(x) + b ε that path samplers move on; ``None`` where there is none.

        Along it run the means of Gaussian beliefs, with u(x) = x, and the logits of discrete Bayesian ones.
        """
        return self.path

    def latent_data(self, target: B) -> Tensor:
        """u of a predicted target, where :attr:`latent_path` leads."""
        return target.mean

    def belief_at(self, latent: Tensor, t: Tensor) -> B:
        """The belief with a given point of :attr:`latent_path` at time ``t``."""
        raise ArgumentError(f"{self} has no Gaussian path: use a proximal sampler")


def draw_times(batch: int, generator: Generator, device: torch.device) -> Tensor:
    """One time for each example, (batch,), uniform on (0, 1) and evenly spread over the batch.

    Each alone is uniform; together they share one random offset, which lowers the variance of the loss.
    """
    if not isinstance(generator, torch.Generator):
        return rand(torch.Size([batch]), generator, torch.float32, device)
    offset, order = (
        torch.rand((), generator=generator, device=device),
        torch.randperm(batch, generator=generator, device=device),
    )
    return (order + offset).div_(batch).clamp_(1e-6, 1 - 1e-6)


def check_real(x: Tensor) -> None:
    if not x.is_floating_point() or x.ndim < 1:
        raise ArgumentError(f"this flow's data are real numbers (batch, *event), got {x.dtype} {tuple(x.shape)}")


def check_classes(x: Tensor) -> None:
    if x.dtype != torch.int64 or x.ndim < 1:
        raise ArgumentError(f"this flow's data are int64 class indices (batch, *event), got {x.dtype} {tuple(x.shape)}")


def check_class_number(classes: int) -> None:
    if classes < 2:
        raise ArgumentError(f"categorical data need at least 2 classes, got {classes}")
