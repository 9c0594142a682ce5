"""Features of the Inception network of FID (Heusel et al., 2017, arXiv 1706.08500), with weights that you supply.

The network is Inception-v3, "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al., 2015), arXiv
1512.00567, as TensorFlow published it on 5 December 2015. It differs from later copies in pooling between layers:
averages exclude the padding, and the last block takes maxima. Images are resized to 299 × 299 as in TensorFlow 1,
bilinearly and aligned at the upper left corner, and scaled by (x − 128)/128. Parameters have the names used by
pytorch-fid and torch-fidelity, so that their weights load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from proxflow.errors import ArgumentError, CheckpointError
from proxflow.metrics.features import FeatureExtractor, weights_sha256
from proxflow.runtime.files import check_plain

SIZE = 299
DIMENSION = 2048

WHERE = (
    "the weights are the file pt_inception-2015-12-05-6726825d.pth of the releases of github.com/mseitzer/pytorch-fid "
    "(91 MB; also in those of github.com/toshas/torch-fidelity). It is a pickle, which this library does not read; convert "
    'it once: python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in '
    "torch.load('pt_inception-2015-12-05-6726825d.pth', weights_only=True).items()}, 'inception.safetensors')\". Or give a "
    "network that such a library has loaded: pytorch_fid.inception.fid_inception_v3()"
)

# A path through a block: layers by name, outputs and kernel; a tuple of layers runs in parallel.
Layer = tuple[str, int, tuple[int, int]]
Route = Sequence[Layer | tuple[Layer, Layer]]


class Convolution(nn.Module):
    """A convolution, batch normalisation and a rectifier."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Parallel paths and a pooling path, concatenated over channels.

    Args:
        inputs: Channels of the input.
        paths: Each a chain of layers.
        pool: The pooling.
        pooled: Channels of the layer ``branch_pool`` after it; 0 for none.
        stride: Stride of each path's last layer; above 1 there is no padding.
    """

    def __init__(
        self, inputs: int, paths: Sequence[Route], pool: Callable[[Tensor], Tensor], pooled: int = 0, stride: int = 1
    ) -> None:
        super().__init__()
        self.pool, self.names, self.outputs = pool, list[list[list[str]]](), pooled or inputs
        for path in paths:
            channels, names = inputs, list[list[str]]()
            for index, step in enumerate(path):
                layers: tuple[Layer, ...] = (step,) if isinstance(step[0], str) else step
                last = stride if index == len(path) - 1 else 1
                for name, outputs, kernel in layers:
                    self.add_module(name, Convolution(channels, outputs, kernel, last, padded=last == 1))
                channels = sum(outputs for _, outputs, _ in layers)
                names.append([name for name, _, _ in layers])
            self.names.append(names)
            self.outputs += channels
        if pooled:
            self.branch_pool = Convolution(inputs, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for names in self.names:
            y = x
            for step in names:
                y = torch.cat([self.get_submodule(name)(y) for name in step], dim=1)
            found.append(y)
        y = self.pool(x)
        found.append(self.branch_pool(y) if hasattr(self, "branch_pool") else y)
        return torch.cat(found, dim=1)


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 1, 1)


def _halve(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 2)


def _chain(name: str, *layers: tuple[int, int, int]) -> Route:
    """Return layers name_1, name_2, … by (outputs, height, width)."""
    return [(f"{name}_{index}", outputs, (high, wide)) for index, (outputs, high, wide) in enumerate(layers, 1)]


def _mixed_5(inputs: int, pooled: int) -> Block:
    paths = [
        [("branch1x1", 64, (1, 1))],
        _chain("branch5x5", (48, 1, 1), (64, 5, 5)),
        _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
    ]
    return Block(inputs, paths, _average, pooled)


def _mixed_6(c: int) -> Block:
    paths = [
        [("branch1x1", 192, (1, 1))],
        _chain("branch7x7", (c, 1, 1), (c, 1, 7), (192, 7, 1)),
        _chain("branch7x7dbl", (c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)),
    ]
    return Block(768, paths, _average, 192)


def _mixed_7(inputs: int, pool: Callable[[Tensor], Tensor]) -> Block:
    def fork(name: str) -> tuple[Layer, Layer]:
        return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

    paths: list[Route] = [
        [("branch1x1", 320, (1, 1))],
        [*_chain("branch3x3", (384, 1, 1)), fork("branch3x3_2")],
        [*_chain("branch3x3dbl", (448, 1, 1), (384, 3, 3)), fork("branch3x3dbl_3")],
    ]
    return Block(inputs, paths, pool, 192)


class Inception(nn.Module):
    """The Inception network: images (N, 3, H, W), floats 0 to 255 → features (N, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), padded=False)
        self.Mixed_5b = _mixed_5(192, 32)
        self.Mixed_5c = _mixed_5(256, 64)
        self.Mixed_5d = _mixed_5(288, 64)
        self.Mixed_6a = Block(
            288,
            [[("branch3x3", 384, (3, 3))], _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3))],
            _halve,
            stride=2,
        )
        self.Mixed_6b = _mixed_6(128)
        self.Mixed_6c = _mixed_6(160)
        self.Mixed_6d = _mixed_6(160)
        self.Mixed_6e = _mixed_6(192)
        self.Mixed_7a = Block(
            768,
            [
                _chain("branch3x3", (192, 1, 1), (320, 3, 3)),
                _chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)),
            ],
            _halve,
            stride=2,
        )
        self.Mixed_7b = _mixed_7(1280, _average)
        self.Mixed_7c = _mixed_7(2048, _maximum)

    def forward(self, images: Tensor) -> Tensor:
        x = (resize(images, SIZE) - 128.0) / 128.0
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halve(x)))
        x = _halve(x)
        for block in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c):
            x = block(x)
        for block in (self.Mixed_6d, self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c):
            x = block(x)
        return x.mean(dim=(2, 3))


def resize(images: Tensor, size: int) -> Tensor:
    """Resize bilinearly as TensorFlow 1: output pixel i is at input position i · old/new, without a half-pixel shift.

    Args:
        images: Floating point, (N, C, H, W).
        size: New height and width.
    """
    for axis in (3, 2):
        old = images.shape[axis]
        place = torch.arange(size, device=images.device, dtype=torch.float32) * torch.tensor(old / size)
        low = place.long()
        high = (low + 1).clamp_max(old - 1)
        weight = (place - low).to(images.dtype)
        weight = weight if axis == 3 else weight[:, None]
        below = images.index_select(axis, low)
        images = below + (images.index_select(axis, high) - below) * weight
    return images


def inception_features(weights: Path | str | nn.Module | None, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Return the extractor of standard FID: the Inception network's last pooling, 2,048 features.

    Args:
        weights: A safetensors file of the weights in the layout of pytorch-fid and torch-fidelity, or one of their
            networks with the weights loaded, for example ``pytorch_fid.inception.fid_inception_v3()``.
        device: Where to compute.

    Returns:
        An extractor for images of any size, RGB, or grey with the channel repeated. Its checksum is that of the
        weights, from either source.

    Raises:
        ArgumentError: No weights are given; the message says where to get them.
        CheckpointError: The file is missing, corrupt or no safetensors file, or holds other tensors.
    """
    if weights is None:
        raise ArgumentError(f"Inception features need weights: {WHERE}")
    if isinstance(weights, nn.Module):
        held, source = weights.state_dict(), type(weights).__name__
    else:
        held, source = _read(Path(weights)), str(weights)
    network = Inception()
    _load(network, held, source)
    network.eval().requires_grad_(False)
    sha256 = weights_sha256(network)
    return FeatureExtractor("inception-v3-2015-12-05", sha256, network.to(device), DIMENSION, None, _to_three_channels)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path}: is no .safetensors file; {WHERE}")
    try:
        check_plain(path)
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {WHERE}") from error


def _load(network: nn.Module, held: Mapping[str, Tensor], source: str) -> None:
    # Features do not depend on the count of training batches or the class scores, in which conversions differ.
    wanted = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, value in wanted.items():
        if name not in held or held[name].shape != value.shape:
            found = f"shape {tuple(held[name].shape)}" if name in held else "nothing"
            raise CheckpointError(
                f"{source}: expected {name} of shape {tuple(value.shape)}, found {found}: these are not the weights of FID; "
                f"{WHERE}"
            )
        if not bool(held[name].isfinite().all()):
            raise CheckpointError(f"{source}: {name} has values that are not finite; {WHERE}")
    extra = sorted(
        name for name in held if name not in wanted and not name.endswith("num_batches_tracked") and name[:3] != "fc."
    )
    if extra:
        raise CheckpointError(f"{source}: unknown {extra[0]}: these are not the weights of FID; {WHERE}")
    network.load_state_dict({name: held[name] for name in wanted}, strict=False)


def _to_three_channels(images: Tensor) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise ArgumentError(
            f"Inception features are of RGB or grey images, with 3 or 1 channels; got {images.shape[1]}"
        )
    return images.to(torch.float32).expand(-1, 3, -1, -1)
