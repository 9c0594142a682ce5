"""Recipes: the objective of a training by name, the flow's own loss or one for few evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from proxflow.config import MethodName
from proxflow.errors import ArgumentError
from proxflow.examples import Examples
from proxflow.models import Model, word
from proxflow.predictors import DrawPredictor, GuidanceRule, GuidedAsTold, LongStepPredictor, reads_guidance
from proxflow.training.conditions import GuidanceInput
from proxflow.training.objectives import (
    Autoguidance,
    DistributionMatching,
    EnergyScore,
    LongStep,
    Objective,
    StudentAndCritic,
)


@dataclass(frozen=True)
class Recipe:
    """The arguments of :func:`proxflow.fit`, and which part of its result is the model.

    Args:
        objective: The loss.
        module: The module to train.
        kept: Function from the trained module to the predictor to keep.
        data: Training data, if not the data set.
        method: Name of the recipe.
    """

    objective: Objective
    module: nn.Module
    kept: Callable[[nn.Module], nn.Module] = lambda module: module
    data: Examples | None = None
    method: MethodName = "flow"


def recipe(
    method: MethodName,
    model: Model,
    teacher: Model | None = None,
    weak: Model | None = None,
    *,
    guidance: float | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    rule: GuidanceRule | str = "linear",
    adversarial: float = 0.1,
    first_share: float = 1.0,
    student_rate: float = 0.3,
) -> Recipe:
    """Return the recipe of a name.

    Args:
        method: flow: the flow's own loss; :class:`proxflow.LongStep` for a model that predicts long steps,
            :class:`proxflow.EnergyScore` for one that draws; distribution-matching:
            :class:`proxflow.DistributionMatching` from a teacher; autoguidance: :class:`proxflow.Autoguidance` from a
            teacher, away from a weak model. Students start from the teacher's weights.
        model: The model to train, untrained. If its network reads guidance and its teacher's does not, it learns by
            distribution matching the teacher's samples for all weights and intervals, see :class:`GuidanceInput`; then
            ``guidance``, ``interval`` and ``rule`` are not used.
        teacher: A trained model of the same configuration, for methods that need one.
        weak: A trained model of the same flow, for autoguidance; its network may differ.
        guidance: Weight of autoguidance, ≥ 1; ``None`` takes 2. For distribution matching, guidance weight of a
            conditional teacher, whose guided samples the student then draws; ``None`` takes 1, no guidance.
        interval: First and last time of this guidance.
        rule: Rule of this guidance.
        adversarial: For distribution matching, as for :class:`proxflow.DistributionMatching`; ``first_share`` likewise.
        student_rate: For distribution matching, as for :class:`proxflow.StudentAndCritic`.

    Raises:
        ArgumentError: A teacher is missing, not needed, or of another configuration; a weak model likewise; a teacher that
            cannot be guided.
    """
    largest = reads_guidance(model.predictor)
    if largest and (method != "distribution-matching" or guidance is not None or teacher is None):
        raise ArgumentError(
            f"a network that reads guidance, here up to {largest:g}, learns it from a conditional teacher by distribution "
            "matching, which is told no weight"
        )
    if (weak is None) == (method == "autoguidance"):
        raise ArgumentError("a weak model to lead away from is for the method autoguidance, which needs one")
    if method == "flow":
        if teacher is not None:
            raise ArgumentError("a flow's own loss needs no teacher: choose distribution-matching or autoguidance")
        objective: Objective = model.flow
        if isinstance(model.predictor, LongStepPredictor):
            objective = LongStep(cast(Any, model.flow))
        elif isinstance(model.predictor, DrawPredictor):
            objective = EnergyScore(model.flow)
        return Recipe(objective, model.predictor)
    if teacher is None:
        raise ArgumentError(f"{method} learns from a trained model: name a teacher")
    if teacher.spec != (_unguided(model).spec if largest else model.spec):
        raise ArgumentError(f"teacher and student must be alike, got {_words(teacher)} and {_words(model)}")
    if isinstance(teacher.predictor, LongStepPredictor | DrawPredictor):
        raise ArgumentError(
            f"{method} needs a teacher that predicts the data from the belief: one of predictor 'point'"
        )
    guide = teacher.predictor.eval().requires_grad_(False)
    if largest:
        model.predictor.load_state_dict({**model.predictor.state_dict(), **guide.state_dict()})
        matching = DistributionMatching(model.flow, GuidedAsTold(guide).eval(), adversarial, first_share)
        return Recipe(
            cast(Objective, GuidanceInput(matching, largest)),
            StudentAndCritic(model.predictor, student_rate, discriminator=adversarial > 0),
            lambda module: cast(Any, module).student,
            method=method,
        )
    if weak is None:
        followed = teacher.guided(1.0 if guidance is None else guidance, interval, rule).eval()
        return Recipe(
            DistributionMatching(model.flow, followed, adversarial, first_share),
            StudentAndCritic(guide, student_rate, discriminator=adversarial > 0),
            lambda module: cast(Any, module).student,
            method=method,
        )
    if weak.flow != teacher.flow or weak.shape != teacher.shape or type(weak.predictor) is not type(guide):
        raise ArgumentError(
            f"the model to lead away from must have the teacher's flow and predict the same, got {_words(weak)} and "
            f"{_words(teacher)}"
        )
    model.predictor.load_state_dict(guide.state_dict())
    away_from = weak.predictor.eval().requires_grad_(False)
    weight = 2.0 if guidance is None else guidance
    return Recipe(Autoguidance(model.flow, guide, away_from, weight), model.predictor, method=method)


def _unguided(model: Model) -> Model:
    """Return a model as if its network read no guidance, for its specification."""
    return replace(model, network=replace(model.network, settings={**model.network.settings, "guidance": 0.0}))


def _words(model: Model) -> str:
    parts = ", ".join(word(part) for part in (model.flow, model.network, model.predictor))
    return f"{parts} of {model.shape}"
