"""A run: its folder, and during training its state, the non-finite guard, the log and the checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxflow import models
from proxflow.config import TrainingConfig, to_dict
from proxflow.errors import CheckpointError, DataError, DivergedError, OutputError
from proxflow.examples import AnyExamples
from proxflow.models import Model, format1, spec
from proxflow.runtime.checkpoints import OLD, Checkpoints, checksum, finite, keep_newest
from proxflow.runtime.files import read_json, sweep, writable_folder, write_json
from proxflow.runtime.lock import locked
from proxflow.runtime.machine import hardware, keep_threads, versions
from proxflow.runtime.processes import Processes, local
from proxflow.runtime.tracking import Log

_MADE_OF = {"held_out": "held-out data", "modules": "layers in its network"}
"""Names in messages for the parts of a fingerprint."""

LOG_WINDOW = 50
"""Steps per line of the log; within them nothing synchronises with the device."""


class RunFolder:
    """A run's folder: its settings (``run.json``), the current model, the best one (``best``), and the checkpoints.

    With several processes the first one writes, and all fail if it does.

    Args:
        path: The folder.
        what: What is made there, for messages.
        file: Name of the file with the settings.
    """

    def __init__(self, path: Path, what: str = "training", file: str = "run.json") -> None:
        self.path, self.what, self.file, self.best = path, what, path / file, math.inf

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder within a block against processes other than those of this run.

        Raises:
            OutputError: Another process uses it, or it cannot be written.
        """
        with ExitStack() as held:
            with Processes.current().together():
                if Processes.current().first:
                    held.enter_context(locked(writable_folder(self.path), self.what))
                    sweep(self.path, owned=True)  # temporary files of a killed run
            yield

    def claim(
        self, wanted: Mapping[str, Any], upgrade: Callable[[Any], Any] = dict, changeable: Collection[str] = ()
    ) -> list[str]:
        """Record the settings in the folder, or refuse one with other settings.

        Args:
            wanted: Settings by name, as JSON values.
            upgrade: Function from settings of an earlier version to current ones.
            changeable: Names of settings that may differ from before.

        Returns:
            The changes, "name = value (was value)".

        Raises:
            OutputError: It has other settings, or cannot be written.
            CheckpointError: The recorded settings are corrupt.
        """
        changes: list[str] = []
        with Processes.current().together():
            if Processes.current().first:
                writable_folder(self.path)
                changes = self._claim(wanted, upgrade, changeable)
        self.best = self._held_out_loss()
        return changes

    def _claim(
        self, wanted: Mapping[str, Any], upgrade: Callable[[Any], Any], changeable: Collection[str]
    ) -> list[str]:
        if not self.file.exists():
            if self.has_model:
                raise OutputError(
                    f"{self.path} holds a model that this command did not begin: choose another --out folder"
                )
            write_json(self.file, dict(wanted))
            return []
        mending = "choose another --out folder, or remove this one to start over"
        try:
            held = read_json(self.file)
        except CheckpointError as error:
            raise CheckpointError(f"{error}: {mending}") from error
        if not isinstance(held, dict):
            raise CheckpointError(
                f"{self.file}: expected the settings of a {self.what} run, got {json.dumps(held):.80}: {mending}"
            )
        found, asked = _flat(upgrade(held)), _flat(wanted)
        differing = [name for name in {**asked, **found} if found.get(name) != asked.get(name)]
        for name in differing:
            if name not in changeable:
                if name == "data":
                    raise OutputError(
                        f"{self.path} holds a {self.what} run on other data, or on these read otherwise: choose another "
                        "--out folder, or remove this one to start over"
                    )
                raise OutputError(
                    f"{self.path} holds a {self.what} run with {name} = {found.get(name)}, not {asked.get(name)}: choose "
                    "another --out folder, or remove this one to start over"
                )
        done = self.steps_done or 0
        if differing and asked.get("steps", done) <= done:
            changed = ", ".join(f"{name} = {asked[name]}" for name in differing)
            raise OutputError(
                f"{self.path} holds a model of {done} steps, so there is none to do with {changed}: raise --steps above "
                f"{done}, or choose another --out folder"
            )
        # From the last checkpoint before it was stopped, which may be newer than the model.
        begun = max((int(path.name[5:]) for path in self.path.glob("checkpoints/step-*")), default=0)
        if differing and asked.get("steps", begun) < begun:
            raise OutputError(
                f"{self.path} has done {begun} steps already, and {asked['steps']} are wanted: raise --steps, or choose "
                "another --out folder"
            )
        if differing:
            write_json(self.file, dict(wanted))
        return [f"{name} = {asked[name]} (was {found[name]})" for name in differing]

    @property
    def has_model(self) -> bool:
        """Return whether a model has been saved."""
        return (self.path / "config.json").exists()

    @property
    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return (self.path / "checkpoints").exists() or (self.path / OLD).exists()

    @property
    def steps_done(self) -> int | None:
        """Return the steps that the model was trained for; ``None`` if there is no model yet."""
        match read_json(self.path / "config.json") if self.has_model else None:
            case {"provenance": {"steps": int(steps)}}:
                return steps
        return None

    def _held_out_loss(self) -> float:
        """Return the best model's held-out loss; infinite if there is none."""
        path = self.path / "best" / "config.json"
        match read_json(path) if path.exists() else None:
            case {"provenance": {"held_out_loss": float(loss)}}:
                return loss
        return math.inf

    def save(self, model: Model, predictor: nn.Module, provenance: dict[str, Any], score: float = math.inf) -> None:
        """Save the current model, also in ``best`` if it is the best.

        Args:
            model: The model being trained; its weights are ignored.
            predictor: The current weights.
            provenance: Their provenance.
            score: The held-out loss; the lowest is the best.

        Raises:
            OutputError: The folder cannot be written.
        """
        weights = predictor.state_dict()
        with Processes.current().together():
            if Processes.current().first:
                models.save(self.path, model, weights, provenance)
                if score < self.best:
                    self.best = score
                    models.save(self.path / "best", model, weights, {**provenance, "held_out_loss": score})

    def finish(self, model: Model, predictor: nn.Module, provenance: dict[str, Any]) -> None:
        """Save the final model, and then remove all checkpoints but the newest, from which training may resume.

        Raises:
            OutputError: The folder cannot be written.
        """
        self.save(model, predictor, provenance)
        with Processes.current().together():
            if Processes.current().first:
                keep_newest(self.path)


def decisive(model: Model, training: TrainingConfig) -> dict[str, Any]:
    """Return the settings that affect the result of a run, for :meth:`RunFolder.claim`.

    Raises:
        ArgumentError: A part of the model has no name and cannot be saved.
    """
    return {**{name: part for name, part in model.spec.items() if name != "data"}, **training.decisive()}


def upgrade(held: dict[str, Any]) -> dict[str, Any]:
    """Convert :func:`decisive` settings saved by an earlier version to the current form.

    Raises:
        CheckpointError: They are corrupt.
    """
    if isinstance(held.get("flow"), str):  # with the fields of a model file of format 1 among the others
        old = {name: value for name, value in held.items() if name in _FORMAT_1}
        held = {name: value for name, value in held.items() if name not in _FORMAT_1}
        held |= {name: format1.translate({"model": old}, "run.json")[name] for name in _PARTS}
    # Settings added later had their defaults.
    parts = {name: spec.describe(spec.restore(f"{name}s", held.get(name), "run.json")) for name in _PARTS}
    return {**TrainingConfig().decisive(), **held, **parts}


_PARTS = ("flow", "network", "predictor")
_FORMAT_1 = (
    *("flow", "channels", "multipliers", "blocks", "attention", "patch", "dropout", "sigma1", "final"),
    *("coupling", "predictor"),
)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their path; the kind of a setting has the path of the setting."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = prefix.removesuffix(".") if prefix and name == "kind" else f"{prefix}{name}"
        found |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found


@dataclass(frozen=True)
class Stage:
    """A part of a training with fixed values of the settings that may change when it resumes (:data:`CHANGEABLE`).

    Args:
        step: Its first step.
        seen: Examples used by the steps before it.
        steps: Steps of the whole training.
        batch_size: Examples per step.
        learning_rate: Peak learning rate.
    """

    step: int
    seen: int
    steps: int
    batch_size: int
    learning_rate: float


CHANGEABLE = ("steps", "batch_size", "learning_rate")
"""Settings that may change when training resumes."""


def fingerprint(
    predictor: nn.Module, objective: Any, data: AnyExamples, held_out: AnyExamples | None
) -> dict[str, str]:
    """Return what identifies a training, by name: it only resumes from a checkpoint for which all of it agrees."""

    def called(thing: Any) -> str:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))

    modules = sorted((name, type(module).__name__) for name, module in predictor.named_modules())
    settings = ("parameterisation", "clip", "clip_in_training")
    own = [f"{name}={getattr(predictor, name)!r}" for name in settings if hasattr(predictor, name)]
    network = getattr(predictor, "network", None)
    inside = "" if network is None else f"{type(network).__name__}, "
    return {
        "data": _content(data),
        "held_out": "none" if held_out is None else _content(held_out),
        "flow": called(objective),
        "predictor": f"{type(predictor).__name__}({inside}{', '.join(own)})",
        "modules": f"{len(modules)} of checksum {hashlib.sha256(repr(modules).encode()).hexdigest()[:12]}",
    }


def _content(examples: AnyExamples) -> str:
    """Return what identifies these examples: what their source says, or a checksum, and the shape."""
    if examples.content:
        return examples.content
    tensors: dict[str, Tensor] = {}
    for name, value in (("x", examples.x), *examples.told()):
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts}
    return f"sha256 {checksum(tensors)}, shape {list(examples.x.shape)}"


class Run:
    """The state of training, with the non-finite guard, the log and the checkpoints."""

    def __init__(
        self,
        predictor: nn.Module,
        averaged: nn.Module,
        optimiser: torch.optim.AdamW,
        config: TrainingConfig,
        folder: Path | None,
        processes: Processes,
        track: Callable[[dict[str, float]], None] | None,
        made_of: Mapping[str, str],
    ) -> None:
        self.predictor, self.averaged, self.optimiser, self.config = predictor, averaged, optimiser, config
        self.processes, self.track = processes, track
        self.checkpoints = Checkpoints(folder, config.keep, processes) if folder is not None else None
        self.log = Log(folder / "log.jsonl") if folder is not None and processes.first else None
        self.step, self.skipped, self.losses, self.made_of = 0, 0, list[float](), dict(made_of)
        self.stages = [Stage(0, 0, config.steps, config.batch_size, config.learning_rate)]
        self.sessions = list[dict[str, Any]]()
        self.left_out = dict[int, str]()
        self.saved, self.begun = 0, time.monotonic()
        # Loss and gradient norm of the steps of the log window, each in its row.
        self.numbers, self.since = (
            torch.zeros(LOG_WINDOW, 2, dtype=torch.float32, device=next(predictor.parameters()).device),
            0,
        )
        self.rows = self.numbers.unbind()
        for parameter in predictor.parameters():  # created now, so that a checkpoint can be loaded into it
            optimiser.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),  # whatever the default is
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @property
    def seconds(self) -> float:
        """Return the time spent so far, interrupted runs included."""
        return time.monotonic() - self.begun

    def guard(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Record a step; return 1 if its loss or gradient is not finite, else 0, without synchronising with the device."""
        numbers = torch.stack([loss, norm], out=self.rows[self.step % LOG_WINDOW])
        return (numbers * 0).sum().nan_to_num(1.0)

    def window(self) -> list[list[float]]:
        """Return loss and gradient norm of each step of the log window; this synchronises with the device."""
        first = self.since % LOG_WINDOW
        numbers: list[list[float]] = self.numbers[first : first + self.step - self.since].tolist()
        return numbers

    def close_window(self, rate: float) -> None:
        """Record the log window and start the next.

        Raises:
            DivergedError: Too many of its steps were not finite.
        """
        steps = self.window()
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
        """Write numbers of this step to the log."""
        entry = {"step": self.step, "seconds": round(self.seconds, 3), **numbers}
        if self.log is not None:
            self.log.write(entry)
        if self.track is not None and self.processes.first:
            self.track(entry)

    def leave_out(self, why: Mapping[int, str], number: int) -> None:
        """Record examples that could not be read, by their indices, among ``number``.

        Raises:
            DataError: They are more than a hundredth of all, and more than ten.
        """
        fresh = {index: said for index, said in why.items() if index not in self.left_out}
        self.left_out |= fresh
        for said in fresh.values():
            if self.log is not None:
                self.log.write({"step": self.step, "left_out": said})
        if len(self.left_out) > max(10, number // 100):
            raise DataError(f"{len(self.left_out)} of {number} examples cannot be read, the last because {said}")

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
            OutputError: It cannot be written; earlier ones stay valid.
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
            "stretch": [[n if math.isfinite(n) else None for n in numbers] for numbers in self.window()],
            "training": to_dict(self.config),
            "made_of": self.made_of,
            "stages": [asdict(stage) for stage in self.stages],
            "sessions": self.sessions,
        }
        self.checkpoints.save(self.step, state, progress)
        self.saved = self.step

    @property
    def stage(self) -> Stage:
        """Return the current stage."""
        return self.stages[-1]

    def begin(self, device: torch.device) -> None:
        """Record the environment of the steps from here on."""
        self.sessions.append({"step": self.step, "processes": self.processes.size, **hardware(device), **versions()})

    def resume(self) -> None:
        """Resume from the newest checkpoint, if there is one, and report its held-out loss again.

        Raises:
            CheckpointError: It is damaged, or of other data, another flow, predictor, configuration or architecture.
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
            window = [[math.nan if n is None else float(n) for n in numbers] for numbers in kept]
            if len(window) > self.step % LOG_WINDOW:
                raise ValueError(f"{len(window)} steps of a log window at step {self.step}")
            self.since = self.step - len(window)
            for step, (loss, norm) in enumerate(window, self.since):
                self.rows[step % LOG_WINDOW].copy_(torch.tensor([loss, norm]))
            trained = {**to_dict(TrainingConfig()), **progress["training"]}  # settings added later had their defaults
            stages = [Stage(**stage) for stage in progress.get("stages", [])]
            self.stages = stages or [Stage(0, 0, *(trained[name] for name in CHANGEABLE))]
            self.sessions = list(progress.get("sessions", []))
            if self.sessions and self.sessions[-1].get("device") == "cpu":
                keep_threads(int(self.sessions[-1].get("threads", 1)))
            made_of = dict(progress.get("made_of") or self.made_of)
            held_out = None if progress.get("score") is None else float(progress["score"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not a checkpoint of this library: {error}") from error
        for name, wanted in {**made_of, **self.made_of}.items():
            if made_of.get(name) != self.made_of.get(name):
                raise CheckpointError(
                    f"{path} was trained with other {_MADE_OF.get(name, name)}, {made_of.get(name)}, not {wanted}: choose "
                    "another output folder, or remove the checkpoints to start over"
                )
        for name, wanted in self.config.decisive().items():
            if trained.get(name) != wanted and name not in CHANGEABLE:
                raise CheckpointError(
                    f"{path} was trained with {name} = {trained.get(name)}, not {wanted}: choose another output folder, or "
                    "remove the checkpoints to start over"
                )
        if self.config.steps < self.step:
            raise CheckpointError(
                f"{path} has done {self.step} steps already, and {self.config.steps} are wanted: raise steps, or choose "
                "another output folder"
            )
        now = self.stage
        changed = Stage(
            self.step,
            now.seen + (self.step - now.step) * now.batch_size,
            *(getattr(self.config, name) for name in CHANGEABLE),
        )
        if any(getattr(changed, name) != getattr(now, name) for name in CHANGEABLE):
            self.stages.append(changed)
        checkpoint.fill(self._state(), self.processes)
        self.saved, self.begun = self.step, time.monotonic() - seconds
        if self.log is not None:
            self.log.forget_after(self.step)
        if held_out is not None and self.track is not None and self.processes.first:
            self.track({"step": self.step, "seconds": round(self.seconds, 3), "held_out_loss": held_out})
