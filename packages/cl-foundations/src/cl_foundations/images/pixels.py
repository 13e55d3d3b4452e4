"""Image files as square pictures of 8 bits a channel, with the values their files declare."""

import io
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.files import reading
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

REMEDY = "restore or remove the file, or leave such files out with --on-corrupt skip"
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Of all that Pillow opens; it would start a PostScript interpreter for some of the others."""
_BITS, _MEANING_OF_ZERO = 258, 262  # tags of TIFF: bits a sample; whether 0 is white


class Decoded(NamedTuple):
    """A decoded image file.

    Attributes:
        image: Its first frame.
        several: Whether it has more frames.
    """

    image: Image.Image
    several: bool


def read_image(data: bytes, where: object) -> Decoded:
    """Decode the bytes of an image file.

    Returns:
        An upright RGB image of 8 bits a channel. Grey is repeated, transparency laid over white; 16 bits (or as many as
        a TIFF declares) are scaled to 8, not cut off.

    Raises:
        InputError: The bytes are no whole image, hold more pixels than an image has, or values of no declared range.
    """
    with reading(where, "an image cannot be read", REMEDY), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            opened = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError as error:  # Pillow's own words name the address of a buffer
            raise InputError(
                "an image cannot be read", where=where, why="it is in no image format that is known", remedy=REMEDY
            ) from error
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            image = _eight_bits(image, getattr(opened, "tag_v2", {}), where)
        return Decoded(as_rgb(image, where), _several(opened))


def check_header(data: bytes, where: object) -> bool:
    """Look whether bytes begin like an image and are whole, without decoding them.

    Returns:
        Whether it has several frames.

    Raises:
        InputError: They do not.
    """
    with reading(where, "an image cannot be read", REMEDY):
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
        several = _several(opened)
        opened.verify()
        return several


def as_rgb(image: Image.Image, where: object) -> Image.Image:
    """An image of 8 bits a channel as RGB; transparency is laid over white.

    Raises:
        InputError: Floating-point values.
    """
    if image.mode == "F":
        raise InputError(
            "an image holds floating-point values of no defined range",
            where=where,
            remedy="save it with 8 or 16 bits a channel",
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def square(image: Image.Image, side: int) -> UInt8[Tensor, "3 side side"]:
    """An RGB image resized by its shorter side, its centre kept."""
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def decode(data: bytes, side: int, where: object) -> UInt8[Tensor, "3 side side"]:
    """Bytes of an image file as RGB pixels of one size; errors as :func:`read_image`."""
    return square(read_image(data, where).image, side)


def _several(opened: Image.Image) -> bool:
    # Photographs in the format MPO hold a preview beside the picture.
    return opened.format != "MPO" and bool(getattr(opened, "is_animated", False))


def _eight_bits(image: Image.Image, tags: Any, where: object) -> Image.Image:
    """Grey of up to 16 bits, scaled by the range its file declares; Pillow itself would cut it off at 255."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    declared = int(np.ravel(tags.get(_BITS, 16))[0])
    top = 2**declared - 1 if declared < 16 else 65535
    if not 0 <= low <= high <= top:
        raise InputError("an image holds values outside 16 bits", where=where, why=f"from {low} to {high}")
    if declared > 16 and 0 < high <= 255:
        raise InputError(
            "an image holds values of no declared range",
            where=where,
            why=f"32 bits a pixel, none above {high}: they may be meant as 8 or as 16 bits",
            remedy="save it with 8 or 16 bits a pixel",
        )
    grey = ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    return Image.fromarray(255 - grey if tags.get(_MEANING_OF_ZERO) == 0 else grey)
