"""Scores of node classification and link prediction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)


def classification_metrics(truth: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Accuracy and macro-F1 (over classes that occur in truth or prediction) of the nodes with a known label."""
    known = truth >= 0
    if not known.any():
        return {"accuracy": float("nan"), "macro_f1": float("nan"), "nodes": 0}
    return {
        "accuracy": float(accuracy_score(truth[known], predicted[known])),
        "macro_f1": float(f1_score(truth[known], predicted[known], average="macro", zero_division=0.0)),
        "nodes": int(known.sum()),
    }


def class_rows(
    truth: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a class: precision, recall, F1, nodes, and how many of its nodes were taken for each class."""
    known, numbers = truth >= 0, list(range(len(classes)))
    if not known.any():
        return []
    scores = precision_recall_fscore_support(truth[known], predicted[known], labels=numbers, zero_division=0.0)
    taken = confusion_matrix(truth[known], predicted[known], labels=numbers)
    return [
        {
            "class": name,
            "precision": float(precision),
            "recall": float(recall),
            "F1": float(f1),
            "nodes": int(count),
            **{f"as {other}": int(number) for other, number in zip(classes, row, strict=True)},
        }
        for name, precision, recall, f1, count, row in zip(classes, *scores, taken, strict=True)
    ]


def link_metrics(truth: Float[np.ndarray, " n"], probability: Float[np.ndarray, " n"]) -> dict[str, float]:
    """AUC and average precision; accuracy and F1 at a probability of 0.5."""
    decided = probability >= 0.5
    return {
        "auc": float(roc_auc_score(truth, probability)),
        "ap": float(average_precision_score(truth, probability)),
        "accuracy": float(accuracy_score(truth, decided)),
        "f1": float(f1_score(truth, decided, zero_division=0.0)),
        "pairs": len(truth),
    }
