"""Non-negative and sparse embeddings."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastive_core.losses.rows import full_precision, local_sizes, total

NonNegative = Literal["relu", "rep_relu", "softplus"]


def non_negative(x: Float[Tensor, "*shape"], kind: NonNegative = "rep_relu") -> Float[Tensor, "*shape"]:
    """Make embeddings non-negative before a contrastive loss (NCL; Wang et al., 2024, section 4).

    Args:
        x: Embeddings, any shape.
        kind: ``relu``; ``rep_relu``: values of ReLU with the gradient of GELU, so that a factor that is off can recover
            in a row with others; ``softplus``: smooth, and never exactly zero. A row that is off in all factors has no
            direction: a loss that normalises gives it no gradient under ``relu`` and ``rep_relu`` and it stays off,
            while :func:`spectral_contrastive` brings it back, and ``softplus`` never loses it.

    Raises:
        ValueError: The kind is not known.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import non_negative
        >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
        >>> y = non_negative(x)
        >>> y.detach(), torch.autograd.grad(y.sum(), x)[0]
        (tensor([0., 2.]), tensor([-0.0833,  1.0852]))
    """
    if kind == "relu":
        return F.relu(x)
    if kind == "rep_relu":
        smooth = F.gelu(x)
        return F.relu(x).detach() + smooth - smooth.detach()
    if kind == "softplus":
        return F.softplus(x)
    raise ValueError(f"expected relu, rep_relu or softplus, got {kind}")


def flops(embeddings: Float[Tensor, "n d"], *, gather: bool = False) -> Float[Tensor, ""]:
    """Expected cost of a sparse scalar product, ``sum_k (mean_i |z_ik|)^2`` (FLOPS; Paria et al., 2020, eq. 4).

    Args:
        embeddings: One row per item.
        gather: Use the mean over the rows of all processes, with exact gradients.

    Raises:
        ValueError: The batch is empty.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import flops
        >>> flops(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))  # 1 + 1/4
        tensor(1.2500)
    """
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise ValueError(f"expected [n d] with at least one row, got {tuple(embeddings.shape)}")
    z = full_precision(embeddings)
    return (total(z.abs().sum(0), gather) / sum(local_sizes(z, gather))).square().sum()
