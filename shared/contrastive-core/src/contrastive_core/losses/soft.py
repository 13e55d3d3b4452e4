"""InfoNCE with soft targets: how much each pair belongs together is given, not only which is the one positive."""

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive_core.losses.kernel import is_transformed, without_autocast
from contrastive_core.losses.rows import Temperature, inverse_temperature, normalise
from contrastive_core.nn.kernels import squared_distances


def soft_info_nce(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "m d"],
    targets: Float[Tensor, "n m"] | None = None,
    *,
    temperature: Temperature = 0.1,
    symmetric: bool = True,
) -> Float[Tensor, ""]:
    """Cross-entropy between target distributions and the softmax over similarities.

    ``L = -mean_i sum_j W_ij log softmax_j(s_ij)`` with ``s_ij = q_i . k_j / temperature`` for unit rows; symmetric, the
    average with the same over columns, where each column of ``W`` is brought to sum 1. With one-hot targets this is
    InfoNCE; soft ones have no false negatives (y-Aware InfoNCE, Dufumier et al., 2021; soft targets of SoftCLIP). The
    matrix of targets is n x m, so that of similarities is made too.

    Args:
        query: Embeddings, any norm.
        key: The other side; row by row the matching items where ``targets`` is absent.
        targets: Weights, not negative; rows are brought to sum 1. The identity when absent.
        temperature: Positive number, or a tensor that learns.
        symmetric: Average with the loss of keys against queries.

    Returns:
        The loss, at least 0; 0 for a single pair.

    Raises:
        ValueError: The shapes do not agree, the batch is empty, a row (or, symmetric, a column) of targets has no
            weight, or the temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import soft_info_nce
        >>> round(float(soft_info_nce(torch.eye(4), torch.eye(4), temperature=1.0)), 4)  # log(1 + 3 / e)
        0.7437
    """
    if query.ndim != 2 or key.ndim != 2 or query.shape[1] != key.shape[1] or not len(query) or not len(key):
        raise ValueError(f"expected [n d] and [m d], not empty, got {tuple(query.shape)} and {tuple(key.shape)}")
    if targets is None:
        if len(query) != len(key):
            raise ValueError(f"without targets rows match one to one, got {len(query)} and {len(key)}")
        targets = torch.eye(len(query), device=query.device)
    if targets.shape != (len(query), len(key)):
        raise ValueError(f"targets are [{len(query)} {len(key)}], got {tuple(targets.shape)}")
    scale = inverse_temperature(temperature, query)
    with without_autocast(query):
        logits = normalise(query) @ normalise(key).T * scale
        weights = targets.to(logits)
        loss = _cross_entropy(logits, weights)
        return (loss + _cross_entropy(logits.T, weights.T)) / 2 if symmetric else loss


def rbf_targets(
    a: Float[Tensor, "n k"], b: Float[Tensor, "m k"] | None = None, *, sigma: float = 0.5
) -> Float[Tensor, "n m"]:
    """Soft targets from what is known of the items: ``softmax_j(-|a_i - b_j|^2 / (2 k sigma^2))``.

    The distance is a mean over the k columns, so that ``sigma`` is in their unit however many there are.

    Args:
        a: What is known of the rows, standardised columns.
        b: The same of the columns; ``a`` itself when absent.
        sigma: Width, positive; towards 0 the targets become one-hot, towards infinity uniform.

    Returns:
        Row-stochastic targets, without gradient.

    Raises:
        ValueError: The width is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import rbf_targets
        >>> rbf_targets(torch.tensor([[0.0], [0.0], [9.0]]), sigma=0.5)[0]
        tensor([0.5000, 0.5000, 0.0000])
    """
    if not sigma > 0:
        raise ValueError(f"sigma is positive, got {sigma}")
    other = a if b is None else b
    squared = squared_distances(a.detach(), other.detach())
    if b is None:
        squared.fill_diagonal_(0)  # exact, where rounding would leave a little
    return (-squared / (2 * a.shape[1] * sigma**2)).softmax(1)


def _cross_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    total = weights.sum(1, keepdim=True)
    if not is_transformed(total) and (not bool((total > 0).all()) or bool((weights < 0).any())):
        raise ValueError("targets are not negative, and every item has some")
    return -(weights / total * logits.log_softmax(1)).sum(1).mean()
