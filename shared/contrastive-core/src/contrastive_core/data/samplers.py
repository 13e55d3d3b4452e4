"""The order of a training run: which items each batch holds, so many of each class, no id twice, two streams together.

An order is a plan an epoch, drawn from the seed and the epoch alone, so that a run can be taken up at any batch. Give
it to :func:`contrastive_core.training.batches`, whose loaders :func:`contrastive_core.training.fit` starts anywhere.
Processes share one plan, and each takes its part of every batch: together they see what one process would.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int, Shaped

from contrastive_core.errors import InputError


class Order(ABC):
    """Batches of all epochs, counted from the start of the run.

    Args:
        batch_size: Items in a batch, of all processes together.
        seed: Seed of the orders.

    Attributes:
        first: Batch an iteration starts with; :func:`contrastive_core.training.fit` sets it when a run is resumed.
        last: Batch an iteration ends before; without ``fit`` each iteration is one epoch, the next one each time.

    Raises:
        InputError: A batch size below 1.
    """

    def __init__(self, batch_size: int, *, seed: int) -> None:
        if batch_size < 1:
            raise InputError("a batch holds at least one item", where="--batch-size", why=f"got {batch_size}")
        self.batch_size, self.seed, self.processes = batch_size, seed, 1
        self.first = 0
        self.last: int | None = None
        self._epoch, self._rounds = -1, 0
        self._batches: Sequence[np.ndarray] = ()

    @property
    @abstractmethod
    def per_epoch(self) -> int:
        """Batches in an epoch, at least one."""

    @abstractmethod
    def plan(self, epoch: int) -> Sequence[Int[np.ndarray, " b"]]:
        """The batches of an epoch, of all processes together."""

    def share(self, processes: int) -> None:
        """Divide every batch among processes.

        Raises:
            InputError: The batch does not divide.
        """
        _divides(self.batch_size, processes, "a batch is divided among the processes", "--batch-size, --devices")
        self.processes = processes

    def part(self, batch: Int[np.ndarray, " b"], rank: int) -> Int[np.ndarray, " p"]:
        """What one process takes of a batch; of one that does not divide, the last items are left out."""
        size = len(batch) // self.processes
        return batch[rank * size : (rank + 1) * size]

    def items(self, batch: int) -> list[int]:
        """What this process sees in the batch of that number."""
        epoch, place = divmod(batch, self.per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self.plan(epoch), epoch
        rank = dist.get_rank() if self.processes > 1 and dist.is_initialized() else 0
        return self.part(self._batches[place], rank).tolist()

    def __len__(self) -> int:
        return self.per_epoch if self.last is None else self.last

    def __iter__(self) -> Iterator[list[int]]:
        for _, items in self.numbered():
            yield items

    def numbered(self) -> Iterator[tuple[int, list[int]]]:
        """Batches with their numbers."""
        start, end = self.first, self.last
        if end is None:  # not in fit(): one epoch after another
            start, end = self._rounds * self.per_epoch, (self._rounds + 1) * self.per_epoch
            self._rounds += 1
        for batch in range(start, end):
            yield batch, self.items(batch)

    def _generator(self, epoch: int, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, stream])


class ShuffledBatches(Order):
    """Every item once an epoch, in an order of its own.

    Args:
        count: Items in the data set.
        batch_size: Items in a batch, of all processes together, capped at ``count``.
        seed: Seed of the orders.
        drop_last: Leave out a last batch that is not full.

    Raises:
        InputError: There are no items, or a batch size below 1.

    Example:
        >>> order = ShuffledBatches(5, 2, seed=0, drop_last=False)
        >>> sorted(index for batch in order for index in batch)
        [0, 1, 2, 3, 4]
    """

    def __init__(self, count: int, batch_size: int, *, seed: int = 0, drop_last: bool = True) -> None:
        super().__init__(batch_size, seed=seed)
        if count < 1:
            raise InputError("there is nothing to train on", why="the data set is empty")
        self.count, self.drop_last = count, drop_last
        self.batch_size = min(batch_size, count)

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch; a rest of fewer items than processes makes none."""
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest >= self.processes and not self.drop_last)

    def plan(self, epoch: int) -> list[Int[np.ndarray, " b"]]:
        """A permutation, cut into batches."""
        order = torch.randperm(self.count, generator=seeded_generator(self.seed, epoch)).numpy()
        return [order[place * self.batch_size :][: self.batch_size] for place in range(self.per_epoch)]


def seeded_generator(seed: int, *stream: int) -> torch.Generator:
    """A torch generator for one place of a run: the same seed and numbers give the same draws.

    Args:
        seed: Seed of the run.
        stream: What the draws are for, such as step and rank.
    """
    word = np.random.SeedSequence([seed, *stream]).generate_state(2, dtype=np.uint32)
    return torch.Generator().manual_seed(int(word[0]) << 31 ^ int(word[1]))


def _divides(size: int, parts: int, what: str, where: str) -> None:
    if size % parts:
        raise InputError(
            what, where=where, why=f"{size} do not divide into {parts}", remedy=f"use a multiple of {parts}"
        )


class MPerClassSampler(Order):
    """Batches of several classes with m items each, as supervised contrastive losses and miners need them.

    The items of each class are cut into groups of m; a last group that is not full is filled with items of the class
    drawn again. A batch holds groups of different classes, over all processes, and a group is never divided between
    processes. An epoch has as many batches as can be filled with different classes; of classes that have more
    groups than batches, other items come in each epoch.

    Args:
        labels: Class of every item.
        batch_size: Items in a batch of all processes together; a multiple of m.
        m: Items of a class in a batch.
        seed: Seed of the orders.

    Raises:
        InputError: ``batch_size`` is no multiple of m, or there are too few classes to fill one batch.

    Example:
        >>> sampler = MPerClassSampler([0, 0, 0, 1, 1, 1, 2, 2], 4, m=2)
        >>> [len(batch) for batch in sampler]
        [4, 4]
    """

    def __init__(
        self,
        labels: Sequence[object] | Shaped[np.ndarray, " n"],
        batch_size: int,
        *,
        m: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed=seed)
        if m < 1 or batch_size % m:
            raise InputError(
                "a batch holds whole groups of a class",
                where="batch_size",
                why=f"{batch_size} is no multiple of m = {m}",
                remedy="choose a multiple",
            )
        self.m = m
        self._members = _members(labels)
        self._groups = np.array([-(-len(each) // m) for each in self._members])
        self._per_batch = self.batch_size // m
        self._count = _most_batches(self._groups, self._per_batch)
        if self._count == 0:
            raise InputError(
                "there are too few classes to fill a batch",
                where="labels",
                why=f"{self._per_batch} classes of {m} items are needed, there are {len(self._members)}",
                remedy="lower the batch size, or raise m",
            )

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._count

    def plan(self, epoch: int) -> list[Int[np.ndarray, " b"]]:
        """Batches, group after group."""
        draw = self._generator(epoch)
        groups = np.concatenate([self._cut(draw.permutation(members), draw) for members in self._members])
        owner = np.repeat(np.arange(len(self._groups)), self._groups)
        dealt = _deal(owner, self._count, self._per_batch, draw)
        return [groups[numbers].reshape(-1) for numbers in dealt]

    def share(self, processes: int) -> None:
        """Divide every batch among processes, whole groups each.

        Raises:
            InputError: The groups of a batch do not divide.
        """
        _divides(self._per_batch, processes, "the classes of a batch are divided among processes", "batch_size, m")
        super().share(processes)

    def _cut(self, members: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        short = -len(members) % self.m
        others = members[: len(members) // self.m * self.m]  # those that are not in the last group already
        again = draw.choice(others, short, replace=False) if len(others) >= short else draw.choice(members, short)
        return np.concatenate([members, again]).reshape(-1, self.m)


class UniqueIdBatchSampler(Order):
    """Batches in which no id occurs twice, over all processes: another view of an item would be a false negative.

    Args:
        ids: Id of every item, such as the caption, the patient or the source file.
        batch_size: Items in a batch of all processes together.
        seed: Seed of the orders.
        drop_last: Full batches only; some items then wait for a later epoch. Otherwise every item comes once an
            epoch, in batches as even as possible and at most full; the last items of one that does not divide among
            processes are left out.

    Raises:
        InputError: There are no items, too few ids for one full batch, or with ``drop_last=False`` one id so frequent
            that batches are empty.

    Example:
        >>> sampler = UniqueIdBatchSampler(["a", "a", "b", "c"], 2)
        >>> sorted(index for batch in sampler for index in batch)
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        ids: Sequence[object] | Shaped[np.ndarray, " n"],
        batch_size: int,
        *,
        seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        super().__init__(batch_size, seed=seed)
        self.drop_last = drop_last
        self._members = _members(ids)
        self._counts = np.array([len(each) for each in self._members])
        if drop_last:
            self._count = _most_batches(self._counts, self.batch_size)
        else:
            self._count = max(-(-int(self._counts.sum()) // self.batch_size), int(self._counts.max()))
        if self._count == 0:
            raise InputError(
                "there are too few ids to fill a batch",
                where="ids",
                why=f"{len(self._members)} different ids, the most frequent {self._counts.max()} times; batches of "
                f"{self.batch_size}",
                remedy="lower the batch size, or use drop_last=False",
            )

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._count

    def plan(self, epoch: int) -> list[Int[np.ndarray, " b"]]:
        """Batches in which no id occurs twice."""
        draw = self._generator(epoch)
        items, owner = np.concatenate(self._members), np.repeat(np.arange(len(self._counts)), self._counts)
        dealt = _deal(owner, self._count, self.batch_size if self.drop_last else None, draw)
        return [items[numbers] for numbers in dealt]


class TwoStreamSampler(Order):
    """Batches with labelled items first and unlabelled ones after them, for semi-supervised training.

    The stream that ``epoch_of`` names goes through once an epoch, without its last items where they fill no batch; the
    other one runs on beside it, in a new order after each of its own rounds.

    Args:
        labelled: Indices of the labelled items.
        unlabelled: Indices of the unlabelled items.
        batch_size: Items in a batch of all processes together.
        labelled_per_batch: Labelled ones among them.
        epoch_of: ``unlabelled``, ``labelled``, or ``longest``: whichever needs more batches.
        seed: Seed of the orders.

    Raises:
        InputError: An empty stream, an index in both, a share of the batch that leaves one stream out, or fewer items
            than one batch needs.

    Example:
        >>> sampler = TwoStreamSampler([0, 1], range(2, 10), 4, labelled_per_batch=1)
        >>> [sum(index < 2 for index in batch) for batch in sampler]
        [1, 1]
    """

    def __init__(
        self,
        labelled: Sequence[int] | Int[np.ndarray, " n"],
        unlabelled: Sequence[int] | Int[np.ndarray, " m"],
        batch_size: int,
        *,
        labelled_per_batch: int,
        epoch_of: Literal["unlabelled", "labelled", "longest"] = "unlabelled",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed=seed)
        self._streams = (np.asarray(labelled, dtype=np.int64), np.asarray(unlabelled, dtype=np.int64))
        self._shares = (labelled_per_batch, batch_size - labelled_per_batch)
        sizes = [len(each) for each in self._streams]
        if min(sizes) == 0 or np.intersect1d(*self._streams).size:
            raise InputError(
                "labelled and unlabelled items are two sets that both have items",
                where="labelled, unlabelled",
                why=f"{sizes[0]} and {sizes[1]}, {np.intersect1d(*self._streams).size} of them in both",
            )
        if min(self._shares) < 1:
            raise InputError(
                "a batch needs items of both streams",
                where="labelled_per_batch",
                why=f"{labelled_per_batch} of {batch_size} are labelled",
            )
        full = [size // share for size, share in zip(sizes, self._shares, strict=True)]
        if epoch_of not in ("unlabelled", "labelled", "longest"):
            raise InputError("unknown epoch", where="epoch_of", why=f"got {epoch_of!r}")
        self._count = {"labelled": full[0], "unlabelled": full[1], "longest": max(full)}[epoch_of]
        if self._count == 0:
            raise InputError(
                "there are too few items for one batch",
                where=epoch_of,
                why=f"{sizes[0]} labelled and {sizes[1]} unlabelled items",
                remedy="lower the batch size",
            )

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._count

    def plan(self, epoch: int) -> list[Int[np.ndarray, " b"]]:
        """Batches, the labelled items first."""
        streams = [self._run(stream, epoch) for stream in (0, 1)]
        return [
            np.concatenate([rows[index * share :][:share] for rows, share in zip(streams, self._shares, strict=True)])
            for index in range(self._count)
        ]

    def share(self, processes: int) -> None:
        """Divide both parts of every batch among processes.

        Raises:
            InputError: One of them does not divide.
        """
        for size in self._shares:
            _divides(size, processes, "both streams of a batch are divided among processes", "batch_size, --devices")
        super().share(processes)

    def part(self, batch: Int[np.ndarray, " b"], rank: int) -> Int[np.ndarray, " p"]:
        """Labelled items of one process first, then its unlabelled ones."""
        labelled = self._shares[0]
        return np.concatenate([super(TwoStreamSampler, self).part(half, rank) for half in np.split(batch, [labelled])])

    def _run(self, stream: int, epoch: int) -> np.ndarray:
        """What a stream gives in an epoch: its rounds continue where the epoch before ended."""
        items, share = self._streams[stream], self._shares[stream]
        need = self._count * share
        if len(items) // share == self._count:  # this stream is the one an epoch goes through once
            return self._generator(epoch, stream).permutation(items)[:need]
        first, start = divmod(epoch * need, len(items))
        last = (epoch * need + need - 1) // len(items)
        rounds = [self._generator(round_, stream).permutation(items) for round_ in range(first, last + 1)]
        return np.concatenate(rounds)[start : start + need]


def _members(labels: Sequence[object] | np.ndarray) -> list[np.ndarray]:
    """Indices of each class, classes in sorted order."""
    values = np.asarray(labels)
    if values.ndim != 1 or not len(values):
        raise InputError("labels or ids are one value an item", where="sampler", why=f"got the shape {values.shape}")
    classes = np.unique(values, return_inverse=True)[1]
    order = np.argsort(classes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)


def _most_batches(groups: np.ndarray, per_batch: int) -> int:
    """The most batches of ``per_batch`` different classes that can be made: the largest b with sum min(g, b) >= b p."""
    low, high = 0, int(groups.sum()) // per_batch
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(groups, middle).sum()) >= middle * per_batch:
            low = middle
        else:
            high = middle - 1
    return low


def _deal(
    owner: Int[np.ndarray, " g"], batches: int, per_batch: int | None, draw: np.random.Generator
) -> list[Int[np.ndarray, " b"]]:
    """Deal groups out to batches, no class twice in one; returns the numbers of each batch's groups.

    Groups lie in one row, class after class, and go to the batches in turn: a class has at most as many groups as there
    are batches, so it meets none twice (McNaughton's wrap-around rule).

    Args:
        owner: Class of each group.
        batches: Batches.
        per_batch: Groups in a batch; what is left over is dropped. None: all groups are dealt out.
        draw: Random order of classes, groups and batches.
    """
    mixed = draw.permutation(len(owner))
    rank = draw.permutation(int(owner.max()) + 1)[owner[mixed]]
    order = np.argsort(rank, kind="stable")
    row, rank = mixed[order], rank[order]
    place_in_class = np.arange(len(row)) - np.searchsorted(rank, rank)
    row = row[place_in_class < batches]
    if per_batch is not None:
        row = row[np.sort(draw.choice(len(row), batches * per_batch, replace=False))]
    return [draw.permutation(row[start::batches]) for start in draw.permutation(batches)]
