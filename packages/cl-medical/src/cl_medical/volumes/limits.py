"""How large a volume may be: a header that lies, or a file made to fill the memory, is refused before reading."""

import math
from collections.abc import Sequence
from pathlib import Path

from contrastive_core.errors import InputError

_MOST_VOXELS = 2**30
_DEFLATE = 1100
"""No file of a byte unpacks to more by deflate (1032), with room for headers."""


def check_size(shape: Sequence[int], itemsize: int, stored: int, path: Path) -> None:
    """Refuse sizes that the file's length cannot hold, or that no scanner makes.

    Args:
        shape: Sides that the header says.
        itemsize: Bytes of a value.
        stored: Bytes that the values take on disk.
        path: The file.

    Raises:
        InputError: More than 2^30 voxels, or more than the bytes on disk can unpack to.
    """
    if any(side < 1 for side in shape):
        raise InputError("a volume is empty", where=path, why=f"its shape is {tuple(shape)}")
    voxels = math.prod(int(side) for side in shape)
    if voxels > _MOST_VOXELS:
        raise InputError(
            "a volume is larger than any we read",
            where=path,
            why=f"{voxels:,} voxels, {_MOST_VOXELS:,} at most",
            remedy="crop or resample it",
        )
    if voxels * itemsize > _DEFLATE * stored + 4096:
        raise InputError(
            "a file is too short for the volume its header announces",
            where=path,
            why=f"{voxels:,} voxels in {stored:,} bytes",
            remedy="copy it again",
        )
