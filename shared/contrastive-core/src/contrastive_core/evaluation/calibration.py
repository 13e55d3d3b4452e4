"""Whether probabilities mean what they say, and two ways to mend them."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax


def expected_calibration_error(
    probabilities: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], bins: int = 15
) -> float:
    """Expected calibration error (Guo et al., 2017): mean gap between confidence and accuracy over confidence bins.

    Args:
        probabilities: Class probabilities, rows summing to one.
        labels: True classes, 0..K-1; any other number counts as wrong.
        bins: Equal-width bins over (0, 1].

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: The shapes do not agree, there are no rows, or bins is not positive.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels) or bins < 1:
        raise ValueError(f"expected [n k] and [n] with n > 0, got {probabilities.shape} and {labels.shape}")
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


class TemperatureScaler:
    """One number that divides all logits, fitted by likelihood on held-out data (Guo et al., 2017)."""

    def __init__(self) -> None:
        self.temperature = 1.0

    def fit(self, logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> "TemperatureScaler":
        """Fit on held-out logits.

        Args:
            logits: Logits, or logarithms of probabilities.
            labels: True classes, 0..K-1.
        """
        rows = np.arange(len(labels))

        def loss(log_temperature: float) -> float:
            return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

        self.temperature = float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))
        return self

    def transform(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Calibrated probabilities."""
        return np.asarray(softmax(logits / self.temperature, axis=1))


class IsotonicScaler:
    """A monotone map of each class's probability, fitted one class against the rest and normalised again."""

    def __init__(self) -> None:
        self._maps: list[Any] = []

    def fit(self, probabilities: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> "IsotonicScaler":
        """Fit on held-out probabilities."""
        from sklearn.isotonic import IsotonicRegression

        self._maps = [
            IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(column, labels == index)
            for index, column in enumerate(np.asarray(probabilities, dtype=np.float64).T)
        ]
        return self

    def transform(self, probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Calibrated probabilities; a row that every map sends to zero becomes uniform."""
        columns = [each.predict(column) for each, column in zip(self._maps, np.asarray(probabilities).T, strict=True)]
        mapped = np.stack(columns, 1)
        total = mapped.sum(1, keepdims=True)
        return np.where(total > 0, mapped / np.where(total > 0, total, 1), 1 / mapped.shape[1])
