"""Neighbour sampling over a compressed graph, exact, seeded and without compiled extensions."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Csr:
    """In-neighbours of every node, compressed: those of node i are ``sources[indptr[i]:indptr[i + 1]]``.

    Attributes:
        indptr: ``[n + 1]``.
        sources: ``[e]``.
        weights: One number an edge.
    """

    indptr: Int[np.ndarray, " n1"]
    sources: Int[np.ndarray, " e"]
    weights: Float[np.ndarray, " e"]

    @classmethod
    def of(
        cls,
        sources: Int[np.ndarray, " e"],
        targets: Int[np.ndarray, " e"],
        nodes: int,
        weights: Float[np.ndarray, " e"] | None = None,
    ) -> "Csr":
        """Compress directed edges ``source -> target``."""
        order = np.lexsort((sources, targets))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(targets, minlength=nodes))]).astype(np.int64)
        values = np.ones(len(sources), np.float32) if weights is None else np.asarray(weights, np.float32)
        return cls(indptr, np.asarray(sources)[order].astype(np.int32), values[order])

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def degree(self) -> Int[np.ndarray, " n"]:
        """In-neighbours of every node."""
        return np.diff(self.indptr)

    def targets(self) -> Int[np.ndarray, " e"]:
        """Target of every edge, in the order of ``sources``."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.degree)

    def places(self, nodes: Int[np.ndarray, " m"]) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """Positions of all edges into some nodes, and for each the index into ``nodes`` of its target."""
        counts = self.degree[nodes]
        group = np.repeat(np.arange(len(nodes)), counts)
        offset = np.cumsum(counts) - counts
        return self.indptr[nodes][group] + np.arange(len(group)) - offset[group], group


@dataclasses.dataclass(frozen=True)
class Block:
    """A piece of a graph around some target nodes.

    Attributes:
        nodes: Global indices, the targets first.
        edge_index: ``[2 e]`` source and target, local.
        edge_weight: ``[e 1]``.
        targets: How many of the nodes are targets.
    """

    nodes: Int[Tensor, " m"]
    edge_index: Int[Tensor, "2 e"]
    edge_weight: Float[Tensor, "e 1"]
    targets: int

    def to(self, device: torch.device) -> "Block":
        """The same on another device."""
        return Block(self.nodes.to(device), self.edge_index.to(device), self.edge_weight.to(device), self.targets)


def sample_neighbours(
    csr: Csr, nodes: Int[np.ndarray, " m"], fanout: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """At most ``fanout`` in-edges of every node, uniformly without replacement; all with ``fanout=-1``.

    Returns:
        Positions of the edges in the graph, and for each the index into ``nodes`` of its target.
    """
    places, group = csr.places(nodes)
    if fanout < 0 or not len(places):
        return places, group
    # A random order inside every group; its first ones are a uniform draw.
    order = np.argsort(group + rng.random(len(group)), kind="stable")
    counts = csr.degree[nodes]
    start = np.cumsum(counts) - counts
    kept = np.sort(order[np.arange(len(group)) - start[group] < fanout])
    return places[kept], group[kept]


def sample_block(
    csr: Csr,
    targets: Int[np.ndarray, " m"],
    fanouts: Sequence[int],
    rng: np.random.Generator,
    *,
    self_weight: float = 1.0,
) -> Block:
    """The neighbourhood of some nodes, hop by hop, as ``torch_geometric.loader.NeighborLoader`` draws it.

    In every hop the nodes found in the last one get at most ``fanout`` of their in-neighbours. Edges lead from the
    neighbour to the node it was drawn for. Every node also has an edge to itself.

    Args:
        csr: The graph, without self-loops.
        targets: Distinct nodes.
        fanouts: Neighbours of a node in each hop, -1 for all.
        rng: Source of randomness.
        self_weight: Weight of the edges from a node to itself.
    """
    local = np.full(len(csr), -1, np.int64)
    known = np.asarray(targets, np.int64)
    local[known] = np.arange(len(known))
    frontier, parts = known, []
    for fanout in fanouts:
        places, group = sample_neighbours(csr, frontier, fanout, rng)
        sources = csr.sources[places].astype(np.int64)
        fresh = np.unique(sources[local[sources] < 0])
        local[fresh] = len(known) + np.arange(len(fresh))
        known = np.concatenate([known, fresh])
        parts.append((local[sources], local[frontier[group]], csr.weights[places]))
        frontier = fresh
    loops = np.arange(len(known))
    sources, ends, weights = (
        np.concatenate([*column, extra])
        for column, extra in zip(
            zip(*parts, strict=True), (loops, loops, np.full(len(known), self_weight, np.float32)), strict=True
        )
    )
    return Block(
        torch.from_numpy(known),
        torch.from_numpy(np.stack([sources, ends])),
        torch.from_numpy(weights.astype(np.float32))[:, None],
        len(targets),
    )


def whole_block(csr: Csr, *, self_weight: float = 1.0) -> Block:
    """The whole graph with all its edges and one from every node to itself."""
    loops = np.arange(len(csr))
    sources, ends = np.concatenate([csr.sources, loops]), np.concatenate([csr.targets(), loops])
    weights = np.concatenate([csr.weights, np.full(len(csr), self_weight, np.float32)])
    return Block(
        torch.arange(len(csr)),
        torch.from_numpy(np.stack([sources, ends]).astype(np.int64)),
        torch.from_numpy(weights)[:, None],
        len(csr),
    )


class Neighbourhoods:
    """Pieces of one graph for a network: all of it, or samples.

    Args:
        csr: Whom messages come from.
        fanout: In-neighbours sampled a node and hop; -1 for the whole graph.
    """

    def __init__(self, csr: Csr, fanout: int) -> None:
        self.csr, self.fanout = csr, fanout
        self._whole: Block | None = None

    def around(self, nodes: Int[Tensor, " m"], draw: torch.Generator) -> tuple[Block, Int[Tensor, " m"]]:
        """A piece that holds the neighbourhoods of some nodes, and their places in it."""
        if self.fanout < 0:
            self._whole = whole_block(self.csr) if self._whole is None else self._whole
            return self._whole, nodes
        distinct, place = torch.unique(nodes, return_inverse=True)
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=draw)))
        return sample_block(self.csr, distinct.numpy(), (self.fanout, self.fanout), rng), place
