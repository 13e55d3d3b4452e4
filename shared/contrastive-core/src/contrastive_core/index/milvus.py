"""An index on a Milvus server, or in a file through Milvus embedded in this process."""

import dataclasses
import json
import logging
import os
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8

from contrastive_core.errors import InputError
from contrastive_core.index.checks import (
    check_absent,
    check_new_model,
    check_none_missing,
    check_search,
    cosines,
    index_exists,
    item_table,
    no_index,
    unit_features,
)
from contrastive_core.index.interface import MODALITIES, CodeModel, Hit, IndexInfo, Items, Modality

FORMAT = 1
CATALOGUE = "cl_retrieval_indexes"
"""The collection that says which collection holds which index, so that an index is replaced in one step."""
MOST = 16_384
"""Rows one search of Milvus returns at most."""
BATCH_BYTES = 16 * 2**20
"""Size of one insertion; servers refuse messages above 64 MiB."""
SLACK = 64
"""Rows asked for beyond k: ties at the end of the list are seldom more."""

TIMEOUT = 10.0
"""Seconds a server has to answer."""

_FIELDS = ["key", "payload"]


class MilvusIndex:
    """An index on Milvus, searched exactly there.

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
        self.location = _location(address, name)
        if "://" not in address and not Path(address).exists():
            raise no_index(address)
        self._client = _connect(address)
        try:
            with _asking(self.location):
                entry = _entry(self._client, name)
            if entry is None:
                raise no_index(self.location)
        except BaseException:
            self._client.close()
            raise
        self._collection: str = entry["collection"]
        self.model = CodeModel(**entry["model"])
        self._features: int = entry["features"]
        self._address, self._name = address, name

    @classmethod
    def build(
        cls, address: str, name: str, model: CodeModel, items: Items, *, overwrite: bool = False
    ) -> "MilvusIndex":
        """Make an index; see :func:`contrastive_core.index.build_index`."""
        check_new_model(model)
        location = _location(address, name)
        table = item_table(items, model, None, location)
        features = table.schema.field("features").type.list_size if "features" in table.column_names else 0
        client = _connect(address)
        try:
            with _asking(location):
                before = _entry(client, name)
                if before is not None and not overwrite:
                    raise index_exists(location)
                collection = f"{name}_{secrets.token_hex(4)}"
                _create(client, collection, model, features)
                try:
                    _insert(client, collection, table)
                    entry = {"format": FORMAT, "model": dataclasses.asdict(model), "features": features}
                    _enter(client, name, {**entry, "collection": collection})
                except BaseException:
                    client.drop_collection(collection)
                    raise
                if before is not None:
                    client.drop_collection(before["collection"])
        finally:
            client.close()
        return cls(address, name)

    def info(self) -> IndexInfo:
        """What the index holds now; see :meth:`CodeIndex.info`."""
        with _asking(self.location):
            counts = {each: _count(self._client, self._collection, f'modality == "{each}"') for each in MODALITIES}
        file = None if "://" in self._address else Path(self._address)
        return IndexInfo(
            location=self.location,
            engine="milvus",
            model=self.model,
            items=counts,
            features=self._features,
            version=0,
            bytes=None if file is None else file.stat().st_size,
        )

    def add(self, items: Items) -> None:
        """Add items; see :meth:`CodeIndex.add`."""
        table = item_table(items, self.model, self._features, self.location)
        keys = _keys(table)
        with _asking(self.location):
            check_absent(map(_item, self._present(keys)), self.location)
            _insert(self._client, self._collection, table)

    def delete(self, ids: Sequence[str], *, modality: Modality | None = None) -> int:
        """Delete items; see :meth:`CodeIndex.delete`."""
        kinds = MODALITIES if modality is None else (modality,)
        wanted = list(dict.fromkeys(ids))
        with _asking(self.location):
            present = self._present([_key(each, kind) for each in wanted for kind in kinds])
            there = {_item(key)[0] for key in present}
            check_none_missing((each for each in wanted if each not in there), modality, self.location)
            _delete(self._client, self._collection, present)
        return len(present)

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
        """Nearest items of every query; see :meth:`CodeIndex.search`."""
        check_search(
            codes,
            self.model,
            stored=self._features,
            k=k,
            radius=radius,
            modality=modality,
            features=features,
            rerank=rerank,
            where=self.location,
        )
        if not len(codes):
            return []
        wanted = k if rerank is None else rerank
        among = [] if modality is None else [f'modality == "{modality}"']
        limit = MOST if wanted is None else min(wanted + SLACK, MOST)
        with _asking(self.location):
            answer = []
            for code, first in zip(codes, self._nearest(codes, limit, among), strict=True):
                hits = self._complete(code, first, limit, wanted, self.model.bits if radius is None else radius, among)
                answer.append(sorted(hits, key=_order)[:wanted])
            if features is not None:
                asked = unit_features(features, len(codes))
                answer = [self._reranked(hits, query, k) for hits, query in zip(answer, asked, strict=True)]
        return answer

    def close(self) -> None:
        """Close the connection; an embedded server ends."""
        self._client.close()

    def __enter__(self) -> "MilvusIndex":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _nearest(self, codes: UInt8[np.ndarray, "q bytes"], limit: int, among: list[str]) -> list[list[Hit]]:
        """The nearest ``limit`` rows of every query, ties in any order."""
        answer = self._client.search(
            self._collection,
            data=[code.tobytes() for code in codes],
            anns_field="code",
            limit=limit,
            filter=" and ".join(among),
            search_params={"metric_type": "HAMMING"},
            output_fields=_FIELDS,
        )
        return [[_hit(row) for row in rows] for rows in answer]

    def _complete(
        self,
        code: UInt8[np.ndarray, " bytes"],
        first: list[Hit],
        limit: int,
        k: int | None,
        radius: int,
        among: list[str],
    ) -> list[Hit]:
        """The k nearest rows within the radius and all that tie with the last of them."""
        if k is not None and k < len(first):
            radius = min(radius, first[k - 1].distance)
        if len(first) == limit and first[-1].distance <= radius:
            first = self._within(code, radius, among)
        return [hit for hit in first if hit.distance <= radius]

    def _within(self, code: UInt8[np.ndarray, " bytes"], radius: int, among: list[str]) -> list[Hit]:
        """All rows within the radius: where they are more than one search returns, in two halves of the keys."""
        (hits,) = self._nearest(code[None], MOST, among)
        if len(hits) < MOST or hits[-1].distance > radius:
            return [hit for hit in hits if hit.distance <= radius]
        middle = sorted(_key(hit.id, hit.modality) for hit in hits)[MOST // 2]
        halves = ([*among, f'key < "{middle}"'], [*among, f'key >= "{middle}"'])
        return [hit for half in halves for hit in self._within(code, radius, half)]

    def _reranked(self, hits: list[Hit], query: Float[np.ndarray, " d"], k: int | None) -> list[Hit]:
        if not hits:
            return []
        keys = [_key(hit.id, hit.modality) for hit in hits]
        stored = {row["key"]: row["features"] for part in _parts(keys) for row in self._rows(part, ["key", "features"])}
        score = cosines(np.stack([_half(stored[key]) for key in keys]), query)
        order = np.argsort(-score, kind="stable")[:k]
        return [dataclasses.replace(hits[place], score=float(score[place])) for place in order.tolist()]

    def _present(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that are there."""
        return [row["key"] for part in _parts(keys) for row in self._rows(part, ["key"])]

    def _rows(self, keys: Sequence[str], fields: list[str]) -> list[dict[str, Any]]:
        return self._client.query(self._collection, filter=_among(keys), output_fields=fields)


def _connect(address: str) -> Any:
    needed = ["pymilvus"] if "://" in address else ["pymilvus", "milvus_lite"]
    missing = [each for each in needed if find_spec(each) is None]
    if missing:
        raise InputError(
            "Milvus cannot be used",
            where=_shown(address),
            why=f"{missing[0]} is not installed",
            remedy="pip install 'contrastive-core[index]'",
        )
    token = {"token": os.environ.get("MILVUS_TOKEN", "")} if "://" in address else {}
    try:
        with _quiet():
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException

            return MilvusClient(address, timeout=TIMEOUT, **token)
    except (MilvusException, ValueError, OSError) as error:
        raise InputError(
            "Milvus does not answer",
            where=_shown(address),
            why=_first_line(error),
            remedy="start the server, or correct the address; a token is read from MILVUS_TOKEN"
            if "://" in address
            else "end the process that has the file open, or restore it from a copy",
        ) from error


def _create(client: Any, collection: str, model: CodeModel, features: int) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=model.name[:200])
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=4096)
    schema.add_field("modality", DataType.VARCHAR, max_length=8)
    schema.add_field("payload", DataType.VARCHAR, max_length=65_535)
    schema.add_field("code", DataType.BINARY_VECTOR, dim=8 * model.bytes)
    indexes = client.prepare_index_params()
    indexes.add_index("code", index_type="BIN_FLAT", metric_type="HAMMING")
    if features:
        schema.add_field("features", DataType.FLOAT16_VECTOR, dim=features)
        indexes.add_index("features", index_type="FLAT", metric_type="IP")  # every vector field needs an index
    client.create_collection(collection, schema=schema, index_params=indexes, consistency_level="Strong")


def _insert(client: Any, collection: str, table: pa.Table) -> None:
    """Insert rows; if that fails, take back what was inserted."""
    done: list[str] = []
    try:
        for batch in _batches(table):
            done.extend(row["key"] for row in batch)
            client.insert(collection, batch)
    except BaseException:
        _delete(client, collection, done)
        raise


def _batches(table: pa.Table) -> Iterator[list[dict[str, Any]]]:
    keys = _keys(table)
    batch: list[dict[str, Any]] = []
    size = 0
    for start in range(0, table.num_rows, 1024):
        part = table.slice(start, 1024)
        codes = np.array(part["code"].to_pylist(), dtype=np.uint8)
        features = np.array(part["features"].to_pylist(), dtype=np.float16) if "features" in part.column_names else None
        for place, (key, kind, payload) in enumerate(
            zip(keys[start:], part["modality"].to_pylist(), part["payload"].to_pylist())
        ):
            row = {"key": key, "modality": MODALITIES[kind], "payload": payload, "code": codes[place].tobytes()}
            if features is not None:
                row["features"] = features[place]
            size += len(key) + 4 * len(payload) + codes.shape[1] + (0 if features is None else features[place].nbytes)
            batch.append(row)
            if size > BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _delete(client: Any, collection: str, keys: Sequence[str]) -> None:
    for part in _parts(keys):
        client.delete(collection, filter=_among(part))


def _entry(client: Any, name: str) -> dict[str, Any] | None:
    """What the catalogue says of an index."""
    if not client.has_collection(CATALOGUE):
        return None
    rows = client.query(CATALOGUE, filter=f'name == "{name}"', output_fields=["entry"])
    if not rows:
        return None
    entry = json.loads(rows[0]["entry"])
    if entry.get("format") != FORMAT:
        raise InputError("the index has another format", where=name, why=f"{entry.get('format')}, not {FORMAT}")
    return entry


def _enter(client: Any, name: str, entry: dict[str, Any]) -> None:
    from pymilvus import DataType

    if not client.has_collection(CATALOGUE):
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("name", DataType.VARCHAR, is_primary=True, max_length=256)
        schema.add_field("entry", DataType.VARCHAR, max_length=65_535)
        schema.add_field("none", DataType.BINARY_VECTOR, dim=8)  # a collection has a vector
        indexes = client.prepare_index_params()
        indexes.add_index("none", index_type="BIN_FLAT", metric_type="HAMMING")
        client.create_collection(CATALOGUE, schema=schema, index_params=indexes, consistency_level="Strong")
    client.upsert(CATALOGUE, [{"name": name, "entry": json.dumps(entry), "none": b"\0"}])


def _count(client: Any, collection: str, condition: str) -> int:
    return int(client.query(collection, filter=condition, output_fields=["count(*)"])[0]["count(*)"])


def _key(name: str, modality: Modality) -> str:
    """Primary key; quoted, so that no id means anything to a filter."""
    return f"{modality}:{quote(name, safe='/ ')}"


def _item(key: str) -> tuple[str, Modality]:
    modality, _, name = key.partition(":")
    return unquote(name), "image" if modality == "image" else "text"


def _keys(table: pa.Table) -> list[str]:
    return [_key(name, MODALITIES[kind]) for name, kind in zip(table["id"].to_pylist(), table["modality"].to_pylist())]


def _among(keys: Sequence[str]) -> str:
    return f"key in {json.dumps(list(keys))}"


def _parts(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[start : start + 1000] for start in range(0, len(keys), 1000)]


def _hit(row: Any) -> Hit:
    name, modality = _item(row["key"])
    return Hit(name, modality, int(row["distance"]), None, json.loads(row["entity"]["payload"]))


def _order(hit: Hit) -> tuple[int, str, int]:
    return hit.distance, hit.id, MODALITIES.index(hit.modality)


def _half(value: Any) -> np.ndarray:
    """A half-precision vector as pymilvus returns it: bytes, alone or in a list."""
    return np.frombuffer(value[0] if isinstance(value, list) else value, dtype=np.float16)


def _location(address: str, name: str) -> str:
    location = f"{_shown(address)}#{name}"
    if not name.isidentifier() or not name.isascii() or len(name) > 200 or name == CATALOGUE:
        raise InputError(
            "an index cannot have that name",
            where=location,
            why="names have letters, digits and underscores, and do not begin with a digit",
        )
    return location


def _shown(address: str) -> str:
    """The address without a password."""
    parts = urlsplit(address)
    return address.replace(f"{parts.username}:{parts.password}@", "") if parts.password else address


@contextmanager
def _asking(location: str) -> Iterator[None]:
    from pymilvus.exceptions import MilvusException

    try:
        with _quiet():
            yield
    except MilvusException as error:
        raise InputError("Milvus refused", where=location, why=_first_line(error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Errors are raised; pymilvus also logs each with its traceback, and milvus-lite warns of pkg_resources."""
    logger = logging.getLogger("pymilvus")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: object) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
