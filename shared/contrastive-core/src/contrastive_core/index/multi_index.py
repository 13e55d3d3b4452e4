"""Multi-index hashing: near codes agree, almost, in one of their substrings (Norouzi, Punjani and Fleet, 2012).

Codes are cut into substrings of 16 bits, each with a table from its value to the rows that have it. A search looks up
every value that differs from the query's in at most ``flips`` bits and compares the whole codes of those rows. A row
at distance below ``substrings * (flips + 1)`` is always among them, one farther away mostly.
"""

from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Int, Shaped, UInt8, UInt16, UInt64

from contrastive_core.evaluation.codes import words

WIDTH = 16
TOGETHER = 4
"""Queries looked up together: their candidates stay in the processor's cache."""


class MultiIndex:
    """Tables of the substrings of codes.

    Args:
        gallery: Codes in words.
        bits: Length of the codes, at least 16; bits behind the last whole substring are compared, not looked up.
    """

    def __init__(self, gallery: UInt64[np.ndarray, "v n"], bits: int) -> None:
        substrings = _substrings(gallery, bits)
        count, n = substrings.shape
        kind = np.int32 if count * n < 2**31 else np.int64
        self.gallery, self.bits, self.count = gallery, bits, count
        self.rows = np.concatenate([np.argsort(each, kind="stable").astype(np.int32) for each in substrings])
        starts = [
            np.concatenate([[0], np.cumsum(np.bincount(each, minlength=1 << WIDTH))]) + place * n
            for place, each in enumerate(substrings)
        ]
        self.starts = np.concatenate(starts).astype(kind)

    def nearest(
        self, queries: UInt8[np.ndarray, "q w"], *, k: int, flips: int
    ) -> list[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]]:
        """Rows and distances of near codes, by distance, then row; fewer than k where fewer are looked up.

        Args:
            queries: Packed codes.
            k: Most rows a query.
            flips: Bits in which a substring may differ.
        """
        asked = words(queries)
        flipped = flipped_bits(flips)
        parts = [asked[:, start : start + TOGETHER] for start in range(0, asked.shape[1], TOGETHER)]
        return [near for part in parts for near in self._nearest(np.ascontiguousarray(part), k, flipped)]

    def candidates(self, queries: UInt8[np.ndarray, "q w"], flips: int) -> float:
        """Mean number of codes that a query is compared with."""
        starts, stops = self._ranges(words(queries), flipped_bits(flips))
        return float((stops - starts).sum() / max(len(queries), 1))

    def _ranges(
        self, asked: UInt64[np.ndarray, "v q"], flipped: UInt16[np.ndarray, " f"]
    ) -> tuple[Int[np.ndarray, "q r"], Int[np.ndarray, "q r"]]:
        values = _substrings(asked, self.bits).T[:, :, None] ^ flipped
        keys = values.astype(np.int64) + (np.arange(self.count) * ((1 << WIDTH) + 1))[:, None]
        keys = keys.reshape(asked.shape[1], -1)
        return self.starts[keys], self.starts[keys + 1]

    def _nearest(
        self, asked: UInt64[np.ndarray, "v q"], k: int, flipped: UInt16[np.ndarray, " f"]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        starts, stops = self._ranges(asked, flipped)
        lengths = (stops - starts).ravel()
        ends = np.cumsum(lengths, dtype=self.starts.dtype)
        places = np.repeat(starts.ravel() - ends + lengths, lengths)
        rows = self.rows[places + np.arange(len(places), dtype=places.dtype)]
        counts = (stops - starts).sum(1)
        distance = np.zeros(len(rows), np.uint8 if len(asked) < 4 else np.uint16)
        for word, query in zip(self.gallery, asked, strict=True):
            np.add(distance, np.bitwise_count(word[rows] ^ np.repeat(query, counts)), out=distance)
        bounds = np.concatenate([[0], np.cumsum(counts)]).tolist()
        return [_cut(rows[i:j], distance[i:j], k, self.count) for i, j in pairwise(bounds)]


def flipped_bits(flips: int) -> UInt16[np.ndarray, " f"]:
    """All substrings with at most so many bits set."""
    chosen = (places for count in range(flips + 1) for places in combinations(range(WIDTH), count))
    return np.array([sum(1 << place for place in places) for places in chosen], dtype=np.uint16)


def _substrings(gallery: UInt64[np.ndarray, "v n"], bits: int) -> UInt16[np.ndarray, "s n"]:
    return np.ascontiguousarray(np.ascontiguousarray(gallery.T).view(np.uint16)[:, : bits // WIDTH].T)


def _cut(
    rows: Int[np.ndarray, " c"], distance: Shaped[np.ndarray, " c"], k: int, copies: int
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """The k nearest of candidates, of which each occurs at most ``copies`` times."""
    if not len(rows):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    reached = np.cumsum(np.bincount(distance))
    near = np.flatnonzero(distance <= np.searchsorted(reached, min(k * copies, len(rows))))
    keys = np.unique(distance[near].astype(np.int64) << 32 | rows[near])[:k]
    return keys & 0xFFFFFFFF, keys >> 32
