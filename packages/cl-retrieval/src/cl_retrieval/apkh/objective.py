"""APKH: kernels of attributes on the sphere (CAKM), and what smooths the contrast of pairs (KSCA).

The contrast itself, its sampled positives and the binarisation are shared with other methods, in
:mod:`cl_retrieval.hashing.objective`. The paper's equations were not to be had; these are a reconstruction, piece by
piece switchable.
"""

import math

import torch
from contrastive_core.losses import info_nce
from contrastive_core.losses.rows import local_sizes, reduce, total
from jaxtyping import Float
from torch import Tensor


def log_rbf_sphere(
    features: Float[Tensor, "b d"], centres: Float[Tensor, "m d"], variance: float | Float[Tensor, ""]
) -> Float[Tensor, "b m"]:
    """``log exp(-|f - t|^2 / 2 sigma^2) = (f.t - 1) / sigma^2`` for unit rows.

    Args:
        features: ``f``, unit rows.
        centres: ``t``, unit rows.
        variance: ``sigma^2``.
    """
    return (features @ centres.T - 1) / variance


def attribute_kernel(
    features: Float[Tensor, "b d"],
    centres: Float[Tensor, "m d"],
    variance: float | Float[Tensor, ""],
    *,
    normalise: bool = True,
) -> Float[Tensor, "b m"]:
    """How much each attribute is excited: ``phi_m(f) = kappa_m(f) / sum_r kappa_r(f)`` (Nadaraya-Watson).

    Args:
        features: Unit rows.
        centres: Attributes, unit rows.
        variance: ``sigma^2``: small makes phi one-hot at the nearest attribute, large makes it uniform.
        normalise: Rows sum to one, which also removes whatever is common to all cosines of a row; otherwise ``kappa``.
    """
    log_kernel = log_rbf_sphere(features, centres, variance)
    return log_kernel.softmax(1) if normalise else log_kernel.exp()


def js_divergence(p: Float[Tensor, "b m"], q: Float[Tensor, "b m"], *, gather: bool = False) -> Float[Tensor, ""]:
    """``KL(p || m) + KL(q || m)`` with ``m = (p + q) / 2``, mean over rows: 0 to ``2 ln 2``.

    Value and gradient are finite at exact zeros, as narrow kernels have them: the slope there, which is infinite, is
    taken at the smallest positive number.

    Args:
        p: Rows that sum to one.
        q: Rows that sum to one.
        gather: Weigh this process's rows by their share of all.
    """
    smallest = torch.finfo(p.dtype).tiny
    log_middle = ((p + q) / 2).clamp_min(smallest).log()
    of_p, of_q = ((each * (each.clamp_min(smallest).log() - log_middle)).sum(1) for each in (p, q))
    return reduce(of_p + of_q, "mean", local_sizes(p, gather))


def kernel_nce(
    p: Float[Tensor, "b m"], q: Float[Tensor, "b m"], *, temperature: float = 0.1, gather: bool = False
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of centred activations: the other way to align the two views of a pair.

    Args:
        p: Activations of the images.
        q: Activations of the texts.
        temperature: Temperature.
        gather: Centre by, and contrast with, the rows of all processes.
    """
    count = sum(local_sizes(p, gather))
    a, b = (each - total(each.sum(0), gather) / count for each in (p, q))
    return info_nce(a, b, temperature=temperature, symmetric=True, gather=gather)


def anchor_loss(centres: Float[Tensor, "m d"], first: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """``mean_m (1 - t_m . t_m^0)``: prompts that learn keep the meaning of their attributes."""
    return (1 - (centres * first).sum(1)).mean()


def gaussian_overlap(
    mu: Float[Tensor, "b d"], sigma: Float[Tensor, " b"], variance: float | Float[Tensor, ""] | None = None
) -> Float[Tensor, "b b"]:
    """Expected RBF kernel between two pairs seen as Gaussians, in closed form.

    ``K_ij = (s^2 / (s^2 + v_i + v_j))^{d/2} exp(-|mu_i - mu_j|^2 / (2 (s^2 + v_i + v_j)))`` with
    ``v_i = sigma_i^2 / d`` a coordinate, computed in logarithms.

    Args:
        mu: Centres of the pairs.
        sigma: Standard deviations, of all coordinates together.
        variance: ``s^2``; half the median squared distance of different centres when absent.
    """
    width = mu.shape[1]
    squared = torch.cdist(mu, mu, compute_mode="donot_use_mm_for_euclid_dist").square()
    if variance is None:
        away = squared[~torch.eye(len(mu), dtype=torch.bool, device=mu.device)]
        variance = (away.median() / 2).clamp_min(1e-12) if len(away) else mu.new_ones(())
    spread = torch.as_tensor(variance, dtype=mu.dtype, device=mu.device)
    each = sigma.square() / width
    total = spread + each[:, None] + each[None]
    return (0.5 * width * (spread.log() - total.log()) - squared / (2 * total)).exp()


def effective_number(phi: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """``exp(H(phi))``: how many attributes a row excites, 1 to M."""
    return torch.exp(-torch.xlogy(phi, phi).sum(1))


def variance_for_effective_number(
    features: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], *, share: float = 0.25
) -> float:
    """``sigma^2`` in [0.005, 1] at which the median row excites ``share`` of all attributes, by bisection.

    Args:
        features: Unit rows, of images.
        centres: Attributes.
        share: Wanted effective number, as a share of M.
    """
    low, high = math.log(VARIANCE_BOUNDS[0]), math.log(VARIANCE_BOUNDS[1])
    for _ in range(40):
        middle = (low + high) / 2
        number = effective_number(attribute_kernel(features, centres, math.exp(middle))).median()
        low, high = (middle, high) if float(number) < share * len(centres) else (low, middle)
    return math.exp((low + high) / 2)


VARIANCE_BOUNDS = (0.005, 1.0)
