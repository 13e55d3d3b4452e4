"""Pairwise sigmoid loss of two modalities, tile by tile."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from contrastive_core.distributed import gather as gather_rows
from contrastive_core.losses.products import similarities, transposed_weighted_sum, weighted_sum
from contrastive_core.losses.rows import (
    Reduction,
    Temperature,
    check_pair,
    gathered,
    inverse_temperature,
    local_sizes,
    normalise,
    reduce,
)
from contrastive_core.losses.similarity import TILE


def siglip(
    image: Float[Tensor, "n d"],
    text: Float[Tensor, "n d"],
    *,
    logit_scale: Temperature = 10.0,
    logit_bias: float | Float[Tensor, ""] = -10.0,
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
    scale = 1 / inverse_temperature(logit_scale, image)
    bias = torch.as_tensor(logit_bias, dtype=scale.dtype, device=scale.device)
    x, t = normalise(image), normalise(text)
    counts = local_sizes(x, gather)
    key_ids = None if ids is None else (gather_rows(ids, counts) if gather else ids)
    with torch.autocast(x.device.type, enabled=False):
        # Where ids leave pairs out, the own text is left out with them and comes back in below.
        pairs: Tensor = _PairSoftplus.apply(x, gathered(t, counts, gather), scale, bias, ids, key_ids, tile)
    positive = (x * t).sum(1) * scale + bias
    losses = pairs - positive if ids is None else pairs + F.softplus(-positive)
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
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scale: Tensor,
        bias: Tensor,
        query_ids: Tensor | None,
        key_ids: Tensor | None,
        tile: int,
    ) -> Tensor:
        rows = query.new_zeros(len(query))
        for a in range(0, len(query), tile):
            block = query[a : a + tile] * scale
            for b in range(0, len(key), tile):
                z = similarities(block, key[b : b + tile]).add_(bias)
                _leave_out(z, query_ids, key_ids, a, b)
                rows[a : a + tile] += F.softplus(z).sum(1)
        ctx.save_for_backward(query, key, scale, bias, query_ids, key_ids)
        ctx.tile = tile
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, scale, bias, query_ids, key_ids = ctx.saved_tensors
        tile = ctx.tile
        grad_query, grad_key, grad_bias = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(bias)
        with torch.autocast(query.device.type, enabled=False):
            for a in range(0, len(query), tile):
                block = query[a : a + tile]
                for b in range(0, len(key), tile):
                    other = key[b : b + tile]
                    z = similarities(block * scale, other).add_(bias)
                    _leave_out(z, query_ids, key_ids, a, b)
                    w = z.sigmoid_().mul_(grad[a : a + tile, None])
                    grad_query[a : a + tile] += weighted_sum(w, other)
                    grad_key[b : b + tile] += transposed_weighted_sum(w, block)
                    grad_bias += w.sum()
        grad_scale = (grad_query * query).sum()
        return grad_query * scale, grad_key * scale, grad_scale, grad_bias, None, None, None


def _leave_out(z: Tensor, query_ids: Tensor | None, key_ids: Tensor | None, a: int, b: int) -> None:
    if query_ids is not None and key_ids is not None:
        same = query_ids[a : a + len(z), None] == key_ids[None, b : b + z.shape[1]]
        z.masked_fill_(same, float("-inf"))
