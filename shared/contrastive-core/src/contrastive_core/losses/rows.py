"""What the losses share: the arguments they take, checks, normalisation, and the mean over rows of all processes."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrastive_core.distributed import all_reduce_with_grad, gather, gather_with_grad, rank_slice, row_weight, sizes

Reduction = Literal["mean", "none"]
Temperature = float | Float[Tensor, ""]
Gather = bool | Literal["ring"]


def check_pair(a: Tensor, b: Tensor) -> None:
    """Two non-empty matrices of one shape."""
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"expected two [n d] tensors of equal shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if len(a) == 0:
        raise ValueError("the batch is empty")


def check_labels(rows: Tensor, labels: Tensor) -> None:
    """One label a row."""
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise ValueError(f"expected [n d] and [n], got {tuple(rows.shape)} and {tuple(labels.shape)}")
    if len(rows) == 0:
        raise ValueError("the batch is empty")


def inverse_temperature(temperature: Temperature, like: Tensor) -> Tensor:
    """``1 / temperature`` in the dtype losses are computed in."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    t = torch.as_tensor(temperature, device=like.device, dtype=dtype)
    if not float(t.detach()) > 0:
        raise ValueError(f"the temperature must be positive, got {float(t.detach())}")
    return 1 / t


def full_precision(x: Tensor) -> Tensor:
    """Half precision becomes float32; everything else stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normalise(x: Tensor) -> Tensor:
    """Unit rows in full precision; a row of norm zero stays zero and gets no gradient."""
    x = full_precision(x)
    dead = (x.detach() == 0).all(1, keepdim=True)
    return F.normalize(torch.where(dead, 0.0, x), dim=1, eps=1e-12)


def local_sizes(x: Tensor, everyone: Gather) -> list[int]:
    """Rows on every process, or only the local count where the loss is computed in one process."""
    return sizes(len(x), x.device) if everyone else [len(x)]


def item_ids(x: Tensor, ids: Int[Tensor, " n"] | None, counts: list[int], everyone: Gather) -> tuple[Tensor, Tensor]:
    """Ids of the local rows and of all gathered ones; the position among all rows where none are given."""
    if ids is not None:
        return ids, gather(ids, counts) if everyone else ids
    index = torch.arange(sum(counts), device=x.device)
    return index[rank_slice(counts)] if everyone else index, index


def gathered(x: Tensor, counts: list[int], everyone: Gather) -> Tensor:
    """All rows, with gradient."""
    return gather_with_grad(x, counts) if everyone else x


def total(x: Tensor, everyone: bool) -> Tensor:
    """Sum over processes, with gradient."""
    return all_reduce_with_grad(x) if everyone else x


def reduce(losses: Tensor, reduction: Reduction, counts: list[int]) -> Tensor:
    """Mean over rows, weighted so that the average over processes is the mean over all their rows."""
    return losses if reduction == "none" else losses.sum() * row_weight(counts)


def reduce_valid(losses: Tensor, valid: Tensor, reduction: Reduction, everyone: bool) -> Tensor:
    """The same over the rows marked valid; 0 where no row is."""
    losses = torch.where(valid, losses, 0.0)
    if reduction == "none":
        return losses
    count = int(valid.sum())
    counts = sizes(count, losses.device) if everyone else [count]
    return losses.sum() * row_weight(counts)


def softmax_minus_positive(negatives: Tensor, positive: Tensor, ids: Tensor | None) -> Tensor:
    """``logsumexp - positive``, with the positive put back where the ids took it out of the sum."""
    return (negatives if ids is None else torch.logaddexp(negatives, positive)) - positive
