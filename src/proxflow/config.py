"""Configurations: plain dataclasses, written to and read from JSON, importable without torch."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from proxflow.errors import ArgumentError, CheckpointError, whole_number

MethodName = Literal["flow", "distribution-matching", "autoguidance"]
PairSamplerName = Literal["deterministic", "multistep2", "midpoint"]
DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bf16"]
Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class TrainingConfig:
    """Training: AdamW with warm-up and cosine decay, gradient clipping, exponential moving average (EMA) of weights.

    Args:
        steps: Optimiser steps.
        batch_size: Examples per step.
        learning_rate: Peak learning rate of AdamW.
        warmup_steps: Steps of linear warm-up to the peak; cosine decay to zero follows.
        weight_decay: Weight decay of AdamW.
        clip: Largest norm of the gradient.
        ema: Decay of the exponential moving average of the weights, which are the ones kept; it warms up with the
            steps.
        seed: Seed of the initial weights, the order of the data, the times and the noise.
        checkpoint_every: Steps between checkpoints.
        keep: Number of newest checkpoints kept; the best is kept as well.
        skip_limit: Training stops when more than this many of 50 steps are skipped because loss or gradient was not
            finite.
        precision: bf16 runs the network in bfloat16 autocast, float32 does not; auto is bf16 on CUDA, float32
            elsewhere.
        accumulate: Gradient accumulation: parts that a step's batch is split into; less memory, same result.
        compile: Compile the network with torch.compile: slow to start, then faster on accelerators.
        parallel: With several processes, ddp keeps the whole network in each, fsdp a share of it.
        augment: Augmentation of images at each step, a comma-separated list: flip mirrors half of them, flip! also
            digits and letters; crop shifts them by up to an eighth of their sides, with reflected edges; zoom takes a
            part of half to all of them; binarise draws each pixel black or white, with its brightness as the
            probability. crop:64 takes windows of 64 x 64 pixels of larger images, and zoom:64 scales parts of them to
            64 x 64, which the model then learns; held-out images are centre-cropped or scaled instead.
        workers: Processes that read data not held in memory; 0 reads in the training process. The result is the same.
            By default data are held in memory if they take at most a quarter of what is free, and are else read by a
            process for each further core.
    """

    steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    skip_limit: int = 10
    precision: Precision = "auto"
    accumulate: int = 1
    compile: bool = False
    parallel: Parallel = "ddp"
    augment: str = ""
    workers: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type == "int":
                object.__setattr__(self, field.name, whole_number(getattr(self, field.name), field.name))
        at_least_one = ("steps", "batch_size", "checkpoint_every", "keep", "accumulate")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ArgumentError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.warmup_steps < 0 or not 0 <= self.weight_decay < math.inf or not 0 < self.clip < math.inf:
            raise ArgumentError("warmup_steps and weight_decay must not be negative, clip positive, and all finite")
        if not 0 <= self.ema < 1:
            raise ArgumentError(f"ema must lie in [0, 1), got {self.ema}")
        if self.skip_limit < 0:
            raise ArgumentError(f"skip_limit must not be negative, got {self.skip_limit}")
        if self.workers is not None:
            object.__setattr__(self, "workers", whole_number(self.workers, "workers"))
            if self.workers < 0:
                raise ArgumentError(f"workers must not be negative, got {self.workers}")
        if self.accumulate > self.batch_size:
            raise ArgumentError(f"a batch of {self.batch_size} cannot be worked through in {self.accumulate} parts")

    def decisive(self) -> dict[str, Any]:
        """The settings that affect the result, without those that only affect how it is computed and saved."""
        mechanics = {"checkpoint_every", "keep", "skip_limit", "accumulate", "compile", "parallel", "workers"}
        return {name: value for name, value in to_dict(self).items() if name not in mechanics}


T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[T], values: Any, where: str) -> T:
    """A configuration of type ``kind`` from plain JSON values.

    Raises:
        CheckpointError: A name is missing or unknown, or a value has the wrong type; ``where`` names the file.
    """
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: expected an object with the fields of {kind.__name__}, got {values!r:.80}")
    hints = get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise CheckpointError(f"{where}: unknown field {unknown[0]!r} for {kind.__name__}; known are {sorted(known)}")
    try:
        return kind(**{name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()})
    except (TypeError, ArgumentError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in inner:
            return value
        raise CheckpointError(f"{where} must be one of {list(inner)}, got {value!r:.80}")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _convert(next(t for t in inner if t is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list) or len(value) > 64:
            raise CheckpointError(f"{where} must be a short list, got {value!r:.80}")
        return tuple(_convert(inner[0], item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise CheckpointError(f"{where} must be of type {hint.__name__}, got {value!r:.80}")
    return value
