"""Volumes from NIfTI files, DICOM series and HDF5 cases as MONAI ``MetaTensor``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from monai.data.meta_tensor import MetaTensor

from cl_medical.volumes.hdf5 import hdf5_grid, read_hdf5
from cl_medical.volumes.metrics import IGNORED
from cl_medical.volumes.names import ending, is_nifti
from cl_medical.volumes.nifti import nifti_grid, read_nifti

_LARGEST = 1e12
"""No scanner gives values beyond; those that occur are marks such as 1e20."""


def read_image(path: Path | str) -> MetaTensor:
    """Read one image.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.h5`` with a dataset ``image``, or a folder that holds one DICOM series.

    Returns:
        ``float32 [1 x y z]`` with ``affine`` (voxel to mm, RAS+).

    Raises:
        InputError: The file is missing, truncated or of another kind, not three-dimensional, holds NaN, infinite or
            absurdly large values, is constant, or the series lacks slices.
    """
    path = Path(path)
    array, affine, meta = _read(path, "image")
    array = _three_dimensional(array, path)
    finite = np.isfinite(array)
    if not finite.all():
        raise InputError(
            "an image holds NaN or infinite values",
            where=path,
            why=f"{int((~finite).sum())} of {array.size} voxels",
            remedy="repair the file, or leave the case out",
        )
    low, high = float(array.min()), float(array.max())
    if max(-low, high) > _LARGEST:
        raise InputError(
            "an image holds values that no scanner gives",
            where=path,
            why=f"from {low:g} to {high:g}",
            remedy="replace marks of missing voxels by a value of the background",
        )
    array = array.astype(np.float32, copy=False)
    if array.min() == array.max():
        kind = "zero everywhere" if high == low == 0 else f"{high:g} everywhere"
        raise InputError("an image is constant", where=path, why=f"it is {kind}", remedy="leave the case out")
    return _tensor(array, affine, meta, path)


def read_label(path: Path | str) -> MetaTensor:
    """Read one label map.

    Args:
        path: As for :func:`read_image`; from HDF5 the dataset ``label``.

    Returns:
        ``int64 [1 x y z]`` with ``affine``, the values as they stand in the file.

    Raises:
        InputError: As for :func:`read_image`, or the values are not whole numbers from 0 to 65535.
    """
    path = Path(path)
    array, affine, meta = _read(path, "label")
    array = _three_dimensional(array, path)
    if array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):  # NaN differs from itself
        raise InputError("a label map holds values that are not whole numbers", where=path)
    low, high = array.min(), array.max()
    if low < 0 or high > 65535:
        raise InputError(
            "a label map holds a value that is no class",
            where=path,
            why=f"values go from {low:g} to {high:g}, classes are whole numbers from 0",
        )
    return _tensor(array.astype(np.int64), affine, meta, path)


def read_pair(
    image: Path, label: Path, classes: int | None = None, ignore: int | None = None
) -> tuple[MetaTensor, MetaTensor]:
    """Read an image and its label map and check that they belong together.

    Args:
        image: Image file.
        label: Label file; the same file for HDF5.
        classes: Classes C; labels are 0 to C - 1.
        ignore: Value of voxels that do not count, which become :data:`IGNORED`.

    Raises:
        InputError: Shapes or affines differ, a label is out of range, or a file cannot be read.
    """
    x, y = read_image(image), read_label(label)
    if x.shape != y.shape:
        raise InputError(
            "an image and its label map differ in shape",
            where=label,
            why=f"the image has {tuple(x.shape[1:])} voxels, the label map {tuple(y.shape[1:])}",
            remedy="resample the label map to the image, or leave the case out",
        )
    x_spacing, y_spacing = spacing(x), spacing(y)
    if not np.allclose(x_spacing, y_spacing, rtol=1e-3):
        raise InputError(
            "an image and its label map differ in spacing",
            where=label,
            why=f"the image has {_millimetres(x_spacing)}, the label map {_millimetres(y_spacing)}",
            remedy="correct the header that is wrong",
        )
    # A tenth of a voxel anywhere in the volume is rounding of headers; more is another place in space.
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in x.shape[1:]])).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
    apart = np.linalg.norm(((_affine(x) - _affine(y)) @ homogeneous)[:3], axis=0).max()
    if apart > 0.1 * min(x_spacing):
        raise InputError(
            "an image and its label map have different affines",
            where=label,
            why=f"their voxels lie up to {apart:.2f} mm apart",
            remedy="resample the label map to the image, or correct the header that is wrong",
        )
    if ignore is not None:
        y = MetaTensor(torch.where(y.as_tensor() == ignore, IGNORED, y.as_tensor()), affine=y.affine)
    check_labels(y.as_tensor(), classes, label)
    return x, y


def check_labels(label: torch.Tensor, classes: int | None, where: Path | str) -> None:
    """Refuse label values outside 0 to C - 1; :data:`IGNORED` is no value.

    Raises:
        InputError: A value is not below ``classes``.
    """
    low, high = int(label.min()), int(label.max())
    if low < IGNORED or (classes is not None and high >= classes):
        raise InputError(
            "a label map holds a value that is no class",
            where=where,
            why=f"values go up to {high}" + ("" if classes is None else f", classes from 0 to {classes - 1}"),
            remedy="name all classes (in dataset.json, or --classes), or merge them with --merge-labels",
        )


def read_grid(path: Path | str) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of an image, of files from their headers alone.

    Raises:
        InputError: As for :func:`read_image`.
    """
    path = Path(path)
    if path.is_file() and ending(path):
        shape, affine = nifti_grid(path) if is_nifti(path) else hdf5_grid(path)
    else:
        volume = read_image(path)
        shape, affine = tuple(volume.shape[1:]), _affine(volume)
    shape = shape[:3] if all(side == 1 for side in shape[3:]) else shape
    if len(shape) != 3:
        raise _no_volume(shape, path)
    _check_affine(affine, path)
    return (shape[0], shape[1], shape[2]), affine


def volume_of(array: np.ndarray | torch.Tensor, sides: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> MetaTensor:
    """An array ``[x y z]`` in memory as a volume ``float32 [1 x y z]``; a ``MetaTensor [1 x y z]`` as it is.

    Args:
        array: Intensities.
        sides: Voxel sides in mm; axes point right, forward and up.

    Raises:
        InputError: It is not three-dimensional, or holds NaN.
    """
    if isinstance(array, MetaTensor) and array.ndim == 4:
        return array
    values = torch.as_tensor(np.asarray(array), dtype=torch.float32)
    if values.ndim != 3 or not torch.isfinite(values).all():
        raise InputError("an image is [x y z] without NaN", where="image", why=f"got the shape {tuple(values.shape)}")
    return MetaTensor(values[None], affine=torch.diag(torch.tensor([*sides, 1.0], dtype=torch.float64)))


def spacing(volume: MetaTensor) -> tuple[float, float, float]:
    """Voxel sides in mm."""
    sides = np.linalg.norm(_affine(volume)[:3, :3], axis=0)
    return float(sides[0]), float(sides[1]), float(sides[2])


def _affine(volume: MetaTensor) -> np.ndarray:
    return np.asarray(volume.affine, dtype=np.float64)


def _check_affine(affine: np.ndarray, path: Path) -> None:
    sides = np.linalg.norm(affine[:3, :3], axis=0) if np.isfinite(affine).all() else np.zeros(3)
    # Three directions of a length that span a space, whatever the unit.
    if sides.min() <= 0 or sides.max() > 1e6 or abs(np.linalg.det(affine[:3, :3] / sides)) < 1e-3:
        raise InputError("a volume's affine cannot be inverted", where=path, remedy="correct its header")


def _tensor(array: np.ndarray, affine: np.ndarray, meta: Mapping[str, Any], path: Path) -> MetaTensor:
    _check_affine(affine, path)
    return MetaTensor(
        torch.from_numpy(np.ascontiguousarray(array))[None], affine=torch.from_numpy(affine), meta=dict(meta)
    )


def _three_dimensional(array: np.ndarray, path: Path) -> np.ndarray:
    shape = array.shape
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or 0 in array.shape:
        raise _no_volume(shape, path)
    return array


def _no_volume(shape: tuple[int, ...], path: Path) -> InputError:
    return InputError(
        "a volume is not three-dimensional",
        where=path,
        why=f"its shape is {shape}",
        remedy="save each channel or time point as a volume of its own",
    )


def _read(path: Path, which: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    if not path.exists():
        raise InputError("a volume is missing", where=path, remedy="check the path")
    if path.is_dir():
        from cl_medical.volumes.dicom import read_series

        return read_series(path)
    if ending(path):
        return read_nifti(path) if is_nifti(path) else read_hdf5(path, which)
    raise InputError(
        "a file is not a volume we read",
        where=path,
        remedy="use .nii, .nii.gz, .h5, or a folder with the files of one DICOM series",
    )


def _millimetres(sides: tuple[float, float, float]) -> str:
    return " x ".join(f"{side:.3g}" for side in sides) + " mm"
