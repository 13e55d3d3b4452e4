"""How readable factors are, and what each of them stands for."""

import dataclasses
import warnings
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import ContrastiveWarning
from contrastive_core.evaluation import class_consistency, effective_rank, orthogonality, purity_at, sparsity
from jaxtyping import Float, Int, Shaped

from cl_foundations.cfa.inference import Embeddings


@dataclasses.dataclass(frozen=True)
class FactorMetrics:
    """Readability of a set of factors.

    Attributes:
        ccr: Class consistency with ε = 1e-5 (NCL; Wang et al., 2024): among the images on which a factor is active, the
            share of the most frequent class, averaged over factors; NaN if none is active. Active is ``|ẑ| > ε`` in
            rows of unit length.
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
    z, y = torch.from_numpy(factors), torch.from_numpy(labels)
    return FactorMetrics(
        ccr=class_consistency(z, y, eps=1e-5),
        ccr_05=class_consistency(z, y, eps=0.05),
        purity=purity_at(z, y, n=min(top, len(z))),
        sparsity=sparsity(z, normalize=True),
        sparsity_raw=sparsity(z),
        orthogonality=orthogonality(z),
        effective_rank=effective_rank(z),
        active=int((factors.var(0) > 1e-2).sum()),
    )


def top_images(factors: Float[np.ndarray, "n k"], top: int) -> Int[np.ndarray, "k m"]:
    """Indices of the images with the largest value of each factor, largest first, ``m = min(top, n)``."""
    return np.argsort(-factors, axis=0, kind="stable")[:top].T


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


@dataclasses.dataclass(frozen=True)
class FactorTable:
    """What each factor stands for.

    Attributes:
        rows: A row a factor: rank by activation, mean, share of images it is active on; class and purity with labels.
        best: Images with the largest value of each factor, largest first.
        shown: The rows of the factors to show: purest first, or most active without labels.
        between: Two classes by name, if factors are ranked by how well they separate them.
        separation: A row a factor, best first: AUROC, and its mean over either class.
        separating: Images of the two classes with the largest value of the eight best of these.
    """

    rows: list[dict[str, Any]]
    best: Int[np.ndarray, "k m"]
    shown: list[dict[str, Any]]
    between: tuple[str, str] | None = None
    separation: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    separating: Int[np.ndarray, "s t"] = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int64))

    @classmethod
    def of(cls, embeddings: Embeddings, *, top: int, shown: int, pair: tuple[int, int] | None = None) -> "FactorTable":
        """The factors of some images.

        Args:
            embeddings: The images.
            top: Images a factor that are looked at.
            shown: Factors to show.
            pair: Two classes that have images, to rank the factors by how well each alone separates them.
        """
        rows, best = factor_rows(embeddings, top), top_images(embeddings.mean, top)
        order = sorted(rows, key=lambda row: (-row.get("purity", 0.0), row["rank"]))[:shown]
        if pair is None:
            return cls(rows, best, order)
        first, second = (embeddings.classes[index] for index in pair)
        ranked = separating_factors(embeddings.mean, embeddings.known, *pair)
        table = [
            {"factor": each.factor, "auroc": each.auroc, f"mean {first}": each.first, f"mean {second}": each.second}
            for each in ranked
        ]
        either = np.flatnonzero(np.isin(embeddings.known, pair))
        largest = top_images(embeddings.mean[either][:, [each.factor for each in ranked[:8]]], 16)
        return cls(rows, best, order, (first, second), table, either[largest])


def factor_rows(embeddings: Embeddings, top: int) -> list[dict[str, Any]]:
    """One row a factor: rank by activation, mean, share of images it is active on; class and purity with labels."""
    mean = embeddings.mean
    active = (np.abs(unit_rows(mean)) > 0.05).mean(0)
    place = {int(k): rank for rank, k in enumerate(rank_factors(mean), 1)}
    rows: list[dict[str, Any]] = [
        {
            "factor": k,
            "rank": place[k],
            "mean": float(mean[:, k].mean()),
            "active_share": float(active[k]),
        }
        for k in range(mean.shape[1])
    ]
    if embeddings.labels is not None:
        best = majority_class(embeddings.labels[top_images(mean, top)], np.array(embeddings.classes))
        for row, (name, share) in zip(rows, best, strict=True):
            row |= {"class": name, "purity": share}
    return rows


def unit_rows(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Rows of unit length; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
