"""Every recorded proximal step and divergence, by closed form where one exists and by the solver for all.

The values were found by direct numerical minimisation, to about 1e-7 (full covariances 1e-5).
"""

import json

import pytest
import torch
from support import vectors

from proxflow import KL, Categorical, DiagonalGaussian, FisherRao, NewtonSolver, Proximal, ReverseKL, Wasserstein2
from proxflow.beliefs import FullGaussian
from proxflow.divergences import Alpha, HellingerSquared, Jeffreys, Renyi, has_closed_form

CASES = json.loads((vectors() / "prox.json").read_text())
FIXED = {
    "kl": KL(),
    "reverse_kl": ReverseKL(),
    "wasserstein2": Wasserstein2(),
    "fisher_rao": FisherRao(),
    "jeffreys": Jeffreys(),
    "hellinger_squared": HellingerSquared(),
}


def divergence_of(name):
    if name in FIXED:
        return FIXED[name]
    kind, _, parameter = name.rpartition("_")
    return {"alpha": Alpha, "renyi": Renyi}[kind](float(parameter))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(parameters):
    return DiagonalGaussian(tensor(parameters[:1]), tensor(parameters[1:]))


def categorical(probs):
    return Categorical.from_probs(tensor([probs]))


def full_gaussian(parameters):
    mean, covariance = parameters
    return FullGaussian.from_covariance(tensor([mean]), tensor([covariance]))


def numbers(belief):
    """A belief as the flat numbers it is recorded with."""
    if isinstance(belief, DiagonalGaussian):
        return torch.cat([belief.mean, belief.std])
    if isinstance(belief, Categorical):
        return belief.probs.flatten()
    return torch.cat([belief.mean.flatten(), (belief.scale_tril @ belief.scale_tril.mT).flatten()])


FAMILIES = {"gaussian": (gaussian, 1e-6), "categorical": (categorical, 1e-6), "full_gaussian": (full_gaussian, 1e-5)}
STEPS = [
    pytest.param(family, index, name, id=f"{family}-{index}-{name}")
    for family in FAMILIES
    for index, case in enumerate(CASES[family])
    for name in case["step"]
]


@pytest.mark.parametrize(("family", "index", "name"), STEPS)
def test_step_and_value(family, index, name):
    make, tolerance = FAMILIES[family]
    case, divergence = CASES[family][index], divergence_of(name)
    belief, target = make(case["belief"]), make(case["target"])
    expected = numbers(make(case["step"][name]))
    scale = expected.abs().clamp_min(1)
    found = Proximal(divergence, NewtonSolver())(belief, target, case["fraction"])
    assert float(((numbers(found) - expected) / scale).abs().max()) < tolerance
    if has_closed_form(divergence, belief):
        exact = Proximal(divergence)(belief, target, case["fraction"])
        assert float(((numbers(exact) - expected) / scale).abs().max()) < tolerance
    value = case["divergence"][name]
    assert float(divergence(belief, target)) == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_something_is_recorded():
    assert STEPS
