"""Distribution matching distillation (DMD): a student that draws a flow's samples in one evaluation.

"One-step Diffusion with Distribution Matching Distillation" (Yin et al., 2023), arXiv 2311.18828; "Improved Distribution
Matching Distillation for Fast Image Synthesis" (Yin et al., 2024), arXiv 2405.14867.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from proxflow._math import mean_events, over_events
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, evaluations, given, reads
from proxflow.flows import Flow
from proxflow.random import Generator, rand
from proxflow.training.objectives.base import Batch, BeliefObjective

Part = Literal["student", "critic", "discriminator"]

_LOGIT_SCALE = 10.0
"""Factor from the discriminator's mean prediction, whose range is about that of the data, to logits."""


class StudentAndCritic(nn.Module):
    """A student that learns to draw, a critic that models its draws, and a discriminator between draws and data.

    Known elsewhere as generator, fake-score network and discriminator. All start as copies of the teacher. Called as a
    predictor it is the student; ``student`` is kept after training. With a discriminator, draws are clipped in training
    as in sampling (``clip_in_training``, if the student has it); otherwise it would recognise draws by values out of
    range.

    Args:
        teacher: A trained predictor; it is copied.
        student_rate: Learning rate of the student, as a factor of that of the other two, which must keep up with it.
        discriminator: Whether there is one; :class:`DistributionMatching` with ``adversarial=0`` needs none.
    """

    def __init__(self, teacher: nn.Module, student_rate: float = 0.3, *, discriminator: bool = True) -> None:
        super().__init__()
        if not student_rate > 0:
            raise ArgumentError(f"student_rate must be positive, got {student_rate}")
        student: Any = copy.deepcopy(teacher).requires_grad_(True)
        if discriminator and hasattr(student, "clip_in_training"):
            student.clip_in_training = True
        self.student: nn.Module = student
        self.critic = copy.deepcopy(teacher).requires_grad_(True)
        self.discriminator = copy.deepcopy(teacher).requires_grad_(True) if discriminator else None
        self.student_rate = student_rate

        self.reads = reads(teacher)

    def forward(self, belief: Any, t: Tensor, *, part: Part = "student", condition: Condition | None = None) -> Any:
        chosen = getattr(self, part)
        if chosen is None:
            raise ArgumentError(f"there is no {part}: make StudentAndCritic with it, or take adversarial=0")
        return given(chosen, condition)(belief, t)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for :func:`proxflow.fit`, with little momentum, as the parts chase each other."""
        rates = {self.student: self.student_rate, self.critic: 1.0, self.discriminator: 1.0}
        return [
            {"params": list(part.parameters()), "factor": rate, "betas": (0.5, 0.98)}
            for part, rate in rates.items()
            if part is not None
        ]


@dataclass(frozen=True)
class DistributionMatching(BeliefObjective):
    """A loss that trains a student whose prediction is a draw from the target instead of its mean.

    Known elsewhere as DMD. Beliefs about the student's draws x̂, at random times, should have the distribution of
    beliefs about data. A critic learns to predict the student's draws from such beliefs. A small proximal step of each
    draw toward the teacher's prediction and away from the critic's lowers the Kullback–Leibler divergence of the two
    distributions: the difference of the predictions is b²/a times that of their scores. So the student's gradient is
    that of

        mean |x̂ − sg(x̂ − (ĉ(p_t, t) − q̂(p_t, t))/s)|²/2,  s = mean |x̂ − q̂(p_t, t)|,

    with q̂ the teacher, ĉ the critic, sg the stop-gradient, and the normalisation of Yin et al., 2023, eq. 8. The
    critic's loss is the flow's own (denoising score matching) on the student's draws, with the same beliefs.

    The student inherits the errors of teacher and critic. So a discriminator compares beliefs about its draws with
    beliefs about real data at the same times (Yin et al., 2024), by the loss of "The relativistic discriminator: a key
    element missing from standard GAN" (Jolicoeur-Martineau, 2018), arXiv 1807.00734. With logits D of a real and of a
    drawn example its loss is softplus(D_drawn − D_real), and the student's, with the weight ``adversarial``,
    softplus(D_real − D_drawn). A logit is the scaled mean over coordinates of the discriminator's prediction, so that
    any predictor can be used.

    Args:
        flow: The flow of teacher and student, with Gaussian beliefs.
        teacher: Its trained predictor, in evaluation mode.
        adversarial: Weight of the student's adversarial loss, ≥ 0; 0 for none (Yin et al., 2023).
        first_share: In [0, 1]: fraction of the student's draws made at t = 0. The others are made from beliefs about
            real data at times uniform up to ``latest``, so that the student can sample with more than one evaluation.
        latest: Latest time of the student's draws, in [0, 1].

    Raises:
        ArgumentError: A weight, fraction or time is out of range, or the flow starts from a fixed belief, as Bayesian
            Flow Networks do: the student would have no noise to draw with.
    """

    flow: Flow[Any]
    teacher: Predict
    adversarial: float = 0.1
    first_share: float = 1.0
    latest: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.adversarial < math.inf:
            raise ArgumentError(f"the adversarial weight must be at least 0 and finite, got {self.adversarial}")
        if not 0 <= self.first_share <= 1 or not 0 <= self.latest <= 1:
            raise ArgumentError(f"first_share and latest must lie in [0, 1], got {self.first_share} and {self.latest}")
        if self.flow.coupling is not None:  # predictions give the scores only for independent noise
            raise ArgumentError(f"distribution matching needs a flow without a coupling, got {self.flow.coupling}")
        if self.flow.begins_fixed:
            raise ArgumentError(
                f"{self.flow} begins with a fixed belief, which holds nothing to draw from: take a GPFN"
            )

    @property
    def passes(self) -> float:
        """Network passes for each example of a training step."""
        matching = 6.0 + evaluations(self.teacher)  # student 1 + 2, critic 1 + 2
        return matching + 6.0 if self.adversarial else matching  # the discriminator reads two

    def score(self, predict: Predict, batch: Batch) -> Tensor:
        """Return the loss, (batch,): critic's, discriminator's, and half the squared difference of teacher and critic.

        The student's adversarial loss only enters the gradient: for the draws the gradient of the discriminator's loss
        is replaced by that of the student's, so that one pass is enough for both. ``predict`` is a
        :class:`StudentAndCritic`, or a module that forwards to one; the batch's times are those of the beliefs for
        teacher, critic and discriminator.

        Raises:
            ArgumentError: A discriminator is required and missing.
        """
        t, generator = batch.t, batch.generator
        chance = rand(t.shape, generator, t.dtype, t.device)
        asked = self.latest * (chance - self.first_share).clamp_min(0) / max(1 - self.first_share, 1e-6)
        predict, teacher = batch.given(predict), batch.given(self.teacher)
        drawn = predict(batch.beliefs(asked), asked).mean

        seen: list[tuple[Any, Tensor]] = []

        def critic(belief: Any, time: Tensor) -> Any:
            prediction = predict(belief, time, part="critic")
            seen.append((belief, prediction.mean.detach()))
            return prediction

        following = self.flow.loss(critic, drawn.detach(), generator, t)
        belief, own = seen[0]
        with torch.no_grad():
            wanted = teacher(belief, t).mean
            scale = mean_events((drawn - wanted).abs()).clamp_min(1e-3)
            moved = drawn - (own - wanted) / over_events(scale, drawn)
        matching = following + mean_events((drawn - moved).square()) / 2
        return matching + self._told_apart(predict, drawn, batch.x, t, generator) if self.adversarial else matching

    def _told_apart(self, predict: Predict, drawn: Tensor, x: Tensor, t: Tensor, generator: Generator) -> Tensor:
        """Return the discriminator's loss (batch,), whose gradient in the draws is that of the student's loss."""

        def logit(example: Tensor) -> Tensor:
            belief = self.flow.belief(example, t, generator)
            return _LOGIT_SCALE * mean_events(predict(belief, t, part="discriminator").mean)

        judged = drawn.view_as(drawn)
        margin = logit(x) - logit(judged)
        # Derivatives in the logit of the draws: student's loss −weight · σ(margin), discriminator's loss σ(−margin).
        turned = -self.adversarial * margin.detach().clamp(-20, 20).exp()
        if judged.requires_grad:
            judged.register_hook(lambda gradient: over_events(turned, gradient) * gradient)  # type: ignore[no-untyped-call]
        return functional.softplus(-margin)
