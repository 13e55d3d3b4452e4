"""Clusters of clips by their rate-quality behaviour (section 5.5), fitted on training clips only."""

import dataclasses
from typing import Literal, get_args

import numpy as np
from contrastive_core.errors import InputError, require
from jaxtyping import Float, Int

from cl_video3d.cecl.curves import curve_distances, log_rates, rate_at_quality
from cl_video3d.cecl.data import EchoSet
from cl_video3d.video.encoding import LARGEST_CRF, Codec, EncodeSetting

Algorithm = Literal["rq-kmeans", "bd-kmedoids"]
Space = Literal["echo", "grid"]
_RANGE = (3, 8)


@dataclasses.dataclass(frozen=True)
class RQClusters:
    """Clusters, numbered from the easiest to encode (0) to the hardest.

    Attributes:
        algorithm: ``rq-kmeans`` or ``bd-kmedoids``.
        space: What k-means sees: the ``echo`` at its operating points, or log rates on a ``grid`` of qualities.
        settings: Names of the operating points.
        crf: Their CRFs.
        grid: Qualities of the grid, in dB.
        centers: Centres of k-means; empty for medoids.
        log_rate: Mean curve of each cluster (the medoid's, for medoids): ``log2 bpp``.
        quality: The same: PSNR in dB.
        silhouette: Silhouette of the fit, in [-1, 1].
        sizes: Training clips of each cluster.
    """

    algorithm: Algorithm
    space: Space
    settings: tuple[str, ...]
    crf: tuple[float, ...]
    grid: Float[np.ndarray, " q"]
    centers: Float[np.ndarray, "m e"]
    log_rate: Float[np.ndarray, "k c"]
    quality: Float[np.ndarray, "k c"]
    silhouette: float
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.log_rate)

    @property
    def setting(self) -> EncodeSetting:
        """Codec and preset of the operating points; the middle CRF."""
        preset = self.settings[0].split()[1]
        return EncodeSetting(self.codec, preset, "crf", self.crf[(len(self.crf) - 1) // 2])

    @property
    def largest_crf(self) -> int:
        """End of the CRF scale of the codec."""
        return LARGEST_CRF[self.codec]

    @property
    def codec(self) -> Codec:
        """Codec of the operating points."""
        name = self.settings[0].split()[0]
        return next(codec for codec in get_args(Codec) if codec == name)

    def assign(self, echoes: EchoSet) -> Int[np.ndarray, " n"]:
        """Cluster of measured clips.

        Raises:
            InputError: They were measured at other operating points.
        """
        names = tuple(setting.name for setting in echoes.settings)
        if names != self.settings:
            raise InputError(
                "the clips were measured at other operating points than the clusters",
                where=echoes.folder,
                why=f"{', '.join(names)} instead of {', '.join(self.settings)}",
            )
        log_rate, quality = log_rates(echoes.measured["bpp"]), echoes.measured["psnr"]
        if self.algorithm == "bd-kmedoids":
            return curve_distances(log_rate, quality, self.log_rate, self.quality).argmin(1)
        points = _points(log_rate, quality, self.space, self.grid)
        return np.square(points[:, None] - self.centers[None]).sum(2).argmin(1)


def fit_clusters(
    echoes: EchoSet,
    *,
    clusters: int | None = 5,
    algorithm: Algorithm = "rq-kmeans",
    space: Space = "echo",
    seed: int = 0,
) -> RQClusters:
    """Group clips by their rate-quality curves.

    Args:
        echoes: Training clips at the operating points of one codec, of :meth:`EchoSet.at`.
        clusters: How many; chosen from 3 to 8 by silhouette if ``None``.
        algorithm: K-means on vectors, or medoids (PAM) under distances between curves.
        space: What k-means sees.
        seed: Seed of the starts.

    Raises:
        InputError: Fewer clips than clusters, or fewer than two operating points.
    """
    require(algorithm in get_args(Algorithm), "--algorithm", algorithm, " or ".join(get_args(Algorithm)))
    require(space in get_args(Space), "--space", space, " or ".join(get_args(Space)))
    require(0 <= seed < 2**32, "--seed", seed, "a whole number from 0 to 2^32 - 1")
    if len(echoes.settings) < 2:
        raise InputError(
            "a rate-quality curve has two points at least", where="--crf", why=f"got {len(echoes.settings)}"
        )
    log_rate, quality = log_rates(echoes.measured["bpp"]), echoes.measured["psnr"]
    grid = np.linspace(float(np.quantile(quality, 0.1)), float(np.quantile(quality, 0.9)), 7)
    counts = range(_RANGE[0], min(_RANGE[1], len(echoes) - 1) + 1) if clusters is None else (clusters,)
    if not counts or min(counts) < 2 or max(counts) >= len(echoes):
        raise InputError(
            "the clips cannot be divided into so many clusters",
            where="--clusters",
            why=f"got {clusters} for {len(echoes)} clips",
            remedy="use 2 or more, fewer than clips",
        )
    points = _points(log_rate, quality, space, grid)
    distances = curve_distances(log_rate, quality) if algorithm == "bd-kmedoids" else None
    fits = [_fit(points, distances, count, seed) for count in counts]
    labels, medoids, silhouette = max(fits, key=lambda each: each[2])
    count = int(labels.max()) + 1
    middle = np.median(quality)
    rates = rate_at_quality(log_rate, quality, np.array([middle]))[0][:, 0]
    order = np.argsort([rates[labels == k].mean() for k in range(count)])
    if medoids is None:
        centers = np.stack([points[labels == k].mean(0) for k in order])
        curves = [(log_rate[labels == k].mean(0), quality[labels == k].mean(0)) for k in order]
    else:
        centers = np.zeros((0, points.shape[1]))
        curves = [(log_rate[medoids[k]], quality[medoids[k]]) for k in order]
    return RQClusters(
        algorithm,
        space,
        tuple(setting.name for setting in echoes.settings),
        tuple(setting.value for setting in echoes.settings),
        grid,
        centers,
        np.stack([curve[0] for curve in curves]),
        np.stack([curve[1] for curve in curves]),
        silhouette,
        tuple(int((labels == k).sum()) for k in order),
    )


def _points(log_rate: np.ndarray, quality: np.ndarray, space: Space, grid: np.ndarray) -> np.ndarray:
    if space == "echo":
        return np.concatenate([log_rate, quality / 6], axis=1)
    return rate_at_quality(log_rate, quality, grid)[0]


def _fit(
    points: np.ndarray, distances: np.ndarray | None, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None, float]:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    if distances is None:
        labels = KMeans(count, n_init=10, random_state=seed).fit(points).labels_
        return labels, None, float(silhouette_score(points, labels))
    labels, medoids = partition_around_medoids(distances, count)
    return labels, medoids, float(silhouette_score(distances, labels, metric="precomputed"))


def partition_around_medoids(
    distances: Float[np.ndarray, "n n"], count: int, *, rounds: int = 100
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]:
    """PAM (Kaufman and Rousseeuw, 1990): medoids chosen greedily, then swapped while the total distance falls.

    Args:
        distances: Symmetric, zero on the diagonal.
        count: Medoids.
        rounds: Most swaps.

    Returns:
        Medoid (0 to ``count - 1``) of every item, and the items that are medoids.
    """
    medoids = [int(distances.sum(1).argmin())]
    while len(medoids) < count:
        nearest = distances[:, medoids].min(1)
        gain = np.maximum(nearest[:, None] - distances, 0).sum(0)
        gain[medoids] = -1
        medoids.append(int(gain.argmax()))
    for _ in range(rounds):
        total = distances[:, medoids].min(1).sum()
        best = (total - 1e-9, -1, -1)
        for place in range(count):
            others = [m for index, m in enumerate(medoids) if index != place]
            kept = distances[:, others].min(1) if others else np.full(len(distances), np.inf)
            totals = np.minimum(kept[:, None], distances).sum(0)
            item = int(totals.argmin())
            if totals[item] < best[0]:
                best = (float(totals[item]), place, item)
        if best[1] < 0:
            break
        medoids[best[1]] = best[2]
    chosen = np.array(medoids)
    return distances[:, chosen].argmin(1), chosen
