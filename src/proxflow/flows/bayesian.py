"""Bayesian flows: from a fixed belief by Bayes' rule, which is the proximal step of KL.

"Bayesian Flow Networks" (Graves et al., 2023), arXiv 2308.07037. A sender draws noisy messages y ~ S(·|x; α) about the
data. A receiver predicts the data from its belief and expects the messages R(·) = E_{x̂ ~ prediction} S(·|x̂; α). A
message costs KL(S ‖ R), for n messages or in the limit of infinitely many; the reconstruction loss −log p(x | belief)
at t = 1 is added. The sum is the negative ELBO, an upper bound on −log p(x): see :mod:`proxflow.likelihood`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from proxflow._math import log_difference, mean_events, one_hot, over_events, squared_gap
from proxflow.beliefs import Binned, Categorical, DiagonalGaussian, bin_centre, bin_of, gaussian_bin_log_prob
from proxflow.divergences import KL, Divergence
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, given
from proxflow.flows.base import (
    B,
    Flow,
    Latent,
    Means,
    as_classes,
    check_class_number,
    check_classes,
    check_real,
    draw_times,
)
from proxflow.paths import GaussianAccuracy, LogitPath, QuadraticAccuracy
from proxflow.random import Generator, randn, randn_like


class BayesianFlow(Flow[B]):
    """A flow by Bayes' rule, for one of three data types; its losses are the parts of the negative ELBO."""

    @property
    def geometry(self) -> Divergence:
        return KL()

    def n_step_loss(
        self,
        predict: Predict,
        x: Tensor,
        generator: Generator,
        steps: int,
        t: Tensor | None = None,
        *,
        draws: int = 10,
        condition: Condition | None = None,
    ) -> Tensor:
        """Return the loss of ``steps`` messages, estimated from one per example, (batch,), nats per coordinate.

        It is n KL(S ‖ R) of the message of accuracy β(t + 1/n) − β(t): with random t, an unbiased estimate of the sum
        over all n. As n grows it becomes :meth:`loss`.

        Args:
            predict: Function of a belief and times (batch,) that returns the predicted target.
            x: Data (batch, *event).
            generator: Random generator of the times, the beliefs' noise and the messages.
            steps: Number n of messages, ≥ 1.
            t: Times (batch,) before the message, k/n with k = 0 … n − 1; ``None`` draws them.
            draws: Messages to estimate the divergence if it has no closed form, ≥ 1.
            condition: Condition of the predictions, one row per example.

        Raises:
            ArgumentError: ``x`` has the wrong type, or a number is out of range.
        """
        self.check(x)
        if steps < 1 or draws < 1:
            raise ArgumentError(f"steps and draws must be at least 1, got {steps} and {draws}")
        t = draw_times(len(x), generator, x.device) if t is None else t
        # A small number is added before the floor: rounded, (k/n) n may be just below k.
        k = (t.double() * steps + 1e-4).floor().clamp(0, steps - 1)
        t, s = (k / steps).to(t.dtype), ((k + 1) / steps).to(t.dtype)
        predicted = given(predict, condition)(self.belief(x, t, generator), t)
        return steps * self._message_cost(predicted, x, t, s, generator, draws)

    @abstractmethod
    def _message_cost(
        self, predicted: Any, x: Tensor, t: Tensor, s: Tensor, generator: Generator, draws: int
    ) -> Tensor:
        """Return KL(S ‖ R) of the message between times t and s (batch,), nats per coordinate."""

    def reconstruction_loss(
        self, predict: Predict, x: Tensor, generator: Generator, *, condition: Condition | None = None
    ) -> Tensor:
        """Return −log p(x | belief at t = 1) of each example, (batch,), nats per coordinate.

        Args:
            predict: Function of a belief and times (batch,) that returns the predicted target.
            x: Data (batch, *event).
            generator: Random generator of the beliefs' noise.
            condition: Condition of the predictions, one row per example.

        Raises:
            ArgumentError: ``x`` has the wrong type.
        """
        self.check(x)
        t = torch.ones(len(x), dtype=x.dtype if x.is_floating_point() else torch.float32, device=x.device)
        return self._read_out(given(predict, condition)(self.belief(x, t, generator), t), x)

    @abstractmethod
    def _read_out(self, predicted: Any, x: Tensor) -> Tensor:
        """Return −log p(x | prediction at t = 1), (batch,), nats per coordinate."""

    def times(self, nfe: int) -> list[float]:
        # n − 1 updates and a last prediction at t = 1: the reference sampler's n + 1 evaluations for n updates.
        return [k / (nfe - 1) for k in range(nfe)] if nfe > 1 else [0.0]


class _GaussianBayesianFlow(BayesianFlow[DiagonalGaussian]):
    """A Bayesian flow with beliefs N(μ, 1/ρ) about real numbers, from N(0, 1), and messages y ~ N(x, 1/α)."""

    sigma1: float

    @property
    def accuracies(self) -> GaussianAccuracy:
        """Accuracies of the messages, and the path of the beliefs' means."""
        return GaussianAccuracy(self.sigma1)

    @property
    def latent(self) -> Means:
        return Means(self.accuracies, self._spread)

    def _spread(self, t: Tensor, z: Tensor) -> Callable[[], Tensor]:
        return lambda: over_events(self.accuracies.precision(t).rsqrt(), z)

    check = staticmethod(check_real)

    def prior(
        self,
        shape: Sequence[int],
        generator: Generator,
        dtype: torch.dtype,
        device: torch.device,
    ) -> DiagonalGaussian:
        mean = torch.zeros(tuple(shape), dtype=dtype, device=device)
        return DiagonalGaussian(mean, 1.0)

    def drawn(self, x: Tensor, t: Tensor, generator: Generator, condition: Condition | None) -> DiagonalGaussian:
        x = self._sent(x)
        a, b = self.accuracies.over(t, x)
        return DiagonalGaussian(a * x + b * randn_like(x, generator), self._spread(t, x))

    def update(
        self, belief: DiagonalGaussian, target: Any, t: Tensor, s: Tensor, generator: Generator | None
    ) -> DiagonalGaussian:
        alpha = self.accuracies.accuracy(t, s).to(belief.mean.dtype)
        if generator is None:
            message = target.mean
        else:
            message = self._drawn(target, generator)
            noise = randn_like(message, generator)
            message = torch.addcmul(message, alpha.rsqrt(), noise)
        total = belief.given_std.reciprocal().square() + alpha
        return DiagonalGaussian(torch.lerp(belief.mean, message, alpha / total), total.rsqrt())

    def weight(self, t: Tensor) -> Tensor:
        return 0.5 * self.accuracies.rate(t)

    def score(self, predicted: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return the continuous-time loss −ln σ₁ σ₁^{−2t} (x − x̂)², nats per coordinate (Graves et al., 2023, eq. 101).

        x̂ is the mean of the prediction: for bins Σ p_k c_k.
        """
        return self.weight(t) * mean_events((self._sent(x) - predicted.mean).square())

    def _sent(self, x: Tensor) -> Tensor:
        """Return the values that messages transmit."""
        return x

    @abstractmethod
    def _drawn(self, target: Any, generator: Generator) -> Tensor:
        """Draw an event from a prediction, the centre of the sampler's message."""


@dataclass(frozen=True)
class Readout:
    """The likelihood of a :class:`BFN`'s data at t = 1: the mass of N(x̂, std²) in equal bins of [−1, 1].

    Args:
        bins: Number of bins, ≥ 2, one per value of the data: 256 for 8-bit images.
        std: Standard deviation > 0 in units of the data; ``None`` is σ₁.
        density_below: See :func:`proxflow.beliefs.gaussian_bin_log_prob`; 0 is exact, the reference uses 1e-5.
    """

    bins: int = 256
    std: float | None = None
    density_below: float = 0.0

    def __post_init__(self) -> None:
        _check_bins(self.bins)
        if self.std is not None and not self.std > 0:
            raise ArgumentError(f"std of the readout must be positive, got {self.std}")


def _check_bins(bins: int) -> None:
    if bins < 2:
        raise ArgumentError(f"discretised data need at least 2 bins, got {bins}")


@dataclass(frozen=True)
class BFN(_GaussianBayesianFlow):
    """Bayesian Flow Network for continuous data (Graves et al., 2023, §4).

    The prior is N(0, 1), fixed; messages are y ~ N(x, 1/α); the update is Bayes' rule.

    Args:
        sigma1: Standard deviation of the belief at t = 1. The reference uses √1e-3 in its code's default and
            σ₁² = 1e-6 for fine data.
        readout: Likelihood of data at t = 1, for the reconstruction loss.
    """

    sigma1: float = 1e-3
    readout: Readout = field(default_factory=Readout)

    def _drawn(self, target: DiagonalGaussian, generator: Generator) -> Tensor:
        return target.mean  # the reference's output distribution is a point mass

    def _message_cost(
        self, predicted: DiagonalGaussian, x: Tensor, t: Tensor, s: Tensor, generator: Generator, draws: int
    ) -> Tensor:
        """Return α/2 (x − x̂)² (Graves et al., 2023, §4): sender and receiver are Gaussians of equal variance."""
        return 0.5 * self.accuracies.accuracy(t, s) * mean_events((x - predicted.mean).square())

    def _read_out(self, predicted: DiagonalGaussian, x: Tensor) -> Tensor:
        mean = predicted.mean
        std = mean.new_full((), self.sigma1 if self.readout.std is None else self.readout.std)
        return -mean_events(gaussian_bin_log_prob(x, mean, std, self.readout.bins, self.readout.density_below))


@dataclass(frozen=True)
class DiscretisedBFN(_GaussianBayesianFlow):
    """Bayesian Flow Network for real numbers in K equal bins of [−1, 1] (Graves et al., 2023, §5).

    Beliefs and messages are those of :class:`BFN`. The prediction is a distribution over the bins (:class:`Binned`,
    from a :class:`BinnedPredictor`), the sampler's message is around a centre drawn from it, and the sample is the most
    probable bin's centre. Data are first rounded to the centres of their bins.

    Args:
        bins: Number of bins K ≥ 2.
        sigma1: Standard deviation of the belief at t = 1.
    """

    bins: int
    sigma1: float = 1e-3

    def __post_init__(self) -> None:
        _check_bins(self.bins)

    def _sent(self, x: Tensor) -> Tensor:
        return bin_centre(bin_of(x, self.bins), self.bins, x.dtype)

    def _drawn(self, target: Binned, generator: Generator) -> Tensor:
        return target.sample(generator)

    def _message_cost(
        self, predicted: Any, x: Tensor, t: Tensor, s: Tensor, generator: Generator, draws: int
    ) -> Tensor:
        """Return E_y [log N(y; x, 1/α) − log Σ_k p_k N(y; c_k, 1/α)] (Graves et al., 2023, §5).

        A coordinate's message is one number, so there is no option ``mixture`` as in :class:`DiscreteBFN`.
        """
        log_probs = self._binned(predicted).log_probs
        # Distances of centres from the true one, there exactly 0: its term is log p_x for any α.
        index = bin_of(x, self.bins)[..., None]
        steps_off = torch.arange(self.bins, device=x.device) - index
        root = over_events(self.accuracies.accuracy(t, s).sqrt(), log_probs)
        away = steps_off.to(log_probs.dtype) * (2 / self.bins) * root
        total = torch.zeros_like(log_probs[..., 0])
        for _ in range(draws):
            # With y = x + ε/√α: log N(y; c_k, 1/α) − log N(y; x, 1/α) = ε²/2 − (away_k − ε)²/2.
            noise = randn(x.shape, generator, log_probs.dtype, x.device)[..., None]
            total = total - torch.logsumexp(log_probs - 0.5 * away * (away - 2 * noise), dim=-1)
        return mean_events(total / draws)

    def _read_out(self, predicted: Any, x: Tensor) -> Tensor:
        log_probs = self._binned(predicted).log_probs
        return -mean_events(log_probs.gather(-1, bin_of(x, self.bins)[..., None]).squeeze(-1))

    def _binned(self, predicted: Any) -> Binned:
        if not isinstance(predicted, Binned) or predicted.bins != self.bins:
            raise ArgumentError(
                f"this loss needs probabilities of {self.bins} bins, as a BinnedPredictor gives them, got {predicted!r:.80}"
            )
        return predicted


@dataclass(frozen=True)
class Logits(Latent):
    """Log-probabilities of discrete Bayesian flows: u = K e_x − 1.

    "Unifying Bayesian Flow Networks and Diffusion Models through Stochastic Differential Equations" (Xue et al., 2024),
    arXiv 2404.15766, §5.
    """

    path: LogitPath

    def of(self, belief: Categorical) -> Tensor:
        return belief.logits

    def of_target(self, target: Categorical) -> Tensor:
        return self.path.classes * target.probs - 1

    def belief(self, z: Tensor, t: Tensor) -> Categorical:
        return Categorical(z.log_softmax(-1))


@dataclass(frozen=True)
class DiscreteBFN(BayesianFlow[Categorical]):
    """Bayesian Flow Network for discrete data (Graves et al., 2023, §6).

    The prior is uniform, fixed; messages are y ~ N(α(K e_x − 1), αK I); the update adds them to the log-probabilities.

    Args:
        classes: Number of classes K ≥ 2.
        max_sqrt_beta: b = √β(1).
        mixture: The receiver in :meth:`n_step_loss`: ``"joint"`` mixes whole messages, Σ_k ê_k Π_j N(y_j).
            ``"coordinates"`` mixes each of the K numbers separately, Π_j Σ_k ê_k N(y_j), as the public reference
            implementation does: it ignores that the numbers share one class, and is not the distribution of the
            sampler's messages.
    """

    classes: int
    max_sqrt_beta: float = 3.0
    mixture: Literal["joint", "coordinates"] = "joint"

    def __post_init__(self) -> None:
        check_class_number(self.classes)
        if self.mixture not in ("joint", "coordinates"):
            raise ArgumentError(f"mixture is 'joint' or 'coordinates', got {self.mixture!r}")

    @property
    def accuracies(self) -> QuadraticAccuracy:
        """Accuracies of the messages."""
        return QuadraticAccuracy(self.max_sqrt_beta)

    @property
    def latent(self) -> Logits:
        return Logits(LogitPath(self.accuracies, self.classes))

    def check(self, x: Tensor) -> None:
        check_classes(x, self.classes)

    encode = staticmethod(as_classes)

    def prior(
        self,
        shape: Sequence[int],
        generator: Generator,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Categorical:
        return Categorical(torch.zeros([*shape, self.classes], dtype=dtype, device=device).log_softmax(-1))

    def _message(self, probs: Tensor, alpha: Tensor, generator: Generator | None) -> Tensor:
        alpha = over_events(alpha, probs)
        mean = alpha * (self.classes * probs - 1)
        if generator is None:
            return mean
        return mean + (alpha * self.classes).sqrt() * randn_like(probs, generator)

    def drawn(self, x: Tensor, t: Tensor, generator: Generator, condition: Condition | None) -> Categorical:
        beta = self.accuracies.beta(t)
        # The message without −β, which is common to all classes, in one array.
        whole = torch.Size([*x.shape, self.classes])
        spread = (beta * self.classes).sqrt().view(-1, *[1] * x.ndim)
        message = randn(whole, generator, t.dtype, x.device) * spread
        own = over_events(beta * self.classes, message).expand(*x.shape, 1)
        return Categorical(message.scatter_add_(-1, x[..., None], own).log_softmax(-1))

    def update(
        self, belief: Categorical, target: Categorical, t: Tensor, s: Tensor, generator: Generator | None
    ) -> Categorical:
        probs = target.probs
        if generator is not None:
            probs = one_hot(target.sample(generator), self.classes, probs.dtype)
        message = self._message(probs, self.accuracies.accuracy(t, s), generator)
        return Categorical((belief.logits + message).log_softmax(-1))

    def score(self, predicted: Categorical, x: Tensor, t: Tensor) -> Tensor:
        """Return the continuous-time loss K b² t ‖e_x − ê‖², nats per coordinate (Graves et al., 2023, eq. 205)."""
        return 0.5 * self.classes * self.accuracies.rate(t) * mean_events(squared_gap(predicted.logits, x))

    def _message_cost(
        self, predicted: Categorical, x: Tensor, t: Tensor, s: Tensor, generator: Generator, draws: int
    ) -> Tensor:
        """Return E_y [log S(y|x; α) − log Σ_k ê_k S(y|k; α)], nats per coordinate of the event (Graves et al., 2023, §6).

        A message is a vector of K numbers; the receiver mixes whole vectors, Σ_k ê_k Π_j N(y_j). In log space the factors
        common to all S(y|k) cancel, which leaves −log Σ_k ê_k exp(y_k − y_x).
        """
        log_probs = predicted.log_probs
        own = torch.nn.functional.one_hot(x, self.classes).bool()
        scale = self.classes * over_events(self.accuracies.accuracy(t, s), log_probs)  # αK, the variance of a message
        total = torch.zeros_like(log_probs[..., 0])
        for _ in range(draws):
            noise = scale.sqrt() * randn_like(log_probs, generator)
            if self.mixture == "joint":
                # y_k − y_x without its cancelling parts: −αK + √(αK)(ε_k − ε_x), and exactly 0 for k = x.
                ahead = noise - noise.gather(-1, x[..., None]) - scale
                total = total - torch.logsumexp(log_probs + torch.where(own, 0, ahead), dim=-1)
            else:
                # y_j has two Gaussians: that of class j and that of all other classes. Their means are αK apart.
                others = log_difference(torch.zeros_like(log_probs), log_probs)
                right, wrong = torch.where(own, log_probs, others), torch.where(own, others, log_probs)
                odds = torch.where(own, -noise, noise) - scale / 2
                total = total - torch.logsumexp(torch.stack([right, wrong + odds]), dim=0).sum(-1)
        return mean_events(total / draws)

    def _read_out(self, predicted: Categorical, x: Tensor) -> Tensor:
        return -mean_events(predicted.log_probs.gather(-1, x[..., None]).squeeze(-1))
