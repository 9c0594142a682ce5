"""Ground metrics: the cost of moving mass, c(x, y) = ⟨x − y, M (x − y)⟩ with M symmetric positive definite.

A metric is given as an operator, by an orthonormal basis of modes and a weight m_ω > 0 for each: M = Uᵀ diag(m) U.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.errors import ArgumentError


class GroundMetric(ABC):
    """M = Uᵀ diag(m) U on events. Subclasses are frozen, hashable dataclasses of numbers, without tensors."""

    coordinatewise: bool = False
    """Whether the modes are the coordinates themselves, so that independent coordinates stay independent."""

    @abstractmethod
    def modes(self, x: Tensor) -> Tensor:
        """Return U x: coefficients of events (batch, *event) in the metric's orthonormal basis, of the same shape.

        Raises:
            ArgumentError: Events have the wrong shape.
        """

    @abstractmethod
    def events(self, modes: Tensor) -> Tensor:
        """Return Uᵀ c; inverse of :meth:`modes`."""

    @abstractmethod
    def weights(self, like: Tensor) -> Tensor:
        """Return m_ω > 0 for modes of events (batch, *event), broadcastable to them; precision and device of ``like``."""

    @abstractmethod
    def commutes_with(self, other: GroundMetric) -> bool:
        """Return whether another metric has the same modes."""

    def mean_weight(self, like: Tensor) -> Tensor:
        """Return tr M / d, a scalar: the weight of isotropic noise."""
        # Leading dimensions of an event (channels) repeat the weights, which leaves their mean unchanged.
        return self.weights(like).mean()


@dataclass(frozen=True)
class CoordinateMetric(GroundMetric):
    """M = diag(w): each coordinate of an event has its own cost.

    Args:
        coordinates: w > 0, one for each coordinate of an event in row-major order.

    Raises:
        ArgumentError: No weight, or one that is not positive and finite.
    """

    coordinates: tuple[float, ...]
    coordinatewise = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "coordinates", tuple(float(w) for w in self.coordinates))
        if not self.coordinates or not all(0 < w < math.inf for w in self.coordinates):
            raise ArgumentError(f"a metric needs weights that are positive and finite, got {self.coordinates}")

    def commutes_with(self, other: GroundMetric) -> bool:
        return isinstance(other, CoordinateMetric)

    def modes(self, x: Tensor) -> Tensor:
        if math.prod(x.shape[1:]) != len(self.coordinates):
            raise ArgumentError(
                f"this metric is for events of {len(self.coordinates)} coordinates, got {tuple(x.shape[1:])}"
            )
        return x

    def events(self, modes: Tensor) -> Tensor:
        return self.modes(modes)

    def weights(self, like: Tensor) -> Tensor:
        self.modes(like)
        return torch.tensor(self.coordinates, dtype=like.dtype, device=like.device).reshape(like.shape[1:])


@dataclass(frozen=True)
class FrequencyMetric(GroundMetric):
    """M ∝ (I − Δ)^s on images: differences of high spatial frequency cost more (a discrete Sobolev metric of order s).

    Δ is the five-point Laplacian with reflecting edges. The orthonormal cosine transform (DCT-II) diagonalises it ("The
    Discrete Cosine Transform", Strang, 1999), so that mode (k, l) has the weight

        m_kl ∝ (1 + λ_kl)^s,   λ_kl = 4 sin²(πk/2H) + 4 sin²(πl/2W) in [0, 8),

    scaled to a mean of 1, so that the standard deviation of an isotropic Gaussian costs as much as in the plain metric.

    Args:
        height: H of the images (batch, …, H, W); events (batch, H·W) are taken as images in row-major order.
        width: W.
        strength: s. At s > 0 low frequencies are cheap and move first, at s < 0 high ones; 0 is the plain metric.

    Raises:
        ArgumentError: A size is below 1, or the strength not finite or above 50 in magnitude.
    """

    height: int
    width: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ArgumentError(f"images have a height and width of at least 1, got {self.height} × {self.width}")
        if not abs(self.strength) <= 50:
            raise ArgumentError(f"strength must lie in [−50, 50], got {self.strength}")

    def commutes_with(self, other: GroundMetric) -> bool:
        return isinstance(other, FrequencyMetric) and (other.height, other.width) == (self.height, self.width)

    def modes(self, x: Tensor) -> Tensor:
        return self._transform(x, lambda matrix: matrix)

    def events(self, modes: Tensor) -> Tensor:
        return self._transform(modes, lambda matrix: matrix.mT)

    def weights(self, like: Tensor) -> Tensor:
        vertical, horizontal = (
            4 * (torch.arange(n, dtype=torch.float64, device=like.device) * (math.pi / (2 * n))).sin().square()
            for n in (self.height, self.width)
        )
        weights = (1 + vertical[:, None] + horizontal).pow(self.strength)
        image = (weights / weights.mean()).to(like.dtype)
        return image.reshape(-1) if self._flat(like) else image

    def _flat(self, x: Tensor) -> bool:
        if x.ndim > 2 and tuple(x.shape[-2:]) == (self.height, self.width):
            return False
        if x.ndim == 2 and x.shape[1] == self.height * self.width:
            return True
        raise ArgumentError(
            f"this metric is for images {self.height} × {self.width}, or events of {self.height * self.width} numbers, "
            f"got events of shape {tuple(x.shape[1:])}"
        )

    def _transform(self, x: Tensor, turned: Callable[[Tensor], Tensor]) -> Tensor:
        images = x.reshape(-1, self.height, self.width) if self._flat(x) else x
        rows, columns = (turned(_cosines(n, x)) for n in (self.height, self.width))
        # A network's autocast may surround this; in half precision the transform and its inverse would lose too much.
        with torch.autocast(x.device.type, enabled=False):
            transformed: Tensor = rows @ images @ columns.mT
        return transformed.reshape(x.shape)


def _cosines(n: int, like: Tensor) -> Tensor:
    """Return the matrix (n, n) of the orthonormal DCT-II: U_kj = √((2 − δ_k0)/n) cos(πk(2j + 1)/2n)."""
    k = torch.arange(n, dtype=torch.float64, device=like.device)
    matrix: Tensor = (math.pi / (2 * n) * k[:, None] * (2 * k + 1)).cos() * math.sqrt(2 / n)
    scale = torch.where(k == 0, 0.5, torch.ones_like(k)).sqrt()
    return scale[:, None].mul(matrix).to(like.dtype)
