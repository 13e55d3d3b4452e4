"""The objective: a video stands next to its own echo, and near videos with a like echo (section 5.2)."""

from typing import Literal

import torch
from contrastive_core.distributed import gather as gather_rows
from contrastive_core.distributed import gather_with_grad
from contrastive_core.losses import info_nce, nt_xent, rbf_targets, soft_info_nce
from jaxtyping import Float
from torch import Tensor

Target = Literal["soft", "hard", "kernel-views", "echo-residual", "pair"]
TARGETS: tuple[Target, ...] = ("soft", "hard", "kernel-views", "echo-residual", "pair")


def echo_targets(
    echo: Float[Tensor, "b e"], *, target: Target = "soft", sigma: float = 0.5
) -> Float[Tensor, "b b"] | None:
    """What share of a clip's probability each echo of the batch should get.

    ``soft`` and ``kernel-views``: ``W_ij = softmax_j(-|e_i - e_j|^2 / (2 E sigma^2))`` over standardised echoes: near
    duplicates are no false negatives. The others: the clip's own partner alone.

    Args:
        echo: Standardised echo vectors.
        target: Kind of target.
        sigma: Width, in standard deviations of the echo.

    Returns:
        Row-stochastic targets, or ``None`` for one-hot ones.
    """
    return rbf_targets(echo, sigma=sigma) if target in ("soft", "kernel-views") else None


def echo_loss(
    z: Float[Tensor, "b d"],
    partner: Float[Tensor, "b d"],
    echo: Float[Tensor, "b e"],
    *,
    target: Target = "soft",
    temperature: float = 0.1,
    sigma: float = 0.5,
    queue: tuple[Float[Tensor, "m d"], Float[Tensor, "m e"]] | None = None,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy between ``softmax(z_i . q_j / temperature)`` and the targets of the echoes.

    Args:
        z: Embeddings of the clips.
        partner: What they are compared with, row by row: embeddings of echoes (``soft``, ``hard``), of residual maps
            (``echo-residual``), of second views (``kernel-views``), or of compressed clips (``pair``).
        echo: Standardised echo vectors.
        target: Kind of target.
        temperature: Temperature.
        sigma: Width of soft targets.
        queue: Embeddings and echoes of earlier batches, without gradient, as further columns of the direction from
            clips to echoes.
        gather: Compare the rows of all processes of ``torch.distributed``, with exact gradients.

    Returns:
        The loss, in nats.

    Example:
        >>> echo = torch.tensor([[0.0], [9.0]])
        >>> abs(float(echo_loss(torch.eye(2), torch.eye(2), echo, temperature=0.01))) < 1e-6
        True
    """
    if gather:  # soft targets are brought to sum 1 over all rows and all columns
        z, partner, echo = gather_with_grad(z), gather_with_grad(partner), gather_rows(echo)
    targets = echo_targets(echo, target=target, sigma=sigma)
    if queue is None or not len(queue[0]):
        return soft_info_nce(z, partner, targets, temperature=temperature)
    keys = torch.cat([partner, queue[0].detach().to(partner)])
    if targets is None:
        wide = torch.eye(len(z), len(keys), device=z.device)
    else:
        wide = rbf_targets(echo, torch.cat([echo, queue[1].to(echo)]), sigma=sigma)
    forward = soft_info_nce(z, keys, wide, temperature=temperature, symmetric=False)
    backward = soft_info_nce(
        partner, z, None if targets is None else targets.T, temperature=temperature, symmetric=False
    )
    return (forward + backward) / 2


def view_loss(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], *, temperature: float = 0.1, gather: bool = False
) -> Float[Tensor, ""]:
    """InfoNCE of two echo-preserving views, both directions: the term weighed by ``lambda_v``."""
    return info_nce(first, second, temperature=temperature, symmetric=True, gather=gather)


def simclr_loss(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], *, temperature: float = 0.1, gather: bool = False
) -> Float[Tensor, ""]:
    """NT-Xent, of the baselines without echo."""
    return nt_xent(first, second, temperature=temperature, gather=gather)
