"""Views of clips: those that keep the echo, and SimCLR's, which do not."""

import dataclasses

import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError, require
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """How much of a clip a view shows.

    Attributes:
        size: Side of the crop of a view, in pixels; half the clip's if not given.
        frames: Frames of a view; half the clip's if not given.
        luma: Largest offset of brightness, in steps of 8 bits.
        reverse: Also play views backwards (changes how P and B frames predict, so off by default).
    """

    size: int | None = None
    frames: int | None = None
    luma: float = 2.0
    reverse: bool = False

    def __post_init__(self) -> None:
        require(self.size is None or 16 <= self.size <= 8192, "--views.size", self.size, "16 to 8192 pixels")
        require(self.frames is None or 4 <= self.frames <= 512, "--views.frames", self.frames, "4 to 512 frames")
        require(0 <= self.luma <= 255, "--views.luma", self.luma, "a number from 0 to 255")

    def shape(self, clip: tuple[int, int, int]) -> tuple[int, int, int]:
        """Frames, height and width of a view of a clip ``(t, h, w)``.

        Raises:
            InputError: The clip is smaller than the view.
        """
        frames = self.frames or max(4, clip[0] // 2)
        height, width = (self.size or max(16, side // 2) for side in clip[1:])
        if frames > clip[0] or height > clip[1] or width > clip[2]:
            raise InputError(
                "the clips are smaller than a view",
                where="--views.size, --views.frames",
                why=f"clips have {clip[0]} frames of {clip[2]}x{clip[1]}, views {frames} of {width}x{height}",
            )
        return frames, height, width


def echo_preserving_view(
    clips: UInt8[Tensor, "b t h w"], settings: ViewSettings, generator: torch.Generator
) -> Float[Tensor, "b t2 h2 w2"]:
    """Crops of native pixels, flips, offsets in time and a little brightness: what a codec answers to alike.

    Nothing is resized, blurred, or changed in contrast or frame rate: each of these changes the echo (half the size
    raises log2 bpp by 0.6 to 0.8).

    Args:
        clips: Luma.
        settings: Size of the views.
        generator: Draws.

    Returns:
        Luma in [0, 1].
    """
    clips = clips.cpu()  # cut where the draws are; only views travel
    clips_shape = (clips.shape[1], clips.shape[2], clips.shape[3])
    shape = settings.shape(clips_shape)
    out = torch.empty(len(clips), *shape)
    for index, clip in enumerate(clips):
        t, y, x = (_below(whole - part + 1, generator) for whole, part in zip(clips_shape, shape, strict=True))
        view = clip[t : t + shape[0], y : y + shape[1], x : x + shape[2]].float() / 255
        sides = [d for d in (1, 2) if _coin(generator)]
        if settings.reverse and _coin(generator):
            sides.append(0)
        view = view.flip(sides) if sides else view
        out[index] = view + (2 * torch.rand((), generator=generator) - 1) * settings.luma / 255
    return out.clamp_(0, 1)


def simclr_view(
    clips: UInt8[Tensor, "b t h w"], settings: ViewSettings, generator: torch.Generator
) -> Float[Tensor, "b t2 h2 w2"]:
    """Random resized crops, flips, contrast, brightness and blur, the same for all frames of a clip (SimCLR).

    Args:
        clips: Luma.
        settings: Size of the views.
        generator: Draws.

    Returns:
        Luma in [0, 1].
    """
    clips = clips.cpu()  # cut where the draws are; only views travel
    clips_shape = (clips.shape[1], clips.shape[2], clips.shape[3])
    shape = settings.shape(clips_shape)
    out = torch.empty(len(clips), *shape)
    for index, clip in enumerate(clips):
        t = _below(clips_shape[0] - shape[0] + 1, generator)
        share = float(torch.empty(()).uniform_(0.2, 1.0, generator=generator)) ** 0.5
        height, width = (max(8, round(share * side)) for side in clips_shape[1:])
        y, x = _below(clips_shape[1] - height + 1, generator), _below(clips_shape[2] - width + 1, generator)
        crop = clip[t : t + shape[0], y : y + height, x : x + width].float()[:, None] / 255
        view = F.interpolate(crop, shape[1:], mode="bilinear", align_corners=False, antialias=True)[:, 0]
        if _coin(generator):
            view = view.flip(2)
        contrast, brightness = torch.empty(2).uniform_(-0.4, 0.4, generator=generator).tolist()
        view = (view - view.mean()) * (1 + contrast) + view.mean() + brightness / 2
        if _coin(generator):
            sigma = float(torch.empty(()).uniform_(0.1, 2.0, generator=generator))
            view = _blur(view, sigma)
        out[index] = view
    return out.clamp_(0, 1)


def _blur(view: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(2.5 * sigma))
    place = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-place.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = F.pad(view[:, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, kernel[None, None, None]), kernel[None, None, :, None])[:, 0]


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _coin(generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)
