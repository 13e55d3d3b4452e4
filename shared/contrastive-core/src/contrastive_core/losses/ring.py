"""Log-sum-exp over the keys of all processes, which travel from rank to rank."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrastive_core.distributed import Ring
from contrastive_core.losses import tiles as streamed
from contrastive_core.losses.kernel import Pairs, Precision, Settings, is_transformed, without_autocast
from contrastive_core.losses.rows import full_precision


def ring_logsumexp(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "m d"],
    scale: float | Float[Tensor, ""],
    *,
    query_ids: Int[Tensor, " n"] | None = None,
    key_ids: Int[Tensor, " m"] | None = None,
    tile: int | None = None,
    precision: Precision = "exact",
) -> Float[Tensor, " n"]:
    """Log-sum-exp of this process's queries over the keys of all processes, which travel from rank to rank.

    No process ever holds more than two blocks of keys. In backward the blocks travel once more, and the gradient of
    each block travels with it until it is home. In one process this is :func:`pair_logsumexp`.

    Args:
        query: This process's queries, of norm at most one.
        key: This process's keys, of norm at most one; their number may differ between processes.
        scale: Inverse temperature; a tensor is differentiated.
        query_ids: Ids of the queries; a pair with equal ids is left out.
        key_ids: Ids of the keys.
        tile: Side of the tiles; chosen from the problem when absent.
        precision: ``bf16`` multiplies tiles in bfloat16 and sums in float32.

    Returns:
        ``[n]``; minus infinity where every pair was left out.
    """
    query, key = full_precision(query), full_precision(key)
    scale = scale.to(query) if isinstance(scale, Tensor) else scale
    if is_transformed(query):
        raise RuntimeError("keys that travel in a ring know no transforms of torch.func and no meta tensors")
    settings = Settings(tile=tile, precision=precision)
    with without_autocast(query):
        run = torch.compiler.disable(_RingLogSumExp.apply) if torch.compiler.is_compiling() else _RingLogSumExp.apply
        rows: Tensor = run(query, key, scale, query_ids, key_ids, settings)
    return rows


class _RingLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scale: Tensor | float,
        query_ids: Tensor | None,
        key_ids: Tensor | None,
        settings: Settings,
    ) -> Tensor:
        safe = settings.safe(scale)
        rows = streamed.Running(query, len(query), safe)
        for tiles in _ring_tiles(Ring([key] if key_ids is None else [key, key_ids]), query, scale, query_ids, settings):
            streamed.forward(tiles, rows, None, keep=False)
        lse = rows.result()
        ctx.save_for_backward(query, key, lse, query_ids, key_ids, scale if isinstance(scale, Tensor) else None)
        ctx.scale, ctx.settings = scale, settings
        return lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, lse, query_ids, key_ids, scale = ctx.saved_tensors
        scale = ctx.scale if scale is None else scale
        if torch.is_grad_enabled():
            raise RuntimeError(
                "keys that travel in a ring have no second derivatives: use gather=True where a gradient is "
                "differentiated (create_graph=True)"
            )
        with without_autocast(query):
            grad_query = torch.zeros_like(query)
            ring = Ring([key] if key_ids is None else [key, key_ids], passenger=torch.zeros_like(key))
            for tiles in _ring_tiles(ring, query, scale, query_ids, ctx.settings):
                streamed.backward(tiles, [], (lse, grad), None, grad_query, ring.passenger)
            grad_scale = streamed.finish(grad_query, tiles.left, scale)
            grad_key = ring.passenger * scale
        return grad_query, grad_key, grad_scale if ctx.needs_input_grad[2] else None, None, None, None


def _ring_tiles(
    ring: Ring, query: Tensor, scale: Tensor | float, query_ids: Tensor | None, settings: Settings
) -> Iterator[streamed.Tiles]:
    """The tiles of every block of keys that comes along."""
    dtype = torch.bfloat16 if settings.precision == "bf16" else query.dtype
    left = streamed.Operand(query, dtype, normalise=False)
    for block, *ids in ring:
        pairs = Pairs(ids=(query_ids, ids[0]) if ids and query_ids is not None else None)
        right = streamed.Operand(block, dtype, normalise=False)
        yield streamed.Tiles(left, right, scale, pairs, settings.tile, settings.safe(scale))
