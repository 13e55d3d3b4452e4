"""Claims of GNAH."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cl_retrieval.gnah.commands import new_learner
from cl_retrieval.gnah.learner import GNAHSettings
from cl_retrieval.gnah.model import GNAHConfig
from cl_retrieval.hashing.evaluation import continuous_map
from cl_retrieval.hashing.learning import HashModel
from torch import Tensor

from cl_bench.arms import Claim
from cl_bench.claims.hashing import (
    DIRECTIONS,
    EPOCHS,
    HIDDEN,
    Trainer,
    baselines,
    chance,
    labelled_pairs,
    margin_claim,
    progress,
    score,
    summary,
    trained,
)

QUERIES = 300
SIZES, BITS = (20, 40, 80, 160), (16, 32, 64)
FULL, PAIRWISE = "GNAH", "pairwise contrast"
ABLATIONS: dict[str, dict[str, Any]] = {
    FULL: {},
    PAIRWISE: {"variant": "pairwise", "binarisation_weight": 1.0},  # its better weight
    "pairwise contrast, binarisation weight 0.1": {"variant": "pairwise"},
    "without prototypes": {"variant": "no_p"},
    "without contrast": {"variant": "no_c"},
    "anchors not binarised": {"variant": "relaxed_anchor"},
    "anchors projected": {"variant": "projected_anchor"},
    "binarisation weight 1, as in the paper": {"binarisation_weight": 1.0},
    "noise as printed": {"noise": "per_coordinate"},
    "binarisation as printed": {"reference": "pm1", "binarisation_weight": 1.0},
}
Scores = dict[str, list[float]]


def claims(seeds: Sequence[int], data: Path | None, *, epochs: int = EPOCHS, hidden: int = HIDDEN) -> list[Claim]:
    """The ablations of the paper and baselines, over training pairs and code lengths.

    Args:
        seeds: Seeds of training pairs, weights and draws.
        data: See :func:`cl_bench.claims.hashing.labelled_pairs`.
        epochs: Epochs of everything that is trained.
        hidden: Hidden width of every hash function.
    """
    started = time.perf_counter()
    features = labelled_pairs(data)
    order = np.random.default_rng(42).permutation(len(features))
    count = min(QUERIES, len(order) // 4)
    query, database = order[:count], order[count:]
    arms: dict[str, Trainer] = {name: _gnah(epochs, hidden, options) for name, options in ABLATIONS.items()}
    others = baselines(epochs, hidden)
    table: dict[tuple[Any, ...], Scores] = {}

    def measure(name: str, train: Trainer, pairs: int, bits: int) -> None:
        found: Scores = {direction: [] for direction in DIRECTIONS}
        for seed in seeds:
            rows = database[np.random.default_rng(seed).permutation(len(database))[:pairs]]
            for direction, value in score(train, features, rows, query, database, bits, seed).items():
                found[direction].append(value)
        table[pairs, bits, name] = found
        progress((pairs, bits, name), found)

    for name, train in {**arms, **others}.items():
        measure(name, train, 80, 32)
    swept = {**{name: arms[name] for name in (FULL, PAIRWISE)}, **{n: t for n, t in others.items() if n != "DJSRH"}}
    for pairs, bits in [*((n, 32) for n in SIZES if n != 80), *((80, b) for b in BITS if b != 32)]:
        for name, train in swept.items():
            measure(name, train, pairs, bits)

    labels = features.labelled("a claim")
    exact = {
        d: continuous_map(features.of(a)[query], labels[query], features.of(b)[database], labels[database])
        for d, a, b in (("i2t", "image", "text"), ("t2i", "text", "image"))
    }
    notes = [
        f"{len(features)} pairs, {labels.shape[1]} classes, {count} queries; "
        f"chance {chance(features, query, database):.3f}; "
        f"mAP of the features themselves {exact['i2t']:.3f} (image to text), {exact['t2i']:.3f} (text to image)",
        f"encoder {features.encoder}: a stand-in for CLIP; {epochs} epochs, hidden width {hidden}, "
        "mAP over the whole ranking",
    ]
    seconds = time.perf_counter() - started

    def at(pairs: int, bits: int, direction: str) -> Scores:
        return {name: found[direction] for (n, b, name), found in table.items() if (n, b) == (pairs, bits)}

    def pair(
        statement: str,
        better: str,
        baseline: str,
        *,
        pairs: int = 80,
        bits: int = 32,
        gate: bool = False,
        margin: float = 0.0,
        factor: float = 1.0,
    ) -> list[Claim]:
        return [
            margin_claim(
                f"gnah: {statement}, {text}",
                statement,
                at(pairs, bits, direction),
                better,
                baseline,
                margin=margin,
                factor=factor,
                gate=gate,
                notes=notes,
                seconds=seconds,
            )
            for direction, text in DIRECTIONS.items()
        ]

    found = [
        *pair("beats pairwise contrast by 0.015, 80 pairs", FULL, PAIRWISE, gate=True, margin=0.015),
        *pair("prototypes help, 80 pairs", FULL, "without prototypes", gate=True),
        *pair("twice as good as without contrast", FULL, "without contrast", gate=True, factor=2.0),
        *pair("beats pairwise contrast, 20 pairs", FULL, PAIRWISE, pairs=20, gate=True),
        *pair("beats pairwise contrast, 160 pairs", FULL, PAIRWISE, pairs=160, gate=True),
        *pair("twice as good as with the noise as printed", FULL, "noise as printed", gate=True, factor=2.0),
        *pair(
            "twice as good as with the binarisation as printed", FULL, "binarisation as printed", gate=True, factor=2.0
        ),
        *pair("beats pairwise contrast, 40 pairs", FULL, PAIRWISE, pairs=40, gate=False),
        *pair("beats pairwise contrast, 16 bits", FULL, PAIRWISE, bits=16, gate=False),
        *pair("beats pairwise contrast, 64 bits", FULL, PAIRWISE, bits=64, gate=False),
        *(each for name in others for each in pair(f"beats {name}, 80 pairs", FULL, name, gate=False)),
    ]
    return [_with_tables(found[0], table), *found[1:]]


def _gnah(epochs: int, hidden: int, options: dict[str, Any]) -> Trainer:
    def train(fx: Tensor, fy: Tensor, bits: int, seed: int) -> HashModel:
        config = GNAHConfig(bits=bits, hidden=hidden)
        learner = new_learner(fx, fy, config, GNAHSettings(**options), epochs=epochs, seed=seed)
        return trained(learner, fx, fy, seed, epochs)

    return train


def _with_tables(claim: Claim, table: dict[tuple[Any, ...], Scores]) -> Claim:
    """The claim with all numbers, and mAP against the number of training pairs."""
    import dataclasses
    import statistics

    lines = {}
    for name in dict.fromkeys(name for _, _, name in table):
        sizes = [n for n in SIZES if (n, 32, name) in table]
        if len(sizes) > 1:
            means = [statistics.fmean([*table[n, 32, name]["i2t"], *table[n, 32, name]["t2i"]]) for n in sizes]
            lines[name] = (sizes, means)
    return dataclasses.replace(
        claim,
        details={"mAP of all arms": summary(table, ("pairs", "bits", "arm"))},
        curves={"gnah: mAP against training pairs, 32 bits, both directions": lines},
    )
