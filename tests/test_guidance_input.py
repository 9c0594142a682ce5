"""Students that read weight and interval of guidance: taught row by row, and told when they are sampled from."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_guidance import PAIRS, MixtureByLabel

import proxflow
from proxflow import GPFN, Examples, GaussianEndpoints, Guided, GuidedAsTold, LongStep, TrainingConfig, extrapolate, fit
from proxflow.cli import main
from proxflow.errors import ArgumentError
from proxflow.examples import lacking
from proxflow.nn.conditions import Conditions
from proxflow.training.conditions import GuidanceInput, with_dropout
from proxflow.training.recipes import recipe

NAN = float("nan")
NETWORK = "mlp:width=32,depth=2,classes=2"
CENTRES = torch.tensor([[-0.8, 0.5], [0.8, 0.5]])
LABELS = torch.arange(256) % 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("divergence", "pair"), PAIRS, ids=lambda x: getattr(x, "__name__", type(x).__name__))
def test_weights_of_rows_lead_each_row_as_one_weight_does(divergence, pair):
    away, toward = pair()
    weights = torch.tensor([1.0, 1.1, 1.3, 1.2, 1.05, 1.15], dtype=torch.float64)
    found = parameters(extrapolate(divergence, away, toward, weights))
    for k, w in enumerate(weights.tolist()):
        for name, tensor in parameters(extrapolate(divergence, away, toward, w)).items():
            torch.testing.assert_close(found[name][k], tensor[k], rtol=1e-12, atol=1e-12)


def parameters(belief):
    """What tells a belief: of classes their probabilities, whatever is added to logits."""
    return {"log_probs": belief.log_probs} if hasattr(belief, "log_probs") else belief.tensors()


def test_a_teacher_is_guided_as_each_row_says():
    flow = GPFN(endpoints=GaussianEndpoints(0.0))
    exact = MixtureByLabel(flow)
    exact.geometry = flow.geometry
    labels, t = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.5], dtype=torch.float64)
    belief = flow.belief(torch.randn(5, 2, dtype=torch.float64, generator=seeded()), t, seeded(1))
    asked = torch.tensor(
        [[2.0, 0.0, 1.0], [3.0, 0.4, 1.0], [1.5, 0.5, 0.5], [4.0, 0.0, 0.6], [NAN, NAN, NAN]], dtype=torch.float64
    )
    found = GuidedAsTold(exact)(belief, t, condition={"label": labels, "guidance": asked}).mean
    plain = exact(belief, t, condition=labels).mean
    for k, (w, first, last) in enumerate(asked.tolist()):
        led = w == w and first <= float(t[k]) <= last
        assert led == (k in (0, 2))
        wanted = Guided(exact, w, (first, last))(belief, t, condition=labels).mean if led else plain
        assert torch.equal(found[k], wanted[k])  # the same arithmetic, bit for bit
    with pytest.raises(ArgumentError, match="no part 'guidance'"):
        GuidedAsTold(exact)(belief, t, condition=labels)


class Heard:
    """An objective that keeps what it was told."""

    passes = 3.0

    def loss(self, predict, x, generator, t=None, *, condition=None, start=None):
        self.condition = condition
        return torch.zeros(len(x))


def test_what_examples_are_told_follows_the_stated_law():
    heard = Heard()
    labels = torch.arange(4000) % 2
    labels[:400] = -1
    GuidanceInput(heard, 3.0).loss(None, torch.zeros(4000, 2), seeded(), condition=labels)
    told = heard.condition["guidance"]
    assert torch.equal(heard.condition["label"], labels)
    none = told.isnan().all(1)
    assert none[:400].all()
    assert none[400:].float().mean() == pytest.approx(0.25, abs=0.03)
    w, first, last = told[~none].unbind(1)
    for share, low, high in (((w - 1) / 2, 0, 1), (first[first > 0] * 2, 0, 1), (last[last < 1] * 2 - 1, 0, 1)):
        assert low <= share.min() <= share.max() <= high
        assert (share.mean(), share.var()) == (pytest.approx(0.5, abs=0.03), pytest.approx(1 / 12, abs=0.01))
    assert ((first == 0).float().mean(), (last == 1).float().mean()) == (pytest.approx(0.5, abs=0.04),) * 2
    Conditions(8, classes=2, guidance=3.0).check_condition({"label": labels, "guidance": told})
    with pytest.raises(ArgumentError, match="give examples that have some"):
        GuidanceInput(heard, 3.0).loss(None, torch.zeros(4, 2), seeded())


def test_examples_lack_a_condition_where_all_of_it_is_missing():
    vectors = torch.tensor([[1.0, 2.0], [NAN, NAN]])
    assert lacking(vectors).tolist() == [False, True]
    assert lacking({"label": torch.tensor([-1, -1]), "vector": vectors}).tolist() == [False, True]


class ExactByLabel:
    """What two classes N(±m, s²) predict exactly, with a label, or without one where it is −1 or none is given."""

    reads = frozenset({"condition"})

    def __init__(self, flow, m=1.0, s=0.5):
        self.flow, self.geometry, self.m, self.s = flow, flow.geometry, m, s

    def __call__(self, belief, t, *, condition=None):
        a, b = (c.to(belief.mean.dtype)[:, None] for c in self.flow.path.coefficients(t))
        y, total = belief.mean, (a * self.s) ** 2 + b**2
        low, high = (c + a * self.s**2 / total * (y - a * c) for c in (-self.m, self.m))
        odds = torch.sigmoid(2 * a * self.m * y / total)
        both = (1 - odds) * low + odds * high
        if condition is None:
            return self.flow.target(both)
        label = condition[:, None]
        return self.flow.target(torch.where(label < 0, both, torch.where(label == 0, low, high)))


@pytest.fixture(scope="module")
def exact_student():
    """A student in one evaluation of the exact guided predictions of a mixture."""
    flow = GPFN()
    model = proxflow.build(
        (1,), flow=flow, network="mlp:width=32,depth=1,classes=2,guidance=3", predictor="long-step", seed=0
    )
    objective = GuidanceInput(LongStep(flow, "consistency", teacher=GuidedAsTold(ExactByLabel(flow))), 3.0)
    labels = torch.arange(4096) % 2
    x = (2.0 * labels - 1)[:, None] + 0.5 * torch.randn(4096, 1, generator=seeded())
    config = TrainingConfig(steps=400, batch_size=256, learning_rate=8e-3, ema=0.97, warmup_steps=10)
    trained = fit(model.predictor, with_dropout(objective, model.predictor), Examples(x, labels), config).predictor
    return replace(model, predictor=trained.eval())


@pytest.mark.parametrize(
    ("w", "interval"), [(1.0, (0.0, 1.0)), (2.0, (0.0, 1.0)), (3.0, (0.0, 1.0)), (2.5, (0.4, 0.8))]
)
def test_a_student_draws_in_one_evaluation_what_exact_guidance_does_in_many(exact_student, w, interval):
    flow, model = exact_student.flow, exact_student
    start = torch.randn(256, 1, generator=seeded(5))
    drawn = model.sample(256, nfe=1, condition=LABELS, start=start, guidance=w, interval=interval)
    led = proxflow.given(Guided(ExactByLabel(flow), w, interval), LABELS)
    belief = flow.begin(start.double())
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    for t, s in pairwise(times):
        belief = flow.update(belief, led(belief, t.expand(256)), t, s, None)
    wanted = belief.mean.float()
    error = (drawn - wanted).square().mean().sqrt()
    assert error < 0.25
    if w > 1:  # it is told by the weight, not by chance: without guidance it is much further away
        unled = model.sample(256, nfe=1, condition=LABELS, start=start)
        assert (unled - wanted).square().mean().sqrt() > 2 * error


def data(number=1024):
    labels = torch.arange(number) % 2
    return Examples(CENTRES[labels] + 0.5 * torch.randn(number, 2, generator=seeded()), labels)


def config(steps, **settings):
    return TrainingConfig(
        **{"steps": steps, "batch_size": 128, "learning_rate": 5e-3, "ema": 0.95, "warmup_steps": 10, **settings}
    )


@pytest.fixture(scope="module")
def matched():
    """A student by distribution matching of a small trained teacher."""
    point = "point:parameterisation=x"
    teacher = proxflow.build((2,), network=NETWORK, predictor=point, seed=0).fit(data(), config(300))
    model = proxflow.build((2,), network=NETWORK + ",guidance=3", predictor=point, seed=1)
    learning = recipe("distribution-matching", model, teacher, adversarial=0.0)
    t = torch.full((8,), 0.4)
    belief, told = model.flow.belief(data(8).x, t, seeded()), {"condition": LABELS[:8]}
    begun = learning.module.student(belief, t, **told).mean
    assert torch.equal(begun, teacher.predictor(belief, t, **told).mean)  # it begins as its teacher
    objective = with_dropout(learning.objective, model.predictor)
    assert objective.passes == 8  # the teacher's two evaluations among them
    trained = fit(learning.module, objective, data(), config(300)).predictor
    return replace(model, predictor=learning.kept(trained).eval())


def test_a_matching_student_is_led_by_its_weight(matched):
    apart = []
    for w in (1.0, 2.0, 3.0):
        drawn = matched.sample(256, nfe=1, seed=3, condition=LABELS, guidance=w)
        apart.append(float(drawn[LABELS == 1, 0].mean() - drawn[LABELS == 0, 0].mean()))
    assert apart[0] == pytest.approx(1.6, abs=0.35)
    assert apart[1] > apart[0] + 0.2
    assert apart[2] > apart[1] + 0.1
    late = matched.sample(256, nfe=1, seed=3, condition=LABELS, guidance=3.0, interval=(0.5, 1.0))
    assert float(late[LABELS == 1, 0].mean() - late[LABELS == 0, 0].mean()) < apart[2]
    either = matched.sample(256, nfe=1, seed=3)[:, 0]
    assert (either > 0.5).float().mean() > 0.2
    assert (either < -0.5).float().mean() > 0.2


def test_rows_may_each_have_their_own_guidance(matched):
    told = torch.tensor([[1.5, 0.0, 1.0], [3.0, 0.2, 0.9], [NAN, NAN, NAN], [1.0, 0.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 0])
    both = matched.sample(4, nfe=1, seed=2, condition={"label": labels, "guidance": told})
    for k, (w, first, last) in enumerate(told.nan_to_num(1.0).tolist()):
        alone = matched.sample(4, nfe=1, seed=2, condition=labels, guidance=w, interval=(first, last))
        torch.testing.assert_close(both[k], alone[k], atol=1e-6, rtol=1e-5)


def test_a_student_is_saved_and_loaded_with_its_range(matched, tmp_path):
    matched.save_pretrained(tmp_path / "few")
    assert json.loads((tmp_path / "few" / "config.json").read_text())["network"]["guidance"] == 3.0
    again = proxflow.load(tmp_path / "few")
    asked = {"nfe": 1, "seed": 1, "condition": LABELS[:16], "guidance": 2.0, "interval": (0.2, 0.8)}
    assert torch.equal(again.sample(16, **asked), matched.sample(16, **asked))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"guidance": 3.5}, "weights from 1 to 3"),
        ({"guidance": 0.5}, "weights from 1 to 3"),
        ({"guidance": 2.0, "interval": (0.6, 0.9)}, "begin at a time from 0 to 0.5"),
        ({"guidance": 2.0, "interval": (0.0, 0.4)}, "end at one from 0.5 to 1"),
        ({"guidance": 2.0, "rule": "projected"}, "taught guidance by the rule linear"),
    ],
)
def test_what_was_not_learnt_is_refused(matched, asked, message):
    with pytest.raises(ArgumentError, match=message) as refused:
        matched.sample(4, nfe=1, condition=LABELS[:4], **asked)
    assert "\n" not in str(refused.value)


def test_networks_that_read_guidance_are_students(matched):
    with pytest.raises(ArgumentError, match="above 1"):
        proxflow.build((2,), network=NETWORK + ",guidance=1")
    with pytest.raises(ArgumentError, match="one of them more"):
        proxflow.build((2,), network="mlp:guidance=2")
    for method, teacher in (("flow", None), ("autoguidance", matched)):
        with pytest.raises(ArgumentError, match="by distribution matching"):
            recipe(method, matched, teacher)
    with pytest.raises(ArgumentError, match="must be alike"):
        recipe("distribution-matching", matched, matched)


@pytest.mark.parametrize("network", ["unet:channels=8,multipliers=1,patch=4", "dit:width=16,depth=1,heads=2,patch=4"])
def test_the_command_makes_a_student_and_tells_it(tmp_path, capsys, network):
    images = torch.randint(0, 256, (16, 8, 8, 1), dtype=torch.uint8, generator=seeded()).numpy()
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(16) % 2)

    def run(*words):
        status = main([str(word) for word in (*words, "--device", "cpu")])
        said = capsys.readouterr()
        return status, said.out, said.err

    common = ("--data", tmp_path / "x.npz", "--steps", 2, "--batch-size", 4, "--grid", 0)
    assert run("train", "--out", tmp_path / "t", *common, "--network", network, "--conditional")[0] == 0
    words = ("train", "--out", tmp_path / "s", "--teacher", tmp_path / "t", *common, "--guidance-input")
    status, _, err = run(*words)
    assert (status, "the largest weight" in err) == (2, True)
    assert run(*words, "--guidance", 3)[::2] == (0, "")
    origin = json.loads((tmp_path / "s" / "config.json").read_text())["provenance"]
    assert origin["guidance"]["weight"] == "uniform from 1 to 3"
    drawn = ("sample", tmp_path / "s", "--class", "1", "--steps", 1, "--n", 2, "--out", tmp_path / "y.npz")
    status, out, err = run(*drawn, "--guidance", 2, "--guidance-interval", 0.1, 0.9)
    assert (status, err) == (0, "")
    assert "2 images, 1 network evaluation each" in out
    assert sorted(np.load(tmp_path / "y.npz")) == ["images", "labels"]
    status, _, err = run(*drawn, "--guidance", 4)
    assert (status, err.count("\n")) == (2, 1)
    assert "weights from 1 to 3" in err
