"""One DICOM series as a volume."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import reading
from jaxtyping import Float
from scipy import ndimage

from cl_medical.volumes.names import entries, is_series, looks_dicom

_TOLERANCE = 0.1
"""Share of a voxel by which slices may lie off the places their grid says."""


def read_series(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Read the slices of one series.

    A series whose slices are shifted evenly against each other (gantry tilt) is resampled to a straight grid, with a
    note: the affine of a NIfTI file that other tools read cannot hold the shear.

    Args:
        folder: Holds the files of exactly one series, one slice a file. A file whose name ends in no letters counts as
            a slice whatever it holds: a slice cut off before its header must not pass for a note.

    Returns:
        Array ``[x y z]`` after the modality's scale (slope and intercept, or its table), affine to RAS+ mm, and the
        patient's id.

    Raises:
        InputError: No DICOM files, an unreadable one, several series, slices of differing geometry, missing slices, or
            slices that do not lie in a row.
    """
    if not is_series(folder):
        raise InputError("the folder holds no DICOM files", where=folder, remedy="name the folder of one series")
    files = [entry for entry in entries(folder) if looks_dicom(entry) or _nameless(entry)]
    slices = [_read_slice(path) for path in files]
    series = {str(each.get("SeriesInstanceUID", "")) for each in slices}
    if len(series) > 1:
        raise InputError(
            "the folder holds several DICOM series",
            where=folder,
            why=f"{len(series)} series in {len(slices)} files",
            remedy="give each series a folder of its own",
        )
    axes, positions = _geometry(slices, folder)
    normal = np.cross(axes[0], axes[1])
    normal /= np.linalg.norm(normal)
    order = np.argsort(positions @ normal)
    positions = positions[order]
    step = _slice_step(positions, normal, slices[0], folder)
    array = np.stack([_pixels(slices[index]) for index in order], -1).transpose(1, 0, 2)
    # Rows of the pixel array run along the second direction cosine, columns along the first.
    affine = np.eye(4)
    affine[:3, :3] = np.stack([*axes, step], 1)
    affine[:3, 3] = positions[0]
    array, affine = _straight(array, affine, normal, folder)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM is LPS, NIfTI is RAS
    return np.ascontiguousarray(array), affine, {"patient": str(slices[0].get("PatientID", "") or "")}


def _nameless(path: Path) -> bool:
    """Whether a file has no ending, or only a number, as scanners name slices."""
    return path.is_file() and path.name != "DICOMDIR" and not path.suffix.lstrip(".").strip("0123456789")


def _read_slice(path: Path) -> Any:
    import pydicom

    with reading(path, "a DICOM slice cannot be read", "export the series again, or move the file away if it is none"):
        data = pydicom.dcmread(path)
        frames = int(data.get("NumberOfFrames", 1) or 1)
        if frames > 1 or data.pixel_array.ndim != 2:  # decoding shows a broken file now
            raise InputError(
                "a DICOM file holds several frames or colours",
                where=path,
                remedy="convert it to NIfTI first, for instance with dcm2niix",
            )
    return data


def _geometry(slices: list[Any], folder: Path) -> tuple[Float[np.ndarray, "2 3"], Float[np.ndarray, "n 3"]]:
    """Steps along a row and along a column in mm, and the slices' positions.

    Raises:
        InputError: A slice does not say where it lies, or they differ.
    """
    first = _place(slices[0], folder)
    for each in slices[1:]:
        other = _place(each, folder)
        same = (each.Rows, each.Columns) == (slices[0].Rows, slices[0].Columns)
        if not same or not np.allclose(other[0], first[0], atol=1e-4) or not np.allclose(other[1], first[1]):
            raise InputError(
                "the slices of a DICOM series differ in geometry", where=each.filename, remedy="split the series"
            )
    directions, (row_spacing, column_spacing), _ = first
    axes = directions.reshape(2, 3) * np.array([[column_spacing], [row_spacing]])
    return axes, np.stack([_place(each, folder)[2] for each in slices])


def _place(data: Any, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with reading(folder, "a DICOM slice does not say where it lies", "export the series again"):
        values = [
            np.array([float(value) for value in data[name].value])
            for name in ("ImageOrientationPatient", "PixelSpacing", "ImagePositionPatient")
        ]
        directions, spacing, position = values
        if [len(each) for each in values] != [6, 2, 3] or not all(np.isfinite(each).all() for each in values):
            raise ValueError("an orientation has 6 numbers, a spacing 2, a position 3")
        row, column = directions[:3], directions[3:]
        square = np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-3)
        if not square or spacing.min() <= 0:
            raise ValueError("its directions are not two unit vectors at right angles, or a spacing is not positive")
    return directions, spacing, position


def _pixels(data: Any) -> Float[np.ndarray, "rows columns"]:
    """Values of a slice on the modality's scale, Hounsfield units for a CT."""
    from pydicom.pixels.processing import apply_modality_lut

    with reading(data.filename, "the scale of a DICOM slice cannot be read", "export the series again"):
        raw = data.pixel_array
        if data.get("ModalityLUTSequence"):
            return apply_modality_lut(raw, data).astype(np.float32)
        slope, intercept = _number(data, "RescaleSlope", 1.0), _number(data, "RescaleIntercept", 0.0)
        if not math.isfinite(slope) or not math.isfinite(intercept) or slope == 0:
            raise ValueError(f"slope {slope}, intercept {intercept}")
        return raw.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _number(data: Any, name: str, default: float) -> float:
    """A number of the header, the default where it is absent or empty."""
    value = data.get(name)
    return default if value is None or value == "" else float(value)


def _slice_step(positions: np.ndarray, normal: np.ndarray, first: Any, folder: Path) -> Float[np.ndarray, " 3"]:
    """From one slice to the next, in mm."""
    if len(positions) == 1:
        with reading(folder, "the thickness of a DICOM slice cannot be read"):
            return normal * (_number(first, "SliceThickness", 0.0) or 1.0)
    depth = positions @ normal
    steps = np.diff(depth)
    usual = float(np.median(steps))
    if usual < 1e-3 or steps.min() < 1e-3:
        raise InputError("two slices of a DICOM series lie at one place", where=folder, remedy="remove the duplicate")
    gaps = np.flatnonzero(steps > 1.5 * usual)
    if len(gaps):
        missing = round(sum(steps[gap] / usual - 1 for gap in gaps))
        raise InputError(
            "a DICOM series lacks slices",
            where=folder,
            why=f"about {missing} missing after {depth[gaps[0]]:.1f} mm, where slices lie {usual:.2f} mm apart",
            remedy="export the series again",
        )
    step: np.ndarray = (positions[-1] - positions[0]) / (len(positions) - 1)
    off = np.linalg.norm(positions - (positions[0] + np.arange(len(positions))[:, None] * step), axis=1)
    if off.max() > _TOLERANCE * usual:
        raise InputError(
            "the slices of a DICOM series do not lie in an even row",
            where=folder,
            why=f"slice {int(off.argmax()) + 1} lies {off.max():.2f} mm off; steps from {steps.min():.3f} to "
            f"{steps.max():.3f} mm",
            remedy="resample the series to even slices first",
        )
    return step


def _straight(
    array: Float[np.ndarray, "x y z"], affine: np.ndarray, normal: np.ndarray, folder: Path
) -> tuple[Float[np.ndarray, "u v z"], np.ndarray]:
    """Shift slices straight above each other, in a grid wide enough for all; outside is the minimum."""
    sides = np.linalg.norm(affine[:3, :2], axis=0)
    step = affine[:3, 2]
    shift = np.array([step @ affine[:3, axis] / sides[axis] ** 2 for axis in range(2)])  # voxels a slice
    count = array.shape[2]
    if np.abs(shift * max(count - 1, 1)).max() <= _TOLERANCE:
        return array, affine
    angle = math.degrees(math.acos(min(abs(step @ normal) / np.linalg.norm(step), 1.0)))
    warnings.warn(
        f"the slices of {folder} are shifted against each other (gantry tilt of {angle:.1f} degrees): resampled to a "
        "straight grid",
        ContrastiveWarning,
        stacklevel=2,
    )
    offsets = np.arange(count)[:, None] * shift
    low, high = np.floor(offsets.min(0)).astype(int), np.ceil(offsets.max(0)).astype(int)
    room = [(int(-a), int(b)) for a, b in zip(low, high, strict=True)]
    slices = []
    for index, offset in enumerate(offsets):
        padded = np.pad(array[:, :, index], room, constant_values=array.min())
        slices.append(ndimage.shift(padded, offset, order=1, mode="nearest"))
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :2] @ low
    affine[:3, 2] = normal * (step @ normal)
    return np.stack(slices, -1), affine
