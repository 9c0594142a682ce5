"""Guidance as an input: a teacher that is guided as each example's condition says, and a student that was taught so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proxflow.divergences import extrapolate
from proxflow.errors import ArgumentError
from proxflow.examples import GUIDANCE, Condition, named, reads
from proxflow.predictors.guided import Guided, _where


class GuidedAsTold(Guided):
    """A predictor that is guided, each example with a weight and an interval of its own, which its condition holds.

    It teaches a network that reads them as inputs, as that of "Improved Mean Flows: On the Challenges of Fastforward
    Generative Models" (Geng et al., 2025), arXiv 2512.02012, does. Its condition has the part "guidance", (batch, 3): the
    weight w ≥ 1, first and last time; a row of NaN is not guided. The rule is the flow's own extrapolation, clipped where it
    leaves the family. Every call takes two evaluations.

    Args:
        predictor: As for :class:`Guided`.

    Raises:
        ArgumentError: As :class:`Guided`; when called, a condition without the part "guidance".
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
        # Nothing lies between NaNs, so that rows of them keep the prediction that is not guided.
        return _where((first <= t) & (t <= last), self._clipped(led), toward)

    def planned(self, times: Any) -> list[Any]:
        return [self] * len(times)


class ToldGuidance(nn.Module):
    """A predictor whose network reads guidance, told one weight and one interval: guided by one evaluation.

    Args:
        predictor: The predictor; its network was taught as :class:`GuidedAsTold` is guided.
        weight: w ≥ 1.
        interval: First and last time.

    Raises:
        ArgumentError: The network reads no guidance, or was not taught so far.
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
    """Return the largest weight of guidance that a predictor's network reads as an input; 0 where it reads none."""
    network = getattr(predictor, "network", None)
    return float(getattr(getattr(network, "conditions", None), "guidance", 0.0))


__all__ = ["GuidedAsTold", "ToldGuidance", "reads_guidance"]
