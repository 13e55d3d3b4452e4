"""Search in an index of codes, by texts, images or features."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from contrastive_core.errors import InputError
from contrastive_core.files import write_text
from contrastive_core.index import Hit, open_index
from cyclopts import Parameter

from cl_retrieval.hashing.data import Query
from cl_retrieval.hashing.inference import HashEncoder


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """Which hits, and how many.

    Attributes:
        find: Find images, texts, or either.
        k: Most hits a query.
        radius: Largest Hamming distance of a hit, in bits.
        where: Condition on the payload, for instance ``text = "cat face"``.
        rerank: Order so many nearest codes by the cosine of the features.
        exact: Look at everything, or use what ``index optimise`` built; by default whatever is quick.
    """

    find: Literal["image", "text", "either"] = "image"
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10
    radius: int | None = None
    where: str | None = None
    rerank: int | None = None
    exact: bool | None = None


def search_index(
    hashes: HashEncoder, index: str, queries: Sequence[Query], asked: SearchOptions = SearchOptions()
) -> list[dict[str, Any]]:
    """Hits of all queries, nearest first.

    Args:
        hashes: The functions the index was made with.
        index: Folder or URI.
        queries: What is searched for.
        asked: Which hits, and how many.

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
                where=asked.where,
                features=query.row if asked.rerank is not None else None,
                rerank=asked.rerank,
                exact=asked.exact,
            )
            rows += [{"query": query.name, **_row(hit)} for hit in hits]
    return rows


def write_hits(path: Path, hits: Sequence[Mapping[str, Any]]) -> None:
    """Write hits as JSON, one a line."""
    write_text(path, "".join(f"{json.dumps(hit, ensure_ascii=False)}\n" for hit in hits))


def _row(hit: Hit) -> dict[str, Any]:
    score = {} if hit.score is None else {"score": round(hit.score, 6)}
    return {"id": hit.id, "modality": hit.modality, "distance": hit.distance, **score, **hit.payload}
