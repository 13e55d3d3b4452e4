"""scikit-learn's own checks, where they apply to series."""

import numpy as np
import pytest
from cl_signals.mantis import MantisClassifier, MantisTransformer
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
    [MantisTransformer(**MODEL), MantisClassifier(**MODEL, epochs=30, lr=0.01)],
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


@pytest.mark.parametrize("options", [{}, {"calibrate": 0.2}, {"adapter": "pca:1"}])
def test_classifier_learns_multivariate_series(waves, options):
    x, y = waves
    model = MantisClassifier(preset="tiny", epochs=30, lr=0.01, **options).fit(x[:30], y[:30])
    assert (model.predict(x[30:]) == y[30:]).mean() > 0.7
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)
    again = clone(model).fit(x[:30], y[:30])
    assert np.array_equal(again.predict_proba(x), model.predict_proba(x))


def test_transformer_in_a_pipeline(waves):
    x, y = waves
    pipeline = make_pipeline(MantisTransformer(preset="tiny"), StandardScaler(), LogisticRegression())
    assert pipeline.fit(x[:30], y[:30]).score(x[30:], y[30:]) > 0.8
