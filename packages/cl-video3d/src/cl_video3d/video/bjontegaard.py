"""Average differences of two rate-quality curves (ITU-T VCEG-M33), with what the formula needs checked first.

The integrals are those of the ``bjontegaard`` package; it gives numbers for curves that have none.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import read_csv
from jaxtyping import Float

Interpolation = Literal["pchip", "cubic", "akima"]
Curve = Float[np.ndarray, "_ 2"]
_FEWEST = 4
_RATES = ("kbps", "mbps", "bpp", "bits", "rate")
_UNITS = {"psnr": "dB", "vmaf": "points of VMAF", "ssim": "of SSIM", "quality": "of quality"}


@dataclasses.dataclass(frozen=True)
class Delta:
    """A difference, or why there is none.

    Attributes:
        value: The difference; NaN where there is none.
        reason: Why the value is NaN; empty otherwise.
        overlap: Length of the common interval as a share of the union's, in [0, 1].
    """

    value: float
    reason: str = ""
    overlap: float = 0.0


def bd_rate(anchor: Curve, test: Curve, *, interpolation: Interpolation = "pchip") -> Delta:
    """Mean difference of rate at equal quality, in percent of the anchor's; negative is a saving.

    Args:
        anchor: Rows of rate (kbps or any other unit, positive) and quality; at least 4.
        test: The same of the other encoder or ladder.
        interpolation: Piecewise cubic (``pchip``, the default of recent practice), cubic polynomial, or Akima.

    Returns:
        Percent, or NaN with a reason: too few points, no common quality, values that are not finite.

    Example:
        >>> curve = np.array([[1.0, 30.0], [2.0, 33.0], [4.0, 36.0], [8.0, 39.0]])
        >>> doubled = curve * [2.0, 1.0]
        >>> round(bd_rate(curve, doubled).value, 6)
        100.0
    """
    return _delta(anchor, test, interpolation, over="quality")


def bd_quality(anchor: Curve, test: Curve, *, interpolation: Interpolation = "pchip") -> Delta:
    """Mean difference of quality at equal rate, in the unit of quality; positive is a gain.

    Args:
        anchor: Rows of rate and quality; at least 4.
        test: The same of the other encoder or ladder.
        interpolation: As in :func:`bd_rate`.

    Returns:
        Decibels, VMAF points, ..., or NaN with a reason.

    Example:
        >>> curve = np.array([[1.0, 30.0], [2.0, 33.0], [4.0, 36.0], [8.0, 39.0]])
        >>> round(bd_quality(curve, curve + [0.0, 1.0]).value, 6)
        1.0
    """
    return _delta(anchor, test, interpolation, over="rate")


def in_words(rate: Delta, quality: Delta, unit: str = "dB") -> str:
    """One sentence on both differences, without signs to misread."""
    if rate.reason or quality.reason:
        return f"no difference can be given: {rate.reason or quality.reason}"
    saving = f"{'saves' if rate.value < 0 else 'costs'} {abs(rate.value):.1f} % rate at equal quality"
    gain = f"{'gains' if quality.value > 0 else 'loses'} {abs(quality.value):.2f} {unit} at equal rate"
    return f"{saving}, {gain}"


def increasing(curve: Curve) -> Curve:
    """The points of a curve that no other beats, by ascending rate: strictly increasing in both columns.

    Of points of equal quality the cheapest stays.
    """
    order = curve[np.lexsort((-curve[:, 1], curve[:, 0]))]
    best, kept = -math.inf, []
    for index, quality in enumerate(order[:, 1]):
        if quality > best:
            best = float(quality)
            kept.append(index)
    return order[kept]


def read_curves(
    anchor: Path, test: Path, *, rate: str | None = None, quality: str | None = None
) -> tuple[Curve, Curve, str]:
    """Two curves from CSV files, in one unit of rate and one measure of quality.

    Args:
        anchor: With a column of rates (``kbps``, ``mbps``, ``bpp``, ``bits``, or ``rate`` in no named unit) and one of
            qualities (``psnr``, ``vmaf``, ``ssim``, or ``quality`` of no named measure).
        test: The same of the other curve.
        rate: Column of rates, where there are several.
        quality: Column of qualities, where there are several.

    Returns:
        Both curves, and the unit of quality. A name without a unit is taken for that of the other file.

    Raises:
        InputError: A column is missing, unnamed among several, or of another unit than that of the other file; a cell
            holds no finite number, or a rate is not positive.
    """
    tables = [list(read_csv(path)) for path in (anchor, test)]
    names: list[tuple[str, str]] = []
    for path, rows in zip((anchor, test), tables, strict=True):
        columns = {name.lower(): name for name in (rows[0][1] if rows else {})}
        names.append((_column(path, columns, rate, _RATES, "rate"), _column(path, columns, quality, _UNITS, "quality")))
    for place, plain in enumerate(("rate", "quality")):
        a, b = (each[place].lower() for each in names)
        if a != b and plain not in (a, b):
            raise InputError(
                f"the curves differ in {plain}",
                where=f"{anchor}, {test}",
                why=f"{a} in the first, {b} in the second",
                remedy="compare values of one unit",
            )
    unit = next((_UNITS[q.lower()] for _, q in names if q.lower() in _UNITS and q.lower() != "quality"), "of quality")
    curves = [_points(path, rows, *each) for path, rows, each in zip((anchor, test), tables, names, strict=True)]
    return curves[0], curves[1], unit


def _column(
    path: Path, columns: dict[str, str], wanted: str | None, known: tuple[str, ...] | dict[str, str], option: str
) -> str:
    there = [name for name in columns if name in known]
    if wanted is not None and wanted.lower() in columns:
        return columns[wanted.lower()]
    if wanted is None and len(there) == 1:
        return columns[there[0]]
    raise InputError(
        f"the curve has several columns of {option}" if wanted is None and there else "the curve lacks a column",
        where=path,
        why=f"its columns are {', '.join(list(columns)[:12]) or 'none'}" + (f"; got {wanted}" if wanted else ""),
        remedy=f"name it {', '.join(known)}, or pass --{option} COLUMN",
    )


def _points(path: Path, rows: list[tuple[int, dict[str, str]]], rate: str, quality: str) -> Curve:
    values = []
    for line, row in rows:
        try:
            point = [float(row[rate]), float(row[quality])]
        except ValueError:
            point = [math.nan, math.nan]
        if not (0 < point[0] < math.inf and math.isfinite(point[1])):
            raise InputError(
                "a row of the curve holds no positive rate and finite quality",
                where=f"{path}, line {line}",
                why=f"{row[rate]!r}, {row[quality]!r}",
            )
        values.append(point)
    return np.array(values, dtype=np.float64)


def _delta(anchor: Curve, test: Curve, interpolation: Interpolation, over: Literal["quality", "rate"]) -> Delta:
    from bjontegaard import bd_psnr as library_quality
    from bjontegaard import bd_rate as library_rate

    curves = []
    for name, curve in (("anchor", anchor), ("test", test)):
        if not np.isfinite(curve).all() or (curve[:, 0] <= 0).any():
            return Delta(math.nan, f"the {name} curve holds values that are not finite, or rates that are not positive")
        best = increasing(curve)
        if len(best) < _FEWEST:
            return Delta(
                math.nan,
                f"the {name} curve has {len(best)} points of increasing rate and quality, {_FEWEST} are needed",
            )
        curves.append(best)
    (a_rate, a_quality), (b_rate, b_quality) = curves[0].T, curves[1].T
    lengths = [(a_quality, b_quality), (np.log(a_rate), np.log(b_rate))][over == "rate"]
    low, high = max(each[0] for each in lengths), min(each[-1] for each in lengths)
    union = max(each[-1] for each in lengths) - min(each[0] for each in lengths)
    if high <= low:
        return Delta(math.nan, f"the curves share no {over}")
    function = library_rate if over == "quality" else library_quality
    value = function(
        a_rate, a_quality, b_rate, b_quality, method=interpolation, require_matching_points=False, min_overlap=0
    )
    return Delta(float(value), overlap=float((high - low) / union))
