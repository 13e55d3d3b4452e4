"""An index in a folder: LanceDB keeps it, whole at every moment; its codes are searched in memory."""

import dataclasses
import json
import shutil
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from jaxtyping import Float, Float16, UInt8, UInt32, UInt64

from contrastive_core.errors import InputError
from contrastive_core.evaluation.codes import words
from contrastive_core.files import writing
from contrastive_core.index.checks import (
    check_absent,
    check_model,
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
from contrastive_core.index.scan import nearest

FORMAT = 1
TABLE = "codes"
PIECES = 16
"""Changes after which the pieces they left are joined and old versions removed."""
GRACE = timedelta(minutes=1)
"""Age from which versions are removed; who reads one that goes away reads again."""
PATIENCE = 60.0
"""Seconds to wait for another writer."""

_KEY = b"cl_retrieval"
_LOCK = ".lock"
_COLUMNS = ["id", "modality", "code", "check"]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Snapshot:
    """One version in memory: rows sorted by id and modality, so that ties fall to the lower row."""

    table: Any
    version: int
    model: CodeModel
    features: int
    ids: pa.Array
    modality: UInt8[np.ndarray, " n"]
    codes: UInt64[np.ndarray, "v n"]
    places: UInt64[np.ndarray, " n"]
    sums: UInt32[np.ndarray, " n"]


class EmbeddedIndex:
    """An index in a folder of its own.

    Every change is one commit of LanceDB: it is there as a whole or not at all, whatever happens to the process that
    makes it. Writers wait for each other; readers do not wait, and every search sees the newest version. Ids,
    modalities and codes are held in memory; payloads and features are read from disk for the hits.

    Args:
        folder: Where :meth:`build` made one.

    Raises:
        InputError: There is none, or its files are damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not _finished(folder):
            raise no_index(folder)
        self.folder = folder
        with _reading(folder):
            self._database = lancedb.connect(folder)
            self._newest = self._database.open_table(TABLE)
        self._current = self._load(None)
        self.model = self._current.model

    @classmethod
    def build(cls, folder: Path, model: CodeModel, items: Items, *, overwrite: bool = False) -> "EmbeddedIndex":
        """Make an index; see :func:`contrastive_core.index.build_index`."""
        check_new_model(model)
        _check_folder(folder)
        table = item_table(items, model, None, folder)
        made = not folder.exists()
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with _lock(folder):
                if _readable(folder):
                    if not overwrite:
                        raise index_exists(folder)
                elif (folder / f"{TABLE}.lance").exists():
                    if not overwrite and _finished(folder):
                        raise _damaged(folder, "its newest version cannot be opened")
                    shutil.rmtree(folder / f"{TABLE}.lance")  # what a killed first build left, or damaged
                mode = "overwrite" if (folder / f"{TABLE}.lance").exists() else "create"
                with _changing(folder):
                    lancedb.connect(folder).create_table(TABLE, _stored(table, model), mode=mode)
        except BaseException:
            if made:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        index = cls(folder)
        with _lock(folder):
            index._tidy(always=True)
        return index

    def info(self) -> IndexInfo:
        """What the index holds now; see :meth:`CodeIndex.info`."""
        now = self._snapshot()
        counts = np.bincount(now.modality, minlength=len(MODALITIES))
        return IndexInfo(
            location=str(self.folder),
            engine="lancedb",
            model=now.model,
            items={name: int(count) for name, count in zip(MODALITIES, counts, strict=True)},
            features=now.features,
            version=now.version,
            bytes=_size(self.folder),
        )

    def add(self, items: Items) -> None:
        """Add items in one commit; see :meth:`CodeIndex.add`."""
        with _lock(self.folder):
            now = self._snapshot()
            table = item_table(items, now.model, now.features, self.folder)
            if not table.num_rows:
                return
            there = self._rows(now, table["id"].combine_chunks(), None)
            wanted = {(each, MODALITIES[m]) for each, m in zip(table["id"].to_pylist(), table["modality"].to_pylist())}
            present = ((now.ids[row].as_py(), MODALITIES[now.modality[row]]) for row in there)
            check_absent((each for each in present if each in wanted), self.folder)
            with _changing(self.folder):
                self._writable().add(_stored(table, now.model))
            self._tidy()

    def delete(self, ids: Sequence[str], *, modality: Modality | None = None) -> int:
        """Delete items in one commit; see :meth:`CodeIndex.delete`."""
        with _lock(self.folder):
            now = self._snapshot()
            asked = pa.array(list(dict.fromkeys(ids)), pa.string())
            rows = self._rows(now, asked, modality)
            missing = asked.filter(pc.invert(pc.is_in(asked, value_set=now.ids.take(pa.array(rows)))))
            check_none_missing(missing.to_pylist(), modality, self.folder)
            if not len(rows):
                return 0
            with _changing(self.folder):
                places = ",".join(map(str, now.places[rows].tolist()))
                self._writable().delete(f"_rowid IN ({places})")
            self._tidy()
            return len(rows)

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
        """Nearest items of every query, among all of them; see :meth:`CodeIndex.search`."""

        def found(now: _Snapshot) -> list[list[Hit]]:
            check_search(
                codes,
                now.model,
                stored=now.features,
                k=k,
                radius=radius,
                modality=modality,
                features=features,
                rerank=rerank,
                where=self.folder,
            )
            near = nearest(
                codes,
                now.codes,
                k=k if rerank is None else rerank,
                radius=now.model.bits if radius is None else radius,
                among=None if modality is None else now.modality == MODALITIES.index(modality),
            )
            scores: list[Float[np.ndarray, " m"] | None] = [None] * len(near)
            if features is not None:
                asked = unit_features(features, len(codes))
                rows, stored = _fetch_features(now, [row for row, _ in near])
                for number, (row, distance) in enumerate(near):
                    score = cosines(stored[np.searchsorted(rows, row)], asked[number])
                    order = np.argsort(-score, kind="stable")[:k]
                    near[number], scores[number] = (row[order], distance[order]), score[order]
            return _hits(now, near, scores)

        return self._read(found)

    def close(self) -> None:
        """Nothing stays open between calls; memory goes with the object."""

    def __enter__(self) -> "EmbeddedIndex":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, action: Callable[[_Snapshot], T]) -> T:
        """Do something with the newest version, again where that version was removed meanwhile."""
        while True:
            now = self._snapshot()
            try:
                return action(now)
            except _UnreadableError as error:
                if self._snapshot().version == now.version:
                    raise _damaged(self.folder, error) from error

    def _snapshot(self) -> _Snapshot:
        with _reading(self.folder):
            self._newest.checkout_latest()
            newest = self._newest.version
        if newest != self._current.version:
            loaded = self._load(self._current)
            check_model(loaded.model, self.model, self.folder)
            self._current = loaded
        return self._current

    def _load(self, before: _Snapshot | None) -> _Snapshot:
        while True:
            with _reading(self.folder):
                table = self._database.open_table(TABLE)
            try:
                return _loaded(table, self.folder, before)
            except _UnreadableError as error:
                with _reading(self.folder):
                    self._newest.checkout_latest()
                if self._newest.version == table.version:
                    raise _damaged(self.folder, error) from error

    def _writable(self) -> Any:
        return self._database.open_table(TABLE)

    @staticmethod
    def _rows(now: _Snapshot, ids: pa.Array, modality: Modality | None) -> np.ndarray:
        """Rows of some ids."""
        found = pc.is_in(now.ids, value_set=ids).to_numpy(zero_copy_only=False).astype(bool)
        if modality is not None:
            found &= now.modality == MODALITIES.index(modality)
        return np.flatnonzero(found)

    def _tidy(self, *, always: bool = False) -> None:
        """Join small pieces and remove old versions, from time to time."""
        with _changing(self.folder):
            table = self._writable()
            pieces = table.stats()["fragment_stats"]["num_fragments"]
            past = [each for each in table.list_versions() if each["timestamp"] < datetime.now() - GRACE]
            if always or pieces > PIECES or len(past) > PIECES:
                # Writers hold the lock: what no version refers to was left by a writer that is gone.
                table.optimize(cleanup_older_than=GRACE, delete_unverified=True)


def _stored(table: pa.Table, model: CodeModel) -> pa.Table:
    """The table as it is written: with a check sum a row and the model in its schema."""
    features = table.schema.field("features").type.list_size if "features" in table.column_names else 0
    about = {"format": FORMAT, "model": dataclasses.asdict(model), "features": features}
    sums = _check_sums(table["id"].combine_chunks(), table["modality"].to_numpy(), _matrix(table["code"]))
    return table.append_column("check", pa.array(sums)).replace_schema_metadata({_KEY: json.dumps(about).encode()})


def _loaded(table: Any, folder: Path, before: _Snapshot | None) -> _Snapshot:
    """The version of a table handle; of what an earlier snapshot holds, only the difference is read."""
    about = _about(table, folder)
    model, features = CodeModel(**about["model"]), about["features"]
    if before is not None and (before.model, before.features) == (model, features):
        updated = _updated(table, folder, before)
        if updated is not None:
            return updated
    with _disk():
        rows = table.search().select(_COLUMNS).with_row_id(True).limit(None).to_arrow()
    ids, modality, codes, places, sums = _checked(rows, folder)
    return _Snapshot(table, table.version, model, features, ids, modality, codes, places, sums)


def _updated(table: Any, folder: Path, before: _Snapshot) -> _Snapshot | None:
    """The next version, from an earlier one and the rows that are new; None where they are many."""
    if not len(before.places):
        return None
    with _disk():
        rows = table.search().select(["check"]).with_row_id(True).limit(None).to_arrow()
    places, sums = rows["_rowid"].to_numpy(), rows["check"].to_numpy()
    order = np.argsort(before.places)
    at = order[np.minimum(np.searchsorted(before.places, places, sorter=order), len(order) - 1)]
    known = (before.places[at] == places) & (before.sums[at] == sums)
    if 8 * np.count_nonzero(~known) > len(places):
        return None
    kept = np.zeros(len(before.places), dtype=bool)
    kept[at[known]] = True
    ids, modality = before.ids.filter(pa.array(kept)), before.modality[kept]
    old = (before.codes[:, kept], before.places[kept], before.sums[kept])
    with _disk():
        fresh = table.take_row_ids(places[~known].tolist()).select(_COLUMNS).with_row_id().to_arrow()
    if not fresh.num_rows:
        return dataclasses.replace(
            before,
            table=table,
            version=table.version,
            ids=ids,
            modality=modality,
            codes=old[0],
            places=old[1],
            sums=old[2],
        )
    new_ids, new_modality, *new = _checked(fresh, folder)
    where = [
        bisect_left(range(len(ids)), (name, kind), key=lambda row: (ids[row].as_py(), int(modality[row])))
        for name, kind in zip(new_ids.to_pylist(), new_modality.tolist())
    ]
    taken = np.insert(np.arange(len(ids)), where, len(ids) + np.arange(len(new_ids)))
    codes, places, sums = (np.insert(a, where, b, axis=-1) for a, b in zip(old, new, strict=True))
    return dataclasses.replace(
        before,
        table=table,
        version=table.version,
        ids=pa.concat_arrays([ids, new_ids]).take(pa.array(taken)),
        modality=np.insert(modality, where, new_modality),
        codes=codes,
        places=places,
        sums=sums,
    )


def _checked(rows: pa.Table, folder: Path) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids, modalities, codes in words, places and check sums, sorted by id and modality."""
    ids, modality, codes = _flat(rows["id"]), rows["modality"].to_numpy(), _matrix(rows["code"])
    places, sums = rows["_rowid"].to_numpy(), rows["check"].to_numpy()
    if not np.array_equal(_check_sums(ids, modality, codes), sums):
        raise _damaged(folder, "check sums do not agree")
    if not _sorted(ids):
        order = pc.sort_indices(
            pa.table({"id": ids, "modality": modality}), sort_keys=[("id", "ascending"), ("modality", "ascending")]
        )
        ids, picked = ids.take(order), order.to_numpy()
        modality, codes, places, sums = modality[picked], codes[picked], places[picked], sums[picked]
    return ids, modality, words(codes), places, sums


def _about(table: Any, folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((table.schema.metadata or {})[_KEY])
        if about["format"] != FORMAT:
            raise InputError("the index has another format", where=folder, why=f"{about['format']}, not {FORMAT}")
        return about
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, "the model is not named") from error


def _sorted(ids: pa.Array) -> bool:
    """Whether ids ascend strictly; equal ones (image and text of a pair) count as not sorted."""
    return len(ids) < 2 or bool(pc.all(pc.greater(ids[1:], ids[:-1])).as_py())


def _check_sums(
    ids: pa.Array, modality: UInt8[np.ndarray, " n"], codes: UInt8[np.ndarray, "n w"]
) -> UInt32[np.ndarray, " n"]:
    """One check sum a row, over id, modality and code."""
    sums = np.fromiter((zlib.crc32(each) for each in ids.cast(pa.binary()).to_pylist()), np.uint32, len(ids))
    mixed = sums.astype(np.uint64) << np.uint64(1) | modality.astype(np.uint64)
    for word in words(codes):
        # Multiply-xorshift (the finaliser of splitmix64): a changed bit changes about half of the result.
        mixed = (mixed ^ word) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _fetch(now: _Snapshot, rows: np.ndarray, column: str) -> pa.Table:
    """A column of some rows (ascending, no two equal), in their order, straight from disk."""
    places = now.places[rows]
    if not len(rows):
        return now.table.schema.empty_table().select([column])
    with _disk():
        got = now.table.take_row_ids(places.tolist()).select([column]).with_row_id().to_arrow()
    order = np.argsort(got["_rowid"].to_numpy())
    if len(order) != len(rows):
        raise _UnreadableError("rows are missing")
    back = np.empty(len(rows), np.int64)
    back[np.argsort(places)] = order
    return got.take(pa.array(back))


def _fetch_features(now: _Snapshot, wanted: list[np.ndarray]) -> tuple[np.ndarray, Float16[np.ndarray, "n d"]]:
    rows = np.unique(np.concatenate(wanted)) if wanted else np.empty(0, np.int64)
    return rows, _matrix(_fetch(now, rows, "features")["features"])


def _hits(
    now: _Snapshot, near: list[tuple[np.ndarray, np.ndarray]], scores: list[np.ndarray | None]
) -> list[list[Hit]]:
    rows = np.unique(np.concatenate([row for row, _ in near])) if near else np.empty(0, np.int64)
    ids = now.ids.take(pa.array(rows)).to_pylist()
    with _disk():
        payloads = [json.loads(text) for text in _fetch(now, rows, "payload")["payload"].to_pylist()]
    answer = []
    for (row, distance), score in zip(near, scores, strict=True):
        values = [None] * len(row) if score is None else score.tolist()
        places = np.searchsorted(rows, row).tolist()
        answer.append(
            [
                Hit(ids[place], MODALITIES[kind], far, value, dict(payloads[place]))
                for place, kind, far, value in zip(places, now.modality[row].tolist(), distance.tolist(), values)
            ]
        )
    return answer


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    vectors = _flat(column)
    return vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), vectors.type.list_size)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError("an index is a folder", where=folder, why="there is a file of that name")
    if folder.is_dir() and {path.name for path in folder.iterdir()} - {f"{TABLE}.lance", _LOCK}:
        raise InputError(
            "an index has a folder of its own", where=folder, why="there are other files in it", remedy="name another"
        )


def _finished(folder: Path) -> bool:
    """Whether a build came to its end there; the files may be damaged since."""
    return any((folder / f"{TABLE}.lance" / "_versions").glob("*.manifest"))


def _readable(folder: Path) -> bool:
    with suppress(RuntimeError, OSError, ValueError):
        lancedb.connect(folder).open_table(TABLE)
        return True
    return False


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / _LOCK, timeout=PATIENCE)
    with writing(folder):
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError("another process is changing the index", where=folder, remedy="try again later") from error
    try:
        yield
    finally:
        lock.release()


class _UnreadableError(Exception):
    """What is on disk cannot be read: a version that was removed meanwhile, or damaged files."""


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise _UnreadableError(_first_line(error)) from error


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise _damaged(folder, error) from error


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise InputError(
            "the index could not be changed",
            where=folder,
            why=_first_line(error),
            remedy="it is as it was before; free space and permissions there, and try again",
        ) from error


def _damaged(folder: Path, why: object) -> InputError:
    return InputError(
        "the index is damaged",
        where=folder,
        why=_first_line(why),
        remedy="restore the folder from a copy, or build the index again with --overwrite",
    )


def _first_line(error: object) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _size(folder: Path) -> int:
    """Bytes on disk; files that a writer removes meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
