"""What the losses share: the arguments they take, checks, normalisation, and the mean over rows of all processes."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrastive_core.distributed import all_reduce_with_grad, gather, gather_with_grad, rank_slice, row_weight, sizes
from contrastive_core.losses.dense import unit_rows
from contrastive_core.losses.kernel import is_transformed
from contrastive_core.losses.tiles import inverse_norms

Reduction = Literal["mean", "none"]
Temperature = float | int | Float[Tensor, ""] | Float[Tensor, "1"]
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


def check_values(rows: Tensor, labels: Tensor | None) -> None:
    """Refuse meta tensors, and labels that :func:`torch.func.vmap` maps over, where the work depends on values."""
    if rows.is_meta or (labels is not None and torch._C._functorch.is_batchedtensor(labels)):
        raise ValueError(
            "what is done depends on the values of labels, which meta tensors and labels under vmap do not have"
        )


def scalar(value: Temperature, like: Tensor, name: str = "temperature") -> float | Tensor:
    """A number as it is, or a tensor of one element as a scalar in the dtype losses are computed in."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() != 1:
        raise ValueError(f"the {name} is one number, got a tensor of shape {tuple(value.shape)}")
    return value.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32).reshape(())


def positive_scalar(value: Temperature, like: Tensor, name: str = "temperature") -> float | Tensor:
    """The same, refused where it is not positive."""
    number = scalar(value, like, name)
    if isinstance(number, Tensor) and is_transformed(number):
        return number
    if not float(number.detach() if isinstance(number, Tensor) else number) > 0:
        raise ValueError(f"the {name} must be positive, got {float(number)}")
    return number


def inverse_temperature(temperature: Temperature, like: Tensor) -> float | Tensor:
    """``1 / temperature``: a number of a number, a tensor of a tensor."""
    return 1 / positive_scalar(temperature, like)


def full_precision(x: Tensor) -> Tensor:
    """Half precision becomes float32; everything else stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normalise(x: Tensor) -> Tensor:
    """Unit rows in full precision; a row of norm zero stays zero and gets no gradient."""
    x = full_precision(x)
    if is_transformed(x) or torch.compiler.is_compiling():
        return unit_rows(x)[0]
    return _Unit.apply(x)


class _Unit(torch.autograd.Function):
    """Unit rows, in fewer operations than their formula has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = inverse_norms(x)
        unit = x * inverse
        ctx.save_for_backward(x, unit, inverse)
        return unit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, unit, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated
            unit, inverse = unit_rows(x)
        return (grad - unit * (grad * unit).sum(1, keepdim=True)) * inverse


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
    if reduction == "none":
        return losses
    return losses.mean() if len(counts) == 1 else losses.sum() * row_weight(counts)


def reduce_valid(losses: Tensor, valid: Tensor, reduction: Reduction, everyone: bool) -> Tensor:
    """The same over the rows marked valid; 0 where no row is."""
    losses = torch.where(valid, losses, 0.0)
    if reduction == "none":
        return losses
    count = int(valid.sum())
    counts = sizes(count, losses.device) if everyone else [count]
    return losses.sum() * row_weight(counts)


def against_negatives(negatives: Tensor, positive: Tensor) -> Tensor:
    """``-log softmax`` at the positive, ``log(1 + exp(negatives - positive))``, of the negatives' log-sum-exp.

    Never below zero, exact where it is small, and zero without negatives.
    """
    return F.softplus(negatives - positive, threshold=40.0)


def either(a: Tensor, b: Tensor) -> Tensor:
    """``log(exp(a) + exp(b))``; minus infinity without a gradient where both are."""
    nothing = (a == float("-inf")) & (b == float("-inf"))
    return torch.logaddexp(a.masked_fill(nothing, 0.0), b).masked_fill(nothing, float("-inf"))
