"""Rows against class or cluster prototypes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrastive_core.losses.kernel import Precision, Settings, without_autocast
from contrastive_core.losses.rows import (
    Reduction,
    Temperature,
    against_negatives,
    check_labels,
    check_values,
    full_precision,
    inverse_temperature,
    normalise,
    reduce_valid,
)
from contrastive_core.losses.similarity import pair_terms


def proto_nce(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    prototypes: Float[Tensor, "k d"],
    *,
    temperature: Temperature | Float[Tensor, " k"] = 0.1,
    gather: bool = False,
    tile: int | None = None,
    precision: Precision = "exact",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """InfoNCE against prototypes (ProtoNCE; Li et al., 2021, eq. 11; class prototypes): ``-log softmax_y(z . c / T)``.

    Several clusterings, as ProtoNCE has them, are the mean of several calls.

    Args:
        embeddings: One row per item, any norm.
        labels: Prototype of every row; a row with a negative label belongs to none and is left out.
        prototypes: One row per class or cluster, any norm; a moving average has no gradient, a parameter has.
        temperature: Positive number, a tensor that learns, or one concentration per prototype.
        gather: Weigh this process's rows by its share of the labelled rows of all processes.
        tile: Side of the similarity tiles, chosen from the problem when absent.
        precision: ``exact``, or ``bf16`` tiles with float32 sums.
        reduction: ``mean`` over labelled rows (0 if there is none), or ``none`` (0 at rows left out).

    Raises:
        ValueError: The shapes do not agree, a label is too large, or the temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import proto_nce
        >>> z = torch.eye(3)
        >>> round(float(proto_nce(z, torch.tensor([0, 1, -1]), z, temperature=1.0)), 4)  # log(1 + 2 / e)
        0.5514
    """
    check_labels(embeddings, labels)
    check_values(embeddings, labels)
    if len(prototypes) == 0 or prototypes.shape[1] != embeddings.shape[1]:
        raise ValueError(f"expected prototypes [k {embeddings.shape[1]}], got {tuple(prototypes.shape)}")
    if int(labels.max()) >= len(prototypes):
        raise ValueError(f"label {int(labels.max())} has no prototype among {len(prototypes)}")
    x, centres = normalise(embeddings), normalise(prototypes)
    unit_rows = True
    scale: float | Tensor = 1.0
    if isinstance(temperature, Tensor) and temperature.numel() > 1:
        if temperature.shape != (len(prototypes),) or not bool((temperature.detach() > 0).all()):
            raise ValueError(f"expected {len(prototypes)} positive temperatures, got {tuple(temperature.shape)}")
        centres, unit_rows = centres / full_precision(temperature)[:, None], False
    else:
        scale = inverse_temperature(temperature, embeddings)
    if precision == "exact" and Settings(tile=tile).one_tile(len(x), len(centres)):
        with without_autocast(x):  # few prototypes: fewer operations than the kernel has
            losses = F.cross_entropy(x @ centres.T * scale, labels.clamp(min=-1), ignore_index=-1, reduction="none")
        return reduce_valid(losses, labels >= 0, reduction, gather)
    # The own prototype is left out of the sum and comes back in full precision.
    index = torch.arange(len(centres), device=labels.device)
    settings = Settings(tile=tile, precision=precision, unit_rows=unit_rows)
    others, _, _ = pair_terms(x, centres, scale, labels, index, settings)
    positive = (x * centres[labels.clamp(min=0)]).sum(1) * scale
    return reduce_valid(against_negatives(others, positive), labels >= 0, reduction, gather)
