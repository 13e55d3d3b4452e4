"""Retrieval measured exactly over the whole gallery, in memory that does not grow with the number of queries."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from contrastive_core.distributed import gather, is_active
from contrastive_core.evaluation.codes import distances_to, words
from contrastive_core.evaluation.ranking import Denominator, Tables, from_ranks, from_ties, measure

Similarity = Literal["cosine", "dot", "l2"]
Ties = Literal["index", "average"]
Relevant = Callable[[slice], Bool[np.ndarray, "b n"] | Bool[Tensor, "b n"]]

DEFAULT_MEASURES = ("map", "map@r", "r_precision", "mrr", "precision@10", "recall@10", "hit@1", "ndcg@10")

_TOP = np.uint32(0x80000000)


@dataclasses.dataclass(frozen=True)
class RetrievalScores:
    """Means over queries.

    Attributes:
        values: Measure to mean; NaN when no query had a relevant item.
        queries: Queries averaged over.
        excluded: Queries without any relevant item, which are left out of the means.
        per_query: Measure to one value a query, in the order they came (of all processes, by rank); NaN where excluded.
    """

    values: dict[str, float]
    queries: int
    excluded: int
    per_query: dict[str, Float[np.ndarray, " q"]]

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_dict(self) -> dict[str, Any]:
        """Means and counts, for JSON."""
        return {**self.values, "queries": self.queries, "excluded": self.excluded}


class RetrievalRanking:
    """Rank a gallery for every query and measure the rankings.

    Measures, by name: ``map`` (mean average precision of the whole ranking), ``map@K``, ``map@r`` (Musgrave et al.,
    2020), ``r_precision``, ``precision@K``, ``recall@K`` (share of the relevant items found), ``hit@K`` (whether one is
    found; the recall@K of the metric-learning literature), ``mrr``, ``ndcg@K``. With K beyond the gallery, missing
    items count as misses.

    Queries come in any number of :meth:`update` calls and are ranked a few at a time, so that besides the gallery only
    ``memory_mib`` is needed. Under ``torch.distributed`` each process holds the gallery and ranks its own queries;
    :meth:`compute` joins them.

    Args:
        gallery: Embeddings ``[n d]``; or packed codes ``[n bytes]`` in uint8 (see :func:`pack_codes`), which are ranked
            by Hamming distance. Half precision is widened: ties of rounding are no ties.
        labels: Classes ``[n]``, or several a row as zeros and ones ``[n c]``: items that share one are relevant. Absent
            where relevance comes with the queries.
        ids: Ids of the gallery's items. Items with the id of the query are left out of its ranking.
        measures: What to compute.
        similarity: Of embeddings: ``cosine``, ``dot``, or ``l2`` for the smallest distance first.
        denominator: What ``map@K`` divides the sum of the precisions at the relevant items of the first K by: ``min``
            of K and the number R of relevant items in the gallery, ``R``, or the number ``retrieved`` in the first K.
            Papers on hashing mostly use the last, which rewards rankings that find little.
        ties: Equal scores are ordered by ``index`` in the gallery; or ``average`` gives the expected value over all
            orders, which does not depend on how the gallery is sorted and is faster for codes.
        memory_mib: Memory of the scores of one block of queries.

    Raises:
        ValueError: Shapes that do not agree, an empty gallery, values that are not finite, unknown measures or
            options, or ``map@K`` over ``retrieved`` with ``ties="average"``, whose expectation has no closed form.

    Example:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> ranking = RetrievalRanking(gallery, torch.tensor([0, 1, 0]), measures=("map", "hit@1"))
        >>> ranking.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        >>> round(ranking.compute()["map"], 4)  # ranks 1 and 3: (1 + 2/3) / 2
        0.8333
    """

    def __init__(
        self,
        gallery: Shaped[np.ndarray, "n w"] | Shaped[Tensor, "n w"],
        labels: Shaped[np.ndarray, "n *c"] | Shaped[Tensor, "n *c"] | None = None,
        *,
        ids: Shaped[np.ndarray, " n"] | Shaped[Tensor, " n"] | None = None,
        measures: Sequence[str] = DEFAULT_MEASURES,
        similarity: Similarity = "cosine",
        denominator: Denominator = "min",
        ties: Ties = "index",
        memory_mib: int = 256,
    ) -> None:
        if len(gallery) == 0:
            raise ValueError("the gallery is empty")
        if denominator not in ("min", "R", "retrieved") or ties not in ("index", "average"):
            raise ValueError(f"unknown denominator {denominator!r} or ties {ties!r}")
        self.measures = tuple(measure(name) for name in measures)
        if ties == "average" and denominator == "retrieved" and any(m.kind == "map" and m.k for m in self.measures):
            raise ValueError('map@K over "retrieved" items has no closed form with ties="average"; use ties="index"')
        self.size, self.ties, self.denominator = len(gallery), ties, denominator
        kind = _Codes if _is_codes(gallery) else _Floats
        self._gallery: _Codes | _Floats = kind(gallery, similarity)
        self._labels = None if labels is None else _Labels(_array(labels), self.size)
        self._ids = None if ids is None else _Ids(_array(ids), self.size)
        # One score, its sort key and the sorted keys a gallery item.
        self._block = max(1, memory_mib * 2**20 // (24 * self.size))
        self._tables = Tables(self.size)
        self._rows: list[Float[np.ndarray, "b m"]] = []

    def update(
        self,
        queries: Shaped[np.ndarray, "q w"] | Shaped[Tensor, "q w"],
        labels: Shaped[np.ndarray, "q *c"] | Shaped[Tensor, "q *c"] | None = None,
        *,
        ids: Shaped[np.ndarray, " q"] | Shaped[Tensor, " q"] | None = None,
        relevant: Relevant | None = None,
    ) -> None:
        """Rank the gallery for some queries.

        Args:
            queries: Embeddings or packed codes, as the gallery.
            labels: Their classes, as the gallery's.
            ids: Their ids; needed where the gallery has ids.
            relevant: Instead of labels: called with a slice of these queries, returns what is relevant to them,
                ``[b n]``.

        Raises:
            ValueError: The queries do not fit the gallery, or not exactly one of labels and ``relevant`` is given.
        """
        if (labels is None) == (relevant is None) or (labels is not None and self._labels is None):
            raise ValueError("relevance comes from labels of queries and gallery, or from a function")
        if (ids is None) != (self._ids is None):
            raise ValueError("queries and gallery both have ids, or neither")
        self._gallery.check(queries)
        targets = None if labels is None or self._labels is None else self._labels.targets(_array(labels))
        names = None if ids is None else _array(ids)
        if any(each is not None and len(each) != len(queries) for each in (targets, names)):
            raise ValueError("each query has one row of labels and one id")
        for start in range(0, len(queries), self._block):
            block = slice(start, min(start + self._block, len(queries)))
            given = None if relevant is None else _array(relevant(block)).astype(bool)
            if given is not None and given.shape != (block.stop - block.start, self.size):
                raise ValueError(f"relevance is [b n], got {given.shape} for {block} of {self.size}")
            targeted = None if targets is None else targets[block]
            excluded = None if names is None else names[block]
            self._rows.append(self._ranked(self._gallery.prepare(queries[block]), given, targeted, excluded))

    def _ranked(
        self, prepared: np.ndarray, given: np.ndarray | None, targets: Any, names: np.ndarray | None
    ) -> Float[np.ndarray, "b m"]:
        """Measures of one block of queries; the threads of torch share its rows, sorting lets them run side by side."""

        def one(row: int) -> list[float]:
            if given is not None:
                hit = given[row].copy()
            else:
                assert self._labels is not None
                hit = self._labels.shared(targets[row])
            own = None if self._ids is None or names is None else self._ids.places(names[row])
            return self._measure(self._gallery.row(prepared, row), hit, own)

        workers = min(torch.get_num_threads(), len(prepared))
        if workers == 1:
            return np.array([one(row) for row in range(len(prepared))])
        with ThreadPoolExecutor(workers) as pool:
            return np.array(list(pool.map(one, range(len(prepared)))))

    def compute(self) -> RetrievalScores:
        """Means over the queries so far, of all processes."""
        rows = np.concatenate(self._rows) if self._rows else np.empty((0, len(self.measures)))
        rows = _gather_rows(rows)
        used = ~np.isnan(rows).any(1)
        kept = rows[used]
        means = kept.mean(0) if len(kept) else np.full(len(self.measures), np.nan)
        names = [each.name for each in self.measures]
        return RetrievalScores(
            values={name: float(value) for name, value in zip(names, means, strict=True)},
            queries=int(used.sum()),
            excluded=int((~used).sum()),
            per_query={name: rows[:, column] for column, name in enumerate(names)},
        )

    def _measure(self, scores: np.ndarray, hit: np.ndarray, own: np.ndarray | None) -> list[float]:
        size = self.size
        if own is not None and len(own):
            hit[own] = False
            size -= len(own)
        relevant = int(np.count_nonzero(hit))
        if relevant == 0:
            return [np.nan] * len(self.measures)
        if self.ties == "average":
            groups = self._gallery.groups(scores, hit, own)
            return from_ties(*groups, self.measures, self.denominator, self._tables)
        depth = max(each.depth(relevant, size) for each in self.measures)
        ranks = self._gallery.ranks(scores, hit, own, depth)
        return from_ranks(ranks, relevant, size, self.measures, self.denominator, self._tables)


def retrieval_scores(
    queries: Shaped[np.ndarray, "q w"] | Shaped[Tensor, "q w"],
    labels: Shaped[np.ndarray, "q *c"] | Shaped[Tensor, "q *c"],
    gallery: Shaped[np.ndarray, "n w"] | Shaped[Tensor, "n w"] | None = None,
    gallery_labels: Shaped[np.ndarray, "n *c"] | Shaped[Tensor, "n *c"] | None = None,
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    similarity: Similarity = "cosine",
    denominator: Denominator = "min",
    ties: Ties = "index",
    memory_mib: int = 256,
) -> RetrievalScores:
    """Measures of retrieval by labels, in one call.

    Args:
        queries: Embeddings, or packed codes in uint8.
        labels: Classes, or several a row as zeros and ones.
        gallery: What is ranked; by default all other queries (leave one out).
        gallery_labels: Its classes.
        measures: As :class:`RetrievalRanking`, like the other options.
        similarity: See there.
        denominator: See there.
        ties: See there.
        memory_mib: See there.

    Raises:
        ValueError: As :class:`RetrievalRanking`, or a gallery without labels.
    """
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("a gallery comes with its labels")
    everyone = np.arange(len(queries)) if gallery is None else None
    ranking = RetrievalRanking(
        queries if gallery is None else gallery,
        labels if gallery_labels is None else gallery_labels,
        ids=everyone,
        measures=measures,
        similarity=similarity,
        denominator=denominator,
        ties=ties,
        memory_mib=memory_mib,
    )
    ranking.update(queries, labels, ids=everyone)
    return ranking.compute()


class _Codes:
    """Packed codes, ranked by Hamming distance; distances are small integers, so every sort is a counting sort."""

    def __init__(self, gallery: Any, similarity: Similarity) -> None:
        self._width = gallery.shape[1]
        self._words = words(_array(gallery))
        self._far = 64 * len(self._words) + 1

    def check(self, queries: Any) -> None:
        if not _is_codes(queries) or queries.shape[1] != self._width:
            raise ValueError(f"queries are packed codes of {self._width} bytes, got {queries.dtype} {queries.shape}")

    def prepare(self, queries: Any) -> np.ndarray:
        return words(_array(queries)).T

    def row(self, prepared: np.ndarray, number: int) -> np.ndarray:
        return distances_to(prepared[number], self._words)

    def ranks(self, distance: np.ndarray, hit: np.ndarray, own: np.ndarray | None, depth: int) -> np.ndarray:
        distance = self._without(distance, own)
        if depth >= len(distance) // 4:
            return np.flatnonzero(hit[np.argsort(distance, kind="stable")])
        radius = int(np.searchsorted(np.cumsum(self._count(distance)), depth))
        near = np.flatnonzero(distance <= radius)
        order = near[np.argsort(distance[near], kind="stable")][:depth]
        return np.flatnonzero(hit[order])

    def groups(self, distance: np.ndarray, hit: np.ndarray, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        distance = self._without(distance, own)
        return self._count(distance)[: self._far], self._count(distance[hit])[: self._far]

    def _without(self, distance: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        if own is not None and len(own):
            distance[own] = self._far  # behind everything, and no hit
        return distance

    def _count(self, distance: np.ndarray) -> np.ndarray:
        if distance.dtype == np.uint8:  # torch counts bytes without widening them first
            return torch.bincount(torch.from_numpy(distance), minlength=self._far + 1).numpy()
        return np.bincount(distance, minlength=self._far + 1)


class _Floats:
    """Embeddings; scores of one block of queries at a time, larger is nearer."""

    def __init__(self, gallery: Any, similarity: Similarity) -> None:
        if similarity not in ("cosine", "dot", "l2"):
            raise ValueError(f"similarity is cosine, dot or l2, got {similarity!r}")
        self._similarity = similarity
        rows = _wide(gallery)
        # Distances do not depend on the origin; near it, the difference of squares keeps its digits.
        self._origin = rows.mean(0) if similarity == "l2" else torch.zeros_like(rows[0])
        self._rows = self._prepare(rows)
        self._squares = self._rows.square().sum(1) if similarity == "l2" else None
        self._numbers = np.arange(len(rows), dtype=np.uint64) << np.uint64(1)

    def check(self, queries: Any) -> None:
        if _is_codes(queries) or queries.shape[1] != self._rows.shape[1]:
            raise ValueError(f"queries are [q {self._rows.shape[1]}], got {queries.dtype} {tuple(queries.shape)}")

    def prepare(self, queries: Any) -> np.ndarray:
        rows = self._prepare(_wide(queries).to(self._rows))
        scores = rows @ self._rows.T
        if self._squares is not None:
            scores = scores.mul_(2).sub_(self._squares)
        return scores.cpu().numpy()

    def row(self, prepared: np.ndarray, number: int) -> np.ndarray:
        return prepared[number]

    def ranks(self, scores: np.ndarray, hit: np.ndarray, own: np.ndarray | None, depth: int) -> np.ndarray:
        if scores.dtype == np.float64:
            order = np.argsort(-scores, kind="stable")
            order = order if own is None or not len(own) else order[~np.isin(order, own)]
            return np.flatnonzero(hit[order[:depth]])
        keys = self._keys(scores, hit, own)
        if depth < len(keys) // 4:
            keys = np.partition(keys, depth - 1)[:depth]
        keys.sort()
        return np.flatnonzero(keys & np.uint64(1))

    def groups(self, scores: np.ndarray, hit: np.ndarray, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if scores.dtype == np.float64:
            order = np.argsort(-scores)
            order = order if own is None or not len(own) else order[~np.isin(order, own)]
            level, found = scores[order], hit[order]
        else:
            keys = self._keys(scores, hit, own)
            keys.sort()
            level, found = keys >> np.uint64(32), (keys & np.uint64(1)).astype(bool)
        starts = np.flatnonzero(np.concatenate([[True], level[1:] != level[:-1]]))
        return np.diff(np.append(starts, len(level))), np.add.reduceat(found.astype(np.int64), starts)

    def _keys(self, scores: np.ndarray, hit: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """One integer an item that sorts by falling score, then by index, and ends in whether the item is relevant."""
        bits = (scores + np.float32(0)).view(np.uint32)  # the sum turns -0 into 0
        # Read as integers, positive floats rise and negative ones fall.
        falling = np.where(bits & _TOP, bits, ~bits & ~_TOP)
        keys = falling.astype(np.uint64) << np.uint64(32)
        keys |= self._numbers
        keys |= hit
        return keys if own is None or not len(own) else np.delete(keys, own)

    def _prepare(self, rows: Tensor) -> Tensor:
        if not torch.isfinite(rows).all():
            raise ValueError("embeddings hold NaN or infinite values")
        return F.normalize(rows, dim=1, eps=1e-12) if self._similarity == "cosine" else rows - self._origin


class _Labels:
    """Which items share a class with a query."""

    def __init__(self, labels: np.ndarray, size: int) -> None:
        if labels.ndim not in (1, 2) or len(labels) != size:
            raise ValueError(f"labels are [n] or [n c] with n = {size}, got {labels.shape}")
        self._shape = labels.shape[1:]
        self._labels = words(np.packbits(labels > 0, axis=1)) if labels.ndim == 2 else labels

    def targets(self, labels: np.ndarray) -> np.ndarray:
        if labels.shape[1:] != self._shape:
            raise ValueError(f"labels of queries and gallery differ in shape: {labels.shape[1:]} and {self._shape}")
        return words(np.packbits(labels > 0, axis=1)).T if labels.ndim == 2 else labels

    def shared(self, target: Any) -> np.ndarray:
        if not self._shape:
            return np.asarray(self._labels == target)
        out = (self._labels[0] & target[0]) != 0
        for word, row in zip(target[1:], self._labels[1:], strict=True):
            out |= (row & word) != 0
        return out


class _Ids:
    """Where an id stands in the gallery."""

    def __init__(self, ids: np.ndarray, size: int) -> None:
        if ids.shape != (size,):
            raise ValueError(f"ids are [n] with n = {size}, got {ids.shape}")
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def places(self, name: Any) -> np.ndarray:
        first, last = np.searchsorted(self._sorted, name, "left"), np.searchsorted(self._sorted, name, "right")
        return self._order[first:last]


def _is_codes(x: Any) -> bool:
    return x.dtype in (torch.uint8, np.uint8)


def _array(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _wide(x: Any) -> Tensor:
    rows = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x))
    return rows if rows.dtype == torch.float64 else rows.float()


def _gather_rows(rows: np.ndarray) -> np.ndarray:
    if not is_active():
        return rows
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    return gather(torch.from_numpy(rows).to(device)).cpu().numpy()
