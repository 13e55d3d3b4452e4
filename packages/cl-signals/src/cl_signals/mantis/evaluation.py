"""The frozen protocol: embed, fit a simple classifier on the training part, score it on the test part."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.evaluation import ProbeKind, ProbeResult, probe

from cl_signals.mantis.inference import Readout, SeriesClassifier, embed_set
from cl_signals.mantis.model import Mantis
from cl_signals.series.reading import find_sets, read_split
from cl_signals.series.sets import SeriesSet, class_names, encode_labels, to_batch


def frozen_probes(
    model: Mantis | Sequence[Mantis],
    train: SeriesSet,
    test: SeriesSet,
    *,
    readout: Readout = Readout(),
    kinds: Sequence[ProbeKind] = ("rf", "logreg", "1nn"),
    seed: int = 0,
    jobs: int = 1,
) -> dict[ProbeKind, ProbeResult]:
    """Test results of simple classifiers on frozen embeddings.

    Args:
        model: The encoder, or several whose embeddings are fused.
        train: Labelled training part.
        test: Labelled test part.
        readout: What is taken as embedding.
        kinds: Probes.
        seed: Seed of the probes.
        jobs: Processor cores the forest uses; the result does not depend on them.
    """
    y, y_test = _labels(train, test)
    z, z_test = (embed_set(model, part, readout) for part in (train, test))
    return {kind: probe(z, y, z_test, y_test, kind=kind, seed=seed, jobs=jobs) for kind in kinds}


def evaluate_sets(
    encoders: Sequence[Mantis], data: Path, *, readout: Readout, kinds: Sequence[ProbeKind], seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of test results, one a set and probe.

    Args:
        encoders: One encoder, or several whose embeddings are fused.
        data: Folder of a set, or of several.
        readout: What is taken as embedding.
        kinds: Probes.
        seed: Seed of the probes.

    Raises:
        InputError: There is no set, or one cannot be read.
    """
    rows = []
    for folder in find_sets(data):
        train, test = read_split(folder)
        for kind, result in frozen_probes(encoders, train, test, readout=readout, kinds=kinds, seed=seed).items():
            scores = {"accuracy": result.accuracy, "f1_macro": result.f1_macro, "ece": result.ece}
            rows.append({"set": train.name, "probe": kind, **scores})
    return rows


def evaluate_classifier(classifier: SeriesClassifier, test: SeriesSet) -> dict[str, Any]:
    """Accuracy and macro-F1 on labelled series, recall and precision of every class, and the confusion matrix.

    Args:
        classifier: A fitted classifier.
        test: Labelled series; a class that training never saw counts as wrong.
    """
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    probabilities = classifier.predict_proba(to_batch(test, classifier.settings.length))
    predicted = [classifier.classes[index] for index in probabilities.argmax(1).tolist()]
    names = sorted({*classifier.classes, *test.labels})
    precision, recall, f1, support = precision_recall_fscore_support(
        test.labels, predicted, labels=names, zero_division=0.0
    )
    rows = zip(names, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    return {
        "accuracy": float(np.mean([a == b for a, b in zip(predicted, test.labels, strict=True)])),
        "f1_macro": float(f1_score(test.labels, predicted, average="macro", labels=sorted(set(test.labels)))),
        "classes": [dict(zip(("class", "precision", "recall", "f1", "series"), row, strict=True)) for row in rows],
        "confusion": {"labels": names, "counts": confusion_matrix(test.labels, predicted, labels=names).tolist()},
    }


def classifier_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores of :func:`evaluate_classifier` as a table: a row a class, then all of them."""
    series = sum(row["series"] for row in scores["classes"])
    whole = {"class": "all", "accuracy": scores["accuracy"], "f1": scores["f1_macro"], "series": series}
    return [*scores["classes"], whole]


def euclidean_1nn(train: SeriesSet, test: SeriesSet, length: int = 512) -> float:
    """Test accuracy of the nearest neighbour by Euclidean distance between z-scored series."""
    y, y_test = _labels(train, test)
    x, x_test = (_flat(_standardised(to_batch(part, length))) for part in (train, test))
    squared = (x_test**2).sum(1)[:, None] - 2 * x_test @ x.T + (x**2).sum(1)
    return float((y[squared.argmin(1)] == y_test).mean())


def raw_forest(train: SeriesSet, test: SeriesSet, *, seed: int = 0, length: int = 512, jobs: int = 1) -> float:
    """Test accuracy of a random forest on the resized raw values."""
    y, y_test = _labels(train, test)
    x, x_test = (_flat(to_batch(part, length)) for part in (train, test))
    return probe(x, y, x_test, y_test, kind="rf", seed=seed, jobs=jobs).accuracy


def _labels(train: SeriesSet, test: SeriesSet) -> tuple[np.ndarray, np.ndarray]:
    known = sorted({*class_names(train), *class_names(test)})
    return encode_labels(train.labels, known, train.name), encode_labels(test.labels, known, test.name)


def _standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(2, keepdims=True)) / (x.std(2, keepdims=True) + 1e-8)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float64)
