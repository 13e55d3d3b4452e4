"""Batches whose order depends on the seed and the step alone, so that a run can be taken up anywhere."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
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

    With several processes a batch is the batch of all of them, and each takes its part: the same rows as one process
    would see. Of a last batch that does not divide, fewer rows than there are processes are left out.

    Args:
        count: Items in the data set.
        batch_size: Items in a batch.
        seed: Seed of the orders.
        drop_last: Leave out a last batch that is not full.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, drop_last: bool) -> None:
        self.count, self.batch_size, self.seed, self.drop_last = count, batch_size, seed, drop_last
        self.processes = 1
        self._epoch, self._order = -1, list[int]()
        self.first, self.last = 0, self.per_epoch

    @property
    def per_epoch(self) -> int:
        """Batches in one epoch."""
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest >= self.processes and not self.drop_last)

    def share(self, processes: int) -> None:
        """Divide every batch among processes.

        Raises:
            InputError: The batch does not divide.
        """
        if self.batch_size % processes:
            raise InputError(
                "a batch is divided among the processes",
                where="--batch-size, --devices",
                why=f"{self.batch_size} items do not divide into {processes}",
                remedy=f"use a multiple of {processes}",
            )
        self.processes = processes

    def __len__(self) -> int:
        return self.last

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, self.last):
            yield self.items(batch)

    def items(self, batch: int) -> list[int]:
        """What this process sees in the batch of that number, counted from the start of the run."""
        epoch, place = divmod(batch, self.per_epoch)
        if epoch != self._epoch:
            self._order = torch.randperm(self.count, generator=seeded_generator(self.seed, epoch)).tolist()
            self._epoch = epoch
        whole = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        part = len(whole) // self.processes
        rank = dist.get_rank() if self.processes > 1 and dist.is_initialized() else 0
        return whole[rank * part : (rank + 1) * part]


def batches(dataset: Any, batch_size: int, *, seed: int, drop_last: bool = True, workers: int = 0) -> DataLoader[Any]:
    """A loader that :func:`fit` can start at any step.

    Args:
        dataset: A map-style data set.
        batch_size: Items in a batch, of all processes together, capped at the size of the data set.
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
