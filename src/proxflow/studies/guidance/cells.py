"""Cells of the guidance study: their guidance, and how many predictions their evaluations allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import nn

from proxflow.examples import evaluations, planned
from proxflow.models import Model, spec
from proxflow.samplers import Sampler
from proxflow.studies.trials import Cell

UNCONDITIONAL, CONDITIONAL, WEAK = "unconditional", "conditional", "weak"
"""Names of the trials."""


@dataclass(frozen=True)
class GuidedCell(Cell):
    """A cell whose predictions are guided; ``nfe`` is the most network evaluations that a sample may cost.

    Args:
        weight: Guidance weight; 1 for none.
        interval: First and last time of guidance.
        rule: Guidance rule, as a string.
        weak: Name of a trial whose model to lead away from; ``None`` for the model's own prediction without the class.
    """

    weight: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rule: str = "linear"
    weak: str | None = None

    @property
    def name(self) -> str:
        if self.weight == 1:
            return super().name
        first, last = self.interval
        away = "" if self.weak is None else f"-{self.weak}"
        return f"{super().name}-w{self.weight:g}-{first:g}-{last:g}-{self.rule}{away}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.flow,) if self.weak is None else (self.flow, self.weak)

    def prepared(self, load: Callable[[str], Model]) -> tuple[Model, nn.Module, int]:
        model, weak = load(self.flow), None if self.weak is None else load(self.weak)
        predictor = model.guided(self.weight, self.interval, self.rule, weak)
        return model, predictor, affordable(model, predictor, self.sampler, self.nfe)


def spent(model: Model, predictor: nn.Module, sampler: str, predictions: int) -> int:
    """Count the network evaluations of a sample with so many predictions."""
    times = cast(Sampler, spec.parse("samplers", sampler)).times(model.flow, predictions)
    return sum(map(evaluations, planned(predictor, times)))


def affordable(model: Model, predictor: nn.Module, sampler: str, nfe: int) -> int:
    """Return the most predictions of a sample that cost at most so many network evaluations, at least one."""
    for predictions in range(nfe, 1, -1):
        if spent(model, predictor, sampler, predictions) <= nfe:
            return predictions
    return 1
