"""Losses on the moments of a batch: Barlow Twins and VICReg. Moments are those of all processes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastive_core.losses.kernel import without_autocast
from contrastive_core.losses.rows import check_pair, full_precision, local_sizes, total

_BATCH_NORM_EPSILON = 1e-5
_VARIANCE_EPSILON = 1e-4


def barlow_twins(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    *,
    off_diagonal: float = 5e-3,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Redundancy reduction (Barlow Twins; Zbontar et al., 2021, eq. 1 and 2).

    ``L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2`` with ``C = A' B / n`` of the views standardised over the
    batch.

    Args:
        view_a: Embeddings of the first view.
        view_b: Embeddings of the second view.
        off_diagonal: ``lambda``.
        gather: Standardise and correlate over the rows of all processes, with exact gradients.

    Raises:
        ValueError: The shapes do not agree, or there is only one row.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import barlow_twins
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(float(barlow_twins(z, z)), 4)  # uncorrelated and the same in both views
        0.0
    """
    check_pair(view_a, view_b)
    n = _rows_with_variance(view_a, gather)
    with without_autocast(view_a):
        a, b = (_centred(full_precision(view), n, gather) for view in (view_a, view_b))
        moments = total(torch.stack([a.square().sum(0), b.square().sum(0)]), gather) / n
        scale_a, scale_b = (moments + _BATCH_NORM_EPSILON).rsqrt()
        correlation = total(a.T @ b, gather) / n * scale_a[:, None] * scale_b
        diagonal = correlation.diagonal()
        redundancy = correlation.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + off_diagonal * redundancy


def vicreg(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Variance-invariance-covariance regularisation (VICReg; Bardes et al., 2022, eq. 6, with its code's half).

    ``L = lambda MSE(a, b) + mu (v(a) + v(b)) / 2 + nu (c(a) + c(b))`` with ``v = mean_k relu(1 - sqrt(var_k + 1e-4))``
    and ``c = sum_{k != l} Cov_kl^2 / d``.

    Args:
        view_a: Embeddings of the first view.
        view_b: Embeddings of the second view.
        invariance: ``lambda``.
        variance: ``mu``.
        covariance: ``nu``.
        gather: Use the moments of the rows of all processes, with exact gradients.

    Raises:
        ValueError: The shapes do not agree, or there is only one row.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import vicreg
        >>> z = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(float(vicreg(z, z)), 4)  # same views, enough variance, no covariance
        0.0
    """
    check_pair(view_a, view_b)
    n = _rows_with_variance(view_a, gather)
    d = view_a.shape[1]
    with without_autocast(view_a):
        a, b = full_precision(view_a), full_precision(view_b)
        loss = invariance * total((a - b).square().sum(), gather) / (n * d)
        for view in (a, b):
            centred = _centred(view, n, gather)
            moments = total(centred.T @ centred, gather) / (n - 1)
            diagonal = moments.diagonal()
            spread = F.relu(1 - (diagonal + _VARIANCE_EPSILON).sqrt()).mean()
            correlated = (moments.square().sum() - diagonal.square().sum()) / d
            loss = loss + variance * spread / 2 + covariance * correlated
        return loss


def _rows_with_variance(x: Tensor, gather: bool) -> int:
    n = sum(local_sizes(x, gather))
    if n < 2:
        raise ValueError(f"a variance needs at least two rows, got a batch of {n}")
    return n


def _centred(x: Tensor, n: int, gather: bool) -> Tensor:
    return x - total(x.sum(0), gather) / n
