"""How well clusters agree with classes."""

import dataclasses

import numpy as np
from jaxtyping import Float, Shaped
from scipy.optimize import linear_sum_assignment


def cluster_accuracy(labels: Shaped[np.ndarray, " n"], clusters: Shaped[np.ndarray, " n"]) -> float:
    """Share of items in the right class under the best one-to-one matching of clusters to classes (Hungarian method).

    Their numbers may differ; items of unmatched clusters count as wrong.

    Args:
        labels: True classes, of any type.
        clusters: Cluster of each item.

    Raises:
        ValueError: No items, or shapes that do not agree.

    Example:
        >>> cluster_accuracy(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 5]))
        0.75
    """
    if labels.shape != clusters.shape or not len(labels):
        raise ValueError(f"labels and clusters are [n] with n > 0, got {labels.shape} and {clusters.shape}")
    rows, classes = np.unique(labels, return_inverse=True)
    columns, groups = np.unique(clusters, return_inverse=True)
    shape = len(rows), len(columns)
    table = np.bincount(classes * shape[1] + groups, minlength=shape[0] * shape[1]).reshape(shape)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(labels))


@dataclasses.dataclass(frozen=True)
class ClusteringScores:
    """Agreement of k-means clusters with classes, one value a restart.

    Attributes:
        accuracy: Cluster accuracy.
        nmi: Normalised mutual information, arithmetic mean.
        ari: Adjusted Rand index.
        inertia: Sum of squared distances to the centres; the restart with the least is the one k-means would keep.
    """

    accuracy: Float[np.ndarray, " r"]
    nmi: Float[np.ndarray, " r"]
    ari: Float[np.ndarray, " r"]
    inertia: Float[np.ndarray, " r"]

    def to_dict(self) -> dict[str, float]:
        """Mean and standard deviation over restarts (``nmi``, ``nmi_sd``), and the value at the least inertia."""
        best = int(self.inertia.argmin())
        out: dict[str, float] = {}
        for name in ("accuracy", "nmi", "ari"):
            values = getattr(self, name)
            out |= {name: float(values.mean()), f"{name}_sd": float(values.std()), f"{name}_best": float(values[best])}
        return out


def kmeans_scores(
    features: Float[np.ndarray, "n d"],
    labels: Shaped[np.ndarray, " n"],
    *,
    clusters: int | None = None,
    restarts: int = 20,
    normalize: bool = True,
    seed: int = 0,
) -> ClusteringScores:
    """Cluster features by k-means from several starts (k-means++) and compare with the classes.

    Args:
        features: Frozen features.
        labels: True classes.
        clusters: Clusters; by default as many as classes.
        restarts: Independent runs.
        normalize: Bring rows to unit length, so that clusters follow cosines.
        seed: Seed of the starts.

    Raises:
        ValueError: Shapes that do not agree, features that are not finite, more clusters than rows, or no restarts.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    count = len(np.unique(labels)) if clusters is None else clusters
    if labels.shape != features.shape[:1] or not np.isfinite(features).all():
        raise ValueError(f"features are finite [n d] and labels [n], got {features.shape} and {labels.shape}")
    if not 1 <= count <= len(features) or restarts < 1:
        raise ValueError(f"{count} clusters of {len(features)} rows in {restarts} restarts")
    rows = np.asarray(features, dtype=np.float64)
    if normalize:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    values = []
    for state in np.random.SeedSequence(seed).generate_state(restarts):
        model = KMeans(count, n_init=1, random_state=int(state)).fit(rows)
        found = model.labels_
        values.append(
            (
                cluster_accuracy(labels, found),
                normalized_mutual_info_score(labels, found),
                adjusted_rand_score(labels, found),
                model.inertia_,
            )
        )
    return ClusteringScores(*np.array(values, dtype=np.float64).T)
