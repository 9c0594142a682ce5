"""Features of images: the penultimate layer of a small digit classifier, shipped with the package.

Distances between image sets are only comparable on one extractor, so it carries its name and the sha256 of its
weights. Trained by ``python -m proxflow.experiments.train_classifier``.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from proxflow.errors import ArgumentError, CheckpointError

MNIST_WEIGHTS = Path(__file__).parent.parent / "weights" / "mnist-classifier.safetensors"
MNIST_WEIGHTS_SHA256 = "953281188c15d41a3a9a176de1cdc0b7d2f874bab2253945d7dafc4975a555bc"


class DigitClassifier(nn.Module):
    """A convolutional classifier of 28 × 28 grey images into ten classes, with a 64-dimensional penultimate layer.

    64 dimensions, so that the covariance of a few hundred samples has full rank. The penultimate layer is linear and
    standardised (batch normalisation without scale and shift; the rectifier belongs to the head): no dead units, and
    each dimension has variance near 1 on the training images.
    """

    image_shape = (1, 28, 28)
    dimension = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            OrderedDict(
                stem=_convolution(1, 16),
                pool=nn.MaxPool2d(2),
                wide=_convolution(16, 48),
                down=_convolution(48, 64, stride=2),
                deep=_convolution(64, 64, padding=0),
                flatten=nn.Flatten(),
                project=nn.Linear(64 * 5 * 5, self.dimension, bias=False),
                standardise=nn.BatchNorm1d(self.dimension, affine=False),
            )
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(self.dimension, 10))

    def features(self, images: Tensor) -> Tensor:
        """Values in [-1, 1], (N, 1, 28, 28) → (N, 64)."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Values in [-1, 1], (N, 1, 28, 28) → logits (N, 10)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _convolution(inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@dataclass(frozen=True)
class FeatureExtractor:
    """A named, fixed map of images to feature vectors.

    Args:
        name: For reports; numbers on different extractors are not comparable.
        sha256: Checksum of the weight file, for the same reason.
        network: Values in [-1, 1] of shape (N, 1, 28, 28) → features (N, D), by its method ``features``.
    """

    name: str
    sha256: str
    network: DigitClassifier

    @property
    def dimension(self) -> int:
        """D, the number of features."""
        return self.network.dimension

    @torch.inference_mode()
    def __call__(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Computes the features block by block, on the device of the network.

        Args:
            images: uint8, (N, 1, 28, 28), N at least 1, on any device. Models' values are clamped and quantised
                first (:func:`proxflow.data.to_bytes`), so that nothing invisible counts.
            batch_size: Images per block; bounds the memory, changes results by rounding only.

        Returns:
            float64 on the CPU, (N, D).

        Raises:
            ArgumentError: The images have another type or shape, or the batch size is not positive.
        """
        if images.dtype != torch.uint8:
            raise ArgumentError(f"images must be uint8 (proxflow.data.to_bytes makes them so); got {images.dtype}")
        shape = self.network.image_shape
        if images.ndim != 4 or images.shape[1:] != shape or len(images) == 0:
            raise ArgumentError(
                f"{self.name} takes images of shape (N, {', '.join(map(str, shape))}) with N at least 1; "
                f"got {tuple(images.shape)}"
            )
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1; got {batch_size}")
        device = next(self.network.parameters()).device
        blocks = [self.network.features(_to_range(block.to(device))) for block in torch.split(images, batch_size)]
        return torch.cat([block.cpu() for block in blocks]).to(torch.float64)


def mnist_features(device: torch.device | str = "cpu") -> FeatureExtractor:
    """The extractor for MNIST: the shipped classifier's penultimate layer, 64 features.

    Raises:
        CheckpointError: The shipped weights are missing or damaged.
    """
    network = load_classifier()
    return FeatureExtractor("mnist-classifier", MNIST_WEIGHTS_SHA256, network.to(device))


@torch.inference_mode()
def accuracy(classifier: DigitClassifier, images: Tensor, labels: Tensor) -> float:
    """Share of images (uint8, (N, 1, 28, 28)) whose most probable class is their label (int64, (N,))."""
    hits = 0
    for block, truth in zip(torch.split(images, 500), torch.split(labels, 500), strict=True):
        hits += int((classifier(_to_range(block)).argmax(dim=1) == truth).sum())
    return hits / len(labels)


def load_classifier(path: Path = MNIST_WEIGHTS, sha256: str = MNIST_WEIGHTS_SHA256) -> DigitClassifier:
    """Loads classifier weights in evaluation mode, on the CPU.

    Args:
        path: A safetensors file.
        sha256: The checksum that the file must have.

    Raises:
        CheckpointError: The file is missing or unreadable, has another checksum, or holds other tensors.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); reinstall the package") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CheckpointError(f"{path}: sha256 is {found}, expected {sha256}; reinstall the package")
    classifier = DigitClassifier()
    try:
        classifier.load_state_dict(load_safetensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not hold the weights of this classifier ({error})") from error
    return classifier.eval().requires_grad_(False)


def _to_range(images: Tensor) -> Tensor:
    # The same map as in training; written here because metrics stand apart from data.
    return images.to(torch.float32) / 127.5 - 1.0
