"""Backbone, head and posterior: from pixels to distributions over factors."""

import dataclasses
from typing import Any, Literal

import torch
from contrastive_core.backbones import feature_width, image_backbone
from contrastive_core.errors import InputError, require
from contrastive_core.losses import non_negative
from contrastive_core.nn import GaussianHead, WeibullHead
from jaxtyping import Float
from torch import Tensor, nn

from cl_foundations.cfa.objective import Likelihood
from cl_foundations.cfa.posterior import FactorPosterior, NormalPosterior, PointPosterior, WeibullPosterior

Method = Literal["simclr", "ncl", "cfa", "cnfa"]
Activation = Literal["relu", "rep_relu", "softplus"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network and what its embedding is.

    Attributes:
        method: ``simclr`` (deterministic), ``ncl`` (deterministic, non-negative), ``cfa`` (normal posterior), ``cnfa``
            (Weibull posterior).
        likelihood: ``infonce``, ``spectral_exact`` or ``spectral_mc``; with ``simclr`` or ``ncl`` the spectral ones are
            the plain spectral contrastive loss.
        backbone: ``tiny``, ``resnet18-cifar``, or any model of timm or torchvision by name; ``timm:`` or
            ``torchvision:`` before the name picks the library.
        image_size: Side of the network's input, in pixels.
        hidden: Width of the head's hidden layer.
        factors: Number of factors K.
        activation: What makes factors non-negative: ``relu``, ``rep_relu`` or ``softplus`` with ``ncl`` (rep_relu if
            not given), ``softplus`` or ``rep_relu`` with ``cnfa`` (softplus if not given). With rep_relu a factor that
            is off can come back; an image on which all factors are off has no direction, so that with ``ncl`` and
            infonce nothing brings it back.
        shape_min: Smallest Weibull shape, at least 0.3; below 1 codes become very sparse and samples heavy-tailed.
    """

    method: Method = "cnfa"
    likelihood: Likelihood = "infonce"
    backbone: str = "resnet18-cifar"
    image_size: int = 32
    hidden: int = 2048
    factors: int = 256
    activation: Activation | None = None
    shape_min: float = 1.0

    def __post_init__(self) -> None:
        allowed = {"ncl": ("relu", "rep_relu", "softplus"), "cnfa": ("rep_relu", "softplus")}.get(self.method, ())
        if self.activation is not None and self.activation not in allowed:
            raise InputError(
                f"the activation {self.activation} does not go with {self.method}",
                where="--activation",
                remedy=f"one of {', '.join(allowed)}" if allowed else "leave it out",
            )
        for name, low, high in (("image_size", 8, 4096), ("hidden", 1, 1 << 17), ("factors", 2, 1 << 17)):
            option, value = "--" + name.replace("_", "-"), getattr(self, name)
            require(low <= value <= high, option, value, f"a whole number from {low} to {high}")
        # Below 0.3 the moments overwhelm single precision.
        require(0.3 <= self.shape_min < 100, "--shape-min", self.shape_min, "a number in [0.3, 100)")

    @property
    def uninformative(self) -> bool:
        """Whether the variances tell nothing about single images: normal factors under a spectral likelihood."""
        return self.method == "cfa" and self.likelihood != "infonce"


class FactorModel(nn.Module):
    """Backbone and head.

    Args:
        config: What to build.
        weights: Weights of the backbone: a local file (.safetensors, or a torch file of tensors), or ``hub`` for those
            the library itself would download.

    Raises:
        InputError: The backbone is not known, does not take images of this size, or its weights cannot be read.
    """

    def __init__(self, config: ModelConfig, *, weights: str | None = None) -> None:
        super().__init__()
        self.config = config
        made = image_backbone(config.backbone, image_size=config.image_size, weights=weights)
        self.backbone = made.network
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(made.mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(made.std)[:, None, None], persistent=False)
        self.width = feature_width(self.backbone, config.image_size, config.backbone)
        self.trunk = nn.Sequential(nn.Linear(self.width, config.hidden), nn.ReLU())
        # The spectral losses are not normalised: small first outputs keep their squares from blowing up.
        gain = 1.0 if config.likelihood == "infonce" else 0.1
        self.head: nn.Module
        if config.method == "cfa":
            self.head = GaussianHead(config.hidden, config.factors, gain=gain)
        elif config.method == "cnfa":
            kind: Any = config.activation or "softplus"
            self.head = WeibullHead(
                config.hidden, config.factors, shape_min=config.shape_min, mean_activation=kind, gain=gain
            )
        else:
            self.head = nn.Linear(config.hidden, config.factors)
            with torch.no_grad():
                self.head.weight.mul_(gain)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Backbone features of images with values in [0, 1]."""
        return self.backbone((images - self.pixel_mean) / self.pixel_std)

    def posterior(self, features: Float[Tensor, "b d"]) -> FactorPosterior:
        """Distribution of the factors given backbone features, in float32."""
        hidden = self.trunk(features)
        if self.config.method == "cfa":
            return NormalPosterior(*self.head(hidden))
        if self.config.method == "cnfa":
            return WeibullPosterior(*self.head(hidden))
        z = self.head(hidden).float()
        if self.config.method == "ncl":
            z = non_negative(z, self.config.activation or "rep_relu")
        return PointPosterior(z)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> FactorPosterior:
        """Distribution of the factors given images with values in [0, 1]."""
        return self.posterior(self.features(images))
