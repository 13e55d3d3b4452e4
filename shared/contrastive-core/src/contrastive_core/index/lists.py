"""Approximate search: lists of similar vectors built by LanceDB, tables of substrings for codes; how good it is."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from lancedb.index import IvfRq, IvfSq

from contrastive_core.index.checks import products
from contrastive_core.index.interface import Approximation, CodeModel, Progress
from contrastive_core.index.multi_index import WIDTH
from contrastive_core.index.scan import nearest, rounding
from contrastive_core.index.snapshot import Snapshot, disk, matrix

FEW = 20_000
"""Items below which a scan is as quick as anything else."""
SAMPLE = 200
"""Stored items that measure the recall."""
NEAREST = 10
"""Depth of the recall."""
FLIPS = (0, 1, 2, 3)
EFFORTS = ((8, 50), (16, 100), (32, 100), (32, 200), (64, 200), (128, 400), (256, 800))
"""Lists visited and candidates compared exactly, from cheap to dear."""
HOURS = timedelta(hours=24)
WORTH = 8
"""An approximate search of codes compares a query with at most this part of them; else the scan is quicker."""

Near = list[tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]]


def measure_codes(now: Snapshot, goal: float, progress: Progress | None) -> Approximation | None:
    """The fewest flipped bits a substring with which multi-index hashing reaches a recall.

    Returns:
        None where the codes are shorter than a substring, or the goal takes more than a scan.
    """
    model, held = now.model, now.held
    if not isinstance(model, CodeModel) or held is None or model.bits < WIDTH:
        return None
    rows = _sample(len(now.places))
    queries = np.ascontiguousarray(held[:, rows].T).view(np.uint8)[:, : model.bytes]
    truth = [distance for _, distance in nearest(queries, held, k=NEAREST + 1, radius=model.bits)]
    for step, flips in enumerate(FLIPS):
        if progress is not None:
            progress("measuring the recall", step + 1, len(FLIPS))
        if now.tables.candidates(queries, flips) > len(now.places) / WORTH:
            return None
        got = now.tables.nearest(queries, k=NEAREST + 1, flips=flips)
        # The query itself is always returned: it is the one that is left out.
        hits = [np.count_nonzero(d <= true[-1]) - 1 for (_, d), true in zip(got, truth, strict=True)]
        recall = float(np.mean(hits)) / NEAREST
        if recall >= goal:
            method = f"multi-index hashing, {now.tables.count} substrings of {WIDTH} bits"
            return Approximation(method, flips, 0, recall, len(rows), len(now.places))
    return None


def build_lists(table: Any, size: int, dim: int, progress: Progress | None) -> str:
    """Make LanceDB cluster the vectors and keep them in lists, in a few bits a dimension; one commit.

    Returns:
        What was built, for people.
    """
    lists = max(1, math.isqrt(size))
    # RaBitQ takes dimensions in whole bytes; other lengths are kept in 8 bits a dimension.
    kind: type[IvfRq] | type[IvfSq] = IvfRq if dim % 8 == 0 else IvfSq
    config = kind(distance_type="dot", num_partitions=lists, max_iterations=15, sample_rate=64)
    with disk(), _ticking("clustering into lists", progress):
        table.create_index("vector", config=config, wait_timeout=HOURS)
    return f"inverted file of {lists} lists, {'RaBitQ' if dim % 8 == 0 else '8 bits a dimension'}"


def measure_lists(now: Snapshot, method: str, goal: float, progress: Progress | None) -> Approximation | None:
    """The cheapest effort with which lists reach a recall; None where none does."""
    rows = _sample(len(now.places))
    queries = matrix(now.fetch(rows, ["vector"])["vector"])
    truth = _tenth(now, queries, progress)
    slack = np.array([rounding(query, float(np.linalg.norm(query))) for query in queries])
    for step, (lists, candidates) in enumerate(EFFORTS):
        if progress is not None:
            progress("measuring the recall", step + 1, len(EFFORTS))
        near = search_lists(now, queries, k=NEAREST + 1, lists=lists, candidates=candidates, condition=None)
        hits = [
            np.count_nonzero(scores[row != own][:NEAREST] >= tenth - each)
            for (row, scores), own, tenth, each in zip(near, rows, truth, slack, strict=True)
        ]
        recall = float(np.mean(hits)) / NEAREST
        if recall >= goal:
            return Approximation(method, lists, candidates, recall, len(rows), len(now.places))
    return None


def search_lists(
    now: Snapshot,
    queries: Float[np.ndarray, "q d"],
    *,
    k: int,
    lists: int,
    candidates: int,
    condition: str | None,
) -> Near:
    """The most similar vectors among the candidates of LanceDB's lists, by exact products, then row."""
    answer = []
    for query in queries:
        search = now.table.search(query, vector_column_name="vector").distance_type("dot").minimum_nprobes(lists)
        # Where a condition leaves too few candidates in those lists, further ones are visited: 0 is no limit.
        search = search.maximum_nprobes(lists if condition is None else 0)
        rows, vectors = _candidates(now, search, candidates, condition)
        scores = products(vectors, query)
        order = np.lexsort((rows, -scores))[:k]
        answer.append((rows[order], scores[order]))
    return answer


def scan_disk(now: Snapshot, queries: Float[np.ndarray, "q d"], *, k: int, condition: str | None) -> Near:
    """The most similar vectors by exact products, then row; LanceDB reads all of them from disk.

    Its products are in single precision: more rows are taken until the last one lies a rounding error below the k-th.
    """
    answer = []
    for query in queries:
        limit = k + 32
        while True:
            search = now.table.search(query, vector_column_name="vector").distance_type("dot").bypass_vector_index()
            rows, vectors = _candidates(now, search, limit, condition)
            scores = products(vectors, query)
            order = np.lexsort((rows, -scores))
            longest = float(np.linalg.norm(vectors, axis=1).max(initial=0.0))
            if len(rows) < limit or scores[order[k - 1]] - scores.min() > 2 * rounding(query, longest):
                break
            limit *= 4
        answer.append((rows[order[:k]], scores[order[:k]]))
    return answer


def _candidates(
    now: Snapshot, search: Any, limit: int, condition: str | None
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, "m d"]]:
    with disk():
        if condition is not None:
            search = search.where(condition, prefilter=True)
        got = search.limit(limit).select(["vector", "_distance"]).with_row_id(True).to_arrow()
    rows, vectors = now.rows_at(got["_rowid"].to_numpy()), matrix(got["vector"])
    now.verify(rows, vectors)
    return rows, vectors


def _sample(size: int) -> Int[np.ndarray, " s"]:
    return np.sort(np.random.default_rng(0).choice(size, min(SAMPLE, size), replace=False))


def _tenth(now: Snapshot, queries: Float[np.ndarray, "s d"], progress: Progress | None) -> Float[np.ndarray, " s"]:
    """Similarity of the tenth nearest of every query besides itself, by one pass over the file."""
    best = np.full((len(queries), NEAREST + 1), -np.inf)
    seen = 0
    with disk():
        for batch in now.table.search().select(["vector"]).limit(None).to_batches(4096):
            part = matrix(batch["vector"])
            scores = np.concatenate([best, queries @ part.T], axis=1)
            best = -np.partition(-scores, NEAREST, axis=1)[:, : NEAREST + 1]
            seen += len(part)
            if progress is not None:
                progress("comparing a sample with everything", seen, len(now.places))
    own = np.einsum("sd,sd->s", queries, queries)
    eleventh, tenth = -np.sort(-best, axis=1)[:, [NEAREST, NEAREST - 1]].T
    return np.where(own >= eleventh, eleventh, tenth)  # by inner product a vector may not be near itself


@contextmanager
def _ticking(stage: str, progress: Progress | None) -> Iterator[None]:
    """Report seconds while LanceDB, which tells nothing, works."""
    if progress is None:
        yield
        return
    done = Event()
    thread = Thread(target=_tick, args=(stage, progress, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _tick(stage: str, progress: Callable[[str, int, int], None], done: Event) -> None:
    seconds = 0
    while not done.wait(1.0):
        seconds += 1
        progress(stage, seconds, 0)
