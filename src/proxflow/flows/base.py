"""The interface of flows, their training loss, and the distribution of training times."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Belief, DiagonalGaussian
from proxflow.couplings import Coupling
from proxflow.divergences import Divergence, Wasserstein2
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, check_rows, given
from proxflow.paths import GaussianPath
from proxflow.random import Generator, rand

B = TypeVar("B", bound=Belief)


@dataclass(frozen=True)
class Latent(ABC):
    """The coordinate z = a(t) u(x) + b(t) ε in which a flow's training beliefs are Gaussian.

    Known elsewhere as an interpolant with the noise schedule a = α_t, b = σ_t. Path samplers and likelihoods use it.

    Args:
        path: Its coefficients (a, b).
    """

    path: GaussianPath

    @abstractmethod
    def of(self, belief: Any) -> Tensor:
        """Return z of a belief."""

    @abstractmethod
    def of_target(self, target: Any) -> Tensor:
        """Return u of a predicted target, the end of the path."""

    @abstractmethod
    def belief(self, z: Tensor, t: Tensor) -> Any:
        """Return the belief with a given z at time ``t``, a scalar or (batch,)."""

    def std(self, t: Tensor, like: Tensor) -> Tensor | None:
        """Return the standard deviations of the beliefs at times ``t`` (number,), if they are Gaussian; else ``None``.

        Args:
            t: Times.
            like: Latents of the required precision and dimensions.
        """
        return None


@dataclass(frozen=True)
class Means(Latent):
    """Means of Gaussian beliefs around real data: u(x) = x.

    Args:
        path: Coefficients of the means.
        spread: Function of a time, (batch,) or a scalar, and a latent that returns the standard deviation of the
            beliefs.
    """

    spread: Callable[[Tensor, Tensor], Tensor | Callable[[], Tensor]]

    def of(self, belief: DiagonalGaussian) -> Tensor:
        return belief.mean

    def of_target(self, target: Any) -> Tensor:
        mean: Tensor = target.mean
        return mean

    def belief(self, z: Tensor, t: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(z, self.spread(t, z))

    def std(self, t: Tensor, like: Tensor) -> Tensor:
        # The standard deviation only depends on time: one example per time is enough.
        one_each = like.new_zeros([len(t), *[1] * (like.ndim - 1)])
        return self.belief(one_each, t).std.flatten()


class Flow(ABC, Generic[B]):
    """A proximal flow: where beliefs start, how they move, and the loss that trains a network."""

    coupling: Coupling | None = None
    """How training pairs prior draws with data; ``None`` if they are independent."""

    passes: ClassVar[float] = 3.0
    """Network passes per example of a training step: one forward pass, and a backward pass that counts as two."""

    def loss(
        self,
        predict: Predict,
        x: Tensor,
        generator: Generator,
        t: Tensor | None = None,
        *,
        condition: Condition | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Return the training loss of each example, (batch,), a mean over the coordinates of an event.

        Args:
            predict: Function of a belief and times (batch,) that returns the predicted target.
            x: Data (batch, *event): real numbers for Gaussian beliefs, class indices for categorical ones.
            generator: Random generator of the times and the beliefs' noise.
            t: Times (batch,) in [0, 1]; ``None`` draws them.
            condition: Condition of the predictions, one row per example.
            start: Means of given prior draws, (batch, *event), for flows that start from a drawn belief; ``None`` draws
                them.

        Raises:
            ArgumentError: ``x`` has the wrong type for this flow's beliefs; the predictor reads no condition; or a
                start is given and the flow starts from a fixed belief.
        """
        self.check(x)
        check_rows(condition, len(x), "condition")
        t = draw_times(len(x), generator, x.device) if t is None else t
        belief = self.belief(x, t, generator, condition=condition, start=start)
        predicted = given(predict, condition)(belief, t)
        del belief  # with many classes it is as large as the prediction
        return self.score(predicted, x, t)

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Refuse data of the wrong type and, on the CPU, out of range; on a GPU this would synchronise.

        Raises:
            ArgumentError: The data do not fit this flow's beliefs.
        """

    def encode(self, stored: Tensor) -> Tensor:
        """Return stored data, of any numeric type, in the form of this flow's beliefs: see :func:`as_real`."""
        return as_real(stored)

    def belief(
        self,
        x: Tensor,
        t: Tensor,
        generator: Generator,
        *,
        condition: Condition | None = None,
        start: Tensor | None = None,
    ) -> B:
        """Draw training beliefs at times ``t`` (batch,) for data ``x`` (batch, *event); for the rest see :meth:`loss`."""
        if start is None:
            return self.drawn(x, t, generator, condition)
        if start.shape != x.shape or not start.is_floating_point():
            raise ArgumentError(
                f"start has one prior draw for each of the data, real numbers {tuple(x.shape)}; got {start.dtype} "
                f"{tuple(start.shape)}"
            )
        return self.reached(self.begin(start.to(x.dtype)), x, t)

    @abstractmethod
    def drawn(self, x: Tensor, t: Tensor, generator: Generator, condition: Condition | None) -> B:
        """Draw training beliefs for data as in :meth:`belief`; the condition is only used by a coupling."""

    def reached(self, prior: B, x: Tensor, t: Tensor) -> B:
        """Return the training beliefs at times ``t`` for data ``x`` and given prior draws (:meth:`begin`)."""
        raise ArgumentError(f"{self} has no way from a given prior draw")

    @abstractmethod
    def score(self, predicted: B, x: Tensor, t: Tensor) -> Tensor:
        """Return the loss of predictions made at times ``t`` (batch,) for data ``x``, (batch,)."""

    @abstractmethod
    def prior(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> B:
        """Draw beliefs at t = 0 for a batch of events of the given shape (batch, *event)."""

    def begin(self, start: Tensor) -> B:
        """Return the beliefs at t = 0 for given draws, (batch, *event).

        Raises:
            ArgumentError: The flow starts from a fixed belief, or from one that is not given by a mean.
        """
        raise ArgumentError(f"{self} has no prior draw of real numbers, so no start can be given: leave it out")

    @abstractmethod
    def update(self, belief: B, target: B, t: Tensor, s: Tensor, generator: Generator | None) -> B:
        """Move a belief from time ``t`` to ``s`` (scalars) toward a predicted target.

        Without a generator the message is the target itself; with one it is a noisy draw around it.
        """

    def finish(self, belief: B, target: Any, generator: Generator) -> Tensor:
        """Return the samples (batch, *event) given the last beliefs and prediction: its mode."""
        event: Tensor = target.mode
        return event

    def rows(self, index: Tensor) -> Flow[B]:
        """Return the flow for some examples of a batch, with the rows of what it holds per example."""
        return self

    def target(self, x: Tensor) -> B:
        """Return the target belief of predicted real data ``x`` (batch, *event), by default a point mass."""
        return DiagonalGaussian(x, 0.0)  # type: ignore[return-value]

    def weight(self, t: Tensor) -> Tensor:
        """Return the loss weighting: the weight of squared errors of predicted data at times ``t``; 1 by default."""
        return torch.ones_like(t)

    @abstractmethod
    def times(self, nfe: int) -> list[float]:
        """Return the times of a proximal sampler's ``nfe`` evaluations, from 0; the last prediction is the sample."""

    @property
    def geometry(self) -> Divergence:
        """The divergence between targets, in which guidance extrapolates."""
        return Wasserstein2()

    @property
    def latent(self) -> Latent | None:
        """The coordinate in which training beliefs are Gaussian; ``None`` if there is none."""
        return None

    @property
    def path(self) -> GaussianPath | None:
        """Coefficients (a, b) of the means a x + b ε of Gaussian training beliefs; ``None`` if there are none."""
        latent = self.latent
        return latent.path if isinstance(latent, Means) else None

    @property
    def begins_normal(self) -> bool:
        """Whether prior draws are standard normal, as samplers that renew noise assume."""
        return True

    def log_prior(self, start: Tensor) -> Tensor:
        """Return the log density of prior draws (batch, *event) → (batch,), float64, nats.

        Raises:
            ArgumentError: It is unknown.
        """
        return sum_events(-0.5 * start.double().square() - 0.5 * math.log(2 * math.pi))

    @property
    def begins_fixed(self) -> bool:
        """Whether all samples start from the same belief, as in Bayesian Flow Networks."""
        latent = self.latent
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        return latent is not None and not any(float(c) for c in latent.path.coefficients(zero))


def draw_times(batch: int, generator: Generator, device: torch.device) -> Tensor:
    """Draw one time per example, (batch,), uniform on (0, 1) and evenly spaced over the batch.

    The batch shares one random offset, which lowers the variance of its mean loss.
    """
    if not isinstance(generator, torch.Generator):
        return rand(torch.Size([batch]), generator, torch.float32, device)
    offset, order = (
        torch.rand((), generator=generator, device=device),
        torch.randperm(batch, generator=generator, device=device),
    )
    return (order + offset).div_(batch).clamp_(1e-6, 1 - 1e-6)


def as_real(stored: Tensor) -> Tensor:
    """Return data as real numbers: bytes are pixels, 0 to 255 → [-1, 1]; other integers and bools keep their values."""
    if stored.dtype == torch.uint8:
        return stored.to(torch.float32) / 127.5 - 1.0
    return stored if stored.is_floating_point() else stored.float()


def as_classes(stored: Tensor) -> Tensor:
    """Return class indices of any integer type as int64; other data unchanged, to be refused later."""
    return stored if stored.is_floating_point() or stored.is_complex() else stored.long()


def check_real(x: Tensor) -> None:
    """Refuse data that are not real numbers."""
    if not isinstance(x, Tensor):
        raise ArgumentError(f"this flow's data are a tensor (batch, *event), got {type(x).__name__}")
    if not x.is_floating_point() or x.ndim < 1:
        raise ArgumentError(f"this flow's data are real numbers (batch, *event), got {x.dtype} {tuple(x.shape)}")


def check_classes(x: Tensor, classes: int) -> None:
    """Refuse data that are not class indices below ``classes``; on a GPU their values are not checked."""
    if not isinstance(x, Tensor):
        raise ArgumentError(f"this flow's data are a tensor (batch, *event), got {type(x).__name__}")
    if x.dtype != torch.int64 or x.ndim < 1:
        raise ArgumentError(f"this flow's data are int64 class indices (batch, *event), got {x.dtype} {tuple(x.shape)}")
    if x.device.type == "cpu" and x.numel():
        least, most = (int(value) for value in x.aminmax())
        if least < 0 or most >= classes:
            raise ArgumentError(f"this flow's data are classes 0 to {classes - 1}, got {least if least < 0 else most}")


def check_class_number(classes: int) -> None:
    """Refuse fewer than two classes."""
    if classes < 2:
        raise ArgumentError(f"categorical data need at least 2 classes, got {classes}")
