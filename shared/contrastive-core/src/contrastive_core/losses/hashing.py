"""Terms that make codes binary, balanced and independent, for learning to hash."""

from jaxtyping import Float
from torch import Tensor

from contrastive_core.losses.kernel import without_autocast
from contrastive_core.losses.rows import Reduction, full_precision, local_sizes, reduce, total


def quantization(
    codes: Float[Tensor, "n k"], *, power: int = 1, gather: bool = False, reduction: Reduction = "mean"
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """Distance of relaxed codes from binary ones, ``mean_k ||h_ik| - 1|^p`` (DHN; Zhu et al., 2016, and its kin).

    Args:
        codes: Relaxed codes, one row per item, one column per bit.
        power: ``p``, 1 or 2.
        gather: Weigh this process's rows by its share of the rows of all processes.
        reduction: ``mean`` over rows, or ``none``.

    Raises:
        ValueError: The batch is empty, or ``power`` is neither 1 nor 2.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import quantization
        >>> quantization(torch.tensor([[1.0, -1.0], [0.5, 0.5]]))
        tensor(0.2500)
    """
    if power not in (1, 2):
        raise ValueError(f"expected power 1 or 2, got {power}")
    h = _codes(codes)
    return reduce((h.abs() - 1).abs().pow(power).mean(1), reduction, local_sizes(h, gather))


def bit_balance(codes: Float[Tensor, "n k"], *, gather: bool = False) -> Float[Tensor, ""]:
    """Squared mean of every bit, averaged over bits: 0 when each bit is set for half of the items.

    Args:
        codes: Relaxed codes, one row per item, one column per bit.
        gather: Use the mean over the rows of all processes, with exact gradients.

    Raises:
        ValueError: The batch is empty.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import bit_balance
        >>> bit_balance(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))
        tensor(0.5000)
    """
    h = _codes(codes)
    return (total(h.sum(0), gather) / sum(local_sizes(h, gather))).square().mean()


def bit_decorrelation(codes: Float[Tensor, "n k"], *, gather: bool = False) -> Float[Tensor, ""]:
    """Squared product moments ``(H'H / n)_kl`` of different bits, averaged over their pairs: 0 for uncorrelated bits.

    Args:
        codes: Relaxed codes, one row per item, one column per bit, at least two bits.
        gather: Use the moments over the rows of all processes, with exact gradients.

    Raises:
        ValueError: The batch is empty, or there is one bit only.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import bit_decorrelation
        >>> bit_decorrelation(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        tensor(1.)
    """
    h = _codes(codes)
    bits = h.shape[1]
    if bits < 2:
        raise ValueError(f"correlation needs at least two bits, got {bits}")
    with without_autocast(h):
        moments = total(h.T @ h, gather) / sum(local_sizes(h, gather))
    return (moments.square().sum() - moments.diagonal().square().sum()) / (bits * (bits - 1))


def _codes(codes: Tensor) -> Tensor:
    if codes.ndim != 2 or len(codes) == 0:
        raise ValueError(f"expected codes [n k] with at least one row, got {tuple(codes.shape)}")
    return full_precision(codes)
