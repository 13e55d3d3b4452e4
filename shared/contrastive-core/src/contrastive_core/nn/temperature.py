"""The temperature of a softmax loss, as a module."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Temperature(nn.Module):
    """A temperature that is fixed, learned, or follows a cosine.

    Learned temperatures are stored as ``log(1 / T)``. Call :meth:`clamp_` after each optimiser step (a bound inside
    ``forward`` would cut the gradient that leads back), and give :attr:`log_scale` no weight decay, which would pull
    T to 1.

    Args:
        value: T at the start, positive.
        kind: ``fixed``; ``learnable`` (CLIP); or ``cosine``, between ``bounds`` with a period of ``period`` calls of
            :meth:`advance`, starting at the lower bound (Kukleva et al., 2023).
        bounds: Least and largest T; CLIP's least is 0.01.
        period: Steps of one period of ``cosine``.

    Raises:
        ValueError: Unknown kind, a value outside positive bounds, or a cosine without a period.

    Example:
        >>> temperature = Temperature(0.07, kind="learnable")
        >>> round(temperature().item(), 4)
        0.07
    """

    steps: Tensor

    def __init__(
        self,
        value: float | int = 0.07,
        *,
        kind: Literal["fixed", "learnable", "cosine"] = "fixed",
        bounds: tuple[float | int, float | int] = (0.01, 1.0),
        period: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in ("fixed", "learnable", "cosine"):
            raise ValueError(f"kind is fixed, learnable or cosine, got {kind!r}")
        if not 0 < bounds[0] <= value <= bounds[1]:
            raise ValueError(f"needs 0 < {bounds[0]} <= {value} <= {bounds[1]}")
        if (kind == "cosine") != (period is not None) or (period is not None and period < 1):
            raise ValueError(f"a period belongs to cosine and is at least 1, got {kind} with {period}")
        self.kind, self.bounds, self.period = kind, bounds, period
        start = torch.tensor(math.log(1 / value))
        if kind == "learnable":
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self) -> Float[Tensor, ""]:
        """The present T."""
        if self.period is None:
            return torch.exp(-self.log_scale)
        low, high = self.bounds
        phase = math.cos(2 * math.pi * int(self.steps) / self.period)
        return self.log_scale.new_tensor(low + (high - low) * (1 - phase) / 2)

    def advance(self) -> None:
        """Count a step of the schedule."""
        self.steps += 1

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring a learned temperature back between its bounds."""
        low, high = self.bounds
        self.log_scale.clamp_(math.log(1 / high), math.log(1 / low))
