"""Speed of retrieval evaluation."""

import dataclasses

import numpy as np
import torch
from contrastive_core.evaluation import RetrievalRanking, hamming_distances
from torchmetrics.retrieval import RetrievalMAP

from cl_bench.measures import Speed, race

BYTES, CLASSES = 8, 10


def speed(rounds: int) -> list[Speed]:
    """Mean average precision of whole rankings of packed codes, from raw codes to the number.

    Both sides start from the same packed codes and labels and compute their own distances (the peer's with our
    :func:`hamming_distances`). The peer runs on a few of the queries, as it keeps every score of every query; its
    seconds are scaled to all of them, its memory is not.

    Args:
        rounds: Timed rounds of each contestant; at most two of the large gallery.
    """
    return [
        _race(2000, 100_000, 10, ("map",), rounds),
        _race(1000, 1_000_000, 2, ("map", "precision@100"), min(rounds, 2)),
    ]


def _race(queries: int, size: int, subset: int, measures: tuple[str, ...], rounds: int) -> Speed:
    draw = np.random.default_rng(0)
    gallery = draw.integers(0, 256, (size, BYTES), dtype=np.uint8)
    asked = draw.integers(0, 256, (queries, BYTES), dtype=np.uint8)
    classes, labels = draw.integers(0, CLASSES, size), draw.integers(0, CLASSES, queries)

    def ours() -> float:
        ranking = RetrievalRanking(gallery, classes, measures=measures)
        ranking.update(asked, labels)
        return ranking.compute()["map"]

    def theirs() -> float:
        metric = RetrievalMAP()
        distance = torch.from_numpy(hamming_distances(asked[:subset], gallery))
        # It takes scores of 0 and below for items that are not relevant.
        score = (8 * BYTES + 1 - distance.float()).flatten()
        relevant = torch.from_numpy(labels[:subset, None] == classes).flatten()
        metric.update(score, relevant, indexes=torch.arange(subset).repeat_interleave(size))
        return float(metric.compute())

    measured = race(
        f"core: streaming {' and '.join(measures)}, {queries:,} queries x {size:,} codes x {8 * BYTES} bit",
        ours,
        theirs,
        peer="torchmetrics RetrievalMAP",
        rounds=rounds,
        notes=f"full rankings, ties by index; the peer on {subset} queries, its time scaled by {queries // subset}",
    )
    return dataclasses.replace(measured, theirs=[seconds * queries / subset for seconds in measured.theirs])
