"""GNAH: prototypes of the features, binary anchors of the codes, and their agreement (PAGA).

The neighbourhood contrast (CSNA) and the binarisation are shared with other methods:
:func:`cl_retrieval.hashing.objective.symmetric_contrast` and :func:`~cl_retrieval.hashing.objective.binarisation`.
"""

import math

import torch
import torch.nn.functional as F
from contrastive_core.losses.rows import local_sizes, reduce
from jaxtyping import Float, Int
from torch import Tensor


def prototype_alignment(
    features: Float[Tensor, "b d"],
    h: Float[Tensor, "b l"],
    prototypes: Float[Tensor, "k d"],
    anchors: Float[Tensor, "k l"],
    *,
    temperature: float = 0.5,
    teacher_temperature: float = 0.5,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """``KL(p_i || q_i)``, mean over the batch (Eq. 2-3): codes see the anchors as features see the prototypes.

    ``p_i = softmax(C f_i / T_p)`` and ``q_i = softmax(C_b h_i / T)``; only ``h`` gets a gradient.

    Args:
        features: Unit features of one modality.
        h: Their relaxed codes, unit rows.
        prototypes: ``C``, unit rows.
        anchors: ``C_b``, unit rows; row j belongs to prototype j.
        temperature: ``T``.
        teacher_temperature: ``T_p``; the paper has one temperature for both.
        gather: Weigh this process's rows by their share of all.
    """
    log_p = (features @ prototypes.T / teacher_temperature).detach().log_softmax(1)
    log_q = (h @ anchors.detach().T / temperature).log_softmax(1)
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    return reduce(divergence, "mean", local_sizes(h, gather))


def binary_anchors(state: Float[Tensor, "k l"]) -> Float[Tensor, "k l"]:
    """``C_b = norm(sgn(S))``: rows of ``±1 / sqrt(L)``, zero counting as +1 (Eq. 4)."""
    return torch.where(state >= 0, 1.0, -1.0).to(state.dtype) / math.sqrt(state.shape[1])


def cluster_means(
    h: Float[Tensor, "n l"], labels: Int[Tensor, " n"], keep: Float[Tensor, "k l"]
) -> Float[Tensor, "k l"]:
    """Mean code of every cluster; an empty cluster keeps its row of ``keep`` (Eq. 4).

    Args:
        h: Relaxed codes of both modalities.
        labels: Cluster of each row.
        keep: The means before.
    """
    sums = torch.zeros_like(keep).index_add_(0, labels, h)
    counts = torch.bincount(labels, minlength=len(keep))[:, None]
    return torch.where(counts > 0, sums / counts.clamp_min(1), keep)


def global_weight(epoch: int, beta: float, gamma: float) -> float:
    """Weight ``w_t = beta exp(-gamma t)`` of the alignment; the contrast has ``1 - w_t`` (Eq. 12)."""
    return beta * math.exp(-gamma * epoch)
