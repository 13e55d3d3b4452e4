"""What embeddings are worth for encoding: protocols A to C, and the rung error (section 9)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contrastive_core.data import group_split
from contrastive_core.errors import InputError
from contrastive_core.evaluation import cluster_accuracy, fit_probe
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.linear_model import RidgeCV
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler

from cl_video3d.cecl.clusters import RQClusters, fit_clusters
from cl_video3d.cecl.curves import log_rates, rate_at_quality
from cl_video3d.cecl.ladders import TARGETS, ladder_rates, rung_error
from cl_video3d.cecl.store import EchoSet
from cl_video3d.video.manifest import check_disjoint

_ALPHAS = np.logspace(-1, 4, 11)


@dataclasses.dataclass(frozen=True)
class FoldScores:
    """Scores on the held-out clips of one fold.

    Attributes:
        accuracy: Probe accuracy of the cluster (A).
        macro_f1: Macro F1 of the same.
        ordinal: Mean ``|rank(predicted) - rank(true)|``; lower is better.
        knn: Accuracy of k-NN.
        nmi: Normalised mutual information of k-means on embeddings and clusters (B).
        ari: Adjusted Rand index of the same.
        purity: Share of clips in the majority cluster of their k-means group.
        matched: Accuracy of k-means under the best matching.
        spearman: Rank correlation of predicted and measured log2 bpp at the middle operating point (C).
        pearson: Linear correlation of the same.
        curve_mae: Mean absolute error of the predicted log2 bpp over all operating points, in bits.
        rung_fixed: Rung error with one ladder for all, in dB (D, small form).
        rung_predicted: Rung error with the predicted clusters' ladders.
        rung_oracle: Rung error with the true clusters' ladders.
    """

    accuracy: float
    macro_f1: float
    ordinal: float
    knn: float
    nmi: float
    ari: float
    purity: float
    matched: float
    spearman: float
    pearson: float
    curve_mae: float
    rung_fixed: float
    rung_predicted: float
    rung_oracle: float


@dataclasses.dataclass(frozen=True)
class Fold:
    """Training and held-out clips that share no group, and the clusters of the training clips.

    Attributes:
        train: Rows of the training clips.
        test: Rows of the held-out clips.
        clusters: Fitted on the training clips alone.
        train_labels: Clusters of the training clips.
        test_labels: Clusters the held-out clips fall into.
    """

    train: Int[np.ndarray, " a"]
    test: Int[np.ndarray, " b"]
    clusters: RQClusters
    train_labels: Int[np.ndarray, " a"]
    test_labels: Int[np.ndarray, " b"]


def make_folds(echoes: EchoSet, *, folds: int = 2, clusters: int | None = 5, seed: int = 0) -> list[Fold]:
    """Cross-validation by group, with complexity spread alike over the folds.

    Args:
        echoes: Clips at the operating points of one codec.
        folds: Parts.
        clusters: Clusters; chosen by silhouette if ``None``.
        seed: Seed of the folds and of k-means.

    Raises:
        InputError: Fewer groups than folds.
    """
    rates = log_rates(echoes.measured["bpp"]).mean(1)
    strata = np.searchsorted(np.quantile(rates, [0.33, 0.67]), rates)
    parts = group_split(strata, echoes.groups, folds=folds, seed=seed)
    return [fold_of(echoes, train, test, clusters=clusters, seed=seed) for train, test in parts]


def fold_of(
    echoes: EchoSet,
    train: Int[np.ndarray, " a"],
    test: Int[np.ndarray, " b"],
    *,
    clusters: int | None = 5,
    seed: int = 0,
) -> Fold:
    """One fold: clusters fitted on its training clips, held-out clips assigned.

    Raises:
        InputError: A group is on both sides.
    """
    rows, sides = [*train, *test], ["training"] * len(train) + ["test"] * len(test)
    check_disjoint([echoes.clips[row].group for row in rows], sides, where=echoes.folder)
    known, held = echoes.take(train), echoes.take(test)
    found = fit_clusters(known, clusters=clusters, seed=seed)
    return Fold(train, test, found, found.assign(known), found.assign(held))


def score_features(
    features: Float[np.ndarray, "n d"],
    echoes: EchoSet,
    fold: Fold,
    *,
    seed: int = 0,
    targets: Sequence[float] = TARGETS,
) -> FoldScores:
    """Protocols A to C and the rung error of one fold.

    Args:
        features: Frozen features of all clips.
        echoes: The clips.
        fold: The fold.
        seed: Seed of k-means.
        targets: Qualities of the rungs, in dB.
    """
    from scipy.stats import pearsonr, spearmanr

    x, held = features[fold.train].astype(np.float64), features[fold.test].astype(np.float64)
    y, truth = fold.train_labels, fold.test_labels
    probe = fit_probe(x, y, kind="logreg", strength=0.1)
    guess = np.asarray(probe.classes_)[probe.predict_proba(held).argmax(1)]
    near = fit_probe(x, y, kind="knn")
    neighbours = np.asarray(near.classes_)[near.predict_proba(held).argmax(1)]

    scaler = StandardScaler().fit(x)
    inside, outside = scaler.transform(x), scaler.transform(held)
    grouped = KMeans(len(fold.clusters), n_init=10, random_state=seed).fit(inside).predict(outside)
    log_rate, quality = log_rates(echoes.measured["bpp"]), echoes.measured["psnr"]
    ridge = RidgeCV(_ALPHAS).fit(inside, log_rate[fold.train])
    predicted = ridge.predict(outside)
    middle = (log_rate.shape[1] - 1) // 2
    measured = log_rate[fold.test]

    rates = ladder_rates(log_rate[fold.train], quality[fold.train], y, len(fold.clusters), targets)
    needed, _ = rate_at_quality(log_rate[fold.train], quality[fold.train], np.asarray(targets, dtype=np.float64))
    r, q = log_rate[fold.test], quality[fold.test]
    fixed = np.repeat(np.median(needed, axis=0)[None], len(r), axis=0)
    return FoldScores(
        accuracy=float((guess == truth).mean()),
        macro_f1=float(f1_score(truth, guess, average="macro", labels=np.unique(truth))),
        ordinal=float(np.abs(guess - truth).mean()),
        knn=float((neighbours == truth).mean()),
        nmi=float(normalized_mutual_info_score(truth, grouped)),
        ari=float(adjusted_rand_score(truth, grouped)),
        purity=purity(truth, grouped),
        matched=cluster_accuracy(truth, grouped),
        spearman=float(spearmanr(predicted[:, middle], measured[:, middle]).statistic),
        pearson=float(pearsonr(predicted[:, middle], measured[:, middle]).statistic),
        curve_mae=float(np.abs(predicted - measured).mean()),
        rung_fixed=rung_error(r, q, fixed, targets),
        rung_predicted=rung_error(r, q, rates[guess], targets),
        rung_oracle=rung_error(r, q, rates[truth], targets),
    )


def purity(labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> float:
    """Share of items whose label is the most frequent one of their group.

    Example:
        >>> purity(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
        0.75
    """
    counts = [np.bincount(labels[groups == group]).max() for group in np.unique(groups)]
    return float(np.sum(counts) / len(labels))


def mean_scores(scores: Sequence[FoldScores]) -> dict[str, float]:
    """Mean of each score over folds."""
    names = [field.name for field in dataclasses.fields(FoldScores)]
    return {name: float(np.mean([getattr(each, name) for each in scores])) for name in names}


def spread_within(values: Float[np.ndarray, "n q"], labels: Sequence[Any] | Int[np.ndarray, " n"]) -> float:
    """Mean variance inside the groups of some labelling, weighed by their sizes.

    Args:
        values: ``log2`` rates at equal qualities.
        labels: Group of every row.
    """
    names = np.asarray(labels)
    parts = [values[names == name] for name in np.unique(names)]
    return float(sum(len(part) * part.var(0).mean() for part in parts) / len(values))


def by_source_rate(
    echoes: EchoSet, rows: Int[np.ndarray, " m"], errors: Float[np.ndarray, " m"]
) -> list[dict[str, float | str]]:
    """Errors in thirds of how much the source was compressed before: of compressed sources the artefacts are measured.

    Args:
        echoes: The clips.
        rows: Which of them.
        errors: One error each.
    """
    source = np.array([echoes.clips[row].source_bpp for row in rows])
    edges = np.quantile(source, [1 / 3, 2 / 3])
    place = np.searchsorted(edges, source)
    names = ("lowest third", "middle third", "highest third")
    return [
        {
            "source bits a pixel": f"{names[k]} (mean {source[place == k].mean():.3f})",
            "clips": int((place == k).sum()),
            "mean error": float(errors[place == k].mean()),
        }
        for k in range(3)
        if (place == k).any()
    ]


def tabulate(scores: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One row a feature set."""
    return [{"features": name, **values} for name, values in scores.items()]


def check_rows(features: Float[np.ndarray, "n d"], echoes: EchoSet) -> None:
    """Refuse features of other clips.

    Raises:
        InputError: The numbers differ.
    """
    if len(features) != len(echoes):
        raise InputError(
            "the features are of other clips", where=echoes.folder, why=f"{len(features)} rows for {len(echoes)} clips"
        )
