"""Softmax contrastive losses as thin formulas on the streaming log-sum-exp: InfoNCE, MoCo, NT-Xent, CLIP.

Embeddings are normalised inside; with rows ``q`` and ``k`` of unit norm, ``s_ij = q_i . k_j / temperature``.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from contrastive_core.distributed import gather as gather_rows
from contrastive_core.losses.kernel import Precision, Settings
from contrastive_core.losses.ring import ring_logsumexp
from contrastive_core.losses.rows import (
    Gather,
    Reduction,
    Temperature,
    against_negatives,
    check_pair,
    either,
    full_precision,
    gathered,
    inverse_temperature,
    item_ids,
    local_sizes,
    normalise,
    positive_scalar,
    reduce,
)
from contrastive_core.losses.similarity import pair_terms, self_terms


def info_nce(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "n d"],
    *,
    temperature: Temperature = 0.1,
    symmetric: bool = False,
    ids: Int[Tensor, " n"] | None = None,
    queue: Float[Tensor, "m d"] | None = None,
    queue_ids: Int[Tensor, " m"] | None = None,
    gather: Gather = False,
    tile: int | None = None,
    precision: Precision = "exact",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    r"""InfoNCE (van den Oord et al., 2018; MoCo's form with a queue): row i of ``key`` is the positive of query i.

    ``L_i = -s_ii + log sum_j exp(s_ij)``, over the batch's keys and those of the queue.

    Args:
        query: Embeddings, any norm.
        key: Their positives, row by row.
        temperature: Positive number, or a tensor that learns.
        symmetric: Average with the loss of keys against queries; both directions come out of one pass.
        ids: Ids of the pairs; another pair with the same id is no negative.
        queue: Further negatives, without gradient.
        queue_ids: Ids of the queue's rows; one with the id of a query is no negative of it. Needs ``ids``.
        gather: Use the keys of all processes of ``torch.distributed`` as negatives, with exact gradients; ``"ring"``
            passes them from rank to rank, so that no process holds them all.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over rows, or ``none``.

    Returns:
        The loss, a scalar or one value a row, at least 0.

    Raises:
        ValueError: The shapes do not agree, ids of the queue come without a queue or without ids of the pairs, or the
            temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import info_nce
        >>> q = torch.eye(4)
        >>> round(float(info_nce(q, q, temperature=1.0)), 4)  # log(1 + 3 / e)
        0.7437
    """
    check_pair(query, key)
    if queue is not None and symmetric:
        raise ValueError("a queue holds negatives of queries only: symmetric=True cannot be combined with queue")
    _check_queue(query, ids, queue, queue_ids)
    scale = inverse_temperature(temperature, query)
    return _info_nce(query, key, scale, symmetric, ids, queue, queue_ids, gather, tile, precision, reduction)


def _info_nce(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor,
    symmetric: bool,
    ids: Tensor | None,
    queue: Tensor | None,
    queue_ids: Tensor | None,
    gather: Gather,
    tile: int | None,
    precision: Precision,
    reduction: Reduction,
) -> Tensor:
    counts = local_sizes(query, gather)
    settings = Settings(columns=symmetric and not gather, tile=tile, precision=precision, normalise=True, paired=True)
    columns: Tensor | None
    if gather:
        q, k = normalise(query), normalise(key)
        positive = (q * k).sum(1) * scale
        own, _ = item_ids(q, ids, counts, gather)  # each row's own id takes its positive out of the sum
        rows = _against_everyone(q, k, scale, own, counts, gather, settings)
        columns = _against_everyone(k, q, scale, own, counts, gather, settings) if symmetric else None
    else:
        rows, columns, positive = pair_terms(query, key, scale, ids, ids, settings)
    if queue is not None and len(queue):
        plain = Settings(tile=tile, precision=precision, normalise=True)
        query_ids = None if queue_ids is None else ids
        rows = either(rows, pair_terms(query, queue.detach().to(query), scale, query_ids, queue_ids, plain)[0])
    losses = against_negatives(rows, positive)
    if columns is not None:
        losses = (losses + against_negatives(columns, positive)) / 2
    return reduce(losses, reduction, counts)


def nt_xent(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    *,
    temperature: Temperature = 0.5,
    ids: Int[Tensor, " n"] | None = None,
    gather: Gather = False,
    tile: int | None = None,
    precision: Precision = "exact",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " 2*n"]:
    """NT-Xent (SimCLR; Chen et al., 2020, eq. 1): each view against all other 2n - 1 views.

    Args:
        view_a: Embeddings of the first view, any norm.
        view_b: Embeddings of the second view, row by row the same items.
        temperature: Positive number, or a tensor that learns.
        ids: Ids of the items; another item with the same id is no negative.
        gather: Use the views of all processes, all at once or by ``"ring"``, see :func:`info_nce`.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over the 2n rows, or ``none`` (first all rows of ``view_a``, then of ``view_b``).

    Raises:
        ValueError: The shapes do not agree, or the temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import nt_xent
        >>> same = torch.ones(8, 3)
        >>> round(float(nt_xent(same, same)), 3)  # log(15)
        2.708
    """
    check_pair(view_a, view_b)
    scale = inverse_temperature(temperature, view_a)
    views = torch.cat([full_precision(view_a), full_precision(view_b)])
    items = None if ids is None else ids.repeat(2)
    counts = local_sizes(views, gather)
    settings = Settings(tile=tile, precision=precision, normalise=True, paired=True)
    if gather:
        unit = normalise(views)
        positive = (unit[: len(view_a)] * unit[len(view_a) :]).sum(1).repeat(2) * scale
        own, _ = item_ids(view_a, ids, local_sizes(view_a, gather), gather)  # takes out the row itself and its positive
        rows = _against_everyone(unit, unit, scale, own.repeat(2), counts, gather, settings)
    else:
        rows, positive = self_terms(views, scale, items, settings)
    return reduce(against_negatives(rows, positive), reduction, counts)


def moco_v3(
    query_a: Float[Tensor, "n d"],
    query_b: Float[Tensor, "n d"],
    key_a: Float[Tensor, "n d"],
    key_b: Float[Tensor, "n d"],
    *,
    temperature: Temperature = 0.2,
    gather: Gather = False,
    tile: int | None = None,
    precision: Precision = "exact",
) -> Float[Tensor, ""]:
    """MoCo v3 (Chen et al., 2021, algorithm 1): ``2 T [InfoNCE(q_a, k_b) + InfoNCE(q_b, k_a)]``, keys without gradient.

    Args:
        query_a: Predictions of the encoder for the first view, any norm.
        query_b: The same for the second view.
        key_a: Embeddings of the momentum encoder for the first view.
        key_b: The same for the second view.
        temperature: Positive number ``T``, or a tensor that learns.
        gather: Use the keys of all processes, see :func:`info_nce`.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.

    Raises:
        ValueError: The shapes do not agree, or the temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import moco_v3
        >>> same = torch.ones(4, 3)
        >>> round(float(moco_v3(same, same, same, same, temperature=0.5)), 4)  # 2 log(4)
        2.7726
    """
    both = [
        info_nce(query, key.detach(), temperature=temperature, gather=gather, tile=tile, precision=precision)
        for query, key in ((query_a, key_b), (query_b, key_a))
    ]
    return 2 * (both[0] + both[1]) / inverse_temperature(temperature, query_a)


def clip_loss(
    image: Float[Tensor, "n d"],
    text: Float[Tensor, "n d"],
    *,
    logit_scale: Temperature = 1 / 0.07,
    ids: Int[Tensor, " n"] | None = None,
    gather: Gather = False,
    tile: int | None = None,
    precision: Precision = "exact",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """Symmetric cross-modal InfoNCE (CLIP; Radford et al., 2021).

    ``L = (CE(a I T') + CE(a T I')) / 2`` with ``a = logit_scale`` and matching rows on the diagonal.

    Args:
        image: Embeddings of one modality, any norm.
        text: Embeddings of the other, row by row the matching items.
        logit_scale: Inverse temperature, positive; usually ``exp`` of a learned number.
        ids: Ids of the pairs; another pair with the same id is no negative.
        gather: Use the pairs of all processes, all at once or by ``"ring"``, see :func:`info_nce`.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over pairs, or ``none``.

    Raises:
        ValueError: The shapes do not agree, or the scale is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import clip_loss
        >>> round(float(clip_loss(torch.eye(4), torch.eye(4), logit_scale=1.0)), 4)  # log(1 + 3 / e)
        0.7437
    """
    check_pair(image, text)
    scale = positive_scalar(logit_scale, image, "scale")
    return _info_nce(image, text, scale, True, ids, None, None, gather, tile, precision, reduction)


class InfoNCE(nn.Module):
    """:func:`info_nce` with its settings remembered."""

    def __init__(self, temperature: float = 0.1, *, symmetric: bool = False, gather: Gather = False) -> None:
        super().__init__()
        self.temperature, self.symmetric, self.gather = temperature, symmetric, gather

    def forward(
        self, query: Float[Tensor, "n d"], key: Float[Tensor, "n d"], queue: Float[Tensor, "m d"] | None = None
    ) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        return info_nce(
            query, key, temperature=self.temperature, symmetric=self.symmetric, queue=queue, gather=self.gather
        )


class NTXent(nn.Module):
    """:func:`nt_xent` with its settings remembered."""

    def __init__(self, temperature: float = 0.5, *, gather: Gather = False) -> None:
        super().__init__()
        self.temperature, self.gather = temperature, gather

    def forward(self, view_a: Float[Tensor, "n d"], view_b: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        return nt_xent(view_a, view_b, temperature=self.temperature, gather=self.gather)


class CLIPLoss(nn.Module):
    """:func:`clip_loss` with a learned scale, kept at most 100.

    The parameter is the logarithm of the scale; leave it out of weight decay.
    """

    def __init__(self, initial_scale: float = 1 / 0.07, *, gather: Gather = False) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))
        self.gather = gather

    def forward(self, image: Float[Tensor, "n d"], text: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        # Clamped in place, not in the graph: a clamp in the graph would leave the parameter without gradient there.
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(100))
        return clip_loss(image, text, logit_scale=self.log_scale.exp(), gather=self.gather)


def _check_queue(query: Tensor, ids: Tensor | None, queue: Tensor | None, queue_ids: Tensor | None) -> None:
    if queue is not None and (queue.ndim != 2 or queue.shape[1] != query.shape[1]):
        raise ValueError(f"expected a queue [m {query.shape[1]}], got {tuple(queue.shape)}")
    if queue_ids is None:
        return
    if queue is None or ids is None:
        raise ValueError("queue_ids are compared with ids, and name rows of queue: give all three")
    if queue_ids.shape != queue.shape[:1]:
        raise ValueError(f"expected {len(queue)} ids of the queue, got {tuple(queue_ids.shape)}")


def _against_everyone(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor,
    ids: Tensor | None,
    counts: list[int],
    gather: Gather,
    settings: Settings,
) -> Tensor:
    """Log-sum-exp of local queries over the keys of all processes; pairs of equal ids are left out."""
    if gather == "ring":
        return ring_logsumexp(
            query, key, scale, query_ids=ids, key_ids=ids, tile=settings.tile, precision=settings.precision
        )
    key_ids = None if ids is None else gather_rows(ids, counts)
    plain = Settings(tile=settings.tile, precision=settings.precision)
    return pair_terms(query, gathered(key, counts, gather), scale, ids, key_ids, plain)[0]
