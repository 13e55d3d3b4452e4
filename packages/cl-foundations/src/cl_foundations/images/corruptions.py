"""Corruptions of images in five severities, after CIFAR-10-C (Hendrycks & Dietterich, 2019)."""

import io
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cl_foundations.images.views import gaussian_blur

Corruption = Literal["noise", "blur", "contrast", "pixelate", "jpeg"]
CORRUPTIONS: tuple[Corruption, ...] = ("noise", "blur", "contrast", "pixelate", "jpeg")
SEVERITIES = (1, 2, 3, 4, 5)

_NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)
_BLUR = (0.4, 0.7, 1.0, 1.4, 2.0)  # pixels of a 32-pixel image
_CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.2)
_PIXELATE = (24, 20, 16, 12, 10)  # of 32
_JPEG = (80, 65, 58, 50, 40)


def corrupt(
    images: Float[Tensor, "b 3 h w"], kind: Corruption, severity: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "b 3 h w"]:
    """Corrupt images.

    Args:
        images: Values in [0, 1].
        kind: ``noise`` adds Gaussian noise, ``blur`` is Gaussian and scales with the image, ``contrast`` draws towards
            the image's mean, ``pixelate`` averages blocks, ``jpeg`` compresses.
        severity: 1 to 5.
        generator: Source of the noise.

    Returns:
        Corrupted copies with values in [0, 1].

    Raises:
        ValueError: Unknown kind or severity.

    Example:
        >>> grey = torch.linspace(0, 1, 4).expand(1, 3, 4, 4)
        >>> corrupt(grey, "contrast", 2)[0, 0, 0]
        tensor([0.2500, 0.4167, 0.5833, 0.7500])
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severities are 1 to 5, got {severity}")
    level, side = severity - 1, min(images.shape[-2:])
    if kind == "noise":
        noise = torch.randn(images.shape, generator=generator).to(images)
        return (images + _NOISE[level] * noise).clamp(0, 1)
    if kind == "blur":
        sigma = _BLUR[level] * side / 32
        radius = min(side - 1, max(1, round(3 * sigma)))
        return gaussian_blur(images, torch.full((len(images),), sigma), radius).clamp(0, 1)
    if kind == "contrast":
        centre = images.mean((1, 2, 3), keepdim=True)
        return centre + _CONTRAST[level] * (images - centre)
    if kind == "pixelate":
        size = [max(1, round(_PIXELATE[level] / 32 * length)) for length in images.shape[-2:]]
        return F.interpolate(F.interpolate(images, size=size, mode="area"), size=images.shape[-2:], mode="nearest")
    if kind == "jpeg":
        return torch.stack([_jpeg(image, _JPEG[level]) for image in images]).to(images)
    raise ValueError(f"expected one of {', '.join(CORRUPTIONS)}, got {kind}")


def corruption(kind: Corruption, severity: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """:func:`corrupt` with kind and severity remembered, for batches and a generator each."""

    def change(images: Tensor, generator: torch.Generator) -> Tensor:
        return corrupt(images, kind, severity, generator=generator)

    return change


def uniform_noise(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Images that show nothing, of the same shape: every value uniform in [0, 1]."""
    return torch.rand(images.shape, generator=generator).to(images)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    buffer = io.BytesIO()
    to_pil_image((image.cpu() * 255).round().byte()).save(buffer, "JPEG", quality=quality)
    return pil_to_tensor(Image.open(buffer)).float() / 255
