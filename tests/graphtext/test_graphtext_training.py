"""What training promises: learning, blindness to what is held out, and the wiring of every term of the loss."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cl_graphtext.graphs.links import KnownLinks, split_links
from cl_graphtext.graphs.perturb import graph_perturb
from cl_graphtext.graphs.sampling import whole_block
from cl_graphtext.graphs.splits import random_split
from cl_graphtext.promptgnn_sim import (
    GraphModel,
    GraphSystem,
    ModelConfig,
    ObjectiveSettings,
    OptimSettings,
    SelectionSettings,
    Settings,
    StageSettings,
    evaluate,
    train_graph,
)
from cl_graphtext.promptgnn_sim.data import Pipeline, link_csr, prompt_rows
from cl_graphtext.promptgnn_sim.model import METHODS, Network, embed_nodes
from cl_graphtext.promptgnn_sim.training import make_pipeline
from cl_graphtext.promptgnn_sim.views import disturbed
from cl_graphtext.texts.cache import TextCache
from cl_graphtext.texts.encoders import TextSettings
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.training import RunFolder, TrainSettings

from .conftest import Words, themed

MODEL = ModelConfig(width=16, heads=2, fusion_heads=2, dropout=0.1)
SILENT = dataclasses.replace(MODEL, prompt=False)
TRAINING = TrainSettings(steps=40, progress=False, validate_every=10, log_every=5, accelerator="cpu")


def settings(method="promptgnn-sim", steps=40, *, training=None, **changes):
    given = {"batch_size": 64, "model": MODEL, "stages": StageSettings(warmup=10), "optim": OptimSettings(lr=0.01)}
    training = dataclasses.replace(TRAINING, steps=steps, **(training or {}))
    return Settings(method=method, training=training, **(given | changes))


def words():
    encoder = Words()
    return encoder, encoder


def accuracy(model, graph, split=None, x=None):
    return evaluate(model, graph, split, x=x)["test"]["accuracy"]


def same_weights(a, b):
    ours, theirs = a.network.state_dict(), b.network.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "promptgnn-sim"])
def test_baselines_learn_by_one_switch_and_come_back_from_disk(graph, features, tmp_path, method):
    model = train_graph(graph, settings(method, 80 if method == "grace" else 25), x=features)
    assert accuracy(model, graph, x=features) > 0.75
    model.save(tmp_path / "s")
    again = GraphModel.load(tmp_path / "s", device="cpu")
    torch.testing.assert_close(again.embed(graph, features), model.embed(graph, features))
    with pytest.raises(InputError, match="--features"):
        again.embed(graph)


def test_labels_outside_training_and_validation_are_never_seen(graph):
    """With all test labels changed, weights, selection and prompts stay the same to the bit."""
    split = random_split(graph.labels, seed=0)
    other = graph.labels.copy()
    other[split["test"]] = (other[split["test"]] + 1) % 3
    models = [
        train_graph(dataclasses.replace(graph, labels=labels), settings(steps=20), split=split, encoders=words())
        for labels in (graph.labels, other)
    ]
    assert same_weights(*models)
    views = [model.view(graph) for model in models]
    assert views[0].texts == views[1].texts


def test_link_prediction_never_shows_a_held_out_link_and_never_learns_a_link_as_none(monkeypatch):
    """Selection, degrees, words, prompts and messages are those of the message links alone."""
    graph = themed(60, homophilic=6)
    links = split_links(graph, seed=0)
    held = (links.val[: len(links.val) // 2], links.test[: len(links.test) // 2])
    sets = [{tuple(sorted(pair)) for pair in part.tolist()} for part in (links.messages, links.positives, *held)]
    assert sum(map(len, sets)) == len(graph.edges) == len(set.union(*sets))
    truth = {tuple(edge) for edge in graph.edges.tolist()}
    assert not truth & {tuple(sorted(pair)) for pair in links.test[len(links.test) // 2 :].tolist()}
    drawn, task = set(), GraphSystem._task

    def watched(self, z, nodes, pairs):
        drawn.update(tuple(sorted(pair)) for pair in pairs[len(pairs) // 2 :].tolist())
        return task(self, z, nodes, pairs)

    monkeypatch.setattr(GraphSystem, "_task", watched)
    made = settings(steps=15, task="lp", selection=SelectionSettings(augment="none"))
    model = train_graph(graph, made, split=links, encoders=words())
    assert len(drawn) > 200
    assert not drawn & (sets[0] | sets[1])
    view = model.view(graph.with_edges(links.messages))
    for i, row in enumerate(prompt_rows(model.pipeline, view, range(60))):
        assert all(row["linked"])  # without further candidates, all who are kept
        for name in row["neighbours"]:
            assert tuple(sorted((i, int(name[1:])))) not in sets[1] | sets[2] | sets[3]
    # The same with other held-out links in the graph: nothing can depend on them.
    again = train_graph(graph.with_edges(links.messages), made, split=links, encoders=words())
    assert same_weights(model, again)


def test_pairs_drawn_as_no_links_are_none_in_either_direction():
    everyone = {(a, b) for a in range(6) for b in range(6) if a < b}
    known = everyone - {(0, 1), (2, 5)}
    links = KnownLinks(np.array(sorted(known))[:, ::-1], 6)  # the larger end first
    pairs = links.negatives(40, torch.Generator().manual_seed(0))
    assert {tuple(pair) for pair in pairs.tolist()} == {(0, 1), (1, 0), (2, 5), (5, 2)}
    with pytest.raises(InputError, match="dense"):
        KnownLinks(np.array(sorted(everyone)), 6)


def test_inductive_training_does_not_see_test_texts(graph):
    split = random_split(graph.labels, seed=0)
    texts = list(graph.texts)
    for node in split["test"]:
        texts[node] = "zeppelin"
    models = [
        train_graph(data, settings(steps=25, inductive=True), split=split, encoders=words())
        for data in (graph, dataclasses.replace(graph, texts=tuple(texts)))
    ]
    assert same_weights(*models)
    assert "zeppelin" not in models[1].pipeline.learnt.keywords.terms.tolist()
    assert accuracy(models[0], graph, split) > 0.8


def test_selection_keeps_accuracy_where_half_the_links_are_random(graph, features):
    noisy = graph_perturb(graph, "rewire", 0.7, seed=0)
    models = {
        name: train_graph(noisy, settings(name, 40, model=SILENT), x=features) for name in ("gat", "promptgnn-sim")
    }
    scores = {name: accuracy(model, noisy, x=features) for name, model in models.items()}
    assert scores["promptgnn-sim"] >= scores["gat"] + 0.1


def test_sampled_neighbourhoods_train_as_the_whole_graph_does(graph, features, monkeypatch):
    monkeypatch.setattr("cl_graphtext.promptgnn_sim.system.FULL_GRAPH", 10)
    for method, steps in (("promptgnn-sim", 30), ("grace", 60)):
        model = train_graph(graph, settings(method, steps, model=SILENT), x=features)
        assert accuracy(model, graph, x=features) > 0.75


def test_isolated_nodes_and_empty_texts_give_finite_predictions(graph):
    texts = ("", "", *graph.texts[2:])
    lonely = dataclasses.replace(graph, texts=texts, titles=("", "", *graph.titles[2:]), edges=graph.edges[:20])
    assert torch.isfinite(train_graph(lonely, settings(steps=15), encoders=words()).embed(lonely)).all()
    bare = dataclasses.replace(graph, edges=graph.edges[:0])
    assert accuracy(train_graph(bare, settings(steps=20), encoders=words()), bare) > 0.8


def test_a_class_without_a_training_label_is_pointed_out(graph, features):
    split = dict(random_split(graph.labels, seed=0))
    split["train"] = split["train"][graph.labels[split["train"]] != 2]
    with pytest.warns(ContrastiveWarning, match="no training label for music"):
        train_graph(graph, settings("gat", 5), split=split, x=features)
    split["train"] = split["train"][graph.labels[split["train"]] == 0]
    with pytest.raises(InputError, match="two classes"):
        train_graph(graph, settings("gat", 5), split=split, x=features)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_choosing_again_empties_the_queue_once_a_step_and_keeps_entries_young(graph, features, monkeypatch, accumulate):
    seen, queue, begin = [], {}, GraphSystem.on_train_batch_start

    def watched(self, batch, index):
        before, view = len(self.raw_queue), self.view.selection
        begin(self, batch, index)
        if self.view.selection is not view:
            seen.append((self.global_step, before, len(self.raw_queue), len(self.prompt_queue)))
        queue["last"] = self.raw_queue

    monkeypatch.setattr(GraphSystem, "on_train_batch_start", watched)
    stages = StageSettings(warmup=5, reselect=3)
    made = settings(steps=13, model=SILENT, stages=stages, training={"accumulate": accumulate})
    train_graph(graph, made, x=features)
    assert seen == [(5, 0, 0, 0), (8, 45, 0, 0), (11, 45, 0, 0)]
    assert queue["last"].features.shape == (45, 16)  # at most half the nodes
    assert len(queue["last"]) == 45


def test_lora_trains_the_text_model_with_the_rest(graph, llama, tmp_path):
    text = TextSettings(model=str(llama), lora=2, max_tokens=16, prompt_tokens=32)
    made = settings(steps=14, text=text, optim=OptimSettings(lr=0.01, text_lr=0.01), batch_size=16)
    model = train_graph(graph, made)
    trained = model.pipeline.trained_encoder().trained()
    assert any(weight.abs().sum() > 0 for name, weight in trained.items() if "lora_B" in name)
    model.save(tmp_path / "s")
    again = GraphModel.load(tmp_path / "s", device="cpu")
    torch.testing.assert_close(again.embed(graph), model.embed(graph), atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="--features"):
        train_graph(graph, made, x=torch.zeros(len(graph), 16))


# Wiring


def system_of(graph, features, made, step=20):
    """A system in the middle of a run, without a trainer."""
    pipeline = make_pipeline(made)
    pipeline.fit(graph, features)
    view = pipeline.view(graph, features, select=made.fused)
    torch.manual_seed(0)
    network = Network(made.method, features.shape[1], 3, made.model)
    links = split_links(graph, seed=0)
    known = np.concatenate([links.messages, links.positives])
    described = torch.randn(3, features.shape[1])
    system = GraphSystem(network, view, pipeline, made, classes=described, known=known)
    system.trainer = SimpleNamespace(
        global_step=step, accumulate_grad_batches=1, seed=0, max_steps=40, global_rank=0, early_stopping_callback=None
    )
    if made.fused:
        network.remember_attention()
        system.choose()
    return system


def terms_of(system, batch, monkeypatch):
    logged = {}
    monkeypatch.setattr(GraphSystem, "log", lambda self, name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(GraphSystem, "log_dict", lambda self, values: logged.update(values))
    loss = system.training_step([batch], 0)
    return loss, {name: value for name, value in logged.items() if name != "loss"}


def reached(system, term):
    """Modules of the network that a loss changes."""
    names = [name for name, weight in system.network.named_parameters() if weight.requires_grad]
    weights = [weight for weight in system.network.parameters() if weight.requires_grad]
    grads = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
    moved = [name for name, grad in zip(names, grads) if grad is not None and grad.abs().sum() > 0]
    return {".".join(name.split(".")[: 2 if name.startswith("fusion") else 1]) for name in moved}


BRANCHES = {"graph", "fusion.raw", "fusion.prompt", "fusion.graph_norm", "fusion.to_graph", "fusion.to_text"}


def test_every_term_changes_exactly_the_modules_it_should(graph, features):
    system = system_of(graph, features, settings(model=SILENT))
    nodes = torch.arange(30)
    fused = system._encode(nodes, torch.Generator().manual_seed(0))
    terms = system._task(fused.z, nodes, None) | system._alignments(fused, nodes)
    assert terms.keys() == {"task", "zero_shot", "prompt_text", "graph_text"}
    assert reached(system, terms["task"]) == {*BRANCHES, "fusion.gate", "head"}
    assert reached(system, terms["zero_shot"]) == {"label_map"}
    assert reached(system, terms["prompt_text"]) == {"fusion.raw", "fusion.prompt"}
    alone = reached(system, terms["graph_text"])
    assert alone == BRANCHES - {"fusion.to_graph"} | {"fusion.align_graph", "fusion.align_text"}
    entries = system.raw_queue.entries()
    assert not entries.features.requires_grad
    assert torch.equal(entries.ids, system.view.groups[nodes])
    torch.testing.assert_close(entries.features, F.normalize(fused.raw.detach(), dim=1))
    torch.testing.assert_close(system.prompt_queue.entries().features, F.normalize(fused.prompt.detach(), dim=1))


def test_the_stages_of_link_prediction_and_grace_change_what_they_should(graph, features):
    nodes, draw = torch.arange(30), torch.Generator()
    pairs = torch.stack([torch.arange(10), torch.arange(10, 20)], 1)
    warm = system_of(graph, features, settings(model=SILENT), step=5)
    fused = warm._encode(nodes, draw)
    assert reached(warm, warm._task(fused.z, nodes, None)["task"]) == {"graph", "warm_head"}
    link = system_of(graph, features, settings(model=SILENT, task="lp"))
    task = link._task(link._encode(nodes, draw).z, nodes, pairs)
    assert task.keys() == {"task"}
    assert reached(link, task["task"]) == {*BRANCHES, "fusion.gate", "link"}
    grace = system_of(graph, features, settings("grace"), step=35)
    assert reached(grace, grace._task(grace._encode(nodes, draw).z, nodes, None)["task"]) == {"head"}
    assert reached(grace, grace._grace(draw)) == {"graph", "project"}


def test_logged_terms_sum_to_the_loss_and_weights_scale_them(graph, features, monkeypatch):
    losses = {}
    for weight in (0.1, 0.2):
        made = settings(model=SILENT, objective=ObjectiveSettings(prompt_weight=weight, graph_weight=0.1))
        loss, losses[weight] = terms_of(system_of(graph, features, made), torch.arange(20), monkeypatch)
        assert loss.item() == pytest.approx(sum(value.item() for value in losses[weight].values()), rel=1e-6)
    assert losses[0.2]["prompt_text"].item() == pytest.approx(2 * losses[0.1]["prompt_text"].item(), rel=1e-5)
    assert losses[0.2]["graph_text"].item() == pytest.approx(losses[0.1]["graph_text"].item(), rel=1e-5)


def test_further_nodes_take_part_in_the_alignments_alone(graph, features, monkeypatch):
    sizes, task, align = {}, GraphSystem._task, GraphSystem._alignments

    def tasked(self, z, nodes, pairs):
        sizes["task"] = len(z)
        return task(self, z, nodes, pairs)

    def aligned(self, fused, nodes):
        sizes["alignment"] = (len(fused.z), len(nodes.unique()))
        return align(self, fused, nodes)

    monkeypatch.setattr(GraphSystem, "_task", tasked)
    monkeypatch.setattr(GraphSystem, "_alignments", aligned)
    terms_of(system_of(graph, features, settings(model=SILENT)), torch.arange(20), monkeypatch)
    assert sizes["task"] == 20
    assert sizes["alignment"][0] == sizes["alignment"][1] > 25  # nobody stands in a batch twice
    terms_of(system_of(graph, features, settings(model=SILENT), step=5), torch.arange(20), monkeypatch)
    assert sizes["task"] == 20


def test_the_optimiser_leaves_the_remembered_attention_alone_and_decays_the_rest(graph, features):
    system = system_of(graph, features, settings(model=SILENT))
    optimizer = system.configure_optimizers()
    (group,) = optimizer.param_groups
    own = {id(weight) for name, weight in system.network.named_parameters() if not name.startswith("selector.")}
    assert {id(weight) for weight in group["params"]} == own
    assert (group["lr"], group["weight_decay"]) == (0.01, 5e-4)


def test_evaluation_leaves_training_state_alone(graph, features):
    system = system_of(graph, features, settings(model=SILENT))
    system.network.train()
    before, weights = torch.get_rng_state(), [w.clone() for w in system.state_dict().values()]
    embed_nodes(system.network, system.view)
    assert system.network.training
    embed_nodes(system.network.eval(), system.view)
    assert not system.network.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(weights, system.state_dict().values()))


def test_a_disturbed_view_drops_its_shares_and_no_edge_of_a_node_to_itself(graph):
    block, x = whole_block(link_csr(graph)), torch.ones(90, 1000)
    piece, seen = disturbed(block, x, 0.4, 0.3, torch.Generator().manual_seed(0))
    loops = piece.edge_index[0] == piece.edge_index[1]
    assert int(loops.sum()) == 90
    assert int((~loops).sum()) == pytest.approx(0.6 * 2 * len(graph.edges), rel=0.15)
    assert len(piece.edge_weight) == piece.edge_index.shape[1]
    assert float(seen[0].mean()) == pytest.approx(0.7, abs=0.05)
    assert torch.equal(seen[0], seen[89])  # the same features of all nodes


def test_validations_move_no_draw_of_the_training_on(graph, features, tmp_path):
    losses = []
    for name, every in (("a", 3), ("b", 12)):
        made = settings("gat", 12, training={"validate_every": every, "log_every": 1})
        with RunFolder.create(tmp_path / name, {}) as run:
            train_graph(graph, made, x=features, run=run)
        losses.append([row["loss"] for row in RunFolder(tmp_path / name).metrics()])
    assert losses[0] == losses[1]


def test_the_best_of_the_validations_after_the_warm_up_is_kept(graph, features, monkeypatch):
    """Of a run with none, the last weights, also where early stopping is given a number every time."""
    last = [
        train_graph(graph, settings(steps=14, model=SILENT, training={"patience": patience}), x=features)
        for patience in (0, 3)
    ]
    assert same_weights(*last)
    kept, validate = [], GraphSystem.validation_step

    def watched(self, batch, index):
        validate(self, batch, index)
        kept.append((self.global_step, {name: w.clone() for name, w in self.network.state_dict().items()}))

    monkeypatch.setattr(GraphSystem, "validation_step", watched)
    scores = iter([3.0, 1.0, 2.0])  # after the warm-up

    def log(self, name, value, **options):
        super(GraphSystem, self).log(name, torch.tensor(next(scores)) if name == "val_loss" else value, **options)

    monkeypatch.setattr(GraphSystem, "log", log, raising=False)
    model = train_graph(graph, settings(steps=40, model=SILENT), x=features)
    best = dict(kept)[30]
    assert [step for step, _ in kept] == [10, 20, 30, 40]
    assert all(torch.equal(best[name], weight) for name, weight in model.network.state_dict().items())


def test_pipelines_must_be_fitted_and_summaries_are_what_is_encoded(graph):
    class Short:
        def summarise(self, ids, prompts):
            return [f"{name} heron" for name in ids]

    with pytest.raises(RuntimeError, match="fit"):
        Pipeline(SelectionSettings(), TextSettings(), TextCache()).view(graph, torch.ones(len(graph), 4))
    model = train_graph(graph, settings(steps=12), encoders=words())
    model.pipeline.summarizer = Short()
    view = model.view(graph)
    assert view.read[0] == "n0 heron"
    assert view.texts[0].startswith("Article")
    torch.testing.assert_close(view.prompts[0], model.pipeline.cache.embed(words()[0], ["heron"])[0])
