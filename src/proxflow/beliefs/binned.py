"""Beliefs about discretised data: for every coordinate of an event, probabilities of equal bins of [−1, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from proxflow._math import log_difference
from proxflow.beliefs.categorical import Discrete
from proxflow.errors import ArgumentError


def bin_of(x: Tensor, bins: int) -> Tensor:
    """Return the index of the bin of [−1, 1] that holds ``x``, int64 of its shape; values beyond are in the end bins.

    Bin k reaches from −1 + 2k/K to −1 + 2(k+1)/K.
    """
    return ((x / 2 + 0.5) * bins).floor().clamp(0, bins - 1).long()


def bin_centre(index: Tensor, bins: int, dtype: torch.dtype) -> Tensor:
    """Return the centre −1 + (2k + 1)/K of bin k, of the shape of ``index``."""
    return 2 * ((index.to(dtype) + 0.5) / bins) - 1


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    """Compute log(Φ(high) − Φ(low)) for low < high, either possibly infinite, to full accuracy in both tails."""
    # Intervals above 0 are mirrored: there Φ is small, and its logarithm is accurate.
    mirror = low + high > 0
    low, high = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    return log_difference(torch.special.log_ndtr(high), torch.special.log_ndtr(low))


def gaussian_bin_log_prob(x: Tensor, mean: Tensor, std: Tensor, bins: int, density_below: float = 0.0) -> Tensor:
    """Return the log-probability (nats) of the bin that holds ``x`` under N(mean, std²), of their broadcast shape.

    The end bins include the tails. Computed in double precision and in log space: accurate for any magnitude.

    Args:
        x: Data in [−1, 1].
        mean: Mean of the Gaussian.
        std: Its standard deviation, > 0.
        bins: Number of bins K.
        density_below: Below this probability use the density at the bin's centre times its width instead, which is not
            normalised. The public code of Bayesian Flow Networks (Graves et al., 2023), arXiv 2308.07037, does so below
            1e-5.
    """
    index, mean64, std64 = bin_of(x, bins), mean.double(), std.double()
    low, high = (((index + side).double() * (2 / bins) - 1 - mean64) / std64 for side in (0, 1))
    # Finite, but so far out that no mass is beyond: gradients stay finite, unlike at ±∞.
    far = torch.full_like(low, 1e100)
    exact = _log_mass(torch.where(index == 0, -far, low), torch.where(index == bins - 1, far, high))
    if density_below > 0:
        z = (bin_centre(index, bins, torch.float64) - mean64) / std64
        density = -0.5 * z.square() - std64.log() - 0.5 * math.log(2 * math.pi) + math.log(2 / bins)
        exact = torch.where(exact < math.log(density_below), density, exact)
    return exact.to(torch.promote_types(mean.dtype, std.dtype))


def _inner_edges(mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """Return the inner edges of the bins in units of N(mean, std²), (*mean.shape, bins − 1)."""
    edges = torch.arange(1, bins, dtype=mean.dtype, device=mean.device) * (2 / bins) - 1
    return (edges - mean[..., None]) / std[..., None]


def _gaussian_bin_mean(mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """Return the mean of :meth:`Binned.of_gaussian`: Σ p_k c_k, summed by parts, is c_{K−1} − (2/K) Σ Φ(inner edges)."""
    below: Tensor = torch.special.ndtr(_inner_edges(mean, std, bins))
    return (1 - 1 / bins) - (2 / bins) * below.sum(-1)


def _gaussian_logits(mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """Return the logarithm of the mass of N(mean, std²) in each bin, (*mean.shape, bins)."""
    z = _inner_edges(mean.double(), std.double(), bins)
    below, above = torch.special.log_ndtr(z), torch.special.log_ndtr(-z)
    left = z[..., :-1] + z[..., 1:] <= 0  # there the lower tail is the smaller one
    middle = log_difference(
        torch.where(left, below[..., 1:], above[..., :-1]), torch.where(left, below[..., :-1], above[..., 1:])
    )
    return torch.cat([below[..., :1], middle, above[..., -1:]], dim=-1).to(mean.dtype)


@dataclass(frozen=True, eq=False)
class Binned(Discrete):
    """Independent distributions over K equal bins of [−1, 1]: the prediction of a flow for discretised data.

    Its events are the centres c_k = −1 + (2k + 1)/K, k = 0 … K − 1. Known elsewhere as the discretised output distribution
    of Bayesian Flow Networks (Graves et al., 2023), arXiv 2308.07037, §5.

    Args:
        logits: Log-probabilities of the bins up to a constant, (batch, *event, K), K ≥ 2. −∞ is a bin ruled out.

    Raises:
        ArgumentError: Wrong number of dimensions or bins, or not floating point.
    """

    _words = ("binned", "bins")

    @classmethod
    def of_gaussian(cls, mean: Tensor, std: Tensor, bins: int) -> Self:
        """Return the mass of N(mean, std²) in each bin, its tails in the end bins.

        The logits are computed at first use, in double precision (in single, differences of distribution functions lose
        too many digits), then rounded; the :attr:`mean` does not need them.

        Args:
            mean: (batch, *event).
            std: Standard deviation > 0, of the same shape.
            bins: Number of bins ≥ 2.
        """
        made = object.__new__(cls)
        made.__dict__["_gaussian"] = (mean, std, bins)
        return made

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name != "logits" or "_gaussian" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
            self.__dict__["logits"] = _gaussian_logits(*self.__dict__["_gaussian"])
            return self.__dict__["logits"]

    @property
    def bins(self) -> int:
        """Number of bins K."""
        gaussian = self.__dict__.get("_gaussian")
        return self.logits.shape[-1] if gaussian is None else int(gaussian[2])

    @property
    def centres(self) -> Tensor:
        """Centres c_k of the bins, (K,)."""
        return bin_centre(torch.arange(self.bins, device=self.logits.device), self.bins, self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        """Σ p_k c_k, (batch, *event)."""
        if (gaussian := self.__dict__.get("_gaussian")) is not None:
            found: Tensor = _gaussian_bin_mean(*gaussian)
            return found
        return (self.probs * self.centres).sum(-1)

    def events_of(self, indices: Tensor) -> Tensor:
        return bin_centre(indices, self.bins, self.logits.dtype)

    def indices_of(self, x: Tensor) -> Tensor:
        """Return the bins that hold real numbers ``x``, which need not be centres."""
        if not x.is_floating_point():
            raise ArgumentError(f"events of a binned belief are real numbers in [-1, 1], got {x.dtype}")
        return bin_of(x, self.bins)
