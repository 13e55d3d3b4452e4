"""The verbs of ``cl-foundations cfa`` from end to end, and what they refuse."""

import csv
import json
import shutil

import numpy as np
import pytest
from cl_foundations.cfa.factors import factor_metrics
from contrastive_core.errors import ContrastiveWarning
from contrastive_core.report import Report
from contrastive_core.training import RunFolder
from PIL import Image

from tests.foundations.conftest import SHORT, TINY, run


def refused(capsys, *words):
    capsys.readouterr()
    assert run(*words) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    return text


@pytest.fixture
def unreported(monkeypatch):
    """Trainings without their report, for tests of something else; most of such a short run would be its pictures."""
    monkeypatch.setattr("cl_foundations.cfa.commands.training_report", lambda *_: Report("none"))


def test_a_run_says_what_was_found(place):
    run_folder = RunFolder.open(place / "cnfa")
    page = run_folder.report.read_text()
    for title in ("Loss", "KL from the prior", "Factors", "in- and out-of-distribution: entropy", "Reliability"):
        assert title in page
    results = run_folder.results()
    assert set(results["auroc_entropy"]) >= {"uniform noise", "blur, severity 5"}
    assert 0 <= results["linear_accuracy"] <= 1
    assert results["evaluated_on"] == "test images"
    assert {"loss", "likelihood", "kl", "active", "dead", "entropy", "shape_at_bound"} <= set(run_folder.metrics()[0])


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "simclr", "--supervised", "--optim.name", "lars"],
        ["--method", "cnfa", "--shape-min", "0.5", "--precision", "bf16-mixed", "--workers", "1"],
    ],
)
def test_options_work(place, tmp_path, unreported, options):
    assert run("train", place / "data", tmp_path / "run", *options, *TINY, *SHORT) == 0


def test_embed(place, tmp_path):
    assert run("embed", place / "cfa", place / "data", tmp_path / "e.npz", "--split", "test") == 0
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        assert file["feats"].shape == (12, 64)
        assert file["mean"].shape == file["var"].shape == (12, 8)
        assert (file["var"] > 0).all()
        assert {"entropy", "cv", "var_dir", "kl", "norm"} <= set(file)
        assert file["classes"].tolist() == ["bright", "dark"]
        assert file["paths"][0] == "test/bright/0.png"
        expected = 0.5 * np.log(2 * np.pi * np.e * file["var"]).sum(1)
        np.testing.assert_allclose(file["entropy"], expected, rtol=1e-4)
    assert run("embed", place / "simclr", place / "flat", tmp_path / "s.npz") == 0
    with np.load(tmp_path / "s.npz") as file:
        assert "entropy" not in file
        assert "labels" not in file


def test_evaluate(place, tmp_path, capsys):
    capsys.readouterr()
    words = ["evaluate", place / "cnfa", place / "data", "--ood", place / "flat", "--json", "--out", tmp_path / "out"]
    assert run(*words, "--corruptions") == 0
    results = json.loads(capsys.readouterr().out)
    for where in ("features", "mean"):
        assert 0 <= results[where]["linear"] <= 1
        assert {"knn", "map", "precision_at_10", "linear_ece", "linear_ece_scaled"} <= set(results[where])
    assert results["features"]["linear"] > 0.7  # dark and bright are easily told apart
    assert [row["class"] for row in results["classes"]] == ["bright", "dark"]
    assert sum(row["images"] for row in results["classes"]) == 12
    assert set(results["uncertainty"]) == {"entropy", "cv", "var_dir", "kl", "norm", "probe confidence"}
    assert {row["score"] for row in results["ood"]} == {"entropy", "cv", "var_dir", "kl", "norm"}
    assert [row["factors"] for row in results["selection"]] == [4, 8]
    clean, *corrupted, mean = results["robustness"]
    assert clean["linear on features"] == results["features"]["linear"]
    assert clean["knn on mean"] == results["mean"]["knn"]
    assert {row["corruption"] for row in corrupted} == {"noise", "blur", "contrast", "pixelate", "jpeg"}
    assert len(corrupted) == 25
    assert mean["knn on mean"] == pytest.approx(np.mean([row["knn on mean"] for row in corrupted]))
    # All images lie between two greys: drawing them to their own grey leaves dark and bright apart.
    assert corrupted[10]["corruption"] == "contrast"
    assert corrupted[10]["linear on features"] > 0.7
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["test_images"] == 12
    assert "Reliability" in (tmp_path / "out" / "report.html").read_text()
    assert run("evaluate", place / "simclr", place / "data", "--protocols", "knn") == 0
    assert "knn" in capsys.readouterr().out


def test_factors(place, tmp_path):
    words = ["factors", place / "cnfa", place / "data", tmp_path / "out", "--between", "dark", "bright"]
    assert run(*words, "--top", 4, "--shown", 5) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "factors.csv").open()))
    assert sorted(int(row["rank"]) for row in rows) == list(range(1, 9))
    assert all(row["class"] in ("dark", "bright") and 0.5 <= float(row["purity"]) <= 1 for row in rows)
    separation = [float(row["auroc"]) for row in csv.DictReader((tmp_path / "out" / "separation.csv").open())]
    assert [abs(value - 0.5) for value in separation] == sorted(
        (abs(value - 0.5) for value in separation), reverse=True
    )
    assert Image.open(tmp_path / "out" / "factors.png").size[0] > 100
    assert "dark or bright" in (tmp_path / "out" / "report.html").read_text()
    assert run("factors", place / "cfa", place / "flat", tmp_path / "flat") == 0
    assert "class" not in next(csv.reader((tmp_path / "flat" / "factors.csv").open()))


def test_ood(place, tmp_path, capsys):
    capsys.readouterr()
    words = ["ood", place / "cfa", place / "data", place / "flat", "--corruptions", "--json", "--out", tmp_path / "out"]
    assert run(*words) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["images"] == 12  # the test part
    assert len(results["corruptions"]) == 5 * 5 * 5
    assert {row["corruption"] for row in results["spearman_with_severity"]} == {
        "noise",
        "blur",
        "contrast",
        "pixelate",
        "jpeg",
    }
    for row in results["ood"]:
        assert 0 <= row["auroc"] <= 1
        assert 0 <= row["fpr95"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "entropy" in page
    assert "var_dir" in page
    assert run("ood", place / "simclr", place / "data", place / "flat") == 0
    assert "norm" in capsys.readouterr().out


def test_uncertainty_of_spectral_gaussian_models_is_refused(place, tmp_path, capsys):
    words = ["ood", place / "spectral", place / "data", place / "flat"]
    assert "the same for every image" in refused(capsys, *words)
    assert run(*words, "--force") == 0
    for words in (
        ["embed", place / "spectral", place / "flat", tmp_path / "e.npz"],
        ["predict", place / "spectral", place / "flat", tmp_path / "p.csv", "--labels", place / "data"],
        ["evaluate", place / "spectral", place / "data", "--protocols", "uncertainty"],
    ):
        assert run(*words) == 0
        assert "say nothing about single images" in capsys.readouterr().err


def test_sets_of_one_name_are_kept_apart(place, tmp_path, capsys):
    for name in ("a", "b"):
        shutil.copytree(place / "flat", tmp_path / name / "set")
    capsys.readouterr()
    assert run("ood", place / "simclr", place / "data", tmp_path / "a" / "set", tmp_path / "b" / "set", "--json") == 0
    names = [row["set"] for row in json.loads(capsys.readouterr().out)["ood"]]
    assert names == [str(tmp_path / "a" / "set"), str(tmp_path / "b" / "set")]


def test_a_broken_test_image_is_found_before_training(place, tmp_path, capsys):
    shutil.copytree(place / "data", tmp_path / "data")
    (tmp_path / "data" / "test" / "dark" / "0.png").write_bytes(b"no image")
    text = refused(capsys, "train", tmp_path / "data", tmp_path / "run", *TINY, *SHORT)
    assert "no image format that is known" in text
    assert str(tmp_path / "data" / "test" / "dark" / "0.png") in text
    assert not (tmp_path / "run").exists()


def test_predict(place, tmp_path):
    words = ["predict", place / "cnfa", place / "data", tmp_path / "p.csv", "--labels", place / "data"]
    assert run(*words, "--split", "test") == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 12
    assert np.mean([row["class"] in row["path"] for row in rows]) > 0.7
    assert all(0.5 <= float(row["probability"]) <= 1 and float(row["cv"]) > 0 for row in rows)


def test_info_and_sample_data(tmp_path, capsys):
    assert run("info") == 0
    assert "2407.21740" in capsys.readouterr().out
    assert run("sample-data", tmp_path) == 0
    assert "--overwrite" in refused(capsys, "sample-data", tmp_path)


def test_bad_input_is_refused_and_leaves_nothing(place, tmp_path, capsys):
    data, out = place / "data", tmp_path / "out"
    train = ["train", data, out, *TINY, *SHORT]
    assert "at least two images" in refused(capsys, *train[:3], "--batch-size", 1)
    assert "--supervised" in refused(capsys, *train, "--supervised", "--likelihood", "spectral_mc")
    assert "needs labels" in refused(capsys, "train", place / "flat", out, *TINY, *SHORT, "--supervised")
    assert "does not go with simclr" in refused(capsys, *train, "--method", "simclr", "--activation", "relu")
    assert "unknown backbone" in refused(capsys, "train", data, out, "--backbone", "resnot18")
    assert "--eta" in refused(capsys, *train, "--eta", "-1")
    assert "--temperature" in refused(capsys, *train, "--temperature", "0")
    assert "--shape-min" in refused(capsys, *train, "--shape-min", "0.1")
    assert "--views.crop-min" in refused(capsys, *train, "--views.crop-min", "0")
    assert "missing" in refused(capsys, "train", tmp_path / "nothing", out)
    assert not out.exists()
    assert "needs labels" in refused(capsys, "evaluate", place / "cfa", place / "flat")
    assert "nothing to compare" in refused(capsys, "ood", place / "cfa", data)
    assert "no such class" in refused(capsys, "factors", place / "cfa", data, out, "--between", "dark", "red")
    assert "twice" in refused(capsys, "factors", place / "cfa", data, out, "--between", "dark", "dark")
    assert "needs labels" in refused(
        capsys, "factors", place / "cfa", place / "flat", out, "--between", "dark", "bright"
    )
    assert "needs labels" in refused(
        capsys, "predict", place / "cfa", data, tmp_path / "p.csv", "--labels", place / "flat"
    )
    assert ".npz" in refused(capsys, "embed", place / "cfa", data, tmp_path / "e.csv")
    assert "missing" in refused(capsys, "embed", tmp_path / "no", data, tmp_path / "e.npz")
    for words in (
        ["embed", place / "cfa", data, tmp_path / "e.npz"],
        ["evaluate", place / "cfa", data],
        ["ood", place / "cfa", data, place / "flat"],
        ["predict", place / "cfa", data, tmp_path / "p.csv", "--labels", data],
    ):
        for option, value in (("--seed", "-1"), ("--draws", "0"), ("--workers", "-1"), ("--device", "tpu9")):
            assert option in refused(capsys, *words, option, value)
    for option, value in (("--seed", "nan"), ("--optim.lr", "nan"), ("--optim.lr", "0"), ("--optim.warmup", "1")):
        assert option in refused(capsys, *train, option, value)
    assert "--split-seed" in refused(capsys, "evaluate", place / "cfa", data, "--split-seed", "-1")
    assert "--split" in refused(capsys, "embed", place / "cfa", data, tmp_path / "e.npz", "--split", "banana")
    assert not out.exists()
    assert not (tmp_path / "p.csv").exists()
    assert not (tmp_path / "e.npz").exists()
    assert "--overwrite" in refused(capsys, "ood", place / "cfa", data, place / "flat", "--out", place / "cfa")


def test_one_class_and_one_image(place, tmp_path, capsys):
    for index in range(4):
        file = tmp_path / "one" / "only" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (10 * index, 0, 0)).save(file)
    assert run("train", tmp_path / "one", tmp_path / "run", *TINY, "--steps", 2) == 0
    assert "no probe was fitted" in (tmp_path / "run" / "report.html").read_text()
    assert "two classes" in refused(capsys, "evaluate", tmp_path / "run", tmp_path / "one")
    for file in sorted((tmp_path / "one").rglob("*.png"))[1:]:
        file.unlink()
    assert "at least two images" in refused(capsys, "train", tmp_path / "one", tmp_path / "run2", *TINY)
    assert not (tmp_path / "run2").exists()


def test_equal_images_train_and_stay_finite(tmp_path, unreported):
    np.savez(tmp_path / "same.npz", x=np.full((8, 16, 16, 3), 77, np.uint8), y=np.arange(8) % 2)
    words = ["--method", "cnfa", *TINY, "--steps", 2, "--batch-size", 8, "--log-every", 1]
    still = ["--views.jitter-share", "0.0", "--views.gray", "0.0", "--views.blur", "0.0"]
    assert run("train", tmp_path / "same.npz", tmp_path / "run", *words, *still) == 0
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())]
    assert np.isfinite(losses).all()


def test_more_factors_than_images_is_said():
    with pytest.warns(ContrastiveWarning, match="2 images for 4 factors"):
        found = factor_metrics(np.eye(4, dtype=np.float32)[:2], np.array([0, 1]))
    assert found.effective_rank == pytest.approx(2, abs=1e-3)
    assert found.purity == 0.5  # no more than the two images there are
