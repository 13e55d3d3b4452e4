"""The nearest codes or vectors, exactly, by looking at all of them."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from contrastive_core.evaluation.codes import distances_to, words
from contrastive_core.index.checks import products

BLOCK = 1 << 16
"""Codes looked at together: their distances stay in the processor's cache."""
FIRST = 1 << 12
"""Codes looked at first, to learn early how near the k nearest are."""
ASKED = 8
"""Queries of float vectors whose products are held together."""

Near = tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]


def nearest(
    queries: UInt8[np.ndarray, "q w"],
    gallery: UInt64[np.ndarray, "v n"],
    *,
    k: int | None,
    radius: int,
    among: Bool[np.ndarray, " n"] | None = None,
) -> list[Near]:
    """Rows and Hamming distances of the nearest codes of every query, by distance, then row.

    Args:
        queries: Packed codes.
        gallery: Packed codes in words, see :func:`contrastive_core.evaluation.codes.words`.
        k: Most rows a query; None for all within the radius.
        radius: Largest distance.
        among: Rows that may be found; all by default.

    Returns:
        Two arrays a query.
    """
    asked = words(queries).T
    workers = min(len(asked), torch.get_num_threads())
    if workers <= 1:
        return [_nearest(query, gallery, k, radius, among) for query in asked]
    with ThreadPoolExecutor(workers) as pool:  # numpy lets go of the interpreter inside its loops
        return list(pool.map(lambda query: _nearest(query, gallery, k, radius, among), asked))


def _nearest(
    query: UInt64[np.ndarray, " v"],
    gallery: UInt64[np.ndarray, "v n"],
    k: int | None,
    radius: int,
    among: Bool[np.ndarray, " n"] | None,
) -> Near:
    rows, distances = [], []
    found = np.zeros(radius + 1, dtype=np.int64)
    for start, stop in pairwise([0, *range(FIRST, gallery.shape[1], BLOCK), gallery.shape[1]]):
        distance = distances_to(query, gallery[:, start:stop])
        near = distance <= radius
        if among is not None:
            near &= among[start:stop]
        row = np.flatnonzero(near)
        if not len(row):
            continue
        rows.append(row + start)
        distances.append(distance[row])
        if k is not None:
            # Only what is at most as far as the k-th nearest so far can still be among the k nearest.
            found += np.bincount(distance[row], minlength=len(found))[: len(found)]
            reached = np.cumsum(found)
            if reached[-1] >= k:
                radius = int(np.searchsorted(reached, k))
                found = found[: radius + 1]
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    row, distance = np.concatenate(rows), np.concatenate(distances).astype(np.int64)
    row, distance = row[distance <= radius], distance[distance <= radius]
    order = np.argsort(distance, kind="stable")[:k]
    return row[order], distance[order]


def nearest_vectors(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    *,
    k: int,
    among: Bool[np.ndarray, " n"] | None = None,
) -> list[tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]]:
    """Rows and inner products of the most similar vectors of every query, highest first, then by row.

    Products in single precision choose candidates with a margin for their rounding; products in double precision order
    them, so that neither the number of threads nor the other queries change a result.

    Args:
        queries: Queries, in single precision.
        gallery: Vectors, in single precision.
        k: Most rows a query.
        among: Rows that may be returned; all by default.
    """
    rows = np.arange(len(gallery)) if among is None else np.flatnonzero(among)
    if not len(rows):
        return [(np.empty(0, np.int64), np.empty(0)) for _ in queries]
    searched = gallery if among is None else gallery[rows]
    longest = float(np.sqrt(np.einsum("nd,nd->n", searched, searched).max()))
    answer = []
    for start in range(0, len(queries), ASKED):
        part = queries[start : start + ASKED]
        for query, scores in zip(part, part @ searched.T, strict=True):
            near = np.arange(len(rows))
            if k < len(rows):
                kth = np.partition(scores, -k)[-k]
                near = np.flatnonzero(scores >= kth - 2 * rounding(query, longest))
            exact = products(searched[near], query)
            order = np.argsort(-exact, kind="stable")[:k]
            answer.append((rows[near[order]], exact[order]))
    return answer


def rounding(query: Float[np.ndarray, " d"], longest: float) -> float:
    """Bound of the error of an inner product in single precision (Higham, 2002, section 3.1)."""
    return 1.1 * len(query) * 2.0**-24 * float(np.linalg.norm(query)) * longest
