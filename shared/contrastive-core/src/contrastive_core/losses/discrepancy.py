"""How far two sets of embeddings are apart (MMD), and how alike two representations of the same items are (CKA)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive_core.distributed import row_weight
from contrastive_core.losses.kernel import without_autocast
from contrastive_core.losses.products import TILE
from contrastive_core.losses.rows import full_precision, gathered, item_ids, local_sizes, total
from contrastive_core.losses.similarity import pair_logsumexp

_SAMPLE = 1024


def mmd(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    *,
    sigma: float | Literal["mean", "median", "multi"] = "median",
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy with an RBF kernel, unbiased (Gretton et al., 2012, eq. 3).

    ``mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j)`` with ``k(u, v) = exp(-|u - v|^2 /
    2 sigma^2)``; around 0, also below, where both sets come from one distribution. The kernel is streamed:
    ``-|u - v|^2 / 2 sigma^2`` is a scalar product of rows with two more columns.

    Args:
        x: One set of rows.
        y: The other set.
        sigma: Width of the kernel: a positive number, ``mean`` or ``median`` of the distances between all rows, or
            ``multi``: the mean over half, one and two medians. Widths from data have no gradient and are taken from at
            most 1,024 evenly spaced rows of each set.
        gather: Use the rows of all processes of ``torch.distributed``, with exact gradients.

    Raises:
        ValueError: A set has fewer than two rows, the widths of the rows differ, or sigma is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import mmd
        >>> x = torch.tensor([[0.0], [0.0]])
        >>> round(float(mmd(x, x + 2**0.5, sigma=1.0)), 4)  # 2 - 2 / e
        1.2642
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"expected [n d] and [m d], got {tuple(x.shape)} and {tuple(y.shape)}")
    counts = (local_sizes(x, gather), local_sizes(y, gather))
    if min(sum(count) for count in counts) < 2:
        raise ValueError(f"each set needs at least two rows, got {sum(counts[0])} and {sum(counts[1])}")
    with without_autocast(x):
        sets = [full_precision(rows) for rows in (x, y)]
        everyone = [gathered(rows, count, gather) for rows, count in zip(sets, counts, strict=True)]
        middle = torch.cat([rows.detach() for rows in everyone]).mean(0)
        sets, everyone = [rows - middle for rows in sets], [rows - middle for rows in everyone]
        terms = [_mmd(sets, everyone, counts, width, gather) for width in _widths(sigma, everyone)]
        return torch.stack(terms).mean()


def cka(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], *, debiased: bool = False, gather: bool = False
) -> Float[Tensor, ""]:
    """Linear centred kernel alignment of two representations of the same items (Kornblith et al., 2019, eq. 4 and 5).

    ``|X'Y|^2 / (|X'X| |Y'Y|)`` of centred columns, in [0, 1]; ``1 - cka`` is a loss. The debiased form replaces each
    ``HSIC`` by its unbiased estimate (Song et al., 2012, eq. 5), also from ``d x e`` moments alone; it can be below 0.

    Args:
        x: One representation.
        y: The other one, row by row the same items; its width may differ.
        debiased: Use the unbiased estimates; needs at least 4 rows.
        gather: Use the rows of all processes of ``torch.distributed``, with exact gradients.

    Returns:
        The similarity; 0 where a representation is constant.

    Raises:
        ValueError: The numbers of rows do not agree or are too small.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import cka
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> round(float(cka(x, 5 * x + 1)), 4)
        1.0
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"expected [n d] and [n e], got {tuple(x.shape)} and {tuple(y.shape)}")
    n = sum(local_sizes(x, gather))
    least = 4 if debiased else 2
    if n < least:
        raise ValueError(f"expected at least {least} rows, got {n}")
    with without_autocast(x):
        a, b = (full_precision(rows) for rows in (x, y))
        a, b = (rows - total(rows.sum(0), gather) / n for rows in (a, b))
        hsic = _unbiased_hsic if debiased else _hsic
        cross, own_a, own_b = hsic(a, b, n, gather), hsic(a, a, n, gather), hsic(b, b, n, gather)
        scale = own_a * own_b
        positive = scale > 0
        return torch.where(positive, cross * torch.where(positive, scale, 1.0).rsqrt(), 0.0)


def _mmd(
    sets: list[Tensor], everyone: list[Tensor], counts: tuple[list[int], list[int]], width: Tensor, gather: bool
) -> Tensor:
    # Local rows of each set against all; the weights make the average over processes the mean over all pairs.
    one = width.new_ones(())
    (x, y), (_, all_y) = ([_left(rows / width) for rows in sets], [_right(rows / width) for rows in everyone])
    out = -2 * _kernel_mean(x, all_y, None, None, len(all_y), counts[0], one)
    for rows, left, keys, count in zip(sets, (x, y), everyone, counts, strict=True):
        own, index = item_ids(rows, None, count, gather)
        out = out + _kernel_mean(left, _right(keys / width), own, index, sum(count) - 1, count, one)
    return out


def _kernel_mean(
    left: Tensor, right: Tensor, own: Tensor | None, index: Tensor | None, others: int, counts: list[int], one: Tensor
) -> Tensor:
    if len(left) * len(right) > TILE * TILE:
        sums, _ = pair_logsumexp(left, right, one, query_ids=own, key_ids=index, unit_rows=False)
        return sums.exp().sum() / others * row_weight(counts)
    kernel = (left @ right.T).exp()
    if own is not None and index is not None:
        kernel = kernel.masked_fill(own[:, None] == index, 0.0)
    return kernel.sum() / others * row_weight(counts)


def _left(u: Tensor) -> Tensor:
    return torch.cat([u, -u.square().sum(1, keepdim=True) / 2, torch.ones_like(u[:, :1])], 1)


def _right(u: Tensor) -> Tensor:
    return torch.cat([u, torch.ones_like(u[:, :1]), -u.square().sum(1, keepdim=True) / 2], 1)


@torch.no_grad()
def _widths(sigma: float | str, everyone: list[Tensor]) -> list[Tensor]:
    like = everyone[0]
    if not isinstance(sigma, str):
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        return [like.new_tensor(sigma)]
    sample = torch.cat([rows[:: -(-len(rows) // _SAMPLE)] for rows in everyone])
    distances = torch.pdist(sample)
    width = distances.mean() if sigma == "mean" else distances.median()
    width = torch.where(width > 0, width, 1.0)  # all rows equal: any width gives the same value
    return [width * factor for factor in (0.5, 1.0, 2.0)] if sigma == "multi" else [width]


def _hsic(a: Tensor, b: Tensor, n: int, gather: bool) -> Tensor:
    return total(a.T @ b, gather).square().sum()


def _unbiased_hsic(a: Tensor, b: Tensor, n: int, gather: bool) -> Tensor:
    """Of the Gram matrices ``K = A A'`` and ``L = B B'`` with their diagonals set to zero."""
    k, l = a.square().sum(1), b.square().sum(1)  # noqa: E741
    k_rows, l_rows = a @ total(a.sum(0), gather) - k, b @ total(b.sum(0), gather) - l
    trace = total(a.T @ b, gather).square().sum() - total((k * l).sum(), gather)
    k_sum, l_sum = total(k_rows.sum(), gather), total(l_rows.sum(), gather)
    both = total((k_rows * l_rows).sum(), gather)
    return (trace + k_sum * l_sum / ((n - 1) * (n - 2)) - 2 * both / (n - 2)) / (n * (n - 3))
