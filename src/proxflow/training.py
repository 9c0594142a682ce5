"""Training: one readable loop from data to averaged weights, with checkpoints that a killed run goes on from.

All randomness of step k follows from (seed, k), so a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from proxflow.config import TrainingConfig, to_dict
from proxflow.errors import ArgumentError, CheckpointError, DivergedError
from proxflow.files import writable_folder, write_atomically
from proxflow.flows import Flow
from proxflow.models import read_tensors
from proxflow.progress import bar

STRETCH = 50
"""Steps between looks at the loss; between them nothing waits for an accelerator."""


@dataclass(frozen=True)
class Result:
    """What training leaves.

    Args:
        predictor: The predictor with averaged (EMA) weights, in evaluation mode.
        losses: Mean training loss over each stretch of 50 steps.
        seconds: Time spent training, interrupted runs included.
    """

    predictor: nn.Module
    losses: list[float]
    seconds: float


def fit(
    flow: Flow[Any],
    predictor: nn.Module,
    data: Tensor,
    config: TrainingConfig,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    label: str = "train",
    on_checkpoint: Callable[[nn.Module, int], None] | None = None,
) -> Result:
    """Train a predictor on a flow.

    Args:
        flow: Makes the training beliefs and the loss.
        predictor: Trained in place; an averaged copy is returned.
        data: (number, *event): uint8 images, which are scaled to [-1, 1]; real numbers; or int64 class indices.
        config: How to train.
        folder: Where the checkpoint is kept. If it holds one of the same configuration, training goes on from there.
            ``None`` keeps nothing on disk.
        device: Where to train; on CUDA the network runs in bfloat16 autocast.
        label: Name shown beside the progress bar.
        on_checkpoint: Called with the averaged predictor and the number of steps done, after each checkpoint.

    Returns:
        The averaged predictor and the history of the loss.

    Raises:
        ArgumentError: Data of the wrong type or shape, or with values that are not finite.
        CheckpointError: The folder's checkpoint is corrupt or of another configuration.
        DivergedError: The loss or its gradient is no longer finite. The last checkpoint is still good.
        OutputError: The folder cannot be written.
    """
    _check(data)
    device = torch.device(device)
    predictor.to(device).train()
    averaged = copy.deepcopy(predictor).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(
        predictor.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    run = _Run(predictor, averaged, optimiser, config, folder)
    run.resume()

    data, order = data.to(device), _Order(len(data), config)
    generator, total = torch.Generator(device), torch.zeros((), device=device)
    started, saved = time.monotonic() - run.seconds, run.step
    size = config.batch_size
    with bar(label, config.steps * size, "images", run.step * size) as show:
        while run.step < config.steps:
            key = _mix(config.seed, run.step)
            generator.manual_seed(key)
            torch.manual_seed(key)  # for dropout, which takes no generator
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(run.step, config)
            x = _scaled(data[order(run.step).to(device)])
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = flow.loss(predictor, x, generator).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(predictor.parameters(), config.clip)
            optimiser.step()
            _average(averaged, predictor, min(config.ema, (1 + run.step) / (10 + run.step)))
            total += loss.detach() + 0 * norm  # a gradient that is not finite makes the total so too
            run.step += 1
            if run.step % STRETCH == 0 or run.step == config.steps:
                mean = float(total) / ((run.step - 1) % STRETCH + 1)
                total.zero_()
                if not math.isfinite(mean):
                    kept = f"; the checkpoint of step {saved} in {folder} is still good" if folder and saved else ""
                    raise DivergedError(
                        f"the loss or its gradient was not finite in the {STRETCH} steps before step {run.step}: lower "
                        f"the learning rate ({config.learning_rate}) or look at the data{kept}"
                    )
                run.losses.append(mean)
                run.seconds = time.monotonic() - started
                show(run.step * size)
                if run.step - saved >= config.checkpoint_every or run.step == config.steps:
                    run.save()
                    saved = run.step
                    if on_checkpoint is not None:
                        on_checkpoint(averaged, run.step)
    return Result(averaged, run.losses, run.seconds)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up to the peak, then half a cosine to zero at the last step."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


@torch.no_grad()
def _average(averaged: nn.Module, predictor: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(predictor.parameters()), 1 - decay)
    for mean, value in zip(averaged.buffers(), predictor.buffers(), strict=True):
        mean.copy_(value)


def _mix(seed: int, step: int) -> int:
    """A seed for one step; unlike seed + step, the steps of neighbouring seeds share none."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % 2**63


def _check(data: Tensor) -> None:
    if data.ndim < 2 or len(data) == 0 or not (data.is_floating_point() or data.dtype in (torch.uint8, torch.int64)):
        raise ArgumentError(
            "training data must be a non-empty tensor (number, *event) of uint8 images, real numbers or int64 classes, "
            f"got {data.dtype} {tuple(data.shape)}"
        )
    if data.is_floating_point() and not data.isfinite().all():
        bad = int((~data.isfinite()).flatten(1).any(1).sum())
        raise ArgumentError(f"{bad} of {len(data)} training examples hold NaN or infinite values: remove or mend them")


def _scaled(batch: Tensor) -> Tensor:
    return batch.float() / 127.5 - 1 if batch.dtype == torch.uint8 else batch


class _Order:
    """Indices of the examples of a step: epoch after epoch, each a permutation from (seed, epoch)."""

    def __init__(self, number: int, config: TrainingConfig) -> None:
        self.number, self.config = number, config
        self.epochs: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor:
        positions = torch.arange(step * self.config.batch_size, (step + 1) * self.config.batch_size)
        first, last = int(positions[0]) // self.number, int(positions[-1]) // self.number
        for epoch in range(first, last + 1):
            if epoch not in self.epochs:
                generator = torch.Generator().manual_seed(_mix(self.config.seed, -1 - epoch))
                self.epochs[epoch] = torch.randperm(self.number, generator=generator)
        self.epochs = {epoch: order for epoch, order in self.epochs.items() if epoch >= first}
        joined = torch.cat([self.epochs[epoch] for epoch in range(first, last + 1)])
        return joined[positions - first * self.number]


class _Run:
    """Everything that changes while training, and its checkpoint file."""

    def __init__(
        self,
        predictor: nn.Module,
        averaged: nn.Module,
        optimiser: torch.optim.AdamW,
        config: TrainingConfig,
        folder: Path | None,
    ) -> None:
        self.predictor, self.averaged, self.optimiser, self.config = predictor, averaged, optimiser, config
        self.path = writable_folder(folder) / "checkpoint.safetensors" if folder is not None else None
        self.step, self.seconds, self.losses = 0, 0.0, list[float]()

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"predictor.{k}": v for k, v in self.predictor.state_dict().items()}
        named |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            named |= {f"optimiser.{index}.{k}": v for k, v in moments.items()}
        return named

    def save(self) -> None:
        if self.path is None:
            return
        progress = {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "losses": self.losses,
            "training": to_dict(self.config),
        }
        tensors = {k: v.detach().cpu().contiguous() for k, v in self._tensors().items()}
        metadata = {"progress": json.dumps(progress)}
        write_atomically(self.path, lambda path: save_file(tensors, path, metadata=metadata))

    def resume(self) -> None:
        if self.path is None or not self.path.exists():
            return
        tensors = read_tensors(self.path)
        try:
            with safe_open(self.path, framework="pt") as file:
                progress = json.loads(file.metadata()["progress"])
            self.step, self.seconds = int(progress["step"]), float(progress["seconds"])
            self.losses, trained = [float(loss) for loss in progress["losses"]], progress["training"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} is not a checkpoint of this library: {error}") from error
        wanted = to_dict(self.config)
        differing = [k for k in wanted if k != "checkpoint_every" and trained.get(k) != wanted[k]]
        if differing:
            name = differing[0]
            raise CheckpointError(
                f"{self.path} was trained with {name} = {trained.get(name)}, not {wanted[name]}: choose another output "
                "folder, or remove the checkpoint to start over"
            )
        try:
            self.predictor.load_state_dict(_part(tensors, "predictor."))
            self.averaged.load_state_dict(_part(tensors, "averaged."))
            state = self.optimiser.state_dict()
            moments: dict[int, dict[str, Tensor]] = {}
            parameters = list(self.predictor.parameters())
            for name, tensor in _part(tensors, "optimiser.").items():
                index, kind = name.split(".", 1)
                like = parameters[int(index)]
                if tensor.shape == like.shape:
                    # The fused optimiser pairs values by their place in memory: moments need the parameter's layout.
                    tensor = torch.empty_like(like).copy_(tensor)
                moments.setdefault(int(index), {})[kind] = tensor
            self.optimiser.load_state_dict({**state, "state": moments})
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.path} belongs to another architecture: {reason}") from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
