"""Barycentric flows: proximal steps of any divergence, from a drawn prior to the data.

"General Proximal Flow Networks" (Strunk & Assam, 2026), arXiv 2603.00751.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Generic, cast

import torch
from torch import Tensor

from proxflow._math import class_cross_entropy, mean_events, one_hot, over_events, sum_events
from proxflow.beliefs import Belief, Categorical, DiagonalGaussian, Product
from proxflow.couplings import Coupling
from proxflow.divergences import Divergence, FisherRao, ReverseKL, Wasserstein2, steps_compose
from proxflow.energies import Energy
from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.flows.base import B, Flow, Means, as_classes, as_real, check_class_number, check_classes, check_real
from proxflow.flows.sources import Source, by_torch, source_of
from proxflow.paths import Schedule
from proxflow.proximal import Proximal
from proxflow.random import Generator, rand, randn, randn_like
from proxflow.solvers import Solver


class Endpoints(ABC, Generic[B]):
    """The prior and the targets of a barycentric flow, and the proper score that trains its predictions."""

    @abstractmethod
    def prior(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> B: ...

    @abstractmethod
    def target(self, x: Tensor, like: B) -> B:
        """Return the belief that is certain of the data point."""

    @abstractmethod
    def draw(self, target: B, generator: Generator) -> B:
        """Draw a noisy message around a predicted target."""

    @abstractmethod
    def score(self, predicted: B, x: Tensor, weight: Tensor) -> Tensor:
        """Return the loss of a prediction, (batch,), a mean over coordinates.

        ``weight`` (batch,) multiplies squared errors of real data; it is already divided by the number of coordinates.
        """

    @abstractmethod
    def check(self, x: Tensor) -> None: ...

    def encode(self, stored: Tensor) -> Tensor:
        """Return stored data in the form that :meth:`check` accepts."""
        return as_real(stored)


@dataclass(frozen=True)
class GaussianEndpoints(Endpoints[DiagonalGaussian]):
    """Endpoints of real data: from N(μ₀, 1) with a drawn mean μ₀ ~ N(0, 1) to N(x, target_std²).

    The score is the weighted squared error, W₂² between point targets: its minimiser is the posterior mean.

    Args:
        target_std: Standard deviation ≥ 0 of the target around the data, in units of the data; the scale of the noise in
            stochastic messages.
        source: Distribution of μ₀ instead of N(0, 1): the rows of a tensor (number, *event), a torch distribution, or a
            :class:`Source`. Samplers that renew noise cannot be used then.

    Raises:
        ArgumentError: ``target_std`` is negative, or ``source`` is none of these.
    """

    target_std: float = 0.02
    source: Source | None = None

    def __post_init__(self) -> None:
        if not self.target_std >= 0:
            raise ArgumentError(f"target_std must not be negative, got {self.target_std}")
        if self.source is not None:
            object.__setattr__(self, "source", source_of(self.source))

    def prior(
        self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device
    ) -> DiagonalGaussian:
        if self.source is None:
            return DiagonalGaussian(randn(torch.Size(shape), generator, dtype, device), 1.0)
        return DiagonalGaussian(self.source.draw(shape, generator, dtype, device), 1.0)

    def target(self, x: Tensor, like: DiagonalGaussian) -> DiagonalGaussian:
        return DiagonalGaussian(x.to(like.mean.dtype), self.target_std)

    def draw(self, target: DiagonalGaussian, generator: Generator) -> DiagonalGaussian:
        return DiagonalGaussian(target.sample(generator), target.given_std)

    def score(self, predicted: DiagonalGaussian, x: Tensor, weight: Tensor) -> Tensor:
        error = predicted.mean - x
        return weight * sum_events(error * error)

    check = staticmethod(check_real)


@dataclass(frozen=True)
class CategoricalEndpoints(Endpoints[Categorical]):
    """Endpoints of classes: from probabilities drawn uniformly from the simplex, Dirichlet(1), to certainty.

    The score is the log score −log θ̂_x in nats; its minimiser is the posterior of the class.

    Args:
        classes: Number of classes, ≥ 2.
    """

    classes: int

    def __post_init__(self) -> None:
        check_class_number(self.classes)

    def prior(
        self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device
    ) -> Categorical:
        uniform = rand(torch.Size([*shape, self.classes]), generator, dtype, device)
        return Categorical((-uniform.log()).log().log_softmax(-1))  # normalised exponentials are Dirichlet(1)

    def target(self, x: Tensor, like: Categorical) -> Categorical:
        return Categorical(torch.nn.functional.one_hot(x, self.classes).to(like.logits.dtype).log())

    def draw(self, target: Categorical, generator: Generator) -> Categorical:
        return Categorical(one_hot(target.sample(generator), self.classes, target.logits.dtype).log())

    def score(self, predicted: Categorical, x: Tensor, weight: Tensor) -> Tensor:
        return mean_events(class_cross_entropy(predicted.logits, x))

    def check(self, x: Tensor) -> None:
        check_classes(x, self.classes)

    encode = staticmethod(as_classes)


@dataclass(frozen=True)
class ProductEndpoints(Endpoints[Product]):
    """Endpoints of mixed data: rows of a table (batch, columns), numbers and class indices, as floating point.

    Each group of columns has its own endpoints and moves independently; the network learns the dependence between
    groups. The score is the sum of the parts' scores, weighted by their fractions of the columns.

    Args:
        parts: Endpoints and number of columns of each group, in the order of the columns, e.g.
            ``((GaussianEndpoints(), 2), (CategoricalEndpoints(5), 1))``.

    Raises:
        ArgumentError: No parts, or one without columns.
    """

    parts: tuple[tuple[Endpoints[Any], int], ...]

    def __post_init__(self) -> None:
        if not self.parts or any(columns < 1 for _, columns in self.parts):
            raise ArgumentError(f"mixed data need parts of at least one column each, got {self.parts}")

    @property
    def columns(self) -> int:
        return sum(columns for _, columns in self.parts)

    def prior(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> Product:
        if tuple(shape[1:]) != (self.columns,):
            raise ArgumentError(f"mixed data here are rows of {self.columns} columns, got events of {tuple(shape[1:])}")
        return Product(tuple(part.prior((shape[0], n), generator, dtype, device) for part, n in self.parts))

    def target(self, x: Tensor, like: Product) -> Product:
        events = zip(self.parts, like.split(x), like.parts, strict=True)
        return Product(tuple(part.target(event, start) for (part, _), event, start in events))

    def draw(self, target: Product, generator: Generator) -> Product:
        return Product(tuple(part.draw(p, generator) for (part, _), p in zip(self.parts, target.parts, strict=True)))

    def score(self, predicted: Product, x: Tensor, weight: Tensor) -> Tensor:
        events = zip(self.parts, predicted.parts, predicted.split(x), strict=True)
        return sum(
            (n / self.columns * part.score(p, event, weight * (self.columns / n)) for (part, n), p, event in events),
            torch.zeros_like(weight),
        )

    def check(self, x: Tensor) -> None:
        if not x.is_floating_point() or x.ndim != 2 or x.shape[1] != self.columns:
            raise ArgumentError(
                f"this flow's data are rows (batch, {self.columns}) of floating point, numbers and class indices, "
                f"got {x.dtype} {tuple(x.shape)}"
            )
        events = torch.split(x, [columns for _, columns in self.parts], 1)
        for (part, _), event in zip(self.parts, events, strict=True):
            if not isinstance(part, CategoricalEndpoints):
                part.check(event)
                continue
            broken = event[event != event.round()] if x.device.type == "cpu" else event[:0]
            if len(broken):
                raise ArgumentError(f"class indices among mixed data are whole numbers, got {float(broken[0])}")
            part.check(event.long())


def _joined(beliefs: Sequence[Belief]) -> Belief:
    """Return beliefs of one family concatenated to one batch."""
    parts = [belief.tensors() for belief in beliefs]
    return beliefs[0].with_tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


_OWN = cast(Schedule, None)
"""Placeholder for the schedule of the divergence."""


@dataclass(frozen=True)
class GPFN(Flow[Any]):
    """General Proximal Flow Network: barycentric proximal steps of any divergence (Strunk & Assam, 2026).

    Known elsewhere, with Wasserstein-2 and the linear schedule, as rectified flow or flow matching: the means follow it.

    Args:
        divergence: The geometry.
        schedule: Fraction of the way from prior to target at each time; ``None`` takes that of the divergence, linear
            except for KL between Gaussians.
        endpoints: Prior and targets; :class:`GaussianEndpoints` for real data, :class:`CategoricalEndpoints` for
            classes, :class:`ProductEndpoints` for both.
        solver: Numerical solver for divergences without a closed-form step.
        simulated_steps: Steps simulated to reach a training belief if steps do not compose.
        energy: Energy of the proximal steps, with the target as its message; ``None`` is the divergence from the
            target. To guide a trained flow, sample from ``dataclasses.replace(flow, energy=…, solver=…)``. This leaves
            the Gaussian path, so only proximal samplers can be used.
        weight_floor: In (0, 1]. Squared errors of the predicted data have the weight (τ'/max(1 − τ, floor))², with τ
            the mean's fraction of the way, if it is a single number. Toward 0 this is the velocity loss of rectified
            flow; at 1, with the linear schedule, all times have equal weight. Small networks learn more from early
            times.
        coupling: How training pairs prior draws with data, for :class:`GaussianEndpoints`: ``None`` for independent
            pairs, :class:`MinibatchOT` for optimal transport within a batch. It is not used in sampling.
    """

    divergence: Divergence = field(default_factory=Wasserstein2)
    schedule: Schedule = _OWN
    endpoints: Endpoints[Any] = field(default_factory=GaussianEndpoints)
    solver: Solver | None = None
    simulated_steps: int = 8
    weight_floor: float = 0.3
    energy: Energy | None = None
    coupling: Coupling | None = None
    _corners: CategoricalEndpoints | None = field(init=False, repr=False, compare=False)
    """The endpoints, if :meth:`_corner_belief` applies to this flow; else ``None``."""
    _straight_ends: GaussianEndpoints | None = field(init=False, repr=False, compare=False)
    """The endpoints, if :meth:`_straight_belief` applies to this flow; else ``None``."""

    def __post_init__(self) -> None:
        for name in ("divergence", "schedule", "endpoints"):
            if isinstance(given := getattr(self, name), str):
                raise ArgumentError(
                    f"the {name} of GPFN(…) is an object, got the word {given!r}: words are for proxflow.build, as "
                    f'flow="gpfn:{name}={given}"'
                )
            if isinstance(given, type):
                raise ArgumentError(f"the {name} of GPFN(…) is an object, got a class: give {given.__name__}(…)")
        if self.schedule is None:
            object.__setattr__(self, "schedule", self.divergence.schedule(self.endpoints))
        if self.coupling is not None and not isinstance(self.endpoints, GaussianEndpoints):
            raise ArgumentError(
                f"a coupling pairs real data with the prior: take GaussianEndpoints, not {self.endpoints}"
            )
        if not 0 < self.weight_floor <= 1:
            raise ArgumentError(f"weight_floor must lie in (0, 1], got {self.weight_floor}")
        if self.simulated_steps < 1:
            raise ArgumentError(f"simulated_steps must be at least 1, got {self.simulated_steps}")
        straight = isinstance(self.divergence, Wasserstein2) and self.divergence.metric is None and self.energy is None
        ends = self.endpoints
        plain = straight and self.coupling is None and self.solver is None
        plain = plain and type(ends) is GaussianEndpoints and ends.source is None
        object.__setattr__(self, "_straight_ends", self.endpoints if plain else None)
        known = type(ends) is CategoricalEndpoints and self.energy is None and self.solver is None
        known = known and type(self.divergence) in (ReverseKL, FisherRao)
        object.__setattr__(self, "_corners", ends if known else None)

    @property
    def proximal(self) -> Proximal:
        return Proximal(self.divergence, self.solver, self.energy)

    @property
    def geometry(self) -> Divergence:
        return self.divergence

    @property
    def parts(self) -> tuple[GPFN, ...]:
        """The flows of the parts of mixed data, which move independently; empty for other data, or if they do not."""
        if not isinstance(self.endpoints, ProductEndpoints) or self.energy is not None:
            return ()
        own = self.divergence.over_parts(len(self.endpoints.parts))
        pairs = zip(own, self.endpoints.parts, strict=bool(own))
        return tuple(replace(self, divergence=divergence, endpoints=ends) for divergence, (ends, _) in pairs)

    @property
    def latent(self) -> Means | None:
        path = None if self.energy is not None else self.divergence.path(self.schedule, self.endpoints)
        return None if path is None else Means(path, self._spread)

    def _spread(self, t: Tensor, z: Tensor) -> Tensor:
        """Return the standard deviation of beliefs on a Gaussian path, which only depends on time."""
        origin = DiagonalGaussian(z.new_zeros([len(z), *[1] * (z.ndim - 1)]), 1.0)
        reached: DiagonalGaussian = self.walk(origin, self.endpoints.target(origin.mean, origin), t)  # type: ignore[assignment]
        return reached.given_std

    def prior(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> Belief:
        try:
            prior: Belief = self.endpoints.prior(shape, generator, dtype, device)
        except TypeError as error:
            # A user's endpoints may draw with torch's functions, which only take torch's generators.
            if isinstance(generator, torch.Generator) or type(generator).__name__ not in str(error):
                raise
            prior = by_torch(
                lambda number, own: self.endpoints.prior((number, *shape[1:]), own, dtype, own.device),
                shape[0],
                generator,
                _joined,
            ).map(lambda tensor: tensor.to(device))
        return prior

    @property
    def begins_normal(self) -> bool:
        return not isinstance(self.endpoints, GaussianEndpoints) or (
            type(self.endpoints).prior is GaussianEndpoints.prior and self.endpoints.source is None
        )

    def log_prior(self, start: Tensor) -> Tensor:
        if self.begins_normal:
            return super().log_prior(start)
        source = getattr(self.endpoints, "source", None)
        found: Tensor | None = None if source is None else source.log_prob(start)
        if found is None:
            raise ArgumentError(
                f"the density of what {self.endpoints} begins with is not known, so there is no likelihood: give a torch "
                "distribution as source, or a Source with log_prob"
            )
        return found

    def begin(self, start: Tensor) -> Belief:
        if isinstance(self.endpoints, GaussianEndpoints):
            return DiagonalGaussian(start, 1.0)
        refused: Belief = super().begin(start)
        return refused

    def check(self, x: Tensor) -> None:
        self.endpoints.check(x)

    def encode(self, stored: Tensor) -> Tensor:
        return self.endpoints.encode(stored)

    def drawn(self, x: Tensor, t: Tensor, generator: Generator, condition: Condition | None) -> Belief:
        if self._straight_ends is not None and x.is_floating_point():
            return self._straight_belief(self._straight_ends, x, t, generator)
        if self._corners is not None:
            return self._corner_belief(self._corners, x, t, generator)
        prior = self.prior(x.shape, generator, x.dtype if x.is_floating_point() else t.dtype, x.device)
        if self.coupling is not None:
            start: Tensor = prior.mean
            prior = self.begin(start[self.coupling.pair(start, x, condition)])
        return self.reached(prior, x, t)

    def reached(self, prior: Belief, x: Tensor, t: Tensor) -> Belief:
        return self.walk(prior, self.endpoints.target(x, prior), t)

    def _straight_belief(self, ends: GaussianEndpoints, x: Tensor, t: Tensor, generator: Generator) -> DiagonalGaussian:
        """Return the belief of a Wasserstein-2 step, with a third of the operations of :class:`Proximal`.

        They matter in the training of small networks: ``python -m benchmarks.training`` measures it.
        """
        noise = randn_like(x, generator)
        f = over_events(self.schedule.fraction(t), x)
        # Few predictors read the standard deviation.
        return DiagonalGaussian(torch.lerp(noise, x, f), lambda: torch.rsub(f, 1, alpha=1 - ends.target_std))

    def _corner_belief(self, ends: CategoricalEndpoints, x: Tensor, t: Tensor, generator: Generator) -> Categorical:
        """Return the belief of a step toward certainty of ``x``, with one array of the size of all probabilities.

        Toward a corner both geometries scale all other classes equally: θ_k → (1 − f) θ_k for reverse KL, and on the
        sphere of √θ, where the corner is at the angle φ, √θ_k → sin((1 − f) φ)/sin φ · √θ_k.
        """
        left = self.schedule.remaining(t)
        whole = torch.Size([*x.shape, ends.classes])
        theta = rand(whole, generator, t.dtype, x.device).log().neg_()  # normalised exponentials are Dirichlet(1)
        theta = theta.div_(theta.sum(-1, keepdim=True))
        own, left = theta.gather(-1, x[..., None]), over_events(left, theta)
        if isinstance(self.divergence, ReverseKL):
            return Categorical(theta.mul_(left).scatter_(-1, x[..., None], 1 - left * (1 - own)).log_())
        angle = torch.atan2((1 - own).clamp_min(0).sqrt(), own.sqrt())
        angle = angle.clamp_min(torch.finfo(angle.dtype).eps)
        keep = (left * angle).sin() / angle.sin()
        return Categorical(theta.log_().add_(2 * keep.log()).scatter_(-1, x[..., None], 2 * (left * angle).cos().log()))

    def walk(self, prior: Belief, target: Belief, t: Tensor) -> Belief:
        """Return the belief at times ``t`` (batch,) on the path from ``prior`` to ``target``."""
        if self.energy is None and steps_compose(self.divergence, prior):
            return self.proximal(prior, target, self.schedule.fraction(t))
        belief, steps = prior, self.simulated_steps
        for start, end in pairwise(t * k / steps for k in range(steps + 1)):
            belief = self.proximal(belief, target, self.schedule.step(start, end))
        return belief

    def update(self, belief: Any, target: Any, t: Tensor, s: Tensor, generator: Generator | None) -> Any:
        message = target if generator is None else self.endpoints.draw(target, generator)
        return self.proximal(belief, message, self.schedule.step(t, s))

    def weight(self, t: Tensor) -> Tensor:
        path = self.path
        return (path if isinstance(path, Schedule) else self.schedule).velocity_weight(t, self.weight_floor)

    def score(self, predicted: Any, x: Tensor, t: Tensor) -> Tensor:
        return self.endpoints.score(predicted, x, self.weight(t) * (x.shape[0] / x.numel()))

    def rows(self, index: Tensor) -> GPFN:
        own = None if self.energy is None else self.energy.rows(index)
        return self if own is self.energy else replace(self, energy=own)

    def target(self, x: Tensor) -> Any:
        ends = self.endpoints
        return DiagonalGaussian(x, ends.target_std) if isinstance(ends, GaussianEndpoints) else super().target(x)

    def times(self, nfe: int) -> list[float]:
        # The last of n steps would end at t = 1, on its target: that prediction is the sample.
        return [k / nfe for k in range(nfe)]
