"""Heads that give the parameters of a distribution over embeddings, always in float32."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from contrastive_core.losses.sparse import non_negative

_ZETA = (
    1.644934066848226,
    1.202056903159594,
    1.082323233711138,
    1.036927755143370,
    1.017343061984449,
    1.008349277381923,
)
"""Riemann's zeta function at 2, 3, ..., 7."""

_SERIES = 0.05
"""Where one over the shape is smaller, seven terms are exact to rounding."""

MeanActivation = Literal["softplus", "rep_relu"]


class GaussianParameters(NamedTuple):
    """Independent normal distributions.

    Attributes:
        loc: Means ``[b k]``.
        log_var: Logarithms of the variances ``[b k]``.
    """

    loc: Float[Tensor, "b k"]
    log_var: Float[Tensor, "b k"]


class WeibullParameters(NamedTuple):
    """Independent Weibull distributions.

    Attributes:
        shape: Shapes k ``[b k]``.
        scale: Scales λ ``[b k]``, positive.
    """

    shape: Float[Tensor, "b k"]
    scale: Float[Tensor, "b k"]


class GaussianHead(nn.Module):
    """Two linear maps to the means and the log-variances.

    Args:
        in_features: Width of the input.
        factors: Dimensions K of the embedding.
        log_var_bias: Initial bias of the log-variance.
        log_var_range: The log-variance is clamped to this range.
        gain: Factor on the initial weights of both maps; 0.1 keeps un-normalised losses from blowing up early.

    Raises:
        ValueError: An empty range of the log-variance.
    """

    def __init__(
        self,
        in_features: int,
        factors: int,
        *,
        log_var_bias: float = -3.0,
        log_var_range: tuple[float, float] = (-8.0, 4.0),
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        if log_var_range[0] >= log_var_range[1]:
            raise ValueError(f"an empty range of the log-variance: {log_var_range}")
        self.log_var_range = log_var_range
        self.loc = _linear(in_features, factors, gain)
        self.log_var = _linear(in_features, factors, gain, bias=log_var_bias)

    def forward(self, x: Float[Tensor, "b d"]) -> GaussianParameters:
        """Parameters of each row's distribution."""
        with torch.autocast(x.device.type, enabled=False):
            x = _wide(x)
            return GaussianParameters(self.loc(x), self.log_var(x).clamp(*self.log_var_range))


class WeibullHead(nn.Module):
    """Two linear maps to the mean m and the shape k; the scale is ``λ = m / Γ(1 + 1/k)``.

    ``m = softplus(a)`` and ``k = k_min + softplus(b)``, so the mean does not move when the shape learns. From k = 1 on
    the density is bounded at 0 and pathwise gradients are finite.

    Args:
        in_features: Width of the input.
        factors: Dimensions K of the embedding.
        shape_min: Smallest shape; at least 0.3, below which Γ(1 + 1/k) overwhelms float32.
        shape_max: Largest shape.
        shape_bias: Initial bias b of the shape.
        mean_min: Smallest mean, positive.
        mean_activation: ``softplus``, or ``rep_relu`` (forward ReLU, backward GELU) for codes that reach ``mean_min``.
        gain: Factor on the initial weights of both maps.

    Raises:
        ValueError: Shapes or means out of range.
    """

    def __init__(
        self,
        in_features: int,
        factors: int,
        *,
        shape_min: float = 1.0,
        shape_max: float = 100.0,
        shape_bias: float = 2.0,
        mean_min: float = 1e-6,
        mean_activation: MeanActivation = "softplus",
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0.3 <= shape_min < shape_max or mean_min <= 0:
            raise ValueError(
                f"needs 0.3 <= shape_min < shape_max and mean_min > 0, got {shape_min}, {shape_max}, {mean_min}"
            )
        if mean_activation not in ("softplus", "rep_relu"):
            raise ValueError(f"mean_activation is softplus or rep_relu, got {mean_activation!r}")
        self.shape_min, self.shape_max, self.mean_min = shape_min, shape_max, mean_min
        self.mean_activation: MeanActivation = mean_activation
        self.mean = _linear(in_features, factors, gain)
        self.shape = _linear(in_features, factors, gain, bias=shape_bias)

    def forward(self, x: Float[Tensor, "b d"]) -> WeibullParameters:
        """Parameters of each row's distribution."""
        with torch.autocast(x.device.type, enabled=False):
            x = _wide(x)
            # Adding the floor to rep_relu keeps the gradient of factors that are off, which a clamp would cut.
            raw = non_negative(self.mean(x), self.mean_activation)
            mean = raw.clamp_min(self.mean_min) if self.mean_activation == "softplus" else raw + self.mean_min
            shape = (self.shape_min + F.softplus(self.shape(x))).clamp_max(self.shape_max)
            return WeibullParameters(shape, mean * torch.exp(-torch.lgamma(1 + 1 / shape)))


def weibull_variance(shape: Float[Tensor, "*s"], scale: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``λ² [Γ(1 + 2/k) − Γ(1 + 1/k)²]``, element by element, without cancellation however large the shape.

    With ``x = 1/k`` it is ``λ² Γ(1 + x)² expm1(d)`` with ``d = log Γ(1 + 2x) − 2 log Γ(1 + x)``. For small x both
    logarithms are nearly linear and their difference is lost in rounding; there, from Abramowitz and Stegun's 6.1.33,
    ``d = sum_{m >= 2} (-1)^m ζ(m) (2^m − 2) x^m / m``.

    Args:
        shape: k, positive.
        scale: λ, positive.

    Example:
        >>> weibull_variance(torch.tensor([1.0, 1e6]), torch.tensor([2.0, 1.0]))  # 4, π² / 6 / k²
        tensor([4.0000e+00, 1.6449e-12])
    """
    x = 1 / shape
    small = x.clamp(max=_SERIES)
    series = torch.zeros_like(x)
    for m in range(len(_ZETA) + 1, 1, -1):
        series = (series + (-1) ** m * _ZETA[m - 2] * (2**m - 2) / m) * small
    direct = torch.lgamma(1 + 2 * x) - 2 * torch.lgamma(1 + x)
    difference = torch.where(x < _SERIES, series * small, direct)
    return (scale * torch.lgamma(1 + x).exp()).square() * torch.expm1(difference)


def _linear(in_features: int, out_features: int, gain: float, bias: float | None = None) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    with torch.no_grad():
        layer.weight.mul_(gain)
        if bias is not None:
            layer.bias.fill_(bias)
    return layer


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
