"""Pairwise sigmoid loss of two modalities, tile by tile."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from contrastive_core.distributed import gather as gather_rows
from contrastive_core.losses.kernel import Pairs, is_transformed, without_autocast
from contrastive_core.losses.products import TILE, similarities, transposed_weighted_sum, weighted_sum
from contrastive_core.losses.rows import (
    Reduction,
    Temperature,
    check_pair,
    gathered,
    local_sizes,
    normalise,
    positive_scalar,
    reduce,
    scalar,
)
from contrastive_core.losses.tiles import KEPT


def siglip(
    image: Float[Tensor, "n d"],
    text: Float[Tensor, "n d"],
    *,
    logit_scale: Temperature = 10.0,
    logit_bias: Temperature = -10.0,
    ids: Int[Tensor, " n"] | None = None,
    gather: bool = False,
    tile: int = TILE,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """Sigmoid loss for language-image pre-training (SigLIP; Zhai et al., 2023, eq. 1).

    ``L_i = sum_j softplus(-y_ij (a x_i . t_j + b))`` with ``y_ij = 1`` at the matching text and -1 elsewhere; row i
    holds image i against all texts. As ``softplus(-z) = softplus(z) - z``, one sum of softplus over all pairs is
    enough.

    Args:
        image: Embeddings of one modality, any norm.
        text: Embeddings of the other, row by row the matching items.
        logit_scale: ``a``, positive.
        logit_bias: ``b``; starts at -10 because nearly all pairs are negatives.
        ids: Ids of the pairs; another pair with the same id is left out.
        gather: Use the texts of all processes of ``torch.distributed``, with exact gradients.
        tile: Side of the tiles the pairs are computed in.
        reduction: ``mean`` over images, or ``none``.

    Raises:
        ValueError: The shapes do not agree, or the scale is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import siglip
        >>> round(float(siglip(torch.eye(2), torch.eye(2), logit_scale=1.0, logit_bias=0.0)), 4)
        1.0064
    """
    check_pair(image, text)
    scale = positive_scalar(logit_scale, image, "scale")
    bias = scalar(logit_bias, image, "bias")
    x, t = normalise(image), normalise(text)
    counts = local_sizes(x, gather)
    key_ids = None if ids is None else (gather_rows(ids, counts) if gather else ids)
    # Where ids leave pairs out, the own text is left out with them and comes back in below.
    pairs = Pairs(ids=None if ids is None or key_ids is None else (ids, key_ids))
    with without_autocast(x):
        everything = _pair_softplus(x, gathered(t, counts, gather), scale, bias, pairs, tile)
    positive = (x * t).sum(1) * scale + bias
    losses = everything - positive if ids is None else everything + F.softplus(-positive)
    return reduce(losses, reduction, counts)


class SigLIP(nn.Module):
    """:func:`siglip` with a learned scale and bias; leave both out of weight decay.

    The scale's parameter is its logarithm, kept at most ``log 100``.
    """

    def __init__(self, initial_scale: float = 10.0, initial_bias: float = -10.0, *, gather: bool = False) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))
        self.bias = nn.Parameter(torch.tensor(initial_bias))
        self.gather = gather

    def forward(self, image: Float[Tensor, "n d"], text: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(100))
        return siglip(image, text, logit_scale=self.log_scale.exp(), logit_bias=self.bias, gather=self.gather)


class _PairSoftplus(torch.autograd.Function):
    """``sum_j softplus(scale q_i . k_j + bias)`` for every row, over the pairs of different ids."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor | float, pairs: Pairs, tile: int
    ) -> Tensor:
        rows = query.new_zeros(len(query))
        keep = any(ctx.needs_input_grad) and len(query) * len(key) <= KEPT * tile * tile
        ctx.kept = []
        for a, b, block, other in _tiles(query, key, tile):
            z = similarities(block * scale, other).add_(bias)
            pairs.leave_out(z, len(query), a, b)
            rows[a : a + tile] += F.softplus(z).sum(1)
            ctx.kept += [z.sigmoid_()] if keep else []
        numbers = [each if isinstance(each, Tensor) else None for each in (scale, bias)]
        ctx.save_for_backward(query, key, *numbers)
        ctx.settings = scale, bias, pairs, tile
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, *numbers = ctx.saved_tensors
        scale, bias = (old if new is None else new for old, new in zip(ctx.settings[:2], numbers, strict=True))
        pairs, tile = ctx.settings[2:]
        to_query = [torch.zeros_like(each) for each in query.split(tile)]
        to_key = [torch.zeros_like(each) for each in key.split(tile)]
        grad_bias = grad.new_zeros(())
        with without_autocast(query):
            for index, (a, b, block, other) in enumerate(_tiles(query, key, tile)):
                place = (block, other, scale, bias, grad[a : a + tile], pairs, len(query), a, b)
                if torch.is_grad_enabled():  # recomputed where it is differentiated, so that no tile outlives its turn
                    add = checkpoint(_weighted_tile, *place, use_reentrant=False, preserve_rng_state=False)
                    to_query[a // tile] = to_query[a // tile] + add[0]
                    to_key[b // tile] = to_key[b // tile] + add[1]
                else:
                    add = _weighted_tile(*place, kept=ctx.kept[index] if ctx.kept else None)
                    to_query[a // tile] += add[0]
                    to_key[b // tile] += add[1]
                grad_bias = grad_bias + add[2]
            grad_query, grad_key = torch.cat(to_query), torch.cat(to_key)
            needed = ctx.needs_input_grad
            grad_scale = (grad_query * query).sum() if needed[2] else None
        return grad_query * scale, grad_key * scale, grad_scale, grad_bias if needed[3] else None, None, None


def _tiles(query: Tensor, key: Tensor, tile: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """First row, first column, rows and columns of every tile."""
    for a in range(0, len(query), tile):
        for b in range(0, len(key), tile):
            yield a, b, query[a : a + tile], key[b : b + tile]


def _weighted_tile(
    block: Tensor,
    other: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    grad: Tensor,
    pairs: Pairs,
    rows: int,
    a: int,
    b: int,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What one tile adds to the gradients of rows and columns, before scaling, and to that of the bias."""
    if torch.is_grad_enabled():
        z = block @ other.T * scale + bias
        w = z.masked_fill(pairs.left_out(z, rows, a, b), float("-inf")).sigmoid() * grad[:, None]
        return w @ other, w.T @ block, w.sum()
    if kept is None:
        z = similarities(block * scale, other).add_(bias)
        pairs.leave_out(z, rows, a, b)
        kept = z.sigmoid_()
    w = kept * grad[:, None]
    return weighted_sum(w, other), transposed_weighted_sum(w, block), w.sum()


def _dense_softplus(query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor | float, pairs: Pairs) -> Tensor:
    """The same by ordinary operations, see :mod:`contrastive_core.losses.dense`."""
    z = query @ key.T * scale + bias
    return F.softplus(z.masked_fill(pairs.left_out(z, len(query)), float("-inf"))).sum(1)


def _pair_softplus(
    query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor | float, pairs: Pairs, tile: int
) -> Tensor:
    compiled = torch.compiler.is_compiling()
    if is_transformed(query) or (compiled and len(query) * len(key) <= TILE * TILE):
        return _dense_softplus(query, key, scale, bias, pairs)
    run = torch.compiler.disable(_PairSoftplus.apply) if compiled else _PairSoftplus.apply
    return run(query, key, scale, bias, pairs, tile)
