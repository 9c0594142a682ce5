"""Masked diffusion: all classes are hidden at first, and are revealed one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from proxflow._math import class_cross_entropy, mean_events, over_events
from proxflow.beliefs import Revealed
from proxflow.divergences import KL, Divergence
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, check_rows, given
from proxflow.flows.base import Flow, as_classes, check_class_number, check_classes, draw_times
from proxflow.paths import Linear, Schedule
from proxflow.random import Generator, rand


@dataclass(frozen=True)
class Masked(Flow[Revealed]):
    """Masked diffusion of classes, as a flow on the simplex of K classes and a mask.

    "Simplified and Generalized Masked Diffusion for Discrete Data" (Shi et al., 2024), arXiv 2406.04329, MD4; time runs
    from all hidden (0) to all known (1), in the paper in reverse. A training belief knows each class with probability
    τ(t). From the mask a reverse-KL step of fraction λ toward the prediction is (1 − λ) mask + λ ê; an update draws
    from it, so that known classes stay known.

    Args:
        classes: Number of classes K ≥ 2, without the mask.
        schedule: Fraction τ(t) of known classes; ``quarter-cosine`` is MD4's cosine.
    """

    classes: int
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        check_class_number(self.classes)

    def check(self, x: Tensor) -> None:
        check_classes(x, self.classes)

    encode = staticmethod(as_classes)

    @property
    def begins_fixed(self) -> bool:
        return True

    @property
    def geometry(self) -> Divergence:
        return KL()

    def loss(
        self,
        predict: Predict,
        x: Tensor,
        generator: Generator,
        t: Tensor | None = None,
        *,
        condition: Condition | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        self.check(x)
        check_rows(condition, len(x), "condition")
        t = draw_times(len(x), generator, x.device) if t is None else t
        belief = self.belief(x, t, generator, condition=condition, start=start)
        return self.score(given(predict, condition)(belief, t), torch.where(belief.hidden, x, -1), t)

    def drawn(self, x: Tensor, t: Tensor, generator: Generator, condition: Condition | None) -> Revealed:
        uniform = rand(x.shape, generator, t.dtype, x.device)
        return Revealed(torch.where(uniform < over_events(self.schedule.fraction(t), uniform), x, -1), self.classes)

    def score(self, predicted: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return τ'/(1 − τ) Σ −log ê_x over the hidden classes, nats per coordinate (Shi et al., 2024, eq. 5).

        Args:
            predicted: The prediction.
            x: The data, −1 where the belief knows them.
            t: Times (batch,).
        """
        rate = self.schedule.derivative(t) / self.schedule.remaining(t)
        return rate * mean_events(class_cross_entropy(predicted.logits, x))

    def prior(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> Revealed:
        return Revealed(torch.full(tuple(shape), -1, device=device), self.classes)

    def update(self, belief: Revealed, target: Any, t: Tensor, s: Tensor, generator: Generator | None) -> Revealed:
        if generator is None:
            raise ArgumentError(
                "masked diffusion moves by draws, so nothing is deterministic: take the sampler stochastic"
            )
        uniform = rand(belief.tokens.shape, generator, torch.float64, belief.tokens.device)
        known = self.finish(belief, target, generator)
        return replace(belief, tokens=torch.where(uniform < self.schedule.step(t, s), known, belief.tokens))

    def finish(self, belief: Revealed, target: Any, generator: Generator) -> Tensor:
        """Draw the hidden classes."""
        return torch.where(belief.hidden, target.sample(generator), belief.tokens)

    def times(self, nfe: int) -> list[float]:
        return [k / nfe for k in range(nfe)]
