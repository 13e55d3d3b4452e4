"""Simple classifiers on frozen features: what the features alone are worth."""

import dataclasses
import warnings
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from contrastive_core.errors import InputError
from contrastive_core.evaluation.calibration import expected_calibration_error

ProbeKind = Literal["rf", "logreg", "knn", "1nn"]

_STRENGTHS = np.logspace(-6, 5, 45)


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What a probe found on the test features.

    Attributes:
        kind: The probe.
        accuracy: Share of correct predictions.
        f1_macro: F1 averaged over the classes of the test set.
        ece: Expected calibration error, 15 bins.
        predictions: Predicted labels ``[n]``.
        probabilities: Class probabilities ``[n k]``.
        classes: Labels of the columns.
    """

    kind: ProbeKind
    accuracy: float
    f1_macro: float
    ece: float
    predictions: np.ndarray
    probabilities: np.ndarray
    classes: np.ndarray


class _NearestNeighbours:
    """Weighted vote of the k nearest by cosine, ``exp(similarity / temperature)`` (Wu et al., 2018; DINO)."""

    def __init__(self, k: int, temperature: float) -> None:
        self.k, self.temperature = k, temperature

    def fit(self, x: np.ndarray, y: np.ndarray) -> "_NearestNeighbours":
        self.classes_, self._y = np.unique(y, return_inverse=True)
        self._x = _unit(x)
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        k = min(self.k, len(self._x))
        parts = []
        for part in np.array_split(_unit(x), max(1, len(x) // 1024)):
            similarity = part @ self._x.T
            # A stable order, so that equal similarities vote the same way on every machine.
            nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            close = np.take_along_axis(similarity, nearest, 1)
            weight = np.exp((close - close[:, :1]) / self.temperature)
            votes = np.zeros((len(part), len(self.classes_)))
            np.add.at(votes, (np.arange(len(part))[:, None], self._y[nearest]), weight)
            parts.append(votes / votes.sum(1, keepdims=True))
        return np.concatenate(parts)


def fit_probe(
    features: Float[np.ndarray, "n d"],
    labels: Shaped[np.ndarray, " n"],
    *,
    kind: ProbeKind = "logreg",
    scale: bool = True,
    seed: int = 0,
    k: int = 20,
    temperature: float = 0.07,
    trees: int = 200,
    strength: float | None = None,
    jobs: int = 1,
) -> Any:
    """Fit a probe.

    Args:
        features: Frozen features, finite.
        labels: Class of every row.
        kind: ``rf`` random forest, ``logreg`` multinomial logistic regression, ``knn`` weighted k-NN by cosine,
            ``1nn`` the single nearest neighbour by cosine.
        scale: Standardise with the training set's statistics (a forest does not need it and goes without).
        seed: Seed of forest and validation split.
        k: Neighbours of ``knn``, at most all.
        temperature: Temperature of the vote of ``knn``.
        trees: Trees of ``rf``.
        strength: Inverse regularisation C of ``logreg``. By default chosen among 45 values from 1e-6 to 1e5 on a
            stratified fifth of the training set; 1 where a class is too small to split.
        jobs: Processor cores the forest uses.

    Returns:
        An object with ``predict_proba`` and ``classes_``.

    Raises:
        InputError: No rows, shapes that do not agree, values that are not finite, or a single class.
    """
    features, labels = _check(features, labels)
    if len(np.unique(labels)) < 2:
        raise InputError("a probe needs two classes", why=f"every label is {labels[0]}", remedy="add another class")
    if kind == "rf":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(trees, random_state=seed, n_jobs=jobs).fit(features, labels)
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "logreg":
        from sklearn.linear_model import LogisticRegression

        chosen = strength if strength is not None else _choose_strength(features, labels, scale, seed)
        model: Any = LogisticRegression(C=chosen, max_iter=500)
    elif kind in ("knn", "1nn"):
        model = _NearestNeighbours(1 if kind == "1nn" else k, temperature)
    else:
        raise InputError("unknown probe", where="--probe", why=f"got {kind}", remedy="rf, logreg, knn or 1nn")
    steps = [StandardScaler(), model] if scale else [model]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the iteration limit is part of the protocol
        if isinstance(model, _NearestNeighbours):
            scaler = steps[0].fit(features) if scale else None
            return _Scaled(scaler, model.fit(features if scaler is None else scaler.transform(features), labels))
        return make_pipeline(*steps).fit(features, labels)


def probe(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Shaped[np.ndarray, " n"],
    test_features: Float[np.ndarray, "m d"],
    test_labels: Shaped[np.ndarray, " m"],
    *,
    kind: ProbeKind = "logreg",
    scale: bool = True,
    seed: int = 0,
    jobs: int = 1,
) -> ProbeResult:
    """Fit a probe on the training features and judge it once on the test features.

    A test label that training never saw counts as wrong.

    Raises:
        InputError: As :func:`fit_probe`, or test features of another width.
    """
    from sklearn.metrics import f1_score

    test_features, test_labels = _check(test_features, test_labels)
    if test_features.shape[1] != np.shape(train_features)[-1]:
        raise InputError(
            "training and test features differ in width",
            why=f"{np.shape(train_features)[-1]} and {test_features.shape[1]}",
        )
    model = fit_probe(train_features, train_labels, kind=kind, scale=scale, seed=seed, jobs=jobs)
    probabilities = model.predict_proba(test_features)
    classes = np.asarray(model.classes_)
    predictions = classes[probabilities.argmax(1)]
    place = {label: index for index, label in enumerate(classes.tolist())}
    known = np.array([place.get(label, -1) for label in test_labels.tolist()])
    return ProbeResult(
        kind=kind,
        accuracy=float((predictions == test_labels).mean()),
        f1_macro=float(f1_score(test_labels, predictions, average="macro", labels=np.unique(test_labels))),
        ece=expected_calibration_error(probabilities, known),
        predictions=predictions,
        probabilities=probabilities,
        classes=classes,
    )


class _Scaled:
    def __init__(self, scaler: Any, model: _NearestNeighbours) -> None:
        self._scaler, self._model, self.classes_ = scaler, model, model.classes_

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return self._model.predict_proba(x if self._scaler is None else self._scaler.transform(x))


def _choose_strength(features: np.ndarray, labels: np.ndarray, scale: bool, seed: int) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    classes, counts = np.unique(labels, return_counts=True)
    held = max(len(classes), round(0.2 * len(labels)))
    if counts.min() < 2 or len(labels) - held < len(classes):
        return 1.0
    x, x_held, y, y_held = train_test_split(features, labels, test_size=held, stratify=labels, random_state=seed)
    if scale:
        scaler = StandardScaler().fit(x)
        x, x_held = scaler.transform(x), scaler.transform(x_held)
    # One solver walks from strong to weak regularisation, each fit starting from the last.
    model = LogisticRegression(max_iter=500, warm_start=True)
    best, chosen = -1.0, 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for strength in _STRENGTHS:
            score = model.set_params(C=strength).fit(x, y).score(x_held, y_held)
            if score > best:
                best, chosen = score, float(strength)
    return chosen


def _check(features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError("features are [n d] and labels [n]", why=f"got {features.shape} and {labels.shape}")
    if not features.size:
        raise InputError("there are no features to probe", why=f"got shape {features.shape}")
    if not np.isfinite(features).all():
        raise InputError("features hold NaN or infinite values", remedy="check the encoder and its input")
    return features, labels


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
