"""Means of rows by group, the same in any order of the rows and over any number of processes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def group_means(
    rows: Float[Tensor, "n d"], groups: Int[Tensor, " n"], count: int
) -> tuple[Float[Tensor, "g d"], Int[Tensor, " g"]]:
    """Mean of each group's rows, zero for empty groups, and the numbers of rows.

    Sums are made in float64, so that the order of the rows disappears when the mean is rounded.

    Args:
        rows: Rows.
        groups: Group of each row, 0..count-1.
        count: Groups.
    """
    sums = torch.zeros(count, rows.shape[1], dtype=torch.float64, device=rows.device)
    sums.index_add_(0, groups, rows.double())
    numbers = torch.bincount(groups, minlength=count)
    return (sums / numbers.clamp_min(1)[:, None]).to(rows.dtype), numbers


@torch.no_grad()
def move_towards(
    slots: Float[Tensor, "g d"],
    counts: Int[Tensor, " g"],
    means: Float[Tensor, "g d"],
    numbers: Int[Tensor, " g"],
    momentum: float,
    normalize: bool,
) -> None:
    """One EMA step in place, ``slot <- m slot + (1 - m) mean``; first seen: the mean; not seen: untouched.

    Args:
        slots: What moves.
        counts: Rows each slot has seen so far; counted on.
        means: Where to, from :func:`group_means`.
        numbers: Rows behind each mean.
        momentum: m.
        normalize: Bring slots that moved to unit length.
    """
    fresh = (counts == 0)[:, None]
    moved = torch.where(fresh, means.to(slots.dtype), torch.lerp(means.to(slots.dtype), slots, momentum))
    if normalize:
        moved = F.normalize(moved, dim=1)
    slots.copy_(torch.where((numbers > 0)[:, None], moved, slots))
    counts.add_(numbers)


def check_momentum(momentum: float) -> None:
    """Refuse what is no momentum.

    Raises:
        ValueError: Outside [0, 1].
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"a momentum lies in [0, 1], got {momentum}")


def check_groups(groups: Int[Tensor, " n"], count: int, name: str) -> None:
    """Refuse groups outside 0..count-1, which would be written elsewhere.

    Raises:
        ValueError: A group is out of range.
    """
    if groups.numel() and not 0 <= int(groups.min()) <= int(groups.max()) < count:
        raise ValueError(f"{name} lie in 0..{count - 1}, got {int(groups.min())}..{int(groups.max())}")
