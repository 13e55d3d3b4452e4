"""The augmentation of pre-training: crop a window, stretch it back to the full length."""

import dataclasses

import torch
from contrastive_core.errors import require
from jaxtyping import Float
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """How the two views of a series are drawn.

    Attributes:
        crop: Largest share of a series that a crop drops, in [0, 1).
        per_sample: Draw a crop for every series instead of one for the whole batch.
    """

    crop: float = 0.2
    per_sample: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.crop < 1, "--views.crop", self.crop, "a share in [0, 1)")


def random_crop_resize(
    x: Float[Tensor, "b c t"], settings: ViewSettings, generator: torch.Generator
) -> Float[Tensor, "b c t"]:
    """Crop a random share of the series away and resize the rest to the old length, linearly.

    By default one draw serves the whole batch, as in the released training code.

    Args:
        x: Series.
        settings: Share and kind of draw.
        generator: Source of the draws, on the CPU.
    """
    batch, channels, length = x.shape
    draw = torch.rand(2, batch if settings.per_sample else 1, generator=generator, dtype=torch.float64)
    window = (length * (1 - settings.crop * draw[0])).long().clamp(min=2)
    start = (draw[1] * (length - window + 1)).long()
    # Sample centres of the resized series within the window, as in interpolation without aligned corners.
    centres = (torch.arange(length) + 0.5) * (window[:, None] / length) - 0.5
    centres = centres.clamp(min=0)
    lower = centres.long()
    share = (centres - lower).to(x)[:, None]
    upper = torch.minimum(lower + 1, window[:, None] - 1)

    def at(index: Tensor) -> Tensor:
        index = (index + start[:, None]).to(x.device)[:, None].expand(batch, channels, length)
        return x.gather(2, index)

    return torch.lerp(at(lower), at(upper), share)
