"""The sampling loop and the interface of samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from proxflow._math import on_device
from proxflow.beliefs import Belief, DiagonalGaussian
from proxflow.errors import ArgumentError, whole_number
from proxflow.examples import Predict, data_range, evaluations, planned, reads
from proxflow.flows import Flow
from proxflow.random import Generator

Watch = Callable[[float, Belief, Belief], None]
"""Called at each evaluation with the time, the belief and the predicted target."""


@dataclass(frozen=True)
class Samples:
    """Result of a sampling run.

    Args:
        events: The samples, (batch, *event).
        nfe: Network evaluations per sample, as counted: with guidance two inside its interval of times.
    """

    events: Tensor
    nfe: int


class Sampler(ABC):
    """A way from the prior to samples; subclasses are frozen dataclasses of their settings."""

    keeps_to_target: ClassVar[bool] = False
    """Whether each step goes straight toward the newest target, without noise, as long-step predictors require."""

    @property
    def memoryless(self) -> bool:
        """Whether each step uses a single prediction, not a combination. Predictions may then be draws."""
        return True

    @abstractmethod
    def init(self, flow: Flow[Any], belief: Any, generator: Generator) -> tuple[Any, Any]:
        """Return the first belief and state, from a belief drawn from the prior."""

    @abstractmethod
    def step(
        self, flow: Flow[Any], belief: Any, target: Any, t: Any, s: Any, generator: Generator, state: Any
    ) -> tuple[Any, Any]:
        """Return belief and state at time ``s`` from those at ``t`` and the target predicted there; see :meth:`plan`."""

    def plan(self, flow: Flow[Any], belief: Any, times: Sequence[float], device: torch.device) -> Sequence[Any]:
        """Return what :meth:`step` receives as times, one entry for each, computed before the loop.

        By default they are the times themselves, float64 scalars on ``device``. ``belief`` is the first belief.
        """
        return on_device(times, device).unbind()

    def end(self, flow: Flow[Any], target: Any, t: Any, state: Any) -> Any:
        """Return the target whose mode becomes the sample; by default the last prediction itself.

        A new Gaussian target is clipped afterwards to the range that the predictor, or the one it wraps, clips to. It must
        have the shape and the type of numbers of ``target``, which is not to be changed in place.

        Args:
            flow: The flow.
            target: The last prediction.
            t: Its time, as for :meth:`step`.
            state: What the last step returned as state, or :meth:`init` if there was none.
        """
        return target

    def times(self, flow: Flow[Any], nfe: int) -> list[float]:
        """Return the times of ``nfe`` evaluations, increasing from 0: the flow's own, unless a sampler has others."""
        return flow.times(nfe)

    @torch.no_grad()
    def __call__(
        self,
        predict: Predict,
        flow: Flow[Any],
        shape: Sequence[int],
        nfe: int,
        generator: Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        times: Sequence[float] | None = None,
        start: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Samples:
        """Draw samples with ``nfe`` predictions, each one network evaluation unless ``predict`` states otherwise.

        Args:
            predict: Function of a belief and times (batch,) that returns the predicted target. If its ``reads`` has
                "end", it gets the times of the next belief, ``end`` (batch,), 1 at the last; if "noise", ``generator``.
            flow: The flow that ``predict`` was trained for.
            shape: Shape of the samples, (batch, *event).
            nfe: Number of predictions, ≥ 1.
            generator: Random generator, on ``device``.
            dtype: Precision of the belief.
            device: Where to sample.
            times: Times of the evaluations, increasing from 0; ``None`` takes :meth:`times`.
            start: Means of given prior draws, (batch, *event); ``None`` draws them.
            watch: Called at each evaluation.

        Raises:
            ArgumentError: ``nfe`` < 1; an empty shape; times that do not increase from 0 within [0, 1]; a predictor that
                reads ends of steps, with a sampler that does not keep to its target; a predictor that draws, with a
                sampler that combines predictions; or an :meth:`end` that returns no belief.
        """
        nfe = whole_number(nfe, "the number of network evaluations", 1)
        if not shape or min(shape) < 1:
            raise ArgumentError(f"shape is (batch, *event), each at least 1, got {tuple(shape)}")
        if times is None:
            times = self.times(flow, nfe)
        try:
            times = list(times)
            increasing = (
                len(times) == nfe and times[0] == 0 and times[-1] <= 1 and all(t < s for t, s in pairwise(times))
            )
        except TypeError:
            increasing = False
        if not increasing:
            raise ArgumentError(f"times must be {nfe} numbers increasing from 0, at most 1, got {times}")
        asks = reads(predict)
        reads_end, reads_noise = "end" in asks, "noise" in asks
        if reads_end and not self.keeps_to_target:
            raise ArgumentError(
                f"{type(self).__name__} does not step straight toward the target, which this predictor made for a whole "
                "step: use Deterministic ('deterministic')"
            )
        if reads_noise and not self.memoryless:
            raise ArgumentError(
                f"{type(self).__name__} extrapolates from one prediction to the next, which this predictor draws anew each "
                "time: use Deterministic ('deterministic'), Stochastic ('stochastic') or Marginal ('marginal')"
            )
        device = torch.device(device)
        if start is None:
            prior = flow.prior(shape, generator, dtype, device)
        elif tuple(start.shape) == tuple(shape):
            prior = flow.begin(start.to(device, dtype))
        else:
            raise ArgumentError(f"start has the shape of the samples, {tuple(shape)}; got {tuple(start.shape)}")
        belief, state = self.init(flow, prior, generator)
        # The schedule is computed and transferred before the loop: inside, a scalar would cost as much as a batch.
        plan = self.plan(flow, belief, times, device)
        asked = on_device(times, device).to(torch.promote_types(dtype, torch.float32))[:, None]
        asked_at = asked.expand(nfe, shape[0]).unbind()
        predicts = planned(predict, times)
        for k, ask in enumerate(predicts):
            told: dict[str, Any] = {"generator": generator} if reads_noise else {}
            if reads_end:
                told["end"] = asked_at[k + 1] if k + 1 < nfe else torch.ones_like(asked_at[k])
            target = ask(belief, asked_at[k], **told)
            if watch is not None:
                watch(times[k], belief, target)
            if k + 1 < nfe:
                belief, state = self.step(flow, belief, target, plan[k], plan[k + 1], generator, state)
        ended = self.end(flow, target, plan[-1], state)
        if ended is not target:
            ended = self._in_range(ended, predict)
        return Samples(flow.finish(belief, ended, generator), sum(map(evaluations, predicts)))

    def _in_range(self, ended: Any, predict: Predict) -> Any:
        """Return what :meth:`end` made, clipped as the predictor clips."""
        if not isinstance(ended, Belief):
            raise ArgumentError(
                f"{type(self).__name__}.end must return a belief, such as the target that it is given, got "
                f"{type(ended).__name__}"
            )
        if isinstance(ended, DiagonalGaussian) and (limits := data_range(predict)) is not None:
            return DiagonalGaussian(ended.mean.clamp(*limits), ended.given_std)
        return ended
