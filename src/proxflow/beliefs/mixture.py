"""Mixtures of Gaussians with independent coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from proxflow.beliefs.base import Belief
from proxflow.errors import ArgumentError
from proxflow.random import Generator, gumbel_max, randn_like


@dataclass(frozen=True, eq=False)
class GaussianMixture(Belief):
    """Σ_k w_k N(means_k, diag(stds_k²)), a mixture over **whole events**, whose coordinates are dependent.

    Parameters are not unique: a permutation of the components, or another division of weight between two equal ones,
    gives the same distribution. So only the density of a mixture is well defined, not its parameters.

    Args:
        logits: Log-weights up to a constant, (batch, components), components ≥ 1. −∞ excludes a component.
        means: (batch, components, *event), floating point.
        stds: Standard deviations ≥ 0 in the units of the data, broadcastable to the shape of ``means``, and stored
            expanded to it. A standard deviation of 0 makes a component a point mass, which has no density.

    Raises:
        ArgumentError: The shapes do not fit, or a tensor is not floating point.
    """

    logits: Tensor
    means: Tensor
    stds: Tensor

    def __post_init__(self) -> None:
        if not all(a.is_floating_point() for a in (self.logits, self.means, self.stds)):
            dtypes = ", ".join(str(a.dtype) for a in (self.logits, self.means, self.stds))
            raise ArgumentError(f"a mixture needs floating-point tensors, got {dtypes}")
        if self.logits.ndim != 2 or self.logits.shape[1] < 1 or self.means.shape[:2] != self.logits.shape:
            raise ArgumentError(
                "a mixture needs logits (batch, components) with at least 1 component and means (batch, components, "
                f"*event), got {tuple(self.logits.shape)} and {tuple(self.means.shape)}"
            )
        try:
            stds = self.stds.expand(self.means.shape)
        except RuntimeError as error:
            raise ArgumentError(
                f"stds of shape {tuple(self.stds.shape)} do not broadcast to the means' {tuple(self.means.shape)}"
            ) from error
        # Expanded, so that example i of every tensor belongs to example i of the batch, as ``map`` promises.
        object.__setattr__(self, "stds", stds)

    @property
    def batch_size(self) -> int:
        return self.logits.shape[0]

    @property
    def components(self) -> int:
        return self.logits.shape[1]

    @property
    def log_weights(self) -> Tensor:
        """ln w, normalised, (batch, components)."""
        return self.logits.log_softmax(1)

    @property
    def weights(self) -> Tensor:
        """w, (batch, components)."""
        return self.logits.softmax(1)

    @property
    def mean(self) -> Tensor:
        return (self._shaped(self.weights) * self.means).sum(1)

    @property
    def mode(self) -> Tensor:
        """The component mean with the highest density under the whole mixture, (batch, *event).

        The exact mode has no closed form. It is at this component mean if components are well separated or all equal;
        if they overlap, this is the best starting point for an ascent.
        """
        # Point masses get a huge density as well, so that the heaviest of them wins.
        narrow = self.stds.clamp_min(torch.finfo(self.stds.dtype).tiny)
        solid = GaussianMixture(self.logits, self.means, narrow)
        best = solid._log_density(self.means.unsqueeze(1)).argmax(1)
        return self._of(best, self.means)

    def sample(self, generator: Generator) -> Tensor:
        chosen = gumbel_max(self.log_weights, generator)
        mean, std = self._of(chosen, self.means), self._of(chosen, self.stds)
        return mean + std * randn_like(mean, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_event(x, torch.Size([self.batch_size, *self.means.shape[2:]]))
        return self._log_density(x[:, None, None]).squeeze(1)

    def coordinates(self) -> Tensor:
        """Return log-odds of the weights against the last, the means, and logarithms of the standard deviations.

        (batch, components − 1 + 2 · components · sites). Each order of the components has its own coordinates.
        """
        odds = self.logits[:, :-1] - self.logits[:, -1:]
        return torch.cat([odds, self.means.flatten(1), self.stds.log().flatten(1)], dim=1)

    def at(self, coordinates: Tensor) -> Self:
        free = self.components - 1
        odds, rest = coordinates[:, :free], coordinates[:, free:]
        logits = torch.cat([odds, torch.zeros_like(coordinates[:, :1])], dim=1).log_softmax(1)
        means, log_stds = (a.reshape(len(coordinates), *self.means.shape[1:]) for a in rest.chunk(2, dim=1))
        return type(self)(logits, means, log_stds.exp())

    def features(self) -> Tensor:
        """Return 2w − 1, the means and the standard deviations, (batch, components · (1 + 2 · sites))."""
        return torch.cat([2 * self.weights - 1, self.means.flatten(1), self.stds.flatten(1)], dim=1)

    def _log_density(self, x: Tensor) -> Tensor:
        """Compute the log density at points ``x``, (batch, 1, points, *event) → (batch, points)."""
        z = (x - self.means.unsqueeze(2)) / self.stds.unsqueeze(2)
        densities = -0.5 * z.square() - self.stds.unsqueeze(2).log() - 0.5 * math.log(2 * math.pi)
        whole = densities.flatten(3).sum(3) if densities.ndim > 3 else densities
        return torch.logsumexp(self.log_weights[..., None] + whole, dim=1)

    def _of(self, chosen: Tensor, values: Tensor) -> Tensor:
        """Select the values of the chosen component (batch,): (batch, components, *event) → (batch, *event)."""
        index = self._shaped(chosen[:, None]).expand(-1, 1, *values.shape[2:])
        return values.gather(1, index).squeeze(1)

    def _shaped(self, values: Tensor) -> Tensor:
        """Reshape (batch, components) to broadcast against the means."""
        return values.reshape(*values.shape, *[1] * (self.means.ndim - 2))
