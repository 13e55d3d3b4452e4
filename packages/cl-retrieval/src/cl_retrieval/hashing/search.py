"""Search in an index of codes, by texts, images or features."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from contrastive_core.errors import InputError
from contrastive_core.index import Hit, open_index

from cl_retrieval.hashing.data import Query
from cl_retrieval.hashing.inference import HashEncoder

Find = Literal["image", "text", "either"]


class Asked(NamedTuple):
    """What a search asks for.

    Attributes:
        find: Images, texts, or either.
        k: Most hits a query.
        radius: Largest Hamming distance of a hit, in bits; any by default.
        rerank: Order so many nearest codes by the cosine of the features.
    """

    find: Find = "image"
    k: int = 10
    radius: int | None = None
    rerank: int | None = None


def search_index(
    hashes: HashEncoder, index: str, queries: Sequence[Query], asked: Asked = Asked()
) -> list[dict[str, Any]]:
    """Hits of all queries, nearest first.

    Args:
        hashes: The functions the index was made with.
        index: Folder or URI.
        queries: What is searched for.
        asked: Kind and number of hits.

    Returns:
        A row a hit: query, id, modality, Hamming distance, cosine where re-ranked, and the hit's payload.

    Raises:
        InputError: There is no such index, it is empty, or of another model.
    """
    rows = []
    with open_index(index, hashes.identity) as opened:
        if opened.info().size == 0:
            raise InputError("the index is empty", where=index, remedy="add items with index add")
        for query in queries:
            (hits,) = opened.search(
                hashes.encode(query.row, query.modality),
                k=asked.k,
                radius=asked.radius,
                modality=None if asked.find == "either" else asked.find,
                features=query.row if asked.rerank is not None else None,
                rerank=asked.rerank,
            )
            rows += [{"query": query.name, **_row(hit)} for hit in hits]
    return rows


def _row(hit: Hit) -> dict[str, Any]:
    score = None if hit.score is None else round(hit.score, 6)
    return {"id": hit.id, "modality": hit.modality, "hamming": hit.distance, "score": score, **hit.payload}
