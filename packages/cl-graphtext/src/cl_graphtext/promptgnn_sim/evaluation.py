"""Numbers from a model and labelled graphs: on held-out parts, under noise, on other graphs, beside baselines."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from contrastive_core.errors import InputError, require
from contrastive_core.evaluation import fit_probe
from jaxtyping import Float, Int
from torch import Tensor

from cl_graphtext.graphs.graph import TextGraph, homophily
from cl_graphtext.graphs.in_memory import Graph, as_graph
from cl_graphtext.graphs.links import LinkSplit, split_links
from cl_graphtext.graphs.metrics import class_rows, classification_metrics, link_metrics
from cl_graphtext.graphs.perturb import Kind, graph_perturb, new_edges
from cl_graphtext.graphs.splits import PARTS, Split
from cl_graphtext.promptgnn_sim.data import GraphView, Pipeline, node_split
from cl_graphtext.promptgnn_sim.inference import GraphModel
from cl_graphtext.promptgnn_sim.model import Method, embed_nodes
from cl_graphtext.promptgnn_sim.system import Settings
from cl_graphtext.promptgnn_sim.training import train_graph
from cl_graphtext.texts.cache import TextCache

Scores = dict[str, dict[str, float]]


def evaluate(
    model: GraphModel,
    graph: Graph,
    split: Split | LinkSplit | None = None,
    *,
    x: Float[Tensor, "n d"] | None = None,
    view: GraphView | None = None,
) -> Scores:
    """Scores of every part: accuracy and macro-F1 of classes; AUC, average precision, accuracy and F1 of links.

    Args:
        model: The model.
        graph: The graph. Messages pass along the message links of the split alone.
        split: Parts of the nodes or links; those of training if absent.
        x: Embeddings of the texts, if known.
        view: The graph as the model sees it, where that is known.
    """
    graph = as_graph(graph)
    split = model.settings.parts(graph) if split is None else split
    if isinstance(split, LinkSplit):
        view = model.view(graph.with_edges(split.messages), x) if view is None else view
        z = embed_nodes(model.network, view)
        return {
            part: link_metrics(LinkSplit.truth(pairs).numpy(), model.link_probabilities(z, pairs).numpy())
            for part, pairs in (("val", split.val), ("test", split.test))
        }
    z = embed_nodes(model.network, model.view(graph, x) if view is None else view)
    predicted = model.probabilities(z).argmax(1).numpy()
    return {
        part: classification_metrics(graph.labels[split[part]], predicted[split[part]])
        for part in PARTS
        if len(split.get(part, ()))
    }


def evaluate_classes(
    model: GraphModel, graph: TextGraph, z: Float[Tensor, "n w"], nodes: Int[np.ndarray, " m"]
) -> list[dict[str, Any]]:
    """Precision, recall and F1 of every class on some nodes, with what its nodes were taken for."""
    predicted = model.probabilities(z).argmax(1).numpy()
    return class_rows(graph.labels[nodes], predicted[nodes], model.classes)


def evaluate_noise(
    model: GraphModel,
    graph: TextGraph,
    noises: Sequence[tuple[Kind, float]],
    *,
    seeds: int = 3,
    x: Float[Tensor, "n d"] | None = None,
) -> Iterator[dict[str, Any]]:
    """Test scores on the graph as it is, then under noise the model was not trained with: one row a noise and draw.

    Args:
        model: The model.
        graph: The graph.
        noises: Kinds and rates.
        seeds: Draws of each noise.
        x: Embeddings of the texts, if known; not used where words are dropped.
    """
    require(1 <= seeds <= 10_000, "--seeds", seeds, "a whole number, at least 1")
    parts = model.settings.parts(graph)
    clean: list[tuple[Kind, float]] = [("drop", 0.0)]
    for kind, rate in [*clean, *noises]:
        for seed in range(seeds if rate else 1):
            if isinstance(parts, LinkSplit):
                noisy = graph_perturb(graph.with_edges(parts.messages), kind, rate, seed=seed)
                used: Split | LinkSplit = dataclasses.replace(parts, messages=noisy.edges)
            else:
                noisy, used = graph_perturb(graph, kind, rate, seed=seed), parts
            known = None if kind == "text-drop" and rate else x
            scores = evaluate(model, noisy, used, x=known)["test"]
            yield {"noise": f"{kind}:{rate:g}" if rate else "none", "draw": seed, **scores}


def evaluate_zero_shot(model: GraphModel, graph: TextGraph, x: Float[Tensor, "n d"] | None = None) -> dict[str, float]:
    """Accuracy of zero-shot classes on a graph the model was not trained on, beside the share of the largest class."""
    scores = classification_metrics(graph.labels, model.zero_shot(graph, x).argmax(1).numpy())
    known = graph.labels[graph.labels >= 0]
    return {**scores, "largest_class": float(np.bincount(known).max() / len(known)) if len(known) else float("nan")}


def evaluate_transferred_links(
    model: GraphModel, graph: TextGraph, x: Float[Tensor, "n d"] | None = None, *, seed: int = 0
) -> dict[str, float]:
    """Links of another graph, from frozen embeddings and a logistic regression on its own training links."""
    links = split_links(graph, seed=seed)
    z = model.embed(graph.with_edges(links.messages), x).numpy()
    known = graph.with_edges(np.concatenate([links.messages, links.positives]))
    pairs = np.concatenate([links.positives, new_edges(known, len(links.positives), np.random.default_rng(seed))])
    truth = (np.arange(len(pairs)) < len(links.positives)).astype(np.int64)
    probe = fit_probe(_pair_features(z, pairs), truth, strength=1.0)
    probability = probe.predict_proba(_pair_features(z, links.test))[:, 1].astype(np.float32)
    return link_metrics(LinkSplit.truth(links.test).numpy(), probability)


def robustness(
    graph: TextGraph,
    settings: Settings,
    *,
    methods: Sequence[Method],
    kind: Kind,
    rates: Sequence[float],
    seeds: int,
    x: Float[Tensor, "n d"] | None = None,
    cache: TextCache | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Test scores of every method, trained and tested on the disturbed graph, over rates and seeds.

    Args:
        graph: The graph, with labels.
        settings: Those of every method; seeds are counted from its own, the method is replaced.
        methods: Methods to compare.
        kind: Noise.
        rates: Its rates.
        seeds: Seeds of split, noise and weights.
        x: Embeddings of the texts; not with text-drop.
        cache: Embeddings already known.
        tell: Called with every row as soon as it is there.

    Raises:
        InputError: A rate or number of seeds out of range, or embeddings for texts that change.
    """
    require(1 <= seeds <= 10_000, "--seeds", seeds, "a whole number, at least 1")
    if settings.task != "nc" or not settings.fused:
        raise InputError("classes are compared, by --methods", where="--task, --method", remedy="leave them out")
    if x is not None and kind == "text-drop":
        raise InputError("features do not change with the texts", where="--features, --kind text-drop")
    for rate in rates:
        graph_perturb(graph, kind, rate)  # refuses before anything is trained
    cache = TextCache() if cache is None else cache
    read = x is None or (settings.prompting and "promptgnn-sim" in methods)
    shared = Pipeline(settings.selection, settings.text, cache, prompting=settings.prompting)
    encoders = shared.encoders if read and not settings.text.lora else None  # loaded once
    rows: list[dict[str, Any]] = []
    for turn in range(seeds):
        seed = settings.training.seed + turn
        split = node_split(graph, settings.split, settings.split_seed + turn)
        for rate in rates:
            noisy = graph_perturb(graph, kind, rate, seed=seed)
            for method in methods:
                training = dataclasses.replace(settings.training, seed=seed)
                own = dataclasses.replace(settings, method=method, training=training)
                model = train_graph(noisy, own, split=split, x=x, cache=cache, encoders=encoders)
                rows.append(
                    {"method": method, "rate": rate, "seed": seed, **evaluate(model, noisy, split, x=x)["test"]}
                )
                tell(rows[-1])
    return rows


def means(rows: Sequence[Mapping[str, Any]], name: str, *, leave_out: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Mean of every number over the rows of one name, a row a name, with how many there were."""
    groups = {key: [row for row in rows if row[name] == key] for key in dict.fromkeys(row[name] for row in rows)}
    numbers = [each for each in rows[0] if each not in (name, *leave_out)] if rows else []
    return [
        {name: key, **{each: statistics.fmean(row[each] for row in group) for each in numbers}, "draws": len(group)}
        for key, group in groups.items()
    ]


def link_facts(view: GraphView) -> dict[str, float]:
    """Homophily of the links before and after selection, over nodes with a known label; empty before selection."""
    if view.selection is None:
        return {}
    kept = view.selection.edges()
    return {
        "before": homophily(view.graph.edges, view.graph.labels),
        "after": homophily(kept, view.graph.labels),
        "links": float(len(view.graph.edges)),
        "kept": float(len(kept)),
        "neighbours kept a node": float((view.selection.neighbours >= 0).sum(1).float().mean()),
    }


def _pair_features(z: Float[np.ndarray, "n w"], pairs: Int[np.ndarray, "p 2"]) -> Float[np.ndarray, "p v"]:
    a, b = z[pairs[:, 0]], z[pairs[:, 1]]
    return np.concatenate([a * b, np.abs(a - b)], axis=1)
