"""An index on a Milvus server, or in a file through Milvus embedded in this process."""

import dataclasses
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from contrastive_core.errors import InputError
from contrastive_core.index import milvus_server as server
from contrastive_core.index.checks import (
    check_absent,
    check_new_model,
    check_none_missing,
    check_recall,
    check_search,
    index_exists,
    no_approximation,
    no_index,
    products,
    stored_vectors,
    unit_features,
)
from contrastive_core.index.interface import (
    Approximation,
    CodeModel,
    Hit,
    IndexInfo,
    Items,
    Model,
    Progress,
    Search,
    VectorModel,
    Vectors,
)
from contrastive_core.index.lists import FEW, NEAREST, SAMPLE
from contrastive_core.index.rows import rows_of
from contrastive_core.index.scan import rounding
from contrastive_core.index.where import parse_where, to_milvus

MOST = 16_384
"""Rows one search of Milvus returns at most."""
SLACK = 64
"""Rows asked for beyond k: ties at the end of the list are seldom more."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row that a search returns: the hit, and how far it is (distance, or similarity with a minus)."""

    hit: Hit
    cost: float


class MilvusIndex:
    """An index on Milvus, searched exactly there until :meth:`optimise` makes it approximate.

    Insertions go in batches of 16 MiB. When one fails, those before it are taken back; when this process is killed
    between two of them, the items inserted so far stay, and everything there before is as it was.

    Args:
        address: ``http://host:19530`` (a token is read from the environment's ``MILVUS_TOKEN``), or a file
            ``NAME.db``.
        name: Name of the index.

    Raises:
        InputError: The server does not answer, the file is damaged, there is no such index, or pymilvus is not
            installed.
    """

    def __init__(self, address: str, name: str) -> None:
        self.location = server.location_of(address, name)
        if "://" not in address and not Path(address).exists():
            raise no_index(address)
        self._address, self._name = address, name
        self._client = server.connect(address)
        try:
            with server.asking(self.location):
                entry = self._entry()
        except BaseException:
            self._client.close()
            raise
        self.model: Model = (CodeModel if entry["kind"] == "codes" else VectorModel)(**entry["model"])

    @classmethod
    def build(
        cls,
        address: str,
        name: str,
        model: Model,
        items: Items,
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> "MilvusIndex":
        """Make an index; see :func:`contrastive_core.index.build_index`."""
        check_new_model(model)
        location = server.location_of(address, name)
        rows = rows_of(items, model, features=None, fields={}, where=location)
        client = server.connect(address)
        try:
            with server.asking(location):
                before = server.entry_of(client, name)
                if before is not None and not overwrite:
                    raise index_exists(location)
                collection = f"{name}_{secrets.token_hex(4)}"
                server.create(client, collection, model, rows.features, served="://" in address)
                entry = {
                    "format": server.FORMAT,
                    "kind": "codes" if isinstance(model, CodeModel) else "vectors",
                    "model": dataclasses.asdict(model),
                    "features": rows.features,
                    "fields": rows.fields,
                    "modalities": sorted(set(rows.table["modality"].to_pylist())),
                    "approximation": None,
                    "collection": collection,
                }
                try:
                    server.insert(client, collection, rows, progress)
                    server.enter(client, name, entry)
                except BaseException:
                    client.drop_collection(collection)
                    raise
                if before is not None:
                    client.drop_collection(before["collection"])
        finally:
            client.close()
        return cls(address, name)

    def info(self) -> IndexInfo:
        """What the index holds now; see :meth:`VectorIndex.info`."""
        with server.asking(self.location):
            entry = self._entry()
            counts = {
                each: server.count(self._client, entry["collection"], f'modality == "{each}"')
                for each in entry["modalities"]
            }
        file = None if "://" in self._address else Path(self._address)
        return IndexInfo(
            location=self.location,
            engine="milvus",
            model=self.model,
            items={name: count for name, count in counts.items() if count},
            features=entry["features"],
            fields=entry["fields"],
            approximation=_approximation(entry),
            version=0,
            bytes=None if file is None else file.stat().st_size,
        )

    def add(self, items: Items) -> None:
        """Add items; see :meth:`VectorIndex.add`."""
        with server.asking(self.location):
            entry = self._entry()
            rows = rows_of(items, self.model, features=entry["features"], fields=entry["fields"], where=self.location)
            if not len(rows):
                return
            ids, modality = rows.table["id"].to_pylist(), rows.table["modality"].to_pylist()
            keys = [server.key_of(name, kind) for name, kind in zip(ids, modality, strict=True)]
            check_absent(map(server.item_of, self._present(entry, keys)), self.location)
            known = {"fields": rows.fields, "modalities": sorted({*entry["modalities"], *modality})}
            if known != {name: entry[name] for name in known}:
                server.enter(self._client, self._name, {**entry, **known})
            server.insert(self._client, entry["collection"], rows)

    def delete(self, ids: Sequence[str], *, modality: str | None = None) -> int:
        """Delete items; see :meth:`VectorIndex.delete`."""
        wanted = list(dict.fromkeys(ids))
        with server.asking(self.location):
            entry = self._entry()
            kinds = entry["modalities"] if modality is None else (modality,)
            present = self._present(entry, [server.key_of(each, kind) for each in wanted for kind in kinds])
            there = {server.item_of(key)[0] for key in present}
            check_none_missing((each for each in wanted if each not in there), modality, self.location)
            server.delete(self._client, entry["collection"], present)
        return len(present)

    def optimise(self, *, recall: float = 0.99, progress: Progress | None = None) -> Approximation | None:
        """Build Milvus's own index of the vectors; see :meth:`VectorIndex.optimise`.

        HNSW for floats and an inverted file for codes; a file opened in this process has an inverted file for floats
        and none for codes. Searches wait while it is built. Where that is interrupted, the index is refused until it
        is done again: nobody could tell how good its answers are.
        """
        check_recall(recall)
        with server.asking(self.location):
            entry = self._entry(unfinished=True)
            collection = entry["collection"]
            size = server.count(self._client, collection, "")
            server.enter(self._client, self._name, {**entry, "approximation": "unfinished"})
            server.reindex(self._client, collection, *server.exact_type(self.model))
            made = None
            kind = server.approximate_type(self.model, size, served="://" in self._address)
            if size >= FEW and kind is not None:
                made = self._measured(collection, size, kind, recall, progress)
                if made is None:
                    server.reindex(self._client, collection, *server.exact_type(self.model))
            value = None if made is None else dataclasses.asdict(made)
            server.enter(self._client, self._name, {**entry, "approximation": value})
        return made

    def _measured(
        self,
        collection: str,
        size: int,
        kind: tuple[str, dict[str, Any]],
        goal: float,
        progress: Progress | None,
    ) -> Approximation | None:
        rows = self._client.query(collection, filter="", output_fields=["key", "vector"], limit=SAMPLE)
        keys = [row["key"] for row in rows]
        queries = np.stack([self._vector(row["vector"]) for row in rows])
        truth = [
            [each.cost for each in near if server.key_of(each.hit.id, each.hit.modality) != own][NEAREST - 1]
            for near, own in zip(self._nearest(collection, queries, NEAREST + 1, [], 0), keys, strict=True)
        ]
        server.reindex(self._client, collection, *kind)
        for step, effort in enumerate(server.EFFORTS):
            if progress is not None:
                progress("measuring the recall", step + 1, len(server.EFFORTS))
            near = self._nearest(collection, queries, NEAREST + 1, [], effort)
            hits = [
                sum(each.cost <= tenth and server.key_of(each.hit.id, each.hit.modality) != own for each in row)
                for row, tenth, own in zip(near, truth, keys, strict=True)
            ]
            recall = float(np.mean(np.minimum(hits, NEAREST))) / NEAREST
            if recall >= goal:
                return Approximation(f"{kind[0]} of Milvus", effort, 0, recall, len(rows), size)
        return None

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
        """Nearest items of every query; see :meth:`VectorIndex.search`."""
        with server.asking(self.location):
            entry = self._entry()
            asked = Search(k, radius, modality, where, rerank, exact)
            check_search(queries, asked, self.model, stored=entry["features"], features=features, where=self.location)
            effort = self._effort(entry, asked)
            among = [] if modality is None else [f"modality == {json.dumps(modality)}"]
            if where is not None:
                columns = {name: f'fields["{name}"]' for name in entry["fields"]}
                tree = parse_where(where, entry["fields"])
                among.append(to_milvus(tree, {**columns, "modality": "modality"}))
            if not len(queries):
                return []
            wanted = k if rerank is None else rerank
            limit = MOST if wanted is None else min(wanted + SLACK, MOST)
            vectors = stored_vectors(queries, self.model)
            answer = []
            for query, first in zip(
                vectors, self._nearest(entry["collection"], vectors, limit, among, effort), strict=True
            ):
                near = first if effort else self._complete(entry["collection"], query, first, limit, asked, among)
                answer.append([each.hit for each in sorted(near, key=_order)[:wanted]])
            if features is not None:
                unit = unit_features(features, len(queries))
                return [self._reranked(entry, hits, query, k) for hits, query in zip(answer, unit, strict=True)]
            return [hits[:k] for hits in answer]

    def close(self) -> None:
        """Close the connection; an embedded server ends."""
        self._client.close()

    def __enter__(self) -> "MilvusIndex":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _entry(self, *, unfinished: bool = False) -> dict[str, Any]:
        """What the catalogue says of this index now."""
        entry = server.entry_of(self._client, self._name)
        if entry is None:
            raise no_index(self.location)
        if entry["approximation"] == "unfinished" and not unfinished:
            raise InputError(
                "the index was being optimised when that was interrupted",
                where=self.location,
                remedy="run index optimise again",
            )
        return entry

    def _effort(self, entry: dict[str, Any], asked: Search) -> int:
        """What an approximate search visits; 0 where the search is exact."""
        built = _approximation(entry)
        if built is None:
            if asked.exact is False:
                raise no_approximation(self.location)
            return 0
        if asked.exact or asked.radius is not None:
            raise InputError(
                "the index is approximate",
                where=self.location,
                why=f"{built.method}, recall {built.recall:.3f}",
                remedy="leave out --exact and --radius, or build the index again",
            )
        return built.effort

    def _nearest(
        self, collection: str, queries: np.ndarray, limit: int, among: list[str], effort: int
    ) -> list[list[_Row]]:
        """The nearest ``limit`` rows of every query, ties in any order, in the order of their exact costs."""
        codes = isinstance(self.model, CodeModel)
        answer = self._client.search(
            collection,
            data=[query.tobytes() for query in queries] if codes else list(queries),
            anns_field="vector",
            limit=limit,
            filter=" and ".join(among),
            search_params={
                "metric_type": server.metric(self.model),
                "params": {"nprobe": effort, "ef": max(effort, limit)} if effort else {},
            },
            output_fields=["key", "payload"] if codes else ["key", "payload", "vector"],
        )
        return [
            sorted((self._row(row, query) for row in rows), key=lambda each: each.cost)
            for rows, query in zip(answer, queries, strict=True)
        ]

    def _row(self, row: Any, query: np.ndarray) -> _Row:
        name, modality = server.item_of(row["key"])
        payload = json.loads(row["entity"]["payload"])
        if isinstance(self.model, CodeModel):
            distance = int(row["distance"])
            return _Row(Hit(name, modality, distance, None, payload), distance)
        score = float(products(self._vector(row["entity"]["vector"])[None], query)[0])
        return _Row(Hit(name, modality, None, score, payload), -score)

    def _vector(self, value: Any) -> np.ndarray:
        """A vector as pymilvus returns it: bytes, alone or in a list, or a list of floats."""
        if not isinstance(self.model, CodeModel):
            return np.array(value, np.float32)
        return np.frombuffer(value[0] if isinstance(value, list) else value, np.uint8)

    def _complete(
        self, collection: str, query: np.ndarray, first: list[_Row], limit: int, asked: Search, among: list[str]
    ) -> list[_Row]:
        """The k nearest rows within the radius and all that tie with the last of them."""
        k = asked.k if asked.rerank is None else asked.rerank
        bound = np.inf if asked.radius is None else float(asked.radius)
        if k is not None and k < len(first):
            bound = min(bound, first[k - 1].cost)
        # Milvus adds up products in single precision: what it returns last may be nearer than it says.
        margin = 0.0 if isinstance(self.model, CodeModel) else 2 * rounding(query, self._longest(first, query))
        if len(first) == limit and first[-1].cost <= bound + margin:
            first = self._within(collection, query, bound + margin, among)
        return [each for each in first if each.cost <= bound]

    @staticmethod
    def _longest(rows: list[_Row], query: np.ndarray) -> float:
        """Bound of the lengths of vectors near the end of the list, from their products with the query."""
        largest = max((abs(each.cost) for each in rows), default=0.0)
        return 16 * max(1.0, largest / max(float(np.linalg.norm(query)), 1e-30))

    def _within(self, collection: str, query: np.ndarray, bound: float, among: list[str]) -> list[_Row]:
        """All rows within a bound: where they are more than one search returns, in two halves of the keys."""
        (rows,) = self._nearest(collection, query[None], MOST, among, 0)
        if len(rows) < MOST or rows[-1].cost > bound:
            return [each for each in rows if each.cost <= bound]
        middle = json.dumps(sorted(server.key_of(each.hit.id, each.hit.modality) for each in rows)[MOST // 2])
        halves = ([*among, f"key < {middle}"], [*among, f"key >= {middle}"])
        return [each for half in halves for each in self._within(collection, query, bound, half)]

    def _reranked(
        self, entry: dict[str, Any], hits: list[Hit], query: Float[np.ndarray, " d"], k: int | None
    ) -> list[Hit]:
        if not hits:
            return []
        keys = [server.key_of(hit.id, hit.modality) for hit in hits]
        fields = ["key", "features"]
        stored = {row["key"]: row["features"] for part in server.parts(keys) for row in self._rows(entry, part, fields)}
        score = products(np.stack([_half(stored[key]) for key in keys]), query)
        order = np.argsort(-score, kind="stable")[:k]
        return [dataclasses.replace(hits[place], score=float(score[place])) for place in order.tolist()]

    def _present(self, entry: dict[str, Any], keys: Sequence[str]) -> list[str]:
        """Those of the keys that are there."""
        return [row["key"] for part in server.parts(keys) for row in self._rows(entry, part, ["key"])]

    def _rows(self, entry: dict[str, Any], keys: Sequence[str], fields: list[str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._client.query(
            entry["collection"], filter=server.one_of(keys), output_fields=fields
        )
        return rows


def _approximation(entry: dict[str, Any]) -> Approximation | None:
    value = entry["approximation"]
    return None if value is None else Approximation(**value)


def _order(row: _Row) -> tuple[float, str, str]:
    return row.cost, row.hit.id, row.hit.modality


def _half(value: Any) -> np.ndarray:
    """A half-precision vector as pymilvus returns it: bytes, alone or in a list."""
    return np.frombuffer(value[0] if isinstance(value, list) else value, dtype=np.float16)
