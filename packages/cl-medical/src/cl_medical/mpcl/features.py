"""Full-resolution features without full-resolution features.

MPCL compares prototypes with ``F = upsample(x6)``, the trilinear upsampling of a small feature map to every voxel.
``F`` itself (128 channels at every voxel) is never needed: its values at chosen voxels are weighted sums of eight
entries of ``x6``, its mean over a class is a weighted mean of ``x6``, its products with a vector are the upsampled
products of ``x6``, and its squared norms are a quadratic form in the products of neighbouring entries of ``x6``, which
separates over the axes. All four are exact and carry gradient.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

EPS = 1e-8


def features_at(x6: Float[Tensor, "d u v w"], size: Sequence[int], voxels: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """Rows of the upsampled feature map at some voxels.

    Args:
        x6: Feature map of one patch.
        size: Sides ``(x, y, z)`` of the patch.
        voxels: Flat indices into the patch.

    Returns:
        What ``F.interpolate(x6, size, mode="trilinear")`` holds there.
    """
    places = torch.unravel_index(voxels, tuple(size))
    low, weight = [], []
    for axis, place in enumerate(places):
        sides = _taps(x6.shape[axis + 1], size[axis], x6)
        low.append([tap[place] for tap in sides[:2]])
        weight.append([tap[place] for tap in sides[2:]])
    strides = (x6.shape[2] * x6.shape[3], x6.shape[3], 1)
    corners = list(itertools.product((0, 1), repeat=3))
    index = torch.stack([sum(low[a][c] * strides[a] for a, c in enumerate(corner)) for corner in corners], 1)  # type: ignore[misc]
    share = torch.stack([weight[0][i] * weight[1][j] * weight[2][k] for i, j, k in corners], 1)
    table = x6.flatten(1).T.contiguous()
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=share)


def mean_feature(x6: Float[Tensor, "d u v w"], mask: Bool[Tensor, "x y z"]) -> Float[Tensor, " d"]:
    """Mean of the upsampled feature vectors over a class: upsampling's transpose says how much each entry counts.

    Args:
        x6: Feature map of one patch.
        mask: Voxels of the class, at least one.
    """
    share = mask.to(x6)
    for axis, high in enumerate(mask.shape):
        # The axis in front is summed, and comes back at the end: after three turns all are in their places.
        share = torch.tensordot(share, _axis_weights(x6.shape[axis + 1], high, x6), dims=([0], [0]))
    return (x6 * (share / mask.sum())).sum((1, 2, 3))


def squared_norms(x6: Float[Tensor, "b d u v w"], size: Sequence[int]) -> Float[Tensor, "b x y z"]:
    """Squared norm of the upsampled feature vector at every voxel.

    With weights ``w_i`` of the two neighbours on each axis, ``|F|² = sum_pq w_p w_q x_p . x_q`` over the corners p, q
    of a cell. Pairs of corners that differ on the same axes share their coefficient, so 14 products of neighbours
    suffice.
    """
    blocks: dict[tuple[int, ...], Tensor] = {}
    for differing in itertools.product((0, 1), repeat=3):
        axes = [axis for axis in range(3) if differing[axis]]
        products = []
        # The opposite corner gives the same product: take one of each two, twice.
        patterns = list(itertools.product((0, 1), repeat=len(axes)))
        for pattern in patterns[: max(1, len(patterns) // 2)]:
            a, b = x6, x6
            for axis, side in zip(axes, pattern, strict=True):
                steps = x6.shape[axis + 2] - 1
                a, b = a.narrow(axis + 2, side, steps), b.narrow(axis + 2, 1 - side, steps)
            products.append((a * b).sum(1))
        blocks[differing] = torch.stack(products).sum(0) * (2 if axes else 1)
    form = torch.cat(
        [torch.cat([torch.cat([blocks[i, j, k] for k in (0, 1)], 3) for j in (0, 1)], 2) for i in (0, 1)],
        1,
    )
    for axis in range(3):
        form = torch.tensordot(form, _pair_weights(x6.shape[axis + 2], size[axis], x6), dims=([1], [1]))
    return form.clamp_min(0)


def cosine_maps(
    x6: Float[Tensor, "b d u v w"], prototypes: Float[Tensor, "m d"], size: Sequence[int]
) -> Float[Tensor, "b m x y z"]:
    """Cosine between the upsampled features and some vectors, at every voxel.

    Args:
        x6: Feature maps.
        prototypes: Vectors; a zero vector gives zeros.
        size: Sides of the patch.

    Returns:
        ``F_v . P_m / max(|F_v| |P_m|, 1e-8)``.
    """
    products = torch.einsum("bduvw,md->bmuvw", x6, prototypes)
    products = F.interpolate(products, size=tuple(size), mode="trilinear", align_corners=False)
    # The square root has no gradient at zero; EPS**2 inside keeps it finite there.
    norms = squared_norms(x6, size).clamp_min(EPS**2).sqrt()[:, None]
    lengths = prototypes.square().sum(1).clamp_min(EPS**2).sqrt()[:, None, None, None]
    return products / (norms * lengths).clamp_min(EPS)


def _taps(low: int, high: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices of the lower and upper neighbour of every output place on one axis, and their weights."""
    source = ((torch.arange(high, device=like.device, dtype=torch.float64) + 0.5) * (low / high) - 0.5).clamp(min=0)
    first = source.floor().long().clamp(max=low - 1)
    second = (first + 1).clamp(max=low - 1)
    upper = (source - first).to(like.dtype)
    return first, second, 1 - upper, upper


def _axis_weights(low: int, high: int, like: Tensor) -> Float[Tensor, "high low"]:
    """Linear upsampling of one axis as a matrix."""
    first, second, lower, upper = _taps(low, high, like)
    weights = like.new_zeros(high, low)
    weights.scatter_add_(1, first[:, None], lower[:, None])
    weights.scatter_add_(1, second[:, None], upper[:, None])
    return weights


def _pair_weights(low: int, high: int, like: Tensor) -> Float[Tensor, "high pairs"]:
    """Coefficients of the products (i, i), then (i, i + 1), of one axis, ``pairs = 2 low - 1``."""
    weights = _axis_weights(low, high, like)
    return torch.cat([weights.square(), weights[:, :-1] * weights[:, 1:]], 1)
