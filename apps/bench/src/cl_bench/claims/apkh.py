"""Claims of APKH."""

import dataclasses
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cl_retrieval.apkh.attributes import Bank, read_bank
from cl_retrieval.apkh.commands import new_learner
from cl_retrieval.apkh.learner import APKHSettings
from cl_retrieval.apkh.model import APKHConfig
from cl_retrieval.apkh.prompts import ResidualCentres
from cl_retrieval.encoders import load_encoder
from cl_retrieval.gnah.commands import new_learner as new_gnah_learner
from cl_retrieval.gnah.learner import GNAHSettings
from cl_retrieval.gnah.model import GNAHConfig
from cl_retrieval.hasher import default_encoder
from cl_retrieval.hashing.evaluation import continuous_map, map_both
from cl_retrieval.hashing.learning import HashModel
from cl_retrieval.hashing.split import divide_classes
from contrastive_core.errors import ContrastiveWarning
from torch import Tensor

from cl_bench.arms import Claim
from cl_bench.claims.hashing import (
    DIRECTIONS,
    EPOCHS,
    HIDDEN,
    Trainer,
    baselines,
    fit,
    labelled_pairs,
    margin_claim,
    progress,
    sample_encoder,
    summary,
    trained,
)

SIZES, BITS, FEWEST_SPLITS, SWEPT_SPLITS = (20, 40, 80, 160), (16, 32, 64), 5, 3
TEMPLATE = "a picture of something {a}"
FULL, NEIGHBOURHOOD, PAIRWISE, POINTS = "APKH", "neighbourhood on raw features", "pairwise contrast", "without KSCA"
SWEPT = (FULL, NEIGHBOURHOOD, PAIRWISE)
Scores = dict[str, list[float]]


def claims(seeds: Sequence[int], data: Path | None, *, epochs: int = EPOCHS, hidden: int = HIDDEN) -> list[Claim]:
    """Unseen and seen classes, ablations and baselines, over training pairs and code lengths.

    Args:
        seeds: Seeds of class divisions, training pairs and weights; at least five are used, from the first on.
        data: See :func:`cl_bench.claims.hashing.labelled_pairs`.
        epochs: Epochs of everything that is trained.
        hidden: Hidden width of every hash function.
    """
    started = time.perf_counter()
    splits = list(seeds) + [max(seeds) + 1 + i for i in range(max(0, FEWEST_SPLITS - len(seeds)))]
    features = labelled_pairs(data)
    own = data is None or (data / "images.zip").is_file()
    encoder = sample_encoder() if own else load_encoder(default_encoder(data or Path(), None))
    bank = read_bank(None, TEMPLATE)
    centres = torch.from_numpy(encoder.encode_texts(bank.prompts()))
    arms, others = _arms(centres, epochs, hidden), baselines(epochs, hidden)
    table: dict[tuple[Any, ...], Scores] = {}
    exact: Scores = {}

    def measure(name: str, train: Trainer, pairs: int, bits: int, among: Sequence[int]) -> None:
        found: Scores = {f"{group} {direction}": [] for group in ("unseen", "seen") for direction in DIRECTIONS}
        for seed in among:
            rows, groups = divided(features, pairs, seed)
            model = fit(train, features, rows, bits, seed)
            for group, (query, database) in groups.items():
                for direction, value in map_both(model, features, query, database).items():
                    found[f"{group} {direction}"].append(value)
        table[pairs, bits, name] = found
        progress((pairs, bits, name), found)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ContrastiveWarning)  # ablations are meant to look wrong
        for name, train in {**arms, **others}.items():
            measure(name, train, 80, 32, splits)
        swept = {**{name: arms[name] for name in SWEPT}, "CCA-ITQ": others["CCA-ITQ"]}
        for pairs, bits in [*((n, 32) for n in SIZES if n != 80), *((80, b) for b in BITS if b != 32)]:
            for name, train in swept.items():
                measure(name, train, pairs, bits, splits[:SWEPT_SPLITS])
    labels = features.labelled("a claim")
    for seed in splits:
        for group, (query, database) in divided(features, 80, seed)[1].items():
            for direction, a, b in (("i2t", "image", "text"), ("t2i", "text", "image")):
                value = continuous_map(features.of(a)[query], labels[query], features.of(b)[database], labels[database])
                exact.setdefault(f"{group} {direction}", []).append(value)
    reference = ", ".join(f"{name} {statistics.fmean(values):.3f}" for name, values in exact.items())
    ratio = statistics.fmean(
        code / float_
        for key in ("unseen i2t", "unseen t2i")
        for code, float_ in zip(table[80, 32, FULL][key], exact[key], strict=True)
    )
    notes = [
        f"{len(features)} pairs, {labels.shape[1]} classes divided {len(splits)} times into unseen and seen halves; "
        "training pairs of seen classes alone; a quarter of each half are queries; "
        f"sweeps over the first {SWEPT_SPLITS} divisions; "
        f"mAP of the features themselves: {reference}",
        f"generalisation ratio of APKH (unseen mAP of 32 bits over that of the features) {ratio:.3f}",
        f"encoder {features.encoder}: a stand-in for CLIP; {len(bank.phrases)} attributes; "
        f"{epochs} epochs, hidden width {hidden}",
        _overlap(bank, features.classes),
    ]
    seconds = time.perf_counter() - started

    def pair(
        statement: str,
        better: str,
        baseline: str,
        *,
        group: str = "unseen",
        pairs: int = 80,
        bits: int = 32,
        gate: bool = False,
        margin: float = 0.0,
    ) -> list[Claim]:
        scores = {
            d: {name: found[f"{group} {d}"] for (n, b, name), found in table.items() if (n, b) == (pairs, bits)}
            for d in DIRECTIONS
        }
        return [
            margin_claim(
                f"apkh: {group}, {statement}, {text}",
                statement,
                scores[d],
                better,
                baseline,
                margin=margin,
                gate=gate,
                notes=notes,
                seconds=seconds,
            )
            for d, text in DIRECTIONS.items()
        ]

    raw = "attributes beat raw features"
    others_shown = ("GNAH", *others)
    found = [
        *pair(f"{raw} by 0.015", FULL, NEIGHBOURHOOD, gate=True, margin=0.015),
        *pair("neighbourhoods beat pairwise contrast by 0.03", NEIGHBOURHOOD, PAIRWISE, gate=True, margin=0.03),
        *pair("APKH is no worse than pairwise contrast", FULL, PAIRWISE, group="seen", gate=True),
        *pair("KSCA helps by 0.01", FULL, POINTS, gate=True, margin=0.01),
        *(each for n in SIZES if n != 80 for each in pair(f"{raw}, {n} pairs", FULL, NEIGHBOURHOOD, pairs=n)),
        *(each for b in BITS if b != 32 for each in pair(f"{raw}, {b} bits", FULL, NEIGHBOURHOOD, bits=b)),
        *(each for name in others_shown for each in pair(f"APKH beats {name}", FULL, name)),
    ]
    lines = {}
    for name in swept:
        both = [[*table[n, 32, name]["unseen i2t"], *table[n, 32, name]["unseen t2i"]] for n in SIZES]
        lines[name] = (list(SIZES), [statistics.fmean(values) for values in both])
    first = dataclasses.replace(
        found[0],
        details={"mAP of all arms": summary(table, ("pairs", "bits", "arm"))},
        curves={"apkh: mAP on unseen classes against training pairs, 32 bits, both directions": lines},
    )
    return [first, *found[1:]]


def divided(features: Any, pairs: int, seed: int) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Training rows of seen classes, and queries and database of unseen and of the other seen items."""
    _, seen, unseen = divide_classes(features.labelled("a claim"), seed)
    rng = np.random.default_rng(seed)
    known, unknown = rng.permutation(np.flatnonzero(seen)), rng.permutation(np.flatnonzero(unseen))
    rest = known[max(SIZES) :]  # the same queries and database for every number of training pairs
    groups = {"unseen": unknown, "seen": rest}
    return known[:pairs], {name: (rows[: len(rows) // 4], rows[len(rows) // 4 :]) for name, rows in groups.items()}


def _arms(centres: Tensor, epochs: int, hidden: int) -> dict[str, Trainer]:
    def apkh(
        learn: bool = True, config: dict[str, Any] | None = None, variance: float = 0.05, **options: Any
    ) -> Trainer:
        def train(fx: Tensor, fy: Tensor, bits: int, seed: int) -> HashModel:
            learner = new_learner(
                fx,
                fy,
                ResidualCentres(centres, learn=learn),
                APKHConfig(bits=bits, hidden=hidden, **(config or {})),
                APKHSettings(**options),
                variance=variance,
                seed=seed,
            )
            return trained(learner, fx, fy, seed, epochs)

        return train

    def gnah(**options: Any) -> Trainer:
        def train(fx: Tensor, fy: Tensor, bits: int, seed: int) -> HashModel:
            config = GNAHConfig(bits=bits, hidden=hidden)
            learner = new_gnah_learner(fx, fy, config, GNAHSettings(**options), epochs=epochs, seed=seed)
            return trained(learner, fx, fy, seed, epochs)

        return train

    return {
        FULL: apkh(),
        NEIGHBOURHOOD: gnah(variant="no_p"),
        PAIRWISE: gnah(variant="pairwise", binarisation_weight=1.0),  # its better weight
        POINTS: apkh(smooth=False),
        "GNAH": gnah(),
        "frozen attributes": apkh(learn=False),
        "separate heads": apkh(config={"shared": False}),
        "variance 0.1": apkh(variance=0.1),
    }


def _overlap(bank: Bank, classes: Sequence[str]) -> str:
    from cl_retrieval.apkh.attributes import label_overlap

    shared = label_overlap(bank, classes)
    return f"attributes that are names of classes or words of them: {', '.join(shared) or 'none'}"
