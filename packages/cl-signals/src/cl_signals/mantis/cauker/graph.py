"""The random structural causal model of a CauKer graph: roots are Gaussian processes, every other node a function of its parents."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cl_signals.mantis.cauker.banks import Activation

Series = Float[np.ndarray, " length"]


@dataclass(frozen=True)
class Graph:
    """A directed acyclic graph whose nodes are numbered in topological order.

    Attributes:
        parents: For each node, its distinct parents, all of a smaller number; empty for a root. Node 0 is a root.
    """

    parents: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.parents)


def draw_graph(nodes: int, most_parents: int, rng: np.random.Generator) -> Graph:
    """Draw a graph: node i has n_i ~ U{0..min(i, most_parents)} distinct earlier nodes for parents.

    Args:
        nodes: Number of nodes V, at least 1.
        most_parents: Largest in-degree P.
        rng: Source of all draws.
    """
    parents: list[tuple[int, ...]] = []
    for node in range(nodes):
        count = int(rng.integers(0, min(node, most_parents) + 1))
        parents.append(tuple(int(parent) for parent in rng.permutation(node)[:count]))
    return Graph(tuple(parents))


class StructuralModel:
    """Values on the nodes of one graph, computed when asked for.

    A root's value comes from ``root``. Any other node draws weights and a bias ~ N(0, 1) and an activation f, and takes
    ``f(Σ_p w_p · value_p + b)``. Nodes that no asked-for node descends from are never computed.

    Args:
        graph: Who depends on whom.
        root: Draws the value of one root.
        activations: The bank f is drawn from, uniformly, once a node.
        rng: Source of all draws; values depend on the order in which nodes are asked for.
    """

    def __init__(
        self,
        graph: Graph,
        root: Callable[[np.random.Generator], Series],
        activations: tuple[Activation, ...],
        rng: np.random.Generator,
    ) -> None:
        self.graph = graph
        self._root = root
        self._activations = activations
        self._rng = rng
        self._values: dict[int, Series] = {}

    def value(self, node: int) -> Series:
        """The series on ``node``."""
        for needed in self._missing_ancestors(node):
            self._values[needed] = self._evaluate(needed)
        return self._values[node]

    def _missing_ancestors(self, node: int) -> list[int]:
        """``node`` and its ancestors that have no value yet, parents before children."""
        missing: set[int] = set()
        pending = [node]
        while pending:
            current = pending.pop()
            if current not in missing and current not in self._values:
                missing.add(current)
                pending.extend(self.graph.parents[current])
        return sorted(missing)

    def _evaluate(self, node: int) -> Series:
        parents = self.graph.parents[node]
        if not parents:
            return self._root(self._rng)
        weights = self._rng.standard_normal(len(parents) + 1)
        combined = np.full_like(self._values[parents[0]], weights[-1])
        for weight, parent in zip(weights[:-1], parents, strict=True):
            combined += weight * self._values[parent]
        return self._activations[int(self._rng.integers(len(self._activations)))](combined, self._rng)
