"""Claims of APKH."""

import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cl_retrieval.apkh import (
    APKHConfig,
    Bank,
    ObjectiveSettings,
    PromptOptions,
    ResidualCentres,
    Settings,
    read_bank,
    train_apkh,
)
from cl_retrieval.apkh.attributes import label_overlap
from cl_retrieval.encoders import load_encoder
from cl_retrieval.hashing.codes import Hashes
from cl_retrieval.hashing.data import default_encoder
from cl_retrieval.hashing.evaluation import continuous_map, map_both
from cl_retrieval.hashing.split import divide_classes
from cl_retrieval.pairs import PairFeatures
from contrastive_core.errors import ContrastiveWarning
from torch import Tensor

from cl_bench.arms import Outcome, Result, Statement, compare
from cl_bench.claims.hashing import (
    BITS,
    CODE,
    DIRECTIONS,
    EPOCHS,
    HIDDEN,
    PAIRS,
    SIZES,
    Trainer,
    baselines,
    both_directions,
    condition,
    gnah,
    labelled_pairs,
    sample_encoder,
    sweep,
    training,
)

FEWEST_SPLITS, SWEPT_SPLITS = 5, 3
TEMPLATE = "a picture of something {a}"
FULL, NEIGHBOURHOOD, PAIRWISE, POINTS = "APKH", "neighbourhood on raw features", "pairwise contrast", "without KSCA"
SWEPT = (FULL, NEIGHBOURHOOD, PAIRWISE, "CCA-ITQ")
OTHERS = ("GNAH", "DJSRH", "CCA-ITQ", "ITQ", "random projection", "random projection, centred")
UNSEEN, RAW = "unseen", "attributes beat raw features"
STATEMENTS: list[Statement] = [
    *both_directions(f"{RAW} by 0.015", FULL, NEIGHBOURHOOD, group=UNSEEN, gate=True, margin=0.015),
    *both_directions(
        "neighbourhoods beat pairwise contrast by 0.03", NEIGHBOURHOOD, PAIRWISE, group=UNSEEN, gate=True, margin=0.03
    ),
    *both_directions("APKH is no worse than pairwise contrast", FULL, PAIRWISE, group="seen", gate=True),
    *both_directions("KSCA helps by 0.01", FULL, POINTS, group=UNSEEN, gate=True, margin=0.01),
    *(
        each
        for n in SIZES
        if n != PAIRS
        for each in both_directions(f"{RAW}, {n} pairs", FULL, NEIGHBOURHOOD, group=UNSEEN, pairs=n)
    ),
    *(
        each
        for b in BITS
        if b != CODE
        for each in both_directions(f"{RAW}, {b} bits", FULL, NEIGHBOURHOOD, group=UNSEEN, bits=b)
    ),
    *(each for name in OTHERS for each in both_directions(f"APKH beats {name}", FULL, name, group=UNSEEN)),
]


def claims(seeds: Sequence[int], data: Path | None, *, epochs: int = EPOCHS, hidden: int = HIDDEN) -> list[Outcome]:
    """Unseen and seen classes, ablations and baselines, over training pairs and code lengths.

    Args:
        seeds: Seeds of class divisions, training pairs and weights; at least five are used, from the first on.
        data: See :func:`cl_bench.claims.hashing.labelled_pairs`.
        epochs: Epochs of everything that is trained.
        hidden: Hidden width of every hash function.
    """
    splits = list(seeds) + [max(seeds) + 1 + i for i in range(max(0, FEWEST_SPLITS - len(seeds)))]
    features = labelled_pairs(data)
    own = data is None or (data / "images.zip").is_file()
    encoder = sample_encoder() if own else load_encoder(default_encoder(data or Path(), None))
    bank = read_bank(None, TEMPLATE)
    centres = torch.from_numpy(encoder.encode_texts(bank.prompts()))

    def score(train: Trainer, pairs: int, bits: int, seed: int) -> Result:
        rows, groups = divided(features, pairs, seed)
        hashes = train(features.take(rows), bits, seed)
        return Result(
            {
                f"{group} {direction}": value
                for group, (query, database) in groups.items()
                for direction, value in map_both(hashes, features, query, database).items()
            }
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ContrastiveWarning)  # ablations are meant to look wrong
        trainers = _arms(centres, bank, epochs, hidden) | baselines(epochs, hidden)
        table = sweep("apkh", score, trainers, SWEPT, splits, splits[:SWEPT_SPLITS])
    exact = _exact(features, splits)
    reference = ", ".join(f"{name} {statistics.fmean(values):.3f}" for name, values in exact.items())
    ratio = statistics.fmean(
        code / float_
        for key in (f"{UNSEEN} i2t", f"{UNSEEN} t2i")
        for code, float_ in zip(table.values(key, FULL, condition(PAIRS, CODE)), exact[key], strict=True)
    )
    notes = [
        f"{len(features)} pairs, {len(features.classes)} classes divided {len(splits)} times into unseen and seen "
        "halves; training pairs of seen classes alone; a quarter of each half are queries; "
        f"sweeps over the first {SWEPT_SPLITS} divisions; "
        f"mAP of the features themselves: {reference}",
        f"generalisation ratio of APKH (unseen mAP of 32 bits over that of the features) {ratio:.3f}",
        f"encoder {features.encoder}: a stand-in for CLIP; {len(bank.phrases)} attributes; "
        f"{epochs} epochs, hidden width {hidden}",
        _overlap(bank, features.classes),
    ]
    curve = table.curves([f"{UNSEEN} {direction}" for direction in DIRECTIONS], {n: condition(n, CODE) for n in SIZES})
    curves = {"apkh: mAP on unseen classes against training pairs, 32 bits, both directions": curve}
    return compare("apkh", STATEMENTS, table, notes=notes, curves=curves)


def _exact(features: Any, splits: Sequence[int]) -> dict[str, list[float]]:
    """Mean average precision of the features themselves, a number a division."""
    labels, scores = features.labelled("a claim"), dict[str, list[float]]()
    for seed in splits:
        for group, (query, database) in divided(features, PAIRS, seed)[1].items():
            for direction, a, b in (("i2t", "image", "text"), ("t2i", "text", "image")):
                value = continuous_map(features.of(a)[query], labels[query], features.of(b)[database], labels[database])
                scores.setdefault(f"{group} {direction}", []).append(value)
    return scores


def divided(features: Any, pairs: int, seed: int) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Training rows of seen classes, and queries and database of unseen and of the other seen items."""
    _, seen, unseen = divide_classes(features.labelled("a claim"), seed)
    rng = np.random.default_rng(seed)
    known, unknown = rng.permutation(np.flatnonzero(seen)), rng.permutation(np.flatnonzero(unseen))
    rest = known[max(SIZES) :]  # the same queries and database for every number of training pairs
    groups = {"unseen": unknown, "seen": rest}
    return known[:pairs], {name: (rows[: len(rows) // 4], rows[len(rows) // 4 :]) for name, rows in groups.items()}


def _arms(centres: Tensor, bank: Bank, epochs: int, hidden: int) -> dict[str, Trainer]:
    def apkh(
        learn: bool = True, config: dict[str, Any] | None = None, variance: float = 0.05, **options: Any
    ) -> Trainer:
        def train(pairs: PairFeatures, bits: int, seed: int) -> Hashes:
            settings = Settings(
                PromptOptions(variance=variance),
                APKHConfig(bits=bits, hidden=hidden, **(config or {})),
                ObjectiveSettings(**options),
                training=training(epochs, seed),
            )
            return train_apkh(pairs, settings, centres=ResidualCentres(centres, learn=learn), bank=bank)

        return train

    return {
        FULL: apkh(),
        NEIGHBOURHOOD: gnah(epochs, hidden, variant="no_p"),
        PAIRWISE: gnah(epochs, hidden, variant="pairwise", binarisation_weight=1.0),  # its better weight
        POINTS: apkh(smooth=False),
        "GNAH": gnah(epochs, hidden),
        "frozen attributes": apkh(learn=False),
        "separate heads": apkh(config={"shared": False}),
        "variance 0.1": apkh(variance=0.1),
    }


def _overlap(bank: Bank, classes: Sequence[str]) -> str:
    shared = label_overlap(bank, classes)
    return f"attributes that are names of classes or words of them: {', '.join(shared) or 'none'}"
