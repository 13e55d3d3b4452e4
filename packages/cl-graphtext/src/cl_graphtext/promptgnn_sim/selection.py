"""Semantic neighbour selection: structural attention and text similarity choose whom a node listens to."""

import dataclasses
from typing import Literal

import numpy as np
import torch
from contrastive_core.errors import require
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from cl_graphtext.graphs.sampling import Csr
from cl_graphtext.texts.neighbours import nearest

_EDGES = 1 << 18

Augment = Literal["knn", "hop2", "none"]


@dataclasses.dataclass(frozen=True)
class SelectionSettings:
    """How neighbours are chosen.

    Attributes:
        weight: λ_0, weight of attention against text similarity, in [0, 1].
        adaptive: Shift λ and k with the length of a node's text; else λ_0 and ``k`` for all.
        k: Neighbours kept of a node with a text of ordinary length.
        k_short: Of a node with a short text.
        k_long: Of a node with a long text.
        percentile: θ is this percentile of the cosine between random pairs of nodes; negative for no threshold.
        augment: Further candidates of nodes with few neighbours: nearest texts (knn), neighbours of neighbours (hop2).
        candidates: How many, at most, for each of these nodes.
    """

    weight: float = 0.5
    adaptive: bool = True
    k: int = 5
    k_short: int = 10
    k_long: int = 3
    percentile: float = 75.0
    augment: Augment = "knn"
    candidates: int = 5

    def __post_init__(self) -> None:
        require(0 <= self.weight <= 1, "--selection.weight", self.weight, "λ in [0, 1]")
        for name in ("k", "k_short", "k_long", "candidates"):
            value, option = getattr(self, name), f"--selection.{name.replace('_', '-')}"
            require(1 <= value <= 10_000, option, value, "a whole number from 1 to 10,000")
        require(-1e6 <= self.percentile <= 100, "--selection.percentile", self.percentile, "a percentile up to 100")

    @property
    def width(self) -> int:
        """Most neighbours any node keeps."""
        return max(self.k, self.k_short, self.k_long) if self.adaptive else self.k


@dataclasses.dataclass(frozen=True)
class Selection:
    """Neighbours kept, best first.

    Attributes:
        neighbours: ``[n k]`` node indices, -1 where a node keeps fewer.
        scores: ``[n k]`` their s_ij in [0, 1], 0 where there is none.
    """

    neighbours: Int[Tensor, "n k"]
    scores: Float[Tensor, "n k"]

    def graph(self) -> Csr:
        """The selected graph: an edge from every kept neighbour, weighted by its score."""
        target, place = (self.neighbours >= 0).nonzero(as_tuple=True)
        return Csr.of(
            self.neighbours[target, place].numpy(),
            target.numpy(),
            len(self.neighbours),
            self.scores[target, place].numpy(),
        )

    def edges(self) -> Int[np.ndarray, "e 2"]:
        """Kept neighbour and node, one row a kept neighbour."""
        target, place = (self.neighbours >= 0).nonzero(as_tuple=True)
        return np.stack([self.neighbours[target, place].numpy(), target.numpy()], axis=1)


@dataclasses.dataclass(frozen=True)
class LengthBounds:
    """Quartiles of the number of words of a text: below the first it is short, above the last long."""

    short: float
    long: float

    @classmethod
    def of(cls, lengths: Int[np.ndarray, " n"]) -> "LengthBounds":
        """From the graph a model is trained on."""
        return cls(*(float(value) for value in np.percentile(lengths, [25, 75])))


def adaptive_weights(
    lengths: Int[np.ndarray, " n"], bounds: LengthBounds, settings: SelectionSettings
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """``λ_i = clip(λ_0 + 0.2 [short] - 0.2 [long], 0.1, 0.9)`` and ``k_i`` (10, 5, 3).

    A short text says little: its node leans on structure and keeps more neighbours. λ_0 of exactly 0 or 1 (text or
    structure alone) is not shifted.
    """
    short, long = torch.from_numpy(lengths < bounds.short), torch.from_numpy(lengths > bounds.long)
    weight = torch.full((len(lengths),), float(settings.weight))
    k = torch.full((len(lengths),), settings.k)
    if settings.adaptive:
        if 0 < settings.weight < 1:
            weight = (weight + 0.2 * short - 0.2 * long).clamp(0.1, 0.9)
        k[short], k[long] = settings.k_short, settings.k_long
    return weight, k


def candidate_pairs(
    csr: Csr, unit: Float[Tensor, "n d"], k: Int[Tensor, " n"], settings: SelectionSettings
) -> Int[np.ndarray, "e 2"]:
    """Further candidates of nodes with fewer neighbours than they may keep: pairs of candidate and node.

    They depend on texts and edges alone, not on attention, so they are found once. A node gets at most
    ``settings.candidates``: its nearest texts, or the neighbours of its neighbours with the nearest texts.

    Args:
        csr: The graph.
        unit: Text embeddings of unit length.
        k: Neighbours each node may keep, see :func:`adaptive_weights`.
        settings: Which candidates, and how many.
    """
    poor = np.flatnonzero(csr.degree < k.numpy())
    if settings.augment == "none" or not len(poor) or len(csr) < 2:
        return np.zeros((0, 2), np.int64)
    if settings.augment == "hop2":
        return _nearest_of_two_hops(csr, unit, poor, settings.candidates)
    place, _ = nearest(unit, torch.from_numpy(poor), settings.candidates)
    target = np.repeat(poor, place.shape[1])
    return np.stack([place.numpy().reshape(-1), target], axis=1)


def _nearest_of_two_hops(
    csr: Csr, unit: Float[Tensor, "n d"], poor: Int[np.ndarray, " m"], most: int
) -> Int[np.ndarray, "e 2"]:
    """Neighbours of neighbours that are no neighbours, those with the nearest texts; of equals the lower index."""
    n = len(csr)
    adjacency = csr_array((np.ones(len(csr.sources)), csr.sources, csr.indptr), shape=(n, n))
    two = (adjacency[poor] @ adjacency).tocoo()
    source, target = two.coords[1].astype(np.int64), poor[two.coords[0]]
    linked = np.isin(target * n + source, csr.targets().astype(np.int64) * n + csr.sources)
    source, target = source[(source != target) & ~linked], target[(source != target) & ~linked]
    cosine = _cosines(unit, torch.from_numpy(source), torch.from_numpy(target)).numpy()
    order = np.lexsort((source, -cosine, target))
    source, target = source[order], target[order]
    count = np.bincount(target, minlength=n)
    rank = np.arange(len(target)) - (count.cumsum() - count)[target]
    return np.stack([source, target], axis=1)[rank < most]


def _cosines(unit: Float[Tensor, "n d"], source: Int[Tensor, " m"], target: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Cosine of every pair; in parts, as rows of both ends of all pairs would not fit."""
    cosine = torch.zeros(len(source))
    for start in range(0, len(source), _EDGES):
        part = slice(start, start + _EDGES)
        cosine[part] = (unit[source[part]] * unit[target[part]]).sum(1)
    return cosine


def select(
    csr: Csr,
    attention: Float[Tensor, " e"],
    unit: Float[Tensor, "n d"],
    *,
    extra: Int[np.ndarray, "m 2"],
    weight: Float[Tensor, " n"],
    k: Int[Tensor, " n"],
    threshold: float,
    width: int,
) -> Selection:
    r"""Keep the best neighbours of every node.

    ``\hat α_ij = α_ij / max_l α_il``, ``c_ij = max(0, x_i · x_j)``, ``s_ij = λ_i \hat α_ij + (1 - λ_i) c_ij`` for
    neighbours and ``(1 - λ_i) c_ij`` for other candidates; j is kept if ``c_ij >= θ`` and it is among the first k_i.
    Of equal scores the lower index comes first.

    Args:
        csr: The graph, edges in both directions, without loops.
        attention: α of every edge in the order of ``csr.sources``.
        unit: Text embeddings of unit length, zero where there is no text.
        extra: Pairs of candidate and node, see :func:`candidate_pairs`; pairs that are edges are counted once.
        weight: λ of every node.
        k: Most neighbours of every node.
        threshold: θ; below -1 or so it keeps everyone.
        width: Columns of the result, at least the largest k.
    """
    n = len(csr)
    target, source = torch.from_numpy(csr.targets().astype(np.int64)), torch.from_numpy(csr.sources.astype(np.int64))
    top = torch.zeros(n).scatter_reduce(0, target, attention, "amax", include_self=True)
    relative = attention / top[target].clamp_min(1e-12)
    if len(extra):
        more = np.unique(extra[:, 1] * n + extra[:, 0])
        known = csr.targets().astype(np.int64) * n + csr.sources
        more = more[~np.isin(more, known)]
        target = torch.cat([target, torch.from_numpy(more // n)])
        source = torch.cat([source, torch.from_numpy(more % n)])
        relative = torch.cat([relative, torch.zeros(len(more))])
    cosine = _cosines(unit, source, target).clamp_min(0.0)
    score = weight[target] * relative + (1 - weight[target]) * cosine
    # A node without text has no cosine: it is weighed by structure alone.
    blank = unit.abs().sum(1) == 0
    keep = (cosine >= threshold) | ((blank[target] | blank[source]) & (relative > 0))
    target, source, score = target[keep], source[keep], score[keep]
    order = np.lexsort((source.numpy(), -score.numpy(), target.numpy()))
    target, source, score = target[order], source[order], score[order]
    count = torch.bincount(target, minlength=n)
    rank = torch.arange(len(target)) - (count.cumsum(0) - count)[target]
    first = rank < k[target]
    neighbours = torch.full((n, width), -1)
    scores = torch.zeros(n, width)
    neighbours[target[first], rank[first]] = source[first]
    scores[target[first], rank[first]] = score[first].float()
    return Selection(neighbours, scores)
