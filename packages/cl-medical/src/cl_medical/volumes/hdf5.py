"""HDF5 cases: datasets ``image`` and ``label`` in one file."""

from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import reading

from cl_medical.volumes.limits import check_size

_WHAT, _REMEDY = "an HDF5 file cannot be read", "copy it again"


def read_hdf5(path: Path, which: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A dataset's values and the affine beside it (the identity if there is none).

    Raises:
        InputError: The file cannot be read, lacks the dataset, or takes it from another file.
    """
    import h5py

    with reading(path, _WHAT, _REMEDY), h5py.File(path, "r") as file:
        return np.asarray(_dataset(file, which, path)[()]), _affine(file), {}


def hdf5_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the image, without reading the values.

    Raises:
        InputError: As :func:`read_hdf5`.
    """
    import h5py

    with reading(path, _WHAT, _REMEDY), h5py.File(path, "r") as file:
        return tuple(_dataset(file, "image", path).shape), _affine(file)


def has_label(path: Path) -> bool:
    """Whether a case has a label map.

    Raises:
        InputError: The file cannot be read.
    """
    import h5py

    with reading(path, _WHAT, _REMEDY), h5py.File(path, "r") as file:
        return "label" in file


def _dataset(file: Any, which: str, path: Path) -> Any:
    import h5py

    if which not in file:
        known = ", ".join(file) or "none"
        raise InputError(f"an HDF5 case holds no dataset `{which}`", where=path, why=f"it holds {known}")
    link, values = file.get(which, getlink=True), None
    if isinstance(link, h5py.HardLink):
        values = file[which]
    if not isinstance(values, h5py.Dataset) or values.is_virtual or values.external:
        raise InputError(
            "an HDF5 case takes its values from elsewhere",
            where=path,
            why=f"`{which}` is a link, a group, a virtual dataset or in external storage",
            remedy="copy the values into the file",
        )
    if values.dtype.kind not in "fiu":
        raise InputError("a volume holds no plain numbers", where=path, why=f"`{which}` is of type {values.dtype}")
    check_size(values.shape, values.dtype.itemsize, values.id.get_storage_size(), path)
    return values


def _affine(file: Any) -> np.ndarray:
    affine = np.asarray(file.attrs.get("affine", np.eye(4)), dtype=np.float64)
    if affine.shape != (4, 4):
        raise ValueError(f"its affine has the shape {affine.shape}")
    return affine
