"""Loaders whose batches depend on the seed and their number alone, so that a run can be taken up anywhere."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from contrastive_core.data.samplers import Order, ShuffledBatches, seeded_generator


@runtime_checkable
class Drawing(Protocol):
    """A data set whose items are drawn anew for every batch, such as :class:`contrastive_core.data.ViewDataset`."""

    def at(self, index: int, *, draw: int) -> Any:
        """The item, with the draws of one batch of the run."""


def batches(
    dataset: Any,
    batch_size: int | None = None,
    *,
    seed: int = 0,
    drop_last: bool = True,
    order: Order | None = None,
    workers: int = 0,
) -> DataLoader[Any]:
    """A loader that :func:`fit` can start at any step.

    Args:
        dataset: A map-style data set. One with a method ``at(index, *, draw)`` is told the number of the batch.
        batch_size: Items in a batch, of all processes together, capped at the size of the data set.
        seed: Seed of the order.
        drop_last: Leave out a last batch that is not full.
        order: An order with rules instead of shuffling, such as :class:`contrastive_core.data.MPerClassSampler`.
        workers: Loader processes.

    Raises:
        InputError: The data set is empty, or the batch size is not positive.
        ValueError: Both a batch size and an order are given, or neither.
    """
    if (batch_size is None) == (order is None):
        raise ValueError("batches() takes either a batch size or an order")
    if order is None:
        order = ShuffledBatches(len(dataset), int(batch_size or 0), seed=seed, drop_last=drop_last)
    if isinstance(dataset, Drawing):
        dataset, sampler = _Drawn(dataset), _Numbered(order)
    else:
        sampler = order  # type: ignore[assignment]
    if isinstance(dataset, TensorDataset):  # a whole batch is one indexing operation
        loader = DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=workers)  # type: ignore[arg-type]
    else:
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers)  # type: ignore[arg-type]
    return loader


class _Numbered:
    """An order whose items carry the number of their batch."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number, items in self.order.numbered():
            yield [(index, number) for index in items]


class _Drawn(Dataset[Any]):
    def __init__(self, dataset: Drawing) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, draw = key
        return self.dataset.at(index, draw=draw)


def order_of(loader: DataLoader[Any]) -> Order:
    """The order behind a loader made by :func:`batches`."""
    for candidate in (loader.batch_sampler, loader.sampler):
        order = getattr(candidate, "order", candidate)
        if isinstance(order, Order):
            return order
    raise TypeError("fit() takes loaders made by contrastive_core.training.batches()")


def step_generator(system: L.LightningModule, index: int, *stream: int) -> torch.Generator:
    """A generator for the draws of one training step: of the run's seed, the step, the micro-batch and the process.

    A resumed run draws what an uninterrupted one draws; micro-batches of an accumulated step, and processes, draw
    differently.

    Args:
        system: The system, in :func:`fit`.
        index: Index of the batch, as ``training_step`` is given it.
        stream: What the draws are for, where a step needs several generators.
    """
    trainer = system.trainer
    micro = index % trainer.accumulate_grad_batches
    # fit() has put the seed there.
    seed: int = trainer.seed  # type: ignore[attr-defined]
    return seeded_generator(seed, system.global_step, micro, system.global_rank, *stream)


__all__ = ["Drawing", "batches", "order_of", "seeded_generator", "step_generator"]
