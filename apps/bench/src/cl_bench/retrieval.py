"""Speed of retrieval evaluation."""

import dataclasses

import numpy as np
import torch
from contrastive_core.evaluation import RetrievalRanking, hamming_distances
from torchmetrics.retrieval import RetrievalMAP

from cl_bench.results import Speed, race

QUERIES, GALLERY, BYTES, CLASSES = 2000, 100_000, 8, 10
SUBSET = 10
"""Queries the peer is given: it keeps every score of every query, 2,000 of them would need 3.2 GB before it starts."""


def speed(rounds: int) -> list[Speed]:
    """Mean average precision of whole rankings of packed codes, from raw codes to the number.

    Both sides start from the same packed codes and labels and compute their own distances (the peer's with our
    :func:`hamming_distances`). The peer runs on a subset of the queries; its seconds are scaled to all of them, its
    memory is not.

    Args:
        rounds: Timed rounds of each contestant.
    """
    draw = np.random.default_rng(0)
    gallery = draw.integers(0, 256, (GALLERY, BYTES), dtype=np.uint8)
    queries = draw.integers(0, 256, (QUERIES, BYTES), dtype=np.uint8)
    classes, labels = draw.integers(0, CLASSES, GALLERY), draw.integers(0, CLASSES, QUERIES)

    def ours() -> float:
        ranking = RetrievalRanking(gallery, classes, measures=("map",))
        ranking.update(queries, labels)
        return ranking.compute()["map"]

    def theirs() -> float:
        metric = RetrievalMAP()
        distance = torch.from_numpy(hamming_distances(queries[:SUBSET], gallery))
        # It takes scores of 0 and below for items that are not relevant.
        score = (8 * BYTES + 1 - distance.float()).flatten()
        relevant = torch.from_numpy(labels[:SUBSET, None] == classes).flatten()
        metric.update(score, relevant, indexes=torch.arange(SUBSET).repeat_interleave(GALLERY))
        return float(metric.compute())

    measured = race(
        f"core: streaming mAP, {QUERIES:,} queries x {GALLERY:,} codes x {8 * BYTES} bit",
        ours,
        theirs,
        peer="torchmetrics RetrievalMAP",
        rounds=rounds,
        notes=f"full rankings, ties by index; the peer on {SUBSET} queries, its time scaled by {QUERIES // SUBSET}",
    )
    scaled = [seconds * QUERIES / SUBSET for seconds in measured.theirs]
    return [dataclasses.replace(measured, theirs=scaled)]
