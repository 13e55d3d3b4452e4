"""Clusters against classes, neighbours that vote, and outlier scores: oracles of scikit-learn and brute force."""

import itertools

import numpy as np
import pytest
import torch
from contrastive_core.evaluation import auroc_fpr95, cluster_accuracy, kmeans_scores, knn_probabilities
from sklearn.datasets import load_digits
from sklearn.metrics import roc_curve


@pytest.mark.parametrize(("classes", "clusters"), [(3, 3), (3, 5), (4, 2)])
def test_cluster_accuracy_is_the_best_over_all_matchings(classes, clusters):
    g = np.random.default_rng(classes * 10 + clusters)
    labels, found = g.integers(0, classes, 40), g.integers(0, clusters, 40)
    most = max(classes, clusters)
    best = max(np.mean(np.array(order)[found] == labels) for order in itertools.permutations(range(most)))
    assert cluster_accuracy(labels, found) == pytest.approx(best)
    names = np.array(["zebra", "ant", "bee", "cat", "dog"])
    assert cluster_accuracy(names[labels], 100 - found) == pytest.approx(best)
    assert cluster_accuracy(labels, names[labels]) == 1


def test_cluster_accuracy_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="labels and clusters"):
        cluster_accuracy(np.zeros(0, int), np.zeros(0, int))


def test_kmeans_finds_separate_classes_and_repeats():
    g = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 30)
    features = np.eye(3, 5)[labels] * 5 + 0.05 * g.normal(size=(90, 5))
    scores = kmeans_scores(features, labels, restarts=5)
    assert scores.accuracy.shape == (5,)
    assert scores.to_dict()["accuracy_best"] == scores.to_dict()["nmi_best"] == scores.to_dict()["ari_best"] == 1
    again = kmeans_scores(features, labels, restarts=5)
    assert np.array_equal(scores.inertia, again.inertia)
    assert kmeans_scores(features, labels, clusters=6, restarts=1).to_dict()["accuracy"] < 1
    for wrong in ({"clusters": 91}, {"restarts": 0}):
        with pytest.raises(ValueError, match="clusters of"):
            kmeans_scores(features, labels, **wrong)
    with pytest.raises(ValueError, match="finite"):
        kmeans_scores(features * np.nan, labels)


def test_neighbours_vote_as_written_out():
    g = torch.Generator().manual_seed(0)
    train, test = torch.randn(30, 4, generator=g), torch.randn(6, 4, generator=g)
    labels = torch.randint(0, 3, (30,), generator=g)
    got = knn_probabilities(train, labels, test, k=7, temperature=0.1, classes=5, chunk=4)
    for row, votes in zip(test, got, strict=True):
        cosine = torch.cosine_similarity(row[None], train)
        want = torch.zeros(5)
        for index in cosine.argsort(descending=True)[:7]:
            want[labels[index]] += (cosine[index] / 0.1).exp()
        torch.testing.assert_close(votes, want / want.sum())
    assert (got[:, 3:] == 0).all()


def test_neighbours_classify_digits_and_refuse():
    x, y = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    got = knn_probabilities(x[:1200], y[:1200], x[1200:])
    assert (got.argmax(1) == y[1200:]).double().mean() > 0.95
    for wrong in ({"k": 1201}, {"k": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="k lies"):
            knn_probabilities(x[:1200], y[:1200], x[1200:], **wrong)
    with pytest.raises(ValueError, match="labels lie"):
        knn_probabilities(x[:1200], y[:1200], x[1200:], classes=5)


def test_outlier_scores_equal_the_curve():
    g = np.random.default_rng(0)
    known, foreign = g.normal(size=300).round(1), g.normal(size=77).round(1) + 1
    got = auroc_fpr95(known, foreign)
    truth = np.arange(377) >= 300
    fpr, tpr, _ = roc_curve(truth, np.concatenate([known, foreign]), drop_intermediate=False)
    assert got.fpr95 == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
    wins = (foreign[:, None] > known).mean() + 0.5 * (foreign[:, None] == known).mean()
    assert got.auroc == pytest.approx(wins)
    perfect = auroc_fpr95(np.zeros(3), np.ones(2))
    assert (perfect.auroc, perfect.aupr, perfect.fpr95) == (1, 1, 0)
    with pytest.raises(ValueError, match="both kinds"):
        auroc_fpr95(np.zeros(3), np.zeros(0))
