"""What GNAH and APKH share: pairs as distributions on the sphere, the contrast with one sampled positive, binarisation.

Rows of ``f`` and ``h`` have unit length throughout. ``x`` is the image side, ``y`` the text side.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from contrastive_core.distributed import rank_slice
from contrastive_core.losses import quantization
from contrastive_core.losses.rows import gathered, local_sizes, reduce
from jaxtyping import Float
from torch import Tensor

NoiseScale = Literal["total", "per_coordinate"]
BinaryReference = Literal["unit", "pm1"]


def pair_gaussian(
    fx: Float[Tensor, "b d"], fy: Float[Tensor, "b d"]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
    """A pair as a distribution: ``mu_i = norm(f_i^x + f_i^y)`` and ``sigma_i^2 = |f_i^x - f_i^y|^2 / 4`` (GNAH, Eq. 6).

    Returns:
        Centres, and standard deviations: ``sigma^2 = (1 - cos) / 2`` for unit rows.
    """
    return F.normalize(fx + fy, dim=1, eps=1e-12), (fx - fy).norm(dim=1) / 2


def pair_neighbourhood(
    mu: Float[Tensor, "b d"],
    sigma: Float[Tensor, " b"],
    *,
    samples: int = 1,
    scale: NoiseScale = "total",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "s b d"]:
    """Samples around each pair, ``norm(mu_i + sigma_i eps / sqrt(d))`` (GNAH, Eq. 7).

    Args:
        mu: Centres of the pairs, unit rows.
        sigma: Standard deviations of the pairs.
        samples: Draws a pair.
        scale: ``total``: sigma² is the variance of all coordinates together, so that a sample lies about as far from
            the middle of the pair as the two views do. ``per_coordinate`` is the equation as printed, ``mu + sigma
            eps``: at d = 512 its samples are random directions, and nothing is learnt.
        generator: Source of the draws, on the CPU.
    """
    noise = torch.randn((samples, *mu.shape), generator=generator, dtype=mu.dtype).to(mu.device)
    spread = sigma / math.sqrt(mu.shape[1]) if scale == "total" else sigma
    return F.normalize(mu + spread[:, None] * noise, dim=2, eps=1e-12)


def contrast(
    anchor: Float[Tensor, "b l"],
    positive: Float[Tensor, "b l"] | Float[Tensor, "s b l"],
    other: Float[Tensor, "b l"],
    *,
    temperature: float = 0.5,
    negative_weights: Float[Tensor, "b n"] | None = None,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """One positive against the codes of all other pairs in both modalities (GNAH, Eq. 8-9).

    ``-log e^{<h_i, p_i>/T} / (e^{<h_i, p_i>/T} + sum_{j != i} w_ij [e^{<h_i, h_j>/T} + e^{<h_i, o_j>/T}])``. The pair's
    own code of the other modality, ``o_i``, is neither positive nor negative: with ``positive=other`` this is the plain
    pairwise contrast.

    Args:
        anchor: Codes ``h`` of one modality.
        positive: Positives ``p``; several a pair are averaged outside the logarithm.
        other: Codes ``o`` of the other modality.
        temperature: ``T``.
        negative_weights: ``w``, in [0, 1], one column a pair of all processes; all 1 when absent.
        gather: Take the pairs of all processes as negatives, with exact gradients.

    Returns:
        Mean over the batch; 0 for a batch of one, which has no negatives.
    """
    counts = local_sizes(anchor, gather)
    keys = [gathered(h, counts, gather) for h in (anchor, other)]
    both = torch.cat([anchor @ key.T for key in keys], dim=1) / temperature
    own = torch.eye(sum(counts), dtype=torch.bool, device=anchor.device)
    own = own[rank_slice(counts)] if gather else own
    both = both.masked_fill(own.repeat(1, 2), -math.inf)
    if negative_weights is not None:
        both = both + negative_weights.clamp_min(0).log().repeat(1, 2)
    negatives = torch.logsumexp(both, dim=1)
    agreement = (anchor * positive).sum(-1) / temperature
    losses = F.softplus(negatives - agreement)
    return reduce(losses.mean(0) if losses.ndim == 2 else losses, "mean", counts)


def symmetric_contrast(
    hx: Float[Tensor, "b l"],
    hy: Float[Tensor, "b l"],
    positive_of_x: Float[Tensor, "b l"] | Float[Tensor, "s b l"],
    positive_of_y: Float[Tensor, "b l"] | Float[Tensor, "s b l"],
    *,
    temperature: float = 0.5,
    negative_weights: Float[Tensor, "b n"] | None = None,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """:func:`contrast` from images and from texts, summed (GNAH, Eq. 10).

    Args:
        hx: Codes of the images.
        hy: Codes of the texts.
        positive_of_x: Positives of the images: the neighbourhood's codes through the text function.
        positive_of_y: Positives of the texts: the same samples through the image function.
        temperature: As :func:`contrast`.
        negative_weights: As :func:`contrast`; symmetric.
        gather: As :func:`contrast`.
    """
    from_x, from_y = (
        contrast(h, positive, other, temperature=temperature, negative_weights=negative_weights, gather=gather)
        for h, positive, other in ((hx, positive_of_x, hy), (hy, positive_of_y, hx))
    )
    return from_x + from_y


def binarisation(
    h: Float[Tensor, "b l"], *, reference: BinaryReference = "unit", gather: bool = False
) -> Float[Tensor, ""]:
    """Distance of relaxed codes from their signs, mean over the batch (GNAH, Eq. 11).

    Args:
        h: Relaxed codes of unit length.
        reference: ``unit``: ``|h - sgn(h)/sqrt(L)|^2 = 2 - 2 |h|_1 / sqrt(L)``, zero at a binary code. ``pm1`` is the
            equation as printed, ``|h - sgn(h)|^2 = 1 + L - 2 |h|_1``: never zero for unit h, and sqrt(L) times steeper,
            which freezes the random signs the network starts with.
        gather: Weigh this process's rows by their share of all.
    """
    if reference == "unit":
        return quantization(math.sqrt(h.shape[1]) * h, power=2, gather=gather)
    return h.shape[1] * quantization(h, power=2, gather=gather)
