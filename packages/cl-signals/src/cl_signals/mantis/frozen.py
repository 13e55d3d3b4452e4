"""The frozen protocol: embed, fit a simple classifier on the training part, judge it on the test part."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from contrastive_core.evaluation import ProbeKind, ProbeResult, probe
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
from jaxtyping import Float
from torch.utils.data import TensorDataset

from cl_signals.mantis.data import SeriesSet, class_names, encode_labels, to_batch
from cl_signals.mantis.embed import Precision, embed
from cl_signals.mantis.model import Mantis, Token
from cl_signals.mantis.system import OptimSettings, PretrainSystem, ViewSettings


@dataclasses.dataclass(frozen=True)
class Readout:
    """Which view of the encoder becomes the embedding.

    Attributes:
        layer: Encoder layer, -1 for the last.
        token: ``cls``, ``mean`` or ``combined``.
        sizes: Lengths the series are resized to; several are concatenated.
        precision: ``float32``, or ``bf16`` for the transformer.
    """

    layer: int = -1
    token: Token = "combined"
    sizes: tuple[int, ...] = (512,)
    precision: Precision = "float32"


def embed_set(model: Mantis, series: SeriesSet, readout: Readout) -> Float[np.ndarray, "n d"]:
    """Embeddings of a set, the channels of a series side by side."""
    # A set is resized once to the largest size; from its own lengths, so that no information is lost on the way.
    parts = [
        embed(
            model,
            to_batch(series, size),
            layer=readout.layer,
            token=readout.token,
            sizes=(size,),
            precision=readout.precision,
        ).reshape(len(series), -1)
        for size in readout.sizes
    ]
    return np.concatenate(parts, 1)


def fuse(blocks: Sequence[Float[np.ndarray, "n _"]], *, normalise: bool = True) -> Float[np.ndarray, "n d"]:
    """Concatenate the embeddings of several models (cross-model fusion of the MantisV2 report).

    Args:
        blocks: One array a model, the same series in the same order.
        normalise: Bring every block's rows to unit norm first, so that no model outweighs another.

    Raises:
        ValueError: The blocks do not hold the same number of series.

    Example:
        >>> import numpy as np
        >>> fuse([np.array([[3.0, 4.0]]), np.array([[2.0]])])
        array([[0.6, 0.8, 1. ]])
    """
    if len({len(block) for block in blocks}) != 1:
        raise ValueError(f"expected blocks of the same series, got {[len(block) for block in blocks]} rows")
    if normalise:
        blocks = [block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12) for block in blocks]
    return np.concatenate(blocks, 1)


def embed_fused(models: Sequence[Mantis], series: SeriesSet, readout: Readout) -> Float[np.ndarray, "n d"]:
    """Embeddings of a set by one model, or by several with :func:`fuse`."""
    blocks = [embed_set(model, series, readout) for model in models]
    return blocks[0] if len(blocks) == 1 else fuse(blocks)


def frozen_probes(
    model: Mantis | Sequence[Mantis],
    train: SeriesSet,
    test: SeriesSet,
    *,
    readout: Readout,
    kinds: Sequence[ProbeKind] = ("rf", "logreg", "1nn"),
    seed: int = 0,
    jobs: int = 1,
) -> dict[ProbeKind, ProbeResult]:
    """Test results of simple classifiers on frozen embeddings.

    Args:
        model: The encoder, or several whose embeddings are fused.
        train: Labelled training part.
        test: Labelled test part.
        readout: What is taken as embedding.
        kinds: Probes.
        seed: Seed of the probes.
        jobs: Processor cores the forest uses; the result does not depend on them.
    """
    y, y_test = _labels(train, test)
    models = [model] if isinstance(model, Mantis) else model
    z, z_test = (embed_fused(models, part, readout) for part in (train, test))
    return {kind: probe(z, y, z_test, y_test, kind=kind, seed=seed, jobs=jobs) for kind in kinds}


def euclidean_1nn(train: SeriesSet, test: SeriesSet, length: int = 512) -> float:
    """Test accuracy of the nearest neighbour by Euclidean distance between z-scored series."""
    y, y_test = _labels(train, test)
    x, x_test = (_flat(_standardised(to_batch(part, length))) for part in (train, test))
    squared = (x_test**2).sum(1)[:, None] - 2 * x_test @ x.T + (x**2).sum(1)
    return float((y[squared.argmin(1)] == y_test).mean())


def raw_forest(train: SeriesSet, test: SeriesSet, *, seed: int = 0, length: int = 512, jobs: int = 1) -> float:
    """Test accuracy of a random forest on the resized raw values."""
    y, y_test = _labels(train, test)
    return probe(
        _flat(to_batch(train, length)), y, _flat(to_batch(test, length)), y_test, kind="rf", seed=seed, jobs=jobs
    ).accuracy


def pretrain_encoder(
    model: Mantis,
    corpus: Float[np.ndarray, "n t"],
    *,
    run: RunFolder,
    batch_size: int,
    optim: OptimSettings,
    views: ViewSettings,
    train: TrainSettings,
) -> Mantis:
    """Pre-train an encoder contrastively.

    Args:
        model: The encoder, trained in place.
        corpus: Unlabelled series; every channel of a multivariate series counts as one.
        run: Where logs and checkpoints go.
        batch_size: Series in a batch; the others of a batch are a series' negatives.
        optim: Optimiser settings.
        views: Augmentation and temperature.
        train: Length of the run, seed, hardware.

    Returns:
        The encoder in eval mode.
    """
    loader = batches(TensorDataset(torch.from_numpy(corpus)[:, None]), batch_size, seed=train.seed)
    total = train.total_steps(max(1, len(corpus) // min(batch_size, len(corpus))))
    system = PretrainSystem(model, optim=optim, views=views, total_steps=total, seed=train.seed)
    fit(system, loader, run=run, settings=train)
    return model.cpu().eval()


def _labels(train: SeriesSet, test: SeriesSet) -> tuple[np.ndarray, np.ndarray]:
    classes = class_names(train)
    known = sorted({*classes, *class_names(test)})
    assert train.y is not None
    assert test.y is not None
    return encode_labels(train.y, known, train.name), encode_labels(test.y, known, test.name)


def _standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(2, keepdims=True)) / (x.std(2, keepdims=True) + 1e-8)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float64)
