"""Whether a paired difference is real: its 95 % interval, and the verdict."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
Verdict = Literal["holds", "undecided", "fails"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean difference and the interval it lies in with 95 % confidence.

    Attributes:
        mean: Mean.
        low: Lower end; NaN where there is no interval.
        high: Upper end; NaN where there is no interval.
        test: How the ends were computed, or why there are none.
    """

    mean: float
    low: float
    high: float
    test: str

    @property
    def verdict(self) -> Verdict:
        """``holds`` above 0, ``fails`` at or below 0, ``undecided`` across it or without an interval."""
        if self.low > 0:
            return "holds"
        return "fails" if self.high <= 0 else "undecided"


def paired_interval(
    differences: Sequence[float], items: Float[np.ndarray, "n m"] | None = None, *, deterministic: bool = False
) -> Interval:
    """95 % interval of a paired difference.

    Args:
        differences: Difference of every seed.
        items: Differences of all test items, a row a seed. With them the bootstrap resamples items, the same ones for
            all seeds, and seeds; without them the interval is Student's over seeds.
        deterministic: Whether the differences are exact.

    Example:
        >>> interval = paired_interval([0.1, 0.2, 0.3])
        >>> round(interval.low, 3), round(interval.high, 3), interval.verdict, interval.test
        (-0.048, 0.448, 'undecided', 't over 3 seeds')
    """
    values, nothing = np.asarray(differences, dtype=float), float("nan")
    mean = float(values.mean())
    missing = int((~np.isfinite(values)).sum())
    if missing:
        return Interval(mean, nothing, nothing, f"{missing} of {len(values)} differences are not finite: no interval")
    if deterministic:
        return Interval(mean, float(values.min()), float(values.max()), "exact")
    if items is not None and items.shape[1] > 1:
        low, high = _bootstrap(items)
        return Interval(mean, low, high, f"bootstrap over {items.shape[1]} items{_seeds(len(items))}")
    if len(values) == 1:
        return Interval(mean, nothing, nothing, "one seed gives no interval")
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(mean, mean - float(half), mean + float(half), f"t over {len(values)} seeds")


def _seeds(count: int) -> str:
    return " of one seed" if count == 1 else f" and {count} seeds"


def _bootstrap(items: Float[np.ndarray, "n m"]) -> tuple[float, float]:
    """Percentiles of the mean under crossed resampling of rows and columns."""
    draw = np.random.default_rng(0)
    rows, columns = (draw.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in items.shape)
    means = ((rows @ items) * columns).sum(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
