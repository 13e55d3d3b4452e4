"""A graph whose nodes carry text: checked, undirected, without loops and duplicates."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import ContrastiveWarning, InputError
from jaxtyping import Int
from torch_geometric.data import Data

from cl_graphtext.graphs.splits import Split, checked_split, mask
from cl_graphtext.texts.reading import mended


@dataclasses.dataclass(frozen=True)
class TextGraph:
    """Nodes with text, title and label, and undirected edges.

    Attributes:
        ids: Name of every node, unique.
        texts: Its text; may be empty.
        titles: Its title; the first words of the text where it has none.
        labels: Class index ``[n]``, -1 where unknown.
        classes: Names of the classes.
        descriptions: One text a class, for zero-shot prototypes; its name where there is nothing better.
        edges: ``[e 2]``, each undirected edge once with the smaller index first, sorted.
        split: Part -> indices of its nodes, or empty if the data bring no split.
        noun: What a node is: paper, article, product, package.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    titles: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    classes: tuple[str, ...]
    descriptions: tuple[str, ...]
    edges: Int[np.ndarray, "e 2"]
    split: Split = dataclasses.field(default_factory=dict)
    noun: str = "item"

    def __post_init__(self) -> None:
        n = len(self.ids)
        if not (len(self.texts) == len(self.titles) == len(self.labels) == n):
            raise ValueError("ids, texts, titles and labels have one entry a node")
        if len(self.edges) and (self.edges.min() < 0 or self.edges.max() >= n):
            raise ValueError(f"edges join nodes 0 to {n - 1}")
        if len(self.labels) and self.labels.max(initial=-1) >= len(self.classes):
            raise ValueError("a label has no class")

    def __len__(self) -> int:
        return len(self.ids)

    def with_edges(self, edges: Int[np.ndarray, "e 2"]) -> "TextGraph":
        """The same nodes, joined otherwise; edges are made undirected and unique."""
        return dataclasses.replace(self, edges=undirected(edges))

    def subgraph(self, nodes: Int[np.ndarray, " m"]) -> "TextGraph":
        """The graph between some of the nodes, in the order given; a split is left out."""
        place = np.full(len(self), -1)
        place[nodes] = np.arange(len(nodes))
        ends = place[self.edges]
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[i] for i in nodes),
            texts=tuple(self.texts[i] for i in nodes),
            titles=tuple(self.titles[i] for i in nodes),
            labels=self.labels[nodes],
            edges=undirected(ends[(ends >= 0).all(1)]),
            split={},
        )

    def index(self) -> dict[str, int]:
        """Position of every node id."""
        return {name: place for place, name in enumerate(self.ids)}

    def to_data(self, x: torch.Tensor | None = None) -> Data:
        """As ``torch_geometric`` knows it: ``x``, ``edge_index`` with both directions, ``y``, ``text``, masks."""
        data = Data(
            x=x,
            # Links go both ways, so the order by target and source is that by source and target of their reverse.
            edge_index=torch.from_numpy(both_directions(self.edges)[:, ::-1].T.copy()),
            y=torch.from_numpy(self.labels.astype(np.int64)),
            num_nodes=len(self),
        )
        data.text = list(self.texts)
        for part, nodes in self.split.items():
            data[f"{part}_mask"] = torch.from_numpy(mask(nodes, len(self)))
        return data


def undirected(edges: Int[np.ndarray, "e 2"]) -> Int[np.ndarray, "f 2"]:
    """Each undirected edge once, the smaller end first, sorted; without self-loops."""
    edges = np.sort(np.asarray(edges, np.int64).reshape(-1, 2), axis=1)
    return np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)


def both_directions(edges: Int[np.ndarray, "e 2"]) -> Int[np.ndarray, "f 2"]:
    """Every edge in both directions, sorted by target and then source; columns source, target."""
    pairs = np.concatenate([edges, edges[:, ::-1]]).astype(np.int64)
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]


def degrees(edges: Int[np.ndarray, "e 2"], nodes: int) -> Int[np.ndarray, " n"]:
    """Links of every node."""
    return np.bincount(np.asarray(edges).reshape(-1), minlength=nodes)


def homophily(edges: Int[np.ndarray, "e 2"], labels: Int[np.ndarray, " n"]) -> float:
    """Share of edges between known labels that join equal ones; NaN if there are none."""
    ends = labels[np.asarray(edges).reshape(-1, 2)]
    known = ends[(ends >= 0).all(1)]
    return float((known[:, 0] == known[:, 1]).mean()) if len(known) else float("nan")


def build(
    *,
    ids: Sequence[str],
    texts: Sequence[str],
    titles: Sequence[str],
    labels: Int[np.ndarray, " n"],
    classes: Sequence[str],
    edges: Int[np.ndarray, "e 2"],
    descriptions: Sequence[str] | None = None,
    split: Split | None = None,
    noun: str = "item",
    where: object = None,
) -> TextGraph:
    """Check parts of a graph, repair what can be repaired with a note, and put them together.

    White space in texts is collapsed, half characters are replaced. Self-loops and duplicates are removed; empty texts,
    isolated nodes and separate components are allowed.

    Raises:
        InputError: Node ids or classes repeat, an edge leads out of the graph, the labels do not fit, a split overlaps.
    """
    n = len(ids)
    if n == 0:
        raise InputError("the graph has no nodes", where=where)
    for what, names in (("a node id occurs twice", ids), ("a class is listed twice", classes)):
        if len(set(names)) != len(names):
            seen: set[str] = set()
            twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InputError(what, where=where, why=f"for instance {twice}")
    if len(texts) != n or len(titles) != n or len(labels) != n:
        raise InputError(
            "nodes, texts and labels differ in number",
            where=where,
            why=f"{n} nodes, {len(texts)} texts, {len(titles)} titles, {len(labels)} labels",
        )
    labels = np.asarray(labels, np.int64)
    if labels.max(initial=-1) >= len(classes) or labels.min(initial=-1) < -1:
        worst = labels[(labels >= len(classes)) | (labels < -1)][0]
        raise InputError("a label has no class", where=where, why=f"label {worst}, {len(classes)} classes")
    cleaned, named = (tuple(" ".join(mended(text).split()) for text in column) for column in (texts, titles))
    empty = sum(not (text or title) for text, title in zip(cleaned, named, strict=True))
    if empty:
        _note(where, empty, "nodes have neither text nor title: they are described by their links alone")
    return TextGraph(
        ids=tuple(ids),
        texts=cleaned,
        titles=tuple(title or " ".join(text.split()[:12]) for title, text in zip(named, cleaned, strict=True)),
        labels=labels,
        classes=tuple(classes),
        descriptions=tuple(descriptions) if descriptions else tuple(name.replace("_", " ") for name in classes),
        edges=_checked_edges(np.asarray(edges, np.int64).reshape(-1, 2), n, where),
        split=checked_split(split or {}, n, where),
        noun=noun,
    )


def _checked_edges(edges: Int[np.ndarray, "e 2"], n: int, where: object) -> Int[np.ndarray, "f 2"]:
    """Edges once each and undirected, with notes of what was removed."""
    if len(edges) and (edges.min() < 0 or edges.max() >= n):
        worst = edges[((edges < 0) | (edges >= n)).any(1)][0].tolist()
        raise InputError(
            "an edge leads to a node that is not there",
            where=where,
            why=f"the edge {worst}, with nodes 0 to {n - 1}",
            remedy="remove the edge, or add the node",
        )
    joining = edges[edges[:, 0] != edges[:, 1]]
    loops, repeated = len(edges) - len(joining), len(joining) - len(np.unique(joining, axis=0))
    if loops:
        _note(where, loops, "self-loops were removed")
    if repeated:
        _note(where, repeated, "duplicate edges were removed")
    return undirected(edges)


def _note(where: object, count: int, what: str) -> None:
    warnings.warn(f"{where}: {count} {what}", ContrastiveWarning, stacklevel=4)


def full_texts(graph: TextGraph) -> list[str]:
    """What the text encoder reads of every node: title and text, the title once."""
    return [
        text if text.startswith(title.rstrip(".")) else f"{title}. {text}".strip(". ")
        for title, text in zip(graph.titles, graph.texts, strict=True)
    ]


def describe(graph: TextGraph) -> dict[str, Any]:
    """Facts of a graph, for reports and ``import``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    degree = degrees(graph.edges, len(graph))
    adjacency = coo_array((np.ones(len(graph.edges)), (graph.edges[:, 0], graph.edges[:, 1])), shape=(len(graph),) * 2)
    return {
        "nodes": len(graph),
        "edges": len(graph.edges),
        "classes": {name: int((graph.labels == i).sum()) for i, name in enumerate(graph.classes)},
        "unlabelled": int((graph.labels < 0).sum()),
        "empty texts": sum(not text for text in graph.texts),
        "isolated nodes": int((degree == 0).sum()),
        "components": int(connected_components(adjacency, directed=False)[0]),
        "median degree": float(np.median(degree)),
        "largest degree": int(degree.max(initial=0)),
        "homophily": homophily(graph.edges, graph.labels),
    }
