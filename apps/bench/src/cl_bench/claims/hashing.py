"""What the claims of GNAH and APKH share: real drawings with names, arms, scores, and the dense contrast."""

import csv
import functools
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cl_retrieval.encoders import load_encoder
from cl_retrieval.hasher import default_encoder
from cl_retrieval.hashing.baselines import DJSRH, DJSRHLearner, DJSRHSettings, cca_itq, itq, random_projection
from cl_retrieval.hashing.evaluation import map_both
from cl_retrieval.hashing.learning import HashModel, Learner, optimise
from cl_retrieval.pairs.embedding import embed_pairs
from cl_retrieval.pairs.emoji import openmoji
from cl_retrieval.pairs.features import PairFeatures, one_hot
from cl_retrieval.pairs.raw import open_image, read_pairs
from cl_retrieval.pairs.samples import fit_sample_encoder
from contrastive_core.data import safe_extract
from contrastive_core.errors import InputError
from torch import Tensor

from cl_bench.arms import Claim

EPOCHS, HIDDEN = 500, 512
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}
Trainer = Callable[[Tensor, Tensor, int, int], HashModel]
"""Image features, text features, bits and seed to a model."""


@functools.cache
def sample_encoder() -> Any:
    """The stand-in encoder, fitted on Twemoji; once a process."""
    return fit_sample_encoder()


def labelled_pairs(data: Path | None) -> PairFeatures:
    """Pairs to measure on, with their classes.

    Args:
        data: Folder of ``captions.csv`` and ``images.zip`` (Noto emoji; the stand-in encodes them), or of pairs as
            ``encode-features`` reads them, with an ``encoder`` beside them; OpenMoji's drawings when absent.
    """
    if data is None:
        return _openmoji()
    if (data / "images.zip").is_file():
        return _noto(data)
    pairs = read_pairs(data)
    encoder = load_encoder(default_encoder(data, None))
    with tempfile.TemporaryDirectory() as parts:
        features, _ = embed_pairs(pairs, encoder, parts=Path(parts))
    features.labelled("a claim")
    return features


@functools.cache
def _openmoji() -> PairFeatures:
    drawings, encoder = openmoji(), sample_encoder()
    labels, classes = one_hot(np.array([each.label for each in drawings]))
    return PairFeatures(
        tuple(each.id for each in drawings),
        encoder.encode_images([each.image() for each in drawings]),
        encoder.encode_texts([each.text for each in drawings]),
        labels,
        classes,
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
    )


def _noto(data: Path) -> PairFeatures:
    with (data / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["group"] not in ("flags", "component")]
    sizes = {name: sum(row["subgroup"] == name for row in rows) for name in {row["subgroup"] for row in rows}}
    rows = [row for row in rows if sizes[row["subgroup"]] >= 15]
    if not rows:
        raise InputError("the table has no class of fifteen pictures", where=data / "captions.csv")
    encoder = sample_encoder()
    with tempfile.TemporaryDirectory() as folder:
        safe_extract(data / "images.zip", Path(folder))
        images = encoder.encode_images([open_image(Path(folder) / "png48" / f"{row['hexcode']}.png") for row in rows])
    texts = [f"{row['label_en']}. {row['tags_en'].replace('|', ', ')}" for row in rows]
    labels, classes = one_hot(np.array([row["subgroup"] for row in rows]))
    return PairFeatures(
        tuple(row["hexcode"] for row in rows),
        images,
        encoder.encode_texts(texts),
        labels,
        classes,
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
    )


def trained(learner: Learner, fx: Tensor, fy: Tensor, seed: int, epochs: int) -> Any:
    """The learner's model after training."""
    optimise(learner, fx, fy, epochs=epochs, seed=seed)
    return learner.model


def baselines(epochs: int, hidden: int) -> dict[str, Trainer]:
    """Baselines under the same pairs, bits, epochs and width."""

    def djsrh(fx: Tensor, fy: Tensor, bits: int, seed: int) -> HashModel:
        torch.manual_seed(seed)
        learner = DJSRHLearner(DJSRH(fx.shape[1], bits, hidden=hidden), DJSRHSettings())
        return trained(learner, fx, fy, seed, epochs)

    return {
        "DJSRH": djsrh,
        "CCA-ITQ": lambda fx, fy, bits, seed: cca_itq(fx.numpy(), fy.numpy(), bits, seed=seed),
        "ITQ": lambda fx, fy, bits, seed: itq(fx.numpy(), fy.numpy(), bits, seed=seed),
        "random projection": lambda fx, fy, bits, seed: random_projection(
            fx.numpy(), fy.numpy(), bits, centre=False, seed=seed
        ),
        "random projection, centred": lambda fx, fy, bits, seed: random_projection(
            fx.numpy(), fy.numpy(), bits, centre=True, seed=seed
        ),
    }


def score(
    train: Trainer,
    features: PairFeatures,
    rows: np.ndarray,
    query: np.ndarray,
    database: np.ndarray,
    bits: int,
    seed: int,
) -> dict[str, float]:
    """MAP of both directions after training on some rows."""
    return map_both(fit(train, features, rows, bits, seed), features, query, database)


def fit(train: Trainer, features: PairFeatures, rows: np.ndarray, bits: int, seed: int) -> HashModel:
    """A model trained on some rows."""
    fx, fy = (torch.from_numpy(features.of(m)[rows]) for m in ("image", "text"))
    return train(fx, fy, bits, seed)


def progress(key: tuple[Any, ...], found: dict[str, list[float]]) -> None:
    """One line an arm on standard error: a claim takes minutes."""
    means = ", ".join(f"{name} {statistics.fmean(values):.4f}" for name, values in found.items())
    print(f"{key[2]}, {key[0]} pairs, {key[1]} bits: {means}", file=sys.stderr, flush=True)


def chance(features: PairFeatures, query: np.ndarray, database: np.ndarray) -> float:
    """Share of relevant items, the mAP of a random order up to small-sample effects."""
    labels = features.labelled("chance").astype(np.int32)
    return float((labels[query] @ labels[database].T > 0).mean())


def margin_claim(
    name: str,
    statement: str,
    scores: dict[str, list[float]],
    better: str,
    baseline: str,
    *,
    margin: float = 0.0,
    factor: float = 1.0,
    gate: bool,
    notes: Sequence[str],
    seconds: float,
    details: dict[str, list[dict[str, Any]]] | None = None,
    curves: Any = None,
) -> Claim:
    """A claim that one arm exceeds another's ``factor`` times its score plus ``margin``."""
    shown = {arm: scores[arm] for arm in (better, baseline)}
    against = baseline
    if margin or factor != 1.0:
        times = "" if factor == 1.0 else f"{factor:g} × "
        against = f"{times}{baseline}" + (f" + {margin:g}" if margin else "")
        shown[against] = [factor * value + margin for value in scores[baseline]]
    return Claim(name, statement, shown, better, against, gate, details or {}, notes, seconds, curves or {})


def summary(table: dict[tuple[Any, ...], dict[str, list[float]]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of means and spreads: one a key, two columns a measure."""
    rows = []
    for key, measures in table.items():
        row: dict[str, Any] = dict(zip(names, key, strict=True))
        for measure, values in measures.items():
            row[measure] = statistics.fmean(values)
            row[f"{measure} ±"] = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
    return rows
