"""From a graph of texts to what the network sees: embeddings, candidates, selections, prompts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from jaxtyping import Float, Int
from torch import Tensor
from torch_geometric.nn import GATConv

from cl_graphtext.graphs.encoders import first_attention
from cl_graphtext.graphs.graph import TextGraph, both_directions, full_texts
from cl_graphtext.graphs.sampling import Csr
from cl_graphtext.graphs.splits import PARTS, Split, random_split
from cl_graphtext.promptgnn_sim.prompts import Bounds, Keywords, build_prompts, neighbourhood_keywords, word_counts
from cl_graphtext.promptgnn_sim.selection import (
    LengthBounds,
    Selection,
    SelectionSettings,
    adaptive_weights,
    candidate_pairs,
    select,
)
from cl_graphtext.texts.answers import Summarizer
from cl_graphtext.texts.cache import TextCache
from cl_graphtext.texts.encoders import TextEncoder, TextSettings, load_encoder
from cl_graphtext.texts.neighbours import duplicate_groups, noise_floor, unit_rows


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What is learnt from the graph a model is trained on, besides weights.

    Attributes:
        threshold: θ, the noise floor of cosines.
        bounds: Percentiles prompts are worded by.
        keywords: TF-IDF of its words.
    """

    threshold: float
    bounds: Bounds
    keywords: Keywords

    @classmethod
    def of(
        cls, graph: TextGraph, x: Float[Tensor, "n d"], settings: SelectionSettings, *, keywords: bool = True
    ) -> "Fitted":
        """From texts and links; labels are not looked at."""
        threshold = -2.0 if settings.percentile < 0 else noise_floor(unit_rows(x), percentile=settings.percentile)
        terms = Keywords.fit(graph.texts) if keywords else Keywords([], np.zeros(0))
        return cls(threshold, Bounds.of(graph), terms)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``model.json``."""
        return {
            "threshold": self.threshold,
            "bounds": dataclasses.asdict(self.bounds),
            "keywords": self.keywords.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Fitted":
        """What :meth:`to_dict` gave."""
        return cls(values["threshold"], Bounds(**values["bounds"]), Keywords.from_dict(values["keywords"]))


@dataclasses.dataclass
class GraphView:
    """One graph as a network sees it. Only ``selection`` and ``prompts`` change, when neighbours are chosen anew.

    Attributes:
        graph: Texts, links, labels.
        x: Text embeddings.
        csr: Its links in both directions.
        candidates: Further candidates: pairs of candidate and node.
        groups: A number that nodes of the same text share.
        selection: Neighbours kept, once they were chosen.
        prompts: Embeddings of the prompts, likewise.
        texts: The prompts.
        read: What of them is encoded: the prompts, or their summaries.
    """

    graph: TextGraph
    x: Float[Tensor, "n d"]
    csr: Csr
    candidates: Int[np.ndarray, "m 2"]
    groups: Int[Tensor, " n"]
    selection: Selection | None = None
    prompts: Float[Tensor, "n d"] | None = None
    texts: list[str] = dataclasses.field(default_factory=list)
    read: list[str] = dataclasses.field(default_factory=list)

    def message_graph(self) -> Csr:
        """The selected graph once there is one, else the graph as it is."""
        return self.csr if self.selection is None else self.selection.graph()

    def chosen(self, nodes: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b d"], Int[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Prompt embeddings of some nodes, their kept neighbours and the scores of these; none before selection."""
        if self.selection is None or self.prompts is None:
            return self.x[nodes], nodes.new_zeros(len(nodes), 0), self.x.new_zeros(len(nodes), 0)
        return self.prompts[nodes], self.selection.neighbours[nodes], self.selection.scores[nodes]


def link_csr(graph: TextGraph) -> Csr:
    """Links in both directions, compressed."""
    pairs = both_directions(graph.edges)
    return Csr.of(pairs[:, 0], pairs[:, 1], len(graph))


class Pipeline:
    """Everything between texts and network that is not a weight.

    Args:
        settings: How neighbours are chosen.
        text: Text model, loaded when it is first needed.
        cache: Embeddings already known.
        fitted: What was learnt from the training graph; None until :meth:`fit`.
        summarizer: What turns a prompt into the text that is encoded; the prompt itself if absent.
        encoders: Encoders of texts and prompts instead of those ``text`` names.
        prompting: Make prompts; without, the raw text stands in for them.
        device: Torch device of the text model.
    """

    def __init__(
        self,
        settings: SelectionSettings,
        text: TextSettings,
        cache: TextCache,
        *,
        fitted: Fitted | None = None,
        summarizer: Summarizer | None = None,
        encoders: tuple[TextEncoder, TextEncoder] | None = None,
        prompting: bool = True,
        device: str = "auto",
    ) -> None:
        self.settings, self.text, self.cache, self.fitted = settings, text, cache, fitted
        self.summarizer, self.prompting, self.device = summarizer, prompting, device
        self._encoders = encoders

    @property
    def encoders(self) -> tuple[TextEncoder, TextEncoder]:
        """Encoders of a node's own text and of prompts."""
        if self._encoders is None:
            own = load_encoder(self.text, device=self.device)
            same = self.text.max_tokens == self.text.prompt_tokens or not self.prompting or self.text.lora > 0
            self._encoders = (own, own if same else load_encoder(self.text, prompts=True, device=self.device))
        return self._encoders

    def trained_encoder(self) -> TextEncoder | None:
        """The encoder that LoRA trains; None where texts are read by a model that stays as it is."""
        return self.encoders[0] if self.text.lora else None

    def embed(self, graph: TextGraph) -> Float[Tensor, "n d"]:
        """Embeddings of all nodes' own texts."""
        return self.cache.embed(self.encoders[0], full_texts(graph))

    def describe_classes(self, graph: TextGraph) -> Float[Tensor, "c d"]:
        """Embeddings of what the classes are called."""
        return self.cache.embed(self.encoders[0], list(graph.descriptions))

    def fit(self, graph: TextGraph, x: Float[Tensor, "n d"]) -> Fitted:
        """Learn θ, percentiles and words from the training graph."""
        self.fitted = Fitted.of(graph, x, self.settings, keywords=self.prompting)
        return self.fitted

    def view(self, graph: TextGraph, x: Float[Tensor, "n d"], *, select: bool = True) -> GraphView:
        """A graph with its candidates.

        Args:
            graph: The graph.
            x: Embeddings of its texts.
            select: Look for what selection needs; baselines do not.

        Raises:
            InputError: The embeddings do not fit the graph.
        """
        if len(x) != len(graph):
            raise InputError("texts and embeddings differ in number", why=f"{len(graph)} nodes, {len(x)} embeddings")
        csr, unit = link_csr(graph), unit_rows(x)
        if not select:
            return GraphView(graph, x, csr, np.zeros((0, 2), np.int64), torch.arange(len(graph)))
        _, k = self._adaptive(graph)
        return GraphView(graph, x, csr, candidate_pairs(csr, unit, k, self.settings), duplicate_groups(unit))

    def choose(self, view: GraphView, selector: GATConv, *, encode: bool = True) -> None:
        """Choose neighbours by the attention of a layer; write the prompts, have them summarised, and encode them.

        Args:
            view: The graph; what is chosen is put there.
            selector: The layer.
            encode: Look for prompts at all; without, neighbours are all that is chosen.
        """
        weight, k = self._adaptive(view.graph)
        view.selection = select(
            view.csr,
            first_attention(selector, view.x, view.csr),
            unit_rows(view.x),
            extra=view.candidates,
            weight=weight,
            k=k,
            threshold=self.learnt.threshold,
            width=self.settings.width,
        )
        if not (self.prompting and encode):
            view.prompts, view.read = view.x, full_texts(view.graph)
            return
        view.texts = view.read = self.write_prompts(view, view.selection)
        if self.summarizer is not None:
            view.read = self.summarizer.summarise(view.graph.ids, view.texts)
        view.prompts = self.cache.embed(self.encoders[1], view.read)

    @property
    def learnt(self) -> Fitted:
        """What was learnt from the training graph.

        Raises:
            RuntimeError: Nothing yet.
        """
        if self.fitted is None:
            raise RuntimeError("fit() the pipeline to its training graph first")
        return self.fitted

    def _adaptive(self, graph: TextGraph) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        bounds = LengthBounds(self.learnt.bounds.short, self.learnt.bounds.long)
        return adaptive_weights(word_counts(graph.texts), bounds, self.settings)

    def keywords(self, graph: TextGraph, selection: Selection) -> list[list[str]]:
        """Terms of every node's chosen neighbourhood."""
        terms = self.learnt.keywords
        return neighbourhood_keywords(terms.weights(graph.texts), terms, selection.neighbours, selection.scores)

    def write_prompts(self, view: GraphView, selection: Selection) -> list[str]:
        """One prompt a node."""
        words = self.keywords(view.graph, selection)
        return build_prompts(view.graph, selection.neighbours, words, self.learnt.bounds)


def prompt_rows(pipeline: Pipeline, view: GraphView, nodes: Sequence[int]) -> list[dict[str, Any]]:
    """Chosen neighbours with scores, keywords and prompt of some nodes, for ``prompts.jsonl`` and ``explain``."""
    if view.selection is None:
        return []
    keywords = pipeline.keywords(view.graph, view.selection)
    texts = view.texts or pipeline.write_prompts(view, view.selection)
    unit, names = unit_rows(view.x), view.graph.ids
    rows = []
    for i in nodes:
        near = [j for j in view.selection.neighbours[i].tolist() if j >= 0]
        linked = set(view.csr.sources[view.csr.indptr[i] : view.csr.indptr[i + 1]].tolist())
        rows.append(
            {
                "node_id": names[i],
                "neighbours": [names[j] for j in near],
                "scores": [round(s, 4) for s in view.selection.scores[i, : len(near)].tolist()],
                "cosines": [round(float(unit[i] @ unit[j]), 4) for j in near],
                "linked": [j in linked for j in near],
                "keywords": keywords[i],
                "prompt": texts[i],
            }
        )
    return rows


def node_split(graph: TextGraph, rate: str, seed: int) -> Split:
    """The split the data bring, or a drawn one.

    Raises:
        InputError: The data's split lacks a part, or there are no labels to draw among.
    """
    if graph.split:
        missing = [part for part in PARTS if part not in graph.split]
        if missing:
            raise InputError(
                "the split lacks a part",
                where="splits.json",
                why=", ".join(missing),
                remedy="name train, val and test; val may be empty",
            )
        return graph.split
    if not (graph.labels >= 0).any():
        raise InputError("the graph has no labels", where="nodes", remedy="add a column label, or use --task lp")
    return random_split(graph.labels, rate=rate, seed=seed)
