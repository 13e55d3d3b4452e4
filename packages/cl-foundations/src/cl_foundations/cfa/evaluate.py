"""What features, factors and uncertainties are worth."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from contrastive_core.evaluation import (
    ProbeResult,
    TemperatureScaler,
    auroc_fpr95,
    expected_calibration_error,
    fit_probe,
    probe,
    retrieval_scores,
)
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr

from cl_foundations.cfa.corruptions import CORRUPTIONS, SEVERITIES, corruption
from cl_foundations.cfa.data import ImageSet
from cl_foundations.cfa.inference import Embeddings, embed
from cl_foundations.cfa.interpret import factor_metrics, rank_factors
from cl_foundations.cfa.model import FactorModel
from cl_foundations.cfa.posterior import GAMMA_1_1, GammaPrior

Protocol = Literal["knn", "linear", "retrieval", "factors", "selection", "uncertainty"]
PROTOCOLS: tuple[Protocol, ...] = ("knn", "linear", "retrieval", "factors", "selection", "uncertainty")


def evaluate_embeddings(
    train: Embeddings, test: Embeddings, *, protocols: Sequence[Protocol] = PROTOCOLS, seed: int = 0
) -> dict[str, Any]:
    """Results on the test images, for the features before the head and for the factors behind it.

    Args:
        train: Labelled training images, for probes.
        test: Labelled test images, with the same classes.
        protocols: ``knn``: 20 neighbours by cosine; ``linear``: logistic regression, with its calibration;
            ``retrieval``: every test image against the others; ``factors``: :func:`factor_metrics`; ``selection``: k-NN
            and mAP of the factors with the largest activation; ``uncertainty``: how well each score finds the errors of
            the linear probe.
        seed: Seed of the probes.

    Returns:
        ``features`` and ``mean`` with the results of each place, ``selection`` and ``uncertainty``.
    """
    y, y_test = labels_of(train), labels_of(test)
    places = {"features": (train.features, test.features), "mean": (train.mean, test.mean)}
    results: dict[str, Any] = {}
    for name, (z, z_test) in places.items():
        results[name] = _place(z, y, z_test, y_test, protocols, seed)
    if "selection" in protocols:
        results["selection"] = selection(train.mean, y, test.mean, y_test)
    if "uncertainty" in protocols:
        judged = linear_probe(train.mean, y, test.mean, y_test, seed=seed)
        results["uncertainty"] = error_detection(test.scores, judged.predictions == y_test)
        confidence = {"probe confidence": -judged.probabilities.max(1)}
        results["uncertainty"] |= error_detection(confidence, judged.predictions == y_test)
    return results


def linear_probe(
    z: Float[np.ndarray, "n d"],
    y: Int[np.ndarray, " n"],
    z_test: Float[np.ndarray, "m d"],
    y_test: Int[np.ndarray, " m"],
    *,
    seed: int = 0,
) -> ProbeResult:
    """Logistic regression on standardised features."""
    return probe(z, y, z_test, y_test, kind="logreg", seed=seed)


def calibration(
    z: Float[np.ndarray, "n d"],
    y: Int[np.ndarray, " n"],
    z_test: Float[np.ndarray, "m d"],
    y_test: Int[np.ndarray, " m"],
    *,
    seed: int = 0,
) -> float:
    """Expected calibration error of a logistic regression after temperature scaling on a held-out fifth."""
    order = np.random.default_rng(seed).permutation(len(y))
    held, kept = order[: len(y) // 5], order[len(y) // 5 :]
    if len(np.unique(y[kept])) < 2 or not np.isin(y[held], y[kept]).any():
        return float("nan")
    model = fit_probe(z[kept], y[kept], kind="logreg", strength=1.0)
    classes = np.asarray(model.classes_)
    held = held[np.isin(y[held], classes)]
    scaler = TemperatureScaler().fit(_log(model.predict_proba(z[held])), np.searchsorted(classes, y[held]))
    return expected_calibration_error(scaler.transform(_log(model.predict_proba(z_test))), _places(classes, y_test))


def selection(
    z: Float[np.ndarray, "n k"],
    y: Int[np.ndarray, " n"],
    z_test: Float[np.ndarray, "m k"],
    y_test: Int[np.ndarray, " m"],
) -> list[dict[str, float]]:
    """k-NN accuracy and mAP with the d factors of the largest activation, d = 4, 8, ... up to all."""
    order = rank_factors(z)
    sizes = [d for d in (2**power for power in range(2, 16)) if d < len(order)]
    rows = []
    for d in [*sizes, len(order)]:
        a, b = z[:, order[:d]], z_test[:, order[:d]]
        found = probe(a, y, b, y_test, kind="knn", scale=False)
        scores = retrieval_scores(b, y_test, measures=("map",))
        rows.append({"factors": d, "knn": found.accuracy, "map": scores["map"]})
    return rows


def error_detection(
    scores: Mapping[str, Float[np.ndarray, " n"]], correct: Bool[np.ndarray, " n"]
) -> dict[str, dict[str, float | None]]:
    """How well uncertainties rank a classifier's errors before its hits.

    Returns:
        For every score ``auroc`` (``None`` where there are only hits or only errors) and ``aurc``, the area under the
        curve of risk over coverage (lower is better).
    """
    mixed = bool(correct.any() and not correct.all())
    return {
        name: {
            "auroc": auroc_fpr95(values[correct], values[~correct]).auroc if mixed else None,
            "aurc": aurc(values, correct),
        }
        for name, values in scores.items()
    }


@dataclasses.dataclass(frozen=True)
class Detection:
    """How well one score tells outside images from inside ones.

    Attributes:
        auroc: Chance that an outside image is the more uncertain one, ties counting half.
        aupr: Average precision, outside images being the positives.
        fpr95: Share of inside images flagged where 95 % of the outside ones are.
        inside: Mean score inside.
        outside: Mean score outside.
    """

    auroc: float
    aupr: float
    fpr95: float
    inside: float
    outside: float


def detection(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> Detection:
    """Out-of-distribution detection by one score, higher meaning less certain.

    Raises:
        ValueError: A set is empty, or a score is NaN.

    Example:
        >>> detection(np.array([0.0, 1.0]), np.array([2.0, 3.0])).auroc
        1.0
    """
    found = dataclasses.asdict(auroc_fpr95(inside, outside))
    return Detection(**found, inside=float(inside.mean()), outside=float(outside.mean()))


def corruption_table(
    model: FactorModel, images: ImageSet, *, prior: GammaPrior = GAMMA_1_1, draws: int = 8, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every corruption at every severity against the clean images.

    Returns:
        Rows of corruption, severity, score, :class:`Detection`; and rows of corruption, score, Spearman correlation of
        the score with the severity over all images, severity 0 being the clean ones.
    """
    clean = embed(model, images, prior=prior, draws=draws, seed=seed)
    rows: list[dict[str, Any]] = []
    trends: list[dict[str, Any]] = []
    for kind in CORRUPTIONS:
        series = {name: [values] for name, values in clean.scores.items()}
        for severity in SEVERITIES:
            change = corruption(kind, severity)
            changed = embed(model, images, prior=prior, draws=draws, seed=seed, change=change)
            for name, values in changed.scores.items():
                found = dataclasses.asdict(detection(clean.scores[name], values))
                rows.append({"corruption": kind, "severity": severity, "score": name, **found})
                series[name].append(values)
        severities = np.repeat(np.arange(len(SEVERITIES) + 1), len(images))
        for name, parts in series.items():
            values = np.concatenate(parts)
            rho = float(spearmanr(severities, values).statistic) if np.ptp(values) > 0 else 0.0
            trends.append({"corruption": kind, "score": name, "spearman": rho})
    return rows, trends


def robustness(
    model: FactorModel, train: Embeddings, test: Embeddings, images: ImageSet, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy of probes on corrupted test images; the probes are fitted on clean training images.

    Args:
        model: The model.
        train: Labelled training images.
        test: Labelled test images.
        images: The test images themselves.
        seed: Seed of probes and noise.

    Returns:
        A row for the clean images, one for every corruption at every severity, and their mean without the clean ones:
        accuracy of logistic regression and of k-NN, on features and on factors.
    """
    y, y_test = labels_of(train), labels_of(test)
    places: dict[str, np.ndarray] = {"features": train.features, "mean": train.mean}
    probes = {
        **{f"linear on {place}": (place, fit_probe(z, y, kind="logreg", seed=seed)) for place, z in places.items()},
        **{f"knn on {place}": (place, fit_probe(z, y, kind="knn", scale=False)) for place, z in places.items()},
    }

    def accuracies(found: Embeddings) -> dict[str, float]:
        z = {"features": found.features, "mean": found.mean}
        return {
            name: float((fitted.classes_[fitted.predict_proba(z[place]).argmax(1)] == y_test).mean())
            for name, (place, fitted) in probes.items()
        }

    rows: list[dict[str, Any]] = [
        {
            "corruption": kind,
            "severity": severity,
            **accuracies(embed(model, images, draws=1, seed=seed, change=corruption(kind, severity))),
        }
        for kind in CORRUPTIONS
        for severity in SEVERITIES
    ]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in probes}
    return [
        {"corruption": "none", "severity": 0, **accuracies(test)},
        *rows,
        {"corruption": "mean of all", "severity": "1-5", **mean},
    ]


def aurc(uncertainty: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]) -> float:
    """Area under the risk-coverage curve (Geifman & El-Yaniv, 2017): mean error rate of the most certain images.

    Example:
        >>> aurc(np.array([0.1, 0.2, 0.9]), np.array([True, True, False]))  # (0 + 0 + 1/3) / 3
        0.1111111111111111
    """
    errors = ~correct[np.argsort(uncertainty, kind="stable")]
    return float((errors.cumsum() / np.arange(1, len(errors) + 1)).mean())


def labels_of(embeddings: Embeddings) -> Int[np.ndarray, " n"]:
    """Labels of images that are known to have some."""
    assert embeddings.labels is not None
    return embeddings.labels


def _place(
    z: np.ndarray, y: np.ndarray, z_test: np.ndarray, y_test: np.ndarray, protocols: Sequence[Protocol], seed: int
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if "knn" in protocols:
        out["knn"] = probe(z, y, z_test, y_test, kind="knn", scale=False).accuracy
    if "linear" in protocols:
        found = linear_probe(z, y, z_test, y_test, seed=seed)
        out |= {"linear": found.accuracy, "linear_f1": found.f1_macro, "linear_ece": found.ece}
        out["linear_ece_scaled"] = calibration(z, y, z_test, y_test, seed=seed)
    if "retrieval" in protocols:
        scores = retrieval_scores(z_test, y_test, measures=("map", "precision@10"))
        out |= {"map": scores["map"], "precision_at_10": scores["precision@10"]}
    if "factors" in protocols:
        out["factors"] = dataclasses.asdict(factor_metrics(z_test, y_test))
    return out


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, 1e-12))


def _places(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Index of every label among the classes, -1 where it is none of them."""
    index = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    return np.where(classes[index] == labels, index, -1)
