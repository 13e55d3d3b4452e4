"""Radial kernels between two sets of rows."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

SigmaMode = Literal["median", "mean", "multi"]


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """``|x_i - y_j|^2`` by one matrix product, in float32 or wider, never below 0.

    Rows are moved to the middle of both sets first, so that sets far from the origin lose no digits.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        a, b = x.to(wide), y.to(wide)
        middle = torch.cat([a.detach(), b.detach()]).mean(0)
        a, b = a - middle, b - middle
        return torch.addmm(a.square().sum(1, keepdim=True) + b.square().sum(1), a, b.T, alpha=-2).clamp_min(0)


def rbf_kernel(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, sigma: float | int | SigmaMode = "median"
) -> Float[Tensor, "n m"]:
    """Gaussian kernel ``exp(-|x_i - y_j|^2 / (2 sigma^2))`` as a matrix.

    :func:`contrastive_core.losses.mmd` streams the same kernel where only its mean is needed.

    Args:
        x: One set of rows.
        y: The other set; may be ``x`` itself.
        sigma: Width: a positive number; ``median`` or ``mean`` of the distances between all different rows of both sets
            together, without gradient; or ``multi``, the mean of the kernels of half, one and two medians.

    Raises:
        ValueError: A width that is not positive, or unknown.

    Example:
        >>> rbf_kernel(torch.tensor([[0.0]]), torch.tensor([[0.0], [2.0]]), sigma=1.0)
        tensor([[1.0000, 0.1353]])
    """
    squared = squared_distances(x, y)
    if isinstance(sigma, str):
        if sigma not in ("median", "mean", "multi"):
            raise ValueError(f"sigma is a number, median, mean or multi, got {sigma!r}")
        width = _width(x, y, sigma)
        factors = (0.5, 1.0, 2.0) if sigma == "multi" else (1.0,)
        return torch.stack([torch.exp(-squared / (2 * (factor * width) ** 2)) for factor in factors]).mean(0)
    if not sigma > 0:
        raise ValueError(f"sigma is positive, got {sigma}")
    return torch.exp(-squared / (2 * sigma**2))


@torch.no_grad()
def _width(x: Tensor, y: Tensor, sigma: str) -> Tensor:
    rows = x if x is y else torch.cat([x, y])
    distances = torch.pdist(rows.to(torch.promote_types(rows.dtype, torch.float32)))
    width = distances.mean() if sigma == "mean" else distances.median()
    # Where all rows are equal, any width gives the same kernel.
    return torch.where(width > 0, width, torch.ones_like(width))
