"""Softmax contrastive losses as thin formulas on the streaming log-sum-exp: InfoNCE, NT-Xent, CLIP, SupCon.

Embeddings are normalised inside; with rows ``q`` and ``k`` of unit norm, ``s_ij = q_i . k_j / temperature``.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from contrastive_core.distributed import gather as gather_rows
from contrastive_core.distributed import gather_with_grad, rank_slice, sizes, world_size
from contrastive_core.losses.similarity import Precision, pair_logsumexp, self_logsumexp

Reduction = Literal["mean", "none"]
Temperature = float | Float[Tensor, ""]


def info_nce(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "n d"],
    *,
    temperature: Temperature = 0.1,
    symmetric: bool = False,
    ids: Int[Tensor, " n"] | None = None,
    queue: Float[Tensor, "m d"] | None = None,
    gather: bool = False,
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
        gather: Use the keys of all processes of ``torch.distributed`` as negatives, with exact gradients.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over rows, or ``none``.

    Returns:
        The loss, a scalar or one value a row, at least 0.

    Raises:
        ValueError: The shapes do not agree, or the temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import info_nce
        >>> q = torch.eye(4)
        >>> round(float(info_nce(q, q, temperature=1.0)), 4)  # log(1 + 3 / e)
        0.7437
    """
    _check_pair(query, key)
    if queue is not None and symmetric:
        raise ValueError("a queue holds negatives of queries only: symmetric=True cannot be combined with queue")
    scale = _scale(temperature, query)
    query, key = _normalise(query), _normalise(key)
    positive = (query * key).sum(1) * scale
    counts = sizes(len(query), query.device) if gather else [len(query)]
    keys, queries = (gather_with_grad(key, counts), query) if gather else (key, query)
    key_ids = None if ids is None else (gather_rows(ids, counts) if gather else ids)
    options = {"tile": tile, "precision": precision}

    both = symmetric and not gather
    rows, columns = pair_logsumexp(
        queries,
        keys,
        scale,
        query_ids=ids,
        key_ids=key_ids,
        columns=both,
        **options,  # type: ignore[arg-type]
    )
    if queue is not None and len(queue):
        more, _ = pair_logsumexp(query, _normalise(queue.detach()), scale, **options)  # type: ignore[arg-type]
        rows = torch.logaddexp(rows, more)
    losses = _against(rows, positive, ids) - positive
    if symmetric:
        if gather:
            columns, _ = pair_logsumexp(
                key,
                gather_with_grad(query, counts),
                scale,
                query_ids=ids,
                key_ids=key_ids,
                **options,  # type: ignore[arg-type]
            )
        losses = (losses + _against(columns, positive, ids) - positive) / 2
    return _reduce(losses, reduction, counts)


def nt_xent(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    *,
    temperature: Temperature = 0.5,
    ids: Int[Tensor, " n"] | None = None,
    gather: bool = False,
    tile: int | None = None,
    precision: Precision = "exact",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " 2n"]:
    """NT-Xent (SimCLR; Chen et al., 2020, eq. 1): each view against all other 2n - 1 views.

    Args:
        view_a: Embeddings of the first view, any norm.
        view_b: Embeddings of the second view, row by row the same items.
        temperature: Positive number, or a tensor that learns.
        ids: Ids of the items; another item with the same id is no negative.
        gather: Use the views of all processes of ``torch.distributed``, with exact gradients.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over the 2n rows, or ``none`` (first all rows of ``view_a``, then of ``view_b``).

    Raises:
        ValueError: The shapes do not agree, or the temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import nt_xent
        >>> same = torch.ones(8, 3)
        >>> round(float(nt_xent(same, same)), 4)  # log(15)
        2.7081
    """
    _check_pair(view_a, view_b)
    scale = _scale(temperature, view_a)
    a, b = _normalise(view_a), _normalise(view_b)
    positive = ((a * b).sum(1) * scale).repeat(2)
    views = torch.cat([a, b])
    item = None if ids is None else ids.repeat(2)
    counts = [len(views)]
    if gather:
        counts = sizes(len(views), views.device)
        everyone = gather_with_grad(views, counts)
        keys = torch.arange(len(everyone), device=views.device) if item is None else gather_rows(item, counts)
        own = keys[rank_slice(counts)]
        rows, _ = pair_logsumexp(views, everyone, scale, query_ids=own, key_ids=keys, tile=tile, precision=precision)
    else:
        rows = self_logsumexp(views, scale, ids=item, tile=tile, precision=precision)
    return _reduce(_against(rows, positive, item) - positive, reduction, counts)


def clip_loss(
    image: Float[Tensor, "n d"],
    text: Float[Tensor, "n d"],
    *,
    logit_scale: Temperature = 1 / 0.07,
    ids: Int[Tensor, " n"] | None = None,
    gather: bool = False,
    tile: int | None = None,
    precision: Precision = "exact",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """Symmetric cross-modal InfoNCE (CLIP; Radford et al., 2021).

    Args:
        image: Embeddings of one modality, any norm.
        text: Embeddings of the other, row by row the matching items.
        logit_scale: Inverse temperature, positive; usually ``exp`` of a learned number.
        ids: Ids of the pairs; another pair with the same id is no negative.
        gather: Use the pairs of all processes of ``torch.distributed``, with exact gradients.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over pairs, or ``none``.

    Raises:
        ValueError: The shapes do not agree, or the scale is not positive.
    """
    return info_nce(
        image,
        text,
        temperature=1 / logit_scale,
        symmetric=True,
        ids=ids,
        gather=gather,
        tile=tile,
        precision=precision,
        reduction=reduction,
    )


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

    Args:
        embeddings: One row per view, any norm; views of one item share its label.
        labels: Class of every row; rows of one class are each other's positives.
        temperature: Positive number, or a tensor that learns.
        positives: Average over positives outside or inside the logarithm.
        gather: Use the rows of all processes of ``torch.distributed``, with exact gradients.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over the rows that have a positive (0 if none has), or ``none`` (0 at rows without).

    Raises:
        ValueError: The shapes do not agree, or the temperature is not positive.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(f"expected [n d] and [n], got {tuple(embeddings.shape)} and {tuple(labels.shape)}")
    scale = _scale(temperature, embeddings)
    x = _normalise(embeddings)
    counts = sizes(len(x), x.device) if gather else [len(x)]
    keys = gather_with_grad(x, counts) if gather else x
    key_labels = gather_rows(labels, counts) if gather else labels
    _, classes = key_labels.unique(return_inverse=True)
    own = classes[rank_slice(counts)] if gather else classes
    size = classes.bincount()
    others = (size[own] - 1).to(x.dtype)
    has = others > 0

    index = torch.arange(len(keys), device=x.device)
    if gather:
        mine = index[rank_slice(counts)]
        denominator, _ = pair_logsumexp(x, keys, scale, query_ids=mine, key_ids=index, tile=tile, precision=precision)
    else:
        denominator = self_logsumexp(x, scale, tile=tile, precision=precision)

    if positives == "out":
        sums = torch.zeros(len(size), x.shape[1], dtype=x.dtype, device=x.device).index_add(0, classes, keys)
        attraction = ((sums[own] * x).sum(1) - (x * x).sum(1)) * scale / others.clamp(min=1)
    else:
        attraction = torch.zeros_like(denominator)
        for label in own[has].unique():
            members, rows = index[classes == label], (own == label).nonzero()[:, 0]
            row_ids = mine[rows] if gather else members
            inside, _ = pair_logsumexp(
                x[rows], keys[members], scale, query_ids=row_ids, key_ids=members, tile=tile, precision=precision
            )
            attraction = attraction.index_put((rows,), inside - math.log(max(len(members) - 1, 1)))
    losses = torch.where(has, denominator.masked_fill(~has, 0.0) - attraction, 0.0)
    if reduction == "none":
        return losses
    total = int(has.sum()) if not gather else int((size[classes] > 1).sum())
    return losses.sum() * (world_size() if gather else 1) / max(total, 1)


class InfoNCE(nn.Module):
    """:func:`info_nce` with its settings remembered."""

    def __init__(self, temperature: float = 0.1, *, symmetric: bool = False, gather: bool = False) -> None:
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

    def __init__(self, temperature: float = 0.5, *, gather: bool = False) -> None:
        super().__init__()
        self.temperature, self.gather = temperature, gather

    def forward(self, view_a: Float[Tensor, "n d"], view_b: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        return nt_xent(view_a, view_b, temperature=self.temperature, gather=self.gather)


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


class CLIPLoss(nn.Module):
    """:func:`clip_loss` with a learned scale, kept at most 100.

    The parameter is the logarithm of the scale; leave it out of weight decay.
    """

    def __init__(self, initial_scale: float = 1 / 0.07, *, gather: bool = False) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))
        self.gather = gather

    def forward(self, image: Float[Tensor, "n d"], text: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        # Clamped in place, not in the graph: a clamp in the graph would leave the parameter without gradient there.
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(100))
        return clip_loss(image, text, logit_scale=self.log_scale.exp(), gather=self.gather)


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"expected two [n d] tensors of equal shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if len(a) == 0:
        raise ValueError("the batch is empty")


def _scale(temperature: Temperature, like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    t = torch.as_tensor(temperature, device=like.device, dtype=dtype)
    if not float(t.detach()) > 0:
        raise ValueError(f"the temperature must be positive, got {float(t.detach())}")
    return 1 / t


def _normalise(x: Tensor) -> Tensor:
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(x, dim=1, eps=1e-12)


def _against(negatives: Tensor, positive: Tensor, ids: Tensor | None) -> Tensor:
    """Put the positive into the sum where the ids took it out of the negatives."""
    return negatives if ids is None else torch.logaddexp(negatives, positive)


def _reduce(losses: Tensor, reduction: Reduction, counts: list[int]) -> Tensor:
    if reduction == "none":
        return losses
    # Data-parallel training averages over processes; with uneven batches the local mean alone would be off.
    return losses.sum() * len(counts) / sum(counts)
