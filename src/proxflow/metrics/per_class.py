"""Scores of class-conditional samples within each class; scores of all samples miss those of the wrong class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.metrics._input import as_features
from proxflow.metrics.frechet import frechet_distance
from proxflow.metrics.manifolds import precision_recall


@dataclass(frozen=True)
class ClassScores:
    """Scores within each class; comparable only at equal numbers of samples per class and with the same extractor.

    Args:
        classes: The labels, in order.
        frechet: Fréchet distance of the samples of each class to its real samples.
        precision: Fraction of its samples within the manifold of its real samples.
        recall: Fraction of its real samples within the manifold of its samples.
    """

    classes: tuple[int, ...]
    frechet: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]

    @property
    def mean_frechet(self) -> float:
        """Mean of the classes' Fréchet distances."""
        return sum(self.frechet) / len(self.frechet)

    @property
    def mean_precision(self) -> float:
        """Mean of the classes' precisions."""
        return sum(self.precision) / len(self.precision)

    @property
    def mean_recall(self) -> float:
        """Mean of the classes' recalls."""
        return sum(self.recall) / len(self.recall)


def class_scores(real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor, k: int = 3) -> ClassScores:
    """Score samples against the real ones of their own class, for each class that they have.

    The mean Fréchet distance is known as intra FID: "cGANs with Projection Discriminator" (Miyato & Koyama, 2018),
    arXiv 1802.05637. It is large if samples do not belong to the class they were drawn for, or lack diversity within
    it.

    Args:
        real: Features of real samples, (N, D).
        real_labels: Their labels, int64 (N,).
        fake: Features of samples from the same extractor, (M, D).
        fake_labels: The labels they were drawn for, int64 (M,).
        k: The neighbour that the balls of precision and recall reach to.

    Raises:
        ArgumentError: Labels of the wrong number or type; a class with too few samples, real or drawn; features that
            are not finite.
    """
    held = []
    for features, labels, name in ((real, real_labels, "real"), (fake, fake_labels, "sample")):
        whole = as_features(features, name)
        if labels.shape != (len(whole),) or labels.dtype != torch.int64:
            raise ArgumentError(f"{name} labels are int64 ({len(whole)},), got {labels.dtype} {tuple(labels.shape)}")
        held.append((whole, labels.to(whole.device)))
    (all_real, of_real), (all_fake, of_fake) = held
    classes = tuple(torch.unique(of_fake).tolist())
    frechet, precision, recall = [], [], []
    for label in classes:
        own, drawn = all_real[of_real == label], all_fake[of_fake == label]
        if min(len(own), len(drawn)) <= k:
            raise ArgumentError(
                f"class {label} has {len(own)} real samples and {len(drawn)} drawn ones: expected more than {k} of both"
            )
        frechet.append(frechet_distance(own, drawn))
        near, far = precision_recall(own, drawn, k)
        precision.append(near)
        recall.append(far)
    return ClassScores(classes, tuple(frechet), tuple(precision), tuple(recall))


def labels_in_proportion(labels: Tensor, number: int) -> Tensor:
    """Return sorted labels in the proportions of given ones: the same counts if the numbers are equal.

    Shares are rounded down, and the remainder goes to the classes with the largest fractional parts.

    Args:
        labels: int64 (N,), at least one.
        number: How many to return, int64 (number,).
    """
    classes, counts = torch.unique(labels, return_counts=True)
    shares = counts * number
    chosen = shares // len(labels)
    order = torch.argsort(shares - chosen * len(labels), descending=True, stable=True)
    chosen[order[: number - int(chosen.sum())]] += 1
    return torch.repeat_interleave(classes, chosen)
