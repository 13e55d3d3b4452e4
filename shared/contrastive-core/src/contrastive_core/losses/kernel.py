"""What the forms of the kernel share: which pairs enter, how it runs, and what it returns."""

import contextlib
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from contrastive_core.losses.products import TILE

Precision = Literal["exact", "bf16"]

Terms = tuple[Tensor, Any, Any]
"""Log-sum-exp of rows, and of columns, and the similarities of partners, where they were asked for, else None."""

_SAFE_EXPONENT = 40.0
"""Where no similarity is larger, neither exponentials nor their sums nor products of two can leave float32's range."""

EPSILON = 1e-12
"""A row whose norm is not larger counts as zero, and gets no gradient."""


class Pairs(NamedTuple):
    """Which pairs of rows and columns enter the sums; the rest is left out.

    Attributes:
        same: Rows and columns are the same items: no row meets itself.
        partner: Row i's partner is column i, or i + n/2 where both are the same: it is left out.
        ids: Ids of rows and columns; pairs of equal ids are left out.
        classes: Classes of rows and columns; pairs of different classes are left out.
    """

    same: bool = False
    partner: bool = False
    ids: tuple[Tensor, Tensor] | None = None
    classes: tuple[Tensor, Tensor] | None = None

    def offsets(self, rows: int) -> list[int]:
        """Diagonals of the matrix that are left out."""
        if not self.same:
            return [0] if self.partner else []
        return [0, rows // 2, -(rows // 2)] if self.partner else [0]

    def leave_out(self, s: Tensor, rows: int, a: int = 0, b: int = 0) -> None:
        """Set what is left out of a tile at row ``a`` and column ``b`` to minus infinity; ``rows`` are all rows."""
        for offset in self.offsets(rows):
            at = offset + a - b
            if at == 0:
                s.fill_diagonal_(float("-inf"))
            elif -s.shape[0] < at < s.shape[1]:
                s.diagonal(at).fill_(float("-inf"))
        if self.ids is not None:
            s.masked_fill_(_compare(self.ids, s, a, b), float("-inf"))
        if self.classes is not None:
            s.masked_fill_(_compare(self.classes, s, a, b).logical_not_(), float("-inf"))

    def left_out(self, s: Tensor, rows: int, a: int = 0, b: int = 0) -> Tensor:
        """The same as a mask, which transforms and derivatives can follow."""
        index = torch.arange(a, a + s.shape[0], device=s.device)[:, None]
        column = torch.arange(b, b + s.shape[1], device=s.device)
        mask = torch.zeros((), dtype=torch.bool, device=s.device)
        for offset in self.offsets(rows):
            mask = mask | (column - index == offset)
        if self.ids is not None:
            mask = mask | _compare(self.ids, s, a, b)
        if self.classes is not None:
            mask = mask | ~_compare(self.classes, s, a, b)
        return mask.expand(s.shape)


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


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where autocast is on, a context that turns it off for the device of ``x``."""
    kind = x.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else contextlib.nullcontext()


def is_transformed(x: Tensor) -> bool:
    """Whether values are not at hand: :mod:`torch.func` is at work, or the tensor has none."""
    return torch._C._are_functorch_transforms_active() or x.is_meta


def for_backward(lse: Tensor) -> Tensor:
    """A row without candidates has no gradient: exp(s - inf) is zero for every s."""
    return lse.masked_fill(lse == float("-inf"), float("inf"))


def _compare(ids: tuple[Tensor, Tensor], s: Tensor, a: int, b: int) -> Tensor:
    return ids[0][a : a + s.shape[0], None] == ids[1][None, b : b + s.shape[1]]
