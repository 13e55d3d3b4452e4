"""Supervised contrastive loss: rows of one class are each other's positives."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from contrastive_core.distributed import gather as gather_rows
from contrastive_core.losses.kernel import Precision, Settings
from contrastive_core.losses.rows import (
    Reduction,
    Temperature,
    against_negatives,
    check_labels,
    check_values,
    either,
    gathered,
    inverse_temperature,
    item_ids,
    local_sizes,
    normalise,
    reduce_valid,
)
from contrastive_core.losses.similarity import pair_terms, self_terms

_CLASS_TILE = 256
"""Side of the tiles that hold the pairs of one class."""


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
    check_values(embeddings, labels)
    scale = inverse_temperature(temperature, embeddings)
    x = normalise(embeddings)
    counts = local_sizes(x, gather)
    keys, key_labels = gathered(x, counts, gather), gather_rows(labels, counts) if gather else labels
    place, index = item_ids(x, None, counts, gather)
    # A row without label is a class of its own: nobody's positive, everybody's negative.
    alone = key_labels.max().clamp(min=0) + 1 + torch.arange(len(key_labels), device=key_labels.device)
    _, classes = torch.where(key_labels < 0, alone, key_labels).unique(return_inverse=True)
    own, size = classes[place], classes.bincount()
    others = (size[own] - 1).to(x.dtype)
    has = others > 0
    split = positives == "in" or precision == "bf16"
    if split:
        # Rounded products of positives must not meet exact ones: the row's own class is summed in full precision.
        inside = _own_class(x, keys, scale, place, index, own, classes, gather)
        negatives = _all_others(x, keys, scale, own, classes, gather, Settings(tile=tile, precision=precision))
    if positives == "in":
        losses = against_negatives(negatives, inside.masked_fill(~has, 0.0)) + others.clamp(min=1).log()
        return reduce_valid(losses, has, reduction, gather)
    plain = Settings(tile=tile)
    denominator = either(negatives, inside) if split else _all_others(x, keys, scale, place, index, gather, plain)
    # The mean over positives is a product with the sum of the class, no pair is listed.
    sums = torch.zeros(len(size), x.shape[1], dtype=x.dtype, device=x.device).index_add(0, classes, keys)
    attraction = ((sums[own] * x).sum(1) - (x * x).sum(1)) * scale / others.clamp(min=1)
    return reduce_valid(denominator.masked_fill(~has, 0.0) - attraction, has, reduction, gather)


def _all_others(
    x: Tensor, keys: Tensor, scale: float | Tensor, own: Tensor, ids: Tensor, gather: bool, settings: Settings
) -> Tensor:
    """Log-sum-exp over the rows of other ids."""
    if gather:
        return pair_terms(x, keys, scale, own, ids, settings)[0]
    return self_terms(x, scale, ids, settings)[0]


def _own_class(
    x: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    place: Tensor,
    index: Tensor,
    own: Tensor,
    classes: Tensor,
    gather: bool,
) -> Tensor:
    """Log-sum-exp over the other rows of a row's class: sorted by class, few tiles hold any of its pairs."""
    if not gather and Settings().one_tile(len(x), len(x)):
        return self_terms(x, scale, None, Settings(), own)[0]
    settings = Settings(tile=_CLASS_TILE)
    order = own.argsort()
    if gather:
        other = classes.argsort()
        alike = (own[order], classes[other])
        rows = pair_terms(x[order], keys[other], scale, place[order], index[other], settings, alike)[0]
    else:
        rows = self_terms(x[order], scale, None, settings, own[order])[0]
    return rows[order.argsort()]


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
