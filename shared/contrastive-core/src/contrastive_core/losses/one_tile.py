"""Log-sum-exp of similarities and its gradient where all pairs fit into one tile, with as few operations as can be."""

from typing import Any

from torch import Tensor

from contrastive_core.losses.kernel import Pairs, Settings, Terms, for_backward
from contrastive_core.losses.products import similarities, transposed_weighted_sum, weighted_sum
from contrastive_core.losses.tiles import inverse_norms

_TINY = 1e-30
"""Less than any sum of safe exponentials that is not empty."""


def _unit(x: Tensor) -> tuple[Tensor, Tensor | None]:
    inverse = inverse_norms(x)
    return x * inverse, inverse


class OneTile:
    """A problem of one tile: its exponentials stay until backward."""

    def __init__(self, left: Tensor, right: Tensor, scale: Tensor | float, pairs: Pairs, settings: Settings) -> None:
        self.scale, self.pairs = scale, pairs
        self.safe, self.columns, self.half = settings.safe(scale), settings.columns, settings.precision == "bf16"
        self.u, self.inverse_u = _unit(left) if settings.normalise else (left, None)
        self.v, self.inverse_v = self.u, self.inverse_u
        if not pairs.same:
            self.v, self.inverse_v = _unit(right) if settings.normalise else (right, None)

    def forward(self, *, keep: bool) -> Terms:
        """Log-sum-exp of rows, and of columns and similarities of partners where asked for."""
        dtype = self.u.dtype
        scaled = self.u * self.scale
        s = similarities(scaled.bfloat16(), self.v.bfloat16()) if self.half else similarities(scaled, self.v)
        partners = self._partners(s, scaled) if self.pairs.partner else None
        self.pairs.leave_out(s, len(s))
        if not self.safe:
            self.tile = s.to(dtype)
            return self.tile.logsumexp(1), self.tile.logsumexp(0) if self.columns else None, partners
        self.tile = e = s.exp_()
        self.row_sums = e.sum(1, dtype=dtype)
        self.column_sums = e.sum(0, dtype=dtype) if self.columns else None
        return self.row_sums.log(), None if self.column_sums is None else self.column_sums.log(), partners

    def _partners(self, s: Tensor, scaled: Tensor) -> Tensor:
        """Similarities of partners: as they stand in the tile, or, where it is rounded, in full precision."""
        half = len(s) // 2
        if not self.pairs.same:
            return (scaled * self.v).sum(1) if self.half else s.diagonal().clone()
        return ((scaled[:half] * self.v[half:]).sum(1) if self.half else s.diagonal(half)).repeat(2)

    def _weights(self, rows: Tensor, columns: Any, grad_rows: Tensor, grad_columns: Any) -> Tensor:
        """Gradient with respect to similarities, but for those of partners."""
        same, e = self.pairs.same, self.tile
        if self.safe:
            factor = grad_rows / self.row_sums.clamp_min(_TINY)
            other = factor if same else None
            if self.column_sums is not None:
                other = grad_columns / self.column_sums.clamp_min(_TINY)
            factor = factor[:, None] if other is None else factor[:, None] + other
            return e * (factor.bfloat16() if self.half else factor)
        w = (e - for_backward(rows)[:, None]).exp_().mul_(grad_rows[:, None])
        columns, grad_columns = (rows, grad_rows) if same else (columns, grad_columns)
        if columns is not None:
            w += (e - for_backward(columns)).exp_().mul_(grad_columns)
        return w.bfloat16() if self.half else w

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
        same, u, v = self.pairs.same, self.u, self.v
        w = self._weights(rows, columns, grad_rows, grad_columns)
        half = len(w) // 2 if same else 0
        if grad_partners is not None:
            weight = grad_partners[:half] + grad_partners[half:] if same else grad_partners
            if not self.half:  # they were left out, so that their weights are zero so far
                for offset in (half, -half) if same else (0,):
                    w.diagonal(offset).copy_(weight)
            weight = (weight.repeat(2) if same else weight)[:, None]
        grads: list[Tensor | None] = [None, None, None]
        for side, own, other, inverse in ((0, u, v, self.inverse_u), (1, v, u, self.inverse_v)):
            scale_too = side == 0 and needed[2]
            if not (needed[side] or scale_too) or (same and side == 1):
                continue
            multiply = transposed_weighted_sum if side else weighted_sum
            grad = multiply(w, other.bfloat16()).to(own.dtype) if self.half else multiply(w, other)
            if grad_partners is not None and self.half:
                grad.addcmul_(other.roll(half, 0) if same else other, weight)
            if inverse is not None or scale_too:
                along = (grad * own).sum(1, keepdim=True)
            if scale_too:
                grads[2] = along.sum() / (2 if same else 1)  # there every pair was counted from both of its ends
            if inverse is None:
                grads[side] = grad.mul_(self.scale)
            else:
                grads[side] = grad.addcmul_(own, along, value=-1).mul_(inverse * self.scale)
        return grads[0], grads[1], grads[2]
