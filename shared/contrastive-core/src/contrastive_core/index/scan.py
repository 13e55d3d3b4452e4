"""The nearest codes, exactly, by looking at all of them."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8, UInt64

from contrastive_core.evaluation.codes import distances_to, words

BLOCK = 1 << 16
"""Codes looked at together: their distances stay in the processor's cache."""
FIRST = 1 << 12
"""Codes looked at first, to learn early how near the k nearest are."""

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
