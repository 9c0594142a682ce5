"""Features of images without a network: the principal components of their pixels."""

from __future__ import annotations

import hashlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn import functional

from proxflow.errors import ArgumentError, CheckpointError
from proxflow.metrics.features import WEIGHTS, FeatureExtractor, classifier_features, to_network_range
from proxflow.runtime.files import read_plain

NUMBER, SQUARE = 64, 2
"""Number of components, and the side in pixels of the squares that images are first averaged over."""

PRINCIPAL = {"emoji-principal": "bc668b0e6fdd52fffc23ad6b8acd874fb7a57a541799fc7e2cb5e1d3c8060bcf"}
"""Checksums of the files of components in the package, by name; ``python -m tools.principal`` made them."""


class Principal(nn.Module):
    """A linear map of images to principal components, with mean variance 1 on the images it was computed from.

    All components share one scale: with variance 1 each, the least informative would count as much as the most
    informative, and the distance of 2,000 training emoji to the held-out ones would be 0.22 of that of noise, instead
    of 0.07.

    Args:
        mean: Mean of the images, (C, H, W) after means over squares.
        directions: (D, C · H · W).
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, mean: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)

    @classmethod
    def of(cls, images: Tensor, number: int = NUMBER) -> Principal:
        """Compute the components of images of bytes, those of the largest variance.

        Signs make the largest entry of a direction positive, so that the result does not depend on the solver.

        Args:
            images: uint8 (N, C, H, W), N above ``number``; H and W are multiples of 2.
            number: How many.

        Raises:
            ArgumentError: There are too few images.
        """
        small = functional.avg_pool2d(to_network_range(images).double(), SQUARE)
        if not 0 < number < min(len(small), small[0].numel()):
            raise ArgumentError(f"{number} components need more images and values than that, got {tuple(images.shape)}")
        mean = small.mean(0)
        centred = (small - mean).flatten(1)
        values, vectors = torch.linalg.eigh(centred.T @ centred / (len(centred) - 1))
        chosen = vectors[:, -number:].flip(1).T
        largest = chosen.gather(1, chosen.abs().argmax(1, keepdim=True))
        directions = chosen * largest.sign() / values[-number:].mean().sqrt()
        return cls(mean.float(), directions.float())

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, D) of images (N, C, 2 H, 2 W) with values in [-1, 1]."""
        return (functional.avg_pool2d(images, SQUARE) - self.mean).flatten(1) @ self.directions.T


def principal_features(name: str = "emoji-principal", device: torch.device | str = "cpu") -> FeatureExtractor:
    """Return an extractor of principal components of pixels, 64 features; its file is in the package.

    Args:
        name: A key of :data:`PRINCIPAL`.
        device: Where to compute.

    Raises:
        ArgumentError: There is no extractor of this name.
        CheckpointError: The file is missing or damaged.
    """
    if name not in PRINCIPAL:
        raise ArgumentError(f"no principal components {name!r} in the package: expected {' or '.join(PRINCIPAL)}")
    path = WEIGHTS / f"{name}.safetensors"
    try:
        content = read_plain(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); reinstall the package") from error
    found = hashlib.sha256(content).hexdigest()
    if found != PRINCIPAL[name]:
        raise CheckpointError(f"{path}: sha256 is {found}, expected {PRINCIPAL[name]}; reinstall the package")
    try:
        held = load_safetensors(content)
        network = Principal(held["mean"], held["directions"])
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path}: does not hold principal components ({error})") from error
    channels, height, width = network.mean.shape
    shape = (channels, SQUARE * height, SQUARE * width)
    return FeatureExtractor(name, found, network.eval().to(device), len(network.directions), shape)


def shipped_features(name: str = "mnist", device: torch.device | str = "cpu") -> FeatureExtractor:
    """Return an extractor in the package: of a classifier, see :func:`classifier_features`, or of principal components.

    Args:
        name: A key of :data:`proxflow.metrics.CLASSIFIERS` or of :data:`PRINCIPAL`.
        device: Where to compute.

    Raises:
        ArgumentError: There is no extractor of this name.
        CheckpointError: Its file is missing or damaged.
    """
    return principal_features(name, device) if name in PRINCIPAL else classifier_features(name, device)
