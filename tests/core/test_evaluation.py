"""Probes and calibration against scikit-learn and torchmetrics."""

import subprocess
import sys

import contrastive_core.data
import contrastive_core.evaluation
import numpy as np
import pytest
import torch
from contrastive_core.errors import InputError
from contrastive_core.evaluation import IsotonicScaler, TemperatureScaler, expected_calibration_error, probe
from sklearn.datasets import load_digits, load_iris
from sklearn.neighbors import KNeighborsClassifier
from torchmetrics.functional.classification import multiclass_calibration_error


@pytest.fixture
def iris():
    x, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[:100]], y[order[:100]], x[order[100:]], y[order[100:]]


@pytest.mark.parametrize("kind", ["rf", "logreg", "knn", "1nn"])
def test_probes_learn_and_repeat(iris, kind):
    first, second = (probe(*iris, kind=kind, seed=3) for _ in range(2))
    assert first.accuracy > 0.7  # chance is a third
    assert np.array_equal(first.probabilities, second.probabilities)
    np.testing.assert_allclose(first.probabilities.sum(1), 1)


def test_nearest_neighbour_equals_sklearn_by_cosine():
    x, y = load_digits(return_X_y=True)
    mine = probe(x[:900], y[:900], x[900:], y[900:], kind="1nn", scale=False)
    theirs = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(x[:900], y[:900]).predict(x[900:])
    assert (mine.predictions == theirs).mean() > 0.999


def test_string_labels_and_labels_never_seen(iris):
    x, y, x2, y2 = iris
    names = np.array(["a", "b", "c"])
    unseen = names[y2].copy()
    unseen[:10] = "z"
    known = probe(x, names[y], x2, names[y2], kind="knn").accuracy
    assert probe(x, names[y], x2, unseen, kind="knn").accuracy < known


def test_one_case_of_a_class_falls_back_to_a_fixed_strength(iris):
    x, y, x2, y2 = iris
    keep = np.flatnonzero((y != 2) | (np.cumsum(y == 2) == 1))
    assert probe(x[keep], y[keep], x2, y2, kind="logreg").accuracy > 0.5


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, y: (x * np.nan, y), "NaN"),
        (lambda x, y: (x[:5], y), "features are"),
        (lambda x, y: (x[:0], y[:0]), "no features"),
        (lambda x, y: (x, np.zeros(len(y))), "two classes"),
        (lambda x, y: (x[:, :2], y), "width"),
    ],
)
def test_bad_features_are_refused(iris, change, text):
    x, y, x2, y2 = iris
    with pytest.raises(InputError, match=text):
        probe(*change(x, y), x2, y2, kind="knn")


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_torchmetrics(bins):
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4) * 0.5, size=500)
    labels = generator.integers(0, 4, 500)
    reference = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=4, n_bins=bins, norm="l1"
    )
    assert expected_calibration_error(probabilities, labels, bins) == pytest.approx(float(reference), abs=1e-6)


def test_temperature_recovers_a_known_factor():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20000, 3)) * 2
    exp = np.exp(logits)
    labels = (generator.random(20000)[:, None] > np.cumsum(exp / exp.sum(1, keepdims=True), 1)).sum(1).clip(max=2)
    scaler = TemperatureScaler().fit(logits * 5, labels)
    assert scaler.temperature == pytest.approx(5, rel=0.05)
    before = np.exp(logits * 5 - (logits * 5).max(1, keepdims=True))
    before /= before.sum(1, keepdims=True)
    assert expected_calibration_error(scaler.transform(logits * 5), labels) < 0.02
    assert expected_calibration_error(before, labels) > 0.1
    isotonic = IsotonicScaler().fit(before, labels).transform(before)
    np.testing.assert_allclose(isotonic.sum(1), 1)
    assert expected_calibration_error(isotonic, labels) < 0.05


@pytest.mark.parametrize("package", [contrastive_core.evaluation, contrastive_core.data])
def test_every_name_is_there_and_importing_is_cheap(package):
    assert all(hasattr(package, name) for name in dir(package))
    with pytest.raises(AttributeError, match="no attribute"):
        package.not_a_name  # noqa: B018
    code = f"import sys, {package.__name__}; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
