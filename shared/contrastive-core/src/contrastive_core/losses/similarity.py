"""The one kernel below every softmax contrastive loss: log-sum-exp of similarities, streamed in tiles.

A softmax loss is ``log(1 + sum over negatives of exp(s_in - s_ip))``. Only the sum touches all pairs; here it is an
autograd primitive that holds one tile of similarities at a time, remembers one number a row (and a column), and
computes the tiles again in backward. No matrix, mask or index list of all pairs ever exists. The positive is left out
of the sum and computed on its own, in full precision, so that rounded products cannot cancel against it.

A problem of one tile is computed at once. Under :mod:`torch.func`, on meta tensors and in small compiled graphs the
terms are those of :mod:`contrastive_core.losses.dense`; on a GPU with Triton those of
:mod:`contrastive_core.losses.fused`.
"""

import importlib.util
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrastive_core.losses import tiles as streamed
from contrastive_core.losses.dense import dense_terms, gradient
from contrastive_core.losses.kernel import Pairs, Precision, Settings, Terms, is_transformed, without_autocast
from contrastive_core.losses.one_tile import OneTile


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


def pair_terms(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    settings: Settings,
    classes: tuple[Tensor, Tensor] | None = None,
) -> Terms:
    """Log-sum-exp of rows, of columns if asked for, and the similarity of row i with key i where ``paired``.

    Where ``classes`` of queries and keys are given, only pairs of one class enter.
    """
    ids = None if query_ids is None or key_ids is None else (query_ids, key_ids)
    pairs = Pairs(partner=settings.paired, ids=ids, classes=classes)
    return _terms(_compute_dtype(query), _compute_dtype(key), scale, pairs, settings)


def self_terms(
    x: Tensor, scale: Tensor | float, ids: Tensor | None, settings: Settings, classes: Tensor | None = None
) -> tuple[Tensor, Any]:
    """Log-sum-exp of rows over all other rows, and the similarity of rows i and i + n/2, for both, where ``paired``."""
    both = [None if each is None else (each, each) for each in (ids, classes)]
    pairs = Pairs(same=True, partner=settings.paired, ids=both[0], classes=both[1])
    x = _compute_dtype(x)
    rows, _, partners = _terms(x, x, scale, pairs, settings)
    return rows, partners


def _compute_dtype(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _terms(left: Tensor, right: Tensor, scale: Tensor | float, pairs: Pairs, settings: Settings) -> Terms:
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
    ) -> Terms:
        ctx.way = _way(left, right, settings)(left, left if right is None else right, scale, pairs, settings)
        rows, columns, partners = ctx.way.forward(keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(left, right, scale if isinstance(scale, Tensor) else None, rows, columns)
        ctx.scale, ctx.pairs, ctx.settings = scale, pairs, settings
        return rows, columns, partners

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Any, grad_partners: Any) -> tuple[Tensor | None, ...]:
        left, right, scale, rows, columns = ctx.saved_tensors
        scale = ctx.scale if scale is None else scale
        with without_autocast(left):
            if torch.is_grad_enabled():  # the gradient itself is to be differentiated
                grads = gradient(
                    left,
                    left if right is None else right,
                    scale,
                    ctx.pairs,
                    (rows, grad_rows),
                    None if columns is None else (columns, grad_columns),
                    grad_partners,
                    normalise=ctx.settings.normalise,
                    tile=ctx.settings.tile,
                )
            else:
                grads = ctx.way.backward(rows, columns, grad_rows, grad_columns, grad_partners, ctx.needs_input_grad)
        grad_right = None if right is None else grads[1]
        return grads[0], grad_right, grads[2] if ctx.needs_input_grad[2] else None, None, None


def _way(left: Tensor, right: Tensor | None, settings: Settings) -> Any:
    """The form of the kernel for a problem and the device it is on."""
    if settings.one_tile(len(left), len(left if right is None else right)):
        return OneTile
    if not _on_chip(left):
        return _ManyTiles
    from contrastive_core.losses.fused import Fused

    return Fused


def _on_chip(x: Tensor) -> bool:
    """Whether Triton computes it: float32 sums on a GPU."""
    return x.is_cuda and x.dtype == torch.float32 and importlib.util.find_spec("triton") is not None


class _ManyTiles:
    """A problem of many tiles, which are computed twice."""

    def __init__(self, left: Tensor, right: Tensor, scale: Tensor | float, pairs: Pairs, settings: Settings) -> None:
        self.scale, self.pairs, self.settings = scale, pairs, settings
        self.inverse: tuple[Tensor | None, Tensor | None] = (None, None)
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

    def forward(self, *, keep: bool) -> Terms:
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
