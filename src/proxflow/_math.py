"""Small tensor tools: broadcasting over events, stable special functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from proxflow.errors import ArgumentError


def on_device(values: Sequence[float], device: torch.device) -> Tensor:
    """Return numbers of the host as a float64 tensor, without the synchronisation of a copy."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.float64, device=device)
    tensor = torch.zeros(len(values), dtype=torch.float64, device=device)
    torch._foreach_add_(list(tensor.unbind()), list(values))  # kernel arguments, and so also part of a CUDA graph
    return tensor


def one_hot(classes: Tensor, number: int, dtype: torch.dtype) -> Tensor:
    """Return e_x for class indices (…) → (…, number), unchecked: a check of the values would synchronise with the device."""
    return (classes[..., None] == torch.arange(number, device=classes.device)).to(dtype)


class _CrossEntropy(torch.autograd.Function):
    """−log softmax(logits)_x, which keeps one array of the size of the logits, in which the gradient is computed."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        ctx.save_for_backward(log_probs, x)
        ctx.dtype = logits.dtype
        found = log_probs.gather(-1, x.clamp_min(0)[..., None]).squeeze(-1)
        return torch.where(x < 0, 0, -found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        log_probs, x = ctx.saved_tensors
        off = log_probs.exp_()
        off.scatter_add_(-1, x.clamp_min(0)[..., None], off.new_full((), -1.0).expand(*x.shape, 1))
        return off.mul_(torch.where(x < 0, 0, gradient)[..., None]).to(ctx.dtype), None


class _SquaredGap(torch.autograd.Function):
    """‖e_x − softmax(logits)‖², likewise."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        off = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        off.scatter_add_(-1, x[..., None], off.new_full((), -1.0).expand(*x.shape, 1))
        ctx.save_for_backward(off, x)
        ctx.dtype = logits.dtype
        gap: Tensor = torch.linalg.vector_norm(off, dim=-1).square()
        return gap

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        off, x = ctx.saved_tensors  # softmax − e_x
        own = x[..., None]
        mean = torch.linalg.vecdot(off, off)[..., None] + off.gather(-1, own)  # Σ_k θ_k off_k
        found = (off - mean).mul_(2 * gradient[..., None])
        return found.mul_(off.scatter_add_(-1, own, torch.ones_like(off[..., :1]))).to(ctx.dtype), None


def class_cross_entropy(logits: Tensor, x: Tensor) -> Tensor:
    """Return −log softmax(logits)_x in nats for class indices (…), 0 where x < 0: logits (…, classes) → (…).

    To save memory with large vocabularies, nothing of the size of the logits is kept twice; only first derivatives
    exist.
    """
    found: Tensor = _CrossEntropy.apply(logits, x)  # type: ignore[no-untyped-call]
    return found


def squared_gap(logits: Tensor, x: Tensor) -> Tensor:
    """Return ‖e_x − softmax(logits)‖² for class indices (…), as :func:`class_cross_entropy`."""
    found: Tensor = _SquaredGap.apply(logits, x)  # type: ignore[no-untyped-call]
    return found


def over_events(t: Tensor | float, like: Tensor) -> Tensor:
    """Reshape times or fractions, (batch,) or a scalar, to broadcast against ``like`` of shape (batch, …).

    Raises:
        ArgumentError: The shape is neither () nor (batch,).
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
    """Average over all dimensions but the first: (batch, …) → (batch,)."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


Function = Callable[[Tensor], Tensor]


def _piecewise(near_zero: Tensor, x: Tensor, series: Function, elsewhere: Function) -> Tensor:
    """Return ``series(x)`` where ``near_zero``, else ``elsewhere(x)``.

    Each function is only evaluated on its part (0 and 1/4 replace the rest), so that no overflow or 0/0 of the other
    branch enters a gradient.
    """
    return torch.where(
        near_zero,
        series(torch.where(near_zero, x, torch.zeros_like(x))),
        elsewhere(torch.where(near_zero, torch.full_like(x, 0.25), x)),
    )


def bisect(rise: Function, wanted: Tensor, low: float, high: float) -> Tensor:
    """Solve rise(u) = wanted for each entry, for a function increasing from ``low`` to ``high``, to about the last bit."""
    below, above = torch.full_like(wanted, low), torch.full_like(wanted, high)
    for _ in range(80):
        middle = (below + above) / 2
        early = rise(middle) < wanted
        below, above = torch.where(early, middle, below), torch.where(early, above, middle)
    return middle


def log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Compute log(a/b) for positive numbers, to full relative accuracy also where a ≈ b."""
    gap = (a - b) / b
    close = gap > -0.5
    return torch.where(close, torch.where(close, gap, torch.zeros_like(gap)).log1p(), a.log() - b.log())


def exp_excess(x: Tensor) -> Tensor:
    """Compute eˣ − 1 − x ≥ 0, to full relative accuracy also near 0; values of divergences are sums of such terms."""

    def series(u: Tensor) -> Tensor:
        tail = torch.ones_like(u)
        for n in range(10, 2, -1):
            tail = 1 + u / n * tail
        return u * u / 2 * tail

    # The clamp changes no finite value (eˣ overflows before) and makes the value at +∞ infinite, not NaN.
    return _piecewise(x.abs() < 0.1, x, series, lambda u: torch.expm1(u) - u.clamp(max=1e3))


def _arcsin_series(s: Tensor) -> Tensor:
    """Compute arcsin(√s)²/s near s = 0; at −s it is arcsinh(√s)²/s."""
    return 1 + s * (1 / 3 + s * (8 / 45 + s * 4 / 35))


def squared_arcsinh_sqrt(s: Tensor) -> Tensor:
    """Compute arcsinh(√s)² for s ≥ 0: smooth at 0, with finite gradients there."""
    return _piecewise(s < 1e-3, s, lambda u: u * _arcsin_series(-u), lambda u: torch.asinh(u.sqrt()).square())


def squared_arcsin_sqrt(s: Tensor) -> Tensor:
    """Compute arcsin(√s)² for 0 ≤ s < 1: smooth at 0, with finite gradients there."""
    return _piecewise(s < 1e-3, s, lambda u: u * _arcsin_series(u), lambda u: torch.asin(u.sqrt()).square())


def _sinh_ratio_series(fraction: Tensor, squared: Tensor) -> Tensor:
    """Compute sinh(f d)/sinh(d) near d² = 0; at −φ² it is sin(f φ)/sin(φ)."""
    f2 = fraction.square()
    return fraction * (1 + (f2 - 1) * squared / 6 * (1 + (3 * f2 - 7) * squared / 60))


def sinh_ratio(fraction: Tensor, squared: Tensor) -> Tensor:
    """Compute sinh(f d)/sinh(d) for 0 ≤ f ≤ 1 given d², without overflow for large d and smooth at d = 0."""

    def ratio(d2: Tensor) -> Tensor:
        d = d2.sqrt()
        return torch.exp((fraction - 1) * d) * torch.expm1(-2 * fraction * d) / torch.expm1(-2 * d)

    return _piecewise(squared < 1e-3, squared, lambda d2: _sinh_ratio_series(fraction, d2), ratio)


def sin_ratio(fraction: Tensor, squared: Tensor) -> Tensor:
    """Compute sin(f φ)/sin(φ) for 0 ≤ f ≤ 1 given φ² < π², smooth at φ = 0."""

    def ratio(a: Tensor) -> Tensor:
        return (fraction * a.sqrt()).sin() / a.sqrt().sin()

    return _piecewise(squared < 1e-3, squared, lambda a: _sinh_ratio_series(fraction, -a), ratio)


def log_weighted_sum(log_a: Tensor, log_b: Tensor, weight_a: Tensor, weight_b: Tensor) -> Tensor:
    """Compute log(w_a eᵃ + w_b eᵇ) for weights ≥ 0, not both 0; either may be 0 and either logarithm −∞.

    Unlike ``logaddexp(a + log w_a, b + log w_b)`` it has finite gradients in weights of 0.
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
    """Compute log(eᵃ − eᵇ) for a > b; b may be −∞."""
    gap = log_b - log_a
    # log1p for small e^gap, log(−expm1) near 1: either alone loses half of the digits somewhere.
    near = gap > -0.69
    return log_a + torch.where(
        near,
        torch.where(near, -torch.expm1(gap), torch.ones_like(gap)).log(),
        torch.where(near, torch.zeros_like(gap), -gap.exp()).log1p(),
    )


def log_mix(log_p: Tensor, log_q: Tensor, fraction: Tensor) -> Tensor:
    """Compute log((1 − f) p + f q) from log p and log q, exact at f = 0 and f = 1."""
    return log_weighted_sum(log_p, log_q, 1 - fraction, fraction)
