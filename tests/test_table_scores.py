"""Scores of made tables against independent values, the Gaussian copula, and the study of tables."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from proxflow.beliefs import Categorical, DiagonalGaussian, Product
from proxflow.config import TrainingConfig
from proxflow.data.kinds.table import Table
from proxflow.errors import ArgumentError
from proxflow.metrics import tables
from proxflow.predictors import WithoutLast
from proxflow.studies import trials
from proxflow.studies.presets import TABLES_PRESETS, TablesPreset
from proxflow.studies.tables import copula, report, sources

pytest.importorskip("sklearn")


def mixed(number, seed):
    """Rows of a number that depends on a category of three, a second number, and one with gaps."""
    choice = np.random.default_rng(seed)
    sort = choice.integers(0, 3, number)
    x = sort + 0.5 * choice.standard_normal(number)
    y = 0.8 * x + choice.standard_normal(number)
    gap = np.where(choice.random(number) < 0.2, np.nan, choice.standard_normal(number))
    return np.stack([x, y, gap, sort], 1)


CLASSES = (0, 0, 0, 3)


def test_distances_of_columns_are_those_of_scipy_and_of_counting():
    a, b = mixed(200, 0), mixed(300, 1)
    for k in (0, 1):
        assert tables.marginals(a[:, [k]], b[:, [k]], (0,)) == pytest.approx(stats.ks_2samp(a[:, k], b[:, k]).statistic)
    with_gaps = tables.marginals(a[:, [2]], b[:, [2]], (0,))
    above = [np.where(np.isnan(x[:, 2]), 1e9, x[:, 2]) for x in (a, b)]
    assert with_gaps == pytest.approx(stats.ks_2samp(*above).statistic)
    shares = [np.bincount(x[:, 3].astype(int)) / len(x) for x in (a, b)]
    assert tables.marginals(a[:, [3]], b[:, [3]], (3,)) == pytest.approx(max((shares[0] - shares[1]).clip(0).sum(), 0))
    every = [tables.marginals(a[:, [k]], b[:, [k]], (CLASSES[k],)) for k in range(4)]
    assert tables.marginals(a, b, CLASSES) == pytest.approx(np.mean(every))


def test_dependence_is_that_of_scipy():
    rows = mixed(300, 0)
    assert tables.dependence(rows, 0, 1, CLASSES) == pytest.approx(stats.pearsonr(rows[:, 0], rows[:, 1]).statistic)
    both = ~np.isnan(rows[:, 2])
    assert tables.dependence(rows, 2, 1, CLASSES) == pytest.approx(
        stats.pearsonr(rows[both, 2], rows[both, 1]).statistic
    )
    groups = [rows[rows[:, 3] == k, 0] for k in range(3)]
    f = stats.f_oneway(*groups).statistic
    ratio = f * 2 / (f * 2 + len(rows) - 3)  # η² of the F statistic
    assert tables.dependence(rows, 3, 0, CLASSES) == pytest.approx(math.sqrt(ratio))
    assert tables.dependence(rows, 0, 3, CLASSES) == pytest.approx(math.sqrt(ratio))
    two = np.stack([rows[:, 3], (rows[:, 0] > 1).astype(float)], 1)
    table = np.zeros((3, 2))
    np.add.at(table, (two[:, 0].astype(int), two[:, 1].astype(int)), 1)
    expected = stats.contingency.association(table.astype(int), method="cramer")
    assert tables.dependence(two, 0, 1, (3, 2)) == pytest.approx(expected)
    assert tables.dependence(np.ones((9, 2)), 0, 1, (0, 0)) == 0


def test_many_made_rows_show_the_law_and_not_the_noise_of_a_draw():
    # The training rows again, many times over: their law is that of the training half, and so are their distances.
    train, test = mixed(60, 0), mixed(60, 1)
    many = train[np.random.default_rng(0).permutation(np.tile(np.arange(60), 10))]
    assert tables.marginals(many, test, CLASSES) == pytest.approx(tables.marginals(train, test, CLASSES))
    one = np.mean([tables.marginals(mixed(60, k), test, CLASSES) for k in range(2, 22)])
    assert tables.marginals(mixed(6000, 2), test, CLASSES) < 0.9 * one


def test_dependence_of_many_made_rows_is_not_below_that_of_few_real_ones():
    # Cramér's V of independent categories is not 0 for few rows; the same law must not be scored as another.
    choice = np.random.default_rng(0)
    classes = (5, 5)
    found, alone = [], []
    for _ in range(40):
        test, made = choice.integers(0, 5, (30, 2)).astype(float), choice.integers(0, 5, (3000, 2)).astype(float)
        found.append(tables.correlations(made, test, classes))
        alone.append(abs(tables.dependence(made, 0, 1, classes) - tables.dependence(test, 0, 1, classes)))
    assert np.mean(found) < 0.6 * np.mean(alone)


def test_rows_to_make():
    assert [tables.rows_to_make(n) for n in (20, 75, 1000, 4000, 20_000)] == [200, 750, 10_000, 10_000, 20_000]


def test_nearest_rows_and_repeats():
    train = mixed(100, 0)
    scale = tables.Scale(train, CLASSES)
    whole = scale(train)
    found = tables.nearest(scale(mixed(50, 1)), whole)
    apart = np.linalg.norm(scale(mixed(50, 1))[:, None] - whole, axis=2).min(1)
    np.testing.assert_allclose(found, apart, atol=1e-9)
    assert float(tables.nearest(whole, whole).max()) == 0
    half = np.concatenate([train[:30], mixed(30, 2)])
    assert tables.repeats(half, train) == pytest.approx(0.5)


def test_equal_laws_are_not_told_apart_and_others_are():
    train, test, made = mixed(300, 0), mixed(300, 1), mixed(300, 2)
    wrong = made.copy()
    wrong[:, 1] += 2
    classes = CLASSES
    good = tables.table_scores(made, train, test, classes, 3)
    bad = tables.table_scores(wrong, train, test, classes, 3)
    floor = tables.floor_scores(train, test, classes, 3)
    assert good.told_apart == pytest.approx(0.5, abs=0.08)
    assert bad.told_apart > 0.85
    assert bad.marginals > 2 * good.marginals
    assert good.made_to_real == pytest.approx(floor.made_to_real, abs=0.1)
    assert good.repeats == 0
    assert set(floor.as_floor()) == {f"floor_{name}" for name in vars(good)}
    with pytest.raises(ArgumentError, match="at least 20 rows"):
        tables.table_scores(made[:5], train, test, classes, 3)
    with pytest.raises(ArgumentError, match="have 4 columns"):
        tables.table_scores(made[:, :3], train, test, classes, 3)


def test_the_copula_keeps_marginals_and_rank_correlations():
    choice = np.random.default_rng(0)
    normal = choice.multivariate_normal([0, 0], [[1, -0.7], [-0.7, 1]], 4000)
    rows = np.stack(
        [np.exp(normal[:, 0]), (normal[:, 1] > 0.5).astype(float), np.where(normal[:, 0] > 1, np.nan, 1.0)], 1
    )
    made = copula.GaussianCopula.fit(rows).sample(4000, 1)
    assert stats.ks_2samp(rows[:, 0], made[:, 0]).statistic < 0.03
    assert made[:, 1].mean() == pytest.approx(rows[:, 1].mean(), abs=0.03)
    assert np.isnan(made[:, 2]).mean() == pytest.approx(np.isnan(rows[:, 2]).mean(), abs=0.03)
    numbers = np.stack([np.exp(normal[:, 0]), normal[:, 1] ** 3], 1)
    drawn = copula.GaussianCopula.fit(numbers).sample(4000, 1)
    wanted = stats.spearmanr(*numbers.T).statistic
    assert stats.spearmanr(*drawn.T).statistic == pytest.approx(wanted, abs=0.04)
    np.testing.assert_array_equal(copula.GaussianCopula.fit(np.ones((30, 2))).sample(3, 0), np.ones((3, 2)))


def test_a_predictor_told_that_no_category_is_of_its_last_class_obeys_bayes_rule():
    logits = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = torch.zeros(5, 1, dtype=torch.float64)

    def predict(belief, t):
        return Product((DiagonalGaussian(mean, 0.1), Categorical(logits)))

    number, classes = WithoutLast(predict, torch.tensor([True, True, False]))(None, torch.zeros(5)).parts
    assert torch.equal(number.mean, mean)
    probs = logits.softmax(-1)
    torch.testing.assert_close(classes.probs[:, 0, :2], probs[:, 0, :2] / probs[:, 0, :2].sum(-1, keepdim=True))
    assert float(classes.probs[:, 0, 2].abs().max()) == 0
    torch.testing.assert_close(classes.probs[:, 1], probs[:, 1])


# The study ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "columns", "gaps"),
    [("iris", 150, 5, 0), ("penguins", 344, 7, 5), ("titanic", 1309, 8, 3), ("diabetes", 442, 11, 0)],
)
def test_the_data_sets_are_read_from_scikit_learn(tmp_path, name, rows, columns, gaps):
    path = sources.write(tmp_path, name)
    assert sources.write(tmp_path, name) == path
    source = sources.SOURCES[name]
    loaded = Table.read(str(path), held_out=0, ignore=source.ignore)
    assert loaded.train.x.shape == (rows, columns)
    assert sum(column.missing is not None for column in loaded.kind.columns) == gaps
    assert source.target in [column.name for column in loaded.kind.columns]


def test_a_study_writes_its_rows_and_goes_on(tmp_path):
    preset = TablesPreset(
        network="mlp:width=8,depth=1",
        training=TrainingConfig(steps=2, batch_size=16, precision="float32"),
        samples=0,
        minutes="none",
        seeds=(0,),
        nfes=(2,),
        data=("iris",),
        others=("gaussian-copula", "forest-flow"),
    )
    said = []
    found = trials.find("tables")
    results = trials.reproduce(found, "tiny", preset, tmp_path, torch.device("cpu"), said.append, "scikit-learn")
    assert results == json.loads((tmp_path / "results.json").read_text())
    wanted = {"data", "system", "seed", "marginals", "correlations", "told_apart", "made_to_real", "nearest"}
    floors = {f"floor_{name}" for name in ("marginals", "correlations", "told_apart", "made_to_real", "nearest")}
    for row in results["rows"]:
        assert set(row) >= wanted | floors
    systems = {row["system"] for row in results["rows"]}
    assert systems - {"forest-flow"} == {"gpfn", "gaussian-copula"}
    assert ("forest-flow" in results["left_out"]) == ("forest-flow" not in systems)
    header = (tmp_path / "made" / "iris-gpfn.csv").read_text().splitlines()[0]
    assert header == (tmp_path / "data" / "iris.csv").read_text().splitlines()[0]
    number = len(said)
    again = trials.reproduce(found, "tiny", preset, tmp_path, torch.device("cpu"), said.append, "scikit-learn")
    assert again["rows"] == results["rows"]
    assert len(said) - number <= 1  # nothing is done twice
    assert "real rows" in report.block([results])
    assert trials.write_report(tmp_path, torch.device("cpu"))
    with pytest.raises(ArgumentError, match="leave --data out"):
        trials.reproduce(found, "tiny", preset, tmp_path, torch.device("cpu"), said.append, "mnist")


def test_presets_name_data_sets_that_there_are():
    for preset in TABLES_PRESETS.values():
        assert set(preset.data) <= set(sources.SOURCES)
        assert len(preset.seeds) == 5
