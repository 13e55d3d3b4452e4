"""Volumes from NIfTI files, DICOM series and HDF5 cases as MONAI ``MetaTensor``, and back to NIfTI."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write
from monai.data.meta_tensor import MetaTensor

NIFTI = (".nii", ".nii.gz")
HDF5 = (".h5", ".hdf5")
LA_FILE = "mri_norm2.h5"
"""File of a case in the published left-atrium layout; the case is named by its folder."""


def is_volume(path: Path) -> bool:
    """Whether the name is one of a volume we read (a file; DICOM series are folders)."""
    return path.name.endswith(NIFTI + HDF5) and not path.name.startswith(".")


def case_name(path: Path) -> str:
    """Name of a case: the file's or folder's name without its ending."""
    if path.name == LA_FILE:
        return path.absolute().parent.name
    for ending in NIFTI + HDF5:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.name


def read_image(path: Path | str) -> MetaTensor:
    """Read one image.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.h5`` with a dataset ``image``, or a folder that holds one DICOM series.

    Returns:
        ``float32 [1 x y z]`` with ``affine`` (voxel to mm, RAS+).

    Raises:
        InputError: The file is missing, truncated or of another kind, not three-dimensional, holds NaN or infinite
            values, is constant, or the series lacks slices.
    """
    path = Path(path)
    array, affine, meta = _read(path, "image")
    if array.dtype.kind not in "fiu":
        raise InputError("an image holds no numbers", where=path, why=f"its type is {array.dtype}")
    array = _three_dimensional(array.astype(np.float32, copy=False), path)
    finite = np.isfinite(array)
    if not finite.all():
        raise InputError(
            "an image holds NaN or infinite values",
            where=path,
            why=f"{int((~finite).sum())} of {array.size} voxels",
            remedy="repair the file, or leave the case out",
        )
    if array.max() == array.min():
        kind = "zero everywhere" if not array.any() else f"{float(array.flat[0]):g} everywhere"
        raise InputError("an image is constant", where=path, why=f"it is {kind}", remedy="leave the case out")
    return _tensor(array, affine, meta, path)


def read_label(path: Path | str) -> MetaTensor:
    """Read one label map.

    Args:
        path: As for :func:`read_image`; from HDF5 the dataset ``label``.

    Returns:
        ``int64 [1 x y z]`` with ``affine``.

    Raises:
        InputError: As for :func:`read_image`, or the values are not whole numbers.
    """
    path = Path(path)
    array, affine, meta = _read(path, "label")
    array = _three_dimensional(array, path)
    if array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):  # NaN differs from itself
        raise InputError("a label map holds values that are not whole numbers", where=path)
    return _tensor(array.astype(np.int64), affine, meta, path)


def read_pair(image: Path, label: Path, classes: int | None = None) -> tuple[MetaTensor, MetaTensor]:
    """Read an image and its label map and check that they belong together.

    Args:
        image: Image file.
        label: Label file; the same file for HDF5.
        classes: Classes C; labels are 0 to C - 1.

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
    check_labels(y, classes, label)
    return x, y


def check_labels(label: torch.Tensor, classes: int | None, where: Path | str) -> None:
    """Refuse label values outside 0 to C - 1.

    Raises:
        InputError: A value is negative or not below ``classes``.
    """
    low, high = int(label.min()), int(label.max())
    if low < 0 or (classes is not None and high >= classes):
        raise InputError(
            "a label map holds a value that is no class",
            where=where,
            why=f"values go from {low} to {high}" + ("" if classes is None else f", classes from 0 to {classes - 1}"),
            remedy="name all classes (in dataset.json, or --classes), or merge them with --merge-labels",
        )


def spacing(volume: MetaTensor) -> tuple[float, float, float]:
    """Voxel sides in mm."""
    sides = np.linalg.norm(_affine(volume)[:3, :3], axis=0)
    return float(sides[0]), float(sides[1]), float(sides[2])


def write_nifti(path: Path | str, array: np.ndarray, reference: MetaTensor, *, scale: float | None = None) -> None:
    """Write a volume in the space of another, atomically.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        array: ``[x y z]``, or ``[x y z c]`` for channels.
        reference: Volume whose affine, units and space codes are kept.
        scale: Stored integers times this are the values (``scl_slope``).
    """
    import nibabel as nib

    path = Path(path)
    affine = _affine(reference)
    image = nib.Nifti1Image(array, affine)
    sform, qform = (int(reference.meta.get(name, 1)) for name in ("sform_code", "qform_code"))
    # The qform cannot hold shear: where the input relies on its sform alone, so does the output.
    image.set_sform(affine, sform or qform or 1)
    image.set_qform(affine, qform if sform or qform else 1)
    image.header.set_xyzt_units(xyz="mm")
    if scale is not None:
        image.header.set_slope_inter(scale, 0)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=3, mtime=0) as packed:
                _stream(image, packed, scale)
        else:
            _stream(image, file, scale)


def _stream(image: Any, file: Any, scale: float | None) -> None:
    if scale is None:
        image.to_stream(file)
        return
    # nibabel would choose its own slope when it writes: header and stored integers are laid down as they are.
    header = image.header.copy()
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["scl_slope"], header["scl_inter"] = scale, 0
    file.write(header.binaryblock)
    file.write(b"\0" * 4)
    for block in np.asarray(image.dataobj).T:  # Fortran order, a slab at a time
        file.write(np.ascontiguousarray(block).astype(header.get_data_dtype(), copy=False).tobytes())


def _affine(volume: MetaTensor) -> np.ndarray:
    return np.asarray(volume.affine, dtype=np.float64)


def _tensor(array: np.ndarray, affine: np.ndarray, meta: Mapping[str, Any], path: Path) -> MetaTensor:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise InputError("a volume's affine cannot be inverted", where=path, remedy="correct its header")
    return MetaTensor(
        torch.from_numpy(np.ascontiguousarray(array))[None], affine=torch.from_numpy(affine), meta=dict(meta)
    )


def _three_dimensional(array: np.ndarray, path: Path) -> np.ndarray:
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(
            "a volume is not three-dimensional",
            where=path,
            why=f"its shape is {array.shape}",
            remedy="save each channel or time point as a volume of its own",
        )
    return array


def _read(path: Path, which: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    if not path.exists():
        raise InputError("a volume is missing", where=path, remedy="check the path")
    if path.is_dir():
        from cl_medical.volumes.dicom import read_series

        return read_series(path)
    if path.name.endswith(NIFTI):
        return _read_nifti(path)
    if path.name.endswith(HDF5):
        return _read_hdf5(path, which)
    raise InputError(
        "a file is not a volume we read",
        where=path,
        remedy="use .nii, .nii.gz, .h5, or a folder with the files of one DICOM series",
    )


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    import nibabel as nib

    try:
        image = nib.load(path)
        # Small integers stay small; scaled data come out as float64 and are narrowed by the caller.
        array = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
        affine = np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
        header: Any = image.header
        meta = {name: int(header[name]) for name in ("sform_code", "qform_code") if name in header}
    except Exception as error:  # truncated and foreign files fail in many ways inside the reader
        raise InputError(
            "a NIfTI file cannot be read",
            where=path,
            why=" ".join(str(error).split())[:200] or type(error).__name__,
            remedy="the file may be truncated or of another kind: copy it again",
        ) from error
    return array, affine, meta


def _read_hdf5(path: Path, which: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if which not in file:
                raise InputError(
                    f"an HDF5 case holds no dataset `{which}`", where=path, why=f"it holds {', '.join(file) or 'none'}"
                )
            array = np.asarray(file[which])
            affine = np.asarray(file.attrs.get("affine", np.eye(4)), dtype=np.float64)
    except OSError as error:
        raise InputError(
            "an HDF5 file cannot be read", where=path, why=str(error)[:200], remedy="copy it again"
        ) from error
    return array, affine, {}


def _millimetres(sides: tuple[float, float, float]) -> str:
    return " x ".join(f"{side:.3g}" for side in sides) + " mm"
