"""The verbs of ``cl-foundations cfa`` from end to end, and what they refuse."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from cl_foundations.cfa.interpret import factor_metrics
from cl_foundations.cfa.model import FactorModel, ModelConfig, build_backbone, load_model
from cl_foundations.cfa.posterior import NormalPosterior, PointPosterior, WeibullPosterior
from cl_foundations.cli import app
from contrastive_core.errors import ContrastiveWarning, InputError
from PIL import Image
from safetensors.torch import save_file

TINY = ["--backbone", "tiny", "--image-size", "16", "--hidden", "16", "--factors", "8", "--no-progress"]
SHORT = ["--steps", "3", "--batch-size", "16", "--log-every", "1", "--threads", "1"]


def run(*words):
    return app.run(["cfa", *map(str, words)])


def refused(capsys, *words):
    capsys.readouterr()
    assert run(*words) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cfa")
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("dark", "bright")):
            for index in range(count):
                file = folder / "data" / part / name / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(120 * label, 120 * label + 100, (16, 16, 3), np.uint8)).save(file)
    (folder / "flat").mkdir()
    for index in range(9):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / "flat" / f"{index}.png")
    for method in ("simclr", "ncl", "cfa", "cnfa"):
        assert run("train", folder / "data", folder / method, "--method", method, *TINY, *SHORT) == 0
    spectral = ["--method", "cfa", "--likelihood", "spectral_exact"]
    assert run("train", folder / "data", folder / "spectral", *spectral, *TINY, *SHORT) == 0
    return folder


@pytest.fixture
def unreported(monkeypatch):
    """Trainings without their report, for tests of something else; most of such a short run would be its pictures."""
    monkeypatch.setattr("cl_foundations.cfa.commands.training_report", lambda *_, **__: {})


def test_training_leaves_a_whole_run_folder(place):
    for method in ("simclr", "ncl", "cfa", "cnfa", "spectral"):
        names = {entry.name for entry in (place / method).iterdir()}
        assert {"config.yaml", "metrics.csv", "checkpoints", "tensorboard", "model.safetensors", "model.json"} <= names
        assert {"results.json", "report.html", "environment.json"} <= names
    page = (place / "cnfa" / "report.html").read_text()
    for title in ("Loss", "KL from the prior", "Factors", "in- and out-of-distribution: entropy", "Reliability"):
        assert title in page
    results = json.loads((place / "cnfa" / "results.json").read_text())
    assert set(results["auroc_entropy"]) >= {"uniform noise", "blur, severity 5"}
    assert 0 <= results["linear_accuracy"] <= 1
    rows = list(csv.DictReader((place / "cnfa" / "metrics.csv").open()))
    assert {"loss", "likelihood", "kl", "active", "dead", "entropy", "shape_at_bound"} <= set(rows[0])


@pytest.mark.parametrize("likelihood", ["infonce", "spectral_exact", "spectral_mc"])
@pytest.mark.parametrize("method", ["simclr", "ncl", "cfa", "cnfa"])
def test_every_method_trains_with_every_likelihood(place, tmp_path, unreported, method, likelihood):
    folder = place / method
    if likelihood != "infonce":
        folder = tmp_path / "run"
        words = ["--method", method, "--likelihood", likelihood, *TINY, "--steps", 2, "--batch-size", 8]
        assert run("train", place / "flat", folder, *words, "--threads", 1) == 0
    kind = {"cfa": NormalPosterior, "cnfa": WeibullPosterior}.get(method, PointPosterior)
    model = load_model(folder)
    assert (model.config.method, model.config.likelihood) == (method, likelihood)
    posterior = model(torch.rand(2, 3, 16, 16))
    assert isinstance(posterior, kind)
    assert method not in ("ncl", "cnfa") or (posterior.mean() >= 0).all()


def test_training_learns(place, tmp_path, unreported):
    words = ["--method", "cfa", *TINY, "--steps", 60, "--batch-size", 24, "--log-every", 1, "--threads", 1]
    gentle = ["--views.jitter-share", "0.0", "--views.gray", "0.0"]  # here brightness is the class
    assert run("train", place / "data", tmp_path / "run", *words, *gentle) == 0
    losses = [float(row["likelihood"]) for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1


def test_a_run_repeats_and_resumes_to_the_same_weights(place, tmp_path, unreported):
    words = ["--method", "cnfa", *TINY, "--batch-size", 8, "--threads", 1, "--checkpoint-every", 2]
    for name in ("a", "b"):
        assert run("train", place / "data", tmp_path / name, *words, "--steps", 4) == 0
    first = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == first
    assert run("train", place / "data", tmp_path / "a", *words, "--steps", 4, "--resume") == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == first


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(place, tmp_path, monkeypatch):
    from cl_foundations.cfa.system import FactorSystem

    words = ["--method", "cfa", *TINY, "--batch-size", 8, "--threads", 1, "--checkpoint-every", 2, "--steps", 6]
    assert run("train", place / "data", tmp_path / "whole", *words) == 0
    step = FactorSystem.training_step

    def stop(self, batch, index):
        if self.global_step == 4:
            raise SystemExit(1)
        return step(self, batch, index)

    monkeypatch.setattr(FactorSystem, "training_step", stop)
    with pytest.raises(SystemExit):
        run("train", place / "data", tmp_path / "cut", *words)
    assert not (tmp_path / "cut" / "model.json").exists()
    monkeypatch.undo()
    assert run("train", place / "data", tmp_path / "cut", *words, "--resume") == 0
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "ncl", "--activation", "relu"],
        ["--method", "cnfa", "--activation", "rep_relu", "--prior-shape", "0.3"],
        ["--method", "simclr", "--supervised"],
        ["--method", "cfa", "--samples", "3", "--optim.name", "lars"],
        ["--method", "cnfa", "--shape-min", "0.5", "--precision", "bf16-mixed"],
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
        ["predict", place / "spectral", place / "flat", tmp_path / "p.csv", "--labelled", place / "data"],
        ["evaluate", place / "spectral", place / "data", "--protocols", "uncertainty"],
    ):
        assert run(*words) == 0
        assert "say nothing about single images" in capsys.readouterr().err
    assert "say nothing about single images" in (place / "spectral" / "report.html").read_text()


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
    words = ["predict", place / "cnfa", place / "data", tmp_path / "p.csv", "--labelled", place / "data"]
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
    assert "--overwrite" in refused(capsys, "train", data, place / "cfa", *TINY, *SHORT)
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
        capsys, "predict", place / "cfa", data, tmp_path / "p.csv", "--labelled", place / "flat"
    )
    assert ".npz" in refused(capsys, "embed", place / "cfa", data, tmp_path / "e.csv")
    assert "missing" in refused(capsys, "embed", tmp_path / "no", data, tmp_path / "e.npz")
    for words in (
        ["embed", place / "cfa", data, tmp_path / "e.npz"],
        ["evaluate", place / "cfa", data],
        ["ood", place / "cfa", data, place / "flat"],
        ["predict", place / "cfa", data, tmp_path / "p.csv", "--labelled", data],
    ):
        assert "--seed" in refused(capsys, *words, "--seed", "-1")
    assert not out.exists()
    assert not (tmp_path / "p.csv").exists()
    assert not (tmp_path / "e.npz").exists()
    (place / "cfa" / "note.txt").write_text("mine")
    assert "--overwrite" in refused(capsys, "ood", place / "cfa", data, place / "flat", "--out", place / "cfa")
    (place / "cfa" / "note.txt").unlink()


def test_one_class_and_one_image(place, tmp_path, capsys):
    for index in range(4):
        file = tmp_path / "one" / "only" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (10 * index, 0, 0)).save(file)
    assert run("train", tmp_path / "one", tmp_path / "run", *TINY, "--steps", 2, "--threads", 1) == 0
    assert "no probe was fitted" in (tmp_path / "run" / "report.html").read_text()
    assert "two classes" in refused(capsys, "evaluate", tmp_path / "run", tmp_path / "one")
    for file in sorted((tmp_path / "one").rglob("*.png"))[1:]:
        file.unlink()
    assert "at least two images" in refused(capsys, "train", tmp_path / "one", tmp_path / "run2", *TINY)
    assert not (tmp_path / "run2").exists()


def test_equal_images_train_and_stay_finite(tmp_path, unreported):
    np.savez(tmp_path / "same.npz", x=np.full((8, 16, 16, 3), 77, np.uint8), y=np.arange(8) % 2)
    words = ["--method", "cnfa", *TINY, "--steps", 2, "--batch-size", 8, "--threads", 1, "--log-every", 1]
    still = ["--views.jitter-share", "0.0", "--views.gray", "0.0", "--views.blur", "0.0"]
    assert run("train", tmp_path / "same.npz", tmp_path / "run", *words, *still) == 0
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())]
    assert np.isfinite(losses).all()


def test_more_factors_than_images_is_said():
    with pytest.warns(ContrastiveWarning, match="2 images for 4 factors"):
        found = factor_metrics(np.eye(4, dtype=np.float32)[:2], np.array([0, 1]))
    assert found.effective_rank == pytest.approx(2, abs=1e-3)
    assert found.purity == 0.5  # no more than the two images there are


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("timm:resnet10t", 512),
        ("torchvision:mobilenet_v3_small", 1024),
        ("torchvision:squeezenet1_1", 512),  # no linear layer
        ("torchvision:googlenet", 1024),  # auxiliary classifiers
        ("resnet18-cifar", 512),
    ],
)
def test_backbones_of_both_libraries(name, width):
    model = FactorModel(ModelConfig(method="cfa", backbone=name, image_size=32, hidden=8, factors=4))
    assert model.width == width
    assert model.train()(torch.rand(2, 3, 32, 32)).mean().shape == (2, 4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "timm:mixer_s32_224"])
def test_a_network_of_patches_takes_the_image_size_it_is_given(name):
    model = FactorModel(ModelConfig(method="cfa", backbone=name, image_size=32, hidden=8, factors=4))
    assert model.eval()(torch.rand(1, 3, 32, 32)).mean().shape == (1, 4)


def test_weights_come_from_a_local_file(tmp_path):
    torch.manual_seed(0)
    donor = build_backbone("tiny", 32)
    state = donor.state_dict() | {"classifier.weight": torch.zeros(3, 3)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        model = build_backbone("tiny", 32, weights=str(tmp_path / name))
        assert torch.equal(model.layers[0].weight, donor.layers[0].weight)
    with pytest.raises(InputError, match="another backbone"):
        build_backbone("resnet18-cifar", 32, weights=str(tmp_path / "w.pt"))
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read"):
        build_backbone("tiny", 32, weights=str(tmp_path / "bad.pt"))
    with pytest.raises(InputError, match="no published weights"):
        build_backbone("tiny", 32, weights="hub")


def test_images_smaller_than_the_network_allows_are_refused():
    with pytest.raises(InputError, match="does not take images of this size"):
        FactorModel(ModelConfig(method="cfa", backbone="torchvision:inception_v3", image_size=16, factors=4))
