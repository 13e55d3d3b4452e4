"""An index in a folder: LanceDB keeps it, whole at every moment; what fits is searched in memory."""

import dataclasses
import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from contrastive_core.errors import InputError
from contrastive_core.files import write_json, writing
from contrastive_core.index import lists
from contrastive_core.index.checks import (
    check_absent,
    check_model,
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
from contrastive_core.index.folder import (
    APPROXIMATION,
    changing,
    check_folder,
    finished,
    lock,
    readable,
    reading,
    size,
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
    Vectors,
)
from contrastive_core.index.rows import rows_of
from contrastive_core.index.scan import nearest, nearest_vectors
from contrastive_core.index.snapshot import (
    TABLE,
    Snapshot,
    UnreadableError,
    damaged,
    disk,
    field_columns,
    first_line,
    load,
    matrix,
    written,
)
from contrastive_core.index.where import Condition, Junction, Where, parse_where, to_sql

PIECES = 16
"""Changes after which the pieces they left are joined and old versions removed."""
GRACE = timedelta(minutes=1)
"""Age from which versions are removed; who reads one that goes away reads again."""
SCANNED = 25_000_000
"""Words of codes that one core compares in some 50 ms."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Near:
    """Rows near a query, in the order of the hits, with distances of codes and scores of floats."""

    rows: np.ndarray
    distance: np.ndarray | None
    score: np.ndarray | None


class EmbeddedIndex:
    """An index in a folder of its own.

    Every change is one commit of LanceDB: it is there as a whole or not at all, whatever happens to the process that
    makes it. Writers wait for each other; readers do not wait, and every search sees the newest version. Ids,
    modalities, codes, and float vectors up to 512 MiB are held in memory; payloads, features and more floats are read
    from disk for the hits.

    Args:
        folder: Where :meth:`build` made one.

    Raises:
        InputError: There is none, or its files are damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not finished(folder):
            raise no_index(folder)
        self.folder = folder
        with reading(folder):
            self._database = lancedb.connect(folder)
            self._newest = self._database.open_table(TABLE)
        self._current = self._load(None)
        self.model = self._current.model

    @classmethod
    def build(
        cls, folder: Path, model: Model, items: Items, *, overwrite: bool = False, progress: Progress | None = None
    ) -> "EmbeddedIndex":
        """Make an index; see :func:`contrastive_core.index.build_index`."""
        check_new_model(model)
        check_folder(folder)
        rows = rows_of(items, model, features=None, fields={}, where=folder)
        made = not folder.exists()
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with lock(folder):
                if readable(folder):
                    if not overwrite:
                        raise index_exists(folder)
                elif (folder / f"{TABLE}.lance").exists():
                    if not overwrite and finished(folder):
                        raise damaged(folder, "its newest version cannot be opened")
                    shutil.rmtree(folder / f"{TABLE}.lance")  # what a killed first build left, or damaged
                mode = "overwrite" if (folder / f"{TABLE}.lance").exists() else "create"
                reader = written(rows, rows.fields, secrets.token_hex(8), progress)
                with changing(folder):
                    lancedb.connect(folder).create_table(TABLE, reader, mode=mode)
        except BaseException:
            if made:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        index = cls(folder)
        with lock(folder):
            index._tidy(always=True)
        if _long(index._current):
            index.optimise(progress=progress)
        return index

    def info(self) -> IndexInfo:
        """What the index holds now; see :meth:`VectorIndex.info`."""
        now = self._snapshot()
        counts = np.bincount(now.modality, minlength=len(now.modalities))
        return IndexInfo(
            location=str(self.folder),
            engine="lancedb",
            model=now.model,
            items={name: int(count) for name, count in zip(now.modalities, counts, strict=True) if count},
            features=now.features,
            fields=dict(now.fields),
            approximation=self._approximation(now),
            version=now.version,
            bytes=size(self.folder),
        )

    def add(self, items: Items) -> None:
        """Add items in one commit; see :meth:`VectorIndex.add`.

        A payload field that is new to the index is declared in a commit before it; until an item has it, no condition
        on it is met.
        """
        with lock(self.folder):
            now = self._snapshot()
            rows = rows_of(items, now.model, features=now.features, fields=now.fields, where=self.folder)
            if not len(rows):
                return
            ids, modality = rows.table["id"].to_pylist(), rows.table["modality"].to_pylist()
            wanted = set(zip(ids, modality, strict=True))
            there = self._rows(now, pa.array(ids, pa.string()), None)
            present = ((now.ids[row].as_py(), now.modalities[now.modality[row]]) for row in there)
            check_absent((each for each in present if each in wanted), self.folder)
            new = {name: kind for name, kind in rows.fields.items() if name not in now.fields}
            with changing(self.folder):
                table = self._writable()
                if new:
                    table.add_columns(field_columns(new))
                table.add(written(rows, {**now.fields, **new}, now.token))
            self._tidy()

    def delete(self, ids: Sequence[str], *, modality: str | None = None) -> int:
        """Delete items in one commit; see :meth:`VectorIndex.delete`."""
        with lock(self.folder):
            now = self._snapshot()
            asked = pa.array(list(dict.fromkeys(ids)), pa.string())
            rows = self._rows(now, asked, modality)
            missing = asked.filter(pc.invert(pc.is_in(asked, value_set=now.ids.take(pa.array(rows)))))
            check_none_missing(missing.to_pylist(), modality, self.folder)
            if not len(rows):
                return 0
            with changing(self.folder):
                places = ",".join(map(str, now.places[rows].tolist()))
                self._writable().delete(f"_rowid IN ({places})")
            self._tidy()
            return len(rows)

    def optimise(self, *, recall: float = 0.99, progress: Progress | None = None) -> Approximation | None:
        """Compact the files and build the approximate search; see :meth:`VectorIndex.optimise`.

        Readers go on with what there was; when this is interrupted, searches stay exact until it is done again.
        """
        check_recall(recall)
        with lock(self.folder):
            self._tidy(always=True)
            with writing(self.folder):
                (self.folder / APPROXIMATION).unlink(missing_ok=True)
            now = self._snapshot()
            made: Approximation | None = None
            if len(now.places) >= lists.FEW:
                made = self._measured(now, recall, progress)
            if made is not None:
                value = {"token": now.token, **dataclasses.asdict(made)}
                write_json(self.folder / APPROXIMATION, value)
            return made

    def _measured(self, now: Snapshot, recall: float, progress: Progress | None) -> Approximation | None:
        if isinstance(now.model, CodeModel):
            return lists.measure_codes(now, recall, progress)
        with changing(self.folder):
            method = lists.build_lists(self._writable(), len(now.places), now.model.dim, progress)
        with reading(self.folder):
            return lists.measure_lists(self._snapshot(), method, recall, progress)

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
        asked = Search(k, radius, modality, where, rerank, exact)

        def hits(now: Snapshot) -> list[list[Hit]]:
            check_search(queries, asked, now.model, stored=now.features, features=features, where=self.folder)
            tree = None if where is None else parse_where(where, now.fields)
            if not len(queries) or not len(now.places):
                return [[] for _ in queries]
            if isinstance(now.model, CodeModel):
                near = self._near_codes(now, queries, asked, tree)
                if features is not None:
                    near = _reranked(now, near, unit_features(features, len(queries)), k)
            else:
                near = self._near_vectors(now, stored_vectors(queries, now.model), asked, tree)
            return _hits(now, near)

        return self._read(hits)

    def _near_codes(self, now: Snapshot, queries: np.ndarray, asked: Search, tree: Where | None) -> list[_Near]:
        """By the scan, or by tables of substrings; a condition is always scanned, as its matches may lie far away."""
        assert isinstance(now.model, CodeModel)
        assert now.held is not None
        k = asked.k if asked.rerank is None else asked.rerank
        built = self._chosen(now, asked, long=_long(now))
        if built is not None and k is not None and asked.modality is None and tree is None:
            near = now.tables.nearest(queries, k=k, flips=built.effort)
            short = [number for number, (rows, _) in enumerate(near) if len(rows) < min(k, len(now.places))]
            again = nearest(queries[short], now.held, k=k, radius=now.model.bits)
            for number, complete in zip(short, again, strict=True):
                near[number] = complete
        else:
            radius = now.model.bits if asked.radius is None else asked.radius
            near = nearest(queries, now.held, k=k, radius=radius, among=now.among(asked.modality, tree))
        return [_Near(rows, distance, None) for rows, distance in near]

    def _near_vectors(self, now: Snapshot, queries: np.ndarray, asked: Search, tree: Where | None) -> list[_Near]:
        assert asked.k is not None
        built = self._chosen(now, asked, long=_long(now))
        if built is None and now.held is not None:
            among = now.among(asked.modality, tree)
            near = nearest_vectors(queries, now.held, k=asked.k, among=among)
        else:
            condition = _condition(now, asked.modality, tree)
            k = min(asked.k, len(now.places))
            if built is None:
                near = lists.scan_disk(now, queries, k=k, condition=condition)
            else:
                candidates = asked.rerank or max(built.candidates, 4 * k)
                near = lists.search_lists(
                    now, queries, k=k, lists=built.effort, candidates=candidates, condition=condition
                )
        return [_Near(rows, None, score) for rows, score in near]

    def _chosen(self, now: Snapshot, asked: Search, *, long: bool) -> Approximation | None:
        """The approximate search that is to be used; None for an exact one."""
        if asked.exact or asked.radius is not None or (asked.exact is None and not long):
            return None
        built = self._approximation(now)
        if built is None and asked.exact is False:
            raise no_approximation(self.folder)
        return built

    def _approximation(self, now: Snapshot) -> Approximation | None:
        """What was built for this index, and not for one that it replaced."""
        try:
            value = json.loads((self.folder / APPROXIMATION).read_text(encoding="utf-8"))
            return Approximation(**value) if value.pop("token") == now.token else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "what is known of the approximate search cannot be read",
                where=self.folder / APPROXIMATION,
                why=first_line(error),
                remedy="build it again with index optimise",
            ) from error

    def close(self) -> None:
        """Nothing stays open between calls; memory goes with the object."""

    def __enter__(self) -> "EmbeddedIndex":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, action: Callable[[Snapshot], T]) -> T:
        """Do something with the newest version, again where that version was removed meanwhile."""
        while True:
            now = self._snapshot()
            try:
                return action(now)
            except UnreadableError as error:
                if self._snapshot().version == now.version:
                    raise damaged(self.folder, error) from error

    def _snapshot(self) -> Snapshot:
        with reading(self.folder):
            self._newest.checkout_latest()
            newest = self._newest.version
        if newest != self._current.version:
            loaded = self._load(self._current)
            check_model(loaded.model, self.model, self.folder)
            self._current = loaded
        return self._current

    def _load(self, before: Snapshot | None) -> Snapshot:
        while True:
            with reading(self.folder):
                table = self._database.open_table(TABLE)
            try:
                return load(table, self.folder, before)
            except UnreadableError as error:
                with reading(self.folder):
                    self._newest.checkout_latest()
                if self._newest.version == table.version:
                    raise damaged(self.folder, error) from error

    def _writable(self) -> Any:
        return self._database.open_table(TABLE)

    @staticmethod
    def _rows(now: Snapshot, ids: pa.Array, modality: str | None) -> np.ndarray:
        """Rows of some ids."""
        there = pc.is_in(now.ids, value_set=ids).to_numpy(zero_copy_only=False).astype(bool)
        if modality is not None:
            there &= now.of_modality(modality)
        return np.flatnonzero(there)

    def _tidy(self, *, always: bool = False) -> None:
        """Join small pieces and remove old versions, from time to time."""
        with changing(self.folder):
            table = self._writable()
            pieces = table.stats()["fragment_stats"]["num_fragments"]
            past = [each for each in table.list_versions() if each["timestamp"] < datetime.now() - GRACE]
            if always or pieces > PIECES or len(past) > PIECES:
                # Writers hold the lock: what no version refers to was left by a writer that is gone.
                table.optimize(cleanup_older_than=GRACE, delete_unverified=True)


def _long(now: Snapshot) -> bool:
    """Whether a scan takes more than some 50 ms."""
    return now.held is None or (isinstance(now.model, CodeModel) and now.held.size > SCANNED)


def _condition(now: Snapshot, modality: str | None, tree: Where | None) -> str | None:
    """Modality and condition as SQL."""
    parts = [] if modality is None else [Condition("modality", "=", (modality,))]
    both = [*parts, *([] if tree is None else [tree])]
    return to_sql(Junction("and", tuple(both)), now.columns()) if both else None


def _reranked(now: Snapshot, near: list[_Near], queries: Float[np.ndarray, "q d"], k: int | None) -> list[_Near]:
    """The k of every query's rows whose stored features are most similar to the query's."""
    rows = np.unique(np.concatenate([each.rows for each in near]))
    stored = matrix(now.fetch(rows, ["features"])["features"])
    answer = []
    for each, query in zip(near, queries, strict=True):
        score = products(stored[np.searchsorted(rows, each.rows)], query)
        order = np.argsort(-score, kind="stable")[:k]
        answer.append(_Near(each.rows[order], None if each.distance is None else each.distance[order], score[order]))
    return answer


def _hits(now: Snapshot, near: list[_Near]) -> list[list[Hit]]:
    rows = np.unique(np.concatenate([each.rows for each in near])).astype(np.int64)
    ids = now.ids.take(pa.array(rows)).to_pylist()
    with disk():
        payloads = [json.loads(text) for text in now.fetch(rows, ["payload"])["payload"].to_pylist()]
    return [
        [
            Hit(ids[place], now.modalities[kind], distance, score, dict(payloads[place]))
            for place, kind, distance, score in zip(
                np.searchsorted(rows, each.rows).tolist(),
                now.modality[each.rows].tolist(),
                [None] * len(each.rows) if each.distance is None else each.distance.tolist(),
                [None] * len(each.rows) if each.score is None else each.score.tolist(),
                strict=True,
            )
        ]
        for each in near
    ]
