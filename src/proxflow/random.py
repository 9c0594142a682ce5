"""Randomness: streams and draws that do not depend on the batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from proxflow.errors import ArgumentError

_AT_ONCE, _AT_ONCE_ON_CPU = 2**22, 2**18
"""Most numbers that streams generate at once. A draw is some 30 operations, whose overhead, by cold caches or kernel
launches, exceeds the cost of few numbers; on a CPU many more numbers would not fit the caches, and would be in newly
allocated memory each time."""


def _signed(word: int) -> int:
    """Return a 64-bit word as a signed integer."""
    return (word + 2**63) % 2**64 - 2**63


_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mixed(word: Tensor) -> Tensor:
    """Apply SplitMix64's bijection of 64-bit words with Stafford's variant 13, in place.

    "Fast Splittable Pseudorandom Number Generators" (Steele, Lea & Flood, 2014).
    """
    scratch = torch.empty_like(word)  # allocated once: new memory pages are a large part of the cost of draws

    def fold(shift: int) -> Tensor:
        # Shifts of int64 extend the sign, which the mask removes.
        shifted = torch.bitwise_right_shift(word, shift, out=scratch).bitwise_and_(2 ** (64 - shift) - 1)
        return word.bitwise_xor_(shifted)

    fold(30).mul_(_FIRST)  # products wrap around modulo 2^64, as intended
    fold(27).mul_(_SECOND)
    return fold(31)


class Streams(ABC):
    """Random streams for the rows of a batch: draws for a row do not depend on the other rows.

    A replacement for a :class:`torch.Generator` wherever this library takes one.
    """

    @abstractmethod
    def draw(self, normal: bool, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Draw standard normal numbers, (batch, …), or uniform ones from (0, 1)."""

    def uniform(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Draw uniform numbers from (0, 1), (batch, …)."""
        return self.draw(False, shape, dtype)

    def normal(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Draw standard normal numbers, (batch, …)."""
        return self.draw(True, shape, dtype)


class SampleStreams(Streams):
    """One random stream for each sample, a function of (seed, sample index) only.

    The n-th draw for sample i is the same whatever other samples share its batch, on any device and in any precision,
    up to rounding. Word j of draw d of a sample is SplitMix64's mix of start + j · step + d · golden ratio, with the
    sample's start and step from the seed and the index, as in "Fast Splittable Pseudorandom Number Generators" (Steele,
    Lea & Flood, 2014).

    Args:
        seed: Any integer; taken modulo 2^64.
        indices: Index of each sample in the batch, integers (batch,), on the device of the draws.
        expected: Approximate number of draws. It does not change them, only how many are made in advance.
    """

    def __init__(self, seed: int, indices: Tensor, expected: int = 0) -> None:
        if indices.ndim != 1 or indices.is_floating_point():
            raise ArgumentError(f"sample indices must be integers of shape (batch,), got {tuple(indices.shape)}")
        self.indices, self.expected = indices, expected
        self.at_once = _AT_ONCE_ON_CPU if indices.device.type == "cpu" else _AT_ONCE
        # Numbers 2i + 1 and 2i + 2 of SplitMix64 from the seed. Neighbouring seeds have none of them in common, as
        # multiples of the golden ratio lie far from each other.
        places = 2 * indices.long() + torch.arange(1, 3, device=indices.device)[:, None]
        start, step = _mixed(places * _GOLDEN + _signed(seed)).unsqueeze(-1).unbind()
        self._start, self._step = start, step.bitwise_or(1)
        self._draws = 0
        self._asked: tuple[bool, torch.Size, torch.dtype] | None = None
        self._ahead: list[Tensor] = []

    def draw(self, normal: bool, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return the next draw. If it is like the last one, some further ones are made in advance."""
        if shape[0] != len(self.indices):
            raise ArgumentError(f"streams for {len(self.indices)} samples cannot fill a batch of {shape[0]}")
        again, self._asked = self._asked == (normal, shape, dtype), (normal, shape, dtype)
        if not again or not self._ahead:
            # If the number to come is unknown, as many as there were: at most half are wasted.
            most = self.expected - self._draws if self.expected > self._draws else self._draws
            number = max(1, min(most, self.at_once // max(1, math.prod(shape)))) if again else 1
            event = math.prod(shape[1:])
            draws = torch.arange(self._draws, self._draws + number, device=self.indices.device)[:, None, None]
            made = (self._normal if normal else self._uniform)(self._words(draws, event), dtype)
            self._ahead = list(made[..., :event].reshape(number, *shape).unbind())[::-1]
        self._draws += 1
        return self._ahead.pop()

    def _words(self, draws: Tensor, numbers: int) -> Tensor:
        """Make signed 32-bit words, int32 (draws, batch, numbers), one more if ``numbers`` is odd."""
        counts = torch.arange(-(-numbers // 2), device=self.indices.device)
        return _mixed((self._start + self._step * counts) + draws * _GOLDEN).view(torch.int32)

    @staticmethod
    def _uniform(words: Tensor, dtype: torch.dtype) -> Tensor:
        return words.double().add_(0.5).mul_(2.0**-32).add_(0.5).to(dtype)

    @staticmethod
    def _normal(words: Tensor, dtype: torch.dtype) -> Tensor:
        """Make normal numbers by Box–Muller. The first half of the words gives the radii, the second the angles."""
        first, second = words.chunk(2, dim=-1)
        precision = torch.float64 if dtype == torch.float64 else torch.float32
        # The lowest word, −2^31, must not become a uniform number of 0.
        radius = first.to(precision).mul_(2.0**-32 * (1 - 2.0**-24)).add_(0.5).log_().mul_(-2).sqrt_()
        angle = second.to(precision).mul_(math.pi * 2.0**-31)
        return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=-1).to(dtype)


class BatchRows(Streams):
    """The draws for some rows of a batch, selected from draws for the whole batch from one torch generator.

    However a batch is divided into parts and processes, each row gets the same numbers. Those of other rows are drawn
    and discarded.

    Args:
        generator: Generator with the same seed for every part of the batch, not used elsewhere meanwhile.
        batch: Rows of the whole batch.
        rows: The selected rows.
    """

    def __init__(self, generator: torch.Generator, batch: int, rows: range) -> None:
        self.generator, self.batch, self.rows = generator, batch, rows

    def draw(self, normal: bool, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if shape[0] != len(self.rows):
            raise ArgumentError(f"{len(self.rows)} rows cannot fill a batch of {shape[0]}")
        whole, source = torch.Size([self.batch, *shape[1:]]), self.generator
        drawn = (randn if normal else rand)(whole, source, dtype, source.device)
        return drawn[self.rows.start : self.rows.stop]


Generator = torch.Generator | Streams
"""A random generator: torch's own, or streams that do not depend on the batch."""


def mix(seed: int, step: int) -> int:
    """Return a seed for one step. With seed + step instead, runs with neighbouring seeds would share random numbers."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % 2**63


def randn(shape: torch.Size, generator: Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draw standard normal numbers of the given shape."""
    if not isinstance(generator, torch.Generator):
        return generator.normal(shape, dtype)
    return torch.randn(shape, generator=generator, dtype=dtype, device=device)


def randn_like(x: Tensor, generator: Generator) -> Tensor:
    """Draw standard normal numbers like ``x``: those of :func:`randn`, whatever the memory layout of ``x``."""
    if not isinstance(generator, torch.Generator):
        return generator.normal(x.shape, x.dtype)
    return torch.randn_like(x, generator=generator, memory_format=torch.contiguous_format)


def rand(shape: torch.Size, generator: Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draw uniform numbers from (0, 1) of the given shape."""
    if not isinstance(generator, torch.Generator):
        return generator.uniform(shape, dtype)
    return torch.rand(shape, generator=generator, dtype=dtype, device=device).clamp_(min=torch.finfo(dtype).tiny)


def gumbel_max(log_probs: Tensor, generator: Generator) -> Tensor:
    """Draw a class index from log-probabilities (…, classes) → (…), by the Gumbel-max trick.

    In float64: uniform numbers of single precision have no tail, which lowers the temperature of many classes: "Masked
    Diffusion Models are Secretly Time-Agnostic Masked Models" (Zheng et al., 2024), arXiv 2409.02908, § 4.
    """
    uniform = rand(log_probs.shape, generator, torch.float64, log_probs.device)
    # Exponential draws, none exactly 0: a uniform draw may round to 1, and would then always win.
    exponential = uniform.log().neg_().clamp_min_(torch.finfo(torch.float64).tiny)
    return (log_probs - exponential.log_()).argmax(-1)
