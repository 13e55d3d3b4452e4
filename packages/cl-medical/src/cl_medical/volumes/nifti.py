"""NIfTI files, and volumes written as NIfTI in the space of another."""

import gzip
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, reading
from monai.data.meta_tensor import MetaTensor

from cl_medical.volumes.limits import check_size

_MILLIMETRES = {"unknown": 1.0, "mm": 1.0, "meter": 1e3, "micron": 1e-3}
_WHAT, _REMEDY = "a NIfTI file cannot be read", "the file may be truncated or of another kind: copy it again"


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Values as they are stored, or scaled where the header says so; affine in mm; the codes of its spaces.

    Raises:
        InputError: The file cannot be read, or its header cannot be right.
    """
    with reading(path, _WHAT, _REMEDY):
        image, affine = _header(path)
        array = np.asanyarray(image.dataobj)  # small integers stay small
        meta = {name: int(image.header[name]) for name in ("sform_code", "qform_code") if name in image.header}
    return array, affine, meta


def nifti_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine in mm, without reading the values.

    Raises:
        InputError: As :func:`read_nifti`.
    """
    with reading(path, _WHAT, _REMEDY):
        image, affine = _header(path)
        return tuple(image.shape), affine


def write_nifti(path: Path | str, array: np.ndarray, reference: MetaTensor, *, scale: float | None = None) -> None:
    """Write a volume in the space of another, atomically.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        array: ``[x y z]``, or ``[x y z c]`` for channels.
        reference: Volume whose affine and space codes are kept. A sheared affine has no qform, which cannot hold it.
        scale: Stored integers times this are the values (``scl_slope``).
    """
    import nibabel as nib

    path = Path(path)
    affine = np.asarray(reference.affine, dtype=np.float64)
    image = nib.Nifti1Image(array, affine)
    sform, qform = (int(reference.meta.get(name, 1)) for name in ("sform_code", "qform_code"))
    image.set_sform(affine, sform or qform or 1)
    image.set_qform(affine, qform if sform or qform else 1)
    if _apart(affine, image.get_qform(), array.shape) > 0.01:
        image.set_qform(affine, 0)
    image.header.set_xyzt_units(xyz="mm")
    if scale is not None:
        image.header.set_slope_inter(scale, 0)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=3, mtime=0) as packed:
                _stream(image, packed, scale)
        else:
            _stream(image, file, scale)


def _header(path: Path) -> tuple[Any, np.ndarray]:
    import nibabel as nib

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # an overflow inside a quaternion is no geometry
        image: Any = nib.load(path)
        affine = np.array(image.affine, dtype=np.float64)
    if image.get_data_dtype().kind not in "fiu":
        kind = "colours" if image.get_data_dtype().fields else f"values of type {image.get_data_dtype()}"
        raise InputError("a volume holds no plain numbers", where=path, why=f"it holds {kind}", remedy="convert it")
    check_size(image.shape, image.get_data_dtype().itemsize, path.stat().st_size, path)
    unit = image.header.get_xyzt_units()[0] if hasattr(image.header, "get_xyzt_units") else "mm"
    affine[:3] *= _MILLIMETRES[unit]
    return image, affine


def _apart(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance of two placements over a volume's corners, as a share of the smallest voxel side."""
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in shape[:3]], (1,))).reshape(4, -1)
    distance = np.linalg.norm(((a - b) @ corners)[:3], axis=0).max()
    return float(distance / np.linalg.norm(a[:3, :3], axis=0).min())


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
