"""A graph whose nodes carry text: checked, undirected, without loops and duplicates."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import ContrastiveWarning, InputError
from jaxtyping import Bool, Int
from torch_geometric.data import Data

PARTS = ("train", "val", "test")


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
    split: Mapping[str, Int[np.ndarray, " m"]] = dataclasses.field(default_factory=dict)
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


def mask(nodes: Int[np.ndarray, " m"], count: int) -> Bool[np.ndarray, " n"]:
    """True at the nodes named."""
    found = np.zeros(count, bool)
    found[nodes] = True
    return found


def from_data(data: Data, *, classes: Sequence[str] | None = None, noun: str = "item") -> TextGraph:
    """Any ``torch_geometric`` graph with a list of texts.

    Args:
        data: With ``edge_index``, ``text`` (or ``raw_texts``), and if known ``y``, ``title``, and masks.
        classes: Names of the classes; ``class 0`` and so on if absent.
        noun: What a node is.

    Raises:
        InputError: There is no text, or an edge leads out of the graph.
    """
    texts = getattr(data, "text", None) or getattr(data, "raw_texts", None)
    if texts is None:
        raise InputError("the graph has no text", where="data.text", remedy="add a list of strings, one a node")
    n = len(texts)
    y = getattr(data, "y", None)
    labels = np.full(n, -1) if y is None else y.reshape(-1).cpu().numpy().astype(np.int64)
    names = (
        tuple(classes) if classes is not None else tuple(f"class {i}" for i in range(int(labels.max(initial=-1)) + 1))
    )
    parts = {}
    for part in PARTS:
        chosen = getattr(data, f"{part}_mask", None)
        if chosen is not None and chosen.ndim == 1:  # several splits side by side (WikiCS) are left to the caller
            parts[part] = chosen.nonzero()[:, 0].cpu().numpy()
    titles = getattr(data, "title", None)
    return build(
        ids=[str(i) for i in range(n)],
        texts=texts,
        titles=[""] * n if titles is None else titles,
        labels=labels,
        classes=names,
        edges=data.edge_index.T.cpu().numpy(),
        split=parts,
        noun=noun,
        where="data",
    )


def build(
    *,
    ids: Sequence[str],
    texts: Sequence[str],
    titles: Sequence[str],
    labels: Int[np.ndarray, " n"],
    classes: Sequence[str],
    edges: Int[np.ndarray, "e 2"],
    descriptions: Sequence[str] | None = None,
    split: Mapping[str, Int[np.ndarray, " m"]] | None = None,
    noun: str = "item",
    where: object = None,
) -> TextGraph:
    """Check parts of a graph, repair what can be repaired with a note, and put them together.

    White space in texts is collapsed. Self-loops and duplicates are removed; empty texts, isolated nodes and separate
    components are allowed.

    Raises:
        InputError: Node ids repeat, an edge leads out of the graph, the labels do not fit, a split overlaps.
    """
    n = len(ids)
    if n == 0:
        raise InputError("the graph has no nodes", where=where)
    if len(set(ids)) != n:
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError("a node id occurs twice", where=where, why=f"for instance {twice}")
    if len(texts) != n or len(titles) != n or len(labels) != n:
        raise InputError(
            "nodes, texts and labels differ in number", where=where, why=f"{n}, {len(texts)} and {len(labels)}"
        )
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    if len(edges) and (edges.min() < 0 or edges.max() >= n):
        worst = edges[((edges < 0) | (edges >= n)).any(1)][0].tolist()
        raise InputError(
            "an edge leads to a node that is not there",
            where=where,
            why=f"the edge {worst}, with nodes 0 to {n - 1}",
            remedy="remove the edge, or add the node",
        )
    cleaned = tuple(" ".join(str(text or "").split()) for text in texts)
    named = tuple(" ".join(str(title or "").split()) for title in titles)
    unique = undirected(edges)
    loops = int((edges[:, 0] == edges[:, 1]).sum())
    directed = np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)
    repeated = len(edges) - loops - len(directed)
    empty = sum(not (text or title) for text, title in zip(cleaned, named, strict=True))
    for count, what in (
        (loops, "self-loops were removed"),
        (repeated, "duplicate edges were removed"),
        (empty, "nodes have neither text nor title: they are described by their links alone"),
    ):
        if count:
            warnings.warn(f"{where}: {count} {what}", ContrastiveWarning, stacklevel=2)
    labels = np.asarray(labels, np.int64)
    if labels.max(initial=-1) >= len(classes):
        raise InputError("a label has no class", where=where, why=f"label {labels.max()}, {len(classes)} classes")
    return TextGraph(
        ids=tuple(map(str, ids)),
        texts=cleaned,
        titles=tuple(title or " ".join(text.split()[:12]) for title, text in zip(named, cleaned, strict=True)),
        labels=labels,
        classes=tuple(classes),
        descriptions=tuple(descriptions) if descriptions else tuple(name.replace("_", " ") for name in classes),
        edges=unique,
        split=_checked_split(split or {}, n, where),
        noun=noun,
    )


def _checked_split(split: Mapping[str, Any], n: int, where: object) -> dict[str, np.ndarray]:
    parts = {part: np.unique(np.asarray(split[part], np.int64)) for part in PARTS if part in split}
    together = np.concatenate([np.zeros(0, np.int64), *parts.values()])
    if len(together) and (together.min() < 0 or together.max() >= n):
        raise InputError("a split names a node that is not there", where=where, why=f"nodes are 0 to {n - 1}")
    if len(np.unique(together)) != len(together):
        raise InputError("a node stands in two parts of the split", where=where)
    return parts


def full_texts(graph: TextGraph) -> list[str]:
    """What the text encoder reads of every node: title and text, the title once."""
    return [
        text if text.startswith(title.rstrip(".")) else f"{title}. {text}".strip(". ")
        for title, text in zip(graph.titles, graph.texts, strict=True)
    ]


def random_split(
    labels: Int[np.ndarray, " n"],
    *,
    rate: str = "60/20/20",
    seed: int = 0,
) -> dict[str, Int[np.ndarray, " m"]]:
    """Draw training, validation and test nodes among the labelled ones.

    Args:
        labels: Class of every node, -1 where unknown.
        rate: Shares such as ``60/20/20``, drawn over all nodes; or ``20-per-class``: so many training nodes a class,
            then up to 500 for validation and up to 1,000 for the test.
        seed: Seed of the draw.

    Raises:
        InputError: The rate cannot be read, or a class is too small for it.
    """
    known = np.flatnonzero(labels >= 0)
    rng = np.random.default_rng(seed)
    if rate.endswith("-per-class"):
        count = _whole(rate.removesuffix("-per-class"))
        train = []
        for label in np.unique(labels[known]):
            mine = rng.permutation(known[labels[known] == label])
            if len(mine) <= count:
                raise InputError(
                    "a class is too small for the split",
                    where="--split",
                    why=f"class {label} has {len(mine)} nodes, {count} are to train",
                    remedy="use fewer nodes per class, or shares such as 60/20/20",
                )
            train.append(mine[:count])
        first = np.concatenate([np.zeros(0, np.int64), *train])
        rest = rng.permutation(np.setdiff1d(known, first))
        held = min(500, len(rest) // 3)
        parts = (first, rest[:held], rest[held : held + 1000])
    else:
        shares = [_whole(word) for word in rate.split("/")]
        if len(shares) != 3 or sum(shares) != 100 or min(shares[0], shares[2]) < 1:
            raise _unknown_rate(rate)
        order = rng.permutation(known)
        ends = np.round(np.cumsum(shares[:2]) / 100 * len(order)).astype(int)
        parts = (order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :])
    return {part: np.sort(nodes) for part, nodes in zip(PARTS, parts, strict=True)}


def check_trainable(graph: TextGraph, split: Mapping[str, Int[np.ndarray, " m"]]) -> None:
    """Refuse to classify with training labels of one class.

    Raises:
        InputError: Fewer than two classes have training labels.
    """
    train = graph.labels[split["train"]]
    present = np.unique(train[train >= 0])
    if len(present) < 2:
        found = graph.classes[present[0]] if len(present) else "none"
        raise InputError(
            "node classification needs training labels of two classes",
            where="labels",
            why=f"found {found}",
            remedy="label nodes of another class, or use --task lp",
        )


def note_unlabelled_classes(graph: TextGraph, split: Mapping[str, Int[np.ndarray, " m"]]) -> None:
    """Say so when a class of the graph has no training label."""
    present = np.unique(graph.labels[split["train"]])
    missing = [name for i, name in enumerate(graph.classes) if i not in present and (graph.labels == i).any()]
    if missing:
        warnings.warn(
            f"no training label for {', '.join(missing)}: it will never be predicted", ContrastiveWarning, stacklevel=2
        )


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


def _whole(word: str) -> int:
    if not word.isdigit():
        raise _unknown_rate(word)
    return int(word)


def _unknown_rate(rate: str) -> InputError:
    return InputError(
        "the split cannot be read",
        where="--split",
        why=f"got {rate}",
        remedy="use shares that add up to 100, such as 60/20/20, or 20-per-class",
    )
