"""Rate-quality curves of clips as numbers: rate at a quality, and distances between curves."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.interpolate import PchipInterpolator

from cl_video3d.cecl.echo import BPP_FLOOR

_GRID = 65
_LEAST_OVERLAP = 0.2


def log_rates(bpp: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """``log2 bpp``, at least that of one bit in 100,000 pixels."""
    return np.log2(np.maximum(bpp, BPP_FLOOR))


def interpolate(
    x: Float[np.ndarray, " c"], y: Float[np.ndarray, " c"], at: Float[np.ndarray, " q"], *, outside: str = "line"
) -> Float[np.ndarray, " q"]:
    """Monotone cubic through points with ascending ``x``; beyond them a straight line, or NaN.

    Points of equal ``x`` count once, with the smallest ``y``; a single point gives a constant.

    Args:
        x: Places, in any order.
        y: Values.
        at: Where values are wanted.
        outside: ``line`` goes on with the slope of the outer interval, ``nan`` gives NaN there.
    """
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    first = np.concatenate([[True], np.diff(x) > 0])
    x, y = x[first], y[first]
    if len(x) == 1:
        values = np.full(len(at), y[0])
        return values if outside == "line" else np.where(at == x[0], values, np.nan)
    inside = PchipInterpolator(x, y, extrapolate=False)(np.clip(at, x[0], x[-1]))
    if outside == "nan":
        return np.where((at >= x[0]) & (at <= x[-1]), inside, np.nan)
    low = (y[1] - y[0]) / (x[1] - x[0]) * np.minimum(at - x[0], 0)
    high = (y[-1] - y[-2]) / (x[-1] - x[-2]) * np.maximum(at - x[-1], 0)
    return inside + low + high


def rate_at_quality(
    log_rate: Float[np.ndarray, "n c"], quality: Float[np.ndarray, "n c"], grid: Float[np.ndarray, " q"]
) -> tuple[Float[np.ndarray, "n q"], Bool[np.ndarray, "n q"]]:
    """``log2`` of the rate each clip needs for each quality.

    Args:
        log_rate: ``log2`` rates of the measured points.
        quality: Their qualities.
        grid: Wanted qualities.

    Returns:
        Log rates, and which of them lie beyond the measured qualities (a straight line goes on there).
    """
    rates = np.stack([interpolate(q, r, grid) for q, r in zip(quality, log_rate, strict=True)])
    outside = (grid < quality.min(1, keepdims=True)) | (grid > quality.max(1, keepdims=True))
    return rates, outside


def quality_at_rate(
    log_rate: Float[np.ndarray, "n c"], quality: Float[np.ndarray, "n c"], at: Float[np.ndarray, "n q"]
) -> Float[np.ndarray, "n q"]:
    """Quality of each clip at ``log2`` rates of its own; a straight line beyond the measured rates."""
    return np.stack([interpolate(r, q, a) for r, q, a in zip(log_rate, quality, at, strict=True)])


def curve_distances(
    log_rate: Float[np.ndarray, "n c"],
    quality: Float[np.ndarray, "n c"],
    other_log_rate: Float[np.ndarray, "m c"] | None = None,
    other_quality: Float[np.ndarray, "m c"] | None = None,
) -> Float[np.ndarray, "n m"]:
    """How far curves lie apart: ``|mean log2-rate difference| + |mean quality difference| / 6``.

    The means are over the common interval of quality and of rate. Where a common interval is shorter than a fifth of
    the union, the other term counts twice; where both are, the distance is that of the mean points of the curves.

    Args:
        log_rate: ``log2`` rates.
        quality: Qualities, in dB.
        other_log_rate: Of the other curves; the same ones when absent.
        other_quality: Likewise.
    """
    if other_log_rate is None or other_quality is None:
        other_log_rate, other_quality = log_rate, quality
    rate_gap, rate_fine = _gaps(quality, log_rate, other_quality, other_log_rate)
    quality_gap, quality_fine = _gaps(log_rate, quality, other_log_rate, other_quality)
    quality_gap = quality_gap / 6
    far = np.abs(log_rate.mean(1)[:, None] - other_log_rate.mean(1)) + (
        np.abs(quality.mean(1)[:, None] - other_quality.mean(1)) / 6
    )
    both = np.where(rate_fine, rate_gap, quality_gap) + np.where(quality_fine, quality_gap, rate_gap)
    return np.where(rate_fine | quality_fine, both, far)


def _gaps(x: np.ndarray, y: np.ndarray, other_x: np.ndarray, other_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Absolute mean difference of y over the common interval of x, and whether that is long enough."""
    grid = np.linspace(min(x.min(), other_x.min()), max(x.max(), other_x.max()), _GRID)
    ours, theirs = (
        np.stack([interpolate(a, b, grid, outside="nan") for a, b in zip(xs, ys, strict=True)])
        for xs, ys in ((x, y), (other_x, other_y))
    )
    gaps = np.zeros((len(x), len(other_x)))
    for row, values in enumerate(ours):
        difference = theirs - values
        known = np.isfinite(difference)
        count = known.sum(1)
        gaps[row] = np.abs(np.where(known, difference, 0).sum(1)) / np.maximum(count, 1)
    low, high = np.maximum(x.min(1)[:, None], other_x.min(1)), np.minimum(x.max(1)[:, None], other_x.max(1))
    union = np.maximum(x.max(1)[:, None], other_x.max(1)) - np.minimum(x.min(1)[:, None], other_x.min(1))
    share = (high - low) / np.maximum(union, 1e-12)
    step = grid[1] - grid[0]
    return gaps, (share >= _LEAST_OVERLAP) & (high - low >= step)
