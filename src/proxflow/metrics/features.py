"""Features of images: of small classifiers shipped with the package, of any network, or the pixels themselves.

Distances between image sets are comparable only on one extractor, so an extractor has a name and the sha256 of its
weights. ``python -m tools.train_classifier`` trained the classifiers. Digits and clothes have two each, a convolutional
one and, to check that results are not tuned to one network, one of another architecture. There are too few emoji for a
second one: principal components of pixels take its place.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from proxflow.errors import ArgumentError, CheckpointError
from proxflow.runtime.files import read_plain

WEIGHTS = Path(__file__).parent.parent / "weights"
"""Folder of the weights in the package."""


class _Classifier(nn.Module):
    """A classifier of small images, by default grey ones of 28 × 28 in ten classes, with a penultimate layer of 64.

    With 64 dimensions the covariance of a few hundred samples has full rank. The penultimate layer is linear and
    standardised (batch normalisation without scale and shift; the rectifier belongs to the head): no unit is dead, and
    each dimension has variance near 1 on the training images.
    """

    image_shape: tuple[int, int, int] = (1, 28, 28)
    classes = 10
    dimension = 64

    def __init__(self, layers: OrderedDict[str, nn.Module], width: int) -> None:
        super().__init__()
        layers["project"] = nn.Linear(width, 64, bias=False)
        layers["standardise"] = nn.BatchNorm1d(64, affine=False)
        self.body = nn.Sequential(layers)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, self.classes))

    @property
    def features(self) -> nn.Module:
        """The map from images (N, *image_shape) with values in [-1, 1] to features (N, dimension)."""
        return self.body

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, *image_shape) with values in [-1, 1]."""
        logits: Tensor = self.head(self.body(images))
        return logits


class SmallClassifier(_Classifier):
    """A convolutional classifier, whose features are the default ones."""

    def __init__(self) -> None:
        super().__init__(
            OrderedDict(
                stem=_convolution(1, 16),
                pool=nn.MaxPool2d(2),
                wide=_convolution(16, 48),
                down=_convolution(48, 64, stride=2),
                deep=_convolution(64, 64, padding=0),
                flatten=nn.Flatten(),
            ),
            64 * 5 * 5,
        )


class ColourClassifier(_Classifier):
    """A convolutional classifier for colour images of 32 × 32 in nine classes, emoji.

    It ends in means over quarters of the image, not in a layer over all positions, for which a few thousand images are
    too few.
    """

    image_shape = (3, 32, 32)
    classes = 9

    def __init__(self) -> None:
        super().__init__(
            OrderedDict(
                stem=_convolution(3, 24),
                pool=nn.MaxPool2d(2),
                wide=_convolution(24, 48),
                down=_convolution(48, 64, stride=2),
                deep=_convolution(64, 64),
                quarters=nn.AvgPool2d(4),
                flatten=nn.Flatten(),
            ),
            64 * 2 * 2,
        )


class SmallMixer(_Classifier):
    """A classifier without convolutions, for other features: 16 patches of 7 × 7, mixed across patches and channels.

    "MLP-Mixer: An all-MLP Architecture for Vision" (Tolstikhin et al., 2021), arXiv 2105.01601.
    """

    dimension = 63

    @property
    def features(self) -> nn.Module:
        """All features of the penultimate layer but the last, which the final norm makes a sum of the others."""
        return nn.Sequential(self.body, _First(self.dimension))

    def __init__(self) -> None:
        width, patch = 64, 7
        patches = (28 // patch) ** 2
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            cut=nn.Unfold(patch, stride=patch), turn=_Transposed(), embed=nn.Linear(patch * patch, width)
        )
        layers |= {f"mix{k}": _Mixing(patches, width) for k in range(4)}
        layers |= {"norm": nn.LayerNorm(width), "pool": _PatchMean()}
        super().__init__(layers, width)


class _First(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.number]


class _Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


class _PatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


class _Mixing(nn.Module):
    """Mix (batch, patches, channels) across patches, then across channels."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.across = nn.Sequential(nn.Linear(patches, 64), nn.GELU(), nn.Linear(64, patches))
        self.within = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norms[0](x).mT).mT
        mixed: Tensor = x + self.within(self.norms[1](x))
        return mixed


@dataclass(frozen=True)
class ShippedWeights:
    """Weights of a classifier in the package.

    Args:
        name: Name of the classifier in reports, and of its file.
        sha256: Checksum that the file must have.
        data: The data set of its training.
        network: Builds the untrained network.
    """

    name: str
    sha256: str
    data: str
    network: Callable[[], _Classifier] = SmallClassifier

    @property
    def path(self) -> Path:
        return WEIGHTS / f"{self.name}.safetensors"


CLASSIFIERS = {
    "mnist": ShippedWeights(
        "mnist-classifier", "953281188c15d41a3a9a176de1cdc0b7d2f874bab2253945d7dafc4975a555bc", "mnist"
    ),
    "fashion-mnist": ShippedWeights(
        "fashion-mnist-classifier", "8217dc00bb1692c516fef3fd30ebce20393c815a5f7499976038130db8c3ec52", "fashion-mnist"
    ),
    "mnist-mixer": ShippedWeights(
        "mnist-mixer", "44687aa8fd449e13bcbb90fac7dd1467341ad16f826abd69d003624ac1513ec9", "mnist", SmallMixer
    ),
    "fashion-mnist-mixer": ShippedWeights(
        "fashion-mnist-mixer",
        "07c30748edbc29e3cac3405b8868e738db6f4ef86b8e51d3aa0c303166ceef30",
        "fashion-mnist",
        SmallMixer,
    ),
    "emoji": ShippedWeights(
        "emoji-classifier",
        "670e9f4ab96c6f52a7aceeacae7312a67d7cf8839ac902d4c9eab200319754fd",
        "emoji",
        ColourClassifier,
    ),
}
"""Classifiers in the package, by training data set; the second one of each has the name given by :func:`second_of`."""


def second_of(dataset: str) -> str:
    """Return the name of a data set's second extractor, for :func:`proxflow.metrics.shipped_features`."""
    return "emoji-principal" if dataset == "emoji" else f"{dataset}-mixer"


def _convolution(inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def to_network_range(images: Tensor) -> Tensor:
    # The same scaling as in training; repeated here because metrics do not import data.
    return images.to(torch.float32) / 127.5 - 1.0


@dataclass(frozen=True)
class FeatureExtractor:
    """A named, fixed map of images to feature vectors; made by :meth:`of`, or by a function of this package.

    Args:
        name: Name in reports: scores with different extractors are not comparable.
        sha256: Checksum of the weights, for the same reason.
        network: In evaluation mode; takes the output of ``transform``, (N, …), and returns features, (N, D).
        dimension: D, the number of features.
        image_shape: (C, H, W) of the images; None if the network takes any.
        transform: Maps uint8 images to the network's input; the default is x / 127.5 − 1, the range of the models.
    """

    name: str
    sha256: str
    network: nn.Module
    dimension: int
    image_shape: tuple[int, int, int] | None = None
    transform: Callable[[Tensor], Tensor] = to_network_range

    @classmethod
    def of(
        cls,
        network: nn.Module,
        name: str,
        image_shape: tuple[int, int, int],
        transform: Callable[[Tensor], Tensor] = to_network_range,
    ) -> FeatureExtractor:
        """Make an extractor of any network, called ``name`` in reports, with the checksum of its weights.

        The name should say what the checksum does not: which layer is read, and what ``transform`` does.

        Args:
            network: Takes the output of ``transform`` and returns (N, D); in evaluation mode.
            name: Not empty.
            image_shape: (C, H, W) of the images.
            transform: Maps uint8 images (N, C, H, W) to the network's input.

        Raises:
            ArgumentError: The network is in training mode, or returns something else than (N, D), or the name is empty.
        """
        if not name:
            raise ArgumentError("name must not be empty: it says in reports which features these are")
        if network.training:
            raise ArgumentError(
                f"the network of {name} is in training mode, where an image's features depend on its batch; call its eval()"
            )
        extractor = cls(name, weights_sha256(network), network, 0, image_shape, transform)
        found = extractor._run(torch.zeros(2, *image_shape, dtype=torch.uint8))
        if found.ndim != 2 or len(found) != 2 or found.shape[1] == 0 or not found.is_floating_point():
            raise ArgumentError(
                f"the network of {name} must return floating-point features of shape (N, D); for 2 images it returned "
                f"{found.dtype} of shape {tuple(found.shape)}"
            )
        return cls(name, extractor.sha256, network, found.shape[1], image_shape, transform)

    @torch.inference_mode()
    def __call__(self, images: Tensor, batch_size: int = 100, dtype: torch.dtype = torch.float64) -> Tensor:
        """Compute the features block by block, on the device of the network.

        Args:
            images: uint8, (N, C, H, W), N at least 1, on any device. Models' values are clamped and quantised
                first (:func:`proxflow.data.to_bytes`), so that invisible differences do not count.
            batch_size: Images in a block; it bounds the memory and changes results only by rounding.
            dtype: Type of the result. Networks compute in float32, so float32 loses nothing and takes half the memory.

        Returns:
            On the CPU, (N, D).

        Raises:
            ArgumentError: The images have another type or shape, or the batch size is not positive.
        """
        if images.dtype != torch.uint8:
            raise ArgumentError(f"images must be uint8 (proxflow.data.to_bytes makes them so); got {images.dtype}")
        shape = self.image_shape or tuple(images.shape[1:])
        if images.ndim != 4 or images.shape[1:] != shape or images.numel() == 0:
            wanted = "N, C, H, W" if self.image_shape is None else ", ".join(map(str, ("N", *shape)))
            raise ArgumentError(
                f"{self.name} takes images of shape ({wanted}) with N at least 1; got {tuple(images.shape)}"
            )
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1; got {batch_size}")
        features = torch.empty(len(images), self.dimension, dtype=dtype)
        for start in range(0, len(images), batch_size):
            features[start : start + batch_size] = self._run(images[start : start + batch_size]).cpu()
        return features

    @torch.inference_mode()
    def _run(self, images: Tensor) -> Tensor:
        held = next(itertools.chain(self.network.parameters(), self.network.buffers()), None)
        with _full_precision():
            features: Tensor = self.network(self.transform(images if held is None else images.to(held.device)))
        return features


@contextmanager
def _full_precision() -> Iterator[None]:
    """Switch off TensorFloat-32, CUDA's default in convolutions, so that scores do not depend on it."""
    held = [(where, where.fp32_precision) for where in (torch.backends.cudnn.conv, torch.backends.cuda.matmul)]  # type: ignore[attr-defined]
    try:
        for where, _ in held:
            where.fp32_precision = "ieee"
        yield
    finally:
        for where, before in held:
            where.fp32_precision = before


def weights_sha256(network: nn.Module) -> str:
    """Return the checksum of the names, types, shapes and bytes of all parameters and buffers, in the order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def classifier_features(dataset: str = "mnist", device: torch.device | str = "cpu") -> FeatureExtractor:
    """Return the extractor for a data set: the penultimate layer of its shipped classifier, 64 features or 63.

    Args:
        dataset: The classifier's training data, "mnist", "fashion-mnist" or "emoji"; or "mnist-mixer" or
            "fashion-mnist-mixer" for the second ones.
        device: Where to compute.

    Raises:
        ArgumentError: There is no such classifier.
        CheckpointError: The shipped weights are missing or damaged.
    """
    network, weights = _loaded(dataset), CLASSIFIERS[dataset]
    made = network.features.to(device)
    return FeatureExtractor(weights.name, weights.sha256, made, network.dimension, network.image_shape)


def mnist_features(device: torch.device | str = "cpu") -> FeatureExtractor:
    """Return the extractor for MNIST, :func:`classifier_features` of "mnist".

    Raises:
        CheckpointError: The shipped weights are missing or damaged.
    """
    return classifier_features("mnist", device)


def pixel_features(image_shape: tuple[int, int, int]) -> FeatureExtractor:
    """Return the extractor of raw pixels in [-1, 1], C·H·W features, without a network.

    Args:
        image_shape: (C, H, W).
    """
    return FeatureExtractor.of(nn.Flatten().eval(), "pixels", image_shape)


def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images (uint8, (N, C, H, W)) whose most probable class is their label (int64, (N,))."""
    return int(class_hits(classifier, images, labels).sum()) / len(labels)


@torch.inference_mode()
def class_hits(
    classifier: nn.Module, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor] = to_network_range
) -> Tensor:
    """Return whether each image's most probable class is its label; the mean is the accuracy of class-conditional samples.

    Args:
        classifier: Takes the output of ``transform`` and returns logits (N, classes); in evaluation mode.
        images: uint8, (N, C, H, W).
        labels: int64, (N,): the classes for which the samples were drawn.
        transform: Makes uint8 images the classifier's input.

    Returns:
        bool, (N,).

    Raises:
        ArgumentError: The labels are of another type or number than the images, or none of the classifier's classes.
    """
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        raise ArgumentError(
            f"labels must be int64 of shape ({len(images)},), one an image; got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    hits = torch.empty(len(images), dtype=torch.bool)
    for start in range(0, len(images), 500):
        logits = classifier(transform(images[start : start + 500]))
        part = labels[start : start + 500]
        if int(part.min()) < 0 or int(part.max()) >= logits.shape[1]:
            raise ArgumentError(
                f"labels must be classes from 0 to {logits.shape[1] - 1}; got {torch.unique(part).tolist()}"
            )
        hits[start : start + 500] = logits.argmax(dim=1).cpu() == part
    return hits


def load_classifier(dataset: str = "mnist") -> nn.Module:
    """Load a shipped classifier by its name in :func:`classifier_features`, in evaluation mode, on the CPU.

    Raises:
        ArgumentError: There is no such classifier.
        CheckpointError: The shipped weights are missing or damaged.
    """
    return _loaded(dataset)


def _loaded(dataset: str) -> _Classifier:
    if dataset not in CLASSIFIERS:
        raise ArgumentError(f"no classifier of {dataset!r} in the package: expected {' or '.join(CLASSIFIERS)}")
    weights = CLASSIFIERS[dataset]
    return read_classifier(weights.path, weights.sha256, weights.network)


def read_classifier(path: Path, sha256: str, network: Callable[[], _Classifier] = SmallClassifier) -> _Classifier:
    """Load classifier weights in evaluation mode, on the CPU.

    Args:
        path: A safetensors file.
        sha256: The checksum that the file must have.
        network: Builds the classifier.

    Raises:
        CheckpointError: The file is missing or unreadable, has another checksum, or holds other tensors.
    """
    try:
        content = read_plain(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); reinstall the package") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CheckpointError(f"{path}: sha256 is {found}, expected {sha256}; reinstall the package")
    classifier = network()
    try:
        classifier.load_state_dict(load_safetensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not hold the weights of this classifier ({error})") from error
    return classifier.eval().requires_grad_(False)
