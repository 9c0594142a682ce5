"""Guidance: extrapolation from one prediction through another, in the geometry of the flow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxflow._math import over_events, sum_events
from proxflow.beliefs import Belief, DiagonalGaussian
from proxflow.divergences import Divergence, extrapolate
from proxflow.divergences.extrapolation import Outside
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, joined, reads, without
from proxflow.paths import GaussianPath
from proxflow.predictors.base import RealPredictor


class GuidanceRule(ABC):
    """Rule that makes a guided prediction of two; subclasses are frozen dataclasses of their settings."""

    zero_steps: int = 0
    """Number of first evaluations at which the belief is left unchanged, at no network evaluation."""

    @abstractmethod
    def lead(
        self, guided: Guided, away: Any, toward: Any, here: Callable[[], Tensor], memory: Tensor | None
    ) -> tuple[Any, Tensor | None]:
        """Return the guided target, and the rule's memory for the next evaluation of the same samples.

        Args:
            guided: The guided predictor, with its weight and its divergence.
            away: The target to lead away from.
            toward: The target to lead toward.
            here: Returns the straight coordinate μ/(a + b) of the belief, (batch, *event).
            memory: Memory from the last evaluation; ``None`` at first.
        """


@dataclass(frozen=True)
class LinearGuidance(GuidanceRule):
    """Guidance by the barycentre of the two targets, extrapolated in the flow's divergence.

    argmin_r w D(r, q̂_c) − (w − 1) D(r, q̂_u): for points x̂_u + w (x̂_c − x̂_u), which is classifier-free guidance,
    "Classifier-Free Diffusion Guidance" (Ho & Salimans, 2022), arXiv 2207.12598, eq. 6, whose w is ours − 1; for
    classes under KL an extrapolation of logits, "Simple Guidance Mechanisms for Discrete Diffusion Models" (Schiff et
    al., 2024), arXiv 2412.10193.

    Args:
        outside: What to do if the extrapolation leaves the family, see :func:`proxflow.divergences.extrapolate`.
    """

    outside: Outside = "refuse"

    def lead(
        self, guided: Guided, away: Any, toward: Any, here: Callable[[], Tensor], memory: Tensor | None
    ) -> tuple[Any, Tensor | None]:
        return extrapolate(guided.divergence, away, toward, guided.weight, self.outside), None


@dataclass(frozen=True)
class ZeroStar(GuidanceRule):
    """Guidance with the unconditional velocity scaled to best fit the conditional one. Known elsewhere as CFG-Zero*.

    "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models" (Fan et al., 2025), arXiv 2503.18886. With
    the velocities v ∝ x̂ − y in the straight coordinate y, the unconditional one is first multiplied by s = ⟨v_c,
    v_u⟩/|v_u|²: v = s v_u + w (v_c − s v_u). For real data.

    Args:
        zero_steps: Number of first evaluations at which the velocity is zero; in the paper 4 % of all.

    Raises:
        ArgumentError: The number is negative.
    """

    zero_steps: int = 0

    def __post_init__(self) -> None:
        if self.zero_steps < 0:
            raise ArgumentError(f"zero_steps must be at least 0, got {self.zero_steps}")

    def lead(
        self, guided: Guided, away: Any, toward: Any, here: Callable[[], Tensor], memory: Tensor | None
    ) -> tuple[Any, Tensor | None]:
        y = here()
        plain, told = away.mean - y, toward.mean - y
        wide = torch.promote_types(y.dtype, torch.float32)
        fit = sum_events((told * plain).to(wide)) / (sum_events(plain.to(wide).square()) + 1e-8)
        plain = over_events(fit, plain) * plain
        return _moved(toward, y + torch.lerp(plain, told, guided.weight)), None


@dataclass(frozen=True)
class Projected(GuidanceRule):
    """Guidance without the component parallel to the prediction, which saturates. Known elsewhere as APG.

    "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models" (Sadat et al., 2024), arXiv
    2410.02416, alg. 1: with d = x̂_c − x̂_u + β d₋, shortened to the length r, x̂ = x̂_c + (w − 1)(d⊥ + η d∥), where d∥
    is the component of d along x̂_c. For real data.

    Args:
        eta: η, the fraction of the parallel component that is kept.
        cap: r > 0, the largest length of d, in units of the data; ``None`` for no limit.
        momentum: β in (−1, 1), best negative, the weight of the difference d₋ at the last evaluation.

    Raises:
        ArgumentError: A number is out of range.
    """

    eta: float = 0.0
    cap: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.eta) or not -1 < self.momentum < 1 or not (self.cap is None or self.cap > 0):
            raise ArgumentError(f"eta must be finite, momentum in (−1, 1) and cap positive or None, got {self}")

    def lead(
        self, guided: Guided, away: Any, toward: Any, here: Callable[[], Tensor], memory: Tensor | None
    ) -> tuple[Any, Tensor | None]:
        apart = toward.mean - away.mean
        if memory is not None and self.momentum:
            apart = torch.add(apart, memory, alpha=self.momentum)
        kept, mean = apart, toward.mean
        if self.cap is not None:
            length = sum_events(apart.square()).sqrt()
            apart = apart * over_events((self.cap / length.clamp_min(self.cap)), apart)
        if self.eta != 1:
            tiny = torch.finfo(mean.dtype).tiny
            share = sum_events((apart * mean).double()) / sum_events(mean.double().square()).clamp_min(tiny)
            apart = apart - (1 - self.eta) * over_events(share, mean) * mean
        return _moved(toward, torch.add(mean, apart, alpha=guided.weight - 1)), kept


RULES: dict[str, GuidanceRule] = {"linear": LinearGuidance(), "zero-star": ZeroStar(), "projected": Projected()}
"""Rules with default settings, by name."""


class Guided(nn.Module):
    """A predictor whose targets are extrapolated from those without a condition through those with it.

    With the weight w the target is argmin_r w D(r, q̂_c) − (w − 1) D(r, q̂_u), a barycentre of the predictions with and
    without the condition, extrapolated in the flow's own divergence D. It is called and sampled from like any
    predictor. At w = 1 it is the predictor itself. A prediction costs two network evaluations inside the interval of
    times, made as one call on accelerators when sampling, and one outside ("Applying Guidance in a Limited Interval
    Improves Sample and Distribution Quality in Diffusion Models", Kynkäänniemi et al., 2024, arXiv 2404.07724).
    Predictions of real data are clipped to the range of the data, if those of the predictor are.

    Args:
        predictor: A predictor that reads a condition and also predicts without one; with ``weak`` any.
        weight: w ≥ 0, finite.
        interval: Times (first, last) in [0, 1] between which it guides, both included; t = 0 is all noise.
        rule: Guidance rule: "linear", the divergence's own extrapolation; "zero-star"; "projected"; or a
            :class:`GuidanceRule` with settings.
        weak: A weaker predictor to lead away from, instead of the predictor without its condition; it gets the
            condition if it reads one. Known as autoguidance: "Guiding a Diffusion Model with a Bad Version of Itself"
            (Karras et al., 2024), arXiv 2406.02507.
        divergence: D; ``None`` takes that of the predictor's flow.

    Raises:
        ArgumentError: A weight or an interval out of range; an unknown rule; a predictor that reads no condition,
            without ``weak``; one that draws; a divergence that is neither given nor known. When called: no condition,
            without ``weak``; a target that a rule is not for; an extrapolation that leaves the family.
        UnsupportedPairError: When called: no extrapolation is known for the divergence and the family of the targets.
    """

    def __init__(
        self,
        predictor: Predict,
        weight: float,
        interval: tuple[float, float] = (0.0, 1.0),
        rule: GuidanceRule | str = "linear",
        weak: Predict | None = None,
        *,
        divergence: Divergence | None = None,
    ) -> None:
        super().__init__()
        try:
            led = 0 <= weight < math.inf
        except TypeError:
            led = False
        if not led:
            raise ArgumentError(f"the weight of guidance must be at least 0 and finite, got {weight!r}")
        try:
            first, last = interval
            within = 0 <= first <= last <= 1
        except (TypeError, ValueError):
            within = False
        if not within:
            raise ArgumentError(f"the interval of guidance is two times 0 ≤ first ≤ last ≤ 1, got {interval}")
        if isinstance(rule, str):
            if rule not in RULES:
                raise ArgumentError(f"no rule of guidance is called {rule!r:.80}: known are {', '.join(RULES)}")
            rule = RULES[rule]
        for given in (predictor, weak):
            if given is not None and "noise" in reads(given):
                raise ArgumentError(
                    "guidance leads one mean away from another, and a DrawPredictor draws: take another"
                )
        if weak is None and "condition" not in reads(predictor):
            raise ArgumentError(
                "guidance leads a prediction with a condition away from one without, and this predictor reads none: take "
                "a conditional one, or name a weak model"
            )
        found = divergence if divergence is not None else _of(predictor, "geometry")
        if found is None:
            raise ArgumentError(
                "guidance needs the divergence of the flow, which this predictor does not know: divergence="
            )
        self.predictor, self.weak = predictor, weak
        self.weight, self.interval, self.rule = float(weight), (float(interval[0]), float(interval[1])), rule
        self.divergence: Divergence = found
        self.path: GaussianPath | None = _of(predictor, "path")
        self.reads = reads(predictor) | (reads(weak) & {"condition"} if weak is not None else frozenset())
        self.apart = False  # whether the evaluations are two calls, after memory ran out for one
        self.train(bool(getattr(predictor, "training", False)))
        if isinstance(weak, nn.Module):
            weak.eval()

    @property
    def evaluations(self) -> int:
        """Network evaluations of a call whose times are not known beforehand."""
        return 1 if self.weight == 1 else 2

    @property
    def network(self) -> Any:
        """The network of the predictor."""
        return getattr(self.predictor, "network", None)

    def train(self, mode: bool = True) -> Guided:
        """Set the mode of the predictor; the weak one stays in evaluation mode."""
        self.training = mode
        if isinstance(self.predictor, nn.Module):
            self.predictor.train(mode)
        return self

    def forward(self, belief: Any, t: Tensor, *, condition: Condition | None = None, **told: Any) -> Any:
        """Return the guided target for beliefs at times ``t`` (batch,).

        This takes two evaluations; if times are known beforehand, :meth:`planned` saves one outside the interval.
        """
        if self.weight == 1:
            return self._toward(belief, t, condition, told)
        toward, away = self._pair(belief, t, condition, told)
        target, _ = self._led(belief, t, toward, away, None)
        first, last = self.interval
        if (first, last) == (0, 1):
            return target
        return _where((t >= first) & (t <= last), target, toward)

    def planned(self, times: Sequence[float]) -> list[Predict]:
        """Return the predictor for each time of a sampling run: the guided one, or the predictor itself."""
        first, last = self.interval
        memory: list[Tensor | None] = [None]
        plan: list[Predict] = []
        for k, t in enumerate(times):
            if self.weight == 1 or not first <= t <= last:
                plan.append(_Plain(self))
            else:
                plan.append(_Still(self) if k < self.rule.zero_steps else _Inside(self, memory))
        return plan

    def _toward(self, belief: Any, t: Tensor, condition: Condition | None, told: dict[str, Any]) -> Any:
        own = {} if condition is None or "condition" not in reads(self.predictor) else {"condition": condition}
        return self.predictor(belief, t, **own, **told)

    def _check(self, condition: Condition | None) -> None:
        if condition is None and self.weak is None:
            raise ArgumentError(
                "guidance leads toward a condition, and none is given: give condition=, or a weak model to lead away from"
            )

    def _pair(self, belief: Any, t: Tensor, condition: Condition | None, told: dict[str, Any]) -> tuple[Any, Any]:
        """Return the targets to lead toward and away from, by two calls."""
        self._check(condition)
        toward = self._toward(belief, t, condition, told)
        if self.weak is None:
            return toward, self.predictor(belief, t, **told)
        asks = reads(self.weak)
        own = {} if condition is None or "condition" not in asks else {"condition": condition}
        return toward, self.weak(belief, t, **own, **{name: value for name, value in told.items() if name in asks})

    def _pair_at_once(
        self, belief: Any, t: Tensor, condition: Condition | None, told: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Return the same by one call on a doubled batch, if that is faster and memory allows."""
        # A network with ``conditional`` reads labels of −1 and vectors of NaN as missing. On a CPU two calls are
        # as fast, and their features stay in its caches.
        knows = getattr(self.network, "conditional", False) is True
        if self.apart or self.weak is not None or not knows or condition is None or t.device.type == "cpu":
            return self._pair(belief, t, condition, told)
        try:
            return self._doubled(belief, t, condition, told)
        except torch.OutOfMemoryError:
            self.apart = True
            return self._pair(belief, t, condition, told)

    def _doubled(self, belief: Any, t: Tensor, condition: Condition, told: dict[str, Any]) -> tuple[Any, Any]:
        number = len(t)
        none = without(condition, torch.ones(number, dtype=torch.bool, device=t.device))
        twice = {name: torch.cat([value, value]) for name, value in told.items()}
        both = self.predictor(_twice(belief), torch.cat([t, t]), condition=joined(condition, none), **twice)
        return _rows(both, slice(None, number)), _rows(both, slice(number, None))

    def _led(self, belief: Any, t: Tensor, toward: Any, away: Any, memory: Tensor | None) -> tuple[Any, Tensor | None]:
        """Return the guided target, and the rule's memory."""
        if not isinstance(self.rule, LinearGuidance):
            self._check_real(toward)
        target, kept = self.rule.lead(self, away, toward, lambda: self._here(belief, t), memory)
        return self._clipped(target), kept

    def _clipped(self, target: Any) -> Any:
        """Return a target of real data clipped as the predictor clips its own; others unchanged."""
        if isinstance(self.predictor, RealPredictor) and isinstance(target, DiagonalGaussian):
            return _moved(target, self.predictor.clipped(target.mean))
        return target

    def _check_real(self, target: Any) -> None:
        if not isinstance(target, DiagonalGaussian):
            raise ArgumentError(
                f"{type(self.rule).__name__} guides predictions of real data, not of {type(target).__name__}: take linear"
            )

    def _here(self, belief: Any, t: Tensor) -> Tensor:
        """Return the straight coordinate of beliefs, (batch, *event)."""
        mean: Tensor = belief.mean
        if self.path is None:
            raise ArgumentError(f"{type(self.rule).__name__} needs a flow with a Gaussian path: take the rule linear")
        total = self.path.straight(t)[2]
        return mean / over_events(total, mean).clamp_min(torch.finfo(mean.dtype).tiny)


class _Plain:
    """The predictor at a time outside the interval."""

    evaluations = 1

    def __init__(self, guided: Guided) -> None:
        self.guided, self.reads = guided, guided.reads

    def __call__(self, belief: Any, t: Tensor, *, condition: Condition | None = None, **told: Any) -> Any:
        return self.guided._toward(belief, t, condition, told)


class _Inside(_Plain):
    """The guided target at a time inside the interval."""

    evaluations = 2

    def __init__(self, guided: Guided, memory: list[Tensor | None]) -> None:
        super().__init__(guided)
        self.memory = memory

    def __call__(self, belief: Any, t: Tensor, *, condition: Condition | None = None, **told: Any) -> Any:
        toward, away = self.guided._pair_at_once(belief, t, condition, told)
        target, self.memory[0] = self.guided._led(belief, t, toward, away, self.memory[0])
        return target


class _Still(_Plain):
    """The target that leaves a belief unchanged."""

    evaluations = 0

    def __call__(self, belief: Any, t: Tensor, *, condition: Condition | None = None, **told: Any) -> Any:
        self.guided._check_real(belief)
        return DiagonalGaussian(self.guided._here(belief, t), getattr(self.guided.predictor, "target_std", 0.0))


def _of(predictor: Predict, name: str) -> Any:
    """Return an attribute of a predictor's flow; ``None`` if it has none."""
    found = getattr(predictor, name, None)
    return getattr(getattr(predictor, "flow", None), name, None) if found is None else found


def _moved(target: DiagonalGaussian, mean: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(mean, target._std)


def _where(inside: Tensor, target: Any, other: Any) -> Any:
    """Select one target for the examples inside, (batch,), and another for the rest."""
    found, wide = target.tensors(), {n: (-1, *(1,) * (a.ndim - 1)) for n, a in other.tensors().items()}
    return other.with_tensors({n: torch.where(inside.view(wide[n]), found[n], a) for n, a in other.tensors().items()})


def _twice(belief: Belief) -> Belief:
    """Return beliefs concatenated with themselves; what a whole batch shares is not repeated."""
    if not isinstance(belief, DiagonalGaussian):
        return belief.map(lambda a: torch.cat([a, a]))
    std = belief._std

    def repeated() -> Tensor:
        own = belief.given_std
        return torch.cat([own, own]) if own.ndim == belief.mean.ndim and len(own) > 1 else own

    mean = torch.cat([belief.mean, belief.mean])
    return DiagonalGaussian(mean, std if isinstance(std, int | float) else repeated)


def _rows(belief: Belief, index: slice) -> Any:
    """Return some of the beliefs of a batch."""
    if isinstance(belief, DiagonalGaussian) and isinstance(belief._std, int | float):
        return DiagonalGaussian(belief.mean[index], belief._std)
    return belief.map(lambda a: a[index])


__all__ = ["RULES", "GuidanceRule", "Guided", "LinearGuidance", "Projected", "ZeroStar"]
