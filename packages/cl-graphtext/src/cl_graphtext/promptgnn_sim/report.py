"""Pages of a training run and of a comparison under noise."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.report import PALETTE, Report, new_axes, scatter
from contrastive_core.training import RunFolder
from jaxtyping import Float
from torch import Tensor

from cl_graphtext.graphs.graph import TextGraph
from cl_graphtext.graphs.links import LinkSplit
from cl_graphtext.graphs.splits import Split
from cl_graphtext.promptgnn_sim.data import GraphView, prompt_rows
from cl_graphtext.promptgnn_sim.evaluation import Scores, evaluate_classes, link_facts
from cl_graphtext.promptgnn_sim.inference import GraphModel
from cl_graphtext.promptgnn_sim.model import embed_nodes

_TERMS = ("loss", "task", "prompt_text", "graph_text", "zero_shot", "contrast")


def training_report(
    run: RunFolder,
    model: GraphModel,
    view: GraphView,
    scores: Scores,
    facts: Mapping[str, Any],
    split: Split | LinkSplit,
) -> Report:
    """Scores, losses, links before and after selection, examples of prompts, and the map of embeddings.

    Args:
        run: The run, for what it logged.
        model: The model.
        view: The graph as the model sees it.
        scores: Scores of every part.
        facts: What the graph is, see :func:`cl_graphtext.graphs.graph.describe`.
        split: What was held out.
    """
    graph = view.graph
    report = Report(f"{model.settings.method} on {len(graph)} nodes")
    report.facts({name: facts[name] for name in ("nodes", "edges", "isolated nodes", "components", "homophily")})
    report.rows("Scores", [{"part": part, **values} for part, values in scores.items()])
    z = embed_nodes(model.network, view)
    if not isinstance(split, LinkSplit):
        rows = evaluate_classes(model, graph, z, split["test"])
        report.rows("Classes of the test part", rows, note="As: how many nodes of the class were taken for which one.")
    report.metrics(run, "Loss", _TERMS, "loss, weighted")
    report.metrics(run, "Validation loss", ("val_loss",), "loss")
    _add_links(report, view)
    _add_examples(report, model, view)
    labels = ["" if label < 0 else graph.classes[label] for label in graph.labels]
    _add_map(report, z, labels, seed=model.settings.training.seed)
    return report


def robustness_report(
    data: Path, rows: Sequence[Mapping[str, Any]], kind: str, facts: Mapping[str, Any]
) -> tuple[Report, list[dict[str, Any]]]:
    """The page of a comparison under noise, and its table of mean accuracies: a row a rate, a column a method."""
    methods, rates = (list(dict.fromkeys(row[name] for row in rows)) for name in ("method", "rate"))
    curves = {
        m: {r: [row["accuracy"] for row in rows if (row["method"], row["rate"]) == (m, r)] for r in rates}
        for m in methods
    }
    table = [{"rate": rate, **{m: statistics.fmean(curves[m][rate]) for m in methods}} for rate in rates]
    report = Report(f"Robustness of {data.name}: {kind}")
    report.facts(facts)
    figure, axes = new_axes(height=4.5)
    for index, (name, points) in enumerate(curves.items()):
        mean, spread = (np.array([function(points[rate]) for rate in sorted(points)]) for function in (np.mean, np.std))
        color = PALETTE[index % len(PALETTE)]
        axes.plot(sorted(points), mean, color=color, marker="os^vD*"[index % 6], linewidth=1.8, label=name)
        axes.fill_between(sorted(points), mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel=f"rate of noise ({kind})", ylabel="test accuracy")
    axes.legend(frameon=False)
    report.figure("Accuracy against noise", figure, "Band: standard deviation.")
    report.rows("Mean test accuracy", table, best=methods)
    return report, table


def class_name(graph: TextGraph, node: int) -> str:
    """Class of a node, a dash if unknown."""
    label = int(graph.labels[node])
    return "-" if label < 0 else graph.classes[label]


def _add_links(report: Report, view: GraphView) -> None:
    facts = link_facts(view)
    if not facts:
        return
    rows = [
        {"": "as given (undirected)", "links": int(facts["links"]), "homophily": facts["before"]},
        {"": "kept", "links": int(facts["kept"]), "homophily": facts["after"]},
    ]
    report.rows(
        "Links before and after selection", rows, note="Homophily: share of links that join nodes of one class."
    )


def _add_examples(report: Report, model: GraphModel, view: GraphView, *, count: int = 4) -> None:
    """Selected neighbours with scores, keywords and the prompt of a few nodes of different classes."""
    if view.selection is None or not model.pipeline.prompting:
        return
    graph, kept, chosen = view.graph, (view.selection.neighbours >= 0).sum(1).numpy(), list[int]()
    for label in range(len(graph.classes)):
        members = np.flatnonzero(graph.labels == label)
        if len(members) and len(chosen) < count:
            chosen.append(int(members[kept[members].argmax()]))
    place = graph.index()
    for node, row in zip(chosen, prompt_rows(model.pipeline, view, chosen), strict=True):
        report.rows(
            f"Neighbours of {graph.titles[node]} ({class_name(graph, node)})",
            neighbour_rows(graph, row, place),
            note=f"Prompt: {row['prompt']}",
        )


def neighbour_rows(graph: TextGraph, row: Mapping[str, Any], place: Mapping[str, int]) -> list[dict[str, Any]]:
    """Chosen neighbours of one node, see :func:`cl_graphtext.promptgnn_sim.data.prompt_rows`, by title and class."""
    return [
        {
            "neighbour": graph.titles[place[name]],
            "class": class_name(graph, place[name]),
            "link of the graph": linked,
            "cosine": cosine,
            "score": score,
        }
        for name, linked, cosine, score in zip(
            row["neighbours"], row["linked"], row["cosines"], row["scores"], strict=True
        )
    ]


def _add_map(report: Report, z: Float[Tensor, "n w"], labels: Sequence[str], *, seed: int, most: int = 1500) -> None:
    """Embeddings in the plane by t-SNE, of at most so many random nodes with a known label."""
    from sklearn.manifold import TSNE

    known = np.flatnonzero(np.array([bool(label) for label in labels]))
    chosen = np.sort(np.random.default_rng(seed).permutation(known)[:most])
    if len(chosen) < 4:
        return
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    plane = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500)
    figure, axes = new_axes(height=6.5)
    scatter(axes, plane.fit_transform(z.numpy()[chosen]), [labels[i] for i in chosen])
    report.figure("Map of embeddings", figure, f"t-SNE of {len(chosen)} nodes with a known class.")
