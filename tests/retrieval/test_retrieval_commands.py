"""The verbs of both methods, from pictures to hits, and everything they refuse."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from cl_retrieval.apkh import APKHEncoder
from cl_retrieval.cli import app
from cl_retrieval.gnah import GNAHConfig, GNAHEncoder, Settings, train_gnah
from cl_retrieval.hashing.split import Split
from cl_retrieval.pairs.arrays import read_arrays
from cl_retrieval.pairs.features import read_features, write_features
from contrastive_core.files import read_json
from contrastive_core.training import RunFolder, TrainSettings

QUIET = pytest.mark.filterwarnings("ignore:a median .* excites")
pytestmark = QUIET


def small(**changes):
    """Options of a run of a second, with changes."""
    options = {"epochs": 4, "hidden": 32, "bits": 16, "pairs": 20, "log-every": 1, "accelerator": "cpu", **changes}
    return ["--no-progress", *(word for name, value in options.items() for word in (f"--{name}", value))]


def run(*words):
    return app.run([str(word) for word in words])


@pytest.fixture(scope="session")
def home(tmp_path_factory, tiny_clip):
    """Sixty of OpenMoji's drawings with names, their features by a tiny CLIP, and a run of each method over them."""
    from cl_retrieval.pairs.emoji import openmoji
    from cl_retrieval.pairs.samples import write_pictures

    home = tmp_path_factory.mktemp("retrieval")
    by_class = {}
    for each in openmoji():
        by_class.setdefault(each.label, []).append(each)
    chosen = [each for label in sorted(by_class)[:4] for each in by_class[label][:15]]
    write_pictures(chosen, home / "emoji")
    encoder = f"local-dir:{tiny_clip}"
    assert run("gnah", "prepare", home / "emoji", home / "emoji.npz", "--encoder", encoder) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        assert run("gnah", "train", home / "emoji.npz", home / "gnah", *small()) == 0
        assert run("apkh", "train", home / "emoji", home / "apkh", "--encoder", encoder, *small()) == 0
        assert run("gnah", "index", "build", home / "gnah", home / "emoji.npz", home / "index") == 0
    return home


@pytest.fixture
def cache(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return home


def refused(capsys, *words):
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error


# --- the path through ---------------------------------------------------------------------------------------------


def test_a_run_leaves_model_split_results_and_report(home):
    for method in ("gnah", "apkh"):
        folder = home / method
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "model.json", "split.json", "results.json", "report.html", "metrics.csv"} <= names
        results = read_json(folder / "results.json")
        assert set(results["groups"]["standard"]) == {"database", "i2t", "t2i"}
        assert 0 < results["groups"]["standard"]["i2t"]["map"] <= 1
        assert len(read_json(folder / "split.json")["train"]) == 20
        assert "What queries find" in (folder / "report.html").read_text()
    header = (home / "gnah" / "metrics.csv").read_text().splitlines()[0]
    assert all(n in header for n in ("alignment_weight", "distinct_anchors", "bit_balance", "bit_correlation"))
    for row in RunFolder.open(home / "gnah").metrics():  # terms are logged weighted: they sum to the loss
        assert row["loss"] == pytest.approx(row["alignment"] + row["contrast"] + row["binarisation"], rel=1e-5)


def test_training_in_memory_gives_the_weights_of_the_command(home):
    config = GNAHConfig(bits=16, hidden=32)
    training = TrainSettings(epochs=4, progress=False, accelerator="cpu")
    features = read_features(home / "emoji.npz")
    pairs = Split.read(home / "gnah").training(features, "x")
    trained = train_gnah(pairs, Settings(model=config, training=training)).model.state_dict()
    for name, value in GNAHEncoder.load(home / "gnah").model.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_evaluate_repeats_the_results_of_training(cache, capsys, tmp_path):
    assert run("gnah", "evaluate", cache / "gnah", cache / "emoji.npz", "--json", "--out", tmp_path / "out") == 0
    printed = json.loads(capsys.readouterr().out)
    trained = read_json(cache / "gnah" / "results.json")
    assert printed["groups"] == trained["groups"]
    assert (tmp_path / "out" / "report.html").is_file()
    assert run("gnah", "evaluate", cache / "gnah", cache / "emoji.npz", "--map-at", "5", "--denominator", "R") == 0
    assert "i2t" in capsys.readouterr().out


def test_codes_of_files_and_of_features_are_one(cache, tmp_path, capsys):
    for name, source in (("a", cache / "emoji"), ("b", cache / "emoji.npz")):
        words = ["--encoder", read_json(cache / "apkh" / "model.json")["encoder_source"]] if name == "a" else []
        assert run("apkh", "embed", cache / "apkh", source, tmp_path / f"{name}.npz", *words) == 0
    first, second = (read_arrays(tmp_path / f"{name}.npz") for name in ("a", "b"))
    assert np.array_equal(first["codes"], second["codes"])
    assert first["codes"].shape == (120, 2)
    assert first["codes"].dtype == np.uint8
    assert list(first["ids"][:60]) == list(second["ids"][60:])
    hashes, features = APKHEncoder.load(cache / "apkh"), read_features(cache / "emoji.npz")
    assert np.array_equal(hashes.encode(features.text, "text"), first["codes"][60:])  # no text tower is needed


def hits(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("find", ["image", "text", "either"])
def test_search_by_text_and_image_agrees_with_the_codes(cache, capsys, find, tmp_path):
    features = read_features(cache / "emoji.npz")
    image = next(path for path in (cache / "emoji" / "images").iterdir() if path.stem == features.ids[3])
    words = ["gnah", "search", cache / "gnah", cache / "index", "--find", find, "-k", "5", "--json"]
    capsys.readouterr()
    assert run(*words, "--text", features.texts[3], "--image", image) == 0
    found = hits(capsys)
    assert len(found) == 10
    assert {hit["modality"] for hit in found} <= ({"image", "text"} if find == "either" else {find})
    for query in (found[:5], found[5:]):
        assert [hit["distance"] for hit in query] == sorted(hit["distance"] for hit in query)
    own = [hit for hit in found if hit["id"] == features.ids[3] and hit["distance"] == 0]
    assert own or (find == "image" and found[0]["distance"] <= 16)
    assert all("text" in hit and "image" in hit for hit in found)
    assert run(*words, "--text", features.texts[3], "--rerank", "20", "--out", tmp_path / "hits.jsonl") == 0
    scores = [json.loads(line)["score"] for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert scores == sorted(scores, reverse=True)


def test_search_by_features_and_radius(cache, capsys):
    words = ["gnah", "search", cache / "gnah", cache / "index", "--features", cache / "emoji.npz", "--asking", "image"]
    words.append("--json")
    capsys.readouterr()
    assert run(*words, "-k", "1") == 0
    found = hits(capsys)
    assert len(found) == 60
    assert all(hit["distance"] == 0 for hit in found)  # every image finds its own code
    assert run(*words, "-k", "60", "--radius", "2") == 0
    assert all(hit["distance"] <= 2 for hit in hits(capsys))


def test_index_grows_shrinks_and_reopens(cache, capsys, tmp_path):
    index, model = tmp_path / "index", cache / "gnah"
    features = read_features(cache / "emoji.npz")
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    write_features(first, features.take(np.arange(40)))
    write_features(second, features.take(np.arange(40, 60)))
    assert run("gnah", "index", "build", model, second, index, "--sides", "image") == 0
    gone = [word for name in features.ids[40:] for word in ("--id", name)]
    assert run("gnah", "index", "delete", index, *gone) == 0
    capsys.readouterr()
    assert "empty" in refused(capsys, "gnah", "search", model, index, "--features", first)
    assert run("gnah", "index", "add", model, first, index) == 0
    assert run("gnah", "index", "add", model, second, index, "--sides", "text") == 0
    assert run("gnah", "index", "delete", index, "--id", features.ids[0], "--modality", "text") == 0
    capsys.readouterr()
    assert run("gnah", "index", "info", index, "--json") == 0
    assert json.loads(capsys.readouterr().out)["items"] == {"image": 40, "text": 59}
    error = refused(capsys, "gnah", "index", "add", model, first, index)
    assert features.ids[1] in error or features.ids[0] in error


def test_explain_and_attribute_checks(cache, capsys, tiny_clip, tmp_path):
    image = sorted((cache / "emoji" / "images").iterdir())[0]
    capsys.readouterr()
    assert run("apkh", "explain", cache / "apkh", "--image", image, "--text", "a heart", "-k", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert all(len(top) == 3 for top in found["items"].values())
    assert len(found["shared"]) == 1
    bank = tmp_path / "bank.txt"
    bank.write_text("red\nheart\nanimal\n")
    words = ["apkh", "attributes", "check", bank, "--data", cache / "emoji.npz", "--variance", "auto", "--json"]
    assert run(*words, "--encoder", f"local-dir:{tiny_clip}") == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["attributes"] == 3
    assert checked["longest_prompt_tokens"] > 5
    assert 1 <= checked["effective_number"] <= 3


def test_tune_ranks_settings_without_labels(cache, capsys, tmp_path):
    features = read_features(cache / "emoji.npz")
    bare = tmp_path / "bare.npz"
    write_features(bare, dataclasses.replace(features, labels=None, classes=()))
    common = [*small(epochs=2, hidden=16), "--json"]
    capsys.readouterr()
    assert run("gnah", "tune", bare, "--gammas", "0.01", "--temperatures", "0.5", "--ks", "3", *common) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["k"] for row in rows] == [3, 3]
    assert rows[0]["pair_mrr"] >= rows[1]["pair_mrr"]
    assert run("apkh", "tune", bare, "--temperatures", "0.5", "--variances", "0.05", "--variances", "0.2", *common) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_unseen_classes_are_evaluated_apart(cache, capsys, tmp_path):
    words = ["--protocol", "seen-unseen", *small(pairs=16, queries=5)]
    assert run("gnah", "train", cache / "emoji.npz", tmp_path / "run", *words) == 0
    results = read_json(tmp_path / "run" / "results.json")
    assert set(results["groups"]) == {"unseen", "seen"}
    error = refused(capsys, "gnah", "evaluate", tmp_path / "run", cache / "emoji.npz", "--protocol", "standard")
    assert "another protocol" in error


def test_sample_data_runs_offline(tmp_path, monkeypatch, capsys):
    import cl_retrieval.encoders.standin as standin
    import cl_retrieval.pairs.samples as samples

    class Sentences:
        def encode(self, texts, **_):
            return np.stack([[t.count(c) + 0.1 for c in "etaoinshrdlu"] for t in texts]).astype(np.float32)

    monkeypatch.setattr(standin, "sentence_encoder", Sentences)
    few = samples.twemoji()[:40]
    monkeypatch.setattr(samples, "twemoji", lambda: few)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run("gnah", "sample-data", tmp_path / "emoji", "--limit", "24") == 0
    assert {p.name for p in (tmp_path / "emoji").iterdir()} == {"images", "pairs.jsonl", "encoder", "LICENCES.txt"}
    assert "exists already" in refused(capsys, "gnah", "sample-data", tmp_path / "emoji")
    # The encoder beside the pairs is taken without being named, from images and texts to a run.
    assert run("gnah", "train", tmp_path / "emoji", tmp_path / "run", *small(queries=0, pairs=12)) == 0
    assert read_json(tmp_path / "run" / "model.json")["encoder"] == "standin"
    assert len(list((tmp_path / "cache" / "cl-retrieval").glob("*.npz"))) == 1


def test_info_and_help_answer(capsys):
    for method in ("gnah", "apkh"):
        assert run(method, "info") == 0
        assert "arXiv" in capsys.readouterr().out
        assert run(method, "index", "--help") == 0
        assert "build" in capsys.readouterr().out


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_models_encoders_and_indexes_do_not_mix(cache, capsys, tmp_path, tiny_clip):
    features = cache / "emoji.npz"
    error = refused(capsys, "apkh", "search", cache / "apkh", cache / "index", "--text", "a heart")
    assert "gnah 16 bit" in error
    assert "apkh 16 bit" in error
    assert "no apkh" in refused(capsys, "apkh", "explain", cache / "gnah", "--text", "a heart")
    shutil.copytree(cache / "gnah", tmp_path / "foreign")
    description = read_json(cache / "gnah" / "model.json")
    (tmp_path / "foreign" / "model.json").write_text(json.dumps({**description, "kind": "mantis"}))
    assert "mantis" in refused(capsys, "gnah", "evaluate", tmp_path / "foreign", features)
    assert run("gnah", "train", features, tmp_path / "r8", *small(bits=8)) == 0
    error = refused(capsys, "gnah", "search", tmp_path / "r8", cache / "index", "--features", features)
    assert "8 bit" in error
    assert "16 bit" in error
    codes = tmp_path / "codes.npz"
    assert run("gnah", "embed", tmp_path / "r8", features, codes) == 0
    assert "another model" in refused(capsys, "gnah", "index", "add", cache / "gnah", codes, cache / "index")
    other = tmp_path / "other.npz"
    write_features(other, dataclasses.replace(read_features(features), encoder="elsewhere", fingerprint="f"))
    error = refused(capsys, "gnah", "evaluate", cache / "gnah", other)
    assert "elsewhere" in error
    narrow = tmp_path / "narrow.npz"
    rows = np.eye(6, 8, dtype=np.float32)
    np.savez(narrow, image=rows, text=rows)
    assert "another width" in refused(capsys, "gnah", "embed", cache / "gnah", narrow, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


def test_bad_queries_are_refused(cache, capsys, tmp_path):
    search = ["gnah", "search", cache / "gnah", cache / "index"]
    assert "nothing to search" in refused(capsys, *search)
    assert "text is empty" in refused(capsys, *search, "--text", " ")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert "broken.png" in refused(capsys, *search, "--image", broken)
    assert "error" in refused(capsys, "gnah", "search", cache / "gnah", tmp_path / "nowhere", "--text", "x")
    assert "nothing to delete" in refused(capsys, "gnah", "index", "delete", cache / "index")
    assert "not in the index" in refused(capsys, "gnah", "index", "delete", cache / "index", "--id", "../x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "2"], "training pairs does not fit"),
        (["--queries", "60"], "number of queries"),
        (["--beta", "2"], "--beta"),
        (["--k", "500"], "number of prototypes"),
        (["--bits", "0"], "cannot be built"),
        (["--batch-size", "0"], "--batch-size"),
        (["--optim.lr", "nan"], "--optim.lr"),
        (["--split-seed", "-1"], "--split-seed"),
    ],
)
def test_bad_options_leave_no_model(cache, capsys, tmp_path, words, message):
    assert message in refused(capsys, "gnah", "train", cache / "emoji.npz", tmp_path / "run", "--no-progress", *words)
    assert not (tmp_path / "run").exists()


def test_apkh_refuses_what_it_cannot_know(cache, capsys, tmp_path):
    rows = read_features(cache / "emoji.npz")
    bare = tmp_path / "bare.npz"
    np.savez(bare, image=rows.image, text=rows.text)
    assert "encoder of the features is not known" in refused(capsys, "apkh", "train", bare, tmp_path / "run", *small())
    strict = ["--strict-zero-shot", "--attributes", tmp_path / "bank.txt"]
    (tmp_path / "bank.txt").write_text(f"red\n{rows.classes[0]}\n")
    error = refused(capsys, "apkh", "train", cache / "emoji.npz", tmp_path / "run", *strict)
    assert rows.classes[0] in error
    assert "--variance" in refused(capsys, "apkh", "train", cache / "emoji.npz", tmp_path / "run", "--variance", "7")


def test_settings_are_kept_with_the_run(home):
    config = yaml.safe_load((home / "apkh" / "config.yaml").read_text())
    assert config["prompt_mode"] == "residual"
    assert config["bits"] == 16
    assert config["optim"] == {"lr": 1e-4, "lr_prompt": 1e-4}
    assert config["checkpoint_every"] == 250  # a default that other options on the command line leave alone
