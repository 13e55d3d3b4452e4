"""The verbs of ``cl-signals mantis`` from end to end, and what they refuse."""

import csv
import json

import numpy as np
import pytest
import torch
from cl_signals.cli import app
from cl_signals.mantis import SeriesClassifier
from cl_signals.series import read_split, to_batch

TINY = ["--preset", "tiny", "--steps", "3", "--batch-size", "16", "--no-progress"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("mantis")
    assert app.run(["mantis", "sample-data", str(folder / "data")]) == 0
    assert app.run(["mantis", "synth", str(folder / "c.arrow"), "--series", "40", "--workers", "1"]) == 0
    assert app.run(["mantis", "pretrain", str(folder / "c.arrow"), str(folder / "enc"), *TINY]) == 0
    return folder


def run(*words):
    return app.run(["mantis", *map(str, words)])


def refused(capsys, *words):
    capsys.readouterr()
    assert run(*words) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    return text


def test_embed_and_evaluate(place, capsys, monkeypatch):
    data = place / "data" / "GunPoint"
    assert run("embed", place / "enc", data / "GunPoint_TEST.ts", place / "z.npy", "--sizes", 256, "--sizes", 512) == 0
    z = np.load(place / "z.npy")
    assert z.shape == (150, 512)
    monkeypatch.setattr("cl_signals.mantis.inference._PART", 40)
    words = ["embed", place / "enc", data / "GunPoint_TEST.ts", place / "z.npy", "--sizes", 256, "--sizes", 512]
    assert run(*words, "--workers", 2, "--overwrite") == 0
    np.testing.assert_allclose(np.load(place / "z.npy"), z, atol=1e-5)
    capsys.readouterr()
    words = ["evaluate", place / "enc", data, "--probes", "1nn", "--json", "--out", place / "e.csv", "--layer", 1]
    assert run(*words) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["accuracy"] > 0.7
    assert "GunPoint" in (place / "e.csv").read_text()
    assert "--overwrite" in refused(capsys, *words)


@pytest.mark.parametrize(
    "options",
    [
        ["--mode", "head", "--calibrate", "0.3"],
        ["--mode", "full"],
        ["--mode", "adapter-head", "--adapter", "linear:2"],
        ["--mode", "head", "--adapter", "pca:2"],
        ["--mode", "head", "--adapter", "variance:2"],
    ],
)
def test_train_predict_and_evaluate(place, tmp_path, options, capsys):
    data = place / "data" / "BasicMotions"
    out = tmp_path / "clf"
    words = ["train", data, out, "--encoder", place / "enc", "--epochs", 3, "--batch-size", 16, "--no-progress"]
    assert run(*words, *options) == 0
    assert run("predict", out, data / "BasicMotions_TEST.ts", tmp_path / "p.csv") == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 40
    for row in rows:
        probabilities = {name[5:]: float(value) for name, value in row.items() if name.startswith("prob_")}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert row["label"] == max(probabilities, key=probabilities.get)
    series = read_split(data)[1]
    classifier = SeriesClassifier.load(out)
    assert np.array_equal(
        classifier.predict_proba(to_batch(series)), SeriesClassifier.load(out).predict_proba(to_batch(series))
    )
    capsys.readouterr()
    assert run("evaluate", out, data, "--json") == 0
    *by_class, whole = json.loads(capsys.readouterr().out)
    right = [row["label"] == label for row, label in zip(rows, series.y, strict=True)]
    assert whole["accuracy"] == pytest.approx(np.mean(right))
    assert [row["series"] for row in by_class] == [10] * 4
    results = json.loads((out / "results.json").read_text())
    assert np.trace(results["confusion"]["counts"]) == sum(right)


def test_the_head_does_not_lose_to_the_probe(place, tmp_path, capsys):
    """The head of a frozen encoder is the probe of `evaluate`."""
    data = place / "data" / "ItalyPowerDemand"
    assert run("train", data, tmp_path / "c", "--encoder", place / "enc") == 0
    capsys.readouterr()
    assert run("evaluate", place / "enc", data, "--probes", "logreg", "--json") == 0
    (probe,) = json.loads(capsys.readouterr().out)
    accuracy = json.loads((tmp_path / "c" / "results.json").read_text())["accuracy"]
    assert accuracy == pytest.approx(probe["accuracy"], abs=0.003)
    assert accuracy > 0.8


def test_bad_input_is_refused_and_leaves_nothing(place, tmp_path, capsys):
    data, out = place / "data" / "GunPoint", tmp_path / "out"
    one = tmp_path / "one.ts"
    one.write_text("@classLabel true a b\n@data\n1,2,3:a\n1,2,4:a\n")
    head = ["--encoder", place / "enc", "--no-progress"]
    assert "two classes" in refused(capsys, "train", one, out, *head)
    assert "starts from an encoder" in refused(capsys, "train", data, out)
    assert "--adapter" in refused(capsys, "train", data, out, *head, "--adapter", "pca:9")
    assert "missing" in refused(capsys, "train", tmp_path / "nothing", out, *head)
    assert "--optim.lr" in refused(capsys, "pretrain", place / "c.arrow", out, "--optim.lr", "-1")
    assert "missing" in refused(capsys, "pretrain", tmp_path / "c.arrow", out)
    assert "missing" in refused(capsys, "embed", tmp_path / "no", data / "GunPoint_TEST.ts", tmp_path / "z.npy")
    assert "no mantis-classifier" in refused(
        capsys, "predict", place / "enc", data / "GunPoint_TEST.ts", tmp_path / "p.csv"
    )
    assert "--layer" in refused(capsys, "evaluate", place / "enc", data, "--layer", 7)
    assert "refused" in refused(capsys, "import-weights", _pickle(tmp_path), tmp_path / "w")
    assert not (tmp_path / "p.csv").exists()
    assert not (tmp_path / "z.npy").exists()
    assert not out.exists()


def test_other_channels_at_prediction_are_refused(place, tmp_path, capsys):
    data = place / "data"
    words = ["train", data / "GunPoint", tmp_path / "c", "--encoder", place / "enc", "--no-progress"]
    assert run(*words) == 0
    text = refused(
        capsys, "predict", tmp_path / "c", data / "BasicMotions" / "BasicMotions_TEST.ts", tmp_path / "p.csv"
    )
    assert "expected 1 channel" in text
    weights = tmp_path / "c" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    assert "corrupt" in refused(capsys, "predict", tmp_path / "c", data, tmp_path / "p.csv")


def test_import_weights_makes_a_usable_encoder(place, tmp_path):
    from mantis.architecture import MantisV2

    torch.save(MantisV2(device="cpu", pre_training=True).state_dict(), tmp_path / "w.pt")
    assert run("import-weights", tmp_path / "w.pt", tmp_path / "w") == 0
    assert run("embed", tmp_path / "w", place / "data" / "GunPoint" / "GunPoint_TRAIN.ts", tmp_path / "z.npy") == 0
    assert np.load(tmp_path / "z.npy").shape == (50, 512)


def _pickle(folder):
    import pickle

    path = folder / "foreign.pt"
    path.write_bytes(pickle.dumps(print))
    return path
