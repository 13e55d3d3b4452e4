"""The verbs of ``cl-graphtext promptgnn-sim`` from end to end on a tiny graph, and what they refuse."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from cl_graphtext.cli import app
from cl_graphtext.graph import random_split
from cl_graphtext.perturb import graph_perturb
from cl_graphtext.promptgnn_sim.model import METHODS, NetworkConfig
from cl_graphtext.promptgnn_sim.pipeline import Pipeline, prompt_rows
from cl_graphtext.promptgnn_sim.selection import SelectionSettings
from cl_graphtext.promptgnn_sim.system import StageSettings, embed_nodes
from cl_graphtext.promptgnn_sim.training import (
    Model,
    Recipe,
    judge_nodes,
    split_links,
    train_links,
    train_nodes,
)
from cl_graphtext.reading import write_graph
from cl_graphtext.text import TextCache, TextSettings
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.training import RunFolder, TrainSettings

from .conftest import Words, themed

SMALL = {
    "network.width": 16,
    "network.heads": 2,
    "network.fusion-heads": 2,
    "network.dropout": 0.1,
    "stages.warmup": 10,
    "steps": 40,
    "optim.lr": 0.01,
    "batch-size": 64,
    "text.device": "cpu",
}
NETWORK = NetworkConfig(width=16, heads=2, fusion_heads=2, dropout=0.1)


def run(*words):
    return app.run(["promptgnn-sim", *map(str, words)])


def refused(capsys, *words):
    capsys.readouterr()
    assert run(*words) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    return text


def options(*flags, **changes):
    """Words of the small setting, with changes; None leaves an option out."""
    chosen = SMALL | {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    return [*flags, *(word for name, value in chosen.items() if value is not None for word in (f"--{name}", value))]


def recipe(method="promptgnn-sim", steps=40, **options):
    train = TrainSettings(steps=steps, progress=False, validate_every=10, seed=options.pop("seed", 0), log_every=5)
    return Recipe(
        method=method,
        batch_size=64,
        network=options.pop("network", NETWORK),
        stages=StageSettings(warmup=10),
        optim=dataclasses.replace(Recipe().optim, lr=0.01),
        train=train,
        **options,
    )


def words_pipeline(prompting=True, settings=None):
    encoder = Words()
    return Pipeline(
        settings or SelectionSettings(), TextSettings(), TextCache(), encoders=(encoder, encoder), prompting=prompting
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory, llama):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("promptgnn")
    write_graph(themed(), folder / "data")
    shared = {"text__model": llama, "cache": folder / "cache", "validate_every": 10}
    assert run("train", folder / "data", folder / "run", *options("--no-progress", **shared)) == 0
    links = options("--no-progress", **shared, task="lp", steps=30)
    assert run("train", folder / "data", folder / "links", *links) == 0
    return folder


def test_training_learns_and_leaves_a_whole_run_folder(place):
    names = {entry.name for entry in (place / "run").iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "model.safetensors", "results.json", "report.html"} <= names
    results = json.loads((place / "run" / "results.json").read_text())
    assert results["scores"]["test"]["accuracy"] > 0.8
    assert 0 < results["links"]["after"] <= 1
    page = (place / "run" / "report.html").read_text()
    assert page.count("data:image/png") == 3  # losses, validation, map
    assert page.count("Prompt: ") == 3
    config = yaml.safe_load((place / "run" / "config.yaml").read_text())
    assert config["selection"]["k"] == 5
    logged = (place / "run" / "metrics.csv").read_text().splitlines()[0]
    assert {"loss", "task", "prompt_text", "graph_text", "zero_shot", "val_loss"} <= set(logged.split(","))


def test_the_saved_model_gives_the_scores_of_training(place, capsys):
    capsys.readouterr()
    words = ["evaluate", place / "run", place / "data", "--cache", place / "cache"]
    assert run(*words, "--json", "--perturb", "rewire:0.5", "--perturb", "text-drop:0.5", "--seeds", 2) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    scores = json.loads((place / "run" / "results.json").read_text())["scores"]["test"]
    assert rows[0]["accuracy"] == scores["accuracy"]
    assert [row["noise"] for row in rows] == ["none", *["rewire:0.5"] * 2, *["text-drop:0.5"] * 2]
    assert run("evaluate", place / "links", place / "data", "--cache", place / "cache", "--perturb", "drop:0.3") == 0
    assert "auc" in capsys.readouterr().out


def test_embeddings_predictions_and_explanations_agree(place, tmp_path, capsys):
    shared = ["--cache", place / "cache"]
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
    assert "exists" in refused(capsys, "predict", place / "run", place / "data", tmp_path / "p.csv", *shared)
    assert "no such node" in refused(capsys, "explain", place / "run", place / "data", "--node", "zz", *shared)
    assert "ending" in refused(capsys, "embed", place / "run", place / "data", tmp_path / "z.txt", *shared)


def test_new_nodes_are_classified_without_training(place, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    (new / "nodes.csv").write_text(
        "node_id,title,text\n"
        "n90,title 90,robin heron feather nest wing beak flock item\n"
        "n91,title 91,violin chord tempo melody sonata harp choir item\n"
        "n92,title 92,hull mast anchor keel sail cargo deck item\n"
    )
    (new / "edges.csv").write_text("src,dst\nn90,n0\nn91,n2\n")  # n92 is alone
    words = ["predict", place / "run", place / "data", tmp_path / "p.csv", "--new", new, "--cache", place / "cache"]
    assert run(*words) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["node_id"] for row in rows] == ["n90", "n91", "n92"]
    assert [row["class"] for row in rows] == ["birds", "music", "ships"]


def test_links_are_predicted_for_pairs(place, tmp_path, capsys):
    results = json.loads((place / "links" / "results.json").read_text())
    assert results["scores"]["test"]["auc"] > 0.6
    (tmp_path / "pairs.csv").write_text("src,dst\nn0,n3\nn0,n1\n")
    shared = ["--cache", place / "cache"]
    words = ["predict", place / "links", place / "data", tmp_path / "p.csv", *shared]
    assert "pairs" in refused(capsys, *words)
    assert run(*words, "--pairs", tmp_path / "pairs.csv") == 0
    same, other = (float(row["probability"]) for row in csv.DictReader((tmp_path / "p.csv").open()))
    assert same > other
    (tmp_path / "pairs.csv").write_text("src,dst\nn0,zz\n")
    assert "'zz'" in refused(capsys, *words, "--overwrite", "--pairs", tmp_path / "pairs.csv")


def test_prompts_are_written_with_and_without_a_run(place, tmp_path, llama):
    shared = ["--cache", place / "cache"]
    assert run("prompts", place / "data", tmp_path / "a.jsonl", "--run", place / "run", *shared) == 0
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(rows) == 90
    assert set(rows[0]) == {"node_id", "neighbours", "scores", "cosines", "linked", "keywords", "prompt"}
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"node_id": row["node_id"], "summary": "s"}) + "\n" for row in rows))
    words = ["prompts", place / "data", tmp_path / "b.jsonl", "--text.model", llama, "--warmup", 5, *shared]
    assert run(*words, "--llm.answers", answers, "--text.device", "cpu") == 0
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert rows[0]["answer"] == "s"
    assert any(row["keywords"] for row in rows)


def test_models_transfer_to_classes_and_links_of_another_graph(place, tmp_path, capsys):
    other = themed(60, seed=5)
    other = dataclasses.replace(other, ids=tuple(f"o{i}" for i in range(60)))
    write_graph(other, tmp_path / "other")
    shared = ["--cache", place / "cache", "--json"]
    capsys.readouterr()
    assert run("transfer", place / "run", tmp_path / "other", *shared) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] > 0.6
    assert found["largest_class"] == pytest.approx(1 / 3)
    assert run("transfer", place / "run", tmp_path / "other", "--task", "lp", *shared) == 0
    assert json.loads(capsys.readouterr().out)["auc"] > 0.5
    assert "model of classes" in refused(capsys, "transfer", place / "links", tmp_path / "other")


def test_robustness_compares_methods_over_rates(place, tmp_path, llama):
    words = ["robustness", place / "data", tmp_path / "r", "--methods", "gat", "promptgnn-sim", "--rates", "0", "0.7"]
    small = options(text__model=llama, split="10-per-class", seeds=1, cache=place / "cache")
    assert run(*words, *small) == 0
    rows = json.loads((tmp_path / "r" / "robustness.json").read_text())["rows"]
    assert {(row["method"], row["rate"]) for row in rows} == {
        (m, r) for m in ("gat", "promptgnn-sim") for r in (0, 0.7)
    }
    assert (tmp_path / "r" / "report.html").read_text().count("data:image/png") == 1


def test_sample_data_import_and_cache(tmp_path, llama, capsys):
    assert run("sample-data", tmp_path / "s", "--source", "python", "--nodes", 60) == 0
    assert "homophily" in capsys.readouterr().out
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.csv").write_text("text,label,neighbour\na b,0,[1]\nc d,1,[0]\n")
    assert run("import", tmp_path / "d", tmp_path / "g", "--format", "cstag", "--table", "parquet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["nodes"] == 2
    words = ["cache-text", tmp_path / "g", tmp_path / "x.npy", "--text.model", llama, "--cache", tmp_path / "c"]
    assert run(*words, "--text.device", "cpu") == 0
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
        (good, {"network__width": 15}, "multiple"),
        (good, {"steps": 5}, "warm-up"),
        (good, {"steps": None, "epochs": 2}, "warm-up"),
        (good, {"batch_size": 0}, "--batch-size"),
        (good, {"objective__temperature": 0}, "temperature"),
        (good, {"text__lora": 2, "method": "gat"}, "LoRA"),
        (good, {"llm__url": "http://localhost"}, "name of a model"),
        (good, {"accelerator": "gpu"}, "--accelerator"),
    ]
    for source, changes, text in cases:
        assert text in refused(
            capsys, "train", source, tmp_path / "out", *options("--no-progress", **shared, **changes)
        )
        assert not (tmp_path / "out").exists()
    assert "already holds a run" in refused(capsys, "train", good, place / "run", *options(**shared))
    noise = ["evaluate", place / "run", place / "data"]
    assert "--perturb" in refused(capsys, *noise, "--perturb", "shake:1")
    assert "another width" in refused(
        capsys, "embed", place / "run", place / "data", tmp_path / "z.npy", "--features", tmp_path / "narrow.npy"
    )


# What the pipeline and the training promise


def train_with(graph, made, pipeline, folder, split=None, x=None):
    split = random_split(graph.labels, seed=0) if split is None else split
    with RunFolder.create(folder, made.to_dict()) as run_folder:
        return train_nodes(graph, split, made, pipeline, run=run_folder, x=x), split


@pytest.mark.parametrize("method", [name for name in METHODS if name != "promptgnn-sim"])
def test_baselines_learn_by_one_switch(graph, features, tmp_path, method):
    steps = 120 if method == "grace" else 30
    model, split = train_with(graph, recipe(method, steps), words_pipeline(False), tmp_path / "r", x=features)
    assert judge_nodes(model, graph, split, x=features)["test"]["accuracy"] > 0.75
    with RunFolder.create(tmp_path / "s", {}) as folder:
        model.save(folder)
    again = Model.load(tmp_path / "s")
    torch.testing.assert_close(
        embed_nodes(again.network, again.view(graph, features)), embed_nodes(model.network, model.view(graph, features))
    )


def test_training_repeats_bit_for_bit_and_resumes_to_the_same_weights(graph, features, tmp_path, monkeypatch):
    plain = recipe(network=dataclasses.replace(NETWORK, prompt=False))
    split = random_split(graph.labels, seed=0)
    whole, _ = train_with(graph, plain, words_pipeline(False), tmp_path / "a", split, features)
    again, _ = train_with(graph, plain, words_pipeline(False), tmp_path / "b", split, features)
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, again.network.state_dict()[name]), name

    from cl_graphtext.promptgnn_sim.system import GraphSystem

    step, calls = GraphSystem.training_step, []

    def breaking(self, batch, index):
        calls.append(self.global_step)
        if len(calls) == 28:
            raise RuntimeError("cut off")
        return step(self, batch, index)

    cut = dataclasses.replace(plain, train=dataclasses.replace(plain.train, checkpoint_every=5))
    monkeypatch.setattr(GraphSystem, "training_step", breaking)
    with pytest.raises(RuntimeError, match="cut off"):
        train_with(graph, cut, words_pipeline(False), tmp_path / "c", split, features)
    with RunFolder.create(tmp_path / "c", cut.to_dict(), resume=True) as folder:
        resumed = train_nodes(graph, split, cut, words_pipeline(False), run=folder, x=features)
    assert calls[28] == 25  # from the checkpoint, after the warm-up
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, resumed.network.state_dict()[name]), name


def test_labels_outside_training_and_validation_are_never_seen(graph, tmp_path):
    """With all test labels changed, weights, selection and prompts stay the same to the bit."""
    split = random_split(graph.labels, seed=0)
    other = graph.labels.copy()
    other[split["test"]] = (other[split["test"]] + 1) % 3
    models = []
    for name, labels in (("a", graph.labels), ("b", other)):
        data = dataclasses.replace(graph, labels=labels)
        models.append(train_with(data, recipe(steps=20), words_pipeline(), tmp_path / name, split)[0])
    for name, weight in models[0].network.state_dict().items():
        assert torch.equal(weight, models[1].network.state_dict()[name]), name
    views = [model.view(graph) for model in models]
    assert views[0].texts == views[1].texts


def test_link_prediction_never_shows_a_held_out_link(tmp_path):
    """Selection, degrees, words, prompts and messages are those of the message links alone."""
    graph = themed(60, homophilic=6)
    links = split_links(graph, seed=0)
    held = (links.val[: len(links.val) // 2], links.test[: len(links.test) // 2])
    sets = [{tuple(sorted(pair)) for pair in part.tolist()} for part in (links.messages, links.positives, *held)]
    assert sum(map(len, sets)) == len(graph.edges) == len(set.union(*sets))
    truth = {tuple(edge) for edge in graph.edges.tolist()}
    negatives = [tuple(sorted(pair)) for pair in links.test[len(links.test) // 2 :].tolist()]
    assert not truth & set(negatives)
    made = recipe(task="lp", steps=15)
    pipeline = words_pipeline(settings=SelectionSettings(augment="none"))
    with RunFolder.create(tmp_path / "r", made.to_dict()) as folder:
        model = train_links(graph, links, made, pipeline, run=folder)
    view = model.view(graph.with_edges(links.messages))
    rows = prompt_rows(pipeline, view, range(60))
    hidden = sets[1] | sets[2] | sets[3]
    for i, row in enumerate(rows):
        for name in row["neighbours"]:
            assert tuple(sorted((i, int(name[1:])))) not in hidden
    # The same with other held-out links in the graph: nothing can depend on them.
    fewer = graph.with_edges(links.messages)
    with RunFolder.create(tmp_path / "s", made.to_dict()) as folder:
        again = train_links(fewer, links, made, words_pipeline(settings=SelectionSettings(augment="none")), run=folder)
    for name, weight in model.network.state_dict().items():
        assert torch.equal(weight, again.network.state_dict()[name]), name


def test_inductive_training_does_not_see_test_texts(graph, tmp_path):
    split = random_split(graph.labels, seed=0)
    texts = list(graph.texts)
    for node in split["test"]:
        texts[node] = "zeppelin"
    models = []
    for name, data in (("a", graph), ("b", dataclasses.replace(graph, texts=tuple(texts)))):
        models.append(train_with(data, recipe(steps=25, inductive=True), words_pipeline(), tmp_path / name, split)[0])
    for name, weight in models[0].network.state_dict().items():
        assert torch.equal(weight, models[1].network.state_dict()[name]), name
    assert "zeppelin" not in models[1].pipeline.fitted.keywords.terms.tolist()
    assert judge_nodes(models[0], graph, split)["test"]["accuracy"] > 0.8


def test_selection_keeps_accuracy_where_half_the_links_are_random(graph, features, tmp_path):
    noisy = graph_perturb(graph, "rewire", 0.7, seed=0)
    scores = {}
    for method in ("gat", "promptgnn-sim"):
        made = recipe(method, 50, network=dataclasses.replace(NETWORK, prompt=False))
        model, split = train_with(noisy, made, words_pipeline(False), tmp_path / method, x=features)
        scores[method] = judge_nodes(model, noisy, split, x=features)["test"]["accuracy"]
    assert scores["promptgnn-sim"] >= scores["gat"] + 0.1


def test_sampled_neighbourhoods_train_as_the_whole_graph_does(graph, features, tmp_path, monkeypatch):
    monkeypatch.setattr("cl_graphtext.promptgnn_sim.system.FULL_GRAPH", 10)
    for method, steps in (("promptgnn-sim", 40), ("grace", 80)):
        made = recipe(method, steps, network=dataclasses.replace(NETWORK, prompt=False))
        model, split = train_with(graph, made, words_pipeline(False), tmp_path / method, x=features)
        assert judge_nodes(model, graph, split, x=features)["test"]["accuracy"] > 0.75


def test_isolated_nodes_and_empty_texts_give_finite_predictions(graph, tmp_path):
    texts = ("", "", *graph.texts[2:])
    lonely = dataclasses.replace(graph, texts=texts, titles=("", "", *graph.titles[2:]), edges=graph.edges[:20])
    model, _ = train_with(lonely, recipe(steps=15), words_pipeline(), tmp_path / "r")
    z = embed_nodes(model.network, model.view(lonely))
    assert torch.isfinite(z).all()
    bare = dataclasses.replace(graph, edges=graph.edges[:0])
    model, split = train_with(bare, recipe(steps=25), words_pipeline(), tmp_path / "s")
    assert judge_nodes(model, bare, split)["test"]["accuracy"] > 0.8


def test_a_class_without_a_training_label_is_pointed_out(graph, features, tmp_path):
    split = random_split(graph.labels, seed=0)
    split["train"] = split["train"][graph.labels[split["train"]] != 2]
    with pytest.warns(ContrastiveWarning, match="no training label for music"):
        train_with(graph, recipe("gat", 5), words_pipeline(False), tmp_path / "r", split, features)
    split["train"] = split["train"][graph.labels[split["train"]] == 0]
    with pytest.raises(InputError, match="two classes"):
        train_with(graph, recipe("gat", 5), words_pipeline(False), tmp_path / "s", split, features)
    assert not (tmp_path / "s" / "model.json").exists()


def test_choosing_again_empties_the_queue_and_keeps_entries_young(graph, features, tmp_path, monkeypatch):
    from cl_graphtext.promptgnn_sim.system import GraphSystem

    sizes, choose = [], GraphSystem.choose

    def watched(self):
        choose(self)
        if self.uses_queue:
            sizes.append((self.global_step, int(self.raw_queue.count)))

    monkeypatch.setattr(GraphSystem, "choose", watched)
    made = recipe(network=dataclasses.replace(NETWORK, prompt=False))
    made = dataclasses.replace(made, stages=StageSettings(warmup=10, reselect=10))
    train_with(graph, made, words_pipeline(False), tmp_path / "r", x=features)
    assert [step for step, _ in sizes] == [10, 20, 30]
    queue = torch.load(tmp_path / "r" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert queue["raw_queue.features"].shape == (45, 16)  # at most half the nodes
    assert int(queue["raw_queue.count"]) == 45


def test_lora_trains_the_text_model_with_the_rest(graph, llama, tmp_path):
    made = recipe(text=TextSettings(model=str(llama), lora=2, device="cpu", max_tokens=16, prompt_tokens=32), steps=14)
    made = dataclasses.replace(made, optim=dataclasses.replace(made.optim, text_lr=0.01), batch_size=16)
    pipeline = Pipeline(SelectionSettings(), made.text, TextCache())
    model, _ = train_with(graph, made, pipeline, tmp_path / "r")
    assert any(weight.abs().sum() > 0 for name, weight in pipeline.encoders[0].trained().items() if "lora_B" in name)
    with RunFolder.create(tmp_path / "s", {}) as folder:
        model.save(folder)
    again = Model.load(tmp_path / "s")
    torch.testing.assert_close(
        embed_nodes(again.network, again.view(graph)),
        embed_nodes(model.network, model.view(graph)),
        atol=1e-5,
        rtol=1e-4,
    )


def test_runs_that_are_none_of_ours_are_refused(place, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    about = json.loads((tmp_path / "run" / "model.json").read_text())
    del about["fitted"]
    (tmp_path / "run" / "model.json").write_text(json.dumps(about))
    assert "none of promptgnn-sim" in refused(capsys, "embed", tmp_path / "run", place / "data", tmp_path / "z.npy")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"broken")
    assert "corrupt" in refused(capsys, "embed", tmp_path / "run", place / "data", tmp_path / "z.npy")
