"""The augmentation of pre-training: crop a window, stretch it back to the full length."""

import torch
from jaxtyping import Float
from torch import Tensor


class RandomCropResize:
    """Crop a random share of the series away and resize the rest to the old length, linearly.

    Args:
        rate: Range of the share that is dropped, within [0, 1).
        per_sample: Draw share and start for every series. By default one draw serves the whole batch, as in the
            released training code.
    """

    def __init__(self, rate: tuple[float, float] = (0.0, 0.2), *, per_sample: bool = False) -> None:
        low, high = rate
        if not 0 <= low <= high < 1:
            raise ValueError(f"the crop rate is a range within [0, 1), got {rate}")
        self.rate = rate
        self.per_sample = per_sample

    def __call__(self, x: Float[Tensor, "b c t"], generator: torch.Generator) -> Float[Tensor, "b c t"]:
        """A randomly cropped copy.

        Args:
            x: Series.
            generator: Source of the draws, on the CPU.
        """
        batch, channels, length = x.shape
        draw = torch.rand(2, batch if self.per_sample else 1, generator=generator, dtype=torch.float64)
        low, high = self.rate
        window = (length * (1 - low - (high - low) * draw[0])).long().clamp(min=2)
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
