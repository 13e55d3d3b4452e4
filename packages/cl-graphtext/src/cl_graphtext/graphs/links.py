"""Links held out for prediction, and pairs that are none."""

import dataclasses

import numpy as np
import torch
from contrastive_core.errors import InputError
from jaxtyping import Float, Int
from torch import Tensor

from cl_graphtext.graphs.graph import TextGraph
from cl_graphtext.graphs.perturb import new_edges


@dataclasses.dataclass(frozen=True)
class LinkSplit:
    """Links held out, each undirected one once.

    Attributes:
        messages: Links that messages, selection and prompts may use in training and in testing ``[m 2]``.
        positives: Links learnt in training, disjoint from the messages ``[p 2]``.
        val: Validation pairs ``[2v 2]``, linked ones first.
        test: Test pairs ``[2t 2]``, linked ones first.
    """

    messages: Int[np.ndarray, "m 2"]
    positives: Int[np.ndarray, "p 2"]
    val: Int[np.ndarray, "v 2"]
    test: Int[np.ndarray, "t 2"]

    @staticmethod
    def truth(pairs: Int[np.ndarray, "v 2"]) -> Float[Tensor, " v"]:
        """1 for the first half, 0 for the second."""
        return (torch.arange(len(pairs)) < len(pairs) // 2).float()


def split_links(
    graph: TextGraph, *, val: float = 0.1, test: float = 0.2, disjoint: float = 0.3, seed: int = 0
) -> LinkSplit:
    """Hold links out, as ``torch_geometric.transforms.RandomLinkSplit`` does with ``disjoint_train_ratio``.

    Args:
        graph: The graph.
        val: Share of the links for validation.
        test: Share for the test.
        disjoint: Share of the training links that is learnt and not passed along.
        seed: Seed of the draw, and of one negative a held-out link.

    Raises:
        InputError: There are too few links.
    """
    rng = np.random.default_rng(seed)
    edges = graph.edges[rng.permutation(len(graph.edges))]
    counts = [round(val * len(edges)), round(test * len(edges))]
    rest = len(edges) - sum(counts)
    learnt = round(disjoint * rest)
    if min(*counts, learnt, rest - learnt) < 1:
        raise InputError(
            "there are too few links to predict",
            where="edges",
            why=f"the graph has {len(edges)}",
            remedy="use --task nc",
        )
    negatives = new_edges(graph, sum(counts), rng)
    if len(negatives) < sum(counts):
        raise InputError("the graph is too dense to draw pairs without a link", where="edges")
    parts = np.split(edges, np.cumsum([*counts, learnt]))
    pairs = [
        np.concatenate([part, none]) for part, none in zip(parts[:2], np.split(negatives, [counts[0]]), strict=True)
    ]
    return LinkSplit(messages=parts[3][np.lexsort(parts[3].T[::-1])], positives=parts[2], val=pairs[0], test=pairs[1])


class KnownLinks:
    """Links that must not be drawn as pairs without one.

    Args:
        edges: Undirected links ``[e 2]``.
        nodes: Nodes of the graph.

    Raises:
        InputError: Every pair of nodes is linked.
    """

    def __init__(self, edges: Int[np.ndarray, "e 2"], nodes: int) -> None:
        self.nodes = nodes
        both = np.concatenate([edges, edges[:, ::-1]]).astype(np.int64)
        self._keys = np.unique(both @ np.array([nodes, 1]))
        if len(self._keys) >= nodes * (nodes - 1):
            raise InputError("the graph is too dense to draw pairs without a link", where="edges")

    def negatives(self, count: int, draw: torch.Generator) -> Int[Tensor, "p 2"]:
        """Random pairs of different nodes that are no known links."""
        pairs = torch.zeros(0, 2, dtype=torch.long)
        while len(pairs) < count:
            more = torch.randint(self.nodes, (2 * count, 2), generator=draw)
            keys = more.numpy() @ np.array([self.nodes, 1])
            fine = (more[:, 0] != more[:, 1]) & torch.from_numpy(~np.isin(keys, self._keys))
            pairs = torch.cat([pairs, more[fine]])
        return pairs[:count]
