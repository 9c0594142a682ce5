"""Skewed affinities ∫ p^{1−s} q^s, the one integral behind Rényi, Hellinger and alpha divergences.

Per coordinate of an event; s may lie outside [0, 1], where the affinity can be infinite. Near p = q an affinity is
1 − O(|p − q|²), so its logarithm and its distance from 1 are computed directly, as sums of terms eˣ − 1 − x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxflow._math import exp_excess, log_ratio
from proxflow.beliefs import Categorical, DiagonalGaussian


def _excess(s: float, gap: Tensor) -> Tensor:
    """Compute (1 − s) e^{−s g} + s e^{(1−s) g} − 1, of the sign of s (1 − s); its two first-order terms cancel exactly."""
    return (1 - s) * exp_excess(-s * gap) + s * exp_excess((1 - s) * gap)


def gaussian_log_affinity(p: DiagonalGaussian, q: DiagonalGaussian, s: float) -> Tensor:
    """Compute log ∫ p^{1−s} q^s of each coordinate, the shape of the means; +∞ where the integral diverges."""
    largest = torch.maximum(p.std, q.std)
    precision = s * (p.std / largest).square() + (1 - s) * (q.std / largest).square()
    finite = precision > 0
    precision = torch.where(finite, precision, torch.ones_like(precision))
    shift = ((p.mean - q.mean) / largest).square() / precision
    gap = 2 * log_ratio(p.std, q.std)
    close = gap.abs() < 1
    near = torch.where(close & finite, _excess(s, torch.where(close, gap, torch.zeros_like(gap))), 0).log1p()
    far = torch.where(gap < 0, -s * gap, (1 - s) * gap) + precision.log()
    log_affinity = -0.5 * (s * (1 - s) * shift + torch.where(close, near, far))
    return torch.where(finite, log_affinity, torch.full_like(shift, torch.inf))


def categorical_deficit(p: Categorical, q: Categorical, s: float) -> Tensor:
    """Compute (1 − Σ p^{1−s} q^s) / (s (1 − s)) ≥ 0 of each coordinate, the shape of the logits less the classes."""
    log_p, log_q, gap = _with_gap(p, q)
    close = gap.abs() < 1
    near_gap = torch.where(close, gap, torch.zeros_like(gap))
    power = _power(log_p, log_q, s)
    near = torch.where(close, power, torch.zeros_like(power)) * _excess(s, near_gap)
    # Σ (1 − s) p + s q = 1, so each class contributes the gap between its weighted arithmetic and geometric mean.
    far = (1 - s) * log_p.exp() + s * log_q.exp() - power
    return torch.where(close, near, far).sum(-1) / (s * (1 - s))


def categorical_log_affinity(p: Categorical, q: Categorical, s: float) -> Tensor:
    """Compute log Σ p^{1−s} q^s of each coordinate, the shape of the logits less the classes."""
    missing = s * (1 - s) * categorical_deficit(p, q, s)
    near = missing.abs() < 0.5
    log_p, log_q, _ = _with_gap(p, q)
    direct = torch.logsumexp(_log_power(log_p, log_q, s), dim=-1)
    return torch.where(near, torch.where(near, -missing, torch.zeros_like(missing)).log1p(), direct)


def _with_gap(p: Categorical, q: Categorical) -> tuple[Tensor, Tensor, Tensor]:
    log_p, log_q = p.log_probs, q.log_probs
    neither = log_p.isneginf() & log_q.isneginf()
    return log_p, log_q, torch.where(neither, torch.zeros_like(log_p), log_q - log_p)


def _log_power(log_p: Tensor, log_q: Tensor, s: float) -> Tensor:
    """Compute log p^{1−s} q^s, −∞ for a class that both rule out."""
    neither = log_p.isneginf() & log_q.isneginf()
    power = (1 - s) * log_p.masked_fill(neither, 0) + s * log_q.masked_fill(neither, 0)
    return power.masked_fill(neither, -torch.inf)


def _power(log_p: Tensor, log_q: Tensor, s: float) -> Tensor:
    return _log_power(log_p, log_q, s).exp()
