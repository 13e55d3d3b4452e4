"""Log-sum-exp of similarities and its gradient on a GPU: tiles that never leave the chip, in Triton.

One kernel keeps the running log-sum-exp of a block of rows while it walks over all columns; columns are the rows of the
transposed problem. In backward another kernel recomputes the similarities of a panel of rows and writes their weights,
which ordinary products turn into gradients: memory is that of the panel, whatever the batch. Rows of any width are
walked over in pieces. Products follow the dtype of the operands, float32 or bfloat16, and torch's setting of TF32; sums
are float32.

Imported only where tensors are on a GPU and Triton is there; ``TRITON_INTERPRET=1`` runs the kernels on a CPU.
"""

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from contrastive_core.losses.kernel import Pairs, Settings, Terms, for_backward
from contrastive_core.losses.tiles import inverse_norms

_BLOCK: dict[str, int] = {"block_rows": 128, "block_columns": 128, "piece": 32, "num_warps": 8, "num_stages": 2}

_PANEL = 2**26
"""Weights that exist at once: 256 MiB of float32."""


@triton.jit
def _similarities(
    left: Any,
    right: Any,
    scale: Any,
    i: Any,
    j: Any,
    rows: Any,
    columns: Any,
    width: Any,
    row_ids: Any,
    column_ids: Any,
    row_classes: Any,
    column_classes: Any,
    first: Any,
    half: Any,
    same: tl.constexpr,
    partner: tl.constexpr,
    by_ids: tl.constexpr,
    by_classes: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    piece: tl.constexpr,
    precision: tl.constexpr,
    widen: tl.constexpr,
) -> Any:
    """One block of scaled similarities, minus infinity at what is left out and outside of the matrix."""
    s = tl.zeros((block_rows, block_columns), dtype=tl.float32)
    row_start, column_start = i.to(tl.int64)[:, None] * width, j.to(tl.int64)[:, None] * width
    for start in range(0, width, piece):
        k = start + tl.arange(0, piece)
        inside = (k < width)[None, :]
        a = tl.load(left + row_start + k[None, :], mask=(i < rows)[:, None] & inside, other=0.0)
        b = tl.load(right + column_start + k[None, :], mask=(j < columns)[:, None] & inside, other=0.0)
        if widen:
            a, b = a.to(tl.float32), b.to(tl.float32)
        s = tl.dot(a, tl.trans(b), s, input_precision=precision)
    s = s * scale
    out = (i >= rows)[:, None] | (j >= columns)[None, :]
    place = (i + first)[:, None]  # among all rows, of which these may be a panel
    if same:
        out = out | (place == j[None, :])
    if partner:
        out = out | (place + half == j[None, :]) | (place == j[None, :] + half)
    if by_ids:
        row_id = tl.load(row_ids + i, mask=i < rows, other=0)
        column_id = tl.load(column_ids + j, mask=j < columns, other=0)
        out = out | (row_id[:, None] == column_id[None, :])
    if by_classes:
        row_class = tl.load(row_classes + i, mask=i < rows, other=0)
        column_class = tl.load(column_classes + j, mask=j < columns, other=0)
        out = out | (row_class[:, None] != column_class[None, :])
    return tl.where(out, float("-inf"), s)


@triton.jit
def _logsumexp_kernel(
    out: Any,
    left: Any,
    right: Any,
    scale: Any,
    rows: Any,
    columns: Any,
    width: Any,
    row_ids: Any,
    column_ids: Any,
    row_classes: Any,
    column_classes: Any,
    half: Any,
    same: tl.constexpr,
    partner: tl.constexpr,
    by_ids: tl.constexpr,
    by_classes: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    piece: tl.constexpr,
    precision: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """Log-sum-exp of a block of rows over all columns."""
    i = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    top = tl.full((block_rows,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((block_rows,), dtype=tl.float32)
    for start in range(0, columns, block_columns):
        j = start + tl.arange(0, block_columns)
        s = _similarities(
            left,
            right,
            scale,
            i,
            j,
            rows,
            columns,
            width,
            row_ids,
            column_ids,
            row_classes,
            column_classes,
            0,
            half,
            same,
            partner,
            by_ids,
            by_classes,
            block_rows,
            block_columns,
            piece,
            precision,
            widen,
        )
        new = tl.maximum(top, tl.max(s, 1))
        finite = tl.where(new == float("-inf"), 0.0, new)  # nothing but excluded pairs so far
        total = total * tl.exp(top - finite) + tl.sum(tl.exp(s - finite[:, None]), 1)
        top = new
    some = total > 0.0
    result = tl.where(some, tl.log(tl.where(some, total, 1.0)) + tl.where(some, top, 0.0), float("-inf"))
    tl.store(out + i, result, mask=i < rows)


@triton.jit
def _weights_kernel(
    out: Any,
    left: Any,
    right: Any,
    scale: Any,
    rows: Any,
    columns: Any,
    width: Any,
    row_ids: Any,
    column_ids: Any,
    row_classes: Any,
    column_classes: Any,
    first: Any,
    half: Any,
    row_lse: Any,
    row_grad: Any,
    column_lse: Any,
    column_grad: Any,
    both: tl.constexpr,
    same: tl.constexpr,
    partner: tl.constexpr,
    by_ids: tl.constexpr,
    by_classes: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    piece: tl.constexpr,
    precision: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """Gradient with respect to one block of similarities, given log-sum-exps and what comes from above."""
    i = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    j = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    s = _similarities(
        left,
        right,
        scale,
        i,
        j,
        rows,
        columns,
        width,
        row_ids,
        column_ids,
        row_classes,
        column_classes,
        first,
        half,
        same,
        partner,
        by_ids,
        by_classes,
        block_rows,
        block_columns,
        piece,
        precision,
        widen,
    )
    lse, grad = tl.load(row_lse + i, mask=i < rows, other=0.0), tl.load(row_grad + i, mask=i < rows, other=0.0)
    w = tl.exp(s - lse[:, None]) * grad[:, None]
    if both:
        other = tl.load(column_lse + j, mask=j < columns, other=0.0)
        w += tl.exp(s - other[None, :]) * tl.load(column_grad + j, mask=j < columns, other=0.0)[None, :]
    at = i.to(tl.int64)[:, None] * columns + j[None, :]
    tl.store(out + at, w.to(out.dtype.element_ty), mask=(i < rows)[:, None] & (j < columns)[None, :])


class Fused:
    """The terms and their gradient on a GPU."""

    def __init__(self, left: Tensor, right: Tensor, scale: Tensor | float, pairs: Pairs, settings: Settings) -> None:
        self.scale, self.pairs, self.columns = scale, pairs, settings.columns
        self.dtype = torch.bfloat16 if settings.precision == "bf16" else left.dtype
        self.inverse_u = inverse_norms(left) if settings.normalise else None
        self.u = left.contiguous() if self.inverse_u is None else left * self.inverse_u
        self.v, self.inverse_v = self.u, self.inverse_u
        if not pairs.same:
            self.inverse_v = inverse_norms(right) if settings.normalise else None
            self.v = right.contiguous() if self.inverse_v is None else right * self.inverse_v
        self.half = len(left) // 2 if pairs.same else 0

    def forward(self, *, keep: bool) -> Terms:
        """Log-sum-exp of rows, and of columns and similarities of partners where asked for."""
        a, b = self.u.to(self.dtype), self.v.to(self.dtype)
        ids, classes = self.pairs.ids, self.pairs.classes
        rows = self._logsumexp(a, b, ids, classes)
        columns = None
        if self.columns:
            columns = self._logsumexp(b, a, *(None if each is None else each[::-1] for each in (ids, classes)))
        if not self.pairs.partner:
            return rows, columns, None
        if not self.pairs.same:
            return rows, columns, (self.u * self.v).sum(1) * self.scale
        return rows, columns, ((self.u[: self.half] * self.u[self.half :]).sum(1) * self.scale).repeat(2)

    def backward(
        self,
        rows: Tensor,
        columns: Any,
        grad_rows: Tensor,
        grad_columns: Any,
        grad_partners: Any,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradient with respect to left, right and scale, as far as they are needed."""
        same = self.pairs.same
        if same:
            columns, grad_columns = rows, grad_rows
        of_rows = (for_backward(rows).contiguous(), grad_rows.contiguous())
        of_columns = None if columns is None else (for_backward(columns).contiguous(), grad_columns.contiguous())
        a, b = self.u.to(self.dtype), self.v.to(self.dtype)
        grad_u = torch.zeros_like(self.u)
        grad_v = grad_u if same else torch.zeros_like(self.v)
        panel = max(_BLOCK["block_rows"], _PANEL // max(len(b), 1))
        for start in range(0, len(a), panel):
            part = slice(start, min(start + panel, len(a)))
            w = self._weights(a, b, part, of_rows, of_columns)
            grad_u[part] = _product(w, b)
            if not same and needed[1]:
                grad_v += _product(w.T, a[part])
        if grad_partners is not None and same:
            weight = (grad_partners[: self.half] + grad_partners[self.half :]).repeat(2)[:, None]
            grad_u.addcmul_(self.u.roll(self.half, 0), weight)
        elif grad_partners is not None:
            grad_u.addcmul_(self.v, grad_partners[:, None])
            grad_v.addcmul_(self.u, grad_partners[:, None])
        along = (grad_u * self.u).sum(1, keepdim=True)
        grad_scale = along.sum() / (2 if same else 1)  # there every pair was counted from both of its ends
        if self.inverse_u is not None and self.inverse_v is not None:
            if not same:
                grad_v.addcmul_(self.v, (grad_v * self.v).sum(1, keepdim=True), value=-1).mul_(self.inverse_v)
            grad_u.addcmul_(self.u, along, value=-1).mul_(self.inverse_u)
        return grad_u * self.scale, None if same else grad_v * self.scale, grad_scale

    def _logsumexp(
        self, a: Tensor, b: Tensor, ids: tuple[Tensor, ...] | None, classes: tuple[Tensor, ...] | None
    ) -> Tensor:
        out = torch.empty(len(a), dtype=torch.float32, device=a.device)
        grid = (triton.cdiv(len(a), _BLOCK["block_rows"]),)
        arguments = (out, a, b, float(self.scale), len(a), len(b), a.shape[1], *self._labels(ids, classes, a))
        _logsumexp_kernel[grid](*arguments, self.half, **self._switches(ids, classes), **_BLOCK)
        return out

    def _weights(
        self,
        a: Tensor,
        b: Tensor,
        part: slice,
        of_rows: tuple[Tensor, Tensor],
        of_columns: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        left = a[part]
        out = torch.empty(len(left), len(b), dtype=self.dtype, device=a.device)
        ids, classes = (None if each is None else (each[0][part], each[1]) for each in self.pairs[2:])
        grid = (triton.cdiv(len(left), _BLOCK["block_rows"]), triton.cdiv(len(b), _BLOCK["block_columns"]))
        place = (part.start, self.half)
        arguments = (out, left, b, float(self.scale), *out.shape, a.shape[1], *self._labels(ids, classes, a), *place)
        statistics = (*(each[part] for each in of_rows), *(of_columns or of_rows))
        _weights_kernel[grid](
            *arguments, *statistics, both=of_columns is not None, **self._switches(ids, classes), **_BLOCK
        )
        return out

    def _labels(self, ids: Any, classes: Any, spare: Tensor) -> tuple[Tensor, ...]:
        """Ids and classes of rows and columns; where there are none something that is never read."""
        return tuple(each.contiguous() for pair in (ids, classes) for each in (pair or (spare, spare)))

    def _switches(self, ids: Any, classes: Any) -> dict[str, Any]:
        return {
            "same": self.pairs.same,
            "partner": self.pairs.partner,
            "by_ids": ids is not None,
            "by_classes": classes is not None,
            "precision": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            "widen": triton.knobs.runtime.interpret,  # the interpreter multiplies no bfloat16; its products are exact
        }


def _product(weights: Tensor, rows: Tensor) -> Tensor:
    """``weights @ rows`` with float32 sums."""
    if weights.dtype == torch.bfloat16 and weights.is_cuda:
        return torch.mm(weights, rows, out_dtype=torch.float32)
    return (weights.float() @ rows.float()) if weights.dtype == torch.bfloat16 else weights @ rows
