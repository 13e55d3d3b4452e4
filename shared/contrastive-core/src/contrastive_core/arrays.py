"""NumPy files of foreign origin: no pickles, and no more memory than the file can honestly hold."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contrastive_core.errors import InputError
from contrastive_core.files import reading

_LARGE = 1 << 30
_RATIO = 200
_REMEDY = "save numbers or texts with numpy.save or numpy.savez, without pickled objects"


def load_npy(path: Path | str) -> np.ndarray:
    """An array of an ``.npy`` file.

    Raises:
        InputError: The file is missing, damaged, pickled, or claims a size that it does not have.
    """
    path = Path(path)
    with reading(path, "the array cannot be read", _REMEDY), path.open("rb") as file:
        _check_header(file, path.stat().st_size, str(path))
        return np.asarray(np.load(path, allow_pickle=False))


def load_npz(path: Path | str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file by name.

    Args:
        path: The file.
        names: Arrays to read; all if absent.

    Raises:
        InputError: The file is missing, damaged, pickled, lacks an array, or unpacks to far more than its length.
    """
    path = Path(path)
    with reading(path, "the arrays cannot be read", _REMEDY):
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    _check_header(member, entry.file_size, f"{path}, {entry.filename}")
        with np.load(path, allow_pickle=False) as bundle:
            missing = [name for name in names or () if name not in bundle.files]
            if missing:
                why = f"no {missing[0]} among {', '.join(bundle.files[:12])}"
                raise InputError("the file lacks an array", where=path, why=why, remedy="save it under that name")
            return {name: bundle[name] for name in (bundle.files if names is None else names)}


def npz_names(path: Path | str) -> list[str]:
    """Names of the arrays in an ``.npz`` file, without reading them; none where the file is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, ValueError, zipfile.BadZipFile):
        return []


def check_archive(path: Path) -> None:
    """Refuse a zip archive that unpacks to more than a gibibyte and more than two hundred times its length.

    Raises:
        InputError: It does.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > max(_LARGE, _RATIO * path.stat().st_size):
        raise InputError(
            "the archive was refused",
            where=path,
            why=f"{path.stat().st_size:,} bytes would unpack to {size:,}",
            remedy="unpack it yourself if it is what you think it is",
        )


def _check_header(file: Any, size: int, name: str) -> None:
    """The header's shape must be what the length holds; numpy reserves memory by the header alone."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise InputError("the array was refused", where=name, why="it holds pickled objects", remedy=_REMEDY)
    need = math.prod(shape) * dtype.itemsize
    if need > size:
        raise ValueError(f"{name} claims {need} bytes of values and has at most {size}")
