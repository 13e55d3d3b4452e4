"""Retrieval measures against scikit-learn, torchmetrics and brute force over all orders of ties."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
import torchmetrics.functional.retrieval as reference
from contrastive_core.evaluation import RetrievalRanking, hamming_distances, pack_codes, retrieval_scores
from sklearn.metrics import average_precision_score

ALL = ("map", "map@7", "map@r", "r_precision", "mrr", "precision@7", "recall@7", "hit@3", "ndcg@7", "ndcg@1000")


def problem(n=60, q=9, d=5, classes=4, seed=0, dtype=np.float64):
    g = np.random.default_rng(seed)
    return (
        g.normal(size=(q, d)).astype(dtype),
        g.integers(0, classes, q),
        g.normal(size=(n, d)).astype(dtype),
        g.integers(0, classes, n),
    )


def by_hand(relevance, k_map=7, k=7, hit=3):
    """Measures of ranked zeros and ones, written out."""
    r, n = sum(relevance), len(relevance)
    precision = [sum(relevance[: i + 1]) / (i + 1) for i in range(n)]
    gain = [1 / math.log2(i + 2) for i in range(n)]

    def ap(cut, over):
        return sum(p for p, rel in zip(precision[:cut], relevance[:cut], strict=True) if rel) / over

    def ndcg(cut):
        return sum(g for g, rel in zip(gain[:cut], relevance[:cut], strict=True) if rel) / sum(gain[: min(r, cut)])

    return {
        "map": ap(n, r),
        "map@7": ap(k_map, min(r, k_map)),
        "map@r": ap(r, r),
        "r_precision": sum(relevance[:r]) / r,
        "mrr": 1 / (relevance.index(1) + 1),
        "precision@7": sum(relevance[:k]) / k,
        "recall@7": sum(relevance[:k]) / r,
        "hit@3": float(any(relevance[:hit])),
        "ndcg@7": ndcg(7),
        "ndcg@1000": ndcg(n),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", ["index", "average"])
def test_measures_equal_the_definitions_and_sklearn(ties, dtype):
    x, y, gallery, classes = problem(dtype=dtype)
    scores = retrieval_scores(x, y, gallery, classes, measures=ALL, ties=ties)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, gallery)]
    similarity = unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
    for i, label in enumerate(y):
        relevance = (classes == label)[np.argsort(-similarity[i])].astype(int).tolist()
        for name, want in by_hand(relevance).items():
            assert scores.per_query[name][i] == pytest.approx(want, abs=1e-12), name
        assert scores.per_query["map"][i] == pytest.approx(
            average_precision_score(classes == label, similarity[i]), abs=1e-12
        )
    for name in ALL:
        assert scores[name] == pytest.approx(scores.per_query[name].mean())
    assert (scores.queries, scores.excluded) == (9, 0)


def test_measures_equal_torchmetrics():
    x, y, gallery, classes = problem(n=200, q=5)
    scores = retrieval_scores(
        x, y, gallery, classes, similarity="dot", measures=("map", "mrr", "precision@9", "recall@9", "hit@2", "ndcg@9")
    )
    functions = {
        "map": (reference.retrieval_average_precision, {}),
        "mrr": (reference.retrieval_reciprocal_rank, {}),
        "precision@9": (reference.retrieval_precision, {"top_k": 9}),
        "recall@9": (reference.retrieval_recall, {"top_k": 9}),
        "hit@2": (reference.retrieval_hit_rate, {"top_k": 2}),
        "ndcg@9": (reference.retrieval_normalized_dcg, {"top_k": 9}),
    }
    similarity = torch.from_numpy(x @ gallery.T)
    similarity = similarity - similarity.min() + 1  # it takes no item with a score of 0 or less for relevant
    for name, (function, options) in functions.items():
        want = [float(function(similarity[i], torch.from_numpy(classes == y[i]), **options)) for i in range(len(x))]
        np.testing.assert_allclose(scores.per_query[name], want, atol=1e-6)


@pytest.mark.parametrize(("denominator", "want"), [("retrieved", 5 / 6), ("min", 5 / 9), ("R", 5 / 9)])
def test_denominators_on_an_example_by_hand(denominator, want):
    gallery = np.array([[5.0], [4.0], [3.0], [2.0]])
    relevant = np.array([1, 0, 1, 1])  # ranks 1, 3, 4; R = 3, K = 3
    scores = retrieval_scores(
        np.ones((1, 1)),
        np.ones(1, int),
        gallery,
        relevant,
        similarity="dot",
        measures=("map@3",),
        denominator=denominator,
    )
    assert scores["map@3"] == pytest.approx(want)


def test_min_and_r_differ_when_k_is_below_r():
    gallery, relevant = np.array([[3.0], [2.0], [1.0]]), np.ones(3, int)
    kinds = {
        denominator: retrieval_scores(
            np.ones((1, 1)),
            np.ones(1, int),
            gallery,
            relevant,
            similarity="dot",
            measures=("map@2",),
            denominator=denominator,
        )["map@2"]
        for denominator in ("retrieved", "min", "R")
    }
    assert kinds == {"retrieved": 1.0, "min": 1.0, "R": pytest.approx(2 / 3)}


@pytest.mark.parametrize("kind", ["codes", "floats", "doubles"])
def test_average_over_ties_is_the_mean_over_all_orders(kind):
    g = np.random.default_rng(3)
    bits = g.integers(0, 2, (6, 3))
    label = np.array([1, 0, 1, 1, 0, 0])
    query = np.array([[0, 0, 0]])
    distance = bits.sum(1)
    assert len(set(distance)) < 6
    order = [p for p in itertools.permutations(range(6)) if list(distance[list(p)]) == sorted(distance)]
    want = {}
    for name in by_hand([1] * 8):
        want[name] = np.mean([by_hand(label[list(p)].tolist(), k_map=7)[name] for p in order])
    # by_hand(precision@7) divides by 7 although 6 items exist, as ours does.
    if kind == "codes":
        inputs = pack_codes(query), pack_codes(bits)
    else:
        dtype = np.float32 if kind == "floats" else np.float64
        inputs = np.ones((1, 1), dtype), -distance[:, None].astype(dtype)
    scores = retrieval_scores(
        inputs[0], np.ones(1, int), inputs[1], label, similarity="dot", measures=ALL, ties="average"
    )
    for name in ALL:
        assert scores[name] == pytest.approx(want[name], abs=1e-9), name


@pytest.mark.parametrize("bits", [5, 64, 70, 300])
def test_codes_by_index_equal_stable_sorting(bits):
    g = np.random.default_rng(bits)
    codes, queries = g.integers(0, 2, (500, bits)), g.integers(0, 2, (7, bits))
    classes, y = g.integers(0, 3, 500), g.integers(0, 3, 7)
    distance = (codes[None] != queries[:, None]).sum(2)
    assert np.array_equal(hamming_distances(pack_codes(queries), pack_codes(codes)), distance)
    scores = retrieval_scores(pack_codes(queries), y, pack_codes(codes), classes, measures=ALL)
    near = retrieval_scores(pack_codes(queries), y, pack_codes(codes), classes, measures=("precision@7", "map@7"))
    for i in range(7):
        relevance = (classes == y[i])[np.argsort(distance[i], kind="stable")].astype(int).tolist()
        for name, want in by_hand(relevance).items():
            assert scores.per_query[name][i] == pytest.approx(want, abs=1e-12)
            if name in near.values:
                assert near.per_query[name][i] == pytest.approx(want, abs=1e-12)


def test_float_ties_go_by_index_and_signed_zeros_are_equal():
    gallery = np.array([[0.0], [-0.0], [0.0], [1.0]], np.float32)
    relevant = np.array([0, 1, 0, 0])
    scores = retrieval_scores(
        np.ones((1, 1), np.float32), np.ones(1, int), gallery, relevant, similarity="dot", measures=("mrr",)
    )
    assert scores["mrr"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", ["codes", "floats", "doubles"])
@pytest.mark.parametrize("ties", ["index", "average"])
def test_the_query_itself_is_left_out(kind, ties):
    x, y, *_ = problem(n=1, q=40)
    inputs = {"codes": pack_codes(x), "floats": x.astype(np.float32), "doubles": x}[kind]
    alone = retrieval_scores(inputs, y, measures=ALL, ties=ties)
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        one = retrieval_scores(inputs[i : i + 1], y[i : i + 1], inputs[rest], y[rest], measures=ALL, ties=ties)
        for name in ALL:
            assert alone.per_query[name][i] == pytest.approx(one[name], abs=1e-9)


def test_all_items_with_the_id_are_left_out():
    gallery = np.array([[1.0], [1.0], [0.9], [0.8]])
    ranking = RetrievalRanking(
        gallery, np.array([1, 1, 0, 1]), ids=np.array(["a", "a", "b", "c"]), similarity="dot", measures=("map",)
    )
    ranking.update(np.ones((1, 1)), np.ones(1, int), ids=np.array(["a"]))
    assert ranking.compute()["map"] == 0.5


def test_queries_without_relevant_items_are_counted_not_averaged():
    x, y, gallery, classes = problem()
    y = y.copy()
    y[:4] = 99
    scores = retrieval_scores(x, y, gallery, classes)
    assert (scores.queries, scores.excluded) == (5, 4)
    assert scores["map"] == pytest.approx(retrieval_scores(x[4:], y[4:], gallery, classes)["map"])
    assert np.isnan(scores.per_query["map"][:4]).all()
    nobody = retrieval_scores(x[:4], y[:4], gallery, classes)
    assert nobody.queries == 0
    assert math.isnan(nobody["map"])


@pytest.mark.parametrize("classes", [3, 70])
def test_several_labels_and_functions_agree(classes):
    x, _, gallery, _ = problem()
    g = np.random.default_rng(0)
    of_query, of_gallery = g.random((9, classes)) < 2 / classes, g.random((60, classes)) < 2 / classes
    relevant = (of_query[:, None] & of_gallery).any(2)
    scores = retrieval_scores(x, of_query.astype(int), gallery, of_gallery.astype(int))
    ranking = RetrievalRanking(torch.from_numpy(gallery), memory_mib=1)
    ranking.update(torch.from_numpy(x), relevant=lambda rows: relevant[rows])
    assert ranking.compute().to_dict() == scores.to_dict()


@pytest.mark.parametrize("kind", ["codes", "floats"])
def test_blocks_and_updates_do_not_matter(kind):
    x, y, gallery, classes = problem(n=3000, dtype=np.float32)
    x, gallery = (pack_codes(x), pack_codes(gallery)) if kind == "codes" else (x, gallery)
    whole = retrieval_scores(x, y, gallery, classes)
    ranking = RetrievalRanking(gallery, classes, memory_mib=0)
    for part in np.array_split(np.arange(len(x)), 4):
        ranking.update(x[part], y[part])
    assert ranking.compute().to_dict() == pytest.approx(whole.to_dict(), rel=1e-4)  # other blocks, other rounding


def test_l2_far_from_the_origin_and_half_precision():
    x, y, gallery, classes = problem(dtype=np.float32)
    near = retrieval_scores(x, y, gallery, classes, similarity="l2")
    distance = ((x[:, None].astype(np.float64) - gallery) ** 2).sum(2)
    want = [average_precision_score(classes == label, -row) for label, row in zip(y, distance, strict=True)]
    np.testing.assert_allclose(near.per_query["map"], want, atol=1e-12)
    far = retrieval_scores(x + 1000, y, gallery + 1000, classes, similarity="l2")
    assert far["map"] == pytest.approx(near["map"], abs=5e-3)
    half = torch.from_numpy(gallery).bfloat16()
    assert retrieval_scores(torch.from_numpy(x).bfloat16(), y, half, classes)["map"] == pytest.approx(
        retrieval_scores(torch.from_numpy(x).bfloat16().float(), y, half.float(), classes)["map"]
    )


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"measures": ("map@0",)}, "unknown measure"),
        ({"measures": ("accuracy",)}, "unknown measure"),
        ({"ties": "random"}, "unknown denominator"),
        ({"similarity": "euclid"}, "similarity is"),
        ({"ties": "average", "denominator": "retrieved", "measures": ("map@5",)}, "closed form"),
        ({"gallery": np.zeros((0, 5))}, "empty"),
        ({"gallery": np.full((60, 5), np.nan)}, "NaN"),
        ({"gallery_labels": np.zeros(3)}, "labels are"),
        ({"gallery_labels": np.zeros((60, 2))}, "differ in shape"),
        ({"queries": np.zeros((9, 4))}, "queries are"),
        ({"queries": np.zeros((9, 5), np.uint8)}, "queries are"),
        ({"labels": np.zeros(8, int)}, "each query"),
        ({"gallery_labels": None}, "comes with its labels"),
    ],
)
def test_refusals(change, text):
    x, y, gallery, classes = problem()
    inputs = {"queries": x, "labels": y, "gallery": gallery, "gallery_labels": classes}
    with pytest.raises(ValueError, match=text):
        retrieval_scores(**(inputs | change))


@pytest.mark.unchecked
def test_refusals_of_updates():
    x, y, gallery, classes = problem()
    ranking = RetrievalRanking(gallery, classes)
    with pytest.raises(ValueError, match="relevance comes"):
        ranking.update(x)
    with pytest.raises(ValueError, match="both have ids"):
        ranking.update(x, y, ids=y)
    with pytest.raises(ValueError, match="relevance is"):
        ranking.update(x, relevant=lambda rows: np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="ids are"):
        RetrievalRanking(gallery, classes, ids=y)
    with pytest.raises(ValueError, match="codes are"):
        pack_codes(np.zeros(3))


@pytest.mark.parametrize("kind", ["codes", "floats"])
def test_memory_does_not_grow_with_the_queries(kind):
    g = np.random.default_rng(0)
    n = 50_000
    gallery = (
        g.integers(0, 256, (n, 8), dtype=np.uint8) if kind == "codes" else g.normal(size=(n, 8)).astype(np.float32)
    )
    ranking = RetrievalRanking(gallery, g.integers(0, 5, n), measures=("map", "precision@100"), memory_mib=4)
    peaks = []
    for count in (4, 64):
        tracemalloc.start()
        ranking.update(gallery[:count], g.integers(0, 5, count))
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert peaks[1] < 3 * peaks[0]  # sixteen times the queries; threads overlap as chance has it
    assert peaks[1] < 6  # all scores of 64 queries in float32 would be 12
