"""scikit-learn's own checks, where they apply to series."""

import random

import numpy as np
import pytest
import torch
from cl_signals.mantis import Mantis, MantisClassifier, MantisConfig, MantisTransformer
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

MODEL = {"preset": "tiny", "layer": 0}
NOT_FOR_SERIES = {
    "check_methods_subset_invariance": "float32 products of other batch sizes differ in the last bits",
    "check_classifiers_train": "its blobs are points in a plane: a series of two points has no shape",
}


@pytest.mark.unchecked
@parametrize_with_checks(
    [MantisTransformer(**MODEL), MantisClassifier(**MODEL)],
    expected_failed_checks=lambda model: NOT_FOR_SERIES if isinstance(model, MantisClassifier) else {},
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture
def waves():
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 80)
    y = np.array(["slow", "fast"] * 20)
    frequency = np.where(y == "slow", 2, 9)[:, None, None]
    x = np.sin(2 * np.pi * (frequency * t + rng.random((40, 2, 1)))) + 0.2 * rng.normal(size=(40, 2, 80))
    return x.astype(np.float32), y


@pytest.mark.parametrize(
    "options", [{}, {"calibrate": 0.2}, {"adapter": "pca:1"}, {"mode": "full", "steps": 20, "length": 128}]
)
def test_classifier_learns_multivariate_series(waves, options):
    x, y = waves
    model = MantisClassifier(preset="tiny", **options).fit(x[:30], y[:30])
    assert (model.predict(x[30:]) == y[30:]).mean() > 0.7
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)
    again = clone(model).fit(x[:30], y[:30])
    assert np.array_equal(again.predict_proba(x), model.predict_proba(x))


def test_transformer_in_a_pipeline(waves):
    x, y = waves
    pipeline = make_pipeline(MantisTransformer(preset="tiny"), StandardScaler(), LogisticRegression())
    assert pipeline.fit(x[:30], y[:30]).score(x[30:], y[30:]) > 0.8


def test_labels_of_another_number_are_refused(waves):
    x, y = waves
    for labels in (y[:-3], np.r_[y, y]):
        with pytest.raises(ValueError, match="inconsistent"):
            MantisClassifier(preset="tiny").fit(x, labels)


@pytest.mark.unchecked  # the checks of types draw from the global generator themselves
def test_the_given_encoder_and_the_generators_are_left_alone(waves):
    x, y = waves
    torch.manual_seed(0)
    encoder = Mantis(MantisConfig.preset("tiny")).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    options = {"mode": "full", "lr": 0.01, "steps": 2, "length": 64}
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    MantisClassifier(preset="tiny").fit(x, y)
    first = MantisClassifier(encoder, **options).fit(x, y)
    probabilities = first.predict_proba(x)
    MantisClassifier(encoder, **options).fit(x, y[::-1])
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == state[1:]  # noqa: NPY002
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert np.array_equal(first.predict_proba(x), probabilities)


def test_random_state_none_and_other_channels(waves):
    x, _ = waves
    model = MantisTransformer(random_state=None).fit(x)
    with pytest.raises(ValueError, match="channels"):
        model.transform(x[:, :1])
    with pytest.raises(ValueError, match="channels"):
        model.transform(np.concatenate([x, x], 1)[:, :, :40])
