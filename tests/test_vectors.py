"""Every recorded proximal step and divergence, by closed form where one exists and by the solver for all.

The values were found by direct numerical minimisation, to about 1e-7 (full covariances 1e-5).
"""

import pytest
import torch
from contracts import belief_from, divergence_named, recorded

from proxflow import Categorical, DiagonalGaussian, NewtonSolver, Proximal
from proxflow.divergences import has_closed_form

CASES = recorded()
TOLERANCES = {"gaussian": 1e-6, "categorical": 1e-6, "full_gaussian": 1e-5}


def numbers(belief):
    """A belief as the flat numbers it is recorded with."""
    if isinstance(belief, DiagonalGaussian):
        return torch.cat([belief.mean, belief.std]).flatten()
    if isinstance(belief, Categorical):
        return belief.probs.flatten()
    return torch.cat([belief.mean.flatten(), (belief.scale_tril @ belief.scale_tril.mT).flatten()])


STEPS = [
    pytest.param(family, index, name, id=f"{family}-{index}-{name}")
    for family in TOLERANCES
    for index, case in enumerate(CASES[family])
    for name in case["step"]
]


@pytest.mark.parametrize(("family", "index", "name"), STEPS)
def test_step_and_value(family, index, name):
    case, divergence, tolerance = CASES[family][index], divergence_named(name), TOLERANCES[family]
    belief, target, step = (belief_from(family, a) for a in (case["belief"], case["target"], case["step"][name]))
    expected = numbers(step)
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
