"""A training run while it goes on: what changes, the guard over it, its log and its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from proxflow.config import TrainingConfig, to_dict
from proxflow.errors import CheckpointError, DivergedError
from proxflow.runtime.checkpoints import Checkpoints, finite
from proxflow.runtime.processes import Processes, local
from proxflow.runtime.tracking import Log

STRETCH = 50
"""Steps between looks at the loss; between them nothing waits for an accelerator."""


class Run:
    """Everything that changes while training, the guard over it, and its checkpoints."""

    def __init__(
        self,
        predictor: nn.Module,
        averaged: nn.Module,
        optimiser: torch.optim.AdamW,
        config: TrainingConfig,
        folder: Path | None,
        processes: Processes,
        track: Callable[[dict[str, float]], None] | None,
    ) -> None:
        self.predictor, self.averaged, self.optimiser, self.config = predictor, averaged, optimiser, config
        self.processes, self.track = processes, track
        self.checkpoints = Checkpoints(folder, config.keep, processes) if folder is not None else None
        self.log = Log(folder / "log.jsonl") if folder is not None and processes.first else None
        self.step, self.skipped, self.losses = 0, 0, list[float]()
        self.saved, self.begun = 0, time.monotonic()
        # Loss and gradient norm of the steps since the last look, each in the row of its place in the stretch.
        self.numbers, self.since = torch.zeros(STRETCH, 2, device=next(predictor.parameters()).device), 0
        self.rows = self.numbers.unbind()
        for parameter in predictor.parameters():  # made now, so that a checkpoint has where to go
            optimiser.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @property
    def seconds(self) -> float:
        """Time spent so far, interrupted runs included."""
        return time.monotonic() - self.begun

    def guard(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Count a step; 1 where its loss or gradient is not finite, else 0, on the device and without waiting for it."""
        numbers = torch.stack([loss, norm], out=self.rows[self.step % STRETCH])
        return (numbers * 0).sum().nan_to_num(1.0)

    def stretch(self) -> list[list[float]]:
        """Loss and gradient norm of each step since the last look; waits for the device."""
        first = self.since % STRETCH
        numbers: list[list[float]] = self.numbers[first : first + self.step - self.since].tolist()
        return numbers

    def look(self, rate: float) -> None:
        """Look at the stretch: record it, or stop if too many of its steps were bad.

        Raises:
            DivergedError: They were.
        """
        steps = self.stretch()
        self.since = self.step
        good = [numbers for numbers in steps if all(map(math.isfinite, numbers))]
        bad, bad_losses = len(steps) - len(good), sum(not math.isfinite(loss) for loss, _ in steps)
        self.skipped += bad
        if bad > self.config.skip_limit or not good:
            raise DivergedError(self._diagnosis(bad, bad_losses, len(steps), rate))
        loss, norm = (math.fsum(column) / len(good) for column in zip(*good, strict=True))
        self.losses.append(loss)
        self.record(loss=loss, gradient_norm=norm, learning_rate=rate, skipped=self.skipped)

    def _diagnosis(self, bad: int, bad_losses: int, steps: int, rate: float) -> str:
        which = [n for n, p in self.predictor.named_parameters() if p.grad is not None and not finite(local(p.grad))]
        largest = max(float(local(p.detach()).abs().max()) for p in self.predictor.parameters() if local(p).numel())
        kept = self.checkpoints.steps() if self.checkpoints is not None else []
        return (
            f"the loss or its gradient was not finite in {bad} of the {steps} steps before step {self.step} (the loss in "
            f"{bad_losses}); these steps were skipped. Last learning rate {rate:.3g}, largest weight {largest:.3g}, "
            + (f"last gradient not finite in {len(which)} parameters, {which[0]} the first. " if which else "")
            + f"Lower the learning rate ({self.config.learning_rate}) or look at the data"
            + (f"; the checkpoint of step {kept[-1]} in {self.checkpoints.folder} is still good" if kept else "")  # type: ignore[union-attr]
        )

    def record(self, **numbers: float) -> None:
        """Log numbers of this step."""
        entry = {"step": self.step, "seconds": round(self.seconds, 3), **numbers}
        if self.log is not None:
            self.log.write(entry)
        if self.track is not None and self.processes.first:
            self.track(entry)

    def _state(self) -> dict[str, Tensor]:
        named = {f"predictor.{k}": v for k, v in self.predictor.state_dict().items()}
        named |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        for index, parameter in enumerate(self.predictor.parameters()):
            named |= {f"optimiser.{index}.{k}": v for k, v in self.optimiser.state[parameter].items()}
        return named

    def save(self, held_out: float | None) -> None:
        """Write a checkpoint, unless this step has one.

        Raises:
            DivergedError: The state is not finite.
            OutputError: It cannot be written; earlier ones are still good.
        """
        if held_out is not None:
            self.record(held_out_loss=held_out)
        if self.checkpoints is None or self.saved == self.step:
            return
        state = self._state()
        with self.processes.together():
            bad = [name for name, tensor in state.items() if not finite(local(tensor))]
            if bad:
                raise DivergedError(f"{bad[0]} is not finite after step {self.step}: no checkpoint was written of it")
        progress = {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "score": held_out,
            "skipped": self.skipped,
            "losses": self.losses,
            "stretch": [[n if math.isfinite(n) else None for n in numbers] for numbers in self.stretch()],
            "training": to_dict(self.config),
        }
        self.checkpoints.save(self.step, state, progress)
        self.saved = self.step

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            CheckpointError: It is damaged, or of another configuration or architecture.
        """
        checkpoint = self.checkpoints.newest() if self.checkpoints is not None else None
        if checkpoint is None:
            return
        progress, path = checkpoint.progress, checkpoint.path
        try:
            self.step, seconds = int(progress["step"]), float(progress["seconds"])
            self.losses = [float(loss) for loss in progress["losses"]]
            self.skipped = int(progress.get("skipped", 0))
            kept = progress.get("stretch", [])
            stretch = [[math.nan if n is None else float(n) for n in numbers] for numbers in kept]
            if len(stretch) > self.step % STRETCH:
                raise ValueError(f"{len(stretch)} steps of a stretch at step {self.step}")
            self.since = self.step - len(stretch)
            for step, (loss, norm) in enumerate(stretch, self.since):
                self.rows[step % STRETCH].copy_(torch.tensor([loss, norm]))
            trained = {**to_dict(TrainingConfig()), **progress["training"]}  # what was added later had its default
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not a checkpoint of this library: {error}") from error
        for name, wanted in self.config.decisive().items():
            if trained.get(name) != wanted:
                raise CheckpointError(
                    f"{path} was trained with {name} = {trained.get(name)}, not {wanted}: choose another output folder, or "
                    "remove the checkpoints to start over"
                )
        checkpoint.fill(self._state(), self.processes)
        self.saved, self.begun = self.step, time.monotonic() - seconds
        if self.log is not None:
            self.log.forget_after(self.step)
