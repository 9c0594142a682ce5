"""All scores of samples against a reference of real samples, prepared once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.metrics._input import as_features
from proxflow.metrics.frechet import GaussianStatistics, frechet_distance, frechet_estimate
from proxflow.metrics.kernel import KernelSums, kernel_estimate
from proxflow.metrics.manifolds import Manifold, nearest_distances, overlap, spread
from proxflow.metrics.sliced import sliced_estimate, sorted_projections
from proxflow.metrics.uncertainty import Estimate, bootstrap, mean_estimate
from proxflow.metrics.vendi import vendi_estimate

COVERAGE_K = 5
"""k of the k-nearest-neighbour balls of density and coverage, as their authors recommend."""


@dataclass(frozen=True)
class Scores:
    """Scores of samples against real ones; comparable only at equal ``samples`` and with the same extractor.

    Args:
        frechet: Fréchet distance, 0 at best.
        precision: Fraction of samples within the real manifold.
        recall: Fraction of real samples within the samples' manifold.
        diversity: Mean pairwise distance relative to real samples; 1 as diverse, 0 collapsed.
        samples: The number of samples scored.
        kid: Unbiased squared kernel distance, 0 at best; may be negative.
        kid_error: Its standard error over samples and reference.
        density: Mean number of real balls that contain a sample, divided by k; about 1 at best.
        coverage: Fraction of real balls that contain a sample.
        vendi: Effective number of different samples.
        sliced_wasserstein: Sliced 2-Wasserstein distance, 0 at best.
        nearest: Mean distance to the nearest training sample; None without training features.
        nearest_real: The same for the reference's held-out real samples: ``nearest`` well below it means memorisation.
        accuracy: Fraction of class-conditional samples classified as their class; None without labels.
        intervals: By name of score, the 95 % bootstrap interval over samples with a fixed reference. Without ``frechet``
            if there are no more samples than dimensions.
        errors: Standard errors by name of score, likewise.
    """

    frechet: float
    precision: float
    recall: float
    diversity: float
    samples: int
    kid: float
    kid_error: float
    density: float
    coverage: float
    vendi: float
    sliced_wasserstein: float
    nearest: float | None = None
    nearest_real: float | None = None
    accuracy: float | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def as_floor(self) -> dict[str, float]:
        """Return these scores, of real samples, as entries of a record: ``floor``, ``floor_precision`` and so on."""
        held = {name: getattr(self, name) for name in _FLOORS}
        return {"floor": self.frechet, **{f"floor_{name}": value for name, value in held.items()}}

    def _repr_html_(self) -> str:
        """Return a table for a notebook: each score, its standard error and its 95 % interval."""
        lines = []
        for name in ("frechet", *_FLOORS, "nearest", "accuracy"):
            value, error, interval = getattr(self, name), self.errors.get(name), self.intervals.get(name)
            if value is not None:
                shown = (
                    name.replace("_", " "),
                    f"{value:.4g}",
                    "–" if error is None else f"{error:.2g}",
                    "–" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}",
                )
                lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in shown) + "</tr>")
        head = "".join(f"<th>{title}</th>" for title in ("score", "value", "standard error", "95 % interval"))
        return f"<b>Scores</b> of {self.samples} samples<table><tr>{head}</tr>{''.join(lines)}</table>"


_FLOORS = ("kid", "precision", "recall", "density", "coverage", "diversity", "vendi", "sliced_wasserstein")


@dataclass(frozen=True)
class Reference:
    """Real samples prepared for comparison, made by :meth:`of`.

    Args:
        statistics: Mean and covariance of their features.
        manifold: Their features, distances to their neighbours and to each other.
        kernel: Their terms of the kernel distance.
        k: The neighbour that the balls of precision and recall reach to.
        training: Features of the training set, or None.
        nearest_real: Mean distance of the real samples to their nearest training sample, or None.
    """

    statistics: GaussianStatistics
    manifold: Manifold
    kernel: KernelSums
    k: int
    training: Tensor | None = None
    nearest_real: float | None = None

    @classmethod
    def of(cls, features: Tensor, k: int = 3, training: Tensor | None = None) -> Reference:
        """Prepare real features (N, D), N > k and N > 5, for example those of the MNIST test images.

        Args:
            features: Of real samples that no model was trained on.
            k: The neighbour that the balls of precision and recall reach to.
            training: Features of the training set, (T, D), for the distance to the nearest of them.

        Raises:
            ArgumentError: The features are not finite or too few, or k is not positive.
        """
        if k < 1:
            raise ArgumentError(f"k must be at least 1; got {k}")
        manifold = Manifold.of(features, max(k, COVERAGE_K), "real")
        nearest = None if training is None else float(nearest_distances(training, features).mean())
        kernel = KernelSums.of(features, "real")
        return cls(GaussianStatistics.of(features, "real"), manifold, kernel, k, training, nearest)

    @cached_property
    def sides(self) -> Tensor:
        """Their sorted projections for the sliced distance: sorting is half of the work of scoring."""
        return sorted_projections(self.manifold.features)

    def score(self, features: Tensor, hits: Tensor | None = None, seed: int = 0) -> Scores:
        """Score samples by their features.

        Args:
            features: (M, D) of the same extractor, M > k.
            hits: bool, (M,): whether a classifier assigns each sample to its class, for class-conditional samples.
            seed: Seed of the bootstrap's draws.

        Raises:
            ArgumentError: The features are not finite, too few or of another dimension.
        """
        held = as_features(features, "sample")
        manifold = Manifold.of(held, self.k, "sample")
        found = overlap(self.manifold, manifold, self.k, COVERAGE_K)
        kid, kernel = kernel_estimate(self.kernel, KernelSums.of(held, "sample"))
        estimates = {
            "precision": found.precision,
            "recall": found.recall,
            "diversity": spread(self.manifold, manifold),
            "kid": kernel,
            "density": found.density,
            "coverage": found.coverage,
            "vendi": vendi_estimate(held),
            "sliced_wasserstein": sliced_estimate(self.manifold.features, held, known=self.sides),
        }
        if self.training is not None:
            estimates["nearest"] = mean_estimate(nearest_distances(self.training, held))
        if hits is not None:
            estimates["accuracy"] = _hits_estimate(hits, len(held))
        frechet = frechet_estimate(held, self.statistics)
        if frechet is None:
            distance = frechet_distance(GaussianStatistics.of(held, "sample"), self.statistics)
        else:
            distance = frechet.value
            estimates["frechet"] = frechet
        return Scores(
            frechet=distance,
            samples=len(held),
            kid_error=kid.standard_error,
            nearest_real=self.nearest_real,
            intervals=bootstrap(estimates, seed),
            errors={name: estimate.standard_error for name, estimate in estimates.items()},
            **{name: estimate.value for name, estimate in estimates.items() if name != "frechet"},
        )


def _hits_estimate(hits: Tensor, count: int) -> Estimate:
    if hits.dtype != torch.bool or hits.shape != (count,):
        raise ArgumentError(f"hits must be bool of shape ({count},); got {hits.dtype} of shape {tuple(hits.shape)}")
    return mean_estimate(hits)


def real_floor(reference: Reference, features: Tensor, n: int, seed: int) -> Scores:
    """Return the scores of n other real samples, the floor that a perfect model reaches at this sample count.

    Args:
        reference: The reference that samples are scored against.
        features: Features of other real samples, for example of the MNIST training images, (N, D).
        n: How many of them to score: the first n of a random permutation.
        seed: Seed of the permutation.

    Raises:
        ArgumentError: n is not between 1 and N, or scoring refuses the samples.
    """
    held = as_features(features, "real")
    if not 1 <= n <= len(held):
        raise ArgumentError(f"n must be from 1 to the number of real samples, {len(held)}; got {n}")
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(seed))
    # They may be training samples themselves; the baseline of ``nearest`` is ``Reference.nearest_real``.
    return replace(reference, training=None, nearest_real=None).score(held[order[:n]])
