"""The tasks of all systems: data, network, training, and the score of samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from proxflow import data, metrics
from proxflow.config import TrainingConfig
from proxflow.nn import UNet
from proxflow.studies.presets import NFES


class Task(ABC):
    """Data, a network and a score.

    ``clip`` is the range of the data (lowest, highest), for systems that use it; ``sigma1`` the best σ₁ of Bayesian
    flows for the data; ``nfes`` the numbers of evaluations.
    """

    nfes: tuple[int, ...] = NFES
    name: str
    metric: str
    shape: tuple[int, ...]
    clip: tuple[float, float] | None
    sigma1: float

    @abstractmethod
    def data(self) -> Tensor:
        """Return the training data, as for :func:`proxflow.fit`."""

    @abstractmethod
    def network(self) -> nn.Module:
        """Return an untrained network (x, t) → tensor like x, t (batch,) in [0, 1], initialised by the global generator."""

    @abstractmethod
    def training(self, steps: int, seed: int) -> TrainingConfig: ...

    @abstractmethod
    def score(self, samples: Tensor) -> float:
        """Return the distance of samples to held-out data; lower is better."""

    @abstractmethod
    def floor(self, count: int) -> float:
        """Return the score of as many real training examples."""


class Pictures(Task):
    """Images in [-1, 1], a 16-channel U-Net, and the Fréchet distance to the test images on a classifier's features.

    ``dataset`` is the name of the data set, and of the classifier.
    """

    metric, clip = "frechet", (-1.0, 1.0)
    dataset: str

    def data(self) -> Tensor:
        return data.load(self.dataset, "train").images

    def network(self) -> nn.Module:
        return UNet(self.shape, channels=16, multipliers=(1, 2), blocks=1, patch=2).to(
            memory_format=torch.channels_last
        )

    def training(self, steps: int, seed: int) -> TrainingConfig:
        return TrainingConfig(steps=steps, batch_size=64, seed=seed, checkpoint_every=100)

    @cached_property
    def extractor(self) -> metrics.FeatureExtractor:
        return metrics.classifier_features(self.dataset)

    @cached_property
    def test(self) -> Tensor:
        return data.load(self.dataset, "test").images

    @cached_property
    def reference(self) -> metrics.GaussianStatistics:
        return metrics.GaussianStatistics.of(self.extractor(self.test), "real")

    def _distance(self, images: Tensor) -> float:
        found = metrics.GaussianStatistics.of(self.extractor(images), "samples")
        return float(metrics.frechet_distance(found, self.reference))

    def score(self, samples: Tensor) -> float:
        return self._distance(data.to_bytes(samples))

    def floor(self, count: int) -> float:
        picked = torch.randperm(len(self.data()), generator=torch.Generator().manual_seed(0))[:count]
        return self._distance(self.data()[picked])


class Mnist(Pictures):
    """MNIST at 28 × 28, the U-Net of the quick preset."""

    name = dataset = "mnist"
    shape, sigma1 = (1, 28, 28), 0.7


class Emoji(Pictures):
    """The embedded emoji at 32 × 32 in colour, a tenth of which are test images, by their code points.

    σ₁ was not tuned: 0.1 leaves as much noise at the end as the flow of the emoji study.
    """

    name = dataset = "emoji"
    shape, sigma1 = (3, 32, 32), 0.1
    nfes = (1, 2, 4, 10, 20)


class Perceptron(nn.Module):
    """Three hidden layers of 128 features, for points, with Fourier features of point and time.

    Without those of the point, a loss from which the linear part is removed (azula's preconditioning) leaves such a
    network at zero for thousands of steps.
    """

    def __init__(self, dimension: int, width: int = 128, waves: int = 8) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.arange(1, waves + 1), persistent=False)
        self.register_buffer("scales", 2.0 ** torch.arange(3), persistent=False)
        sizes = [7 * dimension + 2 * waves, width, width, width]
        hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, dimension))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        times = t.to(x.dtype).expand(len(x))[:, None] * self.frequencies
        points = (x[..., None] * self.scales).flatten(1)
        features = [x, points.cos(), points.sin(), times.cos(), times.sin()]
        output: Tensor = self.layers(torch.cat(features, dim=1))
        return output


class EightGaussians(Task):
    """Eight isotropic Gaussians of standard deviation 0.1 on a circle of radius √2: variance ≈ 1 per coordinate.

    The score is the sliced Wasserstein-2 distance over 256 directions to as many new points.
    """

    name, metric = "toy", "sliced_wasserstein"
    shape, clip, sigma1 = (2,), None, 0.05

    def draw(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        angle = torch.randint(8, (count,), generator=generator) * (math.pi / 4)
        centre = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], dim=1)
        return centre + 0.1 * torch.randn(count, 2, generator=generator)

    def data(self) -> Tensor:
        return self.draw(50_000, 1)

    def network(self) -> nn.Module:
        return Perceptron(2)

    def training(self, steps: int, seed: int) -> TrainingConfig:
        return TrainingConfig(steps=steps, batch_size=256, seed=seed)

    def score(self, samples: Tensor) -> float:
        angle = torch.arange(256, dtype=torch.float64) * (math.pi / 256)
        directions = torch.stack([angle.cos(), angle.sin()])
        ours, theirs = (
            (points.double() @ directions).sort(dim=0).values for points in (samples, self.draw(len(samples), 2))
        )
        return float((ours - theirs).square().mean().sqrt())

    def floor(self, count: int) -> float:
        return self.score(self.data()[:count])


TASKS: dict[str, Task] = {task.name: task for task in (Mnist(), EightGaussians(), Emoji())}
