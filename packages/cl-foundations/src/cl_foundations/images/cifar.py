"""CIFAR-10 and CIFAR-100 from the files of their authors."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import reading
from jaxtyping import Bool, Int, UInt8

_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_LAYOUTS = {
    "cifar-10-batches-py": (tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)),
    "cifar-100-python": (("train",), ("test",)),
    "cifar-10-batches-bin": (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)),
}
_ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("_codecs", "encode"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


def find_cifar(path: Path) -> Path | None:
    """The folder of CIFAR's files: ``path`` itself, or the one torchvision makes below it."""
    if not path.is_dir():
        return None
    return next((folder for name in _LAYOUTS for folder in (path, path / name) if _holds(folder, name)), None)


def read_cifar(
    path: Path,
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int[np.ndarray, " n"], tuple[str, ...], Bool[np.ndarray, " n"]]:
    """Both parts of CIFAR.

    The authors' Python version is pickled. It is read by an unpickler that builds numbers, strings, lists,
    dictionaries and plain numpy arrays, and refuses everything else, so that a tampered file runs no code.

    Args:
        path: A folder for which :func:`find_cifar` finds something.

    Returns:
        Images, fine labels, class names, and which images are of the test part.

    Raises:
        InputError: A file is missing, damaged or not one of CIFAR's.
    """
    folder = find_cifar(path)
    if folder is None:
        raise InputError("there is no CIFAR", where=path, remedy="unpack its archive there")
    layout = next(name for name in _LAYOUTS if _holds(folder, name))
    images, labels, test = [], [], []
    for is_test, files in enumerate(_LAYOUTS[layout]):
        for name in files:
            file = folder / name
            if not file.is_file():
                raise InputError("a file of CIFAR is missing", where=file, remedy="unpack the archive again")
            x, y = _binary(file) if layout.endswith("bin") else _pickled(file)
            images.append(x)
            labels.append(y)
            test.append(np.full(len(x), bool(is_test)))
    y = np.concatenate(labels)
    classes = _NAMES if "cifar-10-" in layout else _class_names(folder / "meta", int(y.max(initial=0)) + 1)
    if not len(y) or y.max() >= len(classes):
        raise InputError("CIFAR is damaged", where=folder, why="it has no images, or more classes than names")
    return np.concatenate(images), y, classes, np.concatenate(test)


def _holds(folder: Path, layout: str) -> bool:
    first = _LAYOUTS[layout][0][0]
    if layout == "cifar-100-python":  # `train` may as well be a folder of images
        return (folder / "meta").is_file() and (folder / first).is_file()
    return (folder / first).is_file()


def _binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with reading(file, "a file of CIFAR cannot be read"):
        data = np.frombuffer(file.read_bytes(), np.uint8)
    if not len(data) or len(data) % 3073:
        raise InputError("a file of CIFAR is damaged", where=file, why=f"{len(data)} bytes are no whole records")
    records = data.reshape(-1, 3073)
    if records[:, 0].max() > 9:
        raise InputError("a file of CIFAR is damaged", where=file, why=f"a class of {records[:, 0].max()}")
    return _planes(records[:, 1:]), records[:, 0].astype(np.int64)


def _pickled(file: Path) -> tuple[np.ndarray, np.ndarray]:
    content = _load(file)
    data = _get(content, "data")
    fine_labels = _get(content, "fine_labels")
    labels = _get(content, "labels") if fine_labels is None else fine_labels
    fine = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072
    # An array of a pickle may claim any size; one of a whole file is no larger than the file.
    if (
        not fine
        or data.nbytes > file.stat().st_size
        or not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(isinstance(label, int) and 0 <= label < 100 for label in labels)
    ):
        raise InputError(
            "a file of CIFAR is damaged", where=file, why="it lacks images of 3072 bytes with a class each"
        )
    return _planes(data), np.array(labels, dtype=np.int64)


def _planes(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _class_names(meta: Path, count: int) -> tuple[str, ...]:
    names = _get(_load(meta), "fine_label_names")
    if not isinstance(names, list) or len(names) < count:
        raise InputError("a file of CIFAR is damaged", where=meta, why=f"expected the names of {count} classes")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR does not need")
        return super().find_class(module, name)


def _load(file: Path) -> dict[Any, Any]:
    remedy = "fetch the archive again from its authors, or use its binary version"
    with reading(file, "a file of CIFAR is refused", remedy):
        content = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    if not isinstance(content, dict):
        raise InputError("a file of CIFAR is damaged", where=file, why="it holds no dictionary")
    return content


def _get(content: dict[Any, Any], name: str) -> Any:
    return content.get(name.encode(), content.get(name))
