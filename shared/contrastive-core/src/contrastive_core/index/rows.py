"""Items on their way into an index: checked, sorted, and in batches that fit into memory."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int, Shaped

from contrastive_core.errors import InputError
from contrastive_core.index.checks import (
    check_vectors,
    feature_length,
    name_items,
    short,
    stored_vectors,
    unit_features,
    unusable,
)
from contrastive_core.index.interface import Items, Model, Progress
from contrastive_core.index.where import Kind

BATCH = 4096
"""Rows brought into memory, and written, together."""
PAYLOAD_BYTES = 65_535  # the longest string Milvus keeps
EXACT = 2**53
"""Largest whole number that a float holds exactly."""

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_MODALITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Checked items, sorted by id and modality.

    Attributes:
        table: Columns ``id``, ``modality`` and ``payload`` (JSON).
        fields: What the payloads can be filtered by.
        columns: Values of every field, None where an item lacks it.
        order: Place among the given items of every row.
        items: The given items.
        model: The model of the index.
        features: Length of the features; 0 for none.
    """

    table: pa.Table
    fields: dict[str, Kind]
    columns: dict[str, list[Any]]
    order: Int[np.ndarray, " n"]
    items: Items
    model: Model
    features: int

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, progress: Progress | None = None) -> Iterator[tuple[pa.Table, np.ndarray, np.ndarray | None]]:
        """Rows with their vectors as the index keeps them, and features where there are some."""
        for start in range(0, len(self), BATCH):
            places = self.order[start : start + BATCH]
            vectors = stored_vectors(np.asarray(self.items.vectors[places]), self.model)
            features = None
            if self.items.features is not None:
                features = unit_features(self.items.features[places], len(places)).astype(np.float16)
            table = self.table.slice(start, BATCH)
            for name, values in self.columns.items():
                table = table.append_column(name, pa.array([values[place] for place in places.tolist()]))
            yield table, vectors, features
            if progress is not None:
                progress("writing", min(start + BATCH, len(self)), len(self))


def rows_of(items: Items, model: Model, *, features: int | None, fields: Mapping[str, Kind], where: object) -> Rows:
    """Check what a user gives, and sort it.

    Args:
        items: What a user gives.
        model: The model of the index.
        features: Length of its features, 0 for none; None while it is not yet fixed.
        fields: Fields that the index has already.
        where: The index, for messages.

    Raises:
        InputError: See :meth:`VectorIndex.add`.
    """
    n = len(items.ids)
    for bad in ((each, why) for each in items.ids if (why := unusable(each))):
        raise InputError(
            "an id cannot be used",
            where=where,
            why=f"{short(bad[0])}: {bad[1]}",
            remedy="ids are relative names such as cats/17.jpg",
        )
    modality = _modalities(items.modality, n)
    repeated = [each for each, count in Counter(zip(items.ids, modality)).items() if count > 1]
    if repeated:
        raise InputError("ids occur twice among the new items", where=where, why=name_items(repeated))
    check_vectors(items.vectors, n, model, where)
    length = feature_length(items, features, where)
    names, columns = _fields(items, fields, where)
    keys = pa.table({"id": pa.array(list(items.ids), pa.string()), "modality": pa.array(modality, pa.string())})
    order = _order(keys)
    payloads = pa.array(_payloads(items.payloads, items.ids), pa.string())
    return Rows(keys.append_column("payload", payloads).take(order), names, columns, order, items, model, length)


def fixed_size(rows: Shaped[np.ndarray, "n w"]) -> pa.FixedSizeListArray:
    """A matrix as a column of Arrow."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _order(keys: pa.Table) -> np.ndarray:
    order = pc.sort_indices(keys, sort_keys=[("id", "ascending"), ("modality", "ascending")])
    return order.to_numpy().astype(np.int64)


def _modalities(given: str | Sequence[str], n: int) -> list[str]:
    modality: list[str] = [given] * n if isinstance(given, str) else list(given)
    if len(modality) != n:
        raise InputError("every item has one modality", why=f"got {len(modality)} modalities for {n} items")
    for each in dict.fromkeys(modality):
        if not isinstance(each, str) or not _MODALITY.fullmatch(each):
            raise InputError(
                "a modality is a short name such as image or text",
                why=f"got {short(each)}; it has letters, digits, - and _",
            )
    return modality


def _payloads(given: Sequence[Mapping[str, Any]] | None, ids: Sequence[str]) -> list[str]:
    if given is None:
        return ["{}"] * len(ids)
    return [_payload(value, name) for value, name in zip(given, ids, strict=True)]


def _payload(value: Mapping[str, Any], name: str) -> str:
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise InputError("a payload is a mapping that JSON can hold", where=short(name), why=str(error)) from error
    if size > PAYLOAD_BYTES:
        raise InputError(
            "a payload is too long", where=short(name), why=f"{size} bytes of JSON, at most {PAYLOAD_BYTES}"
        )
    return text


def _fields(items: Items, known: Mapping[str, Kind], where: object) -> tuple[dict[str, Kind], dict[str, list[Any]]]:
    """What the payloads can be filtered by: texts, numbers and booleans under plain names."""
    fields: dict[str, Kind] = dict(known)
    if items.payloads is None:
        return fields, {}
    if len(items.payloads) != len(items.ids):
        raise InputError("every item has one payload", why=f"got {len(items.payloads)} for {len(items.ids)} items")
    columns: dict[str, list[Any]] = {}
    for place, payload in enumerate(items.payloads):
        for name, value in payload.items():
            kind = _kind(name, value)
            if kind is None:
                continue
            if fields.setdefault(name, kind) != kind:
                raise InputError(
                    "a field of the payloads holds values of two kinds",
                    where=where,
                    why=f"{name!r} of {short(items.ids[place])} is {kind}, elsewhere it is {fields[name]}",
                    remedy="give one name to values of one kind",
                )
            if name not in columns:
                columns[name] = [None] * len(items.ids)
            columns[name][place] = _comparable(name, value, items.ids[place])
    return fields, columns


def _kind(name: object, value: Any) -> Kind | None:
    if not isinstance(name, str) or not _FIELD.fullmatch(name) or name == "modality":
        return None
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number" if isinstance(value, int | float) else None


def _comparable(name: str, value: Any, item: str) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > EXACT:
            raise InputError(
                "a number of a payload is too large to be compared exactly",
                where=short(item),
                why=f"{name!r} is beyond 2^53",
                remedy="write it as text",
            )
        return float(value)
    return value
