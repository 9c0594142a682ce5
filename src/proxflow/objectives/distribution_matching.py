"""Distillation by matching distributions (2311.18828): one evaluation that draws from what a trained flow draws from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxflow._tensor import Generator, mean_events, over_events, rand
from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.flows import Flow, Predict, draw_times


class StudentAndCritic(nn.Module):
    """A student that learns to draw, and the critic that follows what it draws; both begin as the teacher.

    Called as a predictor it is the student. ``student`` is what remains after training.

    Args:
        teacher: A trained predictor; it is copied.
        student_rate: Learning rate of the student over that of the critic, which must keep up with it.
    """

    def __init__(self, teacher: nn.Module, student_rate: float = 0.15) -> None:
        super().__init__()
        if not student_rate > 0:
            raise ArgumentError(f"student_rate must be positive, got {student_rate}")
        self.student = copy.deepcopy(teacher).requires_grad_(True)
        self.critic = copy.deepcopy(teacher).requires_grad_(True)
        self.student_rate = student_rate

    def forward(self, belief: Any, t: Tensor, *, critic: bool = False) -> Any:
        return (self.critic if critic else self.student)(belief, t)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for :func:`proxflow.fit`: little momentum, as the two follow each other."""
        rates = {self.student: self.student_rate, self.critic: 1.0}
        return [{"params": list(m.parameters()), "factor": f, "betas": (0.5, 0.98)} for m, f in rates.items()]


@dataclass(frozen=True)
class DistributionMatching:
    """Trains a student whose prediction is a draw from the target, not its mean.

    The student's draws x̂ become beliefs at drawn times, as data would in training; the law of these beliefs is to be that
    of beliefs about data. A small proximal step of each draw toward the teacher's prediction and away from that of a
    critic, which learns to predict the student's own draws, lowers the Kullback–Leibler divergence of the two laws: the
    difference of the predictions is b²/a times that of the laws' scores. So the student's gradient is that of

        mean |x̂ − sg(x̂ − (ĉ(p_t, t) − q̂(p_t, t))/s)|²/2,  s = mean |x̂ − q̂(p_t, t)|,

    with q̂ the teacher, ĉ the critic, sg no gradient, and the normalisation of 2311.18828, eq. 8. The critic's loss is the
    flow's own on the student's draws, with the same beliefs.

    Args:
        flow: The flow of teacher and student, with Gaussian beliefs.
        teacher: Its trained predictor, in evaluation mode.
        first_share: In [0, 1]: share of the student's draws that are made at t = 0. The others are made at times that are
            uniform up to ``latest``, of beliefs about real data, so that the student can be asked more than once.
        latest: Latest time of the student's draws, in [0, 1].

    Raises:
        ArgumentError: A share or a time is out of range, or the flow begins with a fixed belief, as Bayesian Flow
            Networks do: a student would draw one single thing from it.
    """

    flow: Flow[Any]
    teacher: Predict
    first_share: float = 0.7
    latest: float = 0.6

    passes = 7.0  # student 1 + 2, critic 1 + 2, teacher 1

    def __post_init__(self) -> None:
        if not 0 <= self.first_share <= 1 or not 0 <= self.latest <= 1:
            raise ArgumentError(f"first_share and latest must lie in [0, 1], got {self.first_share} and {self.latest}")
        if self.flow.coupling is not None:  # only of independent noise do predictions give the scores of the laws
            raise ArgumentError(f"distribution matching needs a flow without a coupling, got {self.flow.coupling}")
        path = self.flow.path
        if path is not None and not any(float(c) for c in path.coefficients(torch.zeros((), dtype=torch.float64))):
            raise ArgumentError(
                f"{self.flow} begins with a fixed belief, which holds nothing to draw from: take a GPFN"
            )

    def loss(self, predict: Predict, x: Tensor, generator: Generator, t: Tensor | None = None) -> Tensor:
        """Loss of each example, (batch,): the critic's, and half the squared difference of teacher and critic.

        Args:
            predict: A :class:`StudentAndCritic`, or a module that forwards to one.
            x: Real data (batch, *event).
            generator: Source of times and noise.
            t: Times (batch,) at which teacher and critic are compared; ``None`` draws them.

        Raises:
            ArgumentError: The flow's beliefs are not Gaussian, or ``x`` is not floating point.
        """
        t = draw_times(len(x), generator, x.device) if t is None else t
        chance = rand(t.shape, generator, t.dtype, t.device)
        asked = self.latest * (chance - self.first_share).clamp_min(0) / max(1 - self.first_share, 1e-6)
        first = self.flow.belief(x, asked, generator)
        if not isinstance(first, DiagonalGaussian):
            raise ArgumentError(f"distribution matching needs Gaussian beliefs, {self.flow} has {type(first).__name__}")
        drawn = predict(first, asked).mean

        seen: list[tuple[Any, Tensor]] = []

        def critic(belief: Any, time: Tensor) -> Any:
            prediction = predict(belief, time, critic=True)  # type: ignore[call-arg]
            seen.append((belief, prediction.mean.detach()))
            return prediction

        following = self.flow.loss(critic, drawn.detach(), generator, t)
        belief, own = seen[0]
        with torch.no_grad():
            wanted = self.teacher(belief, t).mean
            scale = mean_events((drawn - wanted).abs()).clamp_min(1e-3)
            moved = drawn - (own - wanted) / over_events(scale, drawn)
        return following + mean_events((drawn - moved).square()) / 2
