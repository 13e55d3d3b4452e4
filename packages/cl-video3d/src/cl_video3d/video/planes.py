"""Decoded frames as planes of 8 bits and limited range: converted by their declared range and rounded, never dithered.

Clips are planar 4:2:0 as rows ``[Y; U; V]``, ``rows = 3 h / 2``: what an encoder takes.
"""

import re
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

_FULL_RANGE = 2
_PLANAR = re.compile(r"yuv[aj]?(420|422|444|440)p(\d*)(le)?|gray(\d*)(le)?")


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Even width and height whose smaller one is ``short_side``; the largest even sizes within the frame for 0."""
    if short_side == 0:
        return width // 2 * 2, height // 2 * 2
    factor = short_side / min(width, height)
    return max(2, 2 * round(width * factor / 2)), max(2, 2 * round(height * factor / 2))


def planes_of(frame: Any, short_side: int = 0) -> list[UInt8[np.ndarray, "_ _"]]:
    """Y, U and V of a decoded frame in limited range, of even size, as it is stored.

    Args:
        frame: Of PyAV.
        short_side: Resize to this short side by area averaging; 0 for none.
    """
    full = int(frame.color_range or 0) == _FULL_RANGE or frame.format.name.startswith("yuvj")
    if not _PLANAR.fullmatch(frame.format.name):  # packed, semi-planar, RGB: to planes that lose nothing
        full = full and not frame.format.is_rgb
        ranges = {"dst_color_range": "MPEG"} if frame.format.is_rgb else {}
        frame = frame.reformat(format="yuv444p16le", **ranges)
    if short_side:
        width, height = scaled_size(frame.width, frame.height, short_side)
        if (width, height) != (frame.width, frame.height):
            frame = frame.reformat(width=width, height=height, interpolation="AREA")
    depth = next(iter(frame.format.components)).bits
    height, width = frame.height // 2 * 2, frame.width // 2 * 2
    planes = []
    for number, plane in enumerate(list(frame.planes)[:3]):
        kind = np.dtype(np.uint8 if depth <= 8 else "<u2")
        values = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)
        values = values[: plane.height, : plane.width]
        if number:
            values = _halved(values, height // 2, width // 2)
        planes.append(_to_8_bits(values[: height // (1 + bool(number))], depth, full=full, chroma=bool(number)))
    planes[0] = planes[0][:, :width]
    grey = np.full((height // 2, width // 2), 128, dtype=np.uint8)
    return planes if len(planes) == 3 else [planes[0], grey, grey]


def _halved(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Chroma at half the size of luma each way: the mean where it is stored finer."""
    rows, columns = (1 + (have > wanted + 1) for have, wanted in zip(values.shape, (height, width), strict=True))
    if (rows, columns) == (1, 1):
        return values[:height, :width]
    part = values[: rows * height, : columns * width]
    return part.reshape(height, rows, width, columns).mean((1, 3), dtype=np.float32)


def _to_8_bits(values: np.ndarray, depth: int, *, full: bool, chroma: bool) -> np.ndarray:
    """``v / 2^(depth - 8)``, or from full range ``219 v / (2^depth - 1) + 16``, rounded half up."""
    if values.dtype == np.uint8 and not full:
        return values
    exact = values.astype(np.float32) / 2 ** (depth - 8)
    if full:
        scale = 2 ** (depth - 8) / (2**depth - 1)  # the largest value is 1
        exact = (exact - 128) * 224 * scale + 128 if chroma else exact * 219 * scale + 16
    return np.clip(np.floor(exact + 0.5), 0, 255).astype(np.uint8)


def to_rgb(frame: UInt8[np.ndarray, "rows w"]) -> UInt8[np.ndarray, "h w 3"]:
    """One planar 4:2:0 frame as RGB, by BT.601 below 720 lines and BT.709 from there on."""
    height = frame.shape[0] * 2 // 3
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="yuv420p")
    matrix = "ITU709" if height >= 720 else "ITU601"
    return picture.reformat(format="rgb24", src_colorspace=matrix, dst_colorspace="DEFAULT").to_ndarray()
