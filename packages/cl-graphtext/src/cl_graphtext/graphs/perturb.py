"""Structural and textual noise: edges dropped, added or rewired, nodes cut off, words removed."""

import dataclasses
from typing import Literal, get_args

import numpy as np
from contrastive_core.errors import InputError
from jaxtyping import Int

from cl_graphtext.graphs.graph import TextGraph, undirected

Kind = Literal["drop", "add", "rewire", "node-drop", "text-drop"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def graph_perturb(graph: TextGraph, kind: Kind, rate: float, *, seed: int = 0) -> TextGraph:
    """A noisy copy of a graph with the same nodes.

    - ``drop``: a share of the edges is removed.
    - ``add``: random edges are added, the share counted in existing edges.
    - ``rewire``: a share of the edges is replaced by random ones; the number of edges stays.
    - ``node-drop``: a share of the nodes loses all its edges (the nodes stay, so that predictions stay comparable).
    - ``text-drop``: a share of the words of every text and title is removed.

    Args:
        graph: The graph.
        kind: What is disturbed.
        rate: Share in [0, 1]; 0 gives the graph itself.
        seed: The same seed gives the same noise.

    Raises:
        InputError: An unknown kind, or a rate out of range.
    """
    if kind not in KINDS:
        raise InputError("unknown noise", where="--perturb", why=f"got {kind}", remedy=f"one of {', '.join(KINDS)}")
    if not 0 <= rate <= 1:
        raise InputError("a rate of noise lies in [0, 1]", where="--rates, --perturb", why=f"got {rate}")
    if rate == 0:
        return graph
    rng = np.random.default_rng(seed)
    if kind == "text-drop":
        texts = tuple(_drop_words(text, rate, rng) for text in graph.texts)
        titles = tuple(_drop_words(title, rate, rng) for title in graph.titles)
        return dataclasses.replace(graph, texts=texts, titles=titles)
    edges = graph.edges
    count = round(rate * len(edges))
    if kind == "node-drop":
        gone = np.zeros(len(graph), bool)
        gone[rng.permutation(len(graph))[: round(rate * len(graph))]] = True
        return dataclasses.replace(graph, edges=edges[~gone[edges].any(1)])
    if kind == "add":
        return dataclasses.replace(graph, edges=undirected(np.concatenate([edges, new_edges(graph, count, rng)])))
    kept = edges[np.sort(rng.permutation(len(edges))[count:])]
    if kind == "drop":
        return dataclasses.replace(graph, edges=kept)
    return dataclasses.replace(graph, edges=undirected(np.concatenate([kept, new_edges(graph, count, rng)])))


def new_edges(graph: TextGraph, count: int, rng: np.random.Generator) -> Int[np.ndarray, "m 2"]:
    """Uniform random pairs of nodes that are not joined, without repetition; fewer if the graph is that dense."""
    n = len(graph)
    count = min(count, n * (n - 1) // 2 - len(graph.edges))
    taken = graph.edges[:, 0] * n + graph.edges[:, 1]
    drawn = np.zeros(0, np.int64)
    while len(drawn) < count:
        ends = np.sort(rng.integers(0, n, (2 * (count - len(drawn)) + 8, 2)), axis=1)
        keys = (ends[:, 0] * n + ends[:, 1])[ends[:, 0] != ends[:, 1]]
        keys = keys[~np.isin(keys, taken) & ~np.isin(keys, drawn)]
        _, first = np.unique(keys, return_index=True)  # the order drawn, so that cutting off favours no node
        drawn = np.concatenate([drawn, keys[np.sort(first)]])[:count]
    return np.stack([drawn // n, drawn % n], axis=1)


def parse_perturbation(text: str) -> tuple[Kind, float]:
    """``rewire:0.5`` as a kind and a rate.

    Raises:
        InputError: It is not of that form.
    """
    kind, _, rate = text.partition(":")
    try:
        value = float(rate)
    except ValueError:
        value = -1.0
    if kind not in KINDS or not 0 <= value <= 1:
        raise InputError(
            "the noise cannot be read",
            where="--perturb",
            why=f"got {text}",
            remedy=f"write KIND:RATE, with a kind of {', '.join(KINDS)} and a rate in [0, 1]",
        )
    return kind, value  # type: ignore[return-value]


def _drop_words(text: str, rate: float, rng: np.random.Generator) -> str:
    words = text.split()
    return " ".join(word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= rate)
