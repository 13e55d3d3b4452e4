"""One DICOM series as a volume."""

from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError


def is_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files directly."""
    return folder.is_dir() and any(_looks_dicom(entry) for entry in sorted(folder.iterdir()))


def read_series(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Read the slices of one series.

    Args:
        folder: Holds the files of exactly one series, one slice a file. A file whose name ends in no letters counts as
            a slice whatever it holds: a slice cut off before its header must not pass for a note.

    Returns:
        Array ``[x y z]`` after the rescale slope and intercept, affine to RAS+ mm, and the patient's id.

    Raises:
        InputError: No DICOM files, an unreadable one, several series, slices of differing geometry, or missing slices.
    """
    if not is_series(folder):
        raise InputError("the folder holds no DICOM files", where=folder, remedy="name the folder of one series")
    files = [entry for entry in sorted(folder.iterdir()) if _looks_dicom(entry) or _nameless(entry)]
    slices = [_read_slice(path) for path in files]
    series = {str(each.get("SeriesInstanceUID", "")) for each in slices}
    if len(series) > 1:
        raise InputError(
            "the folder holds several DICOM series",
            where=folder,
            why=f"{len(series)} series in {len(slices)} files",
            remedy="give each series a folder of its own",
        )
    first = slices[0]
    try:
        orientation = np.array(first.ImageOrientationPatient, dtype=np.float64)
        row_spacing, column_spacing = (float(value) for value in first.PixelSpacing)
        positions = np.array([each.ImagePositionPatient for each in slices], dtype=np.float64)
        if positions.shape != (len(slices), 3) or orientation.shape != (6,):
            raise ValueError("a position has 3 numbers, an orientation 6")
        for each in slices[1:]:
            same = (each.Rows, each.Columns) == (first.Rows, first.Columns)
            same = same and np.allclose(np.array(each.ImageOrientationPatient, dtype=float), orientation, atol=1e-4)
            if not same or not np.allclose(np.array(each.PixelSpacing, dtype=float), (row_spacing, column_spacing)):
                raise InputError(
                    "the slices of a DICOM series differ in geometry", where=each.filename, remedy="split the series"
                )
    except (AttributeError, TypeError, ValueError) as error:  # the value is missing, empty, or of another length
        raise InputError(
            "a DICOM slice does not say where it lies", where=folder, why=str(error), remedy="export the series again"
        ) from error
    normal = np.cross(orientation[:3], orientation[3:])
    depth = positions @ normal
    order = np.argsort(depth)
    step = _slice_step(depth[order], first, folder)
    array = np.stack([_pixels(slices[index]) for index in order], -1)
    # Rows of the pixel array run along the second direction cosine, columns along the first.
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * column_spacing
    affine[:3, 1] = orientation[3:] * row_spacing
    affine[:3, 2] = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1) if len(order) > 1 else normal * step
    affine[:3, 3] = positions[order[0]]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM is LPS, NIfTI is RAS
    return np.ascontiguousarray(array.transpose(1, 0, 2)), affine, {"patient": str(first.get("PatientID", ""))}


def _nameless(path: Path) -> bool:
    """Whether a visible file has no ending, or only a number, as scanners name slices."""
    return _visible(path) and not path.suffix.lstrip(".").strip("0123456789")


def _visible(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name != "DICOMDIR"


def _looks_dicom(path: Path) -> bool:
    if not _visible(path):
        return False
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read_slice(path: Path) -> Any:
    import pydicom

    try:
        data = pydicom.dcmread(path)
        data.pixel_array  # noqa: B018 - decoding shows a broken file now
    except Exception as error:  # truncated and foreign files fail in many ways inside the reader
        raise InputError(
            "a DICOM slice cannot be read",
            where=path,
            why=" ".join(str(error).split())[:200] or type(error).__name__,
            remedy="export the series again, or move the file away if it is no image",
        ) from error
    if int(data.get("NumberOfFrames", 1)) > 1 or data.pixel_array.ndim != 2:
        raise InputError(
            "a DICOM file holds several frames or colours",
            where=path,
            remedy="convert it to NIfTI first, for instance with dcm2niix",
        )
    return data


def _pixels(data: Any) -> np.ndarray:
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    return data.pixel_array.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _slice_step(depth: np.ndarray, first: Any, folder: Path) -> float:
    if len(depth) == 1:
        return float(first.get("SliceThickness", 1) or 1)
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
    if steps.max() - steps.min() > 0.1 * usual:
        raise InputError(
            "the slices of a DICOM series are not evenly spaced",
            where=folder,
            why=f"steps from {steps.min():.3f} to {steps.max():.3f} mm",
            remedy="resample the series to even slices first",
        )
    return usual
