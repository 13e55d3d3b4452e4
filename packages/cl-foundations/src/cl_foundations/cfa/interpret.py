"""How readable factors are, and what each of them stands for."""

import dataclasses
import warnings

import numpy as np
from contrastive_core.errors import ContrastiveWarning
from jaxtyping import Float, Int, Shaped


@dataclasses.dataclass(frozen=True)
class FactorMetrics:
    """Readability of a set of factors.

    Attributes:
        ccr: Class consistency with ε = 1e-5: among the images on which a factor is active, the share of the most
            frequent class, averaged over factors with an active image. Active is ``|ẑ| > ε``, rows of unit length.
        ccr_05: The same with ε = 0.05, for factors that are never exactly zero.
        purity: Share of the most frequent class among the images with the largest factor, averaged over factors.
        sparsity: Mean share of ``|ẑ| < 0.01`` in rows of unit length.
        sparsity_raw: Mean share of ``|z| < 0.01`` as the model gives it.
        orthogonality: Mean ``|Ẑ'Ẑ − I|`` off the diagonal, columns of unit length; 0 is best.
        effective_rank: Exponential of the entropy of the normalised singular values.
        active: Factors whose variance over images exceeds 0.01.
    """

    ccr: float
    ccr_05: float
    purity: float
    sparsity: float
    sparsity_raw: float
    orthogonality: float
    effective_rank: float
    active: int


def factor_metrics(factors: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], *, top: int = 50) -> FactorMetrics:
    """Metrics of :class:`FactorMetrics`.

    Args:
        factors: Means of the factors.
        labels: Class indices.
        top: Images a factor that count for the purity, at most all.
    """
    if len(factors) < factors.shape[1]:
        warnings.warn(
            f"{len(factors)} images for {factors.shape[1]} factors: orthogonality and rank are bounded by the images",
            ContrastiveWarning,
            stacklevel=2,
        )
    unit = unit_rows(factors)
    return FactorMetrics(
        ccr=class_consistency(unit, labels, 1e-5),
        ccr_05=class_consistency(unit, labels, 0.05),
        purity=float(purity(factors, labels, top).mean()),
        sparsity=float((np.abs(unit) < 1e-2).mean()),
        sparsity_raw=float((np.abs(factors) < 1e-2).mean()),
        orthogonality=orthogonality(factors),
        effective_rank=effective_rank(factors),
        active=int((factors.var(0) > 1e-2).sum()),
    )


def class_consistency(unit: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], epsilon: float) -> float:
    """Class consistency of factors (NCL; Wang et al., 2024, section 5): 0 if no factor is ever active.

    Args:
        unit: Factors, rows of unit length.
        labels: Class indices.
        epsilon: A factor is active where its size exceeds this.

    Example:
        >>> class_consistency(np.eye(2), np.array([0, 1]), 0.05)
        1.0
    """
    active = np.abs(unit) > epsilon
    counts = np.stack([active[labels == label].sum(0) for label in np.unique(labels)])
    total = counts.sum(0)
    used = total > 0
    return float((counts.max(0)[used] / total[used]).mean()) if used.any() else 0.0


def purity(factors: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], top: int) -> Float[np.ndarray, " k"]:
    """Share of the most frequent class among the ``top`` images with the largest value of each factor."""
    found = labels[top_images(factors, top)]
    counts = np.stack([(found == label).sum(1) for label in np.unique(labels)])
    return counts.max(0) / found.shape[1]


def top_images(factors: Float[np.ndarray, "n k"], top: int) -> Int[np.ndarray, "k m"]:
    """Indices of the images with the largest value of each factor, largest first, ``m = min(top, n)``."""
    return np.argsort(-factors, axis=0, kind="stable")[:top].T


def orthogonality(factors: Float[np.ndarray, "n k"]) -> float:
    """Mean absolute cosine between different factors over the images; factors that are zero throughout are left out."""
    norms = np.linalg.norm(factors, axis=0)
    columns = factors[:, norms > 0] / norms[norms > 0]
    k = columns.shape[1]
    if k < 2:
        return 0.0
    gram = np.abs(columns.T @ columns)
    return float((gram.sum() - np.trace(gram)) / (k * (k - 1)))


def effective_rank(factors: Float[np.ndarray, "n k"]) -> float:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli, 2007)."""
    values = np.linalg.svd(factors.astype(np.float64), compute_uv=False)
    total = values.sum()
    if total == 0:
        return 0.0
    share = values[values > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def rank_factors(factors: Float[np.ndarray, "n k"]) -> Int[np.ndarray, " k"]:
    """Factors by their total activation ``Σ_x |ẑ_k|``, largest first."""
    return np.argsort(-np.abs(unit_rows(factors)).sum(0), kind="stable")


@dataclasses.dataclass(frozen=True)
class Separation:
    """How well one factor tells two classes apart.

    Attributes:
        factor: Index of the factor.
        auroc: Chance that an image of the first class has the larger factor than one of the second.
        first: Mean of the factor over the first class.
        second: Mean over the second.
    """

    factor: int
    auroc: float
    first: float
    second: float


def separating_factors(
    factors: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], first: int, second: int
) -> list[Separation]:
    """Factors by how well each alone separates two classes, best first.

    Args:
        factors: Means of the factors.
        labels: Class indices.
        first: One class.
        second: The other.

    Raises:
        ValueError: A class has no image.
    """
    from scipy.stats import rankdata

    a, b = factors[labels == first], factors[labels == second]
    if not len(a) or not len(b):
        raise ValueError(f"no image of class {first if not len(a) else second}")
    ranks = rankdata(np.concatenate([a, b]), axis=0)[: len(a)].sum(0)
    auroc = (ranks - len(a) * (len(a) + 1) / 2) / (len(a) * len(b))
    order = np.argsort(-np.abs(auroc - 0.5), kind="stable")
    return [Separation(int(k), float(auroc[k]), float(a[:, k].mean()), float(b[:, k].mean())) for k in order]


def majority_class(labels: Int[np.ndarray, "k m"], classes: Shaped[np.ndarray, " c"]) -> list[tuple[str, float]]:
    """Most frequent class of every row, with its share."""
    counts = np.stack([(labels == index).mean(1) for index in range(len(classes))], 1)
    return [(str(classes[row.argmax()]), float(row.max())) for row in counts]


def unit_rows(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Rows of unit length; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
