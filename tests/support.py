"""What several test files share."""

import os
from pathlib import Path

import pytest
import torch

from proxflow import data
from proxflow.data import fashion_mnist
from proxflow.random import SampleStreams

needs_fashion_mnist = pytest.mark.skipif(
    not fashion_mnist.FOLDER.is_dir(), reason="needs the images: apt-get install dataset-fashion-mnist"
)


def first_images(number: int):
    """What ``data.load`` may be for a test: it gives the first images alone, with their labels."""
    load = data.load

    def first(source, split):
        whole = load(source, split)
        labels = None if whole.labels is None else whole.labels[:number]
        return data.ImageData(whole.name, whole.images[:number], labels)

    return first


def vectors() -> Path:
    """Folder of the recorded test vectors: ``PROXFLOW_VECTORS`` when set, so that others of the same form can be run."""
    return Path(os.environ.get("PROXFLOW_VECTORS") or Path(__file__).parent / "vectors")


class Recorded(SampleStreams):
    """A source of draws that gives recorded ones, in order."""

    def __init__(self, *draws: torch.Tensor) -> None:
        super().__init__(0, torch.arange(1))
        self.draws = list(draws)

    def normal(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        return self.draws.pop(0).reshape(shape).to(dtype)

    def uniform(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        return self.draws.pop(0).reshape(shape).to(dtype)


class GaussianData:
    """The exact predictor for data x ~ N(mean, std²) in each coordinate, on any Gaussian path μ = a x + b ε.

    By Gaussian conditioning E[x | μ] = mean + a std² (μ − a mean)/(a² std² + b²).
    """

    def __init__(self, flow, mean: float, std: float) -> None:
        self.path, self.mean, self.std = flow.path, mean, std
        self.spread = getattr(getattr(flow, "endpoints", None), "target_std", 0.0)
        self.calls = 0

    def __call__(self, belief, t: torch.Tensor):
        self.calls += 1
        a, b = (c.reshape(-1, *[1] * (belief.mean.ndim - 1)) for c in self.path.coefficients(t.double()))
        total = (a * self.std) ** 2 + b**2
        gain = torch.where(total > 0, a * self.std**2 / total.clamp_min(1e-300), torch.zeros_like(total))
        predicted = (self.mean + gain * (belief.mean - a * self.mean)).to(belief.mean.dtype)
        return type(belief)(predicted, torch.full_like(predicted, self.spread))
