"""Curves, clusters, ladders, scores and baselines against closed forms and independent references."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from cl_video3d.cecl import ClipSettings, EchoEncoder, LadderPredictor, baselines, fit_ladders
from cl_video3d.cecl.clusters import fit_clusters, partition_around_medoids
from cl_video3d.cecl.comparison import compare_ladders
from cl_video3d.cecl.curves import curve_distances, interpolate, quality_at_rate, rate_at_quality
from cl_video3d.cecl.data import ClipRecord, EchoSet
from cl_video3d.cecl.evaluation import evaluate_features, fold_of, make_folds, purity, score_features, spread_within
from cl_video3d.cecl.inference import EmbeddingIndex, VideoEmbedding
from cl_video3d.cecl.ladders import cluster_rungs, ladder_rates, rung_error, rungs
from cl_video3d.cecl.model import EchoModel, ModelConfig
from cl_video3d.cecl.predictor import fit_predictor
from cl_video3d.cecl.resolutions import (
    FIXED_CROSSOVERS,
    ResolutionCurves,
    cluster_crossovers,
    crossovers,
    fixed_ladder,
    fixed_threshold,
    picks_of,
)
from cl_video3d.video.encoding import EncodeSetting
from contrastive_core.backbones import image_backbone
from contrastive_core.errors import ContrastiveWarning, InputError
from sklearn.metrics import adjusted_rand_score, silhouette_score

CRF = (20.0, 26.0, 32.0, 38.0)


def synthetic(intercepts, *, slope=6.0, groups=None, jitter=0.1, seed=0):
    """Clips whose curves are ``Q = slope log2 R + intercept``."""
    rng = np.random.default_rng(seed)
    n = len(intercepts)
    quality = np.array([40.0, 36, 32, 28]) + rng.normal(0, jitter, (n, 1))
    log_rate = (quality - np.asarray(intercepts)[:, None] - rng.normal(0, jitter, (n, 1))) / slope
    groups = [f"g{k % 6}" for k in range(n)] if groups is None else groups
    clips = tuple(
        ClipRecord(f"c{k}", f"v{k}", groups[k], width=1920, height=1080, source_bpp=0.1 * k) for k in range(n)
    )
    settings = tuple(EncodeSetting(value=crf) for crf in CRF)
    return EchoSet(Path("synthetic"), clips, settings, {"bpp": 2.0**log_rate, "psnr": quality})


FAMILIES = [46.0] * 12 + [52.0] * 12
TRUTH = np.array([1] * 12 + [0] * 12)  # at one quality the second family needs fewer bits


# --- curves -----------------------------------------------------------------------------------------------------------


def test_interpolation_is_monotone_inside_and_straight_outside():
    x, y = np.array([3.0, 1.0, 2.0, 2.0]), np.array([9.0, 1.0, 4.0, 5.0])
    np.testing.assert_allclose(interpolate(x, y, np.array([1.0, 2.0, 3.0])), [1, 4, 9])  # of equal x the smaller y
    np.testing.assert_allclose(interpolate(x, y, np.array([0.0, 4.0])), [1 - 3, 9 + 5])
    assert np.isnan(interpolate(x, y, np.array([0.9]), outside="nan")).all()
    dense = interpolate(x, y, np.linspace(1, 3, 50))
    assert (np.diff(dense) > 0).all()
    np.testing.assert_allclose(interpolate(np.array([1.0]), np.array([5.0]), np.array([0.0, 9.0])), 5)


def test_rate_and_quality_invert_each_other():
    echoes = synthetic(FAMILIES)
    log_rate, quality = np.log2(echoes.measured["bpp"]), echoes.measured["psnr"]
    rates, outside = rate_at_quality(log_rate, quality, np.array([30.0, 34.0, 60.0]))
    np.testing.assert_allclose(
        quality_at_rate(log_rate, quality, rates), np.tile([30.0, 34.0, 60.0], (24, 1)), rtol=1e-9
    )
    assert outside.tolist() == [[False, False, True]] * 24


def test_distances_of_straight_curves_are_their_shifts():
    echoes = synthetic([46.0, 49.0, 52.0], jitter=0.0)
    log_rate, quality = np.log2(echoes.measured["bpp"]), echoes.measured["psnr"]
    found = curve_distances(log_rate, quality)
    # 3 dB apart at a slope of 6 dB a bit: half a bit, and 3 / 6.
    np.testing.assert_allclose(found, [[0, 1, 2], [1, 0, 1], [2, 1, 0]], atol=1e-9)
    far = curve_distances(log_rate[:1], quality[:1], log_rate[:1] + 40, quality[:1])
    assert far[0, 0] == pytest.approx(80, rel=0.01)  # no common rates: the other term counts twice
    beyond = curve_distances(log_rate[:1], quality[:1], log_rate[:1] + 40, quality[:1] + 60)
    assert beyond[0, 0] == pytest.approx(50)


# --- clusters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["echo", "grid"])
@pytest.mark.parametrize("algorithm", ["rq-kmeans", "bd-kmedoids"])
def test_families_of_curves_are_recovered_and_ordered(algorithm, space, tmp_path):
    echoes = synthetic(FAMILIES)
    found = fit_clusters(echoes, clusters=2, algorithm=algorithm, space=space)
    labels = found.assign(echoes)
    assert adjusted_rand_score(TRUTH, labels) == 1
    assert (labels == TRUTH).all()  # numbered from the easiest
    assert found.sizes == (12, 12)
    fit_ladders(echoes, clusters=2, algorithm=algorithm, space=space).save(tmp_path)
    again = LadderPredictor.load(tmp_path, device="cpu").clusters
    assert (again.assign(echoes) == labels).all()
    assert again.codec == "h264"
    new = synthetic([52.3, 45.7], seed=5, groups=["a", "b"])
    assert again.assign(new).tolist() == [0, 1]


def test_the_number_of_clusters_is_chosen_by_silhouette():
    echoes = synthetic([40.0] * 8 + [46.0] * 8 + [52.0] * 8 + [58.0] * 8)
    found = fit_clusters(echoes, clusters=None)
    assert len(found) == 4
    points = np.concatenate([np.log2(echoes.measured["bpp"]), echoes.measured["psnr"] / 6], 1)
    assert found.silhouette == pytest.approx(silhouette_score(points, found.assign(echoes)))


@pytest.mark.parametrize(("seed", "count"), [(1, 3), (4, 2), (5, 3), (8, 2), (8, 3)])
def test_medoids_are_swapped_to_the_best_ones(seed, count):
    """Sets on which the greedy choice alone is not the best one."""
    points = np.random.default_rng(seed).normal(size=(12, 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)

    def cost(medoids):
        return distances[:, list(medoids)].min(1).sum()

    best = min(map(cost, itertools.combinations(range(12), count)))
    assert cost(partition_around_medoids(distances, count, rounds=0)[1]) > best + 1e-6
    labels, medoids = partition_around_medoids(distances, count)
    assert cost(medoids) == pytest.approx(best, rel=1e-12)
    np.testing.assert_array_equal(labels, distances[:, medoids].argmin(1))
    assert (labels[medoids] == range(count)).all()


def test_clusters_that_cannot_be_are_refused(tmp_path):
    tmp_path = tmp_path / "clusters"
    tmp_path.mkdir()
    echoes = synthetic(FAMILIES)
    for count in (1, 24):
        with pytest.raises(InputError, match="--clusters"):
            fit_clusters(echoes, clusters=count)
    with pytest.raises(InputError, match="two points"):
        fit_clusters(echoes.columns([0]))
    with pytest.raises(InputError, match="other operating points"):
        fit_clusters(echoes, clusters=2).assign(echoes.columns([0, 1]))
    with pytest.raises(InputError, match="holds no model"):
        LadderPredictor.load(tmp_path)
    fit_ladders(echoes, clusters=2).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="corrupt"):
        LadderPredictor.load(tmp_path)


# --- ladders ----------------------------------------------------------------------------------------------------------


def test_the_fixed_ladder_follows_its_list():
    for height, rate in FIXED_CROSSOVERS.items():
        assert fixed_threshold(height) == pytest.approx(rate)
    heights = sorted([*FIXED_CROSSOVERS, 360, 240, 640, 4320])
    assert (np.diff([fixed_threshold(height) for height in heights]) > 0).all()
    for rate in (145, 200, 300):  # no list runs out
        assert fixed_ladder(rate, (2160, 1440, 1080, 720, 540, 432)) == (432 if rate <= 300 else 540)
    assert fixed_ladder(1e6, (720, 1080)) == 1080


def resolution_set(videos=6, seed=0):
    """Large frames win at high rates, small ones at low rates; where, differs between videos."""
    rng = np.random.default_rng(seed)
    log_rate, quality = [], []
    for _ in range(videos):
        middle, slope = rng.uniform(9, 12), rng.uniform(3, 5)
        grid = np.linspace(7, 14, 6)
        log_rate.append([grid, grid - 0.5, grid - 1.0])
        quality.append([36 + slope * (r - middle) * s for r, s in zip(log_rate[-1], (1.0, 0.7, 0.45), strict=True)])
    return ResolutionCurves(
        tuple(f"v{k}@0" for k in range(videos)),
        (1.0, 0.667, 0.5),
        np.array(log_rate),
        np.array(quality),
        np.full(videos, 1080),
    )


def test_crossovers_are_where_curves_cross_and_monotone():
    curves = resolution_set()
    for index in range(6):
        found = crossovers(curves.of(index))
        assert (np.diff(found) <= 0).all()
        grid = np.linspace(7, 14, 2001)
        values = np.stack([interpolate(r, q, grid) for r, q in curves.of(index)])
        behind = grid[values[0] < values[1]]
        assert found[0] == pytest.approx(behind.max() if len(behind) else grid[0], abs=0.06)
    one_way = [(np.array([1.0, 2.0]), np.array([30.0, 40.0])), (np.array([1.0, 2.0]), np.array([20.0, 25.0]))]
    assert crossovers(one_way)[0] == 1.0  # the larger is always ahead
    assert crossovers(one_way[::-1])[0] == 2.0  # never
    np.testing.assert_array_equal(picks_of(np.array([5.0, 2.0, 0.0]), np.array([4.0, 1.0])), [0, 1, 2])


def test_the_hull_never_loses_to_the_fixed_ladder():
    curves = resolution_set()
    crossing = cluster_crossovers(curves, np.array([0, 0, 0, 1, 1, 1]), 3)
    assert len(crossing) == 3
    median = np.median([crossovers(curves.of(k)) for k in range(3)], axis=0)
    np.testing.assert_allclose(crossing[0], np.minimum.accumulate(median))
    own = [crossovers(curves.of(k)) for k in range(6)]
    rows = compare_ladders(curves, [crossing[0]] * 6, own)
    assert len(rows) == 6 * 3
    for row in rows:
        if row["ladder"] == "hull":
            assert row["bd_rate"] <= 1e-9
            assert row["bd_quality"] >= -1e-9
    hulls = {row["video"]: row["bd_rate"] for row in rows if row["ladder"] == "hull"}
    for row in rows:
        assert row["bd_rate"] >= hulls[row["video"]] - 1e-6


def test_more_clusters_never_raise_the_rung_error():
    rng = np.random.default_rng(1)
    echoes = synthetic(rng.uniform(40, 60, 60).tolist(), jitter=0.5)
    log_rate, quality = np.log2(echoes.measured["bpp"]), echoes.measured["psnr"]
    errors = []
    for count in (1, 2, 3, 5, 8):
        labels = np.zeros(60, int) if count == 1 else fit_clusters(echoes, clusters=count, space="grid").assign(echoes)
        rates = ladder_rates(log_rate, quality, labels, count)
        errors.append(rung_error(log_rate, quality, rates[labels]))
    assert (np.diff(errors) <= 1e-9).all()
    assert errors[0] > 2 * errors[-1]
    exact, _ = rate_at_quality(log_rate, quality, np.array([33.0, 36.0, 39.0]))
    assert rung_error(log_rate, quality, exact) == pytest.approx(0, abs=1e-9)


def test_rungs_are_medians_of_their_cluster():
    echoes = synthetic(FAMILIES, jitter=0.0)
    found = fit_clusters(echoes, clusters=2)
    labels = found.assign(echoes)
    steps = rungs({1.0: echoes}, labels, found, targets=(36.0, 30.0))
    assert [rung.quality for rung in steps[0]] == [30.0, 36.0]
    for cluster, intercept in ((0, 52.0), (1, 46.0)):
        rung = steps[cluster][1]
        assert np.log2(rung.bpp) == pytest.approx((36 - intercept) / 6)
        assert rung.crf == pytest.approx(26)
        assert (rung.expected_quality, rung.low, rung.beyond) == (pytest.approx(36), pytest.approx(36), 0)
        step = rung.at(1921, 1080, 30)
        assert step["kbps"] == round(rung.bpp * 1921 * 1080 * 30 / 1000)
        assert (step["width"], step["height"]) == (1920, 1080)
    assert rungs({1.0: echoes}, labels, found, targets=(5.0,))[0][0].crf == 51  # the end of the scale
    assert rungs({1.0: echoes}, labels, found, targets=(5.0,))[0][0].beyond == 1
    empty = rungs({1.0: echoes}, np.zeros(24, int), found, targets=(36.0,))
    assert empty[1][0].bpp == pytest.approx(steps[1][1].bpp)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_folds_share_no_group_and_clusters_see_training_clips_only():
    rng = np.random.default_rng(2)
    echoes = synthetic(rng.uniform(40, 58, 60).tolist(), groups=[f"g{k % 10}" for k in range(60)])
    folds = make_folds(echoes, folds=2, clusters=3, seed=1)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(60))
    for fold in folds:
        groups = [{echoes.clips[row].group for row in rows} for rows in (fold.train, fold.test)]
        assert not groups[0] & groups[1]
        alone = fit_clusters(echoes.take(fold.train), clusters=3, seed=1)
        np.testing.assert_array_equal(fold.clusters.centers, alone.centers)
    with pytest.raises(InputError, match="g0 are in training and in test"):
        fold_of(echoes, np.arange(30), np.arange(30, 60))


def test_scores_of_features_that_know_and_that_do_not():
    rng = np.random.default_rng(3)
    intercepts = rng.choice([42.0, 50.0, 58.0], 120)
    echoes = synthetic(intercepts.tolist(), groups=[f"g{k % 20}" for k in range(120)])
    (fold, *_) = make_folds(echoes, clusters=3)
    log_rate = np.log2(echoes.measured["bpp"])
    perfect = score_features(log_rate, echoes, fold)
    noise = score_features(rng.normal(size=(120, 8)), echoes, fold)
    assert perfect.accuracy > 0.9
    assert perfect.spearman > 0.999
    assert perfect.nmi > 0.9 > 0.2 > noise.nmi
    assert perfect.ordinal < 0.15
    assert noise.accuracy < 0.6
    assert abs(noise.spearman) < 0.4
    assert perfect.rung_oracle <= perfect.rung_predicted < noise.rung_predicted
    assert perfect.rung_fixed == noise.rung_fixed > perfect.rung_oracle
    assert perfect.curve_mae < 0.05
    assert perfect.rung_curve < 0.1 < noise.rung_curve


def test_an_evaluation_has_a_row_for_everything():
    rng = np.random.default_rng(5)
    echoes, shift = over_resolutions()
    splits = tuple(dataclasses.replace(c, split="test" if k % 8 < 4 else "train") for k, c in enumerate(echoes.clips))
    echoes = dataclasses.replace(echoes, clips=splits)
    features = {"shift": shift, "noise": rng.normal(size=(24, 3))}
    for options, folds in (({}, 2), ({"test_split": "Testing"}, 1)):
        found = evaluate_features(features, echoes, clusters=2, **options)
        assert (found.clips, found.groups, found.folds) == (24, 6, folds)
        assert set(found.scores) == {"shift", "noise"}
        assert found.scores["shift"]["spearman"] > 0.9 > found.scores["noise"]["spearman"]
        judged = 12 if options else 24
        assert len(found.ladders) == 2 * 3
        assert all(row["videos"] == judged // 2 for row in found.ladders)
        hull = [row["BD-rate, %"] for row in found.ladders if row["ladder"] == "hull"]
        assert len(hull) == 2
        assert max(hull) <= 1e-9
        assert sum(row["clips"] for row in found.strata) == judged
        titles = list(found.tables())
        assert len(titles) == 4
        assert titles[0] == "Scores on held-out groups"
    for bad, text in (({"short": shift[:5]}, "other clips"), ({}, "nothing to evaluate")):
        with pytest.raises(InputError, match=text):
            evaluate_features(bad, echoes, clusters=2)
    with pytest.raises(InputError, match="one side"):
        evaluate_features(features, echoes, clusters=2, test_split="val")


def test_small_measures():
    assert purity(np.array([0, 0, 1, 1, 2]), np.array([5, 5, 5, 7, 7])) == pytest.approx(3 / 5)
    values = np.array([[0.0], [2.0], [10.0], [10.0]])
    assert spread_within(values, ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert spread_within(values, ["a"] * 4) == pytest.approx(values.var())


def test_the_predictor_is_scikit_learns():
    from contrastive_core.evaluation import fit_probe

    rng = np.random.default_rng(4)
    z, labels = rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 3, 40)
    log_rate = rng.normal(size=(40, 4))
    found = fit_predictor(z, labels, log_rate, 30 + log_rate)
    reference = fit_probe(z, labels, kind="logreg", strength=0.1)
    np.testing.assert_allclose(found.probabilities(z, 4)[:, :3], reference.predict_proba(z), atol=1e-6)
    assert (found.probabilities(z, 4)[:, 3] == 0).all()
    two = fit_predictor(z, np.minimum(labels, 1), log_rate, log_rate)
    reference = fit_probe(z, np.minimum(labels, 1), kind="logreg", strength=0.1)
    np.testing.assert_allclose(two.probabilities(z, 2), reference.predict_proba(z), atol=1e-6)
    rate, quality = found.curves(z)
    assert rate.shape == quality.shape == (40, 4)
    np.testing.assert_allclose(quality.mean(0), (30 + log_rate).mean(0), atol=1e-6)
    assert not found.is_new(z)
    assert found.is_new(z * 5)
    with pytest.raises(InputError, match="another model"):
        found.curves(z[:, :5])


# --- recommended ladders ----------------------------------------------------------------------------------------------


def over_resolutions(n=24):
    """Clips at two resolutions: the smaller one wins below some 34 dB. Rates shift with the clip."""
    shift = np.linspace(-2, 2, n)[:, None]
    crf = np.array(CRF)
    large = -crf / 6 + shift
    small = -crf / 8 - 1.85 + shift
    quality = [np.tile(52 - 0.7 * crf, (n, 1)), np.tile(42 - 0.4 * crf, (n, 1))]
    clips = tuple(ClipRecord(f"c{k}", f"v{k // 2}", f"g{k // 4}", width=1280, height=720, fps=25.0) for k in range(n))
    points = tuple(EncodeSetting(value=value, share=share) for share in (1.0, 0.5) for value in CRF)
    measured = {"bpp": 2.0 ** np.concatenate([large, small], 1), "psnr": np.concatenate(quality, 1)}
    return EchoSet(Path("synthetic"), clips, points, measured), shift


@pytest.fixture(scope="module")
def ladders():
    """Fitted on embeddings that tell the shift."""
    echoes, shift = over_resolutions()
    torch.manual_seed(0)
    encoder = EchoEncoder(EchoModel(ModelConfig()), view=(4, 32, 32), cut=ClipSettings())
    z = np.concatenate([shift, shift**2, np.ones_like(shift)], 1).astype(np.float32)
    encoder.embed_echoes = lambda part: z
    return fit_ladders(echoes, encoder, clusters=3), z


def of(z, **options):
    values = {"width": 1280, "height": 720, "fps": 25.0, **options}
    return VideoEmbedding("film", Path("a film.mp4"), "film", 0, z=z, **values)


def test_steps_lie_on_the_curves_they_are_shown_with(ladders):
    predictor, z = ladders
    plan = predictor.recommend(of(z[10:14]))
    assert plan.shares == (1.0, 0.5)
    assert len(plan.steps) == 5
    heights = {720: 0, 360: 1}
    for step in plan.steps:
        k = heights[step.height]
        order = np.argsort(plan.kbps[k])
        curve = np.interp(np.log2(step.kbps), np.log2(plan.kbps[k])[order], plan.quality[k][order])
        if not step.extrapolated:
            assert step.expected_quality == pytest.approx(curve, abs=0.15)
        assert step.low <= step.expected_quality <= step.high
        assert isinstance(step.kbps, int)
        assert f"-crf {step.crf:g} -maxrate {step.kbps}k" in step.command
        assert f"scale={step.width}:{step.height}" in step.command
        assert "'a film.mp4'" in step.command
    assert [s.kbps for s in plan.steps] == sorted(s.kbps for s in plan.steps)
    assert [s.height for s in plan.steps] == sorted(s.height for s in plan.steps)
    assert {s.height for s in plan.steps} == {360, 720}  # they span the resolutions


def test_rates_are_those_of_the_clips_and_of_whole_frames(ladders):
    predictor, z = ladders
    echoes, _ = over_resolutions()
    plan = predictor.recommend(of(z[10:14]))
    bpp = echoes.measured["bpp"][10:14].mean(0).reshape(2, 4)
    np.testing.assert_allclose(plan.kbps, bpp * 1280 * 720 * 25 / 1000, rtol=0.1)
    np.testing.assert_allclose(plan.quality, echoes.measured["psnr"][10].reshape(2, 4), atol=0.2)
    half = predictor.recommend(of(z[10:14], width=640, height=360))
    np.testing.assert_allclose(half.kbps, plan.kbps / 4)


def test_doubts_are_said(ladders):
    predictor, z = ladders
    sure = predictor.recommend(of(z[:4]))
    assert sure.confidence > 0.5
    assert sure.doubts == ()
    far = predictor.recommend(of(z[:4] + np.float32([0, 90, 0])))
    assert any("unlike those of training" in doubt for doubt in far.doubts)
    mixed = predictor.recommend(of(z[[0, 12, 23]]))
    assert mixed.confidence < 0.5
    assert "low confidence" in mixed.doubts[0]
    assert "low confidence" in mixed.text()
    assert "low confidence" in mixed.row()["doubts"]
    with pytest.raises(InputError, match="--qualities"):
        predictor.recommend(of(z[:4]), qualities=(33.0, float("nan")))


def test_ladder_predictors_are_saved_whole(ladders, tmp_path):
    predictor, z = ladders
    predictor.save(tmp_path)
    again = LadderPredictor.load(tmp_path, device="cpu")
    first, second = (each.recommend(of(z[5:9])) for each in (predictor, again))
    assert first.steps == second.steps
    np.testing.assert_array_equal(first.kbps, second.kbps)
    assert again.encoder.fingerprint() == predictor.encoder.fingerprint()
    alone = fit_ladders(over_resolutions()[0], clusters=3)
    with pytest.raises(InputError, match="--run"):
        alone.recommend(of(z[:4]))


def test_cluster_ladders_over_resolutions_never_go_back_up():
    echoes, _ = over_resolutions()
    part = echoes.at()
    fitted = fit_clusters(part, clusters=3)
    steps = cluster_rungs(echoes, fitted.assign(part), fitted)
    assert len(steps) == 3
    for each in steps:
        assert [rung.share for rung in each] == sorted(rung.share for rung in each)
    assert {rung.share for each in steps for rung in each} == {1.0, 0.5}


def test_the_nearest_by_complexity():
    encoder = EchoEncoder(EchoModel(ModelConfig()), view=(4, 32, 32), cut=ClipSettings())
    z = np.array([[0.0, 0], [2, 0], [10, 10], [10, 12]], dtype=np.float32)
    index = EmbeddingIndex(z, ["a0", "a1", "b0", "b1"], ["g"] * 4, ["a", "a", "b", "b"], encoder.fingerprint())
    assert index.per_video().z.tolist() == [[1, 0], [10, 11]]
    rows = index.nearest(np.array([9.0, 9.0]), encoder, top=5)
    assert [row["video"] for row in rows] == ["b", "a"]
    assert rows[0]["similarity"] == pytest.approx(1, abs=0.01)
    with pytest.raises(InputError, match="another encoder"):
        dataclasses.replace(index, encoder="other").nearest(z[0], encoder)


# --- baselines --------------------------------------------------------------------------------------------------------


def test_spatial_and_temporal_information_by_hand():
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 4, (3, 16, 1))
    assert baselines.spatial_information(ramp) == pytest.approx([0, 0, 0])  # one gradient everywhere
    edge = np.zeros((2, 8, 8), dtype=np.uint8)
    edge[:, :, 4:] = 100
    inner = np.zeros((6, 6))
    inner[:, 2:4] = 400  # Sobel of a step of 100, on both sides of it
    assert baselines.spatial_information(edge) == pytest.approx([inner.std()] * 2)
    moved = np.stack([edge[0], np.roll(edge[0], 1, axis=1)])
    assert baselines.temporal_information(moved) == pytest.approx([(moved[1].astype(float) - moved[0]).std()])
    features = baselines.siti_features(np.stack([ramp, np.full_like(ramp, 7)]))
    assert features.shape == (2, 6)
    assert features[1, 0] == pytest.approx(np.log(0.1))


def test_backbones_by_name_and_by_file(tmp_path):
    from safetensors.torch import save_file

    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 48, 32), dtype=np.uint8)
    with pytest.warns(ContrastiveWarning, match="random weights"):
        random = image_backbone("timm:resnet10t", note_random=True)
    save_file(random.network.state_dict(), tmp_path / "weights.safetensors")
    loaded = image_backbone("timm:resnet10t", weights=str(tmp_path / "weights.safetensors"))
    a, b = (baselines.backbone_features(each, clips, side=64) for each in (random, loaded))
    assert a.shape == (2, 512)
    np.testing.assert_array_equal(a, b)
    assert not loaded.network.training


def test_transformers_from_a_local_folder(tmp_path):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    backbone = image_backbone(f"transformers:{tmp_path / 'vit'}")
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 48, 32), dtype=np.uint8)
    assert baselines.backbone_features(backbone, clips, side=32).shape == (2, 16)


def test_one_trial_encode_is_the_middle_rate():
    echoes = synthetic(FAMILIES)
    np.testing.assert_allclose(baselines.trial_features(echoes)[:, 0], np.log2(echoes.measured["bpp"][:, 1]))
    assert dataclasses.replace(echoes).vectors().shape == (24, 8)
