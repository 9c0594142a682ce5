"""The interface of divergences, and the table of rules: value and closed-form step of each (divergence, family) pair.

A divergence defines values and steps by registering rules, in its own file::

    @dataclass(frozen=True)
    class Aitchison(Divergence): ...

    @value(Aitchison, Categorical)
    def _(divergence, p, q): ...

    @closed_form(Aitchison, Categorical)
    def _(divergence, belief, target, over): ...
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from proxflow._math import over_events
from proxflow.beliefs import Belief, Product
from proxflow.errors import ArgumentError, UnsupportedPairError
from proxflow.paths import GaussianPath, Linear, Schedule

B = TypeVar("B", bound=Belief)
Rule = TypeVar("Rule", bound=Callable[..., Any])
Pair = tuple[type["Divergence"], type[Belief]]
Over = Callable[[Tensor], Tensor]
"""A step's fraction: given a parameter tensor (batch, …), shaped to broadcast against it."""

VALUES: dict[Pair, Callable[[Any, Any, Any], Tensor]] = {}
CLOSED_FORMS: dict[Pair, Callable[[Any, Any, Any, Over], Any]] = {}
CONDITIONS: dict[Pair, Callable[[Any], bool]] = {}
MIXED: dict[tuple[type[Divergence], type[Divergence], type[Belief]], Callable[..., Any]] = {}


def _register(table: dict[Any, Any], *classes: type[Any]) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        if classes in table:
            raise ArgumentError(f"a rule for ({', '.join(c.__name__ for c in classes)}) is registered already")
        table[classes] = rule
        return rule

    return add


def value(
    divergence: type[Divergence], family: type[Belief], *, reverse: type[Divergence] | None = None
) -> Callable[[Rule], Rule]:
    """Register ``rule(divergence, p, q) -> (batch,)``, the divergence of two beliefs of one family.

    With ``reverse`` the rule also gives the values of that divergence, with swapped arguments; the rule's first
    argument is then the reverse divergence, which must have the parameters that the rule reads.
    """

    def add(rule: Rule) -> Rule:
        if reverse is not None:
            _register(VALUES, reverse, family)(lambda d, p, q: rule(d, q, p))
        return _register(VALUES, divergence, family)(rule)

    return add


def closed_form(
    divergence: type[Divergence], family: type[Belief], *, when: Callable[[Any], bool] | None = None
) -> Callable[[Rule], Rule]:
    """Register ``rule(divergence, belief, target, over) -> belief``, the minimiser of the barycentric step.

    ``over`` is the step's fraction, an :data:`Over`. If only some instances of a class have a closed form,
    ``when(divergence)`` tells which.
    """
    register = _register(CLOSED_FORMS, divergence, family)
    if when is not None:
        CONDITIONS[divergence, family] = when
    return register


def mixed_form(divergence: type[Divergence], energy: type[Divergence], family: type[Belief]) -> Callable[[Rule], Rule]:
    """Register ``rule(divergence, energy, belief, target, over) -> belief | None``, a step with another energy.

    It is argmin_r (1 − f) D(r, belief) + f E(r, target); ``None`` if these two have no closed form.
    """
    return _register(MIXED, divergence, energy, family)


def mixed_step(divergence: Divergence, energy: Divergence, belief: B, target: B, fraction: Tensor | float) -> B:
    """Return argmin_r (1 − f) D(r, belief) + f E(r, target), where a closed form is known.

    Raises:
        UnsupportedPairError: None is known.
        ArgumentError: The beliefs differ in shape, or the fraction is neither a scalar nor (batch,).
    """
    check_pair(belief, target)
    rule = MIXED.get((type(divergence), type(energy), type(belief)))
    found = rule and rule(divergence, energy, belief, target, lambda like: over_events(fraction, like))
    if found:
        return cast(B, found)
    known = sorted(f"{d.__name__} with the energy of {e.__name__} on {f.__name__}" for d, e, f in MIXED)
    raise UnsupportedPairError(
        f"no closed-form step is known for {divergence} with the energy of {energy} on {type(belief).__name__}. Known are "
        f"those of a divergence with itself as the energy, and for some members: {', '.join(known)}. A solver takes any "
        "pair with values: Proximal(…, energy=…, solver=NewtonSolver())."
    )


class Divergence(ABC):  # noqa: B024 (what is abstract are the rules, registered per family)
    """A divergence between beliefs: ≥ 0, and 0 only if they are equal.

    Subclasses are frozen dataclasses of their parameters. There are two operations, both per example:

    - ``divergence(p, q)``: the value, (batch,).
    - ``divergence.interpolate(p, q, f)``: the barycentric proximal step argmin_r (1 − f) D(r, p) + f D(r, q), where a
      closed form is known; for others use :class:`proxflow.Proximal` with a solver.
    """

    additive: bool = False
    """Whether the value of a belief with independent coordinates is the sum of the values of its coordinates, so that a
    solver may treat each coordinate as a separate small problem."""

    composes: bool | tuple[type[Belief], ...] = False
    """Whether steps toward a fixed target compose, 1 − f₁₂ = (1 − f₁)(1 − f₂) (semigroup), so that a training belief is
    one step from the prior; otherwise flows simulate several steps. Or the families on which they do."""

    barycentric: bool = True
    """Whether the step toward a target has the divergence from it as its energy; if not, see :meth:`objective`."""

    same_sizes: bool = True
    """Whether two beliefs must have the same shapes; if not, only the same family and batch size."""

    def __call__(self, p: B, q: B) -> Tensor:
        """Return D(p, q) for each example, (batch,).

        Raises:
            UnsupportedPairError: No rule is known for this divergence and family.
            ArgumentError: The beliefs differ in shape.
        """
        check_pair(p, q, same_sizes=self.same_sizes)
        if parts := independent_parts(self, p, q):
            return torch.stack([d(a, b) for d, a, b in parts]).sum(0)
        result: Tensor = _find(VALUES, self, p, "value")(self, p, q)
        return result

    def interpolate(self, p: B, q: B, fraction: Tensor | float) -> B:
        """Return the belief at ``fraction`` (a scalar or (batch,), in [0, 1]) on the path from ``p`` to ``q``.

        Raises:
            UnsupportedPairError: No closed form is known for this divergence and family.
            ArgumentError: The beliefs differ in shape, or the fraction is neither a scalar nor (batch,).
        """
        check_pair(p, q, same_sizes=self.same_sizes)
        if parts := independent_parts(self, p, q):
            return cast(B, Product(tuple(d.interpolate(a, b, fraction) for d, a, b in parts)))
        rule = _find(CLOSED_FORMS, self, p, "closed-form step")
        result: B = rule(self, p, q, lambda like: over_events(fraction, like))
        return result

    def over_parts(self, number: int) -> list[Divergence]:
        """Return the divergence of each part of a product, if this one is their sum; empty if it is not."""
        return [self] * number if self.additive else []

    def objective(self, r: Any, p: Any, q: Any, fraction: Tensor) -> Tensor:
        """Return the objective of :meth:`interpolate`, (1 − f) D(r, p) + f D(r, q), (batch,); f is (batch,).

        A divergence whose own step has another energy says so here, and the solver follows.

        Raises:
            ArgumentError: The rule of the value returns another shape.
        """
        value = self(r, p)
        if value.shape != (r.batch_size,):
            raise ArgumentError(
                f"the value of {type(self).__name__} on {type(r).__name__} must be one number an example, "
                f"({r.batch_size},), and its rule returned {tuple(value.shape)}"
            )
        objective: Tensor = (1 - fraction) * value + fraction * self(r, q)
        return objective

    def schedule(self, endpoints: object) -> Schedule:
        """Return the default schedule of flows between such endpoints: linear.

        A divergence whose beliefs would then know the data after a small part of the time returns another.
        """
        return Linear()

    def path(self, schedule: Schedule, endpoints: object) -> GaussianPath | None:
        """Return the path of the means of training beliefs about real data x, if it is Gaussian: a(t) x + b(t) ε.

        A divergence with such a path supports the path samplers, the network parameterisations and a likelihood. The
        default is ``None``: other paths of means, or ``endpoints`` whose beliefs are not Gaussian.

        Args:
            schedule: Fraction τ(t) of the path from the prior N(ε, 1), ε standard normal, to the target.
            endpoints: Endpoints of the flow; those with Gaussian targets N(x, σ²) have σ as the attribute
                ``target_std``.
        """
        return None


def independent_parts(divergence: Divergence, p: Belief, q: Belief) -> list[tuple[Divergence, Belief, Belief]]:
    """Return the terms of the divergence of two products, a divergence and a pair for each part; empty if it is no sum.

    Products need no rules: values and steps are those of the parts. A rule for :class:`proxflow.Product` takes
    precedence.
    """
    if not (isinstance(p, Product) and isinstance(q, Product)) or (type(divergence), Product) in VALUES:
        return []
    own = divergence.over_parts(len(p.parts))
    return list(zip(own, p.parts, q.parts, strict=True)) if own else []


def has_value(divergence: Divergence, belief: Belief) -> bool:
    """Return whether the divergence's value is known on this belief's family."""
    if parts := independent_parts(divergence, belief, belief):
        return all(has_value(d, part) for d, part, _ in parts)
    return (type(divergence), type(belief)) in VALUES


def has_closed_form(divergence: Divergence, belief: Belief) -> bool:
    """Return whether :meth:`Divergence.interpolate` supports this pair."""
    if parts := independent_parts(divergence, belief, belief):
        return all(has_closed_form(d, part) for d, part, _ in parts)
    pair = (type(divergence), type(belief))
    return pair in CLOSED_FORMS and (pair not in CONDITIONS or CONDITIONS[pair](divergence))


def steps_compose(divergence: Divergence, belief: Belief) -> bool:
    """Return whether steps toward a fixed target compose on this belief's family (:attr:`Divergence.composes`)."""
    if parts := independent_parts(divergence, belief, belief):
        return all(steps_compose(d, part) for d, part, _ in parts)
    claim = divergence.composes
    return claim if isinstance(claim, bool) else type(belief) in claim


def check_pair(p: Belief, q: Belief, *, same_sizes: bool = True) -> None:
    """Refuse two beliefs of different families or shapes; without ``same_sizes``, of different families or batch sizes."""
    if type(p) is not type(q):
        raise UnsupportedPairError(f"both beliefs must be of one family, got {type(p).__name__} and {type(q).__name__}")
    if isinstance(p, Product) and isinstance(q, Product):
        for part, other in zip(p.parts, q.parts, strict=False):
            check_pair(part, other)
    if not same_sizes:
        if p.batch_size != q.batch_size:
            raise ArgumentError(f"both beliefs must have one batch size, got {p.batch_size} and {q.batch_size}")
        return
    if p.shapes() != q.shapes():
        said, other_said = (list(map(tuple, b.shapes())) for b in (p, q))
        raise ArgumentError(f"both beliefs must have the same shapes, got {said} and {other_said}")


def _find(table: dict[Pair, Any], divergence: Divergence, belief: Belief, what: str) -> Any:
    pair = (type(divergence), type(belief))
    known = pair in table if table is VALUES else has_closed_form(divergence, belief)
    if known:
        return table[pair]
    name, family = type(divergence).__name__, type(belief).__name__
    families = sorted(f.__name__ for d, f in table if d is type(divergence) and f is not type(belief))
    divergences = sorted(d.__name__ for d, f in table if f is type(belief) and d is not type(divergence))
    message = (
        f"no {what} is known for {divergence if pair in table else name} on {family}. {name} has one on: "
        f"{', '.join(families) or 'no family'}; {family} has one for: {', '.join(divergences) or 'no divergence'}."
    )
    if isinstance(belief, Product):
        message += f" A product takes divergences that add up over independent parts, which {name} does not."
    if table is CLOSED_FORMS and pair in VALUES:
        message += f" Its value is known: use Proximal({name}(…), solver=NewtonSolver())."
    raise UnsupportedPairError(message)


def table_of_closed_forms() -> list[tuple[str, str, str]]:
    """Return every supported (divergence, family, kind of step), sorted, for the documentation."""

    def how(pair: Pair) -> str:
        if pair in CONDITIONS:
            return "closed form or solver"
        return "closed form" if pair in CLOSED_FORMS else "solver"

    return sorted((d.__name__, f.__name__, how((d, f))) for d, f in VALUES)
