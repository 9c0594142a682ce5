"""Long steps: a predictor that reads the end time of a step learns where many small steps would lead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from proxflow._math import mean_events, over_events
from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, evaluations, given, rows
from proxflow.flows import GPFN
from proxflow.random import rand
from proxflow.training.objectives.base import Batch, BeliefObjective

Kind = Literal["shortcut", "meanflow", "consistency"]


@dataclass(frozen=True)
class LongStep(BeliefObjective):
    """A loss that trains a :class:`proxflow.LongStepPredictor` to return the effective targets of steps of any length.

    With Wasserstein-2 a step from time t to s moves the mean z to z + λ (x̂ − z), λ = (τ_s − τ_t)/(1 − τ_t). One step
    toward the effective target X(z, t, s) ends where infinitely many steps, each toward its own prediction, would end:
    X is an average of these predictions. At s = t it is the prediction of the data, at τ_s = 1 the end of the
    trajectory. With r = 1 − τ, the average velocity of the step is (X − z)/r. X is learnt by self-consistency, in one
    of three ways.

    ``shortcut``, "One Step Diffusion via Shortcut Models" (Frans et al., 2024), arXiv 2410.12557: steps compose,
    1 − λ = (1 − λ₁)(1 − λ₂), and so do their targets, with a time m halfway:

        λ X(z, t, s) = (1 − λ₂) λ₁ X(z, t, m) + λ₂ X(z_m, m, s),  z_m = z + λ₁ (X(z, t, m) − z).

    ``meanflow``, "Mean Flows for One-step Generative Modeling" (Geng et al., 2025), arXiv 2505.13447: the derivative of that
    along the trajectory, in the time −ln r, in which dz = x̂ − z,

        X(z, t, s) = (1 − λ) x̂ + λ (X + dX),  dX = ∂_z X (x̂ − z) + ∂_t X r/τ'(t),

    which is their identity of average velocities times r, and bounded up to the end.

    ``consistency``, "Consistency Models" (Song et al., 2023), arXiv 2303.01469, and with ends other than 1 "Consistency
    Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion" (Kim et al., 2023), arXiv 2310.02279: the same
    composition with a short first step toward x̂,

        λ X(z, t, s) = (1 − λ₂) λ₁ x̂ + λ₂ X(z_m, m, s),  z_m = z + λ₁ (x̂ − z),  m = t + gap (s − t).

    At s = 1 both times then have the same end. The error is about the gap, so train in stages of decreasing gaps, each
    from the last: "Consistency Models Made Easy" (Geng et al., 2024), arXiv 2406.14548. Toward gap 0 it becomes
    ``meanflow``, without derivatives.

    Right-hand sides have no gradient. x̂ is the data point, whose mean given z is the prediction, or the prediction of
    a teacher, which has no noise. A fraction of the batch is plain, s = t. Errors have the flow's weight at t.

    Args:
        flow: A flow with Wasserstein-2, real data and a schedule that ends at the data.
        kind: Which kind of self-consistency.
        teacher: A trained predictor ``(belief, t)`` of the same flow, in evaluation mode, to distil; ``None`` learns
            only from data.
        plain_share: In [0, 1): fraction of the batch with s = t; for ``shortcut`` > 0, as only plain examples use data.
            They are evenly spaced in the batch.
        whole_share: In [0, 1]: fraction of the others that end at s = 1, as the last evaluation of each sample does.
            The rest end at times uniform between t and 1.
        knee: Positive, or ``None``. Errors e of steps longer than 0 count as knee · ln(1 + e/knee): their gradients are
            weighted by 1/(1 + e/knee), the adaptive weight of Geng et al., 2025, eq. 22. With noise in e (``meanflow``
            without a teacher) this biases the result; ``None`` leaves errors unchanged.
        gap: In (0, 1): for ``consistency``, length of the first step as a fraction of the whole.

    Raises:
        ArgumentError: A setting out of range, or a flow without these steps.
    """

    flow: GPFN
    kind: Kind = "shortcut"
    teacher: Predict | None = None
    plain_share: float = 0.5
    whole_share: float = 0.5
    knee: float | None = 0.05
    gap: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ArgumentError(f"kind is one of {get_args(Kind)}, got {self.kind!r}")
        if not 0 <= self.plain_share < 1 or (self.kind == "shortcut" and self.plain_share == 0):
            raise ArgumentError(f"plain_share must lie in [0, 1), for shortcut above 0, got {self.plain_share}")
        if not 0 <= self.whole_share <= 1:
            raise ArgumentError(f"whole_share must lie in [0, 1], got {self.whole_share}")
        if not 0 < self.gap < 1:
            raise ArgumentError(f"gap must lie between 0 and 1, got {self.gap}")
        if self.knee is not None and not self.knee > 0:
            raise ArgumentError(f"knee must be positive, or None for none, got {self.knee}")
        if not isinstance(self.flow, GPFN) or self.flow.path != self.flow.schedule:
            raise ArgumentError(f"long steps are of GPFN with Wasserstein2 and real data, got {self.flow}")
        if float(self.flow.schedule.remaining(torch.ones((), dtype=torch.float64))) > 0:
            raise ArgumentError(
                f"long steps need a schedule that ends in the data, not {self.flow.schedule}: take final = 1"
            )

    @property
    def passes(self) -> float:
        """Network passes for each example of a training step; see :class:`proxflow.Objective`."""
        far = 1 - self.plain_share
        taught = self.plain_share if self.kind == "shortcut" else 1.0  # fraction of the batch that a teacher reads
        own = 0.0 if self.teacher is None else taught * evaluations(self.teacher)
        return 3 + far * (2 if self.kind == "shortcut" else 1) + own

    def score(self, predict: Predict, batch: Batch) -> Tensor:
        """Return the loss of each example, (batch,); steps start at its times.

        ``predict`` is a :class:`proxflow.LongStepPredictor`, or a function of a belief, times and ``end=``, (batch,) each.
        """
        belief, x, t, generator, condition = batch.beliefs(batch.t), batch.x, batch.t, batch.generator, batch.condition
        chance, share = rand(torch.Size([len(t), 2]), generator, t.dtype, t.device).unbind(1)
        end = torch.where(chance < self.whole_share, torch.ones_like(t), torch.lerp(t, torch.ones_like(t), share))

        plain, far = self._rows(len(x), x.device)
        errors = []
        if len(plain):
            z, at, data, own = belief.map(lambda a: a[plain]), t[plain], x[plain], rows(condition, plain)
            found = given(predict, own)(z, at, end=at).mean
            errors.append(mean_events((found - self._pull(z, at, data, own)).square()))
        if len(far):
            z, at, to, data, own = belief.map(lambda a: a[far]), t[far], end[far], x[far], rows(condition, far)
            asked = given(predict, own)
            if self.kind == "meanflow":
                found, wanted = self._differential(asked, z, at, to, self._pull(z, at, data, own))
            elif self.kind == "shortcut":
                found, wanted = asked(z, at, end=to).mean, self._halves(asked, z, at, to)
            else:
                pull = DiagonalGaussian(self._pull(z, at, data, own), z.std)
                found, wanted = asked(z, at, end=to).mean, self._composed(asked, z, pull, at, to, self.gap)
            error = mean_events((found - wanted).square())
            errors.append(error if self.knee is None else self.knee * (error / self.knee).log1p())
        order = torch.cat([plain, far])
        both = torch.cat(errors)
        return torch.zeros_like(both).index_copy(0, order, both) * self.flow.weight(t)

    def _rows(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the indices of plain and of other examples in the batch, spaced so that its parts have equal shares."""
        places: tuple[list[int], list[int]] = ([], [])
        for k in range(number):
            places[int((k + 1) * self.plain_share) == int(k * self.plain_share)].append(k)
        plain, far = (torch.tensor(part, dtype=torch.int64, device=device) for part in places)
        return plain, far

    @torch.no_grad()
    def _pull(self, belief: DiagonalGaussian, t: Tensor, x: Tensor, condition: Condition | None) -> Tensor:
        """Return the target that a belief moves toward: the data point, or the teacher's prediction."""
        pull: Tensor = x if self.teacher is None else given(self.teacher, condition)(belief, t).mean
        return pull

    @torch.no_grad()
    def _halves(self, predict: Predict, belief: DiagonalGaussian, t: Tensor, end: Tensor) -> Tensor:
        """Return the effective target of a step, composed of its two halves."""
        return self._composed(predict, belief, predict(belief, t, end=(t + end) / 2), t, end, 0.5)

    @torch.no_grad()
    def _composed(
        self, predict: Predict, belief: DiagonalGaussian, first: Any, t: Tensor, end: Tensor, gap: float
    ) -> Tensor:
        """Return the effective target of a step composed of one toward ``first``, of fraction ``gap``, and the rest."""
        schedule, middle = self.flow.schedule, torch.lerp(t, end, gap)
        whole, last = schedule.step(t, end), schedule.step(middle, end)
        moved = self.flow.update(belief, first, t, middle, None)
        second: Tensor = predict(moved, middle, end=end).mean
        # In an empty step, λ = λ₂ = 0, both targets are the prediction.
        share = last / whole.clamp_min(torch.finfo(whole.dtype).tiny)
        return torch.lerp(first.mean, second, over_events(share, second))

    def _differential(
        self, predict: Predict, belief: DiagonalGaussian, t: Tensor, end: Tensor, pull: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the predicted effective target, and the one to learn, by its derivative along the trajectory."""
        schedule = self.flow.schedule

        def target(mean: Tensor, time: Tensor) -> Tensor:
            found: Tensor = predict(DiagonalGaussian(mean, belief.std), time, end=end).mean
            return found

        z = belief.mean
        tangents = (pull - z, schedule.remaining(t) / schedule.derivative(t))
        # Derivatives need full precision, and the attention kernel that has a forward derivative.
        with torch.autocast(z.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            found, change, *_ = torch.func.jvp(target, (z, t), tangents)
        fraction = over_events(schedule.step(t, end), z)
        return found, torch.lerp(pull, (found + change).detach(), fraction)
