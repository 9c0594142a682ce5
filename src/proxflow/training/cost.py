"""Estimated cost of training: parameters, operations and memory, counted on the meta device."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from proxflow.config import TrainingConfig

_COUNTED = 2
"""Number of examples used for counting."""

_KEPT = 5
"""Numbers of four bytes per parameter: its value, gradient, two moments and average."""

H100, SHARE, MEMORY = 989e12, 0.4, 80e9
"""Operations per second of an H100 in bfloat16, the fraction that large networks reach, and its memory in bytes."""


_SHORTEST = 1e-4
"""Seconds below which the time of a step is not determined by operations."""


@dataclass(frozen=True)
class Cost:
    """Cost of a training step.

    Args:
        parameters: Parameters of the predictor.
        operations: Floating-point operations of a step over all processes; a multiply-add counts as two.
        kept: Bytes per process for weights, gradients, moments and averages.
        activations: Bytes per process of activations kept for the backward pass.
        read: Bytes of data of a step over all processes.
        bf16: Whether activations are counted in bfloat16 instead of float32.
    """

    parameters: int
    operations: float
    kept: float
    activations: float
    read: float
    bf16: bool = False

    @property
    def memory(self) -> float:
        """Bytes per process, without temporary memory of kernels and communication."""
        return self.kept + self.activations

    @property
    def text(self) -> str:
        """Describe it in words."""
        seconds = self.operations / (H100 * SHARE)
        memory = f"{_amount(self.kept, 'B')} a process for weights, gradients, moments and averages"
        kind = "bfloat16" if self.bf16 else "float32, half of it with --precision bf16"
        fits = "fits into" if self.memory <= MEMORY else "is more than"
        takes = f"takes {seconds * 1e3:,.3g} ms a step and reads {_amount(self.read / seconds, 'B')}/s"
        if seconds < _SHORTEST:
            takes = f"takes less than {_SHORTEST * 1e3:g} ms for these operations, so that other things decide a step's time"
        return (
            f"{self.parameters:,} parameters; {_amount(self.operations, 'FLOP')} a step; {memory}, "
            f"{_amount(self.activations, 'B')} for activations in {kind}, which {fits} the "
            f"{MEMORY / 1e9:.0f} GB of an H100; "
            f"{_amount(self.read, 'B')} of data a step. For comparison, one H100 at {SHARE:.0%} of its {H100 / 1e12:.0f} "
            f"TFLOP/s in bf16 {takes}"
        )


def _amount(number: float, unit: str) -> str:
    """Return a number of bytes or operations with three digits and an SI prefix."""
    for prefix in ("", "k", "M", "G", "T", "P"):  # noqa: B007 - the last one is kept
        if float(f"{number:.3g}") < 1000:
            break
        number /= 1000
    return f"{number:.3g} {prefix}{unit}"


def cost(
    predictor: nn.Module,
    shape: Sequence[int],
    config: TrainingConfig,
    bytes_of_example: int,
    processes: int = 1,
    bf16: bool = False,
) -> Cost:
    """Count the cost of a step with the default loss.

    Args:
        predictor: The predictor, whose ``network`` is counted.
        shape: Shape of an event.
        config: Training settings.
        bytes_of_example: Bytes of an example as it is stored.
        processes: Number of processes that share the batch, and with ``parallel="fsdp"`` the parameters.
        bf16: Whether activations have two bytes, as nearly all have within bfloat16 autocast.
    """
    network: Any = copy.deepcopy(getattr(predictor, "network", predictor)).to("meta").train()
    takes = inspect.signature(network.forward).parameters
    inputs = getattr(network, "inputs", None)  # for networks that read any height and width
    reads = getattr(network, "shape", shape) if inputs is None else (inputs, *shape[1:])
    x, t = torch.zeros(_COUNTED, *reads, device="meta"), torch.zeros(_COUNTED, device="meta")
    told = {"end": t} if "end" in takes and getattr(network, "embed_gap", None) is not None else {}
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(x, t, **told)
        output.sum().backward()
    parameters = sum(parameter.numel() for parameter in predictor.parameters())
    at_once = -(-config.batch_size // (processes * config.accumulate))
    sharded = processes if config.parallel == "fsdp" else 1
    return Cost(
        parameters,
        counter.get_total_flops() / _COUNTED * config.batch_size,
        4 * _KEPT * parameters / sharded,
        sum(kept.values()) / _COUNTED * at_once / (2 if bf16 else 1),
        float(bytes_of_example * config.batch_size),
        bf16,
    )
