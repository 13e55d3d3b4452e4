"""Classification by the nearest neighbours in a training set."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def knn_probabilities(
    train_features: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    features: Float[Tensor, "m d"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    classes: int | None = None,
    chunk: int = 1024,
) -> Float[Tensor, "m c"]:
    """Weighted vote of the k nearest by cosine, each with ``exp(cosine / temperature)`` (Wu et al., 2018; DINO).

    Args:
        train_features: Features of the training set, any norm.
        train_labels: Their classes, 0..C-1.
        features: Features to classify.
        k: Neighbours that vote, at most the training set. DINO reports 10, 20, 100 and 200.
        temperature: Temperature of the weights, positive; 0.07 in DINO, 0.1 in Wu et al.
        classes: Classes C; by default one more than the largest training label.
        chunk: Rows classified at once.

    Returns:
        Votes that sum to 1 in each row.

    Raises:
        ValueError: k is not between 1 and n, the temperature is not positive, or a label is outside 0..C-1.

    Example:
        >>> train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> knn_probabilities(train, torch.tensor([0, 0, 1]), torch.tensor([[2.0, 0.1]]), k=2)
        tensor([[1., 0.]])
    """
    n = len(train_features)
    if not 1 <= k <= n or not temperature > 0:
        raise ValueError(f"k lies between 1 and the {n} training rows, got {k}; temperature {temperature}")
    count = int(train_labels.max()) + 1 if classes is None else classes
    if int(train_labels.min()) < 0 or int(train_labels.max()) >= count:
        raise ValueError(f"training labels lie in 0..{count - 1}")
    bank = F.normalize(train_features.float(), dim=1)
    parts = []
    for rows in features.float().split(chunk):
        cosine, index = (F.normalize(rows, dim=1) @ bank.T).topk(k, dim=1)
        weight = ((cosine - cosine[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(rows), count).scatter_add_(1, train_labels[index], weight)
        parts.append(votes / votes.sum(1, keepdim=True))
    return torch.cat(parts) if parts else bank.new_zeros(0, count)
