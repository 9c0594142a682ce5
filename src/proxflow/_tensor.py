"""Small tensor tools: randomness independent of the batch, broadcasting over events, stable special functions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from proxflow.errors import ArgumentError

_AT_ONCE, _AT_ONCE_ON_CPU = 2**22, 2**18
"""Numbers that streams make at once at most. A draw is some 30 operations, and to begin each of them after a network, with
cold caches or a launch, costs more than few numbers do; on a processor many more numbers would not fit the caches, and would
lie in memory that is fresh from the system each time."""


def _signed(word: int) -> int:
    """The 64-bit word as int64 has it."""
    return (word + 2**63) % 2**64 - 2**63


_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mixed(word: Tensor) -> Tensor:
    """SplitMix64's bijection of 64-bit words (Steele, Lea & Flood, OOPSLA 2014, with Stafford's variant 13), in place."""
    scratch = torch.empty_like(word)  # once: pages of new memory are a good part of what the draws cost

    def fold(shift: int) -> Tensor:
        # Shifts of int64 carry the sign along, which the mask takes off.
        shifted = torch.bitwise_right_shift(word, shift, out=scratch).bitwise_and_(2 ** (64 - shift) - 1)
        return word.bitwise_xor_(shifted)

    fold(30).mul_(_FIRST)  # products wrap around modulo 2^64, as they should
    fold(27).mul_(_SECOND)
    return fold(31)


class Streams(ABC):
    """Draws for each row of a batch that do not depend on the other rows it is drawn with.

    Drop-in for a :class:`torch.Generator` wherever this library takes one.
    """

    @abstractmethod
    def uniform(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Uniform draws from (0, 1), (batch, …)."""

    @abstractmethod
    def normal(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Standard normal draws, (batch, …)."""


class SampleStreams(Streams):
    """One random stream for each sample, a function of (seed, sample index) alone.

    The n-th draw for sample i is the same whatever other samples share its batch, on any device and in any precision, up to
    rounding. Word j of draw d of a sample is SplitMix64's of its start + j · its step + d · the golden ratio; start and step
    come from the seed and the index, as for the splittable generators of Steele, Lea & Flood (OOPSLA 2014).

    Args:
        seed: Any integer; taken modulo 2^64.
        indices: Index of each sample in the batch, integers (batch,), on the device of the draws.
        expected: About how many draws will be asked for. It changes none, only how many are made ahead.
    """

    def __init__(self, seed: int, indices: Tensor, expected: int = 0) -> None:
        if indices.ndim != 1 or indices.is_floating_point():
            raise ArgumentError(f"sample indices must be integers of shape (batch,), got {tuple(indices.shape)}")
        self.indices, self.expected = indices, expected
        self.at_once = _AT_ONCE_ON_CPU if indices.device.type == "cpu" else _AT_ONCE
        # Numbers 2i + 1 and 2i + 2 of SplitMix64 from the seed. Multiples of the golden ratio are so far from each other
        # that no seeds that are at all near have one in common.
        places = 2 * indices.long() + torch.arange(1, 3, device=indices.device)[:, None]
        start, step = _mixed(places * _GOLDEN + _signed(seed)).unsqueeze(-1).unbind()
        self._start, self._step = start, step.bitwise_or(1)
        self._draws = 0
        self._asked: tuple[bool, torch.Size, torch.dtype] | None = None
        self._ahead: list[Tensor] = []

    def uniform(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self._next(False, shape, dtype)

    def normal(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self._next(True, shape, dtype)

    def _next(self, normal: bool, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The next draw. Where it is like the last one, some that may follow are made with it."""
        if shape[0] != len(self.indices):
            raise ArgumentError(f"streams for {len(self.indices)} samples cannot fill a batch of {shape[0]}")
        again, self._asked = self._asked == (normal, shape, dtype), (normal, shape, dtype)
        if not again or not self._ahead:
            # Where nothing is known of those to come, as many as there were: at most half are made in vain.
            most = self.expected - self._draws if self.expected > self._draws else self._draws
            number = max(1, min(most, self.at_once // max(1, math.prod(shape)))) if again else 1
            event = math.prod(shape[1:])
            draws = torch.arange(self._draws, self._draws + number, device=self.indices.device)[:, None, None]
            made = (self._normal if normal else self._uniform)(self._words(draws, event), dtype)
            self._ahead = list(made[..., :event].reshape(number, *shape).unbind())[::-1]
        self._draws += 1
        return self._ahead.pop()

    def _words(self, draws: Tensor, numbers: int) -> Tensor:
        """32-bit words with their sign, int32 (draws, batch, numbers), one more where ``numbers`` is odd."""
        counts = torch.arange(-(-numbers // 2), device=self.indices.device)
        return _mixed((self._start + self._step * counts) + draws * _GOLDEN).view(torch.int32)

    @staticmethod
    def _uniform(words: Tensor, dtype: torch.dtype) -> Tensor:
        return words.double().add_(0.5).mul_(2.0**-32).add_(0.5).to(dtype)

    @staticmethod
    def _normal(words: Tensor, dtype: torch.dtype) -> Tensor:
        """Box–Muller. The first half of the words gives the radii, the second the angles."""
        first, second = words.chunk(2, dim=-1)
        precision = torch.float64 if dtype == torch.float64 else torch.float32
        # The lowest word, −2^31, must not become a uniform number of 0.
        radius = first.to(precision).mul_(2.0**-32 * (1 - 2.0**-24)).add_(0.5).log_().mul_(-2).sqrt_()
        angle = second.to(precision).mul_(math.pi * 2.0**-31)
        return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=-1).to(dtype)


class BatchRows(Streams):
    """The draws for some rows of a batch, out of draws for all of it from one torch generator.

    However a batch is shared out over parts and processes, each row gets the same numbers. The numbers of the other rows are
    drawn and dropped.

    Args:
        generator: Seeded alike for every part of the batch, and used for nothing else meanwhile.
        batch: Rows of the whole batch.
        rows: The rows wanted.
    """

    def __init__(self, generator: torch.Generator, batch: int, rows: range) -> None:
        self.generator, self.batch, self.rows = generator, batch, rows

    def uniform(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self._drawn(rand, shape, dtype)

    def normal(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self._drawn(randn, shape, dtype)

    def _drawn(self, draw: Callable[..., Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if shape[0] != len(self.rows):
            raise ArgumentError(f"{len(self.rows)} rows cannot fill a batch of {shape[0]}")
        drawn = draw(torch.Size([self.batch, *shape[1:]]), self.generator, dtype, self.generator.device)
        return drawn[self.rows.start : self.rows.stop]


Generator = torch.Generator | Streams
"""A source of randomness: torch's own, or streams that do not depend on the batch."""


def randn(shape: torch.Size, generator: Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal draws of the given shape."""
    if not isinstance(generator, torch.Generator):
        return generator.normal(shape, dtype)
    return torch.randn(shape, generator=generator, dtype=dtype, device=device)


def randn_like(x: Tensor, generator: Generator) -> Tensor:
    """Standard normal draws of the shape, type and device of ``x``; those of :func:`randn`, whatever the layout of ``x``."""
    if not isinstance(generator, torch.Generator):
        return generator.normal(x.shape, x.dtype)
    return torch.randn_like(x, generator=generator, memory_format=torch.contiguous_format)


def rand(shape: torch.Size, generator: Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uniform draws from (0, 1) of the given shape."""
    if not isinstance(generator, torch.Generator):
        return generator.uniform(shape, dtype)
    return torch.rand(shape, generator=generator, dtype=dtype, device=device).clamp_(min=torch.finfo(dtype).tiny)


def gumbel_max(log_probs: Tensor, generator: Generator) -> Tensor:
    """Draw a class index from log-probabilities (…, classes) → (…), by the Gumbel-max trick."""
    uniform = rand(log_probs.shape, generator, log_probs.dtype, log_probs.device)
    # Exponential draws, none exactly 0: in low precision a uniform draw may round to 1, and would then win always.
    exponential = (-uniform.log()).clamp_min(torch.finfo(uniform.dtype).tiny)
    return (log_probs - exponential.log()).argmax(-1)


def on_device(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers of the host as a float64 tensor, without the wait for the device that a copy is."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.float64, device=device)
    tensor = torch.zeros(len(values), dtype=torch.float64, device=device)
    torch._foreach_add_(list(tensor.unbind()), list(values))  # arguments of the kernel, and so also part of a graph
    return tensor


def one_hot(classes: Tensor, number: int, dtype: torch.dtype) -> Tensor:
    """e_x for class indices (…) → (…, number), unchecked: torch's own looks at the values, and so waits for the device."""
    return (classes[..., None] == torch.arange(number, device=classes.device)).to(dtype)


def over_events(t: Tensor | float, like: Tensor) -> Tensor:
    """Shape times or fractions, (batch,) or a scalar, so that they broadcast against ``like`` of shape (batch, …).

    Raises:
        ArgumentError: Neither a scalar nor one number for each example.
    """
    if not isinstance(t, Tensor) or t.dtype != like.dtype or t.device != like.device:
        t = torch.as_tensor(t, dtype=like.dtype, device=like.device)
    shape = t.shape
    if not shape:
        return t
    if shape != like.shape[:1]:
        raise ArgumentError(f"expected a scalar or a tensor of shape ({like.shape[0]},), got shape {tuple(shape)}")
    return t.view(-1, *(1,) * (like.ndim - 1))


def sum_events(values: Tensor) -> Tensor:
    """Sum over all dimensions but the first: (batch, …) → (batch,)."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def mean_events(values: Tensor) -> Tensor:
    """Mean over all dimensions but the first: (batch, …) → (batch,)."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


Function = Callable[[Tensor], Tensor]


def _piecewise(near_zero: Tensor, x: Tensor, series: Function, elsewhere: Function) -> Tensor:
    """``series(x)`` where ``near_zero``, else ``elsewhere(x)``.

    Each function sees only its own part (0 and 1/4 stand in for the rest), so no overflow or 0/0 of the branch that is
    not taken enters a gradient.
    """
    return torch.where(
        near_zero,
        series(torch.where(near_zero, x, torch.zeros_like(x))),
        elsewhere(torch.where(near_zero, torch.full_like(x, 0.25), x)),
    )


def log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """log(a/b) for positive numbers, to full relative accuracy also where a ≈ b."""
    gap = (a - b) / b
    close = gap > -0.5
    return torch.where(close, torch.where(close, gap, torch.zeros_like(gap)).log1p(), a.log() - b.log())


def exp_excess(x: Tensor) -> Tensor:
    """eˣ − 1 − x ≥ 0, to full relative accuracy also near 0; the divergences' values are sums of such terms."""

    def series(u: Tensor) -> Tensor:
        tail = torch.ones_like(u)
        for n in range(10, 2, -1):
            tail = 1 + u / n * tail
        return u * u / 2 * tail

    # The clamp changes no finite value (eˣ has overflowed by then) and makes the value at +∞ infinite, not NaN.
    return _piecewise(x.abs() < 0.1, x, series, lambda u: torch.expm1(u) - u.clamp(max=1e3))


def squared_arcsinh_sqrt(s: Tensor) -> Tensor:
    """arcsinh(√s)² for s ≥ 0: smooth at 0, with finite gradients there."""
    return _piecewise(
        s < 1e-3,
        s,
        lambda u: u * (1 - u * (1 / 3 - u * (8 / 45 - u * 4 / 35))),
        lambda u: torch.asinh(u.sqrt()).square(),
    )


def squared_arcsin_sqrt(s: Tensor) -> Tensor:
    """arcsin(√s)² for 0 ≤ s < 1: smooth at 0, with finite gradients there."""
    return _piecewise(
        s < 1e-3,
        s,
        lambda u: u * (1 + u * (1 / 3 + u * (8 / 45 + u * 4 / 35))),
        lambda u: torch.asin(u.sqrt()).square(),
    )


def sinh_ratio(fraction: Tensor, squared: Tensor) -> Tensor:
    """sinh(f d)/sinh(d) for 0 ≤ f ≤ 1 given d², without overflow for large d and smooth at d = 0."""
    f2 = fraction.square()

    def ratio(d2: Tensor) -> Tensor:
        d = d2.sqrt()
        return torch.exp((fraction - 1) * d) * torch.expm1(-2 * fraction * d) / torch.expm1(-2 * d)

    return _piecewise(
        squared < 1e-3,
        squared,
        lambda d2: fraction * (1 + (f2 - 1) * d2 / 6 * (1 + (3 * f2 - 7) * d2 / 60)),
        ratio,
    )


def sin_ratio(fraction: Tensor, squared: Tensor) -> Tensor:
    """sin(f φ)/sin(φ) for 0 ≤ f ≤ 1 given φ² < π², smooth at φ = 0."""
    f2 = fraction.square()
    return _piecewise(
        squared < 1e-3,
        squared,
        lambda a: fraction * (1 + (1 - f2) * a / 6 * (1 + (7 - 3 * f2) * a / 60)),
        lambda a: (fraction * a.sqrt()).sin() / a.sqrt().sin(),
    )


def log_weighted_sum(log_a: Tensor, log_b: Tensor, weight_a: Tensor, weight_b: Tensor) -> Tensor:
    """log(w_a eᵃ + w_b eᵇ) for weights ≥ 0, not both 0; either may be 0 and either logarithm −∞.

    Unlike ``logaddexp(a + log w_a, b + log w_b)`` it has finite gradients in the weights where one is 0.
    """
    nothing = torch.full_like(log_a, -torch.inf)
    anchor = torch.maximum(
        torch.where(weight_a > 0, log_a, nothing), torch.where(weight_b > 0, log_b, nothing)
    ).detach()
    anchor = torch.where(anchor.isneginf(), torch.zeros_like(anchor), anchor)
    # Only a term of weight 0 can exceed the anchor; the clamp keeps it from turning 0 · ∞ into NaN.
    total = weight_a * (log_a - anchor).clamp(max=80).exp() + weight_b * (log_b - anchor).clamp(max=80).exp()
    positive = total > 0
    return torch.where(positive, anchor + torch.where(positive, total, torch.ones_like(total)).log(), nothing)


def log_difference(log_a: Tensor, log_b: Tensor) -> Tensor:
    """log(eᵃ − eᵇ) for a > b; b may be −∞."""
    gap = log_b - log_a
    # log1p where e^gap is small, log(−expm1) where it is near 1: either alone loses half of the digits somewhere.
    near = gap > -0.69
    return log_a + torch.where(
        near,
        torch.where(near, -torch.expm1(gap), torch.ones_like(gap)).log(),
        torch.where(near, torch.zeros_like(gap), -gap.exp()).log1p(),
    )


def log_mix(log_p: Tensor, log_q: Tensor, fraction: Tensor) -> Tensor:
    """log((1 − f) p + f q) from log p and log q, exact at f = 0 and f = 1."""
    return log_weighted_sum(log_p, log_q, 1 - fraction, fraction)
