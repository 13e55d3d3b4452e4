"""Agreement of predictions with targets, without negatives: SimSiam, BYOL, and alignment with a moving average."""

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive_core.losses.rows import Reduction, check_pair, local_sizes, normalise, reduce


def negative_cosine(
    prediction: Float[Tensor, "n d"],
    target: Float[Tensor, "n d"],
    *,
    stop_gradient: bool = True,
    gather: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """Negative cosine similarity ``-p . z / (|p| |z|)`` (SimSiam; Chen and He, 2021, eq. 1).

    SimSiam averages it over both directions; BYOL's regression loss is ``2 + 2 negative_cosine`` against the momentum
    encoder; continual methods align a projection with the moving average in the same way.

    Args:
        prediction: Output of the predictor, any norm.
        target: The other view's embedding, any norm.
        stop_gradient: The target gets no gradient.
        gather: Weigh this process's rows by its share of the rows of all processes.
        reduction: ``mean`` over rows, or ``none``.

    Raises:
        ValueError: The shapes do not agree.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import negative_cosine
        >>> negative_cosine(torch.eye(2), 3 * torch.eye(2))
        tensor(-1.)
    """
    check_pair(prediction, target)
    z = target.detach() if stop_gradient else target
    return reduce(-(normalise(prediction) * normalise(z)).sum(1), reduction, local_sizes(prediction, gather))


def byol(
    prediction: Float[Tensor, "n d"],
    target: Float[Tensor, "n d"],
    *,
    gather: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """Squared distance of unit rows, ``|p - z|^2 = 2 - 2 cos(p, z)`` (BYOL; Grill et al., 2020, eq. 2).

    Args:
        prediction: Output of the online network's predictor, any norm.
        target: Output of the momentum network, any norm; gets no gradient.
        gather: Weigh this process's rows by its share of the rows of all processes.
        reduction: ``mean`` over rows, or ``none``.

    Raises:
        ValueError: The shapes do not agree.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import byol
        >>> byol(torch.eye(2), torch.eye(2).flip(0))
        tensor(2.)
    """
    distance = 2 + 2 * negative_cosine(prediction, target, reduction="none")
    return reduce(torch.as_tensor(distance), reduction, local_sizes(prediction, gather))
