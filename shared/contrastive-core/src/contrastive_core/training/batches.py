"""Batches whose order depends on the seed and the step alone, so that a run can be taken up anywhere."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from contrastive_core.errors import InputError


def seeded_generator(seed: int, *stream: int) -> torch.Generator:
    """A torch generator for one place of a run: the same seed and numbers give the same draws.

    Args:
        seed: Seed of the run.
        stream: What the draws are for, such as step and rank.
    """
    word = np.random.SeedSequence([seed, *stream]).generate_state(2, dtype=np.uint32)
    return torch.Generator().manual_seed(int(word[0]) << 31 ^ int(word[1]))


class BatchOrder:
    """Index lists of the batches of all epochs, each epoch in an order of its own.

    Args:
        count: Items in the data set.
        batch_size: Items in a batch.
        seed: Seed of the orders.
        drop_last: Leave out a last batch that is not full.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, drop_last: bool) -> None:
        self.count, self.batch_size, self.seed, self.drop_last = count, batch_size, seed, drop_last
        self.first, self.last = 0, self.per_epoch

    @property
    def per_epoch(self) -> int:
        """Batches in one epoch."""
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __len__(self) -> int:
        return self.last

    def __iter__(self) -> Iterator[list[int]]:
        order: Sequence[int] = []
        drawn = -1
        for batch in range(self.first, self.last):
            epoch, place = divmod(batch, self.per_epoch)
            if epoch != drawn:
                order = torch.randperm(self.count, generator=seeded_generator(self.seed, epoch)).tolist()
                drawn = epoch
            yield list(order[place * self.batch_size : (place + 1) * self.batch_size])


def batches(dataset: Any, batch_size: int, *, seed: int, drop_last: bool = True, workers: int = 0) -> DataLoader[Any]:
    """A loader that :func:`fit` can start at any step.

    Args:
        dataset: A map-style data set.
        batch_size: Items in a batch, capped at the size of the data set.
        seed: Seed of the order.
        drop_last: Leave out a last batch that is not full.
        workers: Loader processes.

    Raises:
        InputError: The data set is empty, or the batch size is not positive.
    """
    if len(dataset) == 0:
        raise InputError("there is nothing to train on", why="the data set is empty")
    if batch_size < 1:
        raise InputError("a batch holds at least one item", where="--batch-size", why=f"got {batch_size}")
    order = BatchOrder(len(dataset), min(batch_size, len(dataset)), seed=seed, drop_last=drop_last)
    if isinstance(dataset, TensorDataset):  # a whole batch is one indexing operation
        return DataLoader(dataset, sampler=order, batch_size=None, num_workers=workers)  # type: ignore[arg-type]
    return DataLoader(dataset, batch_sampler=order, num_workers=workers)  # type: ignore[arg-type]


def order_of(loader: DataLoader[Any]) -> BatchOrder:
    """The order behind a loader made by :func:`batches`."""
    for candidate in (loader.batch_sampler, loader.sampler):
        if isinstance(candidate, BatchOrder):
            return candidate
    raise TypeError("fit() takes loaders made by contrastive_core.training.batches()")
