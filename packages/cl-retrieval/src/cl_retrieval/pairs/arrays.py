"""Arrays of foreign files by name: ``.npz``, ``.npy``, ``.mat``, ``.h5``.

Nothing in them is executed, nothing beyond them is read, and no file takes more memory than it can honestly hold.
"""

import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.arrays import load_npy, load_npz
from contrastive_core.errors import InputError
from contrastive_core.files import reading

SUFFIXES = (".npz", ".npy", ".mat", ".h5", ".hdf5")
_ENDS = "_ends"
_LARGE, _RATIO = 2**28, 64
_REMEDY = "restore the file; arrays of Python objects are not read, as that would run code from the file"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file or folder, by name; texts that :func:`packed_texts` packed come back as texts.

    Raises:
        InputError: The file is missing, of an unknown kind, damaged, or holds links to other files.
    """
    if path.is_dir():
        names = {each.stem: each for each in sorted(path.iterdir()) if each.suffix.lower() == ".npy"}
        if not names:
            raise InputError("the folder holds no features", where=path, why="there is no .npy file in it")
        return {name: load_npy(each) for name, each in names.items()}
    if not path.is_file():
        raise InputError("the file is missing", where=path, remedy="check the path")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return read_arrays(path.parent)
    if suffix not in SUFFIXES:
        raise InputError(
            "the file is of no known kind",
            where=path,
            remedy=f"one of {', '.join(SUFFIXES)}, or a folder of .npy files",
        )
    with reading(path, "the features cannot be read", _REMEDY):
        reader = {".npz": load_npz, ".mat": _mat}.get(suffix, _hdf5)
        return _with_texts(reader(path))


def packed_texts(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Texts as one array of UTF-8 and one of their ends: an array of strings is as wide as its longest everywhere."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}{_ENDS}": ends}


def texts_of(values: Any, name: str, where: object) -> tuple[str, ...]:
    """Texts of an array, as they are written; whole numbers are accepted as identifiers.

    Raises:
        InputError: An entry is neither a text nor a whole number.
    """
    out = []
    for value in np.ravel(values).tolist():
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)  # MATLAB has no other numbers
        elif isinstance(value, bytes):
            with reading(where, f"the {name} are not UTF-8"):
                value = value.decode()
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise InputError(
                f"the {name} are neither texts nor whole numbers", where=where, why=f"for instance {value!r}"
            )
        out.append(str(value))
    return tuple(out)


def _with_texts(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays with packed texts as arrays of objects, one text each."""
    out: dict[str, Any] = {}
    for name, values in arrays.items():
        if (ends := arrays.get(f"{name}{_ENDS}")) is not None:
            out[name] = _unpacked(values, ends)
        elif not (name.endswith(_ENDS) and name.removesuffix(_ENDS) in arrays):
            out[name] = values
    return out


def _unpacked(blob: np.ndarray, ends: np.ndarray) -> np.ndarray:
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    if (ends < starts).any() or (len(ends) and int(ends[-1]) != blob.size):
        raise ValueError("the ends of its texts do not fit")
    content, out = blob.astype(np.uint8).tobytes(), np.empty(len(ends), object)
    out[:] = [content[start:end].decode() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return out


def _check_size(size: int, path: Path) -> None:
    """Refuse what unpacks to far more than the file is long."""
    if size > max(_LARGE, _RATIO * path.stat().st_size):
        raise InputError(
            "the file was refused",
            where=path,
            why=f"{path.stat().st_size:,} bytes would unpack to {size:,}",
            remedy="save the arrays as .npz if they are what you think they are",
        )


def _mat(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        head = file.read(128)
    if b"MATLAB 7.3" in head:
        # MATLAB stores columns first, HDF5 rows first: every array comes out transposed.
        return {name: value.T for name, value in _hdf5(path).items()}
    if 0 not in head[:4]:  # version 4 begins with a small number, version 5 with text
        _check_mat5(path)
    return _loaded_mat(path)


def _check_mat5(path: Path) -> None:
    """Walk over the variables of a MAT file of version 5: they fill it exactly, and unpack to what it can hold."""
    total, end = 0, path.stat().st_size
    with path.open("rb") as file:
        order = {b"IM": "little", b"MI": "big"}[file.read(128)[126:]]
        while (place := file.tell()) < end:
            tag = file.read(8)
            kind, size = (int.from_bytes(part, order) for part in (tag[:4], tag[4:]))  # type: ignore[arg-type]
            if len(tag) < 8 or kind not in (14, 15) or place + 8 + size > end:
                raise ValueError("it is cut off, or its variables do not fit together")
            if kind == 15:
                inner = zlib.decompressobj().decompress(file.read(min(size, 4096)), 8)
                total += int.from_bytes(inner[4:8], order)  # type: ignore[arg-type]
            file.seek(place + 8 + size)
    _check_size(total, path)


def _loaded_mat(path: Path) -> dict[str, np.ndarray]:
    """What scipy reads, in a process of its own: on damaged files it can end the process it runs in."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "arrays.npz"
        command = [sys.executable, "-c", _CHILD, str(path.absolute()), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600, check=False)
        if done.returncode != 0 or not out.is_file():
            raise ValueError((done.stderr.strip().splitlines() or ["it is damaged"])[-1])
        with np.load(out, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


_CHILD = """
import sys
import numpy, scipy.io
values = scipy.io.loadmat(sys.argv[1], chars_as_strings=True)
arrays = {name: numpy.asarray(value) for name, value in values.items() if not name.startswith("__")}
def plain(value):
    if value.dtype != object:
        return value
    cells = [numpy.asarray(each) for each in value.ravel()]
    if all(each.size == 1 and each.dtype.kind in "Uiuf" for each in cells):
        return numpy.array([each.item() for each in cells])
    return None
arrays = {name: plain(value) for name, value in arrays.items()}
numpy.savez(sys.argv[2], **{name: value for name, value in arrays.items() if value is not None})
"""


def _hdf5(path: Path) -> dict[str, np.ndarray]:
    """Datasets at the top of an HDF5 file; what lies in other files is not followed."""
    import h5py

    with h5py.File(path, "r") as file:
        for name in file:
            _check_inside(file, name, path)
        datasets = {name: file[name] for name in file if isinstance(file[name], h5py.Dataset)}
        _check_size(sum(each.size * each.dtype.itemsize for each in datasets.values()), path)
        return {name: _decoded(each[()]) for name, each in datasets.items()}


def _check_inside(file: Any, name: str, path: Path) -> None:
    """Refuse what leads into other files: a shared file must not read a user's own."""
    import h5py

    elsewhere = not isinstance(file.get(name, getlink=True), h5py.HardLink)
    if not elsewhere and isinstance(file[name], h5py.Dataset):
        elsewhere = file[name].is_virtual or bool(file[name].external)
    if elsewhere:
        raise InputError(
            "the file was refused",
            where=path,
            why=f"{name!r} lies in another file, or behind a link",
            remedy="copy the values into this file",
        )


def _decoded(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "OS":
        return array
    out = np.empty(array.size, object)
    for place, each in enumerate(array.ravel()):
        text = each.decode() if isinstance(each, bytes) else each
        if not isinstance(text, str):
            raise ValueError("it holds references or objects")
        out[place] = text
    return out
