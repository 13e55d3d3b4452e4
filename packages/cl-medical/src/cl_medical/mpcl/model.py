"""The four-headed V-Net of MPCL (official ``vnet_AMC``), built from MONAI's convolution block."""

import dataclasses
import itertools
import math
from typing import NamedTuple

from contrastive_core.errors import require
from jaxtyping import Float
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

_CONVOLUTIONS = (1, 2, 3, 3, 3)
"""Convolutions of each scale, from the full resolution down; deeper scales have the last number."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Architecture of the segmenter.

    Attributes:
        width: Channels at full resolution; every scale below has twice as many.
        downsamplings: Scales below the full resolution; patches divide by 2 to this power. If absent, as many as the
            training patch bears; 4 as published where there is none.
        heads: Output heads, trained with different losses and averaged.
        dropout: Rate of channel dropout below the last scale and before the heads; the paper's runs use none.
    """

    width: int = 16
    downsamplings: int | None = None
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(1 <= self.width <= 1024, "--network.width", self.width, "1 to 1024 channels")
        require(1 <= self.depth <= 6, "--network.downsamplings", self.depth, "1 to 6")
        require(1 <= self.heads <= 64, "--network.heads", self.heads, "1 to 64")
        require(0 <= self.dropout < 1, "--network.dropout", self.dropout, "a rate in [0, 1)")

    @property
    def depth(self) -> int:
        """Downsamplings."""
        return 4 if self.downsamplings is None else self.downsamplings

    @property
    def divisor(self) -> int:
        """What every side of a patch divides by."""
        return int(2**self.depth)

    @property
    def feature_width(self) -> int:
        """Channels ``d`` of the feature map that prototypes live in."""
        return int(self.width * 2 ** (self.depth - 1))


class Output(NamedTuple):
    """What the network returns.

    Attributes:
        heads: Logits of every head, ``[h b c x y z]``.
        features: Feature map of the first decoder scale (``x6``), ``[b d x' y' z']``, not negative.
    """

    heads: Float[Tensor, "h b c x y z"]
    features: Float[Tensor, "b d u v w"]

    @property
    def logits(self) -> Float[Tensor, "b c x y z"]:
        """Mean of the heads' logits: the prediction of teacher and test time."""
        return self.heads.mean(0)


class VNet(nn.Module):
    """V-Net with instance normalisation, additive skips and several heads.

    Args:
        config: Sizes.
        classes: Classes C, background included.
        channels: Input channels.

    Example:
        >>> network = VNet(NetworkConfig(), classes=2)
        >>> sum(parameter.numel() for parameter in network.parameters())
        9464152
    """

    def __init__(self, config: NetworkConfig, classes: int, channels: int = 1) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        widths = [config.width * 2**scale for scale in range(config.depth + 1)]
        counts = [_CONVOLUTIONS[min(scale, len(_CONVOLUTIONS) - 1)] for scale in range(len(widths))]
        inputs = [channels, *widths[1:]]
        self.encoder = nn.ModuleList(_stage(inputs[i], widths[i], counts[i]) for i in range(len(widths)))
        self.down = nn.ModuleList(_resample(a, b) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(_resample(b, a, up=True) for a, b in itertools.pairwise(widths))
        # The full resolution has no decoder convolutions of its own: the heads follow the last skip.
        self.decoder = nn.ModuleList(_stage(widths[i], widths[i], counts[i]) for i in range(1, len(widths) - 1))
        self.dropout = nn.Dropout3d(config.dropout)
        # All heads read the same map, so their first convolutions are one, and their last a grouped one.
        self.head = _block(config.width, config.width * config.heads)
        self.classifier = nn.Conv3d(config.width * config.heads, classes * config.heads, 1, groups=config.heads)

    def forward(self, x: Float[Tensor, "b i x y z"]) -> Output:
        """Logits of all heads, and the prototypes' feature map.

        Args:
            x: Scaled intensities.

        Raises:
            ValueError: A side does not divide by ``config.divisor``, or one voxel would be left at the last scale.
        """
        divisor = self.config.divisor
        sides = x.shape[2:]
        if any(side < divisor or side % divisor for side in sides) or math.prod(sides) == divisor**3:
            raise ValueError(f"sides must be multiples of {divisor}, at least one above it, got {tuple(sides)}")
        skips = []
        for index, stage in enumerate(self.encoder):
            x = stage(x if index == 0 else self.down[index - 1](x))
            skips.append(x)
        x = self.dropout(skips.pop())
        features = x
        for index in range(len(self.up) - 1, -1, -1):
            x = self.up[index](x) + skips.pop()
            if index > 0:
                x = self.decoder[index - 1](x)
            if index == len(self.up) - 1:
                features = x
        logits = self.classifier(self.head(self.dropout(x)))
        heads = logits.unflatten(1, (self.config.heads, self.classes)).transpose(0, 1)
        return Output(heads, features)


def _block(inputs: int, outputs: int) -> nn.Module:
    return Convolution(3, inputs, outputs, kernel_size=3, adn_ordering="NA", act="RELU", norm=_NORM)


def _stage(inputs: int, outputs: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_block(inputs if index == 0 else outputs, outputs) for index in range(count)))


def _resample(inputs: int, outputs: int, *, up: bool = False) -> nn.Module:
    return Convolution(
        3,
        inputs,
        outputs,
        strides=2,
        kernel_size=2,
        padding=0,
        output_padding=0 if up else None,
        is_transposed=up,
        adn_ordering="NA",
        act="RELU",
        norm=_NORM,
    )


_NORM = ("INSTANCE", {"affine": False})
