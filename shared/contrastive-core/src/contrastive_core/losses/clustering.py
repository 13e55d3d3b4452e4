"""Losses that learn a clustering: deep embedded clustering and contrastive clustering."""

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive_core.distributed import gather_with_grad
from contrastive_core.losses.info_nce import nt_xent
from contrastive_core.losses.kernel import without_autocast
from contrastive_core.losses.rows import (
    Reduction,
    check_pair,
    full_precision,
    local_sizes,
    reduce,
    total,
)


def student_t_assignment(
    embeddings: Float[Tensor, "n d"], centres: Float[Tensor, "k d"], *, alpha: float = 1.0
) -> Float[Tensor, "n k"]:
    """Soft assignment by a Student t kernel (DEC; Xie et al., 2016, eq. 1).

    ``q_ik ~ (1 + |z_i - c_k|^2 / a)^{-(a + 1) / 2}``.

    Args:
        embeddings: One row per item.
        centres: One row per cluster.
        alpha: Degrees of freedom, positive.

    Returns:
        Rows that sum to 1.

    Raises:
        ValueError: ``alpha`` is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import student_t_assignment
        >>> student_t_assignment(torch.tensor([[0.0]]), torch.tensor([[0.0], [1.0]]))  # 1 : 1/2
        tensor([[0.6667, 0.3333]])
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    with without_autocast(embeddings):
        z, c = full_precision(embeddings), full_precision(centres)
        middle = c.mean(0).detach()  # distances do not change, and little is lost by cancellation
        z, c = z - middle, c - middle
        squared = (z.square().sum(1, keepdim=True) + c.square().sum(1) - 2 * z @ c.T).clamp(min=0)
        return ((1 + squared / alpha).log() * (-(alpha + 1) / 2)).softmax(1)


@torch.no_grad()
def dec_target(assignment: Float[Tensor, "n k"], *, gather: bool = False) -> Float[Tensor, "n k"]:
    """Sharpened assignment ``p_ik ~ q_ik^2 / sum_i q_ik`` (DEC; Xie et al., 2016, eq. 3), without gradient.

    Args:
        assignment: ``q``, rows that sum to 1.
        gather: Sum cluster frequencies over the rows of all processes.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import dec_target
        >>> dec_target(torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
        tensor([[0.9000, 0.1000],
                [0.1000, 0.9000]])
    """
    q = full_precision(assignment)
    weight = q.square() / total(q.sum(0), gather).clamp(min=torch.finfo(q.dtype).tiny)
    return weight / weight.sum(1, keepdim=True)


def dec(
    assignment: Float[Tensor, "n k"],
    target: Float[Tensor, "n k"] | None = None,
    *,
    gather: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """Deep embedded clustering, ``KL(p || q) = sum_k p_ik log(p_ik / q_ik)`` (DEC; Xie et al., 2016, eq. 2).

    Args:
        assignment: ``q``, from :func:`student_t_assignment`.
        target: ``p``, from :func:`dec_target` of the whole data or of an earlier step; absent: of this batch.
        gather: Use the cluster frequencies of all processes, and weigh rows accordingly.
        reduction: ``mean`` over rows, or ``none``.

    Raises:
        ValueError: The shapes do not agree.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import dec
        >>> q = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> round(float(dec(q)), 4)
        0.0725
    """
    p = dec_target(assignment, gather=gather) if target is None else full_precision(target)
    check_pair(assignment, p)
    q = full_precision(assignment)
    tiny = torch.finfo(q.dtype).tiny
    divergence = (torch.xlogy(p, p) - p * q.clamp(min=tiny).log()).sum(1)
    return reduce(divergence, reduction, local_sizes(q, gather))


def cluster_contrast(
    assignment_a: Float[Tensor, "n k"],
    assignment_b: Float[Tensor, "n k"],
    *,
    temperature: float = 1.0,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Cluster half of contrastive clustering (CC; Li et al., 2021, eq. 6 and 7).

    NT-Xent between the columns of the two assignment matrices, plus ``log k - H(mean assignment)`` of each view, which
    keeps the clusters from collapsing into one (0 when all are used alike).

    Args:
        assignment_a: Soft assignment of the first view, rows that sum to 1.
        assignment_b: The same of the second view.
        temperature: Positive number.
        gather: Use the rows of all processes of ``torch.distributed``, with exact gradients.

    Raises:
        ValueError: The shapes do not agree, or the temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import cluster_contrast
        >>> p = torch.eye(4)
        >>> round(float(cluster_contrast(p, p)), 4)  # log(e + 6) - 1
        1.1654
    """
    check_pair(assignment_a, assignment_b)
    with without_autocast(assignment_a):
        both = [full_precision(p) for p in (assignment_a, assignment_b)]
        both = [gather_with_grad(p) for p in both] if gather else both
        a, b = both
        loss = torch.as_tensor(nt_xent(a.T, b.T, temperature=temperature))
        for p in both:
            share = p.sum(0) / p.sum()
            loss = loss + share.new_tensor(float(len(share))).log() + torch.xlogy(share, share).sum()
        return loss


def contrastive_clustering(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    assignment_a: Float[Tensor, "n k"],
    assignment_b: Float[Tensor, "n k"],
    *,
    instance_temperature: float = 0.5,
    cluster_temperature: float = 1.0,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Contrastive clustering (CC; Li et al., 2021, eq. 8).

    :func:`nt_xent` of the rows plus :func:`cluster_contrast` of the columns.

    Args:
        view_a: Instance embeddings of the first view, any norm.
        view_b: Instance embeddings of the second view.
        assignment_a: Soft assignment of the first view, rows that sum to 1.
        assignment_b: The same of the second view.
        instance_temperature: Temperature between rows.
        cluster_temperature: Temperature between columns.
        gather: Use the rows of all processes of ``torch.distributed``, with exact gradients.

    Raises:
        ValueError: The shapes do not agree, or a temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import contrastive_clustering
        >>> z, p = torch.eye(4), torch.eye(4)
        >>> round(float(contrastive_clustering(z, z, p, p, instance_temperature=1.0)), 4)  # twice log(e + 6) - 1
        2.3308
    """
    rows = torch.as_tensor(nt_xent(view_a, view_b, temperature=instance_temperature, gather=gather))
    return rows + cluster_contrast(assignment_a, assignment_b, temperature=cluster_temperature, gather=gather)
