"""What embeddings are worth for encoding: protocols A to D, and the rung error (section 9)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contrastive_core.data import group_split
from contrastive_core.errors import InputError, require
from contrastive_core.evaluation import cluster_accuracy, fit_probe
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.linear_model import RidgeCV
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler

from cl_video3d.cecl.clusters import RQClusters, fit_clusters
from cl_video3d.cecl.comparison import ladder_gains
from cl_video3d.cecl.curves import log_rates, rate_at_quality
from cl_video3d.cecl.data import EchoSet
from cl_video3d.cecl.inference import EchoEncoder
from cl_video3d.cecl.ladders import TARGETS, ladder_rates, rung_error
from cl_video3d.cecl.predictor import ALPHAS, fit_predictor
from cl_video3d.video.encoding import Codec
from cl_video3d.video.manifest import check_disjoint, split_name

_SHOWN = ("accuracy", "macro_f1", "ordinal", "knn", "nmi", "ari", "purity", "spearman", "curve_mae", "rung_predicted")


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
        rung_curve: Rung error with rates read off each clip's own predicted curve.
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
    rung_curve: float


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
    fitted = fit_clusters(known, clusters=clusters, seed=seed)
    return Fold(train, test, fitted, fitted.assign(known), fitted.assign(held))


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
    ridge = RidgeCV(ALPHAS).fit(inside, log_rate[fold.train])
    predicted = ridge.predict(outside)
    middle = (log_rate.shape[1] - 1) // 2
    measured = log_rate[fold.test]
    curves = fit_predictor(x, y, log_rate[fold.train], quality[fold.train]).curves(held)
    own_rates, _ = rate_at_quality(*curves, np.asarray(targets, dtype=np.float64))

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
        rung_curve=rung_error(r, q, own_rates, targets),
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
) -> list[dict[str, Any]]:
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


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of several feature sets on the same held-out clips.

    Attributes:
        clips: Clips.
        groups: Sources.
        folds: Folds they are means over.
        scores: :class:`FoldScores` by feature set, means over folds.
        ladders: Protocol D, where several resolutions were measured.
        strata: Error of the last feature set's rates by how much the source was compressed before.
        notes: What a reader has to know.
    """

    clips: int
    groups: int
    folds: int
    scores: dict[str, dict[str, float]]
    ladders: list[dict[str, Any]]
    strata: list[dict[str, Any]]
    notes: tuple[str, ...]

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Rows by title."""
        first = next(iter(self.scores.values()))
        rungs = [{"ladder": "one for all", "error": first["rung_fixed"]}]
        for name, each in self.scores.items():
            rungs.append({"ladder": f"clusters told by {name}", "error": each["rung_predicted"]})
            rungs.append({"ladder": f"curves predicted by {name}", "error": each["rung_curve"]})
        rungs.append({"ladder": "true clusters", "error": first["rung_oracle"]})
        scores = [{"features": name, **{k: each[k] for k in _SHOWN}} for name, each in self.scores.items()]
        tables = {"Scores on held-out groups": scores, "Rung error, dB (lower is better)": rungs}
        if self.ladders:
            tables["Ladders over resolutions against the fixed one (negative BD-rate saves)"] = self.ladders
        tables[f"Error of predicted log2 bpp by compression of the source, {list(self.scores)[-1]}"] = self.strata
        return tables


def evaluate_features(
    features: Mapping[str, Float[np.ndarray, "n _"]],
    echoes: EchoSet,
    *,
    codec: Codec | None = None,
    test_split: str | None = None,
    folds: int = 2,
    clusters: int = 5,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Evaluation:
    """What features tell of clusters, rates and ladders on held-out groups.

    Args:
        features: Frozen features of all clips, by name.
        echoes: The clips.
        codec: Codec of the curves; the first measured one if absent.
        test_split: Judge on this split, fit on the others; cross-validation by group without.
        folds: Parts of the cross-validation.
        clusters: Clusters.
        seed: Seed of folds and k-means.
        notes: What a reader has to know of the features.

    Raises:
        InputError: There are no features, they are of other clips, or a part would be empty.
    """
    require(2 <= folds <= 1000, "--folds", folds, "a whole number from 2 to 1000")
    part = echoes.at(codec)
    if not features:
        raise InputError("there is nothing to evaluate", where="RUN, --baselines", remedy="name a run or a baseline")
    for name, values in features.items():
        if len(values) != len(part):
            why = f"{len(values)} rows for {len(part)} clips"
            raise InputError("the features are of other clips", where=name, why=why)
    if test_split is None:
        parts = make_folds(part, folds=folds, clusters=clusters, seed=seed)
    else:
        parts = [_split_fold(part, test_split, clusters, seed)]
    scores = {
        name: mean_scores([score_features(values, part, fold, seed=seed) for fold in parts])
        for name, values in features.items()
    }
    ladders = ladder_gains(echoes, codec, features, parts) if len(echoes.shares(codec)) > 1 else []
    strata = _stratified(list(features.values())[-1], part, parts)
    return Evaluation(len(part), len(set(part.groups)), len(parts), scores, ladders, strata, tuple(notes))


def trained_on_test(name: str, encoder: EchoEncoder, test_split: str | None) -> list[str]:
    """A note where an encoder may have seen the clips it is judged on."""
    if test_split is not None and encoder.split not in ("all", split_name(test_split, "--test-split")):
        return []
    return [
        f"{name} was trained on {encoder.split} of its clips; where those are judged here, its figures are too good"
    ]


def _split_fold(part: EchoSet, test_split: str, clusters: int, seed: int) -> Fold:
    name = split_name(test_split, "--test-split")
    held = np.array([clip.split == name for clip in part.clips])
    if not held.any() or held.all():
        raise InputError(
            "the split leaves nothing on one side",
            where="--test-split",
            why=f"{int(held.sum())} of {len(held)} clips are of {test_split!r}",
        )
    return fold_of(part, np.flatnonzero(~held), np.flatnonzero(held), clusters=clusters, seed=seed)


def _stratified(features: np.ndarray, echoes: EchoSet, folds: Sequence[Fold]) -> list[dict[str, Any]]:
    rate, quality = log_rates(echoes.measured["bpp"]), echoes.measured["psnr"]
    errors = []
    for fold in folds:
        predictor = fit_predictor(features[fold.train], fold.train_labels, rate[fold.train], quality[fold.train])
        errors.append(np.abs(predictor.curves(features[fold.test])[0] - rate[fold.test]).mean(1))
    return by_source_rate(echoes, np.concatenate([fold.test for fold in folds]), np.concatenate(errors))
