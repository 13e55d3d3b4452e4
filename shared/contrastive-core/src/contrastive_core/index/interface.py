"""What an index of codes is, whichever engine holds it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")


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
class Items:
    """Rows of an index. An item is known by its id *and* its modality: a pair may use one id for both.

    Attributes:
        ids: Relative names, for instance ``cats/17.jpg``; no two of one modality are equal.
        codes: Packed codes, as :func:`contrastive_core.evaluation.pack_codes` makes them: bits beyond the code length
            are 0.
        modality: Of every item, or one for all.
        payloads: What comes back with a hit, one mapping an item that JSON can hold (file, caption, ...).
        features: The encoder's features, for re-ranking; any length but 0. Kept as unit vectors in half precision.
    """

    ids: Sequence[str]
    codes: UInt8[np.ndarray, "n bytes"]
    modality: Modality | Sequence[Modality]
    payloads: Sequence[Mapping[str, Any]] | None = None
    features: Float[np.ndarray, "n d"] | None = None


@dataclasses.dataclass(frozen=True)
class Hit:
    """One item found.

    Attributes:
        id: Its id.
        modality: image or text.
        distance: Hamming distance to the query, in bits.
        score: Cosine similarity of the features where the hits were re-ranked.
        payload: What was stored with it.
    """

    id: str
    modality: Modality
    distance: int
    score: float | None
    payload: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """What an index holds.

    Attributes:
        location: Folder or URI.
        engine: lancedb or milvus.
        model: Which model's codes.
        items: Number of items of each modality.
        features: Length of the stored features; 0 where none are kept.
        version: Grows with every change; 0 where the engine has no versions.
        bytes: Size on disk; None where the engine does not tell.
    """

    location: str
    engine: str
    model: CodeModel
    items: dict[Modality, int]
    features: int
    version: int
    bytes: int | None

    @property
    def size(self) -> int:
        """Number of items."""
        return sum(self.items.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "size": self.size}


@runtime_checkable
class CodeIndex(Protocol):
    """An open index. Every change is whole or absent; use it as a context manager, or close it.

    Results do not depend on the engine: hits are ordered by Hamming distance, then id, then modality (image first),
    and ties at the end of the list are cut by the same order.
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
                of another width, or with bits set beyond the code length; features of another length, not finite or
                zero.
        """
        ...

    def delete(self, ids: Sequence[str], *, modality: Modality | None = None) -> int:
        """Delete items, all or none.

        Args:
            ids: What to delete.
            modality: Delete only the image or the text of that id; both by default.

        Returns:
            Number of items deleted.

        Raises:
            InputError: An id is not there.
        """
        ...

    def search(
        self,
        codes: UInt8[np.ndarray, "q bytes"],
        *,
        k: int | None = 10,
        radius: int | None = None,
        modality: Modality | None = None,
        features: Float[np.ndarray, "q d"] | None = None,
        rerank: int | None = None,
    ) -> list[list[Hit]]:
        """Nearest items of every query.

        Args:
            codes: Packed codes of the queries.
            k: Most hits a query; None for all within ``radius``.
            radius: Largest Hamming distance of a hit (inclusive); any by default.
            modality: Find only images or only texts; either by default.
            features: Features of the queries, for re-ranking.
            rerank: Order the nearest ``rerank`` items (at least k) by the cosine similarity of the features, highest
                first, and keep k of them.

        Returns:
            One list a query, shorter than k where the index holds fewer; empty lists where it is empty.

        Raises:
            InputError: Codes that do not fit the index, k and radius both absent or out of range, re-ranking without
                features on either side.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...

    def __enter__(self) -> "CodeIndex": ...

    def __exit__(self, *error: object) -> None: ...
