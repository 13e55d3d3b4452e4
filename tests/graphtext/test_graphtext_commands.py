"""The verbs of ``cl-graphtext promptgnn-sim`` from end to end on a tiny graph, and what they refuse."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from cl_graphtext.cli import app
from cl_graphtext.graphs.reading import write_graph
from cl_graphtext.promptgnn_sim import GraphModel
from contrastive_core.training import RunFolder

from .conftest import themed

SMALL = {
    "width": 16,
    "heads": 2,
    "fusion-heads": 2,
    "dropout": 0.1,
    "stages.warmup": 10,
    "steps": 40,
    "optim.lr": 0.01,
    "batch-size": 64,
    "accelerator": "cpu",
}


def run(*words):
    return app.run(["promptgnn-sim", *map(str, words)])


def refused(capsys, *words):
    capsys.readouterr()
    assert run(*words) == 2
    text = capsys.readouterr().err
    assert "error: " in text
    return text


def options(*flags, **changes):
    """Words of the small setting, with changes; None leaves an option out."""
    chosen = SMALL | {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    return [*flags, *(word for name, value in chosen.items() if value is not None for word in (f"--{name}", value))]


@pytest.fixture(scope="module")
def place(tmp_path_factory, llama):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("promptgnn")
    write_graph(themed(), folder / "data")
    shared = {"text__model": llama, "cache": folder / "cache"}
    assert run("train", folder / "data", folder / "run", *options("--no-progress", **shared)) == 0
    links = options("--no-progress", **shared, task="lp", steps=30)
    assert run("train", folder / "data", folder / "links", *links) == 0
    return folder


@pytest.fixture
def shared(place):
    return ["--cache", place / "cache", "--device", "cpu"]


def test_training_learns_and_reports_what_it_chose(place):
    results = RunFolder.open(place / "run").results()
    assert results["scores"]["test"]["accuracy"] > 0.8
    assert 0 < results["links"]["after"] <= 1
    page = (place / "run" / "report.html").read_text()
    assert page.count("data:image/png") == 3  # losses, validation, map
    assert page.count("Prompt: ") == 3
    assert "as birds" in page
    logged = {name for row in RunFolder(place / "run").metrics() for name in row}
    assert {"loss", "task", "prompt_text", "graph_text", "zero_shot", "val_loss"} <= logged


def test_the_saved_model_gives_the_scores_of_training_and_scores_under_noise(place, shared, capsys):
    capsys.readouterr()
    noise = ["--perturb", "rewire:0.5", "--perturb", "text-drop:0.5", "--seeds", 2]
    assert run("evaluate", place / "run", place / "data", *shared, "--json", *noise) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    results = RunFolder.open(place / "run").results()
    assert rows[0]["accuracy"] == results["scores"]["test"]["accuracy"]
    assert results["evaluation"] == rows
    assert [row["noise"] for row in rows] == ["none", *["rewire:0.5"] * 2, *["text-drop:0.5"] * 2]
    assert run("evaluate", place / "links", place / "data", *shared, "--perturb", "drop:0.3") == 0
    assert "auc" in capsys.readouterr().out
    assert run("evaluate", place / "run", place / "data", *shared, "--json", "--split", "20/20/60") == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["nodes"] == 54


def test_embeddings_predictions_and_explanations_agree(place, shared, tmp_path, capsys):
    assert run("embed", place / "run", place / "data", tmp_path / "z.npz", *shared) == 0
    arrays = np.load(tmp_path / "z.npz")
    assert arrays["z"].shape == (90, 16)
    assert arrays["ids"][3] == "n3"
    assert run("predict", place / "run", place / "data", tmp_path / "p.csv", *shared) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 90
    assert sum(float(rows[0][name]) for name in ("birds", "ships", "music")) == pytest.approx(1, abs=1e-4)
    hits = [row["class"] == ("birds", "ships", "music")[i % 3] for i, row in enumerate(rows)]
    assert np.mean(hits) > 0.8
    capsys.readouterr()
    assert run("explain", place / "run", place / "data", "--node", "n4", "--json", *shared) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["predicted"] == rows[4]["class"]
    assert len(told["neighbours"]) == len(told["scores"]) <= 10
    assert told["prompt"].startswith('Article "title 4".')
    assert run("explain", place / "run", place / "data", "--node", "n4", *shared) == 0
    assert told["prompt"] in capsys.readouterr().out
    assert "exists" in refused(capsys, "predict", place / "run", place / "data", tmp_path / "p.csv", *shared)
    assert "no such node" in refused(capsys, "explain", place / "run", place / "data", "--node", "zz", *shared)
    assert "ending" in refused(capsys, "embed", place / "run", place / "data", tmp_path / "z.txt", *shared)


def test_new_nodes_are_classified_without_training(place, shared, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    (new / "nodes.csv").write_text(
        "node_id,title,text\n"
        "n90,title 90,robin heron feather nest wing beak flock item\n"
        "n91,title 91,violin chord tempo melody sonata harp choir item\n"
        "n92,title 92,hull mast anchor keel sail cargo deck item\n"
    )
    (new / "edges.csv").write_text("src,dst\nn90,n0\nn91,n2\n")  # n92 is alone
    assert run("predict", place / "run", place / "data", tmp_path / "p.csv", "--new", new, *shared) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["node_id"] for row in rows] == ["n90", "n91", "n92"]
    assert [row["class"] for row in rows] == ["birds", "music", "ships"]


def test_links_are_predicted_for_pairs(place, shared, tmp_path, capsys):
    assert RunFolder.open(place / "links").results()["scores"]["test"]["auc"] > 0.6
    (tmp_path / "pairs.csv").write_text("src,dst\nn0,n3\nn0,n1\n")
    words = ["predict", place / "links", place / "data", tmp_path / "p.csv", *shared]
    assert "pairs" in refused(capsys, *words)
    assert run(*words, "--pairs", tmp_path / "pairs.csv") == 0
    same, other = (float(row["probability"]) for row in csv.DictReader((tmp_path / "p.csv").open()))
    assert same > other
    (tmp_path / "pairs.csv").write_text("src,dst\nn0,zz\n")
    assert "'zz'" in refused(capsys, *words, "--overwrite", "--pairs", tmp_path / "pairs.csv")


def test_prompts_are_written_with_and_without_a_run(place, shared, tmp_path, llama):
    assert run("prompts", place / "data", tmp_path / "a.jsonl", "--run", place / "run", *shared) == 0
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(rows) == 90
    assert set(rows[0]) == {"node_id", "neighbours", "scores", "cosines", "linked", "keywords", "prompt"}
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"node_id": row["node_id"], "summary": "s"}) + "\n" for row in rows))
    words = ["prompts", place / "data", tmp_path / "b.jsonl", "--text.model", llama, "--warmup", 5, *shared]
    assert run(*words, "--llm.answers", answers) == 0
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert rows[0]["answer"] == "s"
    assert any(row["keywords"] for row in rows)


def test_models_transfer_to_classes_and_links_of_another_graph(place, shared, tmp_path, capsys):
    other = themed(60, seed=5)
    write_graph(dataclasses.replace(other, ids=tuple(f"o{i}" for i in range(60))), tmp_path / "other")
    capsys.readouterr()
    assert run("transfer", place / "run", tmp_path / "other", "--json", *shared) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["accuracy"] > 0.6
    assert scores["largest_class"] == pytest.approx(1 / 3)
    assert run("transfer", place / "run", tmp_path / "other", "--task", "lp", "--json", *shared) == 0
    assert json.loads(capsys.readouterr().out)["auc"] > 0.5
    assert "model of classes" in refused(capsys, "transfer", place / "links", tmp_path / "other", *shared)


def test_robustness_compares_methods_over_rates(place, tmp_path, llama, capsys):
    words = ["robustness", place / "data", tmp_path / "r", "--methods", "gat", "promptgnn-sim", "--rates", "0", "0.7"]
    small = options(text__model=llama, split="10-per-class", seeds=1, cache=place / "cache", steps=20)
    assert run(*words, *small) == 0
    rows = json.loads((tmp_path / "r" / "robustness.json").read_text())["rows"]
    assert {(row["method"], row["rate"]) for row in rows} == {
        (m, r) for m in ("gat", "promptgnn-sim") for r in (0, 0.7)
    }
    assert (tmp_path / "r" / "report.html").read_text().count("data:image/png") == 1
    assert "holds files" in refused(capsys, *words, *small)
    assert "--methods" in refused(capsys, *words, *small, "--overwrite", "--task", "lp")


def test_sample_data_import_inspect_and_cache(tmp_path, llama, capsys):
    assert run("sample-data", tmp_path / "s", "--source", "python", "--nodes", 60) == 0
    assert "homophily" in capsys.readouterr().out
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.csv").write_text("text,label,neighbour\na b,0,[1]\nc d,1,[0]\n")
    assert run("import", tmp_path / "d", tmp_path / "g", "--format", "cstag", "--table", "parquet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["nodes"] == 2
    assert run("inspect", tmp_path / "g", "--json") == 0
    assert json.loads(capsys.readouterr().out)["classes"] == {"0": 1, "1": 1}
    words = ["cache-text", tmp_path / "g", tmp_path / "x.npy", "--text.model", llama, "--cache", tmp_path / "c"]
    assert run(*words, "--device", "cpu") == 0
    assert np.load(tmp_path / "x.npy").shape == (2, 16)
    assert "--texts" in refused(
        capsys, "import", tmp_path / "d", tmp_path / "h", "--format", "cstag", "--texts", tmp_path / "t.csv"
    )
    assert not (tmp_path / "h").exists()
    assert run("info") == 0
    assert "2606.30291" in capsys.readouterr().out


def test_what_training_cannot_do_is_refused_and_leaves_nothing(place, tmp_path, llama, capsys):
    shared = {"text__model": llama, "cache": place / "cache"}
    data, good = tmp_path / "one", place / "data"
    write_graph(dataclasses.replace(themed(), labels=np.zeros(90, np.int64)), data)
    np.save(tmp_path / "narrow.npy", np.zeros((90, 5), np.float32))
    cases = [
        (data, {}, "two classes"),
        (tmp_path / "nowhere", {}, "missing"),
        (good, {"features": tmp_path / "narrow.npy"}, "different widths"),
        (good, {"split": "40-per-class"}, "too small"),
        (good, {"selection__weight": 2}, "--selection.weight"),
        (good, {"selection__percentile": "nan"}, "--selection.percentile"),
        (good, {"width": 15}, "multiple"),
        (good, {"steps": 5}, "warm-up"),
        (good, {"steps": None, "epochs": 2}, "warm-up"),
        (good, {"batch_size": 0}, "--batch-size"),
        (good, {"temperature": 0}, "temperature"),
        (good, {"prompt_weight": "nan"}, "--prompt-weight"),
        (good, {"split_seed": -1}, "--split-seed"),
        (good, {"text__lora": 2, "method": "gat"}, "LoRA"),
        (good, {"llm__url": "http://localhost"}, "name of a model"),
        (good, {"llm__url": "localhost:8000", "llm__model": "m"}, "http://"),
    ]
    for source, changes, text in cases:
        assert text in refused(
            capsys, "train", source, tmp_path / "out", *options("--no-progress", **shared, **changes)
        )
        assert not (tmp_path / "out").exists()
    device = ["--device", "cpu"]
    assert "--perturb" in refused(capsys, "evaluate", place / "run", good, "--perturb", "shake:1", *device)
    narrow = ["--features", tmp_path / "narrow.npy", *device]
    assert "another width" in refused(capsys, "embed", place / "run", good, tmp_path / "z.npy", *narrow)
    assert not (tmp_path / "z.npy").exists()


def test_a_model_of_features_asks_for_features(place, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(90, 16)).astype(np.float32))
    features = ["--features", tmp_path / "x.npy"]
    words = options("--no-progress", "--no-prompt", cache=place / "cache", steps=12)
    assert run("train", place / "data", tmp_path / "run", *features, *words) == 0
    assert "--features" in refused(capsys, "embed", tmp_path / "run", place / "data", tmp_path / "z.npy")
    assert run("embed", tmp_path / "run", place / "data", tmp_path / "z.npy", *features) == 0
    assert "--features" in refused(capsys, "transfer", tmp_path / "run", place / "data")


def test_runs_that_are_none_of_ours_are_refused(place, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    path = tmp_path / "run" / "model.json"
    about = json.loads(path.read_text())
    words = ["embed", tmp_path / "run", place / "data", tmp_path / "z.npy", "--device", "cpu"]
    for change, text in [
        ({"fitted": None}, "fit together"),
        ({"dim": 10**9}, "fit together"),
        ({"settings": about["settings"] | {"method": "banana"}}, "fit together"),
        ({"kind": "mantis"}, "mantis"),
    ]:
        path.write_text(json.dumps(about | change))
        assert text in refused(capsys, *words)
    (tmp_path / "run" / "model.safetensors").write_bytes(b"broken")
    path.write_text(json.dumps(about))
    assert "corrupt" in refused(capsys, *words)
    assert isinstance(GraphModel.load(place / "run"), GraphModel)
