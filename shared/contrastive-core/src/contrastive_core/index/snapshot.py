"""One version of an embedded index in memory: what is read of it, how that is checked, how rows are fetched."""

import dataclasses
import json
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int, Shaped, UInt32, UInt64

from contrastive_core.errors import InputError
from contrastive_core.evaluation.codes import words
from contrastive_core.index.interface import CodeModel, Model, Progress, VectorModel
from contrastive_core.index.multi_index import MultiIndex
from contrastive_core.index.rows import Rows, fixed_size
from contrastive_core.index.where import Kind, Where, to_sql

FORMAT = 2
TABLE = "items"
HELD_BYTES = 512 * 2**20
"""Float vectors up to this size are held in memory: two cores read so much in some 50 ms. Codes always are."""
FIELD = "field_"
"""What names of the columns of payload fields begin with."""

_KEY = b"contrastive_core.index"
_PART = 1 << 16
_TYPES: dict[Kind, pa.DataType] = {"text": pa.string(), "number": pa.float64(), "boolean": pa.bool_()}
_KINDS: dict[pa.DataType, Kind] = {each: kind for kind, each in _TYPES.items()}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One version in memory: rows sorted by id and modality, so that ties fall to the lower row.

    Attributes:
        table: Handle of LanceDB on that version.
        version: Its number.
        token: Drawn when the index was built; another one means another index.
        model: The model of the index.
        features: Length of the features beside codes; 0 for none.
        fields: What can be filtered by.
        ids: Ids.
        modality: Places in ``modalities``.
        modalities: Those that occur, sorted.
        held: Codes in words ``[v n]`` or float vectors ``[n d]``; None where the floats are too large to be held.
        places: Row ids of LanceDB.
        sums: Check sums over id, modality and vector.
    """

    table: Any
    version: int
    token: str
    model: Model
    features: int
    fields: dict[str, Kind]
    ids: pa.Array
    modality: Int[np.ndarray, " n"]
    modalities: tuple[str, ...]
    held: UInt64[np.ndarray, "v n"] | Float[np.ndarray, "n d"] | None
    places: UInt64[np.ndarray, " n"]
    sums: UInt32[np.ndarray, " n"]

    @cached_property
    def by_place(self) -> Int[np.ndarray, " n"]:
        """Rows in the order of their row ids."""
        return np.argsort(self.places)

    @cached_property
    def tables(self) -> MultiIndex:
        """Tables of the substrings of codes, made when they are first needed."""
        assert isinstance(self.model, CodeModel)
        assert self.held is not None
        return MultiIndex(self.held, self.model.bits)

    def rows_at(self, places: UInt64[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Rows of row ids of LanceDB."""
        at = np.searchsorted(self.places, places, sorter=self.by_place)
        return self.by_place[np.minimum(at, len(self.places) - 1)]

    def of_modality(self, modality: str) -> Bool[np.ndarray, " n"]:
        """Which rows are of a modality."""
        place = self.modalities.index(modality) if modality in self.modalities else -1
        return self.modality == place

    def columns(self) -> dict[str, str]:
        """Column of every name that a condition may hold."""
        return {"modality": "modality", **{name: FIELD + name for name in self.fields}}

    def among(self, modality: str | None, where: Where | None) -> Bool[np.ndarray, " n"] | None:
        """Which rows may be returned; None for all."""
        mask = None if modality is None else self.of_modality(modality)
        if where is None:
            return mask
        with disk():
            query = self.table.search().where(to_sql(where, self.columns())).select(["check"])
            places = query.with_row_id(True).limit(None).to_arrow()["_rowid"].to_numpy()
        met = np.zeros(len(self.places), dtype=bool)
        met[self.rows_at(places)] = True
        return met if mask is None else met & mask

    def fetch(self, rows: Int[np.ndarray, " m"], columns: list[str]) -> pa.Table:
        """Columns of some rows (ascending, no two equal), in their order, straight from disk."""
        if not len(rows):
            return self.table.schema.empty_table().select(columns)
        places = self.places[rows]
        with disk():
            got = self.table.take_row_ids(places.tolist()).select(columns).with_row_id().to_arrow()
        order = np.argsort(got["_rowid"].to_numpy())
        if len(order) != len(rows):
            raise UnreadableError("rows are missing")
        back = np.empty(len(rows), np.int64)
        back[np.argsort(places)] = order
        return got.take(pa.array(back))

    def verify(self, rows: Int[np.ndarray, " m"], vectors: Float[np.ndarray, "m d"]) -> None:
        """Refuse vectors that were read from disk and are not what was written."""
        names = pa.array(self.modalities, pa.string()).take(pa.array(self.modality[rows]))
        if not np.array_equal(check_sums(self.ids.take(pa.array(rows)), names, vectors), self.sums[rows]):
            raise UnreadableError("check sums do not agree")


class UnreadableError(Exception):
    """What is on disk cannot be read: a version that was removed meanwhile, or damaged files."""


@contextmanager
def disk() -> Iterator[None]:
    """Turn what LanceDB raises on reading into one error."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise UnreadableError(first_line(error)) from error


def damaged(folder: Path, why: object) -> InputError:
    """Files of an index are not what was written."""
    return InputError(
        "the index is damaged",
        where=folder,
        why=first_line(why),
        remedy="restore the folder from a copy, or build the index again with --overwrite",
    )


def first_line(error: object) -> str:
    """The first line of an error, at most 200 characters."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def written(rows: Rows, fields: dict[str, Kind], token: str, progress: Progress | None = None) -> pa.RecordBatchReader:
    """Rows as they are written: in batches, with a check sum a row and the model in the schema.

    Args:
        rows: Checked items.
        fields: Every field of the table.
        token: Name of this index.
        progress: Told how far the writing is.
    """
    schema = _schema(rows, fields, token)

    def batches() -> Iterator[pa.RecordBatch]:
        for table, vectors, features in rows.batches(progress):
            sums = check_sums(flat(table["id"]), flat(table["modality"]), vectors)
            columns = {"vector": fixed_size(vectors), "check": pa.array(sums)}
            if features is not None:
                columns["features"] = fixed_size(features)
            for name in ("id", "modality", "payload"):
                columns[name] = flat(table[name])
            for name, kind in fields.items():
                known = name in table.column_names
                values = flat(table[name]) if known else pa.nulls(len(table))
                columns[FIELD + name] = values.cast(_TYPES[kind])
            yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def field_columns(fields: dict[str, Kind]) -> list[pa.Field]:
    """Columns of fields that an index gets later."""
    return [pa.field(FIELD + name, _TYPES[kind]) for name, kind in fields.items()]


def _schema(rows: Rows, fields: dict[str, Kind], token: str) -> pa.Schema:
    model = rows.model
    codes = isinstance(model, CodeModel)
    value = pa.list_(pa.uint8(), model.bytes) if isinstance(model, CodeModel) else pa.list_(pa.float32(), model.dim)
    about = {
        "format": FORMAT,
        "kind": "codes" if codes else "vectors",
        "model": dataclasses.asdict(model),
        "features": rows.features,
        "token": token,
    }
    columns = [pa.field("id", pa.string()), pa.field("modality", pa.string()), pa.field("payload", pa.string())]
    columns += [pa.field("vector", value), pa.field("check", pa.uint32())]
    if rows.features:
        columns.append(pa.field("features", pa.list_(pa.float16(), rows.features)))
    return pa.schema([*columns, *field_columns(fields)], {_KEY: json.dumps(about).encode()})


def load(table: Any, folder: Path, before: Snapshot | None) -> Snapshot:
    """The version of a table handle; of what an earlier snapshot holds, only the difference is read.

    Raises:
        InputError: It has another format.
        UnreadableError: The files are damaged, or went away.
    """
    about = _about(table, folder)
    model: Model = (CodeModel if about["kind"] == "codes" else VectorModel)(**about["model"])
    fields = {f.name.removeprefix(FIELD): _KINDS[f.type] for f in table.schema if f.name.startswith(FIELD)}
    with disk():
        size = table.count_rows()
    held = isinstance(model, CodeModel) or size * model.dim * 4 <= HELD_BYTES
    start = Snapshot(
        table, table.version, about["token"], model, about["features"], fields, *_nothing(model, held=held)
    )
    if before is not None and before.token == start.token and (before.held is not None) == held:
        updated = _updated(start, before)
        if updated is not None:
            return updated
    with disk():
        rows = table.search().select(_columns(start)).with_row_id(True).limit(None).to_arrow()
    return _checked(start, rows)


def _nothing(model: Model, *, held: bool) -> tuple[Any, ...]:
    """Ids, modality, modalities, held, places and sums of no rows."""
    vectors = np.empty((1, 0), np.uint64) if isinstance(model, CodeModel) else np.empty((0, model.dim), np.float32)
    empty = np.empty(0, np.uint64)
    return pa.array([], pa.string()), np.empty(0, np.int64), (), vectors if held else None, empty, empty.astype("u4")


def _columns(start: Snapshot) -> list[str]:
    return ["id", "modality", "check", *(["vector"] if start.held is not None else [])]


def _updated(start: Snapshot, before: Snapshot) -> Snapshot | None:
    """The next version, from an earlier one and the rows that are new; None where they are many."""
    if not len(before.places):
        return None
    with disk():
        rows = start.table.search().select(["check"]).with_row_id(True).limit(None).to_arrow()
    places, sums = rows["_rowid"].to_numpy(), rows["check"].to_numpy()
    at = before.rows_at(places)
    known = (before.places[at] == places) & (before.sums[at] == sums)
    if 8 * np.count_nonzero(~known) > len(places):
        return None
    kept = np.zeros(len(before.places), dtype=bool)
    kept[at[known]] = True
    old = dataclasses.replace(
        start,
        ids=before.ids.filter(pa.array(kept)),
        modality=before.modality[kept],
        modalities=before.modalities,
        held=None if before.held is None else np.compress(kept, before.held, axis=_axis(before)),
        places=before.places[kept],
        sums=before.sums[kept],
    )
    with disk():
        fresh = start.table.take_row_ids(places[~known].tolist()).select(_columns(start)).with_row_id().to_arrow()
    if not fresh.num_rows:
        return old
    if not set(pc.unique(fresh["modality"]).to_pylist()) <= set(before.modalities):
        return None
    return _merged(old, _checked(start, fresh))


def _merged(old: Snapshot, new: Snapshot) -> Snapshot:
    """Rows of two snapshots; the modalities of the new one are among those of the old one."""
    names = [old.modalities.index(name) for name in new.modalities]
    modality = np.array(names, np.int64)[new.modality]
    where = [
        bisect_left(range(len(old.ids)), (name, kind), key=lambda row: (old.ids[row].as_py(), int(old.modality[row])))
        for name, kind in zip(new.ids.to_pylist(), modality.tolist())
    ]
    taken = np.insert(np.arange(len(old.ids)), where, len(old.ids) + np.arange(len(new.ids)))
    held = None
    if old.held is not None and new.held is not None:
        held = np.insert(old.held, where, new.held, axis=_axis(old))
    return dataclasses.replace(
        old,
        ids=pa.concat_arrays([old.ids, new.ids]).take(pa.array(taken)),
        modality=np.insert(old.modality, where, modality),
        held=held,
        places=np.insert(old.places, where, new.places),
        sums=np.insert(old.sums, where, new.sums),
    )


def _axis(snapshot: Snapshot) -> int:
    """Axis of the rows of what is held."""
    return 1 if isinstance(snapshot.model, CodeModel) else 0


def _checked(start: Snapshot, rows: pa.Table) -> Snapshot:
    """The snapshot with rows that were read, sorted by id and modality; what holds vectors is summed up."""
    ids, kinds = flat(rows["id"]), flat(rows["modality"])
    places, sums = rows["_rowid"].to_numpy(), rows["check"].to_numpy()
    vectors = None if start.held is None else matrix(rows["vector"])
    if vectors is not None and not np.array_equal(check_sums(ids, kinds, vectors), sums):
        raise UnreadableError("check sums do not agree")
    if not _sorted(ids):
        order = pc.sort_indices(
            pa.table({"id": ids, "modality": kinds}), sort_keys=[("id", "ascending"), ("modality", "ascending")]
        )
        ids, kinds, picked = ids.take(order), kinds.take(order), order.to_numpy()
        places, sums = places[picked], sums[picked]
        vectors = None if vectors is None else vectors[picked]
    modalities = tuple(sorted(pc.unique(kinds).to_pylist()))
    modality = pc.index_in(kinds, value_set=pa.array(modalities, pa.string())).to_numpy().astype(np.int64)
    held = words(vectors) if vectors is not None and isinstance(start.model, CodeModel) else vectors
    return dataclasses.replace(
        start, ids=ids, modality=modality, modalities=modalities, held=held, places=places, sums=sums
    )


def _about(table: Any, folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((table.schema.metadata or {})[_KEY])
        if about["format"] != FORMAT:
            raise InputError("the index has another format", where=folder, why=f"{about['format']}, not {FORMAT}")
        return about
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder, "the model is not named") from error


def _sorted(ids: pa.Array) -> bool:
    """Whether ids ascend strictly; equal ones (image and text of a pair) count as not sorted."""
    return len(ids) < 2 or bool(pc.all(pc.greater(ids[1:], ids[:-1])).as_py())


def check_sums(ids: pa.Array, modality: pa.Array, vectors: Shaped[np.ndarray, "n w"]) -> UInt32[np.ndarray, " n"]:
    """One check sum a row, over id, modality and vector."""
    names = {each: zlib.crc32(each.encode()) for each in pc.unique(modality).to_pylist()}
    kinds = (
        np.array([names[each] for each in names], np.uint64)[
            pc.index_in(modality, value_set=pa.array(list(names), pa.string())).to_numpy()
        ]
        if len(ids)
        else np.empty(0, np.uint64)
    )
    sums = np.fromiter((zlib.crc32(each) for each in ids.cast(pa.binary()).to_pylist()), np.uint64, len(ids))
    mixed = _scrambled(sums << np.uint64(32) | kinds)
    for start in range(0, len(ids), _PART):
        part = words(np.ascontiguousarray(vectors[start : start + _PART]).view(np.uint8))
        # Odd factors: a change of one word always changes the sum.
        factors = (2 * np.arange(len(part), dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed[start : start + _PART] += (part * factors[:, None]).sum(0, dtype=np.uint64)
    return (_scrambled(mixed) >> np.uint64(32)).astype(np.uint32)


def _scrambled(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Multiply-xorshift (the finaliser of splitmix64): a changed bit changes about half of the result."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def matrix(column: pa.ChunkedArray | pa.Array) -> Shaped[np.ndarray, "n w"]:
    """A column of vectors of one length."""
    vectors = flat(column)
    return vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), vectors.type.list_size)
