"""The four-headed V-Net of MPCL (official ``vnet_AMC``), built from MONAI's convolution block."""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

from contrastive_core.errors import InputError
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
        downsamplings: Scales below the full resolution; patches divide by 2 to this power.
        heads: Output heads, trained with different losses and averaged.
        dropout: Rate of channel dropout below the last scale and before the heads; the paper's runs use none.
    """

    width: int = 16
    downsamplings: int = 4
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1 or not 1 <= self.downsamplings <= 6:
            raise InputError(
                "the network's sizes do not make a network",
                where="--network.width, --network.downsamplings, --network.heads",
                why=f"got {self.width}, {self.downsamplings}, {self.heads}",
                remedy="use positive numbers, and 1 to 6 downsamplings",
            )
        if not 0 <= self.dropout < 1:
            raise InputError("dropout is a rate in [0, 1)", where="--network.dropout", why=f"got {self.dropout}")

    @property
    def divisor(self) -> int:
        """What every side of a patch divides by."""
        return int(2**self.downsamplings)

    @property
    def feature_width(self) -> int:
        """Channels ``d`` of the feature map that prototypes live in."""
        return int(self.width * 2 ** (self.downsamplings - 1))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NetworkConfig":
        """Rebuild from plain values.

        Raises:
            InputError: A value is missing, unknown or out of range.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError("the network's description cannot be read", why=str(error)) from error


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
        widths = [config.width * 2**scale for scale in range(config.downsamplings + 1)]
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


def load_network(state: dict[str, Tensor], config: NetworkConfig, classes: int, channels: int = 1) -> VNet:
    """A network with stored weights, in eval mode.

    Raises:
        InputError: The weights do not fit the description.
    """
    network = VNet(config, classes, channels)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError("the network's weights do not fit its description", why=str(error).splitlines()[-1]) from error
    return network.eval()
