"""From a graph of texts to what the network sees: embeddings, candidates, selections, prompts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from jaxtyping import Float, Int
from torch import Tensor

from cl_graphtext.encoders import first_attention
from cl_graphtext.graph import TextGraph, both_directions, full_texts
from cl_graphtext.llm import Summarizer
from cl_graphtext.neighbours import duplicate_groups, noise_floor, unit_rows
from cl_graphtext.promptgnn_sim.model import Network
from cl_graphtext.promptgnn_sim.prompts import Bounds, Keywords, build_prompts, neighbourhood_keywords, word_counts
from cl_graphtext.promptgnn_sim.selection import (
    LengthBounds,
    Selection,
    SelectionSettings,
    adaptive_weights,
    candidate_pairs,
    select,
)
from cl_graphtext.sampling import Csr
from cl_graphtext.text import TextCache, TextEncoder, TextSettings, load_encoder


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
    ) -> None:
        self.settings, self.text, self.cache, self.fitted = settings, text, cache, fitted
        self.summarizer, self.prompting = summarizer, prompting
        self._encoders = encoders

    @property
    def encoders(self) -> tuple[TextEncoder, TextEncoder]:
        """Encoders of a node's own text and of prompts."""
        if self._encoders is None:
            own = load_encoder(self.text)
            same = self.text.max_tokens == self.text.prompt_tokens or not self.prompting or self.text.lora > 0
            self._encoders = (own, own if same else load_encoder(self.text, prompts=True))
        return self._encoders

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
        return GraphView(graph, x, csr, candidate_pairs(csr, unit, self.settings), duplicate_groups(unit))

    def choose(self, view: GraphView, network: Network) -> None:
        """Choose neighbours by the attention the network remembers, and write and encode the prompts."""
        assert self.fitted is not None
        attention = first_attention(network.selector, view.x, view.csr)
        bounds = LengthBounds(self.fitted.bounds.short, self.fitted.bounds.long)
        weight, k = adaptive_weights(word_counts(view.graph.texts), bounds, self.settings)
        view.selection = select(
            view.csr,
            attention,
            unit_rows(view.x),
            extra=view.candidates,
            weight=weight,
            k=k,
            threshold=self.fitted.threshold,
            width=self.settings.width,
        )
        if not self.prompting:
            view.prompts, view.read = view.x, full_texts(view.graph)
            return
        view.texts = self.write_prompts(view)
        read = view.texts
        if self.summarizer is not None:
            read = self.summarizer.summarise(view.graph.ids, view.texts)
        view.read = read
        view.prompts = self.cache.embed(self.encoders[1], read)

    def keywords(self, view: GraphView) -> list[list[str]]:
        """Terms of every node's chosen neighbourhood."""
        assert self.fitted is not None
        assert view.selection is not None
        terms = self.fitted.keywords
        weights = terms.weights(view.graph.texts)
        return neighbourhood_keywords(weights, terms, view.selection.neighbours, view.selection.scores)

    def write_prompts(self, view: GraphView) -> list[str]:
        """One prompt a node."""
        assert self.fitted is not None
        assert view.selection is not None
        return build_prompts(view.graph, view.selection.neighbours, self.keywords(view), self.fitted.bounds)


def prompt_rows(pipeline: Pipeline, view: GraphView, nodes: Sequence[int]) -> list[dict[str, Any]]:
    """Chosen neighbours with scores, keywords and prompt of some nodes, for ``prompts.jsonl`` and ``explain``."""
    assert view.selection is not None
    keywords = pipeline.keywords(view)
    texts = view.texts or pipeline.write_prompts(view)
    unit = unit_rows(view.x)
    rows = []
    for i in nodes:
        kept = [
            (j, s)
            for j, s in zip(view.selection.neighbours[i].tolist(), view.selection.scores[i].tolist(), strict=True)
            if j >= 0
        ]
        linked = set(view.csr.sources[view.csr.indptr[i] : view.csr.indptr[i + 1]].tolist())
        rows.append(
            {
                "node_id": view.graph.ids[i],
                "neighbours": [view.graph.ids[j] for j, _ in kept],
                "scores": [round(s, 4) for _, s in kept],
                "cosines": [round(float(unit[i] @ unit[j]), 4) for j, _ in kept],
                "linked": [j in linked for j, _ in kept],
                "keywords": keywords[i],
                "prompt": texts[i],
            }
        )
    return rows
