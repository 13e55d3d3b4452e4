"""Two random views of every image of a batch, drawn and computed for the whole batch at once."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from contrastive_core.errors import require
from jaxtyping import Float, UInt8
from torch import Tensor

# Rows: luma and the two colour differences of YIQ. A rotation in their plane shifts the hue.
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """Augmentation, with the values of SimCLR on CIFAR.

    Attributes:
        crop_min: Smallest share of the area a random crop keeps, in (0, 1].
        flip: Probability of a horizontal flip; 0 where left and right differ in meaning, as in digits.
        jitter: Strength of the changes of brightness, contrast and saturation, in [0, 1].
        hue: Largest shift of the hue, in turns, in [0, 0.5].
        jitter_share: Probability that colours are changed.
        gray: Probability of a conversion to grey.
        blur: Probability of a Gaussian blur.
    """

    crop_min: float = 0.08
    flip: float = 0.5
    jitter: float = 0.8
    hue: float = 0.2
    jitter_share: float = 0.8
    gray: float = 0.2
    blur: float = 0.5

    def __post_init__(self) -> None:
        limits = {"crop_min": (1e-3, 1), "hue": (0, 0.5)}
        for field in dataclasses.fields(self):
            (low, high), value = limits.get(field.name, (0, 1)), getattr(self, field.name)
            option = "--views." + field.name.replace("_", "-")
            require(low <= value <= high, option, value, f"a number from {low} to {high}")


def two_views(
    images: UInt8[Tensor, "b 3 h w"], side: int, settings: ViewSettings, generator: torch.Generator
) -> Float[Tensor, "b2 3 side side"]:
    """Two independent views of every image, the first ones above the second ones; arguments as :func:`random_view`."""
    return torch.cat([random_view(images, side, settings, generator) for _ in range(2)])


def random_view(
    images: UInt8[Tensor, "b 3 h w"], side: int, settings: ViewSettings, generator: torch.Generator
) -> Float[Tensor, "b 3 side side"]:
    """One augmented view of every image.

    Random resized crop and flip, colour jitter, grey, blur. The hue is turned in YIQ space, so that all changes of
    colour of an image are one 3 × 3 matrix; the order is contrast, brightness, colour.

    Args:
        images: The images.
        side: Side of the views.
        settings: Strengths and probabilities.
        generator: Source of all draws, on the CPU.

    Returns:
        Views with values in [0, 1].
    """
    x = images.float() / 255
    count = len(x)
    x = _crop(x, side, settings, generator)

    def chance(probability: float) -> Tensor:
        return (torch.rand(count, generator=generator) < probability).float()

    def factor(strength: float) -> Tensor:
        return 1 + strength * (2 * torch.rand(count, generator=generator) - 1)

    change = chance(settings.jitter_share)
    brightness, contrast, saturation = (factor(settings.jitter) ** change for _ in range(3))
    turn = 2 * math.pi * settings.hue * (2 * torch.rand(count, generator=generator) - 1) * change
    saturation = saturation * (1 - chance(settings.gray))
    matrix = brightness[:, None, None] * _colour_matrix(turn, saturation)
    contrast = contrast.to(x.device)[:, None, None, None]
    centre = x.mean((1, 2, 3), keepdim=True)
    x = contrast * x + (1 - contrast) * centre
    x = torch.einsum("bij,bjhw->bihw", matrix.to(x.device), x).clamp(0, 1)
    sigma = 0.1 + 1.9 * torch.rand(count, generator=generator)
    radius = max(1, round(0.05 * side))
    return gaussian_blur(x, sigma * chance(settings.blur), radius)


def gaussian_blur(
    images: Float[Tensor, "b 3 h w"], sigma: Float[Tensor, " b"], radius: int
) -> Float[Tensor, "b 3 h w"]:
    """Blur every image with a width of its own; a width of 0 leaves it as it is.

    Args:
        images: The images.
        sigma: Standard deviation in pixels.
        radius: Pixels on each side that are taken into account, less than the image's sides.
    """
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    width = sigma.to(images)[:, None].clamp_min(1e-3)
    weights = torch.exp(-0.5 * (offsets / width).square())
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None, None]
    _, _, h, w = images.shape
    padded = F.pad(images, (0, 0, radius, radius), mode="reflect")
    images = sum((weights[:, i] * padded[:, :, i : i + h] for i in range(2 * radius + 1)), torch.zeros_like(images))
    padded = F.pad(images, (radius, radius, 0, 0), mode="reflect")
    return sum((weights[:, i] * padded[..., i : i + w] for i in range(2 * radius + 1)), torch.zeros_like(images))


def _crop(x: Tensor, side: int, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Random resized crop with aspect ratios 3/4 to 4/3, and flip, in one resampling."""
    count = len(x)
    area = settings.crop_min + (1 - settings.crop_min) * torch.rand(count, generator=generator)
    ratio = torch.exp(math.log(4 / 3) * (2 * torch.rand(count, generator=generator) - 1))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    shift = 2 * torch.rand(2, count, generator=generator) - 1
    flip = torch.where(torch.rand(count, generator=generator) < settings.flip, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2], theta[:, 1, 2] = shift[0] * (1 - width), shift[1] * (1 - height)
    grid = F.affine_grid(theta.to(x.device), [count, 3, side, side], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _colour_matrix(turn: Tensor, saturation: Tensor) -> Tensor:
    forward = torch.tensor(_YIQ)
    rotation = torch.zeros(len(turn), 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = turn.cos() * saturation
    rotation[:, 2, 1] = turn.sin() * saturation
    rotation[:, 1, 2] = -rotation[:, 2, 1]
    return torch.linalg.inv(forward) @ rotation @ forward
