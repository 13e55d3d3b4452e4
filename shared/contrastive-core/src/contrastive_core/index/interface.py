"""What an index is, whichever engine holds it and whatever it compares."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from contrastive_core.index.where import Kind

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
Progress = Callable[[str, int, int], None]
"""Told what is being done, how far it is, and how far it goes."""


@dataclasses.dataclass(frozen=True)
class CodeModel:
    """Which hash functions made the codes; codes of two models cannot be compared.

    Attributes:
        name: For people, for instance ``gnah 32 bit on ViT-B-16-quickgelu/openai``.
        fingerprint: Digest of weights, encoder and preprocessing; two models are the same if and only if it is equal.
        bits: Length of the codes.
    """

    name: str
    fingerprint: str
    bits: int

    @property
    def bytes(self) -> int:
        """Width of a packed code."""
        return -(-self.bits // 8)


@dataclasses.dataclass(frozen=True)
class VectorModel:
    """Which encoder made the vectors; vectors of two models cannot be compared.

    Attributes:
        name: For people, for instance ``jolia on ViT-B-16``.
        fingerprint: Digest of weights and preprocessing; two models are the same if and only if it is equal.
        dim: Length of the vectors.
        metric: ``cosine`` (vectors are kept at unit length) or ``inner``, the inner product; higher is nearer.
    """

    name: str
    fingerprint: str
    dim: int
    metric: Literal["cosine", "inner"] = "cosine"


Model = CodeModel | VectorModel
Vectors = UInt8[np.ndarray, "n bytes"] | Float[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True)
class Items:
    """Rows of an index. An item is known by its id *and* its modality: a pair may use one id for both.

    Attributes:
        ids: Relative names, for instance ``cats/17.jpg``; no two of one modality are equal.
        vectors: For a :class:`CodeModel` packed codes, as :func:`contrastive_core.evaluation.pack_codes` makes them
            (bits beyond the code length are 0); for a :class:`VectorModel` floats, kept in single precision. A
            memory-mapped array is read in parts.
        modality: Of every item, or one for all: a short name such as ``image``.
        payloads: What comes back with a hit, one mapping an item that JSON can hold (file, caption, ...). Texts,
            numbers and booleans at its top can be filtered by.
        features: For codes, the encoder's features for re-ranking; any length but 0. Kept as unit vectors in half
            precision.
    """

    ids: Sequence[str]
    vectors: Vectors
    modality: str | Sequence[str] = "item"
    payloads: Sequence[Mapping[str, Any]] | None = None
    features: Float[np.ndarray, "n d"] | None = None


@dataclasses.dataclass(frozen=True)
class Hit:
    """An item that a search returns.

    Attributes:
        id: Its id.
        modality: Its modality.
        distance: Hamming distance to the query, in bits; None for float vectors.
        score: Similarity of float vectors; for codes the cosine of the features where the hits were re-ranked.
        payload: What was stored with it.
    """

    id: str
    modality: str
    distance: int | None
    score: float | None
    payload: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Approximation:
    """How an index is searched without looking at everything.

    Attributes:
        method: Structure and its parameters, for people.
        effort: How much of it a search visits: lists of an inverted file, flipped bits a substring, ``ef`` of HNSW.
        candidates: Items whose exact similarity decides; 0 where every visited item is one.
        recall: Share of the true ten nearest that it returned, measured when it was built.
        sample: Number of stored items that were the queries of that measurement.
        size: Number of items in the index then.
    """

    method: str
    effort: int
    candidates: int
    recall: float
    sample: int
    size: int


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """What an index holds.

    Attributes:
        location: Folder or URI.
        engine: lancedb or milvus.
        model: Which model's codes or vectors.
        items: Number of items of each modality that occurs.
        features: Length of the features stored beside codes; 0 where none are kept.
        fields: What can be filtered by, and whether it holds text, numbers or booleans.
        approximation: What :meth:`VectorIndex.optimise` built; None where every search is exact.
        version: Grows with every change; 0 where the engine has no versions.
        bytes: Size on disk; None where the engine does not tell.
    """

    location: str
    engine: str
    model: Model
    items: dict[str, int]
    features: int
    fields: dict[str, Kind]
    approximation: Approximation | None
    version: int
    bytes: int | None

    @property
    def size(self) -> int:
        """Number of items."""
        return sum(self.items.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "size": self.size}


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search asks for besides its queries; see :meth:`VectorIndex.search`."""

    k: int | None = 10
    radius: int | None = None
    modality: str | None = None
    where: str | None = None
    rerank: int | None = None
    exact: bool | None = None


@runtime_checkable
class VectorIndex(Protocol):
    """An open index. Every change is whole or absent; use it as a context manager, or close it.

    Results do not depend on the engine: hits are ordered by Hamming distance (codes) or by similarity, highest first
    (floats), then id, then modality, and ties at the end of the list are cut by the same order.
    """

    def info(self) -> IndexInfo:
        """What the index holds now."""
        ...

    def add(self, items: Items) -> None:
        """Add items, all or none.

        Args:
            items: New items; with features if and only if the index keeps features.

        Raises:
            InputError: An id is there already (the first few are named), twice among the new ones, or unusable; codes
                of another width, or with bits set beyond the code length; floats of another length, not finite or
                zero; a payload field that holds text in one item and numbers in another.
        """
        ...

    def delete(self, ids: Sequence[str], *, modality: str | None = None) -> int:
        """Delete items, all or none.

        Args:
            ids: What to delete.
            modality: Delete only that modality of the ids; all by default.

        Returns:
            Number of items deleted.

        Raises:
            InputError: An id is not there.
        """
        ...

    def optimise(self, *, recall: float = 0.99, progress: Progress | None = None) -> Approximation | None:
        """Compact the files, and build the approximate search where a scan would be slow; measure its recall.

        Args:
            recall: Share of the true ten nearest that a search must return; the cheapest setting that reaches it on a
                sample is kept.
            progress: Told how far the work is.

        Returns:
            What was built; None where every search stays exact, as the index is small or no setting reaches the recall.

        Raises:
            InputError: The recall is out of range, or the files cannot be written.
        """
        ...

    def search(
        self,
        queries: Vectors,
        *,
        k: int | None = 10,
        radius: int | None = None,
        modality: str | None = None,
        where: str | None = None,
        features: Float[np.ndarray, "q d"] | None = None,
        rerank: int | None = None,
        exact: bool | None = None,
    ) -> list[list[Hit]]:
        """Nearest items of every query.

        Args:
            queries: Packed codes or float vectors.
            k: Most hits a query; None for all within ``radius``.
            radius: Codes only: largest Hamming distance of a hit (inclusive); any by default.
            modality: Return only items of this modality; any by default.
            where: Condition on the payload, see :mod:`contrastive_core.index.where`.
            features: Codes only: features of the queries, for re-ranking.
            rerank: Order the nearest ``rerank`` items (at least k) by the exact similarity of the stored floats,
                highest first, and keep k of them. For float vectors: so many candidates of an approximate search.
            exact: Look at everything, or use what :meth:`optimise` built. By default a scan as long as it takes some
                50 ms, and beyond that what was built.

        Returns:
            One list a query, shorter than k where the index holds fewer; empty lists where it is empty.

        Raises:
            InputError: Queries that do not fit the index, k and radius both absent or out of range, re-ranking without
                features on either side, a condition that cannot be read or names what no payload has, an approximate
                search where none was built.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...

    def __enter__(self) -> "VectorIndex": ...

    def __exit__(self, *error: object) -> None: ...
