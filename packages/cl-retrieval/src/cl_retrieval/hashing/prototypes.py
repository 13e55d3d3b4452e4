"""Prototypes of frozen features by k-means, and the number of them by the elbow of the inertia."""

import dataclasses
import warnings

import numpy as np
from contrastive_core.errors import InputError
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """Clusters of the pooled features of both modalities.

    Attributes:
        centres: Unit rows ``[k d]``.
        inertia: Within-cluster sum of squares by number of clusters, for those tried.
    """

    centres: Float[np.ndarray, "k d"]
    inertia: dict[int, float]

    def assign(self, features: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
        """Nearest prototype of each row, by cosine."""
        return (features @ self.centres.T).argmax(1)


def elbow(counts: Int[np.ndarray, " m"], inertia: Float[np.ndarray, " m"]) -> int:
    """Number of clusters at the elbow: the point farthest below the chord of the curve in the unit square (Kneedle).

    Args:
        counts: Numbers of clusters, ascending.
        inertia: Within-cluster sums of squares.

    Example:
        >>> elbow(np.array([2, 3, 4, 5]), np.array([10.0, 4.0, 3.5, 3.0]))
        3
    """
    if len(counts) < 3 or inertia[0] - inertia[-1] <= 1e-9 * max(abs(inertia[0]), 1.0):
        return int(counts[0])
    x = (counts - counts[0]) / (counts[-1] - counts[0])
    y = (inertia - inertia[-1]) / (inertia[0] - inertia[-1])
    return int(counts[np.argmax((1 - x) - y)])


def kmeans_prototypes(
    features: Float[np.ndarray, "n d"], *, k: int | None = None, k_max: int = 20, seed: int = 0
) -> Prototypes:
    """K-means centroids of unit length (GNAH, section 4.3).

    Args:
        features: Unit rows of both modalities.
        k: Number of prototypes; by the elbow over 2 to ``k_max`` when absent.
        k_max: Most prototypes the elbow looks at; never more than there are different rows less one.
        seed: Seed of k-means.

    Raises:
        InputError: Fewer than three different rows, or more prototypes asked for than there are.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    different = len(np.unique(features, axis=0))
    if different < 3:
        raise InputError(
            "prototypes need at least three different rows of features",
            where="the training pairs",
            why=f"there are {different}",
            remedy="give more pairs",
        )
    if k is not None and not 1 <= k < different:
        raise InputError(
            "the number of prototypes does not fit the data", where="--k", why=f"got {k} for {different} different rows"
        )
    most = min(k_max, different - 1)
    counts = [k] if k is not None else list(range(2, most + 1))
    runs = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for count in counts:
            runs[count] = KMeans(count, n_init=10, random_state=seed).fit(features)
    inertia = {count: float(run.inertia_) for count, run in runs.items()}
    chosen = k if k is not None else elbow(np.array(counts), np.array(list(inertia.values())))
    centres = runs[chosen].cluster_centers_.astype(np.float32)
    norms = np.linalg.norm(centres, axis=1, keepdims=True)
    return Prototypes(centres / np.maximum(norms, 1e-12), inertia)


def modality_purity(assigned_x: Int[np.ndarray, " n"], assigned_y: Int[np.ndarray, " n"], k: int) -> float:
    """Share of rows that belong to the modality their prototype has most of: 1 when prototypes split by modality."""
    counts = np.stack([np.bincount(assigned_x, minlength=k), np.bincount(assigned_y, minlength=k)])
    return float(counts.max(0).sum() / counts.sum())
