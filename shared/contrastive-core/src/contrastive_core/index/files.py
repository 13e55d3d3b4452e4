"""Files of embeddings: vectors or codes as ``.npy``, and what they belong to as ``.txt``, ``.csv`` or ``.jsonl``."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from contrastive_core.errors import InputError
from contrastive_core.files import read_csv, read_json_lines, read_lines, reading
from contrastive_core.index.interface import Items
from contrastive_core.index.where import Kind

_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


def read_vectors(path: Path) -> Shaped[np.ndarray, "n w"]:
    """Vectors or packed codes of an ``.npy`` file, mapped into memory rather than read.

    Raises:
        InputError: The file is missing, damaged, pickled, or holds no matrix of floats or bytes.
    """
    remedy = "save a matrix of floats, or of packed codes as uint8, with numpy.save"
    with reading(path, "the vectors cannot be read", remedy):
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fu":
        got = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise InputError("the vectors are no matrix of floats or bytes", where=path, why=f"got {got}", remedy=remedy)
    return values


def read_items(
    vectors: Path, items: Path, *, features: Path | None, modality: str, fields: Mapping[str, Kind]
) -> Items:
    """Items of an index from files.

    Args:
        vectors: Vectors or packed codes, ``.npy``.
        items: One item a row of it: ``.txt`` (ids), ``.csv`` (a column ``id``, perhaps ``modality``, the others are the
            payload) or ``.jsonl`` (objects with the same names).
        features: Features beside codes, ``.npy``.
        modality: Of the items that do not name their own.
        fields: Fields of the index so far; cells of a table are read as what they hold, those of new columns as numbers
            or booleans where all of them are.

    Raises:
        InputError: A file cannot be read, an item has no id, or the files have different numbers of rows.
    """
    readers = {".txt": _read_ids, ".csv": _read_table, ".jsonl": _read_objects}
    if items.suffix.lower() not in readers:
        raise InputError("the items are .txt, .csv or .jsonl", where=items, remedy="write one id a line, for instance")
    payloads = readers[items.suffix.lower()](items, fields)
    values = read_vectors(vectors)
    beside = None if features is None else read_vectors(features)
    for path, rows in ((vectors, values), (features, beside)):
        if rows is not None and len(rows) != len(payloads):
            raise InputError(
                "the files do not belong together",
                where=path,
                why=f"{len(rows)} rows, but {len(payloads)} items in {items}",
            )
    ids = [payload.pop("id") for payload in payloads]
    kinds = [payload.pop("modality", modality) for payload in payloads]
    return Items(ids, values, kinds, payloads, beside)


def _read_ids(path: Path, _: Mapping[str, Kind]) -> list[dict[str, Any]]:
    return [{"id": line} for line in read_lines(path)]


def _read_objects(path: Path, _: Mapping[str, Kind]) -> list[dict[str, Any]]:
    rows = []
    for number, value in read_json_lines(path):
        if not isinstance(value, dict) or not isinstance(value.get("id"), str):
            raise InputError("a line is no object with an id", where=f"{path}, line {number}", remedy='{"id": "..."}')
        rows.append(value)
    return rows


def _read_table(path: Path, fields: Mapping[str, Kind]) -> list[dict[str, Any]]:
    rows = [cells for _, cells in read_csv(path, required=["id"])]
    names = [name for name in (rows[0] if rows else ()) if name not in ("id", "modality")]
    kinds = {name: fields.get(name) or _kind([row[name] for row in rows if row[name]]) for name in names}
    payloads = []
    for row in rows:
        payload = {name: _value(row[name], kinds[name], f"{path}, column {name}") for name in names if row[name]}
        payloads.append({"id": row["id"], **({"modality": row["modality"]} if row.get("modality") else {}), **payload})
    return payloads


def _kind(cells: Sequence[str]) -> Kind:
    """What a column holds: numbers are as a program writes them, so that 007 stays a text."""
    if cells and all(_NUMBER.fullmatch(cell) for cell in cells):
        return "number"
    return "boolean" if cells and all(cell in ("true", "false") for cell in cells) else "text"


def _value(cell: str, kind: Kind, where: str) -> str | float | bool:
    if kind == "text":
        return cell
    if kind == "boolean" and cell in ("true", "false"):
        return cell == "true"
    if kind == "number" and _NUMBER.fullmatch(cell) and math.isfinite(float(cell)):
        return int(cell) if re.fullmatch(r"[+-]?\d+", cell) else float(cell)
    raise InputError(f"a cell is no {kind}", where=where, why=f"got {cell!r}", remedy="correct it, or leave it empty")
