"""Scores within each class."""

import pytest
import torch

from proxflow.errors import ArgumentError
from proxflow.metrics import class_scores, frechet_distance, precision_recall


def features(number, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 3, dtype=torch.float64, generator=generator) + shift


def test_scores_of_each_class_are_those_of_its_samples_alone():
    real, fake = [features(40, 5 * k, k) for k in range(3)], [features(30, 5 * k + 0.2 * k, 10 + k) for k in range(3)]
    of_real, of_fake = torch.arange(3).repeat_interleave(40), torch.arange(3).repeat_interleave(30)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    found = class_scores(torch.cat(real), of_real, torch.cat(fake)[order], of_fake[order])
    assert found.classes == (0, 1, 2)
    for k in range(3):
        assert found.frechet[k] == pytest.approx(frechet_distance(real[k], fake[k]), rel=1e-9)
        assert (found.precision[k], found.recall[k]) == precision_recall(real[k], fake[k])
    assert found.mean_frechet == pytest.approx(sum(found.frechet) / 3)
    assert found.mean_recall == pytest.approx(sum(found.recall) / 3)
    assert found.mean_precision == pytest.approx(sum(found.precision) / 3)


def test_classes_that_are_exchanged_cost_within_classes_alone():
    first, second = features(60, 0, 0), features(60, 6, 1)
    real, labels = torch.cat([first, second]), torch.arange(2).repeat_interleave(60)
    right, wrong = (class_scores(real, labels, real, drawn) for drawn in (labels, 1 - labels))
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    assert right.mean_frechet == pytest.approx(0, abs=1e-6)
    assert wrong.mean_frechet > 50
    assert (right.mean_recall, wrong.mean_recall) == (1, 0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), r"sample labels are int64 \(20,\)"),
        (torch.zeros(20), "sample labels are int64"),
        (torch.tensor([0] * 18 + [1] * 2), "class 1 has 0 real samples and 2 drawn ones: expected more than 3"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ArgumentError, match=message):
        class_scores(features(20, 0, 0), torch.zeros(20, dtype=torch.int64), features(20, 0, 1), labels)
