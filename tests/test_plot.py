"""Figures, and how objects show themselves in notebooks: what is drawn is what the objects say, and bad input is refused."""

import base64
import io
import json
import re
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import proxflow
from proxflow import metrics, plot
from proxflow.runtime import progress


@pytest.fixture(scope="module")
def moons():
    data = proxflow.data.toy.Moons().sample(256, torch.Generator().manual_seed(0)).float()
    return proxflow.build(data, network="mlp:width=16", seed=0).fit(data, steps=5, batch_size=64)


def points(axes):
    return np.asarray(axes.collections[0].get_offsets())


def test_a_grid_holds_the_pictures_in_their_order():
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 4, 5) * 40
    figure = plot.grid(images, columns=3, titles=["a", "b", "c"])
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert [picture.shape for picture in shown] == [(4, 5, 3)] * 6
    assert [int(picture[0, 0, 0]) for picture in shown] == [0, 40, 80, 120, 160, 200]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "", "", ""]
    levels = plot.grid(torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1)).axes
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in levels] == [0, 128, 255]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: plot.grid(torch.zeros(2, 5, 4, 4)), "1 or 3"),
        (lambda: plot.grid(torch.zeros(0, 1, 4, 4)), "no picture to draw"),
        (lambda: plot.grid("x"), "as a tensor or array, got str"),
        (lambda: plot.belief(torch.zeros(3, 2)), "expected a belief.*got Tensor"),
        (lambda: plot.belief(proxflow.DiagonalGaussian(torch.full((2, 1), torch.nan), 1.0)), "not finite"),
        (lambda: plot.trajectory([]), "expected a model.*got list"),
        (lambda: plot.grid(torch.zeros(4, 4, 4), columns=0), "at least one column"),
        (
            lambda: plot.grid(torch.zeros(4, 4, 4), titles=["a", "b", "c"]),
            "a title for each of 2 columns or 4 pictures",
        ),
        (lambda: plot.calibration(torch.zeros(5, 3), torch.zeros(4)), r"\(5, 3\) and \(4,\)"),
        (lambda: plot.calibration(torch.zeros(2, 3), torch.zeros(3)), "three or more"),
        (lambda: plot.belief(proxflow.DiagonalGaussian(torch.zeros(2, 1), 1.0), 0), "no belief to draw"),
        (lambda: plot.quality([{"nfe": 2, "kid": 1.0}]), "no record has nfe and a number 'frechet'.*kid, nfe"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, said):
    with pytest.raises(proxflow.ArgumentError, match=said):
        call()


def test_a_trajectory_ends_near_its_samples_and_shows_first_and_last(moons):
    seen = []
    moons.sample(32, nfe=6, sampler="deterministic", watch=lambda t, belief, target: seen.append((t, belief, target)))
    figure = plot.trajectory(moons, 32, nfe=6, columns=3, sampler="deterministic")
    beliefs, targets = figure.axes[0::2], figure.axes[1::2]
    assert [axes.get_title() for axes in beliefs] == [f"t = {float(seen[k][0]):.2f}" for k in (0, 2, 5)]
    np.testing.assert_allclose(points(targets[-1]), moons.data.decode(seen[5][2].mean), atol=1e-5)
    np.testing.assert_allclose(points(beliefs[1]), moons.data.decode(seen[2][1].mean), atol=1e-5)
    assert len(points(plot.trajectory(moons, 3, nfe=2).axes[0])) == 3


def test_a_trajectory_of_pictures_has_two_rows_a_sample():
    model = proxflow.load("mnist")
    figure = plot.trajectory(model, 2, nfe=4, columns=4, seed=1)
    assert len(figure.axes) == 2 * 2 * 4
    assert np.asarray(figure.axes[-1].images[0].get_array()).shape == (28, 28, 3)


def test_trajectories_of_other_data_are_refused():
    model = proxflow.build(torch.randn(8, 1), network="mlp:width=8")
    with pytest.raises(proxflow.ArgumentError, match="two columns or more, got rows"):
        plot.trajectory(model)


def test_densities_ellipses_and_probabilities_are_those_of_the_belief():
    gaussian = proxflow.DiagonalGaussian(torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.5], [2.0]]))
    x, y = plot.belief(gaussian).axes[1].lines[0].get_data()
    np.testing.assert_allclose(y, np.exp(-0.5 * ((x + 2) / 2) ** 2) / (2 * np.sqrt(2 * np.pi)), rtol=1e-9)

    covariance = torch.tensor([[[2.0, 0.6], [0.6, 0.5]]]).double()
    full = proxflow.FullGaussian.from_covariance(torch.tensor([[1.0, -1.0]]).double(), covariance)
    ellipse = np.stack(plot.belief(full).axes[0].lines[1].get_data()) - np.array([[1.0], [-1.0]])
    np.testing.assert_allclose(np.sum(ellipse * np.linalg.solve(covariance[0], ellipse), axis=0), 4, rtol=1e-9)

    classes = proxflow.Categorical.from_probs(torch.tensor([[0.2, 0.5, 0.3]]))
    np.testing.assert_allclose(
        [bar.get_height() for bar in plot.belief(classes).axes[0].patches], [0.2, 0.5, 0.3], 1e-6
    )

    mixture = proxflow.GaussianMixture(torch.zeros(1, 2), torch.tensor([[[-3.0], [3.0]]]), torch.full((1, 2, 1), 0.5))
    x, y = plot.belief(mixture).axes[0].lines[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=1e-3)
    assert x[0] == pytest.approx(-4 * np.sqrt(9.25))


@pytest.mark.parametrize(
    ("belief", "panels"),
    [
        (proxflow.DiagonalGaussian(torch.zeros(3, 1, 6, 6), 1.0), 6),
        (proxflow.DiagonalGaussian(torch.zeros(3, 5), 1.0), 3),
        (proxflow.DiagonalGaussian(torch.zeros(3, 200), 1.0), 3),
        (proxflow.DiagonalGaussian(torch.zeros(3, 1), 0.0), 3),
        (proxflow.GaussianMixture(torch.zeros(3, 2), torch.randn(3, 2, 2), torch.ones(3, 2, 2)), 3),
        (proxflow.Categorical(torch.zeros(3, 7, 4)), 3),
        (proxflow.Revealed(torch.tensor([[0, -1, 2]] * 3), 3), 3),
        (
            proxflow.Product(
                (proxflow.DiagonalGaussian(torch.zeros(3, 2), 1.0), proxflow.Categorical(torch.zeros(3, 4)))
            ),
            6,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_family_is_drawn_and_shows_itself(belief, panels):
    figure = plot.belief(belief, 3)
    assert len(figure.axes) == panels
    assert Image.open(io.BytesIO(figure._repr_png_())).size[0] > 100
    assert type(belief).__name__ in belief._repr_html_()


def test_a_belief_of_pictures_shows_its_means():
    mean = torch.linspace(-1, 1, 12).reshape(1, 1, 3, 4)
    found = re.search(r"base64,([\w+/=]+)", proxflow.DiagonalGaussian(mean, 1.0)._repr_html_())
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))
    np.testing.assert_array_equal(picture[..., 0], ((mean[0, 0] + 1) * 127.5).round().numpy())


def test_quality_draws_means_over_seeds_and_the_floor(tmp_path):
    records = [
        {"flow": flow, "sampler": "s", "nfe": nfe, "seed": seed, "frechet": scale * (seed + 1) / nfe, "floor": 0.1}
        for flow, scale in (("a", 1.0), ("b", 2.0))
        for nfe in (2, 10)
        for seed in (0, 1)
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"cells": records}))
    for given in (records, path, str(path)):
        lines = plot.quality(given).axes[0].lines
        assert [line.get_label() for line in lines] == ["a · s", "b · s", "real images"]
        np.testing.assert_allclose(lines[1].get_ydata(), [1.5, 0.3])
    path.write_text("{")
    with pytest.raises(proxflow.DataError, match="cannot be read as results"):
        plot.quality(path)


def test_calibration_of_right_wide_and_narrow_draws():
    generator = torch.Generator().manual_seed(0)
    truth, draws = torch.randn(4000, generator=generator), torch.randn(9, 4000, generator=generator)
    at, right = plot.coverage(draws, truth)
    _, sure = plot.coverage(draws / 3, truth)
    assert np.abs(np.array(right) - at).max() < 4 * 0.5 / np.sqrt(4000)
    assert np.array(sure)[9] < at[9] - 0.1
    _, same = plot.coverage(torch.zeros(9, 4000), torch.zeros(4000))
    assert same[9] > 0.99, "ties count half: the truth is in the middle"
    assert len(plot.calibration(draws, truth).axes[0].lines) == 2


def test_models_and_scores_show_themselves(moons):
    shown = moons._repr_html_()
    for part in ("rows of shape 2", "gpfn", "mlp:width=16", "256 rows"):
        assert part in shown
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    scores = metrics.Reference.of(features[:20]).score(features[20:])
    shown = scores._repr_html_()
    assert f"<td>kid</td><td>{scores.kid:.4g}</td>" in shown
    assert "accuracy" not in shown


def test_a_notebook_gets_a_bar_that_goes(monkeypatch):
    said = []

    class Handle:
        def update(self, content):
            said.append(content)

    fake = types.ModuleType("IPython.display")
    fake.HTML = str
    fake.display = lambda content, display_id: Handle()
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    clock = iter([0.0, 1.0, 1.1, 2.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("training <b>", 100, "images") as show:
        show(20)
        show(22)
        show(50)
    label = "training &lt;b&gt;"
    element = f'<progress max="100" value="20" aria-label="{label}"></progress>'
    assert said[0] == f"{label} {element} 20 % · 20 images/s · 4 s left"
    assert [re.search(r"(\d+) %", text)[1] for text in said[:-1]] == ["20", "50"]
    assert said[-1] == ""
