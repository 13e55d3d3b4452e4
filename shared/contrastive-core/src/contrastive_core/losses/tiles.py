"""Log-sum-exp of similarities and its gradient, one tile at a time: no matrix of all pairs ever exists."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from contrastive_core.losses.kernel import EPSILON, Pairs, for_backward
from contrastive_core.losses.products import TILE, similarities, transposed_weighted_sum, weighted_sum

KEPT = 4
"""A batch of at most this many tiles keeps its exponentials for backward instead of computing them twice."""

_GPU_TILE = 8192
"""Side of a tile on a GPU, which small ones would starve: 256 MiB of float32."""

_STRIPE = 256
"""Rows of a tile that are weighted at once, so that weights need no second tile."""


class Operand:
    """Rows that are normalised, scaled and rounded block by block, when they are multiplied.

    Args:
        x: The rows.
        dtype: Of the products.
        normalise: Divide every row by its norm.
        inverse: One over the norms ``[n 1]``, where they are known.
    """

    def __init__(self, x: Tensor, dtype: torch.dtype, *, normalise: bool, inverse: Tensor | None = None) -> None:
        self.x, self.dtype = x, dtype
        self.inverse = inverse_norms(x) if normalise and inverse is None else inverse
        # A small batch is normalised once; of a large one no second copy is made.
        self.whole = x * self.inverse if self.inverse is not None and len(x) <= TILE else None

    def block(self, rows: slice, scale: Tensor | float | None = None) -> Tensor:
        """Unit rows, scaled, in the dtype of the products."""
        return self.unit(rows, scale).to(self.dtype)

    def unit(self, rows: slice, scale: Tensor | float | None = None) -> Tensor:
        """Unit rows, scaled."""
        if self.whole is not None or self.inverse is None:
            x = (self.x if self.whole is None else self.whole)[rows]
            return x if scale is None else x * scale
        factor = self.inverse[rows]
        return self.x[rows] * (factor if scale is None else factor * scale)


def inverse_norms(x: Tensor) -> Tensor:
    """One over the norms ``[n 1]``; zero for a row of norm zero."""
    inverse = torch.linalg.vector_norm(x, dim=1, keepdim=True).reciprocal_()
    return inverse.masked_fill_(inverse > 1 / EPSILON, 0.0)


class Running:
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
class Tiles:
    """The similarities of two sets of rows, tile by tile; of the upper triangle where both are the same set.

    Attributes:
        left: Rows.
        right: Columns.
        scale: Factor on similarities.
        pairs: Which pairs enter.
        side: Of a tile; chosen from the problem when absent.
        safe: Exponentials cannot overflow.
    """

    left: Operand
    right: Operand
    scale: Tensor | float
    pairs: Pairs
    side: int | None
    safe: bool

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Row block, column block, and the row block's rows, scaled and rounded."""
        n, m = len(self.left.x), len(self.right.x)
        own, columns = self._blocks(n, m), self._blocks(m, n)
        ranges = self._ranges(own, columns)
        for i, a in enumerate(own):
            rows = self.left.block(a, self.scale)
            for j, b in enumerate(columns):
                if (j >= i or not self.pairs.same) and _overlap(ranges, i, j):
                    yield a, b, rows

    def similarities(self, a: slice, b: slice, rows: Tensor) -> Tensor:
        """One tile in the dtype of the products, minus infinity at excluded pairs."""
        s = similarities(rows, self.right.block(b))
        self.pairs.leave_out(s, len(self.left.x), a.start, b.start)
        return s

    def _blocks(self, count: int, other: int) -> list[slice]:
        """Row blocks of one side: everything at once where the whole problem is no larger than a tile."""
        largest = _GPU_TILE if self.left.x.is_cuda else TILE
        side = self.side or (max(count, 1) if count * other <= largest * largest else largest)
        return [slice(start, min(start + side, count)) for start in range(0, count, side)]

    def _ranges(self, own: list[slice], columns: list[slice]) -> list[list[tuple[int, int]]] | None:
        """Least and largest class of every block, where only pairs of one class enter."""
        if self.pairs.classes is None:
            return None
        return [
            [(int(classes[block].min()), int(classes[block].max())) for block in blocks]
            for classes, blocks in zip(self.pairs.classes, (own, columns), strict=True)
        ]


def _overlap(ranges: list[list[tuple[int, int]]] | None, i: int, j: int) -> bool:
    """Whether a tile can hold pairs of one class: few can where rows are sorted by class."""
    return ranges is None or (ranges[0][i][0] <= ranges[1][j][1] and ranges[1][j][0] <= ranges[0][i][1])


def forward(tiles: Tiles, rows: Running, columns: Running | None, *, keep: bool) -> list[Tensor]:
    """Add all tiles to the running sums; returns the exponentials of a small batch, where they are wanted."""
    kept: list[Tensor] = []
    keep = keep and not tiles.left.x.is_cuda and len(tiles.left.x) * len(tiles.right.x) <= KEPT * TILE * TILE
    for a, b, block in tiles:
        both = None if tiles.pairs.same and a == b else columns
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


def backward(
    tiles: Tiles,
    kept: list[Tensor],
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor] | None,
    grad_left: Tensor | None,
    grad_right: Tensor | None,
) -> None:
    """Add ``d lse / d (left, right)`` before scaling, given (log-sum-exp, upstream gradient) of rows and columns."""
    left, right = tiles.left, tiles.right
    rows = (for_backward(rows[0]), rows[1])
    columns = None if columns is None else (for_backward(columns[0]), columns[1])
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
        if grad_right is not None and not (tiles.pairs.same and a == b):
            grad_right[b] += transposed_weighted_sum(w, left.block(a))


def chunks(count: int) -> list[slice]:
    """Slices of a tile's number of rows."""
    return [slice(start, min(start + TILE, count)) for start in range(0, count, TILE)]


def finish(grad: Tensor, operand: Operand, scale: Tensor | float) -> Tensor:
    """Turn the gradient of unit rows before scaling, in place, into that of the rows; returns ``<unit rows, grad>``."""
    along = torch.empty_like(grad[:, :1])
    for rows in chunks(len(grad)):
        unit = operand.unit(rows)
        along[rows] = (grad[rows] * unit).sum(1, keepdim=True)
        if operand.inverse is not None:
            grad[rows] -= unit * along[rows]
            grad[rows] *= operand.inverse[rows]
        grad[rows] *= scale
    return along.sum()


def partners(left: Operand, right: Operand, scale: Tensor | float, shift: int) -> Tensor:
    """Similarity of left row i with right row i + shift, in full precision."""
    out = left.x.new_empty(len(left.x) - shift)
    for rows in chunks(len(out)):
        partner = slice(rows.start + shift, rows.stop + shift)
        out[rows] = (left.unit(rows, scale) * right.unit(partner)).sum(1)
    return out


def add_partners(
    grad_left: Tensor | None,
    grad_right: Tensor | None,
    upstream: Tensor,
    left: Operand,
    right: Operand,
    shift: int,
) -> None:
    """Add the gradient of :func:`partners` before scaling."""
    for rows in chunks(len(upstream)):
        partner = slice(rows.start + shift, rows.stop + shift)
        if grad_left is not None:
            grad_left[rows].addcmul_(right.unit(partner), upstream[rows, None])
        if grad_right is not None:
            grad_right[partner].addcmul_(left.unit(rows), upstream[rows, None])
