"""Readers of the file formats time series come in; each returns the values as they stand."""

import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError


@dataclasses.dataclass
class RawSeries:
    """Content of a file: series ``[channels, time]`` that may hold NaN, labels if there are any, names."""

    x: list[np.ndarray]
    y: list[str] | None
    ids: list[str]


def read_raw(path: Path) -> RawSeries:
    """Read a file by its ending.

    Raises:
        InputError: The file is missing, empty, of an unknown format, or damaged.
    """
    if not path.is_file():
        raise InputError("the data file is missing", where=path, remedy="check the path")
    reader = SUFFIXES.get(path.suffix)
    if reader is None:
        raise InputError("unknown file format", where=path, remedy=f"use one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError("the data file is empty", where=path, remedy="check that it was written to its end")
    try:
        return reader(path)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(
            "the file is not UTF-8 text", where=path, why=f"byte {error.start}", remedy="save it again as UTF-8"
        ) from error
    except Exception as error:  # numpy, zip and arrow raise many types for a damaged file
        raise InputError(
            "the data file cannot be read",
            where=path,
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy="restore it from a copy; it may be cut off",
        ) from error


def _numbers(text: str, separator: str, where: str) -> np.ndarray:
    text = text.strip().strip(separator)
    if not text:
        return np.empty(0)
    if "?" in text:
        text = text.replace("?", "nan")
    fields = text.split(separator)
    try:
        return np.array(fields, dtype=np.float64)
    except ValueError:
        for field in fields:
            try:
                float(field)
            except ValueError:
                raise InputError(
                    "a value is not a number",
                    where=where,
                    why=f"found {field.strip()[:40]!r}",
                    remedy="write numbers, with ? or NaN for gaps",
                ) from None
        raise


def _stack(channels: list[np.ndarray]) -> np.ndarray:
    """Channels of one series; shorter ones end in NaN."""
    length = max(map(len, channels))
    out = np.full((len(channels), length), np.nan)
    for row, channel in zip(out, channels, strict=True):
        row[: len(channel)] = channel
    return out


def _ts(path: Path) -> RawSeries:
    """UCR/UEA ``.ts``: ``@`` lines, ``@data``, then channels separated by ``:`` and the class last."""
    labelled, in_data = True, False
    declared: set[str] = set()
    x: list[np.ndarray] = []
    y: list[str] = []
    expected = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        where = f"{path}, line {number}"
        if not line or line.startswith(("#", "%")):
            continue
        if not in_data:
            words = line.split()
            key = words[0].lower()
            if key == "@data":
                in_data = True
            elif not key.startswith("@"):
                raise InputError("the header is damaged", where=where, remedy="header lines start with @")
            elif key == "@timestamps" and words[1:2] == ["true"]:
                raise InputError(
                    "series with time stamps are not read", where=where, remedy="resample to a regular grid first"
                )
            elif key in ("@classlabel", "@targetlabel"):
                labelled = words[1:2] == ["true"]
                declared = set(words[2:])
            continue
        parts = line.split(":")
        if labelled:
            label = parts.pop().strip()
            if not parts or (declared and label not in declared):
                raise InputError(
                    "a line lacks its class",
                    where=where,
                    why=f"it ends in {label[-40:]!r}, which the header does not declare",
                    remedy="the file may be cut off; restore it from a copy",
                )
            y.append(label)
        expected = expected or len(parts)
        if len(parts) != expected:
            raise InputError("the series differ in channels", where=where, why=f"{len(parts)} here, {expected} before")
        x.append(_stack([_numbers(part, ",", where) for part in parts]))
    if not in_data:
        raise InputError("the file has no @data line", where=path, remedy="the file may be cut off")
    return RawSeries(x, y if labelled else None, [str(index) for index in range(len(x))])


def _tsv(path: Path) -> RawSeries:
    """UCR ``.tsv``: the class first, then values, NaN at the end of short series."""
    x, y = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        label, _, rest = line.partition("\t")
        values = _numbers(rest, "\t", f"{path}, line {number}")
        x.append(values[None])
        y.append(_label(label.strip()))
    return RawSeries(x, y, [str(index) for index in range(len(x))])


def _label(value: Any) -> str:
    """``1.0`` and ``1`` are the same class."""
    try:
        number = float(value)
        return str(int(number)) if number.is_integer() else str(value)
    except (TypeError, ValueError):
        return str(value)


def _npy(path: Path) -> RawSeries:
    """An array ``[n t]`` or ``[n c t]``; labels in ``y_*.npy`` beside ``X_*.npy``."""
    x = np.load(path, allow_pickle=False)
    labels = path.with_name("y" + path.name[1:])
    y = np.load(labels, allow_pickle=False) if path.name.startswith("X") and labels.is_file() else None
    return _from_arrays(path, x, y)


def _npz(path: Path) -> RawSeries:
    """Arrays ``X`` (or ``x``, ``data``) and, with labels, ``y`` (or ``labels``)."""
    with np.load(path, allow_pickle=False) as bundle:
        names = {name.lower(): name for name in bundle.files}
        x = next((bundle[names[name]] for name in ("x", "data", "series") if name in names), None)
        y = next((bundle[names[name]] for name in ("y", "labels", "label") if name in names), None)
    if x is None:
        raise InputError("the file lacks its series", where=path, why=f"arrays: {', '.join(names)}; need X")
    return _from_arrays(path, x, y)


def holds_split(path: Path) -> bool:
    """Whether an npz holds ``X_train`` and ``X_test`` (in any case)."""
    try:
        with np.load(path, allow_pickle=False) as bundle:
            return {"x_train", "x_test"} <= {name.lower() for name in bundle.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def read_split_npz(path: Path) -> tuple[RawSeries, RawSeries]:
    """Training and test part of an npz with ``X_train``, ``y_train``, ``X_test``, ``y_test``."""
    with np.load(path, allow_pickle=False) as bundle:
        arrays = {name.lower(): bundle[name] for name in bundle.files}
    train, test = (_from_arrays(path, arrays[f"x_{part}"], arrays.get(f"y_{part}")) for part in ("train", "test"))
    return train, test


def _from_arrays(path: Path, x: np.ndarray, y: np.ndarray | None) -> RawSeries:
    if x.ndim not in (2, 3) or x.dtype.kind not in "fiu":
        raise InputError(
            "series come as numbers of shape (series, time) or (series, channels, time)",
            where=path,
            why=f"got {x.dtype} of shape {x.shape}",
        )
    if y is not None and y.shape != x.shape[:1]:
        raise InputError("series and labels differ in number", where=path, why=f"{x.shape[0]} and {y.shape}")
    x = x[:, None] if x.ndim == 2 else x
    labels = None if y is None else [_label(value) for value in y.tolist()]
    return RawSeries(list(x.astype(np.float64)), labels, [str(index) for index in range(len(x))])


def _csv(path: Path) -> RawSeries:
    import pyarrow.csv as pc

    return _long(path, pc.read_csv(path))


def _parquet(path: Path) -> RawSeries:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return _nested(path, table) if "target" in table.column_names else _long(path, table)


def _arrow(path: Path) -> RawSeries:
    import pyarrow as pa

    with pa.OSFile(str(path), "rb") as source:
        return _nested(path, pa.ipc.open_file(source).read_all())


def _nested(path: Path, table: Any) -> RawSeries:
    """One row a series, values in ``target`` (or ``data``): a list, or a list of channels."""
    name = next((name for name in ("target", "data") if name in table.column_names), None)
    if name is None:
        raise InputError("the table lacks its column", where=path, why=f"columns: {', '.join(table.column_names)}")
    x = []
    for value in table.column(name).to_pylist():
        nested = bool(value) and isinstance(value[0], list)
        x.append(_stack([np.array(part, dtype=np.float64) for part in (value if nested else [value or []])]))
    label = next((name for name in ("label", "y") if name in table.column_names), None)
    y = None if label is None else [_label(value) for value in table.column(label).to_pylist()]
    return RawSeries(x, y, [str(index) for index in range(len(x))])


def _long(path: Path, table: Any) -> RawSeries:
    """One row a value: ``series_id, channel, t, value`` and, with labels, ``label``."""
    lacking = [name for name in ("series_id", "t", "value") if name not in table.column_names]
    if lacking:
        raise InputError(
            "the table lacks a column",
            where=path,
            why=f"{lacking[0]} is missing; found {', '.join(table.column_names)}",
            remedy="columns: series_id, channel, t, value, and label for labelled data",
        )
    columns = {name: np.array(table.column(name).to_pylist(), dtype=object) for name in table.column_names}
    try:
        value = np.array([np.nan if each in (None, "?", "") else each for each in columns["value"]], dtype=np.float64)
        time = columns["t"].astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("a value is not a number", where=path, why=str(error)) from error
    channel = columns.get("channel", np.zeros(len(value), dtype=object))
    names = sorted(set(channel.tolist()), key=str)
    ids = list(dict.fromkeys(columns["series_id"].tolist()))
    place = {name: index for index, name in enumerate(ids)}
    row = np.array([place[name] for name in columns["series_id"].tolist()])
    lane = np.array([names.index(name) for name in channel.tolist()])
    order = np.lexsort((time, lane, row))
    row, lane, time, value = row[order], lane[order], time[order], value[order]
    same = (np.diff(row) == 0) & (np.diff(lane) == 0) & (np.diff(time) == 0)
    if same.any():
        at = int(np.flatnonzero(same)[0])
        raise InputError(
            "a value is given twice",
            where=path,
            why=f"series {ids[row[at]]}, channel {names[lane[at]]}, t {time[at]:g}",
        )
    x = []
    for index, name in enumerate(ids):
        mine = row == index
        parts = [value[mine & (lane == each)] for each in range(len(names))]
        if any(len(part) == 0 for part in parts):
            absent = names[next(each for each, part in enumerate(parts) if not len(part))]
            raise InputError("a channel is missing", where=path, why=f"series {name} has no channel {absent}")
        x.append(_stack(parts))
    y = None
    if "label" in columns:
        first: dict[Any, str] = {}
        for name, label in zip(columns["series_id"].tolist(), columns["label"].tolist(), strict=True):
            if first.setdefault(name, _label(label)) != _label(label):
                raise InputError("a series has two labels", where=path, why=f"series {name}")
        y = [first[name] for name in ids]
    return RawSeries(x, y, [str(name) for name in ids])


SUFFIXES: dict[str, Callable[[Path], RawSeries]] = {
    ".ts": _ts,
    ".tsv": _tsv,
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""Reader of each file ending."""
