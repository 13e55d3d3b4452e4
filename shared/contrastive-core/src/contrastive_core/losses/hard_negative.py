"""NT-Xent with other denominators: decoupled, debiased, and with hard negatives weighted up."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrastive_core.distributed import gather as gather_rows
from contrastive_core.losses.kernel import Precision
from contrastive_core.losses.rows import (
    Reduction,
    Temperature,
    check_pair,
    check_values,
    full_precision,
    gathered,
    inverse_temperature,
    item_ids,
    local_sizes,
    normalise,
    reduce,
    total,
)
from contrastive_core.losses.similarity import pair_logsumexp, self_logsumexp


def decoupled(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    *,
    temperature: Temperature = 0.1,
    sigma: float | None = None,
    ids: Int[Tensor, " n"] | None = None,
    gather: bool = False,
    tile: int | None = None,
    precision: Precision = "exact",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " 2*n"]:
    """Decoupled contrastive loss, DCL and weighted DCLW (Yeh et al., 2022, eq. 5 and 6).

    ``L_i = -w_i s_ip + log sum_{negatives} exp(s_in)``: the positive is not in the denominator. ``w_i = 1`` (DCL), or
    ``2 - n softmax_i(cos(z_i, z_p) / sigma)`` (DCLW), without gradient.

    Args:
        view_a: Embeddings of the first view, any norm.
        view_b: Embeddings of the second view, row by row the same items.
        temperature: Positive number, or a tensor that learns.
        sigma: Width of the von Mises-Fisher weights (0.5 in the paper); absent: DCL.
        ids: Ids of the items; another item with the same id is no negative.
        gather: Use the views of all processes of ``torch.distributed``, with exact gradients.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over the 2n rows, or ``none``.

    Returns:
        The loss, which may be negative; a row without negatives counts 0.

    Raises:
        ValueError: The shapes do not agree, or the temperature or sigma is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import decoupled
        >>> same = torch.ones(4, 3)
        >>> round(float(decoupled(same, same, temperature=1.0)), 4)  # log(6)
        1.7918
    """
    views = _Views.of(view_a, view_b, temperature, ids, gather, tile, precision)
    positive = views.positive()
    negatives = views.negatives(views.scale)
    has = negatives > float("-inf")
    weight = 1.0 if sigma is None else _mises_fisher_weights(positive / views.scale, sigma, gather)
    losses = torch.where(has, negatives.masked_fill(~has, 0.0) - weight * positive, 0.0)
    return reduce(losses, reduction, views.counts)


def hard_negative(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    *,
    temperature: Temperature = 0.5,
    beta: float = 1.0,
    tau_plus: float = 0.1,
    ids: Int[Tensor, " n"] | None = None,
    gather: bool = False,
    tile: int | None = None,
    precision: Precision = "exact",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " 2*n"]:
    """Contrastive loss with hard negative samples (Robinson et al., 2021, eq. 4), debiased (Chuang et al., 2020).

    ``L_i = -log(e^{s_ip} / (e^{s_ip} + G_i))`` with, over the ``N`` negatives of row i,
    ``G_i = max(N e^{-1/T}, (sum_n w_n e^{s_in} - tau_plus N e^{s_ip}) / (1 - tau_plus))`` and
    ``w_n = N e^{beta s_in} / sum_m e^{beta s_im}``. Both sums are log-sum-exps: of ``(1 + beta) s`` and of ``beta s``.

    Args:
        view_a: Embeddings of the first view, any norm.
        view_b: Embeddings of the second view, row by row the same items.
        temperature: Positive number ``T``, or a tensor that learns.
        beta: Concentration on hard negatives, at least 0; 0 weighs all alike.
        tau_plus: Share of the negatives that are of the anchor's class, in [0, 1).
        ids: Ids of the items; another item with the same id is no negative.
        gather: Use the views of all processes of ``torch.distributed``, with exact gradients.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over the 2n rows, or ``none``.

    Raises:
        ValueError: The shapes do not agree, or a number is out of its range.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import hard_negative
        >>> same = torch.ones(4, 3)
        >>> round(float(hard_negative(same, same)), 4)  # log(7), as NT-Xent
        1.9459
    """
    check_values(view_a, ids)
    if not beta >= 0 or not 0 <= tau_plus < 1:
        raise ValueError(f"expected beta >= 0 and 0 <= tau_plus < 1, got {beta} and {tau_plus}")
    views = _Views.of(view_a, view_b, temperature, ids, gather, tile, precision)
    positive, count = views.positive(), views.negative_counts()
    has = count > 0
    log_count = count.clamp(min=1).log()
    weighted = views.negatives(views.scale * (1 + beta)).masked_fill(~has, 0.0)
    if beta:
        weighted = weighted - views.negatives(views.scale * beta).masked_fill(~has, 0.0) + log_count
    # log(e^a - e^b) = a + log(1 - e^(b - a)); the floor stands where nothing is left.
    excess = positive + log_count - weighted + (math.log(tau_plus) if tau_plus else float("-inf"))
    left = excess < 0
    remaining = weighted + torch.log1p(-torch.where(left, excess, -1.0).exp()) - math.log1p(-tau_plus)
    floor = log_count - views.scale
    denominator = torch.where(left, torch.maximum(remaining, floor), floor)
    return reduce(torch.where(has, F.softplus(denominator - positive), 0.0), reduction, views.counts)


def debiased(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    *,
    temperature: Temperature = 0.5,
    tau_plus: float = 0.1,
    ids: Int[Tensor, " n"] | None = None,
    gather: bool = False,
    tile: int | None = None,
    precision: Precision = "exact",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " 2*n"]:
    """Debiased contrastive loss (Chuang et al., 2020, eq. 8): :func:`hard_negative` with all negatives weighed alike.

    Args:
        view_a: Embeddings of the first view, any norm.
        view_b: Embeddings of the second view, row by row the same items.
        temperature: Positive number ``T``, or a tensor that learns.
        tau_plus: Share of the negatives that are of the anchor's class, in [0, 1); 0 is NT-Xent.
        ids: Ids of the items; another item with the same id is no negative.
        gather: Use the views of all processes of ``torch.distributed``, with exact gradients.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over the 2n rows, or ``none``.

    Raises:
        ValueError: The shapes do not agree, or a number is out of its range.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import debiased, nt_xent
        >>> a, b = torch.eye(4), torch.eye(4).roll(1, 0)
        >>> torch.testing.assert_close(debiased(a, b, tau_plus=0.0), nt_xent(a, b))
    """
    return hard_negative(
        view_a,
        view_b,
        temperature=temperature,
        beta=0.0,
        tau_plus=tau_plus,
        ids=ids,
        gather=gather,
        tile=tile,
        precision=precision,
        reduction=reduction,
    )


@dataclasses.dataclass
class _Views:
    """Two views of items, and the views of other items as negatives."""

    rows: Tensor
    keys: Tensor
    scale: float | Tensor
    ids: Tensor
    key_ids: Tensor
    counts: list[int]
    gather: bool
    tile: int | None
    precision: Precision

    @classmethod
    def of(
        cls,
        view_a: Tensor,
        view_b: Tensor,
        temperature: Temperature,
        ids: Tensor | None,
        gather: bool,
        tile: int | None,
        precision: Precision,
    ) -> "_Views":
        check_pair(view_a, view_b)
        scale = inverse_temperature(temperature, view_a)
        own, _ = item_ids(view_a, ids, local_sizes(view_a, gather), gather)
        rows, own = normalise(torch.cat([full_precision(view_a), full_precision(view_b)])), own.repeat(2)
        counts = local_sizes(rows, gather)
        key_ids = gather_rows(own, counts) if gather else own
        return cls(rows, gathered(rows, counts, gather), scale, own, key_ids, counts, gather, tile, precision)

    def positive(self) -> Tensor:
        a, b = self.rows.chunk(2)
        return ((a * b).sum(1) * self.scale).repeat(2)

    def negatives(self, scale: float | Tensor) -> Tensor:
        """Log-sum-exp over the views of other items."""
        if self.gather:
            return pair_logsumexp(
                self.rows,
                self.keys,
                scale,
                query_ids=self.ids,
                key_ids=self.key_ids,
                tile=self.tile,
                precision=self.precision,
            )[0]
        return self_logsumexp(self.rows, scale, ids=self.ids, tile=self.tile, precision=self.precision)

    def negative_counts(self) -> Tensor:
        """Number of views of other items."""
        known, size = self.key_ids.unique(return_counts=True)
        same = size[torch.searchsorted(known, self.ids)]
        return (len(self.key_ids) - same).to(self.rows.dtype)


def _mises_fisher_weights(cosine: Tensor, sigma: float, gather: bool) -> Tensor:
    """``2 - n softmax(cosine / sigma)`` over the items of all processes; cosines repeat once for the second view."""
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    with torch.no_grad():
        e = ((cosine - 1) / sigma).exp()
        everyone = total(torch.stack([e.sum(), e.new_tensor(float(len(e)))]), gather)
        return 2 - e * everyone[1] / everyone[0]
