"""Labelled and unlabelled series: what a file or folder holds once it has been read, repaired and checked."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from contrastive_core.errors import ContrastiveWarning, InputError
from jaxtyping import Float, Int

from cl_signals.mantis.embed import resize
from cl_signals.mantis.formats import SUFFIXES, RawSeries, holds_split, read_raw, read_split_npz


@dataclasses.dataclass(frozen=True)
class SeriesSet:
    """Series of one set, free of NaN; lengths may differ, channels do not.

    Attributes:
        name: Name of the set.
        x: Series, each ``float32 [channels, time]``.
        y: Class names, or ``None`` without labels.
        ids: Name of each series.
        notes: Repairs made while reading.
    """

    name: str
    x: list[np.ndarray]
    y: list[str] | None
    ids: list[str]
    notes: list[str]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.x[0].shape[0])

    def __len__(self) -> int:
        return len(self.x)


def read_series(path: Path | str) -> SeriesSet:
    """Read one file of series.

    Trailing NaN is padding and is cut off, NaN inside is interpolated linearly (at the start, the first value is
    repeated), a channel without any value becomes zeros and is reported.

    Args:
        path: ``.ts``, ``.tsv``, ``.npy``, ``.npz``, ``.csv``, ``.parquet`` or ``.arrow``.

    Raises:
        InputError: The file is missing, unreadable, empty, inconsistent, or holds infinite values.
    """
    path = Path(path)
    raw = read_raw(path)
    return _clean(path, raw)


def read_split(path: Path | str) -> tuple[SeriesSet, SeriesSet]:
    """Read a set with its official training and test parts.

    Args:
        path: A folder holding ``<Name>_TRAIN.ts`` and ``<Name>_TEST.ts`` (or another format), or
            ``X_train.npy``, ``y_train.npy``, ``X_test.npy``, ``y_test.npy``; or the training file of such a pair; or an
            ``.npz`` of these four arrays, or a folder with just that.

    Raises:
        InputError: A part is missing, the parts differ in channels, or a file cannot be read.
    """
    path = Path(path)
    if (bundle := _bundle(path)) is not None:
        first, second = (_clean(path, raw) for raw in read_split_npz(bundle))
    else:
        train, test = _pair(path)
        first, second = read_series(train), read_series(test)
    if first.channels != second.channels:
        raise InputError(
            "training and test part differ in channels",
            where=path,
            why=f"{first.channels} and {second.channels}",
            remedy="give both parts the same channels, in the same order",
        )
    return first, second


def find_sets(path: Path | str) -> list[Path]:
    """Folders below ``path`` (or ``path`` itself) that hold a training and a test part, in order of name.

    Raises:
        InputError: There is no such folder, or no set in it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError("the data folder is missing", where=path, remedy="check the path, or run `sample-data` first")
    found = [
        folder for folder in [path, *sorted(entry for entry in path.iterdir() if entry.is_dir())] if _has_pair(folder)
    ]
    if not found:
        raise InputError(
            "the folder holds no data set",
            where=path,
            why="no <Name>_TRAIN and <Name>_TEST files, no X_train.npy",
            remedy="lay each set in a folder of its own, or run `cl-signals mantis sample-data` for an example",
        )
    return found


def to_batch(series: SeriesSet, length: int = 512) -> Float[np.ndarray, "n c length"]:
    """All series of a set, each resized to one length by linear interpolation."""
    by_length: dict[int, list[int]] = {}
    for index, each in enumerate(series.x):
        by_length.setdefault(each.shape[1], []).append(index)
    out = np.empty((len(series), series.channels, length), dtype=np.float32)
    for places in by_length.values():
        out[places] = resize(torch.from_numpy(np.stack([series.x[place] for place in places])), length).numpy()
    return out


def class_names(series: SeriesSet) -> list[str]:
    """Classes of a labelled set in sorted order.

    Raises:
        InputError: There are no labels, or fewer than two classes.
    """
    if series.y is None:
        raise InputError("the series carry no labels", where=series.name, remedy="use a labelled file")
    classes = sorted(set(series.y))
    if len(classes) < 2:
        raise InputError(
            "a classifier needs at least two classes",
            where=series.name,
            why=f"every series is of class {classes[0]}",
            remedy="add series of another class",
        )
    return classes


def encode_labels(labels: Sequence[str], classes: Sequence[str], where: str) -> Int[np.ndarray, " n"]:
    """Class numbers 0..K-1.

    Raises:
        InputError: A label is not among the classes.
    """
    place = {name: index for index, name in enumerate(classes)}
    for index, label in enumerate(labels):
        if label not in place:
            raise InputError(
                "a label is unknown",
                where=where,
                why=f"series {index} has label {label}; known: {', '.join(classes[:10])}",
                remedy="correct the label, or train with series of that class",
            )
    return np.array([place[label] for label in labels])


def _bundle(path: Path) -> Path | None:
    """An npz that holds both parts: the file itself, or the only one of a folder."""
    found = [path] if path.suffix == ".npz" else sorted(path.glob("*.npz")) if path.is_dir() else []
    return found[0] if len(found) == 1 and found[0].is_file() and holds_split(found[0]) else None


def _pair(path: Path) -> tuple[Path, Path]:
    if path.is_file():
        if "_TRAIN" not in path.name:
            raise InputError(
                "a single file has no test part",
                where=path,
                remedy="name the folder of the set, or its <Name>_TRAIN file",
            )
        train, test = path, path.with_name(path.name.replace("_TRAIN", "_TEST"))
    elif path.is_dir():
        train, test = _in_folder(path)
    else:
        raise InputError("the data set is missing", where=path, remedy="check the path")
    if not test.is_file():
        raise InputError("the test part is missing", where=test, remedy="lay it beside the training part")
    return train, test


def _in_folder(path: Path) -> tuple[Path, Path]:
    if (path / "X_train.npy").is_file():
        return path / "X_train.npy", path / "X_test.npy"
    trains = sorted(entry for entry in path.iterdir() if "_TRAIN" in entry.name and entry.suffix in SUFFIXES)
    if not trains:
        empty = "the folder is empty" if not any(path.iterdir()) else "no <Name>_TRAIN file and no X_train.npy"
        raise InputError(
            "the folder holds no data set",
            where=path,
            why=empty,
            remedy="lay <Name>_TRAIN.ts and <Name>_TEST.ts there, or run `cl-signals mantis sample-data`",
        )
    if len(trains) > 1:
        raise InputError(
            "the folder holds several training parts",
            where=path,
            why=", ".join(entry.name for entry in trains[:3]),
            remedy="name one of these files, or keep one set a folder",
        )
    return trains[0], trains[0].with_name(trains[0].name.replace("_TRAIN", "_TEST"))


def _has_pair(folder: Path) -> bool:
    if (folder / "X_train.npy").is_file() or _bundle(folder) is not None:
        return True
    return any("_TRAIN" in entry.name and entry.suffix in SUFFIXES for entry in folder.iterdir())


def _clean(path: Path, raw: RawSeries) -> SeriesSet:
    if not raw.x:
        raise InputError("the file holds no series", where=path, remedy="check that it was written to its end")
    channels = raw.x[0].shape[0]
    notes: list[str] = []
    clean = []
    for name, series in zip(raw.ids, raw.x, strict=True):
        if series.shape[0] != channels:
            raise InputError(
                "the series differ in channels",
                where=path,
                why=f"series {name} has {series.shape[0]}, the first has {channels}",
                remedy="the file may be cut off; give every series the same channels",
            )
        if np.isinf(series).any():
            raise InputError("the series hold infinite values", where=path, why=f"series {name}")
        clean.append(_fill(series, name, notes, path))
    for note in notes:
        warnings.warn(f"{path.name}: {note}", ContrastiveWarning, stacklevel=3)
    return SeriesSet(path.stem.replace("_TRAIN", "").replace("_TEST", ""), clean, raw.y, raw.ids, notes)


def _fill(series: np.ndarray, name: str, notes: list[str], path: Path) -> Float[np.ndarray, "c t"]:
    missing = np.isnan(series)
    if series.shape[1] == 0:
        raise InputError("a series has no values", where=path, why=f"series {name} has length zero")
    if not missing.any():
        return np.ascontiguousarray(series, dtype=np.float32)
    filled = np.flatnonzero(~missing.all(0))
    if not len(filled):
        raise InputError("a series has no values", where=path, why=f"series {name} holds nothing but NaN")
    series, missing = series[:, : filled[-1] + 1].astype(np.float64), missing[:, : filled[-1] + 1]
    time = np.arange(series.shape[1])
    for channel, gaps in zip(series, missing, strict=True):
        if gaps.all():
            channel[:] = 0
            notes.append(f"series {name} has a channel without any value, taken as zeros")
        elif gaps.any():
            channel[gaps] = np.interp(time[gaps], time[~gaps], channel[~gaps])
    return series.astype(np.float32)
