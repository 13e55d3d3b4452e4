"""What a ranking is worth: measures of one query, from the ranks of its relevant items or from groups of ties."""

import dataclasses
import math
import re
from typing import Literal

import numpy as np
from jaxtyping import Int
from scipy.special import gammaln

Denominator = Literal["min", "R", "retrieved"]

_AT_K = ("map", "precision", "recall", "hit", "ndcg")
_WHOLE = ("map", "map@r", "r_precision", "mrr")


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure of a ranking.

    Attributes:
        name: As the user wrote it, for instance ``map@100``.
        kind: ``map``, ``map@r``, ``r_precision``, ``mrr``, ``precision``, ``recall``, ``hit`` or ``ndcg``.
        k: Cut-off of the ranking; none for the whole of it, or where the number of relevant items is the cut-off.
    """

    name: str
    kind: str
    k: int | None

    def depth(self, relevant: int, size: int) -> int:
        """How far down the ranking has to be known, with so many relevant items among so many."""
        if self.kind in ("map@r", "r_precision"):
            return min(relevant, size)
        return size if self.k is None else min(self.k, size)


def measure(name: str) -> Measure:
    """Understand the name of a measure.

    Raises:
        ValueError: No such measure.

    Example:
        >>> measure("precision@10")
        Measure(name='precision@10', kind='precision', k=10)
    """
    if name in _WHOLE:
        return Measure(name, name, None)
    match = re.fullmatch(rf"({'|'.join(_AT_K)})@([1-9][0-9]*)", name)
    if match is None:
        known = ", ".join([*_WHOLE, *(f"{kind}@K" for kind in _AT_K)])
        raise ValueError(f"unknown measure {name!r}; there are {known}, K a positive number")
    return Measure(name, match[1], int(match[2]))


class Tables:
    """Sums that all queries share: of ``1 / rank`` and of the discounts ``1 / log2(rank + 1)``, over the first ranks.

    Args:
        size: Items in the gallery.
    """

    def __init__(self, size: int) -> None:
        ranks = np.arange(1, size + 1, dtype=np.float64)
        self.harmonic = np.concatenate([[0.0], np.cumsum(1 / ranks)])
        self.discount = np.concatenate([[0.0], np.cumsum(1 / np.log2(ranks + 1))])


def from_ranks(
    ranks: Int[np.ndarray, " h"],
    relevant: int,
    size: int,
    measures: tuple[Measure, ...],
    denominator: Denominator,
    tables: Tables,
) -> list[float]:
    """Measures of a ranking in which every item has its own rank.

    Args:
        ranks: Ranks of relevant items, from 0, ascending; complete as far down as the measures look.
        relevant: Relevant items in the gallery, R, at least 1.
        size: Items in the gallery.
        measures: What to compute.
        denominator: What the sum of precisions of ``map@K`` is divided by, see :class:`RetrievalRanking`.
        tables: Of the gallery.
    """
    found = np.arange(1, len(ranks) + 1)
    precision = np.concatenate([[0.0], np.cumsum(found / (ranks + 1))])
    out = []
    for each in measures:
        depth = each.depth(relevant, size)
        hits = int(np.searchsorted(ranks, depth))
        if each.kind in ("map", "map@r"):
            out.append(float(precision[hits]) / _sum_over(each, relevant, hits, denominator))
        elif each.kind == "mrr":
            out.append(1 / (int(ranks[0]) + 1))
        elif each.kind == "ndcg":
            gain = float((1 / np.log2(ranks[:hits] + 2)).sum())
            out.append(gain / float(tables.discount[min(relevant, depth)]))
        else:
            out.append(_from_hits(each, hits, relevant))
    return out


def from_ties(
    sizes: Int[np.ndarray, " g"],
    hits: Int[np.ndarray, " g"],
    measures: tuple[Measure, ...],
    denominator: Denominator,
    tables: Tables,
) -> list[float]:
    """Expected measures when the order within each group of ties is random (McSherry & Najork, 2008).

    Args:
        sizes: Items in each group, best group first.
        hits: Relevant items in each group, at least 1 in total.
        measures: What to compute.
        denominator: As for :func:`from_ranks`; not ``retrieved`` where a measure is ``map@K``.
        tables: Of the gallery.
    """
    relevant, size = int(hits.sum()), int(sizes.sum())
    before, hits_before = np.cumsum(sizes) - sizes, np.cumsum(hits) - hits
    # Groups without relevant items only move the others down.
    n, r, before, hits_before = (each[hits > 0] for each in (sizes, hits, before, hits_before))
    first = int(n[0]), int(r[0]), int(before[0])
    out = []
    for each in measures:
        depth = each.depth(relevant, size)
        if each.kind in ("map", "map@r"):
            expected = _expected_precisions(n, r, before, hits_before, depth, tables.harmonic)
            out.append(expected / _sum_over(each, relevant, 0, denominator))
        elif each.kind == "mrr":
            out.append(_expected_reciprocal_rank(*first))
        elif each.kind == "ndcg":
            spread = tables.discount[np.minimum(before + n, depth)] - tables.discount[np.minimum(before, depth)]
            out.append(float((r / n * spread).sum() / tables.discount[min(relevant, depth)]))
        elif each.kind == "hit":
            out.append(_chance_of_hit(*first, depth))
        else:
            inside = np.clip(depth - before, 0, n)
            out.append(_from_hits(each, float((r * inside / n).sum()), relevant))
    return out


def _from_hits(each: Measure, hits: float | int, relevant: int) -> float:
    """Measures that depend on the number of hits alone."""
    if each.kind == "precision":
        return hits / float(each.k or 1)
    if each.kind == "hit":
        return float(hits > 0)
    return hits / relevant  # recall and R-precision


def _sum_over(each: Measure, relevant: int, hits: int, denominator: Denominator) -> int:
    """What the sum of precisions is divided by."""
    if each.k is None or denominator == "R":
        return relevant
    return min(relevant, each.k) if denominator == "min" else max(hits, 1)


def _expected_precisions(
    sizes: np.ndarray, hits: np.ndarray, before: np.ndarray, hits_before: np.ndarray, depth: int, harmonic: np.ndarray
) -> float:
    """Expected sum of the precisions at relevant items among the first ``depth``.

    The item at place i of a group of n, r of them relevant, is relevant with probability r / n, and then
    (i - 1)(r - 1) / (n - 1) of the i - 1 before it are expected to be. Sums over i of 1 / (N + i) are harmonic numbers.
    """
    inside = np.clip(depth - before, 0, sizes)
    reciprocal = harmonic[before + inside] - harmonic[before]
    weighted = inside - (before + 1) * reciprocal
    companions = (hits - 1) / np.maximum(sizes - 1, 1)
    return float((hits / sizes * ((hits_before + 1) * reciprocal + companions * weighted)).sum())


def _expected_reciprocal_rank(size: int, hits: int, before: int) -> float:
    """Of the first relevant item, in a group that begins after ``before`` items."""
    place = np.arange(1, size - hits + 2)
    # The first of r relevant among n stands at place i in C(n - i, r - 1) of C(n, r) cases.
    log_cases = _log_choose(size - place, hits - 1) - _log_choose(size, hits)
    return float((np.exp(log_cases) / (before + place)).sum())


def _chance_of_hit(size: int, hits: int, before: int, depth: int) -> float:
    """That one of the first ``depth`` items is relevant, where the first group with relevant items begins so late."""
    inside = min(max(depth - before, 0), size)
    if inside > size - hits:
        return 1.0
    return 1 - math.exp(_log_choose(size - hits, inside) - _log_choose(size, inside))


def _log_choose(n: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
    return np.asarray(gammaln(np.add(n, 1)) - gammaln(np.add(k, 1)) - gammaln(np.subtract(n, k) + 1))
