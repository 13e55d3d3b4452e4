"""The video tower, the echo towers, and the projection the loss compares in."""

import dataclasses
from typing import Literal, get_args

import torch
from contrastive_core.errors import require
from contrastive_core.nn import mlp_head
from jaxtyping import Float
from torch import Tensor, nn

Size = Literal["small", "base"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture.

    Attributes:
        network: ``small`` (about 70,000 parameters, embeddings of 128) or ``base`` (residual (2+1)-D blocks, 512).
        projection: Width of the space the loss compares in.
    """

    network: Size = "small"
    projection: int = 64

    def __post_init__(self) -> None:
        require(self.network in get_args(Size), "--network", self.network, " or ".join(get_args(Size)))
        require(2 <= self.projection <= 8192, "--projection", self.projection, "a whole number from 2 to 8192")

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return 128 if self.network == "small" else 512


class EchoNet3D(nn.Module):
    """Luma and its change in time, through 3-D convolutions, to one vector (section 4.1).

    Args:
        size: ``small`` or ``base``.

    Example:
        >>> EchoNet3D()(torch.rand(2, 8, 48, 48)).shape
        torch.Size([2, 128])
    """

    def __init__(self, size: Size = "small") -> None:
        super().__init__()
        if size == "small":
            self.trunk = nn.Sequential(_conv(2, 16, (3, 5, 5)), _conv(16, 32, (3, 3, 3)), _conv(32, 64, (3, 3, 3)))
            self.last: nn.Module = nn.Identity()
        else:
            blocks: list[nn.Module] = [_conv(2, 64, (3, 7, 7))]
            for narrow, wide in ((64, 128), (128, 256), (256, 512)):
                blocks += [_Residual(narrow, wide, 2), _Residual(wide, wide, 1)]
            self.trunk = nn.Sequential(*blocks)
            self.last = nn.Linear(1024, 512)

    def forward(self, y: Float[Tensor, "b t h w"]) -> Float[Tensor, "b d"]:
        """Embed luma in [0, 1]; global mean and maximum, so any size will do."""
        change = torch.zeros_like(y)
        change[:, 1:] = 4 * (y[:, 1:] - y[:, :-1])
        features = self.trunk(torch.stack([y - 0.5, change], 1)).flatten(2)
        return self.last(torch.cat([features.mean(2), features.amax(2)], 1))


class EchoTower(nn.Module):
    """Standardised echo vectors ``[b e]`` to the space of the loss (``stats``)."""

    def __init__(self, echo: int, projection: int) -> None:
        super().__init__()
        self.layers = mlp_head([echo, 64, projection], hidden_norm="none")

    def forward(self, echo: Float[Tensor, "b e"]) -> Float[Tensor, "b d"]:
        """Embed echoes."""
        return self.layers(echo)


class ResidualTower(nn.Module):
    """Maps of what each operating point lost ``[b c t h w]`` to the space of the loss (``residual``)."""

    def __init__(self, points: int, projection: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(_conv(points, 16, (3, 5, 5)), _conv(16, 32, (3, 3, 3)), _conv(32, 64, (3, 3, 3)))
        self.last = nn.Linear(128, projection)

    def forward(self, maps: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d"]:
        """Embed maps of ``log(1 + |error|)``."""
        features = self.trunk(maps).flatten(2)
        return self.last(torch.cat([features.mean(2), features.amax(2)], 1))


class EchoModel(nn.Module):
    """Video tower and projection; the latter is left behind after training.

    Args:
        config: Architecture.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EchoNet3D(config.network)
        self.projection = mlp_head([config.dim, 128, config.projection], hidden_norm="none")

    def forward(self, y: Float[Tensor, "b t h w"]) -> Float[Tensor, "b p"]:
        """What the loss sees."""
        return self.projection(self.encoder(y))


def _conv(narrow: int, wide: int, kernel: tuple[int, int, int]) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(
        nn.Conv3d(narrow, wide, kernel, stride=2, padding=padding, bias=False), nn.BatchNorm3d(wide), nn.ReLU(True)
    )


class _Residual(nn.Module):
    """Two (2+1)-D convolutions around which the input is carried (Tran et al., 2018)."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_factored(narrow, wide, stride), nn.ReLU(True), *_factored(wide, wide, 1))
        self.carry: nn.Module = nn.Identity()
        if stride != 1 or narrow != wide:
            self.carry = nn.Sequential(nn.Conv3d(narrow, wide, 1, stride=stride, bias=False), nn.BatchNorm3d(wide))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.carry(x))


def _factored(narrow: int, wide: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv3d(narrow, wide, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(wide),
        nn.ReLU(True),
        nn.Conv3d(wide, wide, (3, 1, 1), stride=(stride, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(wide),
    ]
