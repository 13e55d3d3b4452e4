"""The one kernel below every softmax contrastive loss: log-sum-exp of similarities, streamed in tiles.

A softmax loss is ``logsumexp over keys - mean over positives``. Only the first term touches all pairs; here it is an
autograd primitive that holds one tile of similarities at a time, remembers one number a row (and a column), and
computes the tiles again in backward. No matrix, mask or index list of all pairs ever exists.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

Precision = Literal["exact", "bf16"]

TILE = 1024
"""Side of a square tile: 4 MiB of float32, which stays in the cache of a core while it is worked on."""

_SAFE_EXPONENT = 80.0
"""exp(-80) is a normal float32 number, exp(-88) is not."""


def pair_logsumexp(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "m d"],
    scale: Float[Tensor, ""],
    *,
    query_ids: Int[Tensor, " n"] | None = None,
    key_ids: Int[Tensor, " m"] | None = None,
    columns: bool = False,
    tile: int | None = None,
    precision: Precision = "exact",
    unit_rows: bool = True,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
    """Log-sum-exp of ``scale * query @ key.T`` over keys and, if asked for, over queries, in one pass.

    Args:
        query: One row per query.
        key: One row per key.
        scale: Inverse temperature; a tensor with gradient is differentiated.
        query_ids: Ids of the queries; a pair with equal ids is left out.
        key_ids: Ids of the keys.
        columns: Also return the statistics over queries, one per key (else an empty tensor).
        tile: Side of the tiles; chosen from the problem when absent.
        precision: ``bf16`` multiplies tiles in bfloat16 and sums in float32.
        unit_rows: The rows have norm at most one, so that ``scale`` bounds every similarity.

    Returns:
        ``(rows [n], columns [m] or [0])``; minus infinity where every pair was left out.
    """
    query, key = _compute_dtype(query), _compute_dtype(key)
    scale = scale.to(query)
    bound = float(scale.detach().abs()) if unit_rows else float("inf")
    with torch.autocast(query.device.type, enabled=False):
        rows, cols = _PairLogSumExp.apply(query, key, scale, query_ids, key_ids, columns, tile, precision, bound)
    return rows, cols


def self_logsumexp(
    embeddings: Float[Tensor, "n d"],
    scale: Float[Tensor, ""],
    *,
    ids: Int[Tensor, " n"] | None = None,
    tile: int | None = None,
    precision: Precision = "exact",
    unit_rows: bool = True,
) -> Float[Tensor, " n"]:
    """Log-sum-exp of ``scale * x @ x.T`` over all other rows; each tile above the diagonal serves two row blocks.

    Args:
        embeddings: One row per item.
        scale: Inverse temperature; a tensor with gradient is differentiated.
        ids: Pairs with equal ids are left out, besides each row with itself.
        tile: Side of the tiles; chosen from the problem when absent.
        precision: ``bf16`` multiplies tiles in bfloat16 and sums in float32.
        unit_rows: The rows have norm at most one, so that ``scale`` bounds every similarity.

    Returns:
        ``[n]``; minus infinity where a row has nothing left.
    """
    embeddings = _compute_dtype(embeddings)
    scale = scale.to(embeddings)
    bound = float(scale.detach().abs()) if unit_rows else float("inf")
    with torch.autocast(embeddings.device.type, enabled=False):
        rows: Tensor = _SelfLogSumExp.apply(embeddings, scale, ids, tile, precision, bound)
    return rows


def _compute_dtype(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _blocks(count: int, other: int, tile: int | None) -> list[slice]:
    """Row blocks of one side: everything at once where the whole problem is no larger than a tile."""
    side = tile if tile is not None else (max(count, 1) if count * other <= TILE * TILE else TILE)
    return [slice(start, min(start + side, count)) for start in range(0, count, side)]


class _Operand:
    """Rows ready to be multiplied: scaled once, and rounded once if tiles are to be bfloat16."""

    def __init__(self, x: Tensor, precision: Precision) -> None:
        self.x = x if precision == "exact" else x.to(torch.bfloat16)
        self.dtype = x.dtype

    def similarities(self, rows: slice, other: "_Operand", columns: slice) -> Tensor:
        product = self.x[rows] @ other.x[columns].T
        return product if product.dtype == self.dtype else product.to(self.dtype)


class _Running:
    """Log-sum-exp that grows block by block.

    Where a bound on every similarity is known and small, the shift is that bound and no maximum is searched; else the
    shift is the running maximum.
    """

    def __init__(self, like: Tensor, count: int, bound: float) -> None:
        self.fixed = 2 * bound <= _SAFE_EXPONENT
        start = bound if self.fixed else float("-inf")
        self.shift = like.new_full((count,), start)
        self.total = like.new_zeros(count)

    def add(self, block: slice, s: Tensor, dim: int, scratch: Tensor | None = None) -> None:
        """Add the exponentials of ``s`` along ``dim`` to the rows in ``block``; ``scratch`` may be overwritten."""
        if self.fixed:
            e = torch.sub(s, self.shift[block].unsqueeze(dim), out=scratch).exp_()
            self.total[block] += e.sum(dim)
            return
        old = self.shift[block]
        new = torch.maximum(old, s.amax(dim))
        safe = new.masked_fill(new == float("-inf"), 0.0)  # nothing but excluded pairs so far
        e = torch.sub(s, safe.unsqueeze(dim), out=scratch).exp_()
        self.total[block] = self.total[block] * (old - safe).exp() + e.sum(dim)
        self.shift[block] = new

    def result(self) -> Tensor:
        shift = self.shift.masked_fill(self.shift == float("-inf"), 0.0)
        return self.total.log() + shift


def _exclude(s: Tensor, ids: tuple[Tensor, Tensor] | None, diagonal: bool) -> Tensor:
    if diagonal:
        s.fill_diagonal_(float("-inf"))
    if ids is not None:
        s.masked_fill_(ids[0][:, None] == ids[1][None, :], float("-inf"))
    return s


def _for_backward(lse: Tensor) -> Tensor:
    """A row without candidates has no gradient: exp(s - inf) is zero for every s."""
    return lse.masked_fill(lse == float("-inf"), float("inf"))


def _weights(s: Tensor, lse: Tensor, grad: Tensor, dim: int) -> Tensor:
    return (s - lse.unsqueeze(dim)).exp_().mul_(grad.unsqueeze(dim))


class _PairLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scale: Tensor,
        query_ids: Tensor | None,
        key_ids: Tensor | None,
        columns: bool,
        tile: int | None,
        precision: Precision,
        bound: float,
    ) -> tuple[Tensor, Tensor]:
        left, right = _Operand(query * scale, precision), _Operand(key, precision)
        rows = _Running(query, len(query), bound)
        cols = _Running(key, len(key) if columns else 0, bound)
        for a in _blocks(len(query), len(key), tile):
            for b in _blocks(len(key), len(query), tile):
                ids = None if query_ids is None or key_ids is None else (query_ids[a], key_ids[b])
                s = _exclude(left.similarities(a, right, b), ids, diagonal=False)
                if columns:
                    cols.add(b, s, 0)
                rows.add(a, s, 1, scratch=s)
        row_lse, col_lse = rows.result(), cols.result()
        ctx.save_for_backward(query, key, scale, row_lse, col_lse, query_ids, key_ids)
        ctx.columns, ctx.tile, ctx.precision = columns, tile, precision
        return row_lse, col_lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor) -> tuple[Tensor | None, ...]:
        query, key, scale, row_lse, col_lse, query_ids, key_ids = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            row_lse, col_lse = _for_backward(row_lse), _for_backward(col_lse)
            left, right = _Operand(query * scale, ctx.precision), _Operand(key, ctx.precision)
            grad_query, grad_key = torch.zeros_like(query), torch.zeros_like(key)
            for a in _blocks(len(query), len(key), ctx.tile):
                for b in _blocks(len(key), len(query), ctx.tile):
                    ids = None if query_ids is None or key_ids is None else (query_ids[a], key_ids[b])
                    s = _exclude(left.similarities(a, right, b), ids, diagonal=False)
                    extra = _weights(s, col_lse[b], grad_columns[b], 0) if ctx.columns else None
                    w = s.sub_(row_lse[a, None]).exp_().mul_(grad_rows[a, None])
                    if extra is not None:
                        w += extra
                    if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
                        _accumulate(grad_query[a], w, right.x[b])
                    if ctx.needs_input_grad[1]:
                        _accumulate(grad_key[b], w.T, left.x[a])
            # d lse / d scale sums w * (q.k), which is <q, dq / scale>; the key side was multiplied by the scaled query.
            grad_scale = (grad_query * query).sum() if ctx.needs_input_grad[2] else None
            grad_query *= scale
        return grad_query, grad_key, grad_scale, None, None, None, None, None, None


class _SelfLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        ids: Tensor | None,
        tile: int | None,
        precision: Precision,
        bound: float,
    ) -> Tensor:
        left, right = _Operand(x * scale, precision), _Operand(x, precision)
        rows = _Running(x, len(x), bound)
        blocks = _blocks(len(x), len(x), tile)
        for i, a in enumerate(blocks):
            for b in blocks[i:]:
                s = _exclude(left.similarities(a, right, b), None if ids is None else (ids[a], ids[b]), diagonal=a == b)
                if a != b:
                    if rows.fixed:  # one exponential serves both row blocks
                        e = s.sub_(bound).exp_()
                        rows.total[a] += e.sum(1)
                        rows.total[b] += e.sum(0)
                        continue
                    rows.add(b, s, 0)
                rows.add(a, s, 1, scratch=s)
        lse = rows.result()
        ctx.save_for_backward(x, scale, lse, ids)
        ctx.tile, ctx.precision = tile, precision
        ctx.fixed, ctx.bound = rows.fixed, bound
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, lse, ids = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            lse = _for_backward(lse)
            left, right = _Operand(x * scale, ctx.precision), _Operand(x, ctx.precision)
            grad_x = torch.zeros_like(x)
            blocks = _blocks(len(x), len(x), ctx.tile)
            # With a common shift, exp(s_ij - lse_i) g_i + exp(s_ij - lse_j) g_j is one exponential times c_i + c_j.
            factor = (ctx.bound - lse).exp() * grad if ctx.fixed else None
            for i, a in enumerate(blocks):
                for b in blocks[i:]:
                    s = _exclude(
                        left.similarities(a, right, b), None if ids is None else (ids[a], ids[b]), diagonal=a == b
                    )
                    if factor is not None:
                        w = s.sub_(ctx.bound).exp_().mul_(factor[a, None] + factor[None, b])
                    else:
                        extra = _weights(s, lse[b], grad[b], 0)
                        w = s.sub_(lse[a, None]).exp_().mul_(grad[a, None]).add_(extra)
                    _accumulate(grad_x[a], w, right.x[b])
                    if a != b:
                        _accumulate(grad_x[b], w.T, right.x[a])
            # Every pair was counted from both of its ends.
            grad_scale = (grad_x * x).sum() / 2 if ctx.needs_input_grad[1] else None
            grad_x *= scale
        return grad_x, grad_scale, None, None, None, None


def _accumulate(target: Tensor, weights: Tensor, rows: Tensor) -> None:
    """``target += weights @ rows``, multiplied in the dtype of ``rows``."""
    if rows.dtype == target.dtype:
        target.addmm_(weights, rows)
    else:
        target += (weights.to(rows.dtype) @ rows).to(target.dtype)
