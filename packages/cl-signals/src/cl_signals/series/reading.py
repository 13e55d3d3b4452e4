"""Reading series: one file, a set with its training and test part, a folder of sets; repaired and checked."""

import re
import warnings
from pathlib import Path

import numpy as np
from contrastive_core.errors import ContrastiveWarning, InputError
from jaxtyping import Float

from cl_signals.series.formats import LARGEST, SUFFIXES, RawSeries, holds_split, read_raw, read_split_npz
from cl_signals.series.sets import SeriesSet

_PART = re.compile(r"_(train|test)(?=$|[._])", re.IGNORECASE)


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
            ``.npz`` of these four arrays, or a folder with just that. Case does not matter in these names.

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
    folders = [path, *sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")]
    sets = [folder for folder in folders if _has_pair(folder)]
    if left := [folder.name for folder in folders[1:] if folder not in sets]:
        warnings.warn(f"no set in {', '.join(left)}: left out", ContrastiveWarning, stacklevel=2)
    if not sets:
        raise InputError(
            "the folder holds no data set",
            where=path,
            why="no <Name>_TRAIN and <Name>_TEST files, no X_train.npy",
            remedy="lay each set in a folder of its own, or run `cl-signals mantis sample-data` for an example",
        )
    return sets


def read_labelled(path: Path | str) -> tuple[SeriesSet, SeriesSet | None]:
    """A labelled set to train on: with its test part, or a single file without one.

    Args:
        path: The folder of a set, its training file, an ``.npz`` of both parts, or a single labelled file.

    Raises:
        InputError: As :func:`read_split` and :func:`read_series`.
    """
    path = Path(path)
    if path.is_file() and not is_part(path, "train") and not holds_split(path):
        return read_series(path), None
    return read_split(path)


def read_test(path: Path | str) -> SeriesSet:
    """Series to score on: the test part of a set's folder, or a single file.

    Raises:
        InputError: As :func:`read_split` and :func:`read_series`.
    """
    path = Path(path)
    return read_split(path)[1] if path.is_dir() or holds_split(path) else read_series(path)


def is_part(path: Path, part: str) -> bool:
    """Whether a file's name says that it is the part (``train`` or ``test``) of a set, in any case of letters."""
    match = _PART.search(path.stem)
    labels = path.name.lower() in ("y_train.npy", "y_test.npy")
    return match is not None and not labels and match[1].lower() == part


def _bundle(path: Path) -> Path | None:
    """An npz that holds both parts: the file itself, or the only one of a folder."""
    files = [path] if path.is_file() else _files(path) if path.is_dir() else []
    archives = [file for file in files if file.suffix.lower() == ".npz"]
    return archives[0] if len(archives) == 1 and holds_split(archives[0]) else None


def _files(folder: Path) -> list[Path]:
    """Files of a folder that can hold series, in order of name."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _pair(path: Path) -> tuple[Path, Path]:
    if not path.exists():
        raise InputError("the data set is missing", where=path, remedy="check the path")
    if path.is_file():
        if not is_part(path, "train"):
            raise InputError(
                "a single file has no test part",
                where=path,
                remedy="name the folder of the set, or its <Name>_TRAIN file",
            )
        train, folder = path, path.parent
    else:
        train, folder = _training_file(path), path
    name = _name(train)
    tests = [file for file in _files(folder) if is_part(file, "test") and _name(file) == name]
    if not tests:
        raise InputError("the test part is missing", where=train, remedy="lay <Name>_TEST beside the training part")
    same = [file for file in tests if file.suffix == train.suffix] or tests
    if len(same) > 1:
        why = ", ".join(file.name for file in same)
        raise InputError("the set has several test parts", where=folder, why=why, remedy="keep one of them")
    return train, same[0]


def _training_file(folder: Path) -> Path:
    trains = [file for file in _files(folder) if is_part(file, "train")]
    if not trains:
        files = [file.name for file in folder.iterdir()]
        raise InputError(
            "the folder holds no data set",
            where=folder,
            why=f"no <Name>_TRAIN file and no X_train.npy among {', '.join(files[:5])}" if files else "it is empty",
            remedy="lay <Name>_TRAIN.ts and <Name>_TEST.ts there, or run `cl-signals mantis sample-data`",
        )
    if len(trains) > 1:
        raise InputError(
            "the folder holds several training parts",
            where=folder,
            why=", ".join(file.name for file in trains[:3]),
            remedy="name one of these files, or keep one set a folder",
        )
    return trains[0]


def _name(path: Path) -> str:
    """Name of the set a part belongs to."""
    return "" if path.name.lower() in ("x_train.npy", "x_test.npy") else _PART.sub("", path.stem)


def _has_pair(folder: Path) -> bool:
    return _bundle(folder) is not None or any(is_part(file, "train") for file in _files(folder))


def _clean(path: Path, raw: RawSeries) -> SeriesSet:
    if not raw.x:
        raise InputError("the file holds no series", where=path, remedy="check that it was written to its end")
    channels = raw.x[0].shape[0]
    notes = list(raw.notes)
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
        if (np.abs(series) > LARGEST).any():
            raise InputError(
                "a value is a fill value, or absurd",
                where=path,
                why=f"series {name} holds {series[np.abs(series) > LARGEST][0]:g}",
                remedy="write gaps as NaN",
            )
        clean.append(_fill(series, name, notes, path))
    for note in notes:
        warnings.warn(f"{path.name}: {note}", ContrastiveWarning, stacklevel=3)
    return SeriesSet(_name(path) or path.parent.name, clean, raw.y, raw.ids, notes)


def _fill(series: np.ndarray, name: str, notes: list[str], path: Path) -> Float[np.ndarray, "c t"]:
    missing = np.isnan(series)
    if series.shape[1] == 0:
        raise InputError("a series has no values", where=path, why=f"series {name} has length zero")
    if not missing.any():
        return np.ascontiguousarray(series, dtype=np.float32)
    times = np.flatnonzero(~missing.all(0))
    if not len(times):
        raise InputError("a series has no values", where=path, why=f"series {name} holds nothing but NaN")
    series, missing = series[:, : times[-1] + 1].astype(np.float64), missing[:, : times[-1] + 1]
    time = np.arange(series.shape[1])
    for channel, gaps in zip(series, missing, strict=True):
        if gaps.all():
            channel[:] = 0
            notes.append(f"series {name} has a channel without any value, taken as zeros")
        elif gaps.any():
            channel[gaps] = np.interp(time[gaps], time[~gaps], channel[~gaps])
    return series.astype(np.float32)
