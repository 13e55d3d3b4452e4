"""What the claims of GNAH and APKH share: real drawings with names, arms, scores, and the dense contrast."""

import functools
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cl_retrieval.encoders import load_encoder
from cl_retrieval.gnah import GNAHConfig, ObjectiveSettings, Settings, train_gnah
from cl_retrieval.hashing.baselines import DJSRHSettings, LinearHash, cca_itq, itq, random_projection, train_djsrh
from cl_retrieval.hashing.codes import Hashes
from cl_retrieval.hashing.data import default_encoder
from cl_retrieval.pairs.checks import one_hot
from cl_retrieval.pairs.embedding import embed_pairs
from cl_retrieval.pairs.emoji import openmoji
from cl_retrieval.pairs.features import PairFeatures
from cl_retrieval.pairs.raw import open_image, read_pairs
from cl_retrieval.pairs.samples import fit_sample_encoder
from contrastive_core.data import safe_extract
from contrastive_core.errors import InputError
from contrastive_core.files import read_csv
from contrastive_core.training import TrainSettings

from cl_bench.arms import Result, Statement, Table, measure

EPOCHS, HIDDEN = 500, 512
PAIRS, SIZES = 80, (20, 40, 80, 160)
CODE, BITS = 32, (16, 32, 64)
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}
Trainer = Callable[[PairFeatures, int, int], Hashes]
"""Training pairs, bits and seed to hash functions."""


@functools.cache
def sample_encoder() -> Any:
    """The stand-in encoder, fitted on Twemoji; once a process."""
    return fit_sample_encoder()


def labelled_pairs(data: Path | None) -> PairFeatures:
    """Pairs to measure on, with their classes.

    Args:
        data: Folder of ``captions.csv`` and ``images.zip`` (Noto emoji; the stand-in encodes them), or of pairs as
            ``prepare`` reads them, with an ``encoder`` beside them; OpenMoji's drawings when absent.
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
    table = read_csv(data / "captions.csv", required=("group", "subgroup", "hexcode", "label_en", "tags_en"))
    rows = [row for _, row in table if row["group"] not in ("flags", "component")]
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


def training(epochs: int, seed: int) -> TrainSettings:
    """Length and seed of everything that is trained."""
    return TrainSettings(epochs=epochs, seed=seed, progress=False, accelerator="cpu")


def gnah(epochs: int, hidden: int, **options: Any) -> Trainer:
    """GNAH, or one of its variants."""

    def train(pairs: PairFeatures, bits: int, seed: int) -> Hashes:
        model, objective = GNAHConfig(bits=bits, hidden=hidden), ObjectiveSettings(**options)
        return train_gnah(pairs, Settings(model, objective, training=training(epochs, seed)))

    return train


def baselines(epochs: int, hidden: int) -> dict[str, Trainer]:
    """Baselines under the same pairs, bits, epochs and width."""
    random = partial(linear, random_projection)
    return {
        "DJSRH": lambda pairs, bits, seed: train_djsrh(
            pairs, bits, DJSRHSettings(hidden=hidden), training=training(epochs, seed)
        ),
        "CCA-ITQ": partial(linear, cca_itq),
        "ITQ": partial(linear, itq),
        "random projection": partial(random, centre=False),
        "random projection, centred": partial(random, centre=True),
    }


def linear(make: Callable[..., LinearHash], pairs: PairFeatures, bits: int, seed: int, **options: Any) -> LinearHash:
    """A baseline without gradient steps."""
    return make(pairs.image, pairs.text, bits, seed=seed, **options)


def chance(features: PairFeatures, query: np.ndarray, database: np.ndarray) -> float:
    """Share of relevant items, the mAP of a random order up to small-sample effects."""
    labels = features.labelled("chance").astype(np.int32)
    return float((labels[query] @ labels[database].T > 0).mean())


def condition(pairs: int, bits: int) -> str:
    """What a number of training pairs and a code length are called."""
    return f"{pairs} pairs, {bits} bits"


def sweep(
    method: str,
    score: Callable[[Trainer, int, int, int], Result],
    trainers: Mapping[str, Trainer],
    swept: Collection[str],
    seeds: Sequence[int],
    swept_seeds: Sequence[int],
) -> Table:
    """All arms with 80 pairs and 32 bits, and some of them over the other numbers of pairs and code lengths.

    Args:
        method: Method, as it is called in the progress.
        score: Result of a trainer, training pairs, bits and seed.
        trainers: Trainer of each arm.
        swept: Arms that are measured over all sizes.
        seeds: Seeds with 80 pairs and 32 bits.
        swept_seeds: Seeds of the others.
    """
    table = Table((), 0.0)
    for pairs, bits in [
        (PAIRS, CODE),
        *((n, CODE) for n in SIZES if n != PAIRS),
        *((PAIRS, b) for b in BITS if b != CODE),
    ]:
        first = (pairs, bits) == (PAIRS, CODE)
        arms = {name: partial(score, train, pairs, bits) for name, train in trainers.items() if first or name in swept}
        table += measure(method, arms, seeds if first else swept_seeds, condition=condition(pairs, bits))
    return table


def both_directions(
    statement: str,
    better: str,
    baseline: str,
    *,
    group: str = "",
    pairs: int = PAIRS,
    bits: int = CODE,
    margin: float = 0.0,
    factor: float = 1.0,
    gate: bool = False,
) -> list[Statement]:
    """A statement on the mean average precision from image to text, and the same one from text to image.

    Args:
        statement: What is claimed.
        better: Arm that should be better.
        baseline: Arm it is compared with.
        group: Items it is measured on, the beginning of the metric's name.
        pairs: Training pairs.
        bits: Code length.
        margin: By how much it should be better.
        factor: Multiple of the baseline that counts.
        gate: Whether the method stands on it.
    """
    return [
        Statement(
            f"{group}, {statement}, {text}" if group else f"{statement}, {text}",
            f"{group} {direction}" if group else direction,
            better,
            baseline,
            margin,
            factor,
            gate=gate,
            condition=condition(pairs, bits),
        )
        for direction, text in DIRECTIONS.items()
    ]
