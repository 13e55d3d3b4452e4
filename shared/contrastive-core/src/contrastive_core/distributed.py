"""Gathering across processes, with the gradient of the one-process computation.

Reference semantics: the loss of the concatenated global batch in one process. Each process computes its own rows
against all gathered columns; after the gradient averaging of data-parallel training the result equals the reference.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


def is_active() -> bool:
    """Whether more than one process takes part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of processes, 1 without ``torch.distributed``."""
    return dist.get_world_size() if is_active() else 1


def sizes(count: int, device: torch.device) -> list[int]:
    """Rows on every process, in rank order."""
    if not is_active():
        return [count]
    own = torch.tensor([count], device=device)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return [int(entry) for entry in everyone]


def rank_slice(counts: list[int]) -> slice:
    """Where this process's rows stand among the gathered ones."""
    rank = dist.get_rank() if is_active() else 0
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))


def gather_with_grad(x: Float[Tensor, "b d"], counts: list[int] | None = None) -> Float[Tensor, "n d"]:
    """Concatenate the rows of all processes in rank order; gradients are summed back to their owner.

    Args:
        x: This process's rows; the numbers of rows may differ between processes.
        counts: Rows on every process, if already known.
    """
    if not is_active():
        return x
    counts = counts if counts is not None else sizes(len(x), x.device)
    gathered: Tensor = _Gather.apply(x, counts)
    return gathered


@torch.no_grad()
def gather(x: Shaped[Tensor, "b ..."], counts: list[int] | None = None) -> Shaped[Tensor, "n ..."]:
    """Concatenate the rows of all processes without gradient (labels, ids)."""
    if not is_active():
        return x
    return _all_gather(x, counts if counts is not None else sizes(len(x), x.device))


def all_reduce_with_grad(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Sum over processes; the gradient is summed over processes too."""
    if not is_active():
        return x
    total: Tensor = _AllReduce.apply(x)
    return total


def row_weight(counts: list[int]) -> float:
    """What the sum over local rows is multiplied by, so that the mean over processes is the mean over all rows.

    With equal counts this is one over the local count: the ordinary mean.
    """
    return len(counts) / max(sum(counts), 1)


class Ring:
    """Pass blocks of rows from rank to rank until every process has seen every block, its own first.

    While a block is worked on, the next one is already on its way. A passenger travels with its block, is changed on
    the way through :attr:`passenger`, and stands at home again when the iteration ends. In one process the own block
    is all there is.

    Args:
        blocks: Tensors of equal first dimension that travel together; the dimension may differ between processes.
        passenger: Accumulator of this process's block.
    """

    def __init__(self, blocks: Sequence[Tensor], passenger: Tensor | None = None) -> None:
        self.blocks = [block.detach().contiguous() for block in blocks]
        self.passenger = passenger
        self.counts = sizes(len(self.blocks[0]), self.blocks[0].device)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """The blocks, rank after rank."""
        world = len(self.counts)
        rank = dist.get_rank() if world > 1 else 0
        for step in range(world):
            coming = self.counts[(rank - step - 1) % world]
            last = step == world - 1
            arriving, waiting = ([], []) if last else _pass_on(self.blocks, coming, rank)
            yield self.blocks
            for work in waiting:
                work.wait()
            self.blocks = arriving or self.blocks
            if self.passenger is not None and world > 1:
                (self.passenger,), waiting = _pass_on([self.passenger], coming, rank)
                for work in waiting:
                    work.wait()


def _pass_on(blocks: list[Tensor], coming: int, rank: int) -> tuple[list[Tensor], list[dist.Work]]:
    """Start sending to the next rank and receiving ``coming`` rows from the one before."""
    world = dist.get_world_size()
    arriving = [block.new_empty((coming, *block.shape[1:])) for block in blocks]
    operations = [dist.P2POp(dist.isend, block, (rank + 1) % world) for block in blocks]
    operations += [dist.P2POp(dist.irecv, block, (rank - 1) % world) for block in arriving]
    return arriving, dist.batch_isend_irecv(operations)


def _all_gather(x: Tensor, counts: list[int]) -> Tensor:
    longest = max(counts)
    padded = x.new_zeros((longest, *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _all_gather(x, counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _ReduceScatter.apply(grad, ctx.counts), None


class _ReduceScatter(torch.autograd.Function):
    """Sum over processes of the rows that belong to this one; the gradient of gathering, and gathered itself."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        longest, count = max(counts), counts[dist.get_rank()]
        if dist.get_backend() == "gloo":  # has no reduce-scatter
            total = grad.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total[rank_slice(counts)].clone()
        blocks = []
        for block in grad.split(counts):
            padded = grad.new_zeros((longest, *grad.shape[1:]))
            padded[: len(block)] = block
            blocks.append(padded)
        out = torch.empty_like(blocks[0])
        dist.reduce_scatter(out, blocks)
        return out[:count].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(grad, ctx.counts), None


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _AllReduce.apply(grad)
