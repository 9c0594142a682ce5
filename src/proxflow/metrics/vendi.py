"""The Vendi score, the effective number of different samples.

"The Vendi Score: A Diversity Evaluation Metric for Machine Learning" (Friedman & Dieng, 2022), arXiv 2210.02410.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proxflow.metrics._input import as_features, row_blocks
from proxflow.metrics.uncertainty import Estimate


def vendi_score(features: Tensor) -> float:
    """Return exp of the Shannon entropy of the eigenvalues of K/N, with the cosine similarity K of features.

    It is 1 if all samples have the same direction, and at most N and the dimension of the features (plus one, see
    below). It uses no real samples: noise can be as diverse as data. K/N has the eigenvalues of XᵀX/N for normalised
    rows, so the cost grows with N D², not with N³. Samples of length zero have no direction: they count as equal to
    each other and different from all others.

    Args:
        features: (N, D), N at least 2.

    Raises:
        ArgumentError: Features are not finite or too few.
    """
    return vendi_estimate(features).value


def vendi_estimate(features: Tensor) -> Estimate:
    """Return the Vendi score with the influence of each sample: V (−yᵀ log(ρ) y − H) for the unit vector y and ρ = YᵀY/N."""
    held = as_features(features, "sample")
    n, dimension = held.shape
    if n < dimension:
        return _of_few(held)
    density = torch.zeros(dimension, dimension, dtype=torch.float64)
    empty = 0
    for _, block in row_blocks(held):
        unit, zero = _directions(block)
        density.addmm_(unit.T, unit)
        empty += int(zero.sum())
    values, vectors = torch.linalg.eigh(density / n)
    kept = values > values[-1].clamp_min(1.0 / n) * dimension * torch.finfo(values.dtype).eps
    logarithms = torch.where(kept, values, 1.0).log()
    alone = math.log(empty / n) if empty else 0.0
    entropy = -float((values * logarithms).sum()) - alone * empty / n
    score = math.exp(entropy)
    surprise = torch.empty(n, dtype=torch.float64)
    for rows, block in row_blocks(held):
        unit, zero = _directions(block)
        surprise[rows] = torch.where(zero, -alone, -((unit @ vectors).square() @ logarithms))
    return Estimate(score, score * (surprise - surprise.mean()))


def _of_few(held: Tensor) -> Estimate:
    """Return it for fewer samples than dimensions, from their inner products YYᵀ/N, which have the eigenvalues of ρ."""
    n = len(held)
    unit, zero = _directions(held.double())
    values, vectors = torch.linalg.eigh(unit @ unit.T / n)
    kept = values > values[-1].clamp_min(1.0 / n) * n * torch.finfo(values.dtype).eps
    spectrum, logarithms = torch.where(kept, values, 0.0), torch.where(kept, values, 1.0).log()
    empty = int(zero.sum())
    alone = math.log(empty / n) if empty else 0.0
    score = math.exp(-float(spectrum @ logarithms) - alone * empty / n)
    surprise = torch.where(zero, -alone, -n * (vectors.square() @ (spectrum * logarithms)))
    return Estimate(score, score * (surprise - surprise.mean()))


def _directions(block: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows scaled to length 1, and which of them have length 0."""
    largest = block.abs().amax(dim=1, keepdim=True)
    # Scaled by the largest entry first, as squares of tiny entries would vanish.
    scaled = block / torch.where(largest > 0, largest, 1.0)
    length = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1.0), largest[:, 0] == 0
