"""The one kernel below every softmax contrastive loss: log-sum-exp of similarities, streamed in tiles.

A softmax loss is ``log(1 + sum over negatives of exp(s_in - s_ip))``. Only the sum touches all pairs; here it is an
autograd primitive that holds one tile of similarities at a time, remembers one number a row (and a column), and
computes the tiles again in backward. No matrix, mask or index list of all pairs ever exists. The positive is left out
of the sum and computed on its own, in full precision, so that rounded products cannot cancel against it.

A problem of one tile is computed at once. Under :mod:`torch.func`, on meta tensors and in small compiled graphs the
terms are those of :mod:`contrastive_core.losses.dense`; on a GPU with Triton those of
:mod:`contrastive_core.losses.fused`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrastive_core.distributed import Ring
from contrastive_core.losses import tiles as streamed
from contrastive_core.losses.dense import Pairs, dense_terms, for_backward, gradient
from contrastive_core.losses.products import TILE, similarities, transposed_weighted_sum, weighted_sum

Precision = Literal["exact", "bf16"]

_SAFE_EXPONENT = 40.0
"""Where no similarity is larger, neither exponentials nor their sums nor products of two can leave float32's range."""

_TINY = 1e-30
"""Less than any sum of safe exponentials that is not empty."""


def pair_logsumexp(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "m d"],
    scale: float | Float[Tensor, ""],
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
        scale: Inverse temperature; a tensor is differentiated.
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
    return rows, query.new_empty(0) if cols is None else cols


def self_logsumexp(
    embeddings: Float[Tensor, "n d"],
    scale: float | Float[Tensor, ""],
    *,
    ids: Int[Tensor, " n"] | None = None,
    tile: int | None = None,
    precision: Precision = "exact",
    unit_rows: bool = True,
) -> Float[Tensor, " n"]:
    """Log-sum-exp of ``scale * x @ x.T`` over all other rows; each tile above the diagonal serves two row blocks.

    Args:
        embeddings: One row per item.
        scale: Inverse temperature; a tensor is differentiated.
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


class Settings(NamedTuple):
    """How the kernel runs.

    Attributes:
        columns: Also compute the statistics over queries.
        tile: Side of the tiles, or chosen from the problem.
        precision: ``exact``, or ``bf16`` products.
        unit_rows: The rows have norm at most one.
        normalise: Divide every row by its norm, block by block; a row of norm zero stays zero and gets no gradient.
        paired: Leave each row's partner out of the sums and return its similarity.
    """

    columns: bool = False
    tile: int | None = None
    precision: Precision = "exact"
    unit_rows: bool = True
    normalise: bool = False
    paired: bool = False

    def safe(self, scale: Tensor | float) -> bool:
        """Whether exponentials of similarities cannot overflow, so that no maximum has to be searched."""
        bound = scale.detach().abs() if isinstance(scale, Tensor) else abs(scale)
        return (self.unit_rows or self.normalise) and float(bound) <= _SAFE_EXPONENT

    def one_tile(self, rows: int, columns: int) -> bool:
        """Whether the problem is no larger than a tile."""
        if self.tile is None:
            return rows * columns <= TILE * TILE
        return max(rows, columns) <= self.tile


def pair_terms(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    settings: Settings,
    classes: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-sum-exp of rows, of columns if asked for, and the similarity of row i with key i where ``paired``.

    Where ``classes`` of queries and keys are given, only pairs of one class enter.
    """
    ids = None if query_ids is None or key_ids is None else (query_ids, key_ids)
    pairs = Pairs(partner=settings.paired, ids=ids, classes=classes)
    return _terms(_compute_dtype(query), _compute_dtype(key), scale, pairs, settings)


def self_terms(
    x: Tensor, scale: Tensor | float, ids: Tensor | None, settings: Settings, classes: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of rows over all other rows, and the similarity of rows i and i + n/2, for both, where ``paired``."""
    both = [None if each is None else (each, each) for each in (ids, classes)]
    pairs = Pairs(same=True, partner=settings.paired, ids=both[0], classes=both[1])
    x = _compute_dtype(x)
    rows, _, partners = _terms(x, x, scale, pairs, settings)
    return rows, partners


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
    query, key = _compute_dtype(query), _compute_dtype(key)
    scale = scale.to(query) if isinstance(scale, Tensor) else scale
    if is_transformed(query):
        raise RuntimeError("keys that travel in a ring know no transforms of torch.func and no meta tensors")
    settings = Settings(tile=tile, precision=precision)
    with without_autocast(query):
        run = torch.compiler.disable(_RingLogSumExp.apply) if torch.compiler.is_compiling() else _RingLogSumExp.apply
        rows: Tensor = run(query, key, scale, query_ids, key_ids, settings)
    return rows


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where autocast is on, a context that turns it off for the device of ``x``."""
    kind = x.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else contextlib.nullcontext()


def is_transformed(x: Tensor) -> bool:
    """Whether values are not at hand: :mod:`torch.func` is at work, or the tensor has none."""
    return torch._C._are_functorch_transforms_active() or x.is_meta


def _compute_dtype(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _terms(
    left: Tensor, right: Tensor, scale: Tensor | float, pairs: Pairs, settings: Settings
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if isinstance(scale, Tensor):
        scale = scale.to(left)
    with without_autocast(left):
        compiled = torch.compiler.is_compiling()
        if is_transformed(left) or (compiled and settings.one_tile(len(left), len(right))):
            half = settings.precision == "bf16"
            return dense_terms(
                left, right, scale, pairs, normalise=settings.normalise, columns=settings.columns, half=half
            )
        # Unrolled, a loop over tiles would take a compiler minutes: it runs between two graphs.
        run = torch.compiler.disable(_Terms.apply) if compiled else _Terms.apply
        return run(left, None if pairs.same else right, scale, pairs, settings)


class _Terms(torch.autograd.Function):
    """Rows, columns and partners; ``right`` is absent where both sides are the same."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor | None, scale: Tensor | float, pairs: Pairs, settings: Settings
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        way = _OneTile if settings.one_tile(len(left), len(left if right is None else right)) else _ManyTiles
        ctx.way = way(left, left if right is None else right, scale, pairs, settings)
        rows, columns, partners = ctx.way.forward(keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(left, right, scale if isinstance(scale, Tensor) else None, rows, columns)
        ctx.scale, ctx.pairs, ctx.settings = scale, pairs, settings
        return rows, columns, partners

    @staticmethod
    def backward(
        ctx: Any, grad_rows: Tensor, grad_columns: Tensor | None, grad_partners: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        left, right, scale, rows, columns = ctx.saved_tensors
        scale = ctx.scale if scale is None else scale
        with without_autocast(left):
            if torch.is_grad_enabled():  # the gradient itself is to be differentiated
                of_columns = None if columns is None else (columns, grad_columns)
                terms = (ctx.pairs, (rows, grad_rows), of_columns, grad_partners)
                both = left if right is None else right
                grads = gradient(left, both, scale, *terms, normalise=ctx.settings.normalise, tile=ctx.settings.tile)
            else:
                grads = ctx.way.backward(rows, columns, grad_rows, grad_columns, grad_partners, ctx.needs_input_grad)
        grad_right = None if right is None else grads[1]
        return grads[0], grad_right, grads[2] if ctx.needs_input_grad[2] else None, None, None


class _OneTile:
    """A problem of one tile: its exponentials stay until backward."""

    def __init__(self, left: Tensor, right: Tensor, scale: Tensor | float, pairs: Pairs, settings: Settings) -> None:
        self.scale, self.pairs = scale, pairs
        self.safe, self.columns, self.half = settings.safe(scale), settings.columns, settings.precision == "bf16"
        self.u, self.inverse_u = left, None
        self.v, self.inverse_v = right, None
        if settings.normalise:
            self.inverse_u = streamed.inverse_norms(left)
            self.u = left * self.inverse_u
        if pairs.same:
            self.v = self.u
        elif settings.normalise:
            self.inverse_v = streamed.inverse_norms(right)
            self.v = right * self.inverse_v

    def forward(self, *, keep: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dtype, same = self.u.dtype, self.pairs.same
        scaled = self.u * self.scale
        s = similarities(scaled.bfloat16(), self.v.bfloat16()) if self.half else similarities(scaled, self.v)
        partners = None
        if self.pairs.partner:
            half = len(s) // 2
            if not self.half:
                partners = s.diagonal(half if same else 0).clone()
            elif same:
                partners = (scaled[:half] * self.v[half:]).sum(1)
            else:
                partners = (scaled * self.v).sum(1)
            partners = partners.repeat(2) if same else partners
        self.pairs.leave_out(s, len(s))
        if not self.safe:
            s = s.to(dtype)
            self.tile = (s, s, s)
            return s.logsumexp(1), s.logsumexp(0) if self.columns else None, partners
        e = s.exp_()
        rows = e.sum(1, dtype=dtype)
        columns = e.sum(0, dtype=dtype) if self.columns else None
        self.tile = (e, rows, columns)
        return rows.log(), None if columns is None else columns.log(), partners

    def _weights(self, rows: Tensor, columns: Tensor | None, grad_rows: Tensor, grad_columns: Tensor | None) -> Tensor:
        e, row_sums, column_sums = self.tile
        if self.pairs.same:
            columns, column_sums, grad_columns = rows, row_sums, grad_rows
        if self.safe:
            factor = (grad_rows / row_sums.clamp_min(_TINY))[:, None]
            if columns is not None:
                factor = factor + (factor[:, 0] if self.pairs.same else grad_columns / column_sums.clamp_min(_TINY))
            return e * (factor.bfloat16() if self.half else factor)
        w = (e - for_backward(rows)[:, None]).exp_().mul_(grad_rows[:, None])
        if columns is not None:
            w += (e - for_backward(columns)).exp_().mul_(grad_columns)
        return w.bfloat16() if self.half else w

    def backward(
        self,
        rows: Tensor,
        columns: Tensor | None,
        grad_rows: Tensor,
        grad_columns: Tensor | None,
        grad_partners: Tensor | None,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        same, u, v = self.pairs.same, self.u, self.v
        w = self._weights(rows, columns, grad_rows, grad_columns)
        half = len(w) // 2
        if grad_partners is not None and same:
            grad_partners = grad_partners[:half] + grad_partners[half:]
        apart = grad_partners is not None and self.half
        if grad_partners is not None and not apart:  # they were left out: their weights are zero so far
            for offset in (half, -half) if same else (0,):
                w.diagonal(offset).copy_(grad_partners)
        grad_u = grad_v = grad_scale = None
        if needed[0] or needed[2]:
            grad_u = weighted_sum(w, v.bfloat16()).to(u) if self.half else weighted_sum(w, v)
            if apart:
                weight = grad_partners.repeat(2) if same else grad_partners
                grad_u.addcmul_(v.roll(half, 0) if same else v, weight[:, None])
            along = (grad_u * u).sum(1, keepdim=True)
            if needed[2]:
                grad_scale = along.sum() / (2 if same else 1)  # there every pair was counted from both of its ends
            grad_u = self._finish(grad_u, u, along, self.inverse_u)
        if needed[1]:
            grad_v = transposed_weighted_sum(w, u.bfloat16()).to(v) if self.half else transposed_weighted_sum(w, u)
            if apart:
                grad_v.addcmul_(u, grad_partners[:, None])
            along = (grad_v * v).sum(1, keepdim=True) if self.inverse_v is not None else grad_v
            grad_v = self._finish(grad_v, v, along, self.inverse_v)
        return grad_u, grad_v, grad_scale

    def _finish(self, grad: Tensor, unit: Tensor, along: Tensor, inverse: Tensor | None) -> Tensor:
        if inverse is None:
            return grad.mul_(self.scale)
        return grad.addcmul_(unit, along, value=-1).mul_(inverse * self.scale)


class _ManyTiles:
    """A problem of many tiles, which are computed twice."""

    def __init__(self, left: Tensor, right: Tensor, scale: Tensor | float, pairs: Pairs, settings: Settings) -> None:
        self.scale, self.pairs, self.settings = scale, pairs, settings
        self.inverse = (None, None)
        self.inputs = (left, right)
        if settings.normalise:
            first = streamed.inverse_norms(left)
            self.inverse = (first, first if pairs.same else streamed.inverse_norms(right))
        self.safe = settings.safe(scale)

    def _tiles(self) -> streamed.Tiles:
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else self.inputs[0].dtype
        left, right = (
            streamed.Operand(x, dtype, normalise=self.settings.normalise, inverse=inverse)
            for x, inverse in zip(self.inputs, self.inverse, strict=True)
        )
        right = left if self.pairs.same else right
        return streamed.Tiles(left, right, self.scale, self.pairs, self.settings.tile, self.safe)

    def forward(self, *, keep: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        tiles, same = self._tiles(), self.pairs.same
        left, right = self.inputs
        rows = streamed.Running(left, len(left), self.safe)
        columns = streamed.Running(right, len(right), self.safe) if self.settings.columns and not same else None
        self.kept = streamed.forward(tiles, rows, rows if same else columns, keep=keep)
        partners = None
        if self.pairs.partner:
            partners = streamed.partners(tiles.left, tiles.right, self.scale, len(left) // 2 if same else 0)
            partners = partners.repeat(2) if same else partners
        return rows.result(), None if columns is None else columns.result(), partners

    def backward(
        self,
        rows: Tensor,
        columns: Tensor | None,
        grad_rows: Tensor,
        grad_columns: Tensor | None,
        grad_partners: Tensor | None,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        tiles, same = self._tiles(), self.pairs.same
        left, right = self.inputs
        grad_left = torch.zeros_like(left) if needed[0] or needed[2] else None
        grad_right = grad_left if same else (torch.zeros_like(right) if needed[1] else None)
        statistics = (rows, grad_rows)
        of_columns = statistics if same else None
        if columns is not None and grad_columns is not None:
            of_columns = (columns, grad_columns)
        streamed.backward(tiles, self.kept, statistics, of_columns, grad_left, grad_right)
        if grad_partners is not None:
            half = len(left) // 2 if same else 0
            grad_partners = grad_partners[:half] + grad_partners[half:] if same else grad_partners
            streamed.add_partners(grad_left, grad_right, grad_partners, tiles.left, tiles.right, half)
        # d lse / d scale sums w * (q.k), which is <q, dq / scale>; of one set every pair is counted from both ends.
        grad_scale = None
        if grad_left is not None:
            grad_scale = streamed.finish(grad_left, tiles.left, self.scale) / (2 if same else 1)
        if grad_right is not None and not same:
            streamed.finish(grad_right, tiles.right, self.scale)
        return grad_left, grad_right, grad_scale


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
