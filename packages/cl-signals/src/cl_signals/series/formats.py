"""Readers of the file formats time series come in; each returns the values as they stand, labels and ids as written."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.arrays import load_npy, load_npz, npz_names
from contrastive_core.errors import InputError
from contrastive_core.files import read_csv, read_lines, reading

LARGEST = 1e15
"""Values beyond are fill values (9.97e36 of NetCDF, 1e20 of GRIB) and would overflow single precision when squared."""


@dataclasses.dataclass
class RawSeries:
    """Content of a file: series ``[channels, time]`` that may hold NaN, labels if there are any, names."""

    x: list[np.ndarray]
    y: list[str] | None
    ids: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)


def read_raw(path: Path) -> RawSeries:
    """Read a file by its ending.

    Raises:
        InputError: The file is missing, empty, of an unknown format, or damaged.
    """
    if not path.is_file():
        raise InputError("the data file is missing", where=path, remedy="check the path")
    reader = SUFFIXES.get(path.suffix.lower())
    if reader is None:
        raise InputError("unknown file format", where=path, remedy=f"use one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError("the data file is empty", where=path, remedy="check that it was written to its end")
    with reading(path, "the data file cannot be read", "restore it from a copy; it may be cut off"):
        return reader(path)


def label_text(value: Any, where: str) -> str:
    """A class as text: texts as they are, whole numbers without a fraction.

    Raises:
        InputError: There is no class, or it is a number with a fraction: a target of regression.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if value is None or value != value or value == "":
        raise InputError("a series has no class", where=where, remedy="label every series, or leave out those without")
    raise InputError(
        "a class is neither a text nor a whole number",
        where=where,
        why=f"got {value!r}",
        remedy="name classes; targets of regression are not classes",
    )


def _id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError("an id is neither a text nor a whole number", where=where, why=f"got {value!r}")
    return str(value)


def _numbers(text: str, separator: str, where: str) -> np.ndarray:
    """Values of one channel; empty fields, ``?`` and NaN are gaps."""
    if not text.strip():
        return np.empty(0)
    fields = [field.strip() for field in text.split(separator)]
    try:
        if "_" in text:  # Python's digit separator, which no file means
            raise ValueError
        return np.array([field if field not in ("", "?") else "nan" for field in fields], dtype=np.float64)
    except ValueError:
        wrong = next(field for field in fields if not _is_number(field))
        raise InputError(
            "a value is not a number",
            where=where,
            why=f"found {wrong[:40]!r}",
            remedy="write numbers, with ? or NaN for gaps",
        ) from None


def _is_number(field: str) -> bool:
    try:
        float(field or "nan")
    except ValueError:
        return field == "?"
    return "_" not in field


def _stack(channels: Sequence[np.ndarray], where: str) -> np.ndarray:
    """Channels of one series.

    Raises:
        InputError: They differ in length.
    """
    lengths = [len(channel) for channel in channels]
    if len(set(lengths)) > 1:
        raise InputError(
            "the channels of a series differ in length",
            where=where,
            why=f"{min(lengths)} to {max(lengths)} values",
            remedy="resample them to one rate first",
        )
    return np.stack(channels)


def _ts(path: Path) -> RawSeries:
    """UCR/UEA ``.ts``: ``@`` lines, ``@data``, then channels separated by ``:`` and the class last."""
    header: dict[str, list[str]] | None = {}
    x: list[np.ndarray] = []
    y: list[str] = []
    labelled, target, declared = True, False, set[str]()
    for number, line in enumerate(read_lines(path), 1):
        line, where = line.strip(), f"{path}, line {number}"
        if not line or line.startswith(("#", "%")):
            continue
        if header is not None:
            if line.lower() == "@data":
                labelled, target, declared = _header(header, path)
                header = None
            elif line.startswith("@"):
                key, *words = line.split()
                header[key.lower()] = words
            else:
                raise InputError("the header is damaged", where=where, remedy="header lines start with @")
            continue
        parts = line.split(":")
        if labelled or target:
            label = parts.pop().strip()
            if not parts or (declared and label not in declared):
                raise InputError(
                    "a line lacks its class",
                    where=where,
                    why=f"it ends in {label[-40:]!r}, which the header does not declare",
                    remedy="the file may be cut off; restore it from a copy",
                )
            y.append(label if target else label_text(label, where))
        if x and len(parts) != len(x[0]):
            why = f"{len(parts)} here, {len(x[0])} before"
            raise InputError("the series differ in channels", where=where, why=why)
        x.append(_stack([_numbers(part, ",", where) for part in parts], where))
    if header is not None:
        raise InputError("the file has no @data line", where=path, remedy="the file may be cut off")
    notes = ["its targets are numbers, not classes; it counts as unlabelled"] if target else []
    return RawSeries(x, y if labelled and not target else None, _numbered(len(x)), notes)


def _header(header: dict[str, list[str]], path: Path) -> tuple[bool, bool, set[str]]:
    """Whether lines end in a class, or in a target, and which classes there are."""

    def flag(key: str) -> bool | None:
        words = header.get(key)
        if words is None:
            return None
        if not words or words[0].lower() not in ("true", "false"):
            raise InputError("a header line is neither true nor false", where=f"{path}, {key}", why=" ".join(words))
        return words[0].lower() == "true"

    if flag("@timestamps"):
        raise InputError("series with time stamps are not read", where=path, remedy="resample to a regular grid first")
    target, labelled = flag("@targetlabel"), flag("@classlabel")
    if target and labelled:
        raise InputError("a line ends in a class or in a target, not in both", where=path, why="the header names both")
    declared = set(header.get("@classlabel", [])[1:])
    return labelled is not False and target is None, bool(target), declared


def _tsv(path: Path) -> RawSeries:
    """UCR ``.tsv``: the class first, then values, NaN at the end of short series."""
    x, y = [], []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            label, _, rest = line.partition("\t")
            where = f"{path}, line {number}"
            y.append(label_text(label, where))
            x.append(_numbers(rest, "\t", where)[None])
    return RawSeries(x, y, _numbered(len(x)))


def _npy(path: Path) -> RawSeries:
    """An array ``[n t]`` or ``[n c t]``; labels in ``y_*.npy`` beside ``X_*.npy``."""
    x, labels = load_npy(path), path.with_name("y" + path.name[1:])
    return _from_arrays(path, x, load_npy(labels) if path.name[0] in "Xx" and labels.is_file() else None)


def _npz(path: Path) -> RawSeries:
    """Arrays ``X`` (or ``x``, ``data``, ``series``) and, with labels, ``y`` (or ``labels``, ``label``)."""
    names = {name.lower(): name for name in npz_names(path)}
    x = next((names[name] for name in ("x", "data", "series") if name in names), None)
    y = next((names[name] for name in ("y", "labels", "label") if name in names), None)
    if x is None:
        if holds_split(path):
            raise InputError("the file holds two parts", where=path, remedy="name it where a training set is expected")
        load_npz(path)  # a damaged file says so itself
        raise InputError("the file lacks its series", where=path, why=f"arrays: {', '.join(names)}; need X")
    arrays = load_npz(path, [name for name in (x, y) if name is not None])
    return _from_arrays(path, arrays[x], None if y is None else arrays[y])


def holds_split(path: Path) -> bool:
    """Whether an npz holds ``X_train`` and ``X_test`` (in any case)."""
    return {"x_train", "x_test"} <= {name.lower() for name in npz_names(path)}


def read_split_npz(path: Path) -> tuple[RawSeries, RawSeries]:
    """Training and test part of an npz with ``X_train``, ``y_train``, ``X_test``, ``y_test``."""
    arrays = {name.lower(): value for name, value in load_npz(path).items()}
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
    labels = None if y is None else [label_text(value, f"{path}, series {row}") for row, value in enumerate(y.tolist())]
    return RawSeries(list(x.astype(np.float64)), labels, _numbered(len(x)))


def _csv(path: Path) -> RawSeries:
    """Long table: one row a value."""
    rows = [row for _, row in read_csv(path, required=("series_id", "t", "value"))]
    names = list(rows[0]) if rows else ["series_id", "t", "value"]
    return _long(path, {name: [row[name].strip() for row in rows] for name in names})


def _parquet(path: Path) -> RawSeries:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return _table(path, table)


def _arrow(path: Path) -> RawSeries:
    import pyarrow as pa

    with pa.OSFile(str(path), "rb") as source:
        return _table(path, pa.ipc.open_file(source).read_all())


def _table(path: Path, table: Any) -> RawSeries:
    if "target" in table.column_names or "data" in table.column_names:
        return _nested(path, table)
    lacking = [name for name in ("series_id", "t", "value") if name not in table.column_names]
    if lacking:
        raise InputError(
            "the table lacks a column",
            where=path,
            why=f"{lacking[0]} is missing; there are {', '.join(table.column_names[:12])}",
            remedy="columns: target with lists of values; or series_id, channel, t, value; and label for labelled data",
        )
    return _long(path, {name: table.column(name).to_pylist() for name in table.column_names})


def _nested(path: Path, table: Any) -> RawSeries:
    """One row a series, values in ``target`` (or ``data``): a list, or a list of channels."""
    x = []
    for row, value in enumerate(table.column("target" if "target" in table.column_names else "data").to_pylist()):
        where = f"{path}, row {row}"
        if not isinstance(value, list):
            raise InputError("a series is a list of values", where=where, why=f"got {type(value).__name__}")
        channels = value if value and isinstance(value[0], list) else [value]
        x.append(_stack([_floats(channel, where) for channel in channels], where))
    names = [name for name in ("label", "y") if name in table.column_names]
    y = [label_text(v, f"{path}, row {i}") for i, v in enumerate(table.column(names[0]).to_pylist())] if names else None
    return RawSeries(x, y, _numbered(len(x)))


def _long(path: Path, columns: dict[str, list[Any]]) -> RawSeries:
    """One row a value: ``series_id, channel, t, value`` and, with labels, ``label``."""
    value, time = (_floats(columns[name], f"{path}, column {name}") for name in ("value", "t"))
    if not np.isfinite(time).all():
        row = int(np.flatnonzero(~np.isfinite(time))[0])
        raise InputError("a time is missing", where=path, why=f"row {row} of the values")
    series = [_id(each, f"{path}, column series_id") for each in columns["series_id"]]
    channel = [_id(each, f"{path}, column channel") for each in columns.get("channel", ["0"] * len(value))]
    ids, names = list(dict.fromkeys(series)), sorted(set(channel))
    rows: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(series, channel, strict=True)):
        rows.setdefault(key, []).append(row)
    x, notes = [], list[str]()
    for name in ids:
        parts, times = [], []
        for each in names:
            if (name, each) not in rows:
                raise InputError("a channel is missing", where=path, why=f"series {name} has no channel {each}")
            order = np.array(rows[name, each])[np.argsort(time[rows[name, each]], kind="stable")]
            parts.append(value[order])
            times.append(time[order])
            if (np.diff(times[-1]) == 0).any():
                at = times[-1][int(np.flatnonzero(np.diff(times[-1]) == 0)[0])]
                why = f"series {name}, channel {each}, t {at:g}"
                raise InputError("a value is given twice", where=path, why=why)
        x.append(_stack(parts, f"{path}, series {name}"))
        if any(not np.array_equal(other, times[0]) for other in times):
            why = f"series {name}"
            raise InputError("the channels of a series have other times", where=path, why=why, remedy="resample first")
        steps = np.diff(times[0])
        if len(steps) and not notes and steps.max() > 1.5 * np.median(steps):
            notes.append(f"series {name} is not evenly spaced in t; its values are taken as they come")
    return RawSeries(x, _long_labels(path, series, ids, columns.get("label")), ids, notes)


def _long_labels(path: Path, series: list[str], ids: list[str], labels: list[Any] | None) -> list[str] | None:
    if labels is None:
        return None
    first: dict[str, str] = {}
    for name, value in zip(series, labels, strict=True):
        label = label_text(value, f"{path}, series {name}")
        if first.setdefault(name, label) != label:
            raise InputError("a series has two labels", where=path, why=f"series {name}: {first[name]} and {label}")
    return [first[name] for name in ids]


def _floats(values: list[Any], where: str) -> np.ndarray:
    """Numbers by their type; texts as numbers, gaps as NaN."""
    if values and all(isinstance(each, str) for each in values):
        return _numbers("\n".join(values), "\n", where) if values != [""] else np.array([np.nan])
    wrong = next((v for v in values if isinstance(v, bool) or not isinstance(v, int | float | type(None))), None)
    if wrong is not None:
        raise InputError("a value is not a number", where=where, why=f"found {str(wrong)[:40]!r}")
    return np.array([np.nan if each is None else each for each in values], dtype=np.float64)


def _numbered(count: int) -> list[str]:
    return [str(index) for index in range(count)]


SUFFIXES: dict[str, Callable[[Path], RawSeries]] = {
    ".ts": _ts,
    ".tsv": _tsv,
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""Reader of each file ending, in lower case."""
