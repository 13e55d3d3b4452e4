"""Claims of GNAH."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cl_retrieval.hashing.evaluation import continuous_map, map_both

from cl_bench.arms import Outcome, Result, Statement, compare
from cl_bench.claims.hashing import (
    CODE,
    DIRECTIONS,
    EPOCHS,
    HIDDEN,
    SIZES,
    Trainer,
    baselines,
    both_directions,
    chance,
    condition,
    gnah,
    labelled_pairs,
    sweep,
)

QUERIES = 300
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
OTHERS = ("DJSRH", "CCA-ITQ", "ITQ", "random projection", "random projection, centred")
NOISE, SIGNS = "noise as printed", "binarisation as printed"
STATEMENTS: list[Statement] = [
    *both_directions("beats pairwise contrast by 0.015, 80 pairs", FULL, PAIRWISE, gate=True, margin=0.015),
    *both_directions("prototypes help, 80 pairs", FULL, "without prototypes", gate=True),
    *both_directions("twice as good as without contrast", FULL, "without contrast", gate=True, factor=2.0),
    *both_directions("beats pairwise contrast, 20 pairs", FULL, PAIRWISE, pairs=20, gate=True),
    *both_directions("beats pairwise contrast, 160 pairs", FULL, PAIRWISE, pairs=160, gate=True),
    *both_directions("twice as good as with the noise as printed", FULL, NOISE, gate=True, factor=2.0),
    *both_directions("twice as good as with the binarisation as printed", FULL, SIGNS, gate=True, factor=2.0),
    *both_directions("beats pairwise contrast, 40 pairs", FULL, PAIRWISE, pairs=40),
    *both_directions("beats pairwise contrast, 16 bits", FULL, PAIRWISE, bits=16),
    *both_directions("beats pairwise contrast, 64 bits", FULL, PAIRWISE, bits=64),
    *(each for name in OTHERS for each in both_directions(f"beats {name}, 80 pairs", FULL, name)),
]


def claims(seeds: Sequence[int], data: Path | None, *, epochs: int = EPOCHS, hidden: int = HIDDEN) -> list[Outcome]:
    """The ablations of the paper and baselines, over training pairs and code lengths.

    Args:
        seeds: Seeds of training pairs, weights and draws.
        data: See :func:`cl_bench.claims.hashing.labelled_pairs`.
        epochs: Epochs of everything that is trained.
        hidden: Hidden width of every hash function.
    """
    features = labelled_pairs(data)
    order = np.random.default_rng(42).permutation(len(features))
    count = min(QUERIES, len(order) // 4)
    query, database = order[:count], order[count:]

    def score(train: Trainer, pairs: int, bits: int, seed: int) -> Result:
        rows = database[np.random.default_rng(seed).permutation(len(database))[:pairs]]
        return Result(map_both(train(features.take(rows), bits, seed), features, query, database))

    ablations: dict[str, Trainer] = {name: gnah(epochs, hidden, **options) for name, options in ABLATIONS.items()}
    swept = (FULL, PAIRWISE, *(name for name in OTHERS if name != "DJSRH"))
    table = sweep("gnah", score, ablations | baselines(epochs, hidden), swept, seeds, seeds)
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
    curve = table.curves(tuple(DIRECTIONS), {n: condition(n, CODE) for n in SIZES})
    curves = {"gnah: mAP against training pairs, 32 bits, both directions": curve}
    return compare("gnah", STATEMENTS, table, notes=notes, curves=curves)
