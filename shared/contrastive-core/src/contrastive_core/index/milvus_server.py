"""What the index says to Milvus: connecting, collections, the catalogue of indexes, quoting."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from contrastive_core.errors import InputError
from contrastive_core.index.interface import CodeModel, Model
from contrastive_core.index.rows import Rows

FORMAT = 2
CATALOGUE = "contrastive_indexes"
"""The collection that says which collection holds which index, so that an index is replaced in one step."""
BATCH_BYTES = 16 * 2**20
"""Size of one insertion; servers refuse messages above 64 MiB."""
PARTITIONS = 16
"""Parts of a collection; a search of one modality visits only the part it is in."""
TIMEOUT = 10.0
"""Seconds a server has to answer."""
EFFORTS = (8, 16, 32, 64, 128, 256, 512)
"""Lists visited, or ``ef`` of HNSW, from cheap to dear."""


def connect(address: str) -> Any:
    """A client of a server, or of a file opened in this process.

    Raises:
        InputError: It does not answer, or what it needs is not installed.
    """
    needed = ["pymilvus"] if "://" in address else ["pymilvus", "milvus_lite"]
    missing = [each for each in needed if find_spec(each) is None]
    if missing:
        raise InputError(
            "Milvus cannot be used",
            where=shown(address),
            why=f"{missing[0]} is not installed",
            remedy=f"pip install 'contrastive-core[{'index' if missing[0] == 'pymilvus' else 'milvus-lite'}]'",
        )
    token = {"token": os.environ.get("MILVUS_TOKEN", "")} if "://" in address else {}
    try:
        with quiet():
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException

            return MilvusClient(address, timeout=TIMEOUT, **token)
    except (MilvusException, ValueError, OSError) as error:
        raise InputError(
            "Milvus does not answer",
            where=shown(address),
            why=first_line(error),
            remedy="start the server, or correct the address; a token is read from MILVUS_TOKEN"
            if "://" in address
            else "end the process that has the file open, or restore it from a copy",
        ) from error


def create(client: Any, collection: str, model: Model, features: int, *, served: bool) -> None:
    """Make a collection that is searched exactly; on a server it is partitioned by modality.

    Milvus embedded in a process (milvus-lite 2.5.1) fails on every condition where there is a partition key.
    """
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=model.name[:200])
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=4096)
    schema.add_field("modality", DataType.VARCHAR, max_length=64, is_partition_key=served)
    schema.add_field("payload", DataType.VARCHAR, max_length=65_535)
    schema.add_field("fields", DataType.JSON)
    if isinstance(model, CodeModel):
        schema.add_field("vector", DataType.BINARY_VECTOR, dim=8 * model.bytes)
    else:
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=model.dim)
    indexes = client.prepare_index_params()
    kind, options = exact_type(model)
    indexes.add_index("vector", index_type=kind, **options)
    if features:
        schema.add_field("features", DataType.FLOAT16_VECTOR, dim=features)
        indexes.add_index("features", index_type="FLAT", metric_type="IP")  # every vector field needs an index
    options = {"num_partitions": PARTITIONS} if served else {}
    client.create_collection(collection, schema=schema, index_params=indexes, consistency_level="Strong", **options)


def exact_type(model: Model) -> tuple[str, dict[str, Any]]:
    """Index type of Milvus that looks at everything, and its options."""
    return ("BIN_FLAT" if isinstance(model, CodeModel) else "FLAT"), {"metric_type": metric(model)}


def approximate_type(model: Model, size: int, *, served: bool) -> tuple[str, dict[str, Any]] | None:
    """Index type of Milvus for many items, and its options; None where the embedded one has none."""
    lists = {"nlist": min(65_536, max(1, 4 * int(size**0.5)))}
    if isinstance(model, CodeModel):
        return ("BIN_IVF_FLAT", {"metric_type": "HAMMING", "params": lists}) if served else None
    if served:
        return "HNSW", {"metric_type": "IP", "params": {"M": 24, "efConstruction": 200}}
    return "IVF_FLAT", {"metric_type": "IP", "params": lists}


def metric(model: Model) -> str:
    """What Milvus compares by; vectors of unit length by their product."""
    return "HAMMING" if isinstance(model, CodeModel) else "IP"


def reindex(client: Any, collection: str, kind: str, options: dict[str, Any]) -> None:
    """Replace the index of the vectors; searches wait for it."""
    client.release_collection(collection)
    client.drop_index(collection, "vector")
    indexes = client.prepare_index_params()
    indexes.add_index("vector", index_type=kind, **options)
    client.create_index(collection, indexes)
    client.load_collection(collection)


def insert(client: Any, collection: str, rows: Rows, progress: Any = None) -> None:
    """Insert rows; if that fails, take back what was inserted."""
    done: list[str] = []
    try:
        for batch in _batches(rows, progress):
            done.extend(row["key"] for row in batch)
            client.insert(collection, batch)
    except BaseException:
        delete(client, collection, done)
        raise


def _batches(rows: Rows, progress: Any) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for table, vectors, features in rows.batches(progress):
        fields = [name for name in table.column_names if name in rows.fields]
        for place, row in enumerate(table.to_pylist()):
            vector = vectors[place].tobytes() if isinstance(rows.model, CodeModel) else vectors[place]
            known = {name: row[name] for name in fields if row[name] is not None}
            item = {
                "key": key_of(row["id"], row["modality"]),
                "modality": row["modality"],
                "payload": row["payload"],
                "fields": known,
                "vector": vector,
            }
            if features is not None:
                item["features"] = features[place]
            size += len(item["key"]) + 8 * len(row["payload"]) + vectors[place].nbytes
            size += 0 if features is None else features[place].nbytes
            batch.append(item)
            if size > BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def delete(client: Any, collection: str, keys: Sequence[str]) -> None:
    """Delete rows by their keys."""
    for part in parts(keys):
        client.delete(collection, filter=one_of(part))


def entry_of(client: Any, name: str) -> dict[str, Any] | None:
    """What the catalogue says of an index.

    Raises:
        InputError: It has another format, or an optimisation was interrupted.
    """
    if not client.has_collection(CATALOGUE):
        return None
    rows = client.query(CATALOGUE, filter=f'name == "{name}"', output_fields=["entry"])
    if not rows:
        return None
    entry: dict[str, Any] = json.loads(rows[0]["entry"])
    if entry.get("format") != FORMAT:
        raise InputError("the index has another format", where=name, why=f"{entry.get('format')}, not {FORMAT}")
    return entry


def enter(client: Any, name: str, entry: dict[str, Any]) -> None:
    """Write what the catalogue says of an index."""
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


def count(client: Any, collection: str, condition: str) -> int:
    """Number of rows that meet a condition."""
    return int(client.query(collection, filter=condition, output_fields=["count(*)"])[0]["count(*)"])


def key_of(name: str, modality: str) -> str:
    """Primary key; quoted, so that no id means anything to a filter."""
    return f"{modality}:{quote(name, safe='/ ')}"


def item_of(key: str) -> tuple[str, str]:
    """Id and modality of a primary key."""
    modality, _, name = key.partition(":")
    return unquote(name), modality


def one_of(keys: Sequence[str]) -> str:
    """Condition that a row has one of the keys."""
    return f"key in {json.dumps(list(keys))}"


def parts(keys: Sequence[str]) -> list[Sequence[str]]:
    """Keys in parts that one filter takes."""
    return [keys[start : start + 1000] for start in range(0, len(keys), 1000)]


def location_of(address: str, name: str) -> str:
    """How messages name an index.

    Raises:
        InputError: Milvus takes no such name.
    """
    location = f"{shown(address)}#{name}"
    if not name.isidentifier() or not name.isascii() or len(name) > 200 or name == CATALOGUE:
        raise InputError(
            "an index cannot have that name",
            where=location,
            why="names have letters, digits and underscores, and do not begin with a digit",
        )
    return location


def shown(address: str) -> str:
    """The address without a password."""
    parts = urlsplit(address)
    return address.replace(f"{parts.username}:{parts.password}@", "") if parts.password else address


@contextmanager
def asking(location: str) -> Iterator[None]:
    """Turn a refusal of Milvus into an error that names the index."""
    from pymilvus.exceptions import MilvusException

    try:
        with quiet():
            yield
    except MilvusException as error:
        raise InputError("Milvus refused", where=location, why=first_line(error)) from error


@contextmanager
def quiet() -> Iterator[None]:
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


def first_line(error: object) -> str:
    """The first line of an error, at most 200 characters."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
