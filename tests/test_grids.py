"""The times of few evaluations, chosen for a model."""

import json
from dataclasses import replace

import pytest
import torch
from scipy import optimize
from test_toy import mixture

from proxflow import (
    GPFN,
    CategoricalEndpoints,
    ClassPredictor,
    DiscreteBFN,
    ExactMean,
    GaussianEndpoints,
    LongStepPredictor,
    Marginal,
    Multistep,
    PointPredictor,
    ReverseKL,
    Stochastic,
    load,
    models,
    names,
    optimise_times,
    sample,
)
from proxflow.errors import ArgumentError, CheckpointError

FLOW = GPFN(endpoints=GaussianEndpoints(0.0))
LAW = mixture(2, 3, seed=5)


class Exact(torch.nn.Module):
    """The exact predictor of a mixture of Gaussians, as a module, which counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))  # makes sampling double
        self.exact, self.asked = ExactMean(FLOW, LAW), 0

    def forward(self, belief, t):
        self.asked += len(t)
        return self.exact(belief, t)


@pytest.mark.parametrize("steps", [2, 3, 4])
@pytest.mark.parametrize("sampler", ["deterministic", "unipc"])
def test_no_times_found_by_scipy_are_better(sampler, steps):
    model = Exact()
    found = optimise_times(model, FLOW, (32, 2), steps, sampler=sampler, rounds=60)
    assert model.asked == found.evaluations
    goal = sample(model, FLOW, (32, 2), nfe=64, sampler=sampler, seed=0)
    torch.testing.assert_close(found.reference, goal)

    def distance(times):
        events = sample(model, FLOW, (32, 2), nfe=steps, sampler=sampler, times=times)
        return float((events - goal).square().mean().sqrt())

    def of_gaps(logs):
        return distance([0.0, *torch.tensor([*logs, 0.0]).double().softmax(0).cumsum(0)[:-1].tolist()])

    assert found.error == pytest.approx(distance(found.times), rel=1e-9)
    assert found.error_before == pytest.approx(distance([k / steps for k in range(steps)]), rel=1e-9)
    best = optimize.minimize(of_gaps, [0.0] * (steps - 1), method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-5})
    assert found.error <= best.fun * 1.01
    assert found.error < 0.97 * found.error_before


class Curved(torch.nn.Module):
    """A network with some curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, mean, t, end=None):
        late = t if end is None else t + 0.3 * (end - t).square()
        return torch.sin(2 * mean + self.shift) - late.reshape(-1, 1) * mean


@pytest.mark.parametrize("sampler", ["multistep2", "multistep3", "unipc", "midpoint", "deterministic", Multistep(2)])
def test_times_are_better_and_fit_to_be_sampled_with(sampler):
    model = PointPredictor(Curved(), FLOW, parameterisation="x").train()
    found = optimise_times(model, FLOW, (20, 4), 4, sampler=sampler)
    assert model.training
    assert found.error < 0.95 * found.error_before
    assert found.times[0] == 0
    assert all(t < s for t, s in zip(found.times, [*found.times[1:], 1.0], strict=True))
    # The same of other draws, which nothing was fitted to.
    many = sample(model, FLOW, (64, 4), nfe=64, sampler=sampler, seed=9)
    new, old = (sample(model, FLOW, (64, 4), nfe=4, sampler=sampler, seed=9, times=t) for t in (found.times, None))
    assert float((new - many).norm()) < float((old - many).norm())
    again = optimise_times(model, FLOW, (20, 4), 4, sampler=sampler, reference=found.reference)
    assert again == type(found)(found.times, found.error, found.error_before, again.evaluations, found.reference)
    assert again.evaluations == found.evaluations - 64 * 32  # 20 draws in a batch of 32


def test_answers_that_stay_are_not_asked_for_again():
    first, once = (optimise_times(Exact(), FLOW, (16, 2), 5, sampler="deterministic", rounds=r) for r in (0, 1))
    assert first.evaluations == 16 * (64 + 5)
    # The answers from each time on, and then those of the new times but the first.
    assert (once.evaluations - first.evaluations) // 16 in [4 + 3 + 2 + 1 + 4 * tries for tries in range(1, 9)]


def test_a_predictor_that_is_told_its_ends_is_asked_for_the_answer_before_as_well():
    model = LongStepPredictor(Curved(), FLOW, clip=None)
    found = optimise_times(model, FLOW, (16, 4), 3, rounds=1)
    assert (found.evaluations // 16 - 64 - 3 - (3 + 2)) % 3 == 0
    assert found.error < found.error_before


def test_one_evaluation_has_one_time():
    found = optimise_times(PointPredictor(Curved(), FLOW, parameterisation="x"), FLOW, (4, 4), 1)
    assert found.times == (0.0,)
    assert found.error == found.error_before


def test_a_sampler_that_only_has_a_name_is_found(monkeypatch):
    monkeypatch.setitem(names.BUILT_IN["samplers"], "added", names.Name("proxflow.samplers:Deterministic", "added"))
    words = PointPredictor(Curved(), FLOW), FLOW, (4, 4), 2
    found, expected = (optimise_times(*words, sampler=name, rounds=1) for name in ("added", "deterministic"))
    assert found == expected
    assert found.times != tuple(FLOW.times(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "stochastic"}, "draws noise on its way"),
        ({"sampler": Stochastic()}, "draws noise on its way"),
        ({"sampler": Marginal(0.1)}, "draws noise on its way"),
        ({"sampler": "sde-bfn-solver2"}, "draws noise on its way"),
        ({"sampler": "magic"}, "no sampler is called 'magic'"),
        ({"nfe": 0}, "nfe must be at least 1"),
        ({"rounds": -1}, "rounds at least 0"),
        ({"shape": ()}, "at least 1"),
        ({"reference": torch.zeros(3, 4)}, "numbers of shape"),
        ({"reference": torch.zeros(4, 4, dtype=torch.int64)}, "numbers of shape"),
    ],
)
def test_refused(change, message):
    words = {"shape": (4, 4), "nfe": 2, **change}
    with pytest.raises(ArgumentError, match=message):
        optimise_times(
            PointPredictor(Curved(), FLOW, parameterisation="x"), FLOW, words.pop("shape"), words.pop("nfe"), **words
        )


@pytest.mark.parametrize("flow", [GPFN(ReverseKL(), endpoints=CategoricalEndpoints(3)), DiscreteBFN(3)], ids=str)
def test_classes_have_no_distance(flow):
    with pytest.raises(ArgumentError, match="between classes"):
        optimise_times(ClassPredictor(Curved()), flow, (4, 4), 2, sampler="deterministic")


# With a model on disk -------------------------------------------------------------------------------------------------


def small():
    torch.manual_seed(0)
    return models.build((1, 8, 8), network="unet:channels=4,multipliers=1")


def test_a_model_keeps_its_times(tmp_path):
    times = {"unipc": {2: (0.0, 0.25), 1: (0.0,)}, "multistep2": {3: (0.0, 0.1, 0.7)}}
    replace(small(), times=times).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.times == times
    assert model.times_of("unipc", 2) == (0.0, 0.25)
    assert model.times_of("unipc", 3) is None
    assert model.times_of("deterministic", 2) is None
    drawn, expected = (
        sample(model.predictor, model.flow, (2, *model.shape), nfe=2, times=times) for times in ((0, 0.25), [0.0, 0.25])
    )
    assert torch.equal(drawn, expected)
    small().save_pretrained(tmp_path)
    assert "times" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(
    "times",
    [
        None, "x", [], {"unipc": []}, {"unipc": None},
        {"magic": {}}, {"unipc": {"2": [0]}}, {"unipc": {"2": [0, 0.5, 0.6]}}, {"unipc": {"0": []}},
        {"unipc": {"2": [0.1, 0.5]}}, {"unipc": {"2": [0, 1.0]}}, {"unipc": {"3": [0, 0.5, 0.5]}},
        {"unipc": {"2": [0, "1"]}}, {"unipc": {"2": [0, True]}}, {"unipc": {"2": {"0": 0}}}, {"unipc": {"02": [0, 0.5]}},
        {"unipc": {"2": [0, float("nan")]}}, {"unipc": {"1": [None]}}, {"unipc": {"1": [False]}},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_times_are_refused(tmp_path, times):
    small().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "times": times}))
    with pytest.raises(CheckpointError, match="times"):
        load(tmp_path)
