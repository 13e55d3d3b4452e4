"""The most recent embeddings: negatives, labelled neighbours, positives."""

import hashlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from contrastive_core.distributed import gather, is_active, sizes


class QueueEntries(NamedTuple):
    """What a queue holds, oldest first, in tensors of its own.

    Attributes:
        features: Embeddings ``[n d]``.
        labels: Their labels ``[n]``; -1 where none was given.
        ids: Their ids ``[n]``; -1 where none was given.
    """

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    ids: Int[Tensor, " n"]


class FeatureQueue(nn.Module):
    """First in, first out: the last ``size`` embeddings with their labels and ids (MoCo; cross-batch memory).

    It starts empty: until it is full only what was pushed takes part in a loss. Embeddings, pointer and count
    stand in ``state_dict``, so a resumed run sees the same negatives. Under ``torch.distributed`` the rows of all
    processes enter in rank order, and every process holds the same queue.

    Args:
        dim: Width d.
        size: Rows it holds. Need not be a multiple of the batch.
        dtype: Of the stored embeddings; bfloat16 halves the memory.
        normalize: Store rows at unit length.

    Raises:
        ValueError: A size or width below 1.

    Example:
        >>> queue = FeatureQueue(1, 4, normalize=False)
        >>> for start in (0, 5):
        ...     queue.push(torch.arange(start, start + 5.0)[:, None])
        >>> queue.entries().features[:, 0]
        tensor([6., 7., 8., 9.])
    """

    features: Tensor
    labels: Tensor
    ids: Tensor
    pointer: Tensor
    count: Tensor

    def __init__(self, dim: int, size: int, *, dtype: torch.dtype = torch.float32, normalize: bool = True) -> None:
        super().__init__()
        if dim < 1 or size < 1:
            raise ValueError(f"a queue has a width and a size of at least 1, got {dim} and {size}")
        self.size, self.normalize = size, normalize
        self.register_buffer("features", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("ids", torch.full((size,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return int(self.count)

    @torch.no_grad()
    def push(
        self,
        features: Float[Tensor, "b d"],
        labels: Int[Tensor, " b"] | None = None,
        ids: Int[Tensor, " b"] | None = None,
    ) -> None:
        """Put rows in and the oldest out. Of more than ``size`` rows the last ones stay.

        Args:
            features: Embeddings, any norm; gradients do not enter.
            labels: Their labels.
            ids: Their ids, such as the index in the data set.

        Raises:
            ValueError: Rows of another width, or numbers of labels or ids that do not agree.
        """
        if features.ndim != 2 or features.shape[1] != self.features.shape[1]:
            raise ValueError(f"expected [b {self.features.shape[1]}], got {tuple(features.shape)}")
        none = torch.full((len(features),), -1, device=features.device)
        tags = [none if each is None else each for each in (labels, ids)]
        if any(len(each) != len(features) for each in tags):
            raise ValueError(f"{len(features)} rows, {len(tags[0])} labels, {len(tags[1])} ids")
        rows = F.normalize(features.float(), dim=1) if self.normalize else features
        counts = sizes(len(rows), rows.device)
        columns = [gather(each.detach(), counts) for each in (rows, *tags)]
        for store, new in zip((self.features, self.labels, self.ids), columns, strict=True):
            self._write(store, new[-self.size :].to(store))
        self.pointer.fill_((int(self.pointer) + min(sum(counts), self.size)) % self.size)
        self.count.fill_(min(self.size, int(self.count) + sum(counts)))

    def _write(self, store: Tensor, new: Tensor) -> None:
        start = int(self.pointer)
        head = min(len(new), self.size - start)
        store[start : start + head] = new[:head]
        store[: len(new) - head] = new[head:]

    def entries(self, *, without_ids: Int[Tensor, " b"] | None = None) -> QueueEntries:
        """A copy of what is in the queue, oldest first; pushing before the backward pass does not disturb it.

        Args:
            without_ids: Leave out entries with these ids, so that a batch does not meet its own older embeddings.
        """
        start = int(self.pointer) if len(self) == self.size else 0
        parts = [
            torch.cat([store[start : len(self)], store[:start]]) for store in (self.features, self.labels, self.ids)
        ]
        if without_ids is not None:
            keep = ~torch.isin(parts[2], without_ids.to(parts[2]))
            parts = [part[keep] for part in parts]
        return QueueEntries(*parts)

    def checksum(self) -> str:
        """SHA-256 of the contents; equal on all processes, or something went out of step."""
        digest = hashlib.sha256()
        for buffer in (self.features.float(), self.labels, self.ids, self.pointer, self.count):
            digest.update(buffer.cpu().numpy().tobytes())
        return digest.hexdigest()

    def check_synchronized(self) -> None:
        """Compare the checksums of all processes.

        Raises:
            RuntimeError: They differ.
        """
        if not is_active():
            return
        mine = torch.tensor(list(bytes.fromhex(self.checksum())), device=self.features.device)[None]
        if len(gather(mine).unique(dim=0)) > 1:
            raise RuntimeError("the queues of the processes differ: push was not called on all of them in step")


class NeighbourSupport(nn.Module):
    """Nearest neighbours in a queue of recent embeddings, as positives (NNCLR; Dwibedi et al., 2021).

    Args:
        dim: Width d.
        size: Rows of the queue.
        dtype: Of the stored rows.

    Example:
        >>> support = NeighbourSupport(2, 8)
        >>> support.push(torch.eye(2))
        >>> support.nearest(torch.tensor([[0.9, 0.1]]))[0]
        tensor([[[1., 0.]]])
    """

    def __init__(self, dim: int, size: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.queue = FeatureQueue(dim, size, dtype=dtype)

    def push(self, features: Float[Tensor, "b d"], ids: Int[Tensor, " b"] | None = None) -> None:
        """Put rows in, see :meth:`FeatureQueue.push`."""
        self.queue.push(features, ids=ids)

    @torch.no_grad()
    def nearest(
        self,
        query: Float[Tensor, "n d"],
        *,
        k: int = 1,
        ids: Int[Tensor, " n"] | None = None,
        chunk: int = 1024,
    ) -> tuple[Float[Tensor, "n k d"], Float[Tensor, "n k"]]:
        """The k nearest of what has been pushed so far, by cosine.

        Args:
            query: Embeddings, any norm.
            k: Neighbours.
            ids: Ids of the queries; an entry with the same id is no neighbour.
            chunk: Queries worked on at once.

        Returns:
            The neighbours, unit rows, nearest first; and their cosines.

        Raises:
            ValueError: The queue holds fewer than k rows that a query may have.
        """
        valid, _, own = self.queue.entries()
        bank = valid.to(torch.promote_types(query.dtype, torch.float32))
        if not 1 <= k <= len(bank):
            raise ValueError(f"k lies between 1 and the {len(bank)} rows in the queue, got {k}: push some first")
        found = []
        for at in range(0, len(query), chunk):
            cosine = F.normalize(query[at : at + chunk].to(bank), dim=1) @ bank.T
            if ids is not None:
                cosine = cosine.masked_fill(ids[at : at + chunk, None] == own, float("-inf"))
            found.append(cosine.topk(k, dim=1))
        cosine, index = (torch.cat(column) for column in zip(*found, strict=True))
        if torch.isinf(cosine).any():
            raise ValueError(f"a query has fewer than {k} neighbours with another id")
        return bank[index].to(query.dtype), cosine
