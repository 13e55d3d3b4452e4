"""Balanced assignment by optimal transport, and the swapped prediction of assignments (SwAV)."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from contrastive_core.distributed import is_active
from contrastive_core.losses.kernel import without_autocast
from contrastive_core.losses.rows import (
    Temperature,
    full_precision,
    inverse_temperature,
    local_sizes,
    normalise,
    reduce,
    total,
)


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "n k"], *, epsilon: float = 0.05, iterations: int = 3, gather: bool = False
) -> Float[Tensor, "n k"]:
    """Assign rows to prototypes evenly (Sinkhorn-Knopp; SwAV; Caron et al., 2020, eq. 3), without gradient.

    ``Q ~ exp(scores / epsilon)``, scaled in turn so that every prototype receives ``n / k`` and every row sums to 1.
    Computed on logarithms, so that neither a small epsilon nor a prototype without rows can overflow or divide by zero.

    Args:
        scores: Similarity of every row with every prototype.
        epsilon: Smoothness, positive; small values give nearly hard assignments.
        iterations: Number of alternations; rows are scaled last.
        gather: Balance over the rows of all processes.

    Returns:
        The assignment of this process's rows, float32 or wider.

    Raises:
        ValueError: ``epsilon`` or ``iterations`` is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import sinkhorn
        >>> sinkhorn(torch.tensor([[1.0, 0.9], [1.0, 0.0]]), iterations=20).round()
        tensor([[0., 1.],
                [1., 0.]])
    """
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"expected epsilon > 0 and at least one iteration, got {epsilon} and {iterations}")
    with without_autocast(scores):
        log_q = full_precision(scores) / epsilon
        for _ in range(iterations):
            log_q = log_q - _column_logsumexp(log_q, gather)
            log_q = log_q - log_q.logsumexp(1, keepdim=True)
        return log_q.exp()


def swav(
    views: Sequence[Float[Tensor, "n d"]],
    prototypes: Float[Tensor, "k d"],
    *,
    temperature: Temperature = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    assigned: int = 2,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Swapped prediction of cluster assignments (SwAV; Caron et al., 2020, eq. 2), with any number of crops.

    For each assigned view ``t`` and every other view ``s``: ``-mean_i sum_k Q_t[i, k] log softmax(z_s . c / T)[i, k]``,
    averaged over all such pairs; ``Q_t = sinkhorn(z_t . c)``.

    Args:
        views: Embeddings of the crops of the same items, row by row, any norm; large crops first.
        prototypes: One row per prototype, any norm.
        temperature: Positive number ``T``, or a tensor that learns.
        epsilon: Smoothness of the assignment.
        iterations: Alternations of the assignment.
        assigned: Number of first views whose assignments are predicted.
        gather: Balance the assignment over the rows of all processes, and weigh rows accordingly.

    Raises:
        ValueError: Fewer than two views, ``assigned`` out of range, or a number is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import swav
        >>> z = torch.eye(2)
        >>> round(float(swav([z, z], torch.eye(2), temperature=1.0)), 4)  # log(1 + 1 / e)
        0.3133
    """
    if len(views) < 2 or not 1 <= assigned <= len(views):
        raise ValueError(f"expected at least two views and 1 to all of them assigned, got {len(views)} and {assigned}")
    scale = inverse_temperature(temperature, views[0])
    counts = local_sizes(views[0], gather)
    centres = normalise(prototypes)
    with without_autocast(views[0]):
        scores = [normalise(view) @ centres.T for view in views]
        log_p = [(score * scale).log_softmax(1) for score in scores]
        terms = []
        for t in range(assigned):
            q = sinkhorn(scores[t].detach(), epsilon=epsilon, iterations=iterations, gather=gather)
            terms += [-(q * p).sum(1) for s, p in enumerate(log_p) if s != t]
        return reduce(torch.stack(terms).mean(0), "mean", counts)


def _column_logsumexp(x: Tensor, gather: bool) -> Tensor:
    if not (gather and is_active()):
        return x.logsumexp(0, keepdim=True)
    top = x.amax(0, keepdim=True)
    dist.all_reduce(top, op=dist.ReduceOp.MAX)
    return total((x - top).exp().sum(0, keepdim=True), True).log() + top
