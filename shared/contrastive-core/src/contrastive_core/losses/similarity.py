"""The one kernel below every softmax contrastive loss: log-sum-exp of similarities, streamed in tiles.

A softmax loss is ``logsumexp over keys - mean over positives``. Only the first term touches all pairs; here it is an
autograd primitive that holds one tile of similarities at a time, remembers one number a row (and a column), and
computes the tiles again in backward. No matrix, mask or index list of all pairs ever exists.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastive_core.distributed import Ring
from contrastive_core.losses.products import similarities, transposed_weighted_sum, weighted_sum

Precision = Literal["exact", "bf16"]

TILE = 1024
"""Side of a square tile: 4 MiB of float32, which stays in the cache of a core while it is worked on."""

KEPT = 4
"""A batch of at most this many tiles keeps its exponentials for backward instead of computing them twice."""

_STRIPE = 256
"""Rows of a tile that are weighted at once, so that weights need no second tile."""

_SAFE_EXPONENT = 40.0
"""Where no similarity is larger, neither exponentials nor their sums nor products of two can leave float32's range."""

_EPSILON = 1e-12


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
) -> tuple[Float[Tensor, " n"], Float[Tensor, " columns"]]:
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

    Example:
        >>> import torch
        >>> from contrastive_core.losses import pair_logsumexp
        >>> rows, columns = pair_logsumexp(torch.eye(2), torch.eye(2), torch.tensor(1.0), columns=True)
        >>> rows  # log(1 + e)
        tensor([1.3133, 1.3133])
    """
    settings = Settings(columns=columns, tile=tile, precision=precision, unit_rows=unit_rows)
    rows, cols, _ = pair_terms(query, key, scale, query_ids, key_ids, settings)
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

    Example:
        >>> import torch
        >>> from contrastive_core.losses import self_logsumexp
        >>> self_logsumexp(torch.ones(4, 1), torch.tensor(1.0))  # 1 + log(3)
        tensor([2.0986, 2.0986, 2.0986, 2.0986])
    """
    rows, _ = self_terms(embeddings, scale, ids, Settings(tile=tile, precision=precision, unit_rows=unit_rows))
    return rows


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the kernel runs.

    Attributes:
        columns: Also compute the statistics over queries.
        tile: Side of the tiles, or chosen from the problem.
        precision: ``exact``, or ``bf16`` products.
        unit_rows: The rows have norm at most one.
        normalise: Divide every row by its norm, block by block; a row of norm zero stays zero and gets no gradient.
        paired: Also return the similarity of each row with its partner.
    """

    columns: bool = False
    tile: int | None = None
    precision: Precision = "exact"
    unit_rows: bool = True
    normalise: bool = False
    paired: bool = False

    def safe(self, scale: Tensor) -> bool:
        """Whether exponentials of similarities cannot overflow, so that no maximum has to be searched."""
        return (self.unit_rows or self.normalise) and float(scale.detach().abs()) <= _SAFE_EXPONENT


def pair_terms(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`pair_logsumexp` gives, and the similarities of row i with key i where ``settings.paired``."""
    query, key = _compute_dtype(query), _compute_dtype(key)
    scale = scale.to(query)
    with torch.autocast(query.device.type, enabled=False):
        rows, cols, paired = _PairTerms.apply(query, key, scale, query_ids, key_ids, settings)
    return rows, cols, paired


def self_terms(x: Tensor, scale: Tensor, ids: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor]:
    """What :func:`self_logsumexp` gives, and the similarities of row i with row i + n/2 where ``settings.paired``."""
    x = _compute_dtype(x)
    scale = scale.to(x)
    with torch.autocast(x.device.type, enabled=False):
        rows, paired = _SelfTerms.apply(x, scale, ids, settings)
    return rows, paired


def ring_logsumexp(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "m d"],
    scale: Float[Tensor, ""],
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
        scale: Inverse temperature; a tensor with gradient is differentiated.
        query_ids: Ids of the queries; a pair with equal ids is left out.
        key_ids: Ids of the keys.
        tile: Side of the tiles; chosen from the problem when absent.
        precision: ``bf16`` multiplies tiles in bfloat16 and sums in float32.

    Returns:
        ``[n]``; minus infinity where every pair was left out.
    """
    query, key = _compute_dtype(query), _compute_dtype(key)
    scale = scale.to(query)
    settings = Settings(tile=tile, precision=precision)
    with torch.autocast(query.device.type, enabled=False):
        rows: Tensor = _RingLogSumExp.apply(query, key, scale, query_ids, key_ids, settings)
    return rows


def _compute_dtype(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _blocks(count: int, other: int, tile: int | None) -> list[slice]:
    """Row blocks of one side: everything at once where the whole problem is no larger than a tile."""
    side = tile if tile is not None else (max(count, 1) if count * other <= TILE * TILE else TILE)
    return [slice(start, min(start + side, count)) for start in range(0, count, side)]


class _Operand:
    """Rows that are normalised, scaled and rounded block by block, when they are multiplied."""

    def __init__(self, x: Tensor, settings: Settings, inverse: Tensor | None = None) -> None:
        self.x = x
        self.dtype = torch.bfloat16 if settings.precision == "bf16" else x.dtype
        self.inverse = _inverse_norms(x) if settings.normalise and inverse is None else inverse
        # A small batch is normalised once; of a large one no second copy is made.
        self.whole = x * self.inverse[:, None] if self.inverse is not None and len(x) <= TILE else None

    def block(self, rows: slice, scale: Tensor | None = None) -> Tensor:
        """Unit rows, scaled, in the dtype of the products."""
        return self.unit(rows, scale).to(self.dtype)

    def unit(self, rows: slice, scale: Tensor | None = None) -> Tensor:
        """Unit rows, scaled."""
        if self.whole is not None or self.inverse is None:
            x = (self.x if self.whole is None else self.whole)[rows]
            return x if scale is None else x * scale
        factor = self.inverse[rows, None]
        return self.x[rows] * (factor if scale is None else factor * scale)


def _inverse_norms(x: Tensor) -> Tensor:
    inverse = torch.linalg.vector_norm(x, dim=1).reciprocal_()
    return inverse.masked_fill_(inverse > 1 / _EPSILON, 0.0)


class _Running:
    """Log-sum-exp that grows block by block, around the running maximum where sums of exponentials could overflow."""

    def __init__(self, like: Tensor, count: int, safe: bool) -> None:
        self.safe = safe
        self.total = like.new_zeros(count)
        self.shift = self.total if self.safe else like.new_full((count,), float("-inf"))

    def add(self, block: slice, s: Tensor, dim: int, scratch: Tensor | None = None) -> None:
        """Add the exponentials of ``s`` along ``dim`` to the rows in ``block``; ``scratch`` may be overwritten."""
        old = self.shift[block]
        new = torch.maximum(old, s.amax(dim))
        finite = new.masked_fill(new == float("-inf"), 0.0)  # nothing but excluded pairs so far
        e = torch.sub(s, finite.unsqueeze(dim), out=scratch).exp_()
        self.total[block] = self.total[block] * (old - finite).exp() + e.sum(dim)
        self.shift[block] = new

    def add_exponentials(self, block: slice, e: Tensor, dim: int) -> None:
        """The same for exponentials, where they are safe."""
        self.total[block] += e.sum(dim, dtype=self.total.dtype)

    def result(self) -> Tensor:
        """Minus infinity where nothing was added."""
        if self.safe:
            return self.total.log()
        shift = self.shift.masked_fill(self.shift == float("-inf"), 0.0)
        return self.total.log() + shift


@dataclasses.dataclass
class _Tiles:
    """The similarities of two sets of rows, tile by tile; of the upper triangle where both are the same set."""

    left: _Operand
    right: _Operand
    scale: Tensor
    ids: tuple[Tensor | None, Tensor | None]
    tile: int | None
    safe: bool
    same: bool = False

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Row block, column block, and the row block's rows, scaled and rounded."""
        n, m = len(self.left.x), len(self.right.x)
        columns = _blocks(m, n, self.tile)
        for i, a in enumerate(_blocks(n, m, self.tile)):
            rows = self.left.block(a, self.scale)
            for b in columns[i:] if self.same else columns:
                yield a, b, rows

    def similarities(self, a: slice, b: slice, rows: Tensor) -> Tensor:
        """One tile in the dtype of the products, minus infinity at excluded pairs."""
        s = similarities(rows, self.right.block(b))
        if self.same and a == b:
            s.fill_diagonal_(float("-inf"))
        if self.ids[0] is not None and self.ids[1] is not None:
            s.masked_fill_(self.ids[0][a, None] == self.ids[1][None, b], float("-inf"))
        return s


def _forward(tiles: _Tiles, rows: _Running, columns: _Running | None, keep: bool) -> list[Tensor]:
    """Add all tiles to the running sums; returns the exponentials of a small batch, where they are wanted."""
    kept: list[Tensor] = []
    keep = keep and len(tiles.left.x) * len(tiles.right.x) <= KEPT * TILE * TILE
    for a, b, block in tiles:
        both = None if tiles.same and a == b else columns
        s = tiles.similarities(a, b, block)
        if tiles.safe:  # one exponential serves the statistics of rows and columns
            e = s.exp_()
            rows.add_exponentials(a, e, 1)
            if both is not None:
                both.add_exponentials(b, e, 0)
            if keep:
                kept.append(e)
            continue
        s = s.to(rows.total.dtype)
        if both is not None:
            both.add(b, s, 0)
        rows.add(a, s, 1, scratch=s)
    return kept


def _backward(
    tiles: _Tiles,
    kept: list[Tensor],
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor] | None,
    grad_left: Tensor | None,
    grad_right: Tensor | None,
) -> None:
    """Add ``d lse / d (left, right)`` before scaling, given (log-sum-exp, upstream gradient) of rows and columns."""
    left, right = tiles.left, tiles.right
    if tiles.safe:
        # exp(s_ij - lse_i) g_i + exp(s_ij - lse_j) g_j is one exponential times c_i + c_j.
        row_factor = (rows[0].neg().exp_() * rows[1]).to(left.dtype)
        column_factor = None if columns is None else (columns[0].neg().exp_() * columns[1]).to(left.dtype)
    for index, (a, b, block) in enumerate(tiles):
        if tiles.safe:
            e = kept[index] if kept else tiles.similarities(a, b, block).exp_()
            w = torch.empty_like(e) if kept else e
            for start in range(0, len(e), _STRIPE):
                stripe = slice(start, min(start + _STRIPE, len(e)))
                factor = row_factor[a][stripe, None]
                factor = factor if column_factor is None else factor + column_factor[None, b]
                torch.mul(e[stripe], factor, out=w[stripe])
        else:
            s = tiles.similarities(a, b, block).to(left.x.dtype)
            extra = None if columns is None else (s - columns[0][None, b]).exp_().mul_(columns[1][None, b])
            w = s.sub_(rows[0][a, None]).exp_().mul_(rows[1][a, None])
            w = (w if extra is None else w.add_(extra)).to(left.dtype)
        if grad_left is not None:
            grad_left[a] += weighted_sum(w, right.block(b))
        if grad_right is not None and not (tiles.same and a == b):
            grad_right[b] += transposed_weighted_sum(w, left.block(a))


def _for_backward(lse: Tensor) -> Tensor:
    """A row without candidates has no gradient: exp(s - inf) is zero for every s."""
    return lse.masked_fill(lse == float("-inf"), float("inf"))


def _finish(grad: Tensor, operand: _Operand, scale: Tensor) -> Tensor:
    """Turn the gradient of unit rows before scaling, in place, into that of the rows; returns ``<unit rows, grad>``."""
    along = torch.empty_like(grad[:, 0])
    for rows in _blocks(len(grad), TILE * TILE, None):
        unit = operand.unit(rows)
        along[rows] = (grad[rows] * unit).sum(1)
        if operand.inverse is not None:
            grad[rows] -= unit * along[rows, None]
            grad[rows] *= operand.inverse[rows, None]
        grad[rows] *= scale
    return along.sum()


def _paired(left: _Operand, right: _Operand, scale: Tensor, shift: int) -> Tensor:
    """Similarity of left row i with right row i + shift."""
    count = len(left.x) - shift
    out = left.x.new_empty(count)
    for rows in _blocks(count, TILE * TILE, None):
        partner = slice(rows.start + shift, rows.stop + shift)
        out[rows] = (left.unit(rows, scale) * right.unit(partner)).sum(1)
    return out


def _add_paired(
    grad_left: Tensor | None,
    grad_right: Tensor | None,
    upstream: Tensor,
    left: _Operand,
    right: _Operand,
    shift: int,
) -> None:
    for rows in _blocks(len(upstream), TILE * TILE, None):
        partner = slice(rows.start + shift, rows.stop + shift)
        if grad_left is not None:
            grad_left[rows].addcmul_(right.unit(partner), upstream[rows, None])
        if grad_right is not None:
            grad_right[partner].addcmul_(left.unit(rows), upstream[rows, None])


class _PairTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scale: Tensor,
        query_ids: Tensor | None,
        key_ids: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        safe = settings.safe(scale)
        left, right = _Operand(query, settings), _Operand(key, settings)
        rows = _Running(query, len(query), safe)
        columns = _Running(key, len(key), safe) if settings.columns else None
        tiles = _Tiles(left, right, scale, (query_ids, key_ids), settings.tile, safe)
        ctx.kept = _forward(tiles, rows, columns, any(ctx.needs_input_grad))
        row_lse = rows.result()
        column_lse = query.new_empty(0) if columns is None else columns.result()
        ctx.save_for_backward(query, key, scale, row_lse, column_lse, query_ids, key_ids, left.inverse, right.inverse)
        ctx.settings, ctx.safe = settings, safe
        paired = _paired(left, right, scale, 0) if settings.paired else query.new_empty(0)
        return row_lse, column_lse, paired

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor, grad_paired: Tensor) -> tuple[Tensor | None, ...]:
        query, key, scale, row_lse, column_lse, query_ids, key_ids, *inverse = ctx.saved_tensors
        settings = ctx.settings
        with torch.autocast(query.device.type, enabled=False):
            left, right = _Operand(query, settings, inverse[0]), _Operand(key, settings, inverse[1])
            grad_query = torch.zeros_like(query) if ctx.needs_input_grad[0] or ctx.needs_input_grad[2] else None
            grad_key = torch.zeros_like(key) if ctx.needs_input_grad[1] else None
            _backward(
                _Tiles(left, right, scale, (query_ids, key_ids), settings.tile, ctx.safe),
                ctx.kept,
                (_for_backward(row_lse), grad_rows),
                (_for_backward(column_lse), grad_columns) if settings.columns else None,
                grad_query,
                grad_key,
            )
            if settings.paired:
                _add_paired(grad_query, grad_key, grad_paired, left, right, 0)
            # d lse / d scale sums w * (q.k), which is <q, dq / scale>.
            grad_scale = None if grad_query is None else _finish(grad_query, left, scale)
            if grad_key is not None:
                _finish(grad_key, right, scale)
        return grad_query, grad_key, grad_scale, None, None, None


class _SelfTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, ids: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor]:
        safe = settings.safe(scale)
        operand = _Operand(x, settings)
        rows = _Running(x, len(x), safe)
        tiles = _Tiles(operand, operand, scale, (ids, ids), settings.tile, safe, same=True)
        ctx.kept = _forward(tiles, rows, rows, any(ctx.needs_input_grad))
        lse = rows.result()
        ctx.save_for_backward(x, scale, lse, ids, operand.inverse)
        ctx.settings, ctx.safe = settings, safe
        paired = _paired(operand, operand, scale, len(x) // 2) if settings.paired else x.new_empty(0)
        return lse, paired

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_paired: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, lse, ids, inverse = ctx.saved_tensors
        settings = ctx.settings
        with torch.autocast(x.device.type, enabled=False):
            operand, grad_x = _Operand(x, settings, inverse), torch.zeros_like(x)
            tiles = _Tiles(operand, operand, scale, (ids, ids), settings.tile, ctx.safe, same=True)
            statistics = (_for_backward(lse), grad)
            _backward(tiles, ctx.kept, statistics, statistics, grad_x, grad_x)
            if settings.paired:
                _add_paired(grad_x, grad_x, grad_paired, operand, operand, len(x) // 2)
            grad_scale = _finish(grad_x, operand, scale) / 2  # every pair was counted from both of its ends
        return grad_x, grad_scale, None, None


class _RingLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scale: Tensor,
        query_ids: Tensor | None,
        key_ids: Tensor | None,
        settings: Settings,
    ) -> Tensor:
        safe = settings.safe(scale)
        left, rows = _Operand(query, settings), _Running(query, len(query), safe)
        ring = Ring([key] if key_ids is None else [key, key_ids])
        for block, *ids in ring:
            pair = (query_ids, ids[0]) if ids else (None, None)
            _forward(_Tiles(left, _Operand(block, settings), scale, pair, settings.tile, safe), rows, None, keep=False)
        lse = rows.result()
        ctx.save_for_backward(query, key, scale, lse, query_ids, key_ids)
        ctx.settings, ctx.safe = settings, safe
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, scale, lse, query_ids, key_ids = ctx.saved_tensors
        settings = ctx.settings
        with torch.autocast(query.device.type, enabled=False):
            left, grad_query = _Operand(query, settings), torch.zeros_like(query)
            ring = Ring([key] if key_ids is None else [key, key_ids], passenger=torch.zeros_like(key))
            for block, *ids in ring:
                pair = (query_ids, ids[0]) if ids else (None, None)
                tiles = _Tiles(left, _Operand(block, settings), scale, pair, settings.tile, ctx.safe)
                _backward(tiles, [], (_for_backward(lse), grad), None, grad_query, ring.passenger)
            grad_scale = _finish(grad_query, left, scale)
            grad_key = ring.passenger * scale
        return grad_query, grad_key, grad_scale, None, None, None
