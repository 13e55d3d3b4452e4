"""Spectral contrastive loss, exactly and without a matrix of pairs, also in expectation over posteriors."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive_core.losses.kernel import without_autocast
from contrastive_core.losses.rows import check_pair, full_precision, local_sizes, total


def spectral_contrastive(
    m1: Float[Tensor, "n d"],
    v1: Float[Tensor, "n d"] | None = None,
    m2: Float[Tensor, "n d"] | None = None,
    v2: Float[Tensor, "n d"] | None = None,
    *,
    negatives: Literal["other", "both"] = "other",
    exclude_self: bool = True,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Spectral contrastive loss (HaoChen et al., 2021, eq. 6) of embeddings that are not normalised.

    ``L = -2 mean_i z_i . z_i' + mean_{i != j} (z_i . z_j')^2``. Where the embeddings are independent random vectors
    with means ``m`` and variances ``v``, the expectation is ``-2 mean_i m_i . m_i' + mean_{i != j} [(m_i . m_j')^2 +
    m_i^2 . v_j' + v_i . m_j'^2 + v_i . v_j']``. The sum over all pairs is ``<M1' M1, M2' M2>`` and products of column
    sums, less the diagonal: ``O(n d^2)`` operations and ``O(d^2)`` memory.

    Args:
        m1: Embeddings of the first view, or their means.
        v1: Variances of the first view, at least 0; absent: none.
        m2: Embeddings of the second view, or their means.
        v2: Variances of the second view; absent: none.
        negatives: ``other``: a row meets the other view of the other items; ``both``: both views of the other items.
        exclude_self: Leave the pairs of one item out of the second mean (``i != j``), or count all pairs.
        gather: Use the rows of all processes of ``torch.distributed``, with exact gradients.

    Raises:
        ValueError: The second view is missing, the shapes do not agree, or there is one row and nothing to contrast.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import spectral_contrastive
        >>> z = 2**0.5 * torch.eye(2).repeat_interleave(2, 0)  # two pairs of nodes: the minimum is -2
        >>> round(float(spectral_contrastive(z, m2=z, exclude_self=False)), 4)
        -2.0
    """
    if m2 is None:
        raise ValueError("expected the second view as m2")
    check_pair(m1, m2)
    for mean, variance in ((m1, v1), (m2, v2)):
        if variance is not None and variance.shape != mean.shape:
            raise ValueError(f"expected variances of shape {tuple(mean.shape)}, got {tuple(variance.shape)}")
    views = [(full_precision(m), None if v is None else full_precision(v)) for m, v in ((m1, v1), (m2, v2))]
    counts = local_sizes(m1, gather)
    n = sum(counts)
    if n < 2 and exclude_self:
        raise ValueError(f"expected at least two rows to contrast, got {n}")
    pairs = n * (n - 1) if exclude_self else n * n
    with without_autocast(m1):
        (first, _), (second, _) = views
        attraction = (first * second).sum() / n
        combinations = [(0, 1)] if negatives == "other" else [(0, 1), (1, 0), (0, 0), (1, 1)]
        repulsion = torch.stack([_repulsion(*views[i], *views[j], exclude_self, gather) for i, j in combinations])
        return (repulsion.mean() / pairs - 2 * attraction) * len(counts)


def _repulsion(
    m1: Tensor, v1: Tensor | None, m2: Tensor, v2: Tensor | None, exclude_self: bool, gather: bool
) -> Tensor:
    """Sum of the expected squared products of local rows with the rows of all processes."""
    s1, s2 = m1.square(), m2.square()
    out = ((m1.T @ m1) * total(m2.T @ m2, gather)).sum()
    own = (m1 * m2).sum(1).square().sum()
    for a, b in ((s1, v2), (v1, s2), (v1, v2)):
        if a is not None and b is not None:
            out = out + (a.sum(0) * total(b.sum(0), gather)).sum()
            own = own + (a * b).sum()
    return out - own if exclude_self else out
