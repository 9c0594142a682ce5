"""What learns from a conditional teacher keeps its classes: distribution matching, autoguidance, long steps and reflow."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import proxflow
from proxflow import Examples, LongStep, TrainingConfig, fit
from proxflow.cli import main
from proxflow.errors import ArgumentError, OutputError
from proxflow.training.conditions import with_dropout
from proxflow.training.recipes import recipe
from proxflow.training.reflow import make_pairs, reflow, straightness

NETWORK = "mlp:width=32,depth=2,classes=2"
CENTRES = torch.tensor([[-0.8, 0.5], [0.8, 0.5]])
LABELS = torch.arange(256) % 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(number=1024):
    labels = torch.arange(number) % 2
    return Examples(CENTRES[labels] + 0.5 * torch.randn(number, 2, generator=seeded()), labels)


def untrained(predictor="point:parameterisation=x"):
    return proxflow.build((2,), network=NETWORK, predictor=predictor, seed=0)


def config(steps, **settings):
    return TrainingConfig(
        **{"steps": steps, "batch_size": 128, "learning_rate": 5e-3, "ema": 0.95, "warmup_steps": 10, **settings}
    )


@pytest.fixture(scope="module")
def teacher():
    return untrained().fit(data(), config(300))


def student(teacher, steps, method="distribution-matching", weak=None, **settings):
    """Train a student of a teacher."""
    model = untrained()
    learning = recipe(method, model, teacher, weak, **settings)
    objective = with_dropout(learning.objective, model.predictor)
    trained = fit(learning.module, objective, data(), config(steps, learning_rate=2e-3)).predictor
    return replace(model, predictor=learning.kept(trained).eval())


def means(model, nfe, **settings):
    """The mean of what a model draws for each label, (2, 2)."""
    drawn = model.sample(256, nfe=nfe, seed=3, condition=LABELS, **settings).float()
    return torch.stack([drawn[k == LABELS].mean(0) for k in (0, 1)])


def test_distribution_matching_draws_the_classes_in_one_evaluation(teacher):
    found = student(teacher, 150, adversarial=0.0)
    assert torch.allclose(means(found, 1), CENTRES, atol=0.25)
    drawn = found.sample(256, nfe=1, seed=3, condition=LABELS)
    assert drawn[LABELS == 0].std(0).mean() > 0.1  # draws, not the mean of the class
    either = found.sample(256, nfe=1, seed=3)[:, 0]
    assert (either > 0.5).float().mean() > 0.2  # without a class it draws of both
    assert (either < -0.5).float().mean() > 0.2


def test_a_guided_teacher_is_distilled_into_one_evaluation(teacher):
    led = means(student(teacher, 150, adversarial=0.0, guidance=3.0), 1)
    wanted = means(teacher, 20, guidance=3.0)
    apart = CENTRES[1, 0] - CENTRES[0, 0]
    assert wanted[1, 0] - wanted[0, 0] > apart + 0.3  # guidance leads the classes apart
    # The student draws the law whose predictions are the guided ones, which is sharper than what guided samples have.
    assert led[1, 0] - led[0, 0] > apart + 0.3
    told = recipe("distribution-matching", untrained(), teacher, guidance=3.0).objective
    assert told.passes == 14  # a guided teacher takes two evaluations
    guided = teacher.guided(3.0)
    costs = [
        LongStep(teacher.flow, kind, each).passes for kind in ("consistency", "shortcut") for each in (None, guided)
    ]
    assert costs == [3.5, 5.5, 4.0, 5.0]


def test_autoguidance_is_learnt_class_by_class(teacher):
    weak = untrained().fit(data(), config(40))
    found = student(teacher, 100, "autoguidance", weak, guidance=1.5)
    assert torch.allclose(means(found, 10), means(teacher, 10, guidance=1.5, weak=weak), atol=0.15)
    assert torch.allclose(means(found, 10), CENTRES, atol=0.3)


def test_long_steps_follow_the_classes_of_their_teacher(teacher):
    model = untrained("long-step")
    model.predictor.begin_from(teacher.predictor.state_dict())
    objective = LongStep(model.flow, "consistency", teacher=teacher.predictor.requires_grad_(False))
    trained = fit(model.predictor, with_dropout(objective, model.predictor), data(), config(150)).predictor
    found = means(replace(model, predictor=trained.eval()), 1)
    assert torch.allclose(found, CENTRES, atol=0.25)


def test_reflow_straightens_the_paths_of_every_class(teacher, tmp_path):
    straight = reflow(teacher, config(150, learning_rate=1e-3), tmp_path / "straight", pairs=512)
    assert torch.allclose(means(straight, 1), CENTRES, atol=0.25)
    either = straight.sample(256, nfe=10, seed=3)[:, 0]
    assert (either > 0.5).float().mean() > 0.3  # it was trained without a class, too
    before, after = (straightness(m.predictor, m.flow, (256, 2), condition=LABELS) for m in (teacher, straight))
    assert after < before
    said = json.loads((tmp_path / "straight" / "run.json").read_text())
    assert said["condition"].startswith("sha256 ")


def test_pairs_of_other_conditions_are_not_taken_for_these(teacher, tmp_path):
    pairs = make_pairs(teacher.predictor, teacher.flow, 32, (2,), tmp_path, nfe=4, condition=LABELS[:32])
    assert torch.equal(pairs.condition, LABELS[:32])
    with pytest.raises(OutputError, match="condition"):
        make_pairs(teacher.predictor, teacher.flow, 32, (2,), tmp_path, nfe=4, condition=1 - LABELS[:32])


def test_reflow_asks_for_conditions_that_it_cannot_know(tmp_path):
    model = proxflow.build((2,), network="mlp:width=8,depth=1,vectors=3")
    with pytest.raises(ArgumentError, match="give condition="):
        reflow(model, config(1), tmp_path / "run", pairs=16)
    told = torch.randn(16, 3, generator=seeded())
    made = reflow(model, config(1, batch_size=4), tmp_path / "run", pairs=16, condition=told)
    assert made.provenance["reflow"]["rounds"] == 1


def test_the_command_distils_a_guided_teacher(tmp_path, capsys):
    images = torch.randint(0, 256, (16, 8, 8, 1), dtype=torch.uint8, generator=seeded()).numpy()
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(16) % 2)

    def run(*words):
        status = main([str(word) for word in (*words, "--device", "cpu")])
        return status, capsys.readouterr().err

    common = ("--data", tmp_path / "x.npz", "--steps", 2, "--batch-size", 4, "--grid", 0)
    network = ("--network", "unet:channels=8,multipliers=1,patch=4")
    assert run("train", "--out", tmp_path / "t", *common, *network, "--conditional")[0] == 0
    words = ("train", "--out", tmp_path / "s", "--teacher", tmp_path / "t", *common, "--guidance", 3)
    led = ("--guidance-interval", 0.1, 0.8, "--guidance-rule", "projected")
    assert run(*words, *led) == (0, "")
    origin = json.loads((tmp_path / "s" / "config.json").read_text())["provenance"]
    assert (origin["method"], origin["guidance"]) == ("distribution-matching", 3.0)
    assert (origin["guidance_interval"], origin["guidance_rule"]) == ([0.1, 0.8], "projected")
    drawn = ("sample", tmp_path / "s", "--class", "1", "--steps", 1, "--n", 2, "--out", tmp_path / "y.npz")
    assert run(*drawn) == (0, "")
    status, err = run(*words)
    assert status == 2
    assert "guidance_interval" in err
