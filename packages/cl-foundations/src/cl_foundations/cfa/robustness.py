"""What corruptions do to scores of uncertainty and to probes."""

import dataclasses
from typing import Any

import numpy as np
from contrastive_core.evaluation import fit_probe
from scipy.stats import spearmanr

from cl_foundations.cfa.inference import Embeddings, EmbedSettings, FactorEncoder
from cl_foundations.cfa.uncertainty import detection
from cl_foundations.images.corruptions import CORRUPTIONS, SEVERITIES, corruption
from cl_foundations.images.sets import ImageSet


def corruption_table(
    encoder: FactorEncoder, images: ImageSet, settings: EmbedSettings = EmbedSettings()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every corruption at every severity against the clean images.

    Returns:
        Rows of corruption, severity, score, :class:`Detection`; and rows of corruption, score, Spearman correlation of
        the score with the severity over all images, severity 0 being the clean ones.
    """
    clean = encoder.embed(images, settings)
    rows: list[dict[str, Any]] = []
    trends: list[dict[str, Any]] = []
    for kind in CORRUPTIONS:
        series = {name: [values] for name, values in clean.scores.items()}
        for severity in SEVERITIES:
            changed = encoder.embed(images, settings, change=corruption(kind, severity))
            for name, values in changed.scores.items():
                scores = dataclasses.asdict(detection(clean.scores[name], values))
                rows.append({"corruption": kind, "severity": severity, "score": name, **scores})
                series[name].append(values)
        severities = np.repeat(np.arange(len(SEVERITIES) + 1), len(images))
        for name, parts in series.items():
            values = np.concatenate(parts)
            rho = float(spearmanr(severities, values).statistic) if np.ptp(values) > 0 else 0.0
            trends.append({"corruption": kind, "score": name, "spearman": rho})
    return rows, trends


def robustness(
    encoder: FactorEncoder,
    train: Embeddings,
    test: Embeddings,
    images: ImageSet,
    settings: EmbedSettings = EmbedSettings(),
) -> list[dict[str, Any]]:
    """Accuracy of probes on corrupted test images; the probes are fitted on clean training images.

    Args:
        encoder: The encoder.
        train: Labelled training images.
        test: Labelled test images.
        images: The test images themselves.
        settings: Seed of probes and noise, batches.

    Returns:
        A row for the clean images, one for every corruption at every severity, and their mean without the clean ones:
        accuracy of logistic regression and of k-NN, on features and on factors.
    """
    y, y_test = train.known, test.known
    places: dict[str, np.ndarray] = {"features": train.features, "mean": train.mean}
    probes = {
        **{f"linear on {p}": (p, fit_probe(z, y, kind="logreg", seed=settings.seed)) for p, z in places.items()},
        **{f"knn on {p}": (p, fit_probe(z, y, kind="knn", scale=False)) for p, z in places.items()},
    }

    def accuracies(embeddings: Embeddings) -> dict[str, float]:
        z = {"features": embeddings.features, "mean": embeddings.mean}
        return {
            name: float((fitted.classes_[fitted.predict_proba(z[place]).argmax(1)] == y_test).mean())
            for name, (place, fitted) in probes.items()
        }

    once = dataclasses.replace(settings, draws=1)
    rows: list[dict[str, Any]] = [
        {
            "corruption": kind,
            "severity": severity,
            **accuracies(encoder.embed(images, once, change=corruption(kind, severity))),
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
