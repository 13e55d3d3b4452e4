"""Supervised contrastive loss: rows of one class are each other's positives."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from contrastive_core.distributed import gather as gather_rows
from contrastive_core.losses.rows import (
    Reduction,
    Temperature,
    check_labels,
    gathered,
    inverse_temperature,
    item_ids,
    local_sizes,
    normalise,
    reduce_valid,
)
from contrastive_core.losses.similarity import Precision, pair_logsumexp, self_logsumexp


def sup_con(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    temperature: Temperature = 0.1,
    positives: Literal["out", "in"] = "out",
    gather: bool = False,
    tile: int | None = None,
    precision: Precision = "exact",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """Supervised contrastive loss (Khosla et al., 2020, eq. 2 ``out`` and eq. 3 ``in``).

    ``out``: ``-mean_p s_ip + log sum_{a != i} exp(s_ia)``; ``in``: ``-log mean_p exp(s_ip) + log sum_{a != i}
    exp(s_ia)``, with ``p`` over the other rows of row i's class and ``s`` the cosine over the temperature.

    Args:
        embeddings: One row per view, any norm; views of one item share its label.
        labels: Class of every row; rows of one class are each other's positives. A row with a negative label has no
            known class: it is left out of the mean and stays a negative of the others.
        temperature: Positive number, or a tensor that learns.
        positives: Average over positives outside or inside the logarithm.
        gather: Use the rows of all processes of ``torch.distributed``, with exact gradients.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over the rows that have a positive (0 if none has), or ``none`` (0 at rows without).

    Raises:
        ValueError: The shapes do not agree, or the temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import sup_con
        >>> round(float(sup_con(torch.ones(6, 3), torch.tensor([0, 0, 0, 1, 1, 1]))), 4)  # log(5)
        1.6094
    """
    check_labels(embeddings, labels)
    scale = inverse_temperature(temperature, embeddings)
    x = normalise(embeddings)
    counts = local_sizes(x, gather)
    keys, key_labels = gathered(x, counts, gather), gather_rows(labels, counts) if gather else labels
    mine, index = item_ids(x, None, counts, gather)
    # A row without label is a class of its own: nobody's positive, everybody's negative.
    alone = key_labels.max().clamp(min=0) + 1 + torch.arange(len(key_labels), device=key_labels.device)
    _, classes = torch.where(key_labels < 0, alone, key_labels).unique(return_inverse=True)
    own, size = classes[mine], classes.bincount()
    others = (size[own] - 1).to(x.dtype)
    has = others > 0
    if gather:
        denominator, _ = pair_logsumexp(x, keys, scale, query_ids=mine, key_ids=index, tile=tile, precision=precision)
    else:
        denominator = self_logsumexp(x, scale, tile=tile, precision=precision)
    if positives == "out":
        # The mean over positives is a product with the sum of the class, no pair is listed.
        sums = torch.zeros(len(size), x.shape[1], dtype=x.dtype, device=x.device).index_add(0, classes, keys)
        attraction = ((sums[own] * x).sum(1) - (x * x).sum(1)) * scale / others.clamp(min=1)
    else:
        attraction = torch.zeros_like(denominator)
        for label in own[has].unique():
            members, rows = index[classes == label], (own == label).nonzero()[:, 0]
            inside, _ = pair_logsumexp(
                x[rows], keys[members], scale, query_ids=mine[rows], key_ids=members, tile=tile, precision=precision
            )
            attraction = attraction.index_put((rows,), inside - math.log(len(members) - 1))
    losses = denominator.masked_fill(~has, 0.0) - attraction
    return reduce_valid(losses, has, reduction, gather)


class SupCon(nn.Module):
    """:func:`sup_con` with its settings remembered."""

    def __init__(
        self, temperature: float = 0.1, *, positives: Literal["out", "in"] = "out", gather: bool = False
    ) -> None:
        super().__init__()
        self.temperature, self.gather = temperature, gather
        self.positives: Literal["out", "in"] = positives

    def forward(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        return sup_con(embeddings, labels, temperature=self.temperature, positives=self.positives, gather=self.gather)
