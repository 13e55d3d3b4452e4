"""Scores of node classification and link prediction."""

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score


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
