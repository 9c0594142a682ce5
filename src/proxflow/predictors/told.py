"""Guidance as an input: a teacher guided as each example's condition says, and its student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proxflow.divergences import extrapolate
from proxflow.errors import ArgumentError
from proxflow.examples import GUIDANCE, Condition, named, reads
from proxflow.predictors.guided import Guided, _where


class GuidedAsTold(Guided):
    """A predictor that is guided with a weight and an interval for each example, given by its condition.

    It teaches a network that reads them as inputs, as in "Improved Mean Flows: On the Challenges of Fastforward
    Generative Models" (Geng et al., 2025), arXiv 2512.02012. Its condition has the key "guidance", (batch, 3): the
    weight w ≥ 1, first and last time; a row of NaN is not guided. The rule is the flow's own extrapolation, clipped if
    it leaves the family. Every call takes two evaluations.

    Args:
        predictor: As for :class:`Guided`.

    Raises:
        ArgumentError: As :class:`Guided`; when called, a condition without the key "guidance".
    """

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__(predictor, 2.0)

    def forward(self, belief: Any, t: Tensor, *, condition: Condition | None = None, **told: Any) -> Any:
        """Return the guided target for beliefs at times ``t`` (batch,)."""
        parts = {} if condition is None else named(condition)
        asked = parts.pop(GUIDANCE, None)
        if asked is None or not parts:
            raise ArgumentError(f"the condition has no part {GUIDANCE!r}, (batch, 3), beside what is led toward")
        weight, first, last = asked.to(t.dtype).unbind(1)
        own = next(iter(parts.values())) if len(parts) == 1 else parts
        toward, away = self._pair(belief, t, own, told)
        led = extrapolate(self.divergence, away, toward, weight.nan_to_num(1.0), "clip")
        # No time lies between NaNs, so that such rows keep the unguided prediction.
        return _where((first <= t) & (t <= last), self._clipped(led), toward)

    def planned(self, times: Any) -> list[Any]:
        return [self] * len(times)


class ToldGuidance(nn.Module):
    """A predictor whose network reads guidance, with a fixed weight and interval: guided by one evaluation.

    Args:
        predictor: The predictor; its network was trained with :class:`GuidedAsTold` as the teacher.
        weight: w ≥ 1.
        interval: First and last time.

    Raises:
        ArgumentError: The network reads no guidance, or weight or interval are outside what it was trained for.
    """

    def __init__(self, predictor: nn.Module, weight: float, interval: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        if not reads_guidance(predictor):
            raise ArgumentError("the network reads no guidance: build it with guidance=, the largest weight")
        self.predictor, self.reads = predictor, reads(predictor)
        self.guidance = (float(weight), *map(float, interval))
        network: Any = predictor.network
        network.conditions.check_condition({GUIDANCE: torch.tensor([self.guidance])})
        self.train(predictor.training)

    def forward(self, belief: Any, t: Tensor, *, condition: Condition | None = None, **told: Any) -> Any:
        parts = {} if condition is None else named(condition)
        rows = torch.stack([t.new_full((), value) for value in self.guidance]).expand(len(t), 3)
        return self.predictor(belief, t, condition={**parts, GUIDANCE: rows}, **told)


def reads_guidance(predictor: nn.Module) -> float:
    """Return the largest guidance weight that a predictor's network reads as an input; 0 if it reads none."""
    network = getattr(predictor, "network", None)
    return float(getattr(getattr(network, "conditions", None), "guidance", 0.0))


__all__ = ["GuidedAsTold", "ToldGuidance", "reads_guidance"]
