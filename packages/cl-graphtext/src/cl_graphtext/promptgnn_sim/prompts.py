"""Prompts: what a node says, how it is connected, and what its chosen neighbourhood is about."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from torch import Tensor

from cl_graphtext.graphs.graph import TextGraph, degrees

KEYWORDS = 8
"""Words of a neighbourhood a prompt names."""

_OWN = 5
"""A node's own top words, which its neighbourhood need not repeat."""

_TEXT_WORDS = 120
"""Words of a node's own text a prompt holds."""


class Keywords:
    """TF-IDF of words and pairs of words, fitted on the texts of a graph.

    Args:
        vocabulary: Terms, in the order of columns.
        idf: Their inverse document frequency.
    """

    def __init__(self, vocabulary: Sequence[str], idf: Float[np.ndarray, " v"]) -> None:
        self.terms = np.array(vocabulary, dtype=object)
        self.idf = np.asarray(idf, np.float64)
        self._model = _vectorizer(1, {term: place for place, term in enumerate(vocabulary)})
        if len(vocabulary):
            self._model.idf_ = self.idf

    @classmethod
    def fit(cls, texts: Sequence[str]) -> "Keywords":
        """From texts; terms in fewer than two of them are left out."""
        model = _vectorizer(2, None)
        try:
            model.fit(texts)
        except ValueError:  # no term occurs in two texts
            return cls([], np.zeros(0))
        return cls(model.get_feature_names_out().tolist(), model.idf_)

    def weights(self, texts: Sequence[str]) -> Any:
        """TF-IDF rows of unit length, a ``scipy`` sparse array ``[n v]``."""
        from scipy.sparse import csr_array

        if not len(self.terms):
            return csr_array((len(texts), 0))
        return csr_array(self._model.transform(texts))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``model.json``."""
        return {"terms": self.terms.tolist(), "idf": [round(float(value), 6) for value in self.idf]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Keywords":
        """What :meth:`to_dict` gave."""
        return cls(values["terms"], np.array(values["idf"]))


def _vectorizer(min_df: int, vocabulary: dict[str, int] | None) -> TfidfVectorizer:
    return TfidfVectorizer(
        stop_words=sorted(ENGLISH_STOP_WORDS), ngram_range=(1, 2), min_df=min_df, vocabulary=vocabulary
    )


def neighbourhood_keywords(
    weights: Any, keywords: Keywords, neighbours: Int[Tensor, "n k"], scores: Float[Tensor, "n k"]
) -> list[list[str]]:
    """Up to eight terms a node, ``κ_i(w) = Σ_{j ∈ S_i} s_ij tfidf_j(w)``; a node's own top terms come last.

    Args:
        weights: TF-IDF of every node, see :meth:`Keywords.weights`.
        keywords: The terms.
        neighbours: Kept neighbours, -1 where there is none.
        scores: Their scores.
    """
    from scipy.sparse import csr_array

    n = len(neighbours)
    if not weights.shape[1]:
        return [[] for _ in range(n)]
    node, place = (neighbours >= 0).nonzero(as_tuple=True)
    mix = csr_array((scores[node, place].numpy(), (node.numpy(), neighbours[node, place].numpy())), shape=(n, n))
    kappa = csr_array(mix @ weights)
    own = csr_array(weights)
    chosen = []
    for i in range(n):
        said = set(_top(own, i, _OWN).tolist())
        best = _top(kappa, i, KEYWORDS + _OWN)
        ordered = [w for w in best if w not in said] + [w for w in best if w in said]
        chosen.append([str(keywords.terms[w]) for w in ordered[:KEYWORDS]])
    return chosen


def _top(matrix: Any, row: int, count: int) -> Int[np.ndarray, " m"]:
    """Columns of the largest positive entries of a row, the lower column first among equals."""
    start, end = matrix.indptr[row], matrix.indptr[row + 1]
    column, value = matrix.indices[start:end], matrix.data[start:end]
    order = np.lexsort((column, -value))[:count]
    return column[order][value[order] > 0]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Percentiles of the graph a model was trained on, which prompts of any graph are worded by.

    Attributes:
        short: Texts of fewer words are short.
        long: Texts of more words are long.
        low: Nodes of fewer links have low connectivity.
        high: Nodes of more links have high connectivity.
    """

    short: float
    long: float
    low: float
    high: float

    @classmethod
    def of(cls, graph: TextGraph) -> "Bounds":
        """Quartiles of the length of texts, 25th and 90th percentile of the degree."""
        degree = degrees(graph.edges, len(graph))
        return cls(
            *(float(v) for v in np.percentile(word_counts(graph.texts), [25, 75])),
            *(float(v) for v in np.percentile(degree, [25, 90])),
        )


def word_counts(texts: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Words of every text."""
    return np.array([len(text.split()) for text in texts], np.int64)


def build_prompts(
    graph: TextGraph,
    neighbours: Int[Tensor, "n k"],
    keywords: Sequence[Sequence[str]],
    bounds: Bounds,
) -> list[str]:
    """One prompt a node. The labels of nodes are not looked at: only the names of all classes are asked about.

    Args:
        graph: Texts, titles and links.
        neighbours: Kept neighbours, best first, -1 where there is none.
        keywords: Terms of every neighbourhood.
        bounds: What counts as a short text and as many links.
    """
    degree = degrees(graph.edges, len(graph)).tolist()
    question = f"Question: which of {', '.join(name.replace('_', ' ') for name in graph.classes)} fits best?"
    prompts = []
    for i, (row, words) in enumerate(zip(neighbours.tolist(), keywords, strict=True)):
        text = graph.texts[i].split()
        level = "low" if degree[i] < bounds.low else "high" if degree[i] > bounds.high else "medium"
        shown = [graph.titles[j] for j in row if j >= 0][: 5 if level == "high" else 3]
        parts = {
            "name": f'{graph.noun.capitalize()} "{graph.titles[i]}".',
            "content": f"Content: {' '.join(text[:_TEXT_WORDS])}" if text else "",
            "links": f"Connectivity: {level} ({degree[i]} links).",
            "related": f"Closest related items: {'; '.join(shown)}." if shown else "",
            "themes": f"Shared themes: {', '.join(words)}." if words else "",
            "question": question if graph.classes else "",
        }
        order = ["name", "content", "links", "related", "themes", "question"]
        if len(text) < bounds.short:  # a short text says less than its neighbourhood
            order = ["name", "themes", "content", "links", "related", "question"]
        prompts.append(" ".join(parts[name] for name in order if parts[name]))
    return prompts
