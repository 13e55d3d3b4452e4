"""Pictures and tables of reports: robustness curves, selected neighbours, homophily, the map of embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contrastive_core.report import PALETTE, Report, scatter
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from cl_graphtext.graph import homophily
from cl_graphtext.promptgnn_sim.pipeline import GraphView, Pipeline, prompt_rows


def robustness_figure(curves: Mapping[str, Mapping[float, Sequence[float]]], kind: str, score: str) -> Figure:
    """Mean and spread of a score over seeds against the rate of noise, a line a method."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        rates = sorted(points)
        mean = np.array([np.mean(points[rate]) for rate in rates])
        spread = np.array([np.std(points[rate]) for rate in rates])
        color = PALETTE[index % len(PALETTE)]
        axes.plot(rates, mean, color=color, marker="os^vD*"[index % 6], linewidth=1.8, label=name)
        axes.fill_between(rates, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel=f"rate of noise ({kind})", ylabel=score)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def map_figure(z: Float[Tensor, "n w"], labels: Sequence[str], *, seed: int = 0, most: int = 1500) -> Figure:
    """Embeddings in the plane by t-SNE, of at most so many random nodes with a known label."""
    from sklearn.manifold import TSNE

    known = np.flatnonzero(np.array([bool(label) for label in labels]))
    chosen = np.sort(np.random.default_rng(seed).permutation(known)[:most])
    rows = z.numpy()[chosen]
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    axes = figure.subplots()
    if len(chosen) >= 4:
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500).fit_transform(rows)
        scatter(axes, points, [labels[i] for i in chosen], f"t-SNE of the embeddings of {len(chosen)} nodes")
    return figure


def add_homophily(report: Report, view: GraphView) -> dict[str, float] | None:
    """Homophily of the links before and after selection, over nodes with a known label; None before selection."""
    if view.selection is None:
        return None
    kept = view.selection.edges()
    values = {
        "before": homophily(view.graph.edges, view.graph.labels),
        "after": homophily(kept, view.graph.labels),
        "links": float(len(view.graph.edges)),
        "kept": float(len(kept)),
        "neighbours kept a node": float((view.selection.neighbours >= 0).sum(1).float().mean()),
    }
    report.table(
        "Links before and after selection",
        ["", "links", "homophily"],
        [
            ["as given (undirected)", int(values["links"]), values["before"]],
            ["kept", int(values["kept"]), values["after"]],
        ],
        note="Homophily: share of links that join nodes of one class.",
    )
    return values


def add_examples(report: Report, pipeline: Pipeline, view: GraphView, *, count: int = 4) -> None:
    """Selected neighbours with scores, keywords and the prompt of a few nodes of different classes."""
    if view.selection is None or not pipeline.prompting:
        return
    graph, chosen = view.graph, list[int]()
    for label in range(len(graph.classes)):
        mine = np.flatnonzero(graph.labels == label)
        kept = (view.selection.neighbours[mine] >= 0).sum(1).numpy() if len(mine) else np.zeros(0)
        if len(mine) and len(chosen) < count:
            chosen.append(int(mine[kept.argmax()]))
    place = graph.index()
    for row in prompt_rows(pipeline, view, chosen):
        node = place[row["node_id"]]
        report.table(
            f"Neighbours of {graph.titles[node]} ({class_name(view, node)})",
            ["neighbour", "class", "link of the graph", "cosine", "score"],
            [
                [graph.titles[place[name]], class_name(view, place[name]), "yes" if linked else "no", cosine, score]
                for name, linked, cosine, score in zip(
                    row["neighbours"], row["linked"], row["cosines"], row["scores"], strict=True
                )
            ],
            note=f"Prompt: {row['prompt']}",
        )


def class_name(view: GraphView, node: int) -> str:
    """Class of a node, a dash if unknown."""
    label = int(view.graph.labels[node])
    return "-" if label < 0 else view.graph.classes[label]


def score_rows(results: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table of scores, a row a part."""
    names = list(dict.fromkeys(name for scores in results.values() for name in scores))
    return ["part", *names], [[part, *(scores.get(name) for name in names)] for part, scores in results.items()]
