"""Models on disk: a folder with ``config.json`` and ``model.safetensors``, or the name of one that is shipped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxflow.checkpoints import load_weights, write_tensors
from proxflow.config import ModelConfig, from_dict, read_json, to_dict
from proxflow.divergences import KL, FisherRao, ReverseKL, Wasserstein2
from proxflow.errors import ArgumentError, CheckpointError
from proxflow.files import writable_folder, write_json
from proxflow.flows import BFN, GPFN, Flow
from proxflow.nn import UNet
from proxflow.predictors import PointPredictor, Predictor

FORMAT = 1
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Model:
    """A predictor with the flow it belongs to and the shape of its events.

    Args:
        config: What it was built from.
        shape: Shape of an event: (channels, height, width).
        flow: Where beliefs start and how they move.
        predictor: The network with its parameterisation.
    """

    config: ModelConfig
    shape: tuple[int, ...]
    flow: Flow[Any]
    predictor: Predictor


def build(config: ModelConfig, shape: tuple[int, ...]) -> Model:
    """Build an untrained model for images of the given shape (channels, height, width), with values in [-1, 1].

    Initial weights come from torch's global generator: seed it first.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ArgumentError(f"image models need a shape (channels, height, width), got {tuple(shape)}")
    network = unet(config, shape[0])
    flow: Flow[Any]
    if config.flow == "bfn":  # as the reference has it: noise prediction, clipped in the loss as well
        flow = BFN(sigma1=1e-3)
        predictor = PointPredictor(network, flow, parameterisation="epsilon", clip_in_training=True)
    elif config.flow == "bfn-tuned":
        flow = BFN(sigma1=config.sigma1)
        predictor = PointPredictor(network, flow)
    else:
        geometry = {
            "gpfn-w2": Wasserstein2(),
            "gpfn-kl": KL(),
            "gpfn-reverse-kl": ReverseKL(),
            "gpfn-fisher-rao": FisherRao(),
        }
        flow = GPFN(geometry[config.flow])
        predictor = PointPredictor(network, flow)
    return Model(config, tuple(shape), flow, predictor)


def unet(config: ModelConfig, channels: int) -> UNet:
    """The untrained U-Net of a configuration, for images of the given number of channels."""
    network: UNet = UNet(
        channels,
        channels=config.channels,
        multipliers=config.multipliers,
        blocks=config.blocks,
        attention=config.attention,
        patch=config.patch,
        dropout=config.dropout,
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def save(folder: Path, model: Model, weights: dict[str, Tensor], provenance: dict[str, Any]) -> None:
    """Write a model folder, atomically file by file.

    Raises:
        OutputError: The folder cannot be written.
    """
    write_tensors(writable_folder(folder) / "model.safetensors", weights)
    write_json(
        folder / "config.json",
        {"format": FORMAT, "model": to_dict(model.config), "shape": list(model.shape), "provenance": provenance},
    )


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def load(source: str | Path = "mnist", device: torch.device | str = "cpu") -> Model:
    """Load a trained model by the name of a shipped one, or from a folder.

    Raises:
        CheckpointError: No such model, or its files are corrupt or do not belong together.
    """
    folder = SHIPPED / source if str(source) in shipped_models() else Path(source)
    if not folder.is_dir():
        raise CheckpointError(
            f"no model {str(source)!r}: expected a folder with config.json and model.safetensors, or one of the shipped "
            f"models: {', '.join(shipped_models()) or 'none'}"
        )
    path = folder / "config.json"
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected a model configuration of format {FORMAT}")
    config = from_dict(ModelConfig, content.get("model"), str(path))
    shape = content.get("shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 1 <= n <= 4096 for n in shape)):
        raise CheckpointError(f"{path}: shape must be [channels, height, width], got {json.dumps(shape)[:80]}")
    try:
        model = build(config, tuple(shape))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    load_weights(model.predictor, folder / "model.safetensors")
    model.predictor.eval().to(device)
    return model
