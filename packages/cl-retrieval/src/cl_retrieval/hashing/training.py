"""Training from few pairs, in memory or into a run folder, and the choice of settings without labels."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cl_retrieval.hashing.codes import Hashes
from cl_retrieval.hashing.evaluation import pair_recall
from cl_retrieval.hashing.split import Split, places
from cl_retrieval.hashing.system import HashingSystem
from cl_retrieval.pairs.features import PairFeatures

FEW_PAIRS = TrainSettings(epochs=500, checkpoint_every=250)
"""Length of the papers' runs: 500 passes over the pairs."""


def fit_pairs(
    system: HashingSystem, *, batch_size: int, settings: TrainSettings = FEW_PAIRS, run: RunFolder | None = None
) -> None:
    """Train on the system's own pairs; it is left on the CPU, in eval mode.

    Args:
        system: Hash functions in training.
        batch_size: Pairs a step; the others of a batch are a pair's negatives.
        settings: Length, seed, hardware.
        run: Where logs and checkpoints go; nothing is written without.
    """
    fit(system, pair_batches(system.fx, system.fy, batch_size, settings.seed), settings=settings, run=run)


def pair_batches(fx: Tensor, fy: Tensor, batch_size: int, seed: int) -> DataLoader[Any]:
    """Batches of pairs, none of them of a single pair, which would have no negatives.

    A last batch of one pair is avoided by the next larger batch size that leaves none.
    """
    size = min(batch_size, len(fx))
    while size > 0 and len(fx) > 1 and len(fx) % size == 1:
        size += 1
    return batches(TensorDataset(fx, fy), size, seed=seed, drop_last=False)


@contextmanager
def first_weights(seed: int) -> Iterator[None]:
    """Draw the weights of a network from a seed, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def tune(
    features: PairFeatures,
    split: Split,
    grid: Mapping[str, Sequence[float | int]],
    train: Callable[[Mapping[str, Any], PairFeatures], Hashes],
    *,
    where: object,
) -> dict[str, Any]:
    """Train every setting of a grid and rank them by how well held-out pairs find each other; labels are not looked at.

    Args:
        features: All pairs.
        split: Its training pairs train four fifths; the last fifth is held out, with up to 500 others that are not
            queries.
        grid: Option to values.
        train: Trains one setting on some pairs.
        where: The data, for messages.

    Returns:
        ``results``, a row a setting with its ``pair_mrr``, the best first; and how many pairs were ``trained_on`` and
        ``held_out``.

    Raises:
        InputError: Fewer than six training pairs.
    """
    rows = places(features, split.train, where)
    held = max(2, len(rows) // 5)
    if len(rows) - held < 4:
        raise InputError(
            "too few pairs to hold some out", where="--pairs", why=f"got {len(rows)}", remedy="use at least 6"
        )
    taken = set(split.train) | {name for group in split.groups.values() for name in group.queries}
    others = [row for row, name in enumerate(features.ids) if name not in taken]
    others = others[: 500 if split.protocol == "standard" else 0]
    inner, outer = rows[:-held], np.concatenate([rows[-held:], np.array(others, dtype=np.int64)])
    results = []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        hashes = train(setting, features.take(inner))
        results.append({**setting, "pair_mrr": pair_recall(hashes, features.take(outer))})
    results.sort(key=lambda row: -row["pair_mrr"])
    return {"trained_on": len(inner), "held_out": len(outer), "results": results}
