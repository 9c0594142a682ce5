"""Linear operators with a known spectrum, whose proximal maps have a closed form.

With A Aᵀ = U diag(q) Uᵀ, the minimiser of ‖A z − y‖²/(2 σ²) + ‖z − x‖²/(2 r²) is

    z = x + r² Aᵀ (σ² + r² A Aᵀ)⁻¹ (y − A x),   (σ² + r² A Aᵀ)⁻¹ = U diag(1/(σ² + r² q)) Uᵀ.

This form solves in the space of observations. It also holds for σ = 0, as the projection onto A z = y.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, Self

import torch
from torch import Tensor

from proxflow._math import over_events, sum_events
from proxflow.errors import ArgumentError
from proxflow.inverse.solve import conjugate_gradients

Scale = Tensor | float
"""A scalar, one for each example as (batch,) or (batch, 1, …, 1), or one for each entry of an observation."""

ITERATIONS = 50
"""Default number of conjugate gradient iterations, if no closed form is known."""


class Operator(ABC):
    """A map from events to observations, linear unless stated otherwise; subclasses are frozen dataclasses."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return the observations (batch, *observed) of events (batch, *event)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ y, (batch, *event)."""

    def solve(self, v: Tensor, noise: Scale, prior: Scale) -> Tensor:
        """Return (σ² + r² A Aᵀ)⁻¹ v, by the pseudo-inverse if singular; by default by conjugate gradients.

        Args:
            v: (batch, *observed).
            noise: σ² ≥ 0.
            prior: r² ≥ 0, one for each example or for all.
        """
        noise, prior = _over(noise, v), _over(prior, v)

        def normal(p: Tensor) -> tuple[Tensor, Tensor]:
            back = self.adjoint(p)
            return noise * p + prior * self(back), back

        return conjugate_gradients(normal, v, ITERATIONS)[0]

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return A⁺ y = Aᵀ (A Aᵀ)⁺ y, the event of least norm whose observation is nearest to y."""
        return self.adjoint(self.solve(y, 0.0, 1.0))

    def prox(self, x: Tensor, y: Tensor, noise: Scale, prior: Scale) -> Tensor:
        """Return argmin_z ‖A z − y‖²/(2 σ²) + ‖z − x‖²/(2 r²); with σ = 0 the nearest z to x with A z = y.

        Args:
            x: Events (batch, *event).
            y: Observations (batch, *observed).
            noise: Variance σ² of the observations.
            prior: Variance r² of the events around x.
        """
        return x + _over(prior, x) * self.adjoint(self.solve(y - self(x), noise, prior))

    def at(self, x: Tensor) -> Operator:
        """Return its linearisation at events x: itself if it is linear."""
        return self

    def seen(self, y: Tensor) -> Tensor:
        """Return a given observation with entries that the operator does not observe set to 0."""
        return y

    @property
    def examples(self) -> int | None:
        """Number of examples with an operator of their own; ``None`` if all share it."""
        return None

    def rows(self, index: Tensor) -> Operator:
        """Return the operator of some examples of a batch."""
        return self

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to all its tensors, such as a move to a device."""
        changed: dict[str, Any] = {}
        for part in fields(self):  # type: ignore[arg-type]
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                changed[part.name] = change(value)
            elif isinstance(value, Operator):
                changed[part.name] = value.map(change)
        return replace(self, **changed) if changed else self  # type: ignore[type-var]

    def __repr__(self) -> str:
        """Return the operator with its fields, tensors as their shapes."""
        parts = ((part.name, getattr(self, part.name)) for part in fields(self) if part.repr)  # type: ignore[arg-type]
        told = (f"{name}={tuple(v.shape) if isinstance(v, Tensor) else v!r}" for name, v in parts)
        return f"{type(self).__name__}({', '.join(told)})"

    def __matmul__(self, inner: Operator) -> Operator:
        """Return x → A(B(x)) for ``A @ B``."""
        from proxflow.inverse.functions import Composition

        return Composition(self, inner)


class Diagonalised(Operator):
    """An operator for which the eigenvectors U and eigenvalues q of A Aᵀ are known."""

    @abstractmethod
    def turn(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return Uᵀ v, and the eigenvalues q ≥ 0 of its entries, broadcastable to it; rounding errors are set to 0."""

    @abstractmethod
    def turn_back(self, c: Tensor) -> Tensor:
        """Return U c."""

    counted: Tensor | float = 1.0
    """How many independent numbers each entry of ``turn`` represents, 0 for unobserved entries."""

    def solve(self, v: Tensor, noise: Scale, prior: Scale) -> Tensor:
        c, q = self.turn(v)
        total = _over(noise, c) + _over(prior, c) * _told(q, _over(noise, c))
        return self.turn_back(torch.where(total > 0, c / torch.where(total > 0, total, 1.0), 0.0))

    def log_normal(self, v: Tensor, noise: Scale, prior: Scale) -> Tensor:
        """Return log N(v; 0, σ² + r² A Aᵀ) in nats, (batch,); if singular, the density on its range."""
        c, q = self.turn(v)
        total = (_over(noise, c) + _over(prior, c) * _told(q, _over(noise, c))).expand_as(c)
        safe = torch.where(total > 0, total, 1.0)
        each = c.square() / safe + self.counted * (2 * math.pi * safe).log()
        return -0.5 * sum_events(torch.where(total > 0, each, 0.0))

    def unmet(self, y: Tensor) -> Tensor:
        """Return the fraction of each observation outside the range of A, ‖y − A A⁺ y‖/‖y‖, (batch,)."""
        c, q = self.turn(y)
        missed = sum_events(torch.where(_told(q, 0.0) > 0, 0.0, c).square())
        return (missed / sum_events(c.square()).clamp_min(torch.finfo(y.dtype).tiny)).sqrt()

    def amplified(self, y: Tensor) -> float:
        """Return how much more A⁺ amplifies some errors of observations such as y than others, at most."""
        _, q = self.turn(y)
        q = _told(q, 0.0)
        return float((q.max() / torch.where(q > 0, q, q.max()).min()).sqrt())


@dataclass(frozen=True, eq=False, repr=False)
class Mask(Diagonalised):
    """A mask of known entries: y = m x, with 0 for unknown ones. Its inverse problem is known as inpainting.

    Args:
        known: m, true for known entries, of the event's shape; with ``each`` (number, *event).
        each: Whether each example has its own mask.

    Raises:
        ArgumentError: The mask is not bool, or of 0 and 1; or nothing is known.
    """

    known: Tensor
    each: bool = False

    def __post_init__(self) -> None:
        known = self.known
        if not isinstance(known, Tensor):
            raise ArgumentError(f"a mask is a tensor of truth values, got {type(known).__name__}")
        if known.dtype != torch.bool:
            if not bool(((known == 0) | (known == 1)).all()):
                raise ArgumentError(
                    "a mask is true, or 1, where a number is known and 0 elsewhere; it has other values"
                )
            object.__setattr__(self, "known", known != 0)
        if not self.each and not bool(self.known.any()):
            raise ArgumentError("nothing is known by this mask: leave something out of what is gone")

    def __call__(self, x: Tensor) -> Tensor:
        return self._masked(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._masked(y)

    def seen(self, y: Tensor) -> Tensor:
        return self._masked(y)  # a selection, so that NaN in unknown entries does no harm

    def _masked(self, x: Tensor) -> Tensor:
        event = self.known.shape[1:] if self.each else self.known.shape
        if x.shape[1:] != event:
            several = not self.each and event[1:] == x.shape[1:]
            raise ArgumentError(
                f"the mask is of events {tuple(event)}, and these are {tuple(x.shape[1:])}: "
                + (
                    "one for each example is Mask(known, each=True)"
                    if several
                    else "give (number, *event), and a mask of one"
                )
            )
        return torch.where(self.known, x, torch.zeros((), dtype=x.dtype, device=x.device))

    def turn(self, v: Tensor) -> tuple[Tensor, Tensor]:
        return v, self.known.to(v.dtype)

    def turn_back(self, c: Tensor) -> Tensor:
        return c

    @property
    def counted(self) -> Tensor:  # type: ignore[override]
        return self.known

    @property
    def examples(self) -> int | None:
        return len(self.known) if self.each else None

    def rows(self, index: Tensor) -> Mask:
        return replace(self, known=self.known[index]) if self.each else self


class Separable(Diagonalised):
    """A separable linear map of pictures (…, height, width): A X = H X Wᵀ.

    The singular values of A are the products of those of H and W.
    """

    @abstractmethod
    def axis(self, size: int) -> Tensor:
        """Return the matrix (new size, size) along an axis, float64."""

    @abstractmethod
    def size_before(self, size: int) -> int:
        """Return the size of an axis of the event whose observation has the given size."""

    def _of(self, height: int, width: int, like: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return _factors(self, height, like.dtype, like.device), _factors(self, width, like.dtype, like.device)

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim < 3:
            raise ArgumentError(f"{self} is of pictures (batch, …, height, width), got {tuple(x.shape)}")
        (rows, *_), (columns, *_) = self._of(x.shape[-2], x.shape[-1], x)
        return rows @ x @ columns.mT

    def adjoint(self, y: Tensor) -> Tensor:
        (rows, *_), (columns, *_) = self._before(y)
        return rows.mT @ y @ columns

    def _before(self, y: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return self._of(self.size_before(y.shape[-2]), self.size_before(y.shape[-1]), y)

    def turn(self, v: Tensor) -> tuple[Tensor, Tensor]:
        (_, rows, q_rows), (_, columns, q_columns) = self._before(v)
        return rows.mT @ v @ columns, q_rows[:, None] * q_columns

    def turn_back(self, c: Tensor) -> Tensor:
        (_, rows, _), (_, columns, _) = self._before(c)
        return rows @ c @ columns.mT


@lru_cache(maxsize=64)
def _factors(operator: Separable, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return the matrix along an axis, and the eigenvectors and eigenvalues of its product with its transpose."""
    matrix = operator.axis(size)
    u, s, _ = torch.linalg.svd(matrix, full_matrices=True)
    q = s.new_zeros(len(u))
    q[: len(s)] = torch.where(s > s.max() * 1e-7, s, 0.0).square()
    return matrix.to(device, dtype), u.to(device, dtype), q.to(device, dtype)


@dataclass(frozen=True)
class Downsample(Separable):
    """Downsampling by an integer factor. Its inverse problem is known as super-resolution.

    Args:
        factor: ≥ 1; it divides height and width.
        kernel: ``box``: means of factor × factor pixels; ``bicubic``: the cubic of Keys with a = −1/2, stretched by the
            factor, with renormalised weights at the borders, as in Pillow and other libraries.

    Raises:
        ArgumentError: The factor is below 1 or the kernel unknown; when called, a size that is not a multiple of the
            factor.
    """

    factor: int
    kernel: Literal["box", "bicubic"] = "box"

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int) or self.factor < 1 or self.kernel not in ("box", "bicubic"):
            raise ArgumentError(
                f"pictures are reduced by a whole factor of at least 1 with the kernel box or bicubic, got {self.factor} "
                f"and {self.kernel!r}"
            )

    def axis(self, size: int) -> Tensor:
        if size % self.factor:
            raise ArgumentError(f"a factor of {self.factor} does not divide pictures of {size} rows or columns")
        scale = self.factor
        at = torch.arange(size, dtype=torch.float64) + 0.5
        centres = (torch.arange(size // scale, dtype=torch.float64)[:, None] + 0.5) * scale
        u = (at - centres).abs() / scale
        if self.kernel == "box":
            weights = (u < 0.5).double()
        else:
            inner = 1.5 * u**3 - 2.5 * u**2 + 1
            outer = -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
            weights = torch.where(u < 1, inner, torch.where(u < 2, outer, 0.0))
        return weights / weights.sum(1, keepdim=True)

    def size_before(self, size: int) -> int:
        return size * self.factor


@dataclass(frozen=True)
class Blur(Separable):
    """A Gaussian blur of pictures.

    Args:
        sigma: Standard deviation > 0, in pixels; the kernel is truncated at four of them.
        boundary: Extension beyond the border: ``reflect``, mirrored at the edge, or ``circular``, periodic.

    Raises:
        ArgumentError: A value is out of range, or the boundary unknown.
    """

    sigma: float
    boundary: Literal["reflect", "circular"] = "reflect"

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf or self.boundary not in ("reflect", "circular"):
            raise ArgumentError(
                f"a blur has a finite sigma above 0 and the boundary reflect or circular, got {self.sigma} and "
                f"{self.boundary!r}"
            )

    def axis(self, size: int) -> Tensor:
        radius = int(4 * self.sigma + 0.5)
        offsets = torch.arange(-radius, radius + 1)
        weights = torch.exp(-0.5 * (offsets.double() / self.sigma).square())
        weights = weights / weights.sum()
        at = torch.arange(size)[:, None] + offsets
        at = at % size if self.boundary == "circular" else at % (2 * size)
        at = torch.where(at < size, at, 2 * size - 1 - at)
        return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, at, weights.expand(size, -1))

    def size_before(self, size: int) -> int:
        return size


@dataclass(frozen=True, eq=False, repr=False)
class FourierMask(Diagonalised):
    """A subset of the orthonormal Fourier coefficients of pictures, over the last two dimensions, as in MRI.

    Observations hold real and imaginary parts, (batch, …, height, width, 2), and 0 for unknown coefficients. Noise is
    independent for each of these numbers. A real picture gives each coefficient twice, up to conjugation; their mean is
    used.

    Args:
        known: True for known coefficients, (height, width), in the order of :func:`torch.fft.fft2`. It must be
            symmetric under negation of the frequency, as a real picture has conjugate coefficients there.

    Raises:
        ArgumentError: The shape or the values are wrong, or a frequency lacks its negative.
    """

    known: Tensor

    def __post_init__(self) -> None:
        known = self.known
        if known.ndim != 2 or (known.dtype != torch.bool and not bool(((known == 0) | (known == 1)).all())):
            raise ArgumentError(
                f"a mask of frequencies is (height, width), true where a coefficient is known; got {tuple(known.shape)}"
            )
        object.__setattr__(self, "known", known.bool())
        if not torch.equal(self.known, _negated(self.known)):
            raise ArgumentError(
                "a mask of frequencies has with each its negative, the same coefficient of a real picture: take known | "
                "known.flip((0, 1)).roll((1, 1), (0, 1))"
            )

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.known.shape:
            raise ArgumentError(
                f"the mask of frequencies is of pictures {tuple(self.known.shape)}, and these are {tuple(x.shape[-2:])}"
            )
        return torch.view_as_real(torch.fft.fft2(x, norm="ortho")) * self.known[..., None]

    def adjoint(self, y: Tensor) -> Tensor:
        back: Tensor = torch.fft.ifft2(
            torch.view_as_complex((y * self.known[..., None]).contiguous()), norm="ortho"
        ).real
        return back

    def seen(self, y: Tensor) -> Tensor:
        return torch.where(self.known[..., None], y, 0.0)

    def turn(self, v: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = torch.view_as_complex(v.contiguous())
        even = (spectrum + _negated(spectrum).conj()) / 2  # the part that a real picture can have
        return torch.view_as_real(even), self.known.to(v.dtype)[..., None]

    def turn_back(self, c: Tensor) -> Tensor:
        return c

    @property
    def counted(self) -> Tensor:  # type: ignore[override]
        return 0.5 * self.known[..., None]


def _negated(spectrum: Tensor) -> Tensor:
    """Return a spectrum at the negative frequencies."""
    return spectrum.flip((-2, -1)).roll((1, 1), (-2, -1))


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(Diagonalised):
    """A matrix applied to the flattened event.

    Args:
        matrix: (observed, size of an event), or (number, observed, size of an event): one for each example.
        event: Shape of an event; ``None`` for vectors.

    Raises:
        ArgumentError: The shapes do not fit, or the matrix is not real.
    """

    matrix: Tensor
    event: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.matrix, Tensor) and not bool(torch.isfinite(self.matrix).all()):
            raise ArgumentError("the matrix of an operator has numbers that are not finite")
        if self.matrix.ndim not in (2, 3) or not self.matrix.is_floating_point():
            raise ArgumentError(
                "a matrix operator is of real numbers (observed, numbers of an event), or one for each example, got "
                f"{self.matrix.dtype} {tuple(self.matrix.shape)}"
            )
        event = self.matrix.shape[-1:] if self.event is None else self.event
        if math.prod(event) != self.matrix.shape[-1]:
            raise ArgumentError(f"the matrix has {self.matrix.shape[-1]} columns, and events {event} other numbers")
        object.__setattr__(self, "event", tuple(event))
        u, s, _ = torch.linalg.svd(self.matrix.double(), full_matrices=True)
        # The precision of 16-bit input is not used: by its rounding nearly all of a spectrum would count as zero.
        kept = torch.promote_types(self.matrix.dtype, torch.float32)
        small = s.amax(-1, keepdim=True) * max(self.matrix.shape[-2:]) * torch.finfo(kept).eps
        q = torch.nn.functional.pad(torch.where(s > small, s, 0.0).square(), (0, u.shape[-1] - s.shape[-1]))
        self._keep(u.to(kept), q.to(kept))

    def _keep(self, u: Tensor, q: Tensor) -> None:
        object.__setattr__(self, "_spectrum", (u, q))

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.event:
            event = tuple(x.shape[1:])
            fits = math.prod(event) == self.matrix.shape[-1]
            raise ArgumentError(
                f"the matrix is of events {self.event}, and these are {event}: "
                + (
                    f"give their shape as Matrix(matrix, {event})"
                    if fits
                    else "a matrix has a column for each number of one"
                )
            )
        return _times(self.matrix, x.flatten(1))

    def adjoint(self, y: Tensor) -> Tensor:
        return _times(self.matrix.mT, y).reshape(-1, *(self.event or ()))

    def turn(self, v: Tensor) -> tuple[Tensor, Tensor]:
        u, q = self._spectrum  # type: ignore[attr-defined]
        return _times(u.mT.to(v), v), q.to(v)

    def turn_back(self, c: Tensor) -> Tensor:
        return _times(self._spectrum[0].to(c), c)  # type: ignore[attr-defined]

    @property
    def examples(self) -> int | None:
        return len(self.matrix) if self.matrix.ndim == 3 else None

    def rows(self, index: Tensor) -> Matrix:
        if self.matrix.ndim == 2:
            return self
        return self._changed(lambda a: a[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Matrix:
        return self._changed(change)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Matrix:
        """Return the operator with changed tensors, without computing its spectrum again."""
        new = object.__new__(Matrix)
        object.__setattr__(new, "matrix", change(self.matrix))
        object.__setattr__(new, "event", self.event)
        new._keep(*map(change, self._spectrum))  # type: ignore[attr-defined]
        return new


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """Return the products of a matrix, or of one for each row, with the rows of x (batch, size)."""
    own = matrix.to(x)
    if own.ndim == 2 and x.ndim == 2:  # one product instead of one for each row: tens of times faster
        return x @ own.mT
    return (own @ x[..., None]).squeeze(-1)


def _told(q: Tensor, noise: Tensor | float) -> Tensor:
    """Return eigenvalues of A Aᵀ, with those of rounding errors set to 0 if there is no noise."""
    silent = q <= torch.finfo(q.dtype).eps * q.amax()
    return torch.where(silent & (torch.as_tensor(noise, device=q.device) == 0), 0.0, q)


def _over(scale: Scale, like: Tensor) -> Tensor | float:
    """Reshape a scale to broadcast against observations or events."""
    return over_events(scale, like) if isinstance(scale, Tensor) and scale.ndim == 1 and like.ndim > 1 else scale
