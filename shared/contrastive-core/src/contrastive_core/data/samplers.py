"""Batches with rules: so many of each class, no id twice, labelled and unlabelled together.

All samplers yield lists of indices (give them to ``DataLoader(batch_sampler=...)``). The order depends on the seed and
the epoch alone. Processes share one global order and each takes its part of every global batch, so together they draw
what one process with the global batch would. They can be stopped and resumed at any batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int, Shaped

from contrastive_core.errors import InputError


class EpochSampler(ABC):
    """What the samplers share: the seed, the place in the run, and the process's part of a global batch.

    Args:
        batch_size: Items in a batch of one process.
        seed: Seed of the orders.
        rank: Number of this process; by default that of ``torch.distributed``.
        world_size: Processes; by default those of ``torch.distributed``.

    Raises:
        InputError: A batch size below 1, or a rank that is not one of the processes.
    """

    def __init__(self, batch_size: int, *, seed: int, rank: int | None, world_size: int | None) -> None:
        if (rank is None) != (world_size is None):
            raise InputError("rank and world_size come together", where="sampler")
        self.rank, self.world_size = _processes() if rank is None or world_size is None else (rank, world_size)
        if batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise InputError(
                "a sampler cannot be split like this",
                where="sampler",
                why=f"batch size {batch_size}, rank {self.rank} of {self.world_size}",
                remedy="use at least 1 item a batch and a rank below the number of processes",
            )
        self.batch_size, self.seed = batch_size, seed
        self.epoch, self.position = 0, 0
        self._resuming = False

    @property
    def global_batch(self) -> int:
        """Items in the batches of all processes together."""
        return self.batch_size * self.world_size

    @abstractmethod
    def __len__(self) -> int:
        """Batches in an epoch."""

    @abstractmethod
    def plan(self, epoch: int) -> Sequence[Int[np.ndarray, " b"]]:
        """The global batches of an epoch; each process takes every ``world_size``-th item."""

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless it is the one that a loaded state stands in."""
        if epoch != self.epoch:
            self.epoch, self.position, self._resuming = epoch, 0, False

    def __iter__(self) -> Iterator[list[int]]:
        # An iteration that was broken off starts its epoch again; only a loaded state continues within one.
        first = self.position if self._resuming else 0
        self._resuming = False
        for place, batch in enumerate(self.plan(self.epoch)[first:], start=first):
            self.position = place + 1
            yield batch[self.rank :: self.world_size].tolist()
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self, *, consumed: int | None = None) -> dict[str, int]:
        """Where the sampler stands.

        Args:
            consumed: Batches of this epoch that were trained on. Loader processes draw ahead of the training, so the
                sampler itself knows only how many were drawn.
        """
        return {"epoch": self.epoch, "position": self.position if consumed is None else consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another sampler stood; the next iteration continues there.

        Raises:
            InputError: The place lies beyond the epoch: the data or the batch size has changed.
        """
        if not 0 <= state["position"] <= len(self):
            raise InputError(
                "a sampler cannot be resumed",
                where="sampler",
                why=f"the state stands at batch {state['position']}, the epoch has {len(self)}",
                remedy="resume with the data set and the batch size of the interrupted run",
            )
        self.epoch, self.position, self._resuming = state["epoch"], state["position"], True

    def _generator(self, epoch: int, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, stream])


class MPerClassSampler(EpochSampler):
    """Batches of several classes with m items each, as supervised contrastive losses and miners need them.

    The items of each class are cut into groups of m; a last group that is not full is filled with items of the class
    drawn again. A batch holds groups of different classes, over all processes, and a group is never divided between
    processes. An epoch has as many batches as can be filled with different classes; of classes that have more
    groups than batches, other items come in each epoch.

    Args:
        labels: Class of every item.
        batch_size: Items in a batch of one process; a multiple of m.
        m: Items of a class in a batch.
        seed: Seed of the orders.
        rank: Number of this process; by default that of ``torch.distributed``.
        world_size: Processes.

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
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed=seed, rank=rank, world_size=world_size)
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
        self._per_batch = self.global_batch // m
        self._batches = _most_batches(self._groups, self._per_batch)
        if self._batches == 0:
            raise InputError(
                "there are too few classes to fill a batch",
                where="labels",
                why=f"{self._per_batch} classes of {m} items are needed, there are {len(self._members)}",
                remedy="lower the batch size, or raise m",
            )

    def __len__(self) -> int:
        return self._batches

    def plan(self, epoch: int) -> list[Int[np.ndarray, " b"]]:
        """The global batches, group after group, dealt out so that a group stays in one process."""
        draw = self._generator(epoch)
        groups = np.concatenate([self._cut(draw.permutation(members), draw) for members in self._members])
        owner = np.repeat(np.arange(len(self._groups)), self._groups)
        dealt = _deal(owner, self._batches, self._per_batch, draw)
        # Every world_size-th item belongs to a process: interleave its groups accordingly.
        return [groups[numbers].reshape(self.world_size, self.batch_size).T.reshape(-1) for numbers in dealt]

    def _cut(self, members: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        short = -len(members) % self.m
        others = members[: len(members) // self.m * self.m]  # those that are not in the last group already
        again = draw.choice(others, short, replace=False) if len(others) >= short else draw.choice(members, short)
        return np.concatenate([members, again]).reshape(-1, self.m)


class UniqueIdBatchSampler(EpochSampler):
    """Batches in which no id occurs twice, over all processes: another view of an item would be a false negative.

    Args:
        ids: Id of every item, such as the caption, the patient or the source file.
        batch_size: Items in a batch of one process.
        seed: Seed of the orders.
        drop_last: Full batches only; some items then wait for a later epoch. Otherwise every item comes once an
            epoch, in batches as even as possible and at most full; the shares of processes differ by one item at most.
        rank: Number of this process; by default that of ``torch.distributed``.
        world_size: Processes.

    Raises:
        InputError: There are no items, too few ids for one full batch, or with ``drop_last=False`` one id so frequent
            that batches are too small for each process to have an item.

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
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed=seed, rank=rank, world_size=world_size)
        self.drop_last = drop_last
        self._members = _members(ids)
        self._counts = np.array([len(each) for each in self._members])
        if drop_last:
            self._batches = _most_batches(self._counts, self.global_batch)
        else:
            self._batches = max(-(-int(self._counts.sum()) // self.global_batch), int(self._counts.max()))
        if self._batches == 0 or int(self._counts.sum()) // self._batches < self.world_size:
            raise InputError(
                "there are too few ids to fill a batch",
                where="ids",
                why=f"{len(self._members)} different ids, the most frequent {self._counts.max()} times; batches of "
                f"{self.global_batch}",
                remedy="lower the batch size, or use drop_last=False on one process",
            )

    def __len__(self) -> int:
        return self._batches

    def plan(self, epoch: int) -> list[Int[np.ndarray, " b"]]:
        """The global batches."""
        draw = self._generator(epoch)
        items, owner = np.concatenate(self._members), np.repeat(np.arange(len(self._counts)), self._counts)
        dealt = _deal(owner, self._batches, self.global_batch if self.drop_last else None, draw)
        return [items[numbers] for numbers in dealt]


class TwoStreamSampler(EpochSampler):
    """Batches with labelled items first and unlabelled ones after them, for semi-supervised training.

    The stream that ``epoch_of`` names goes through once an epoch, without its last items where they fill no batch; the
    other one runs on beside it, in a new order after each of its own rounds.

    Args:
        labelled: Indices of the labelled items.
        unlabelled: Indices of the unlabelled items.
        batch_size: Items in a batch of one process.
        labelled_per_batch: Labelled ones among them.
        epoch_of: ``unlabelled``, ``labelled``, or ``longest``: whichever needs more batches.
        seed: Seed of the orders.
        rank: Number of this process; by default that of ``torch.distributed``.
        world_size: Processes.

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
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed=seed, rank=rank, world_size=world_size)
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
        full = [size // (share * self.world_size) for size, share in zip(sizes, self._shares, strict=True)]
        if epoch_of not in ("unlabelled", "labelled", "longest"):
            raise InputError("unknown epoch", where="epoch_of", why=f"got {epoch_of!r}")
        self._batches = {"labelled": full[0], "unlabelled": full[1], "longest": max(full)}[epoch_of]
        if self._batches == 0:
            raise InputError(
                "there are too few items for one batch",
                where=epoch_of,
                why=f"{sizes[0]} labelled and {sizes[1]} unlabelled items",
                remedy="lower the batch size",
            )

    def __len__(self) -> int:
        return self._batches

    def plan(self, epoch: int) -> list[Int[np.ndarray, " b"]]:
        """The global batches: of each process's items, the labelled ones come first."""
        streams = [self._run(stream, epoch) for stream in (0, 1)]
        batches = []
        for index in range(self._batches):
            parts = [
                rows[index * share * self.world_size :][: share * self.world_size].reshape(share, self.world_size)
                for rows, share in zip(streams, self._shares, strict=True)
            ]
            batches.append(np.concatenate(parts).reshape(-1))
        return batches

    def _run(self, stream: int, epoch: int) -> np.ndarray:
        """What a stream gives in an epoch: its rounds continue where the epoch before ended."""
        items, share = self._streams[stream], self._shares[stream] * self.world_size
        need = self._batches * share
        if len(items) // share == self._batches:  # this stream is the one an epoch goes through once
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


def _processes() -> tuple[int, int]:
    from contrastive_core.distributed import is_active, world_size

    if not is_active():
        return 0, 1
    import torch.distributed as dist

    return dist.get_rank(), world_size()
