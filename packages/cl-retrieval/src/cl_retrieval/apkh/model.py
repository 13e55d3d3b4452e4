"""Attribute kernels, their statistics, and the hash head behind them."""

import dataclasses
from typing import Literal

import torch
from contrastive_core.index.interface import Modality
from jaxtyping import Float
from torch import Tensor, nn

from cl_retrieval.apkh.objective import attribute_kernel
from cl_retrieval.hashing.heads import HashFunction


@dataclasses.dataclass(frozen=True)
class APKHConfig:
    """Architecture.

    Attributes:
        bits: Bits of a code.
        hidden: Width of the hidden layer of the hash head; 0 for a linear head, classical kernel hashing.
        dropout: Dropout after the hidden layer.
        shared: One head for both modalities, or one each.
        inputs: What is hashed: ``kernels``, the ``raw`` features instead, or ``both`` side by side.
        normalise_kernel: Kernel activations of a row sum to one.
        standardise: Subtract each modality's mean activations and divide by their mean deviation.
    """

    bits: int = 32
    hidden: int = 1024
    dropout: float = 0.0
    shared: bool = True
    inputs: Literal["kernels", "raw", "both"] = "kernels"
    normalise_kernel: bool = True
    standardise: bool = True


class APKH(nn.Module):
    """``h = head((phi(f) - mean) / scale)``; encoding needs no text tower, the centres are part of the model.

    Args:
        centres: Kernel centres T, unit rows ``[m d]``.
        config: Architecture.
        variance: ``sigma^2`` of the kernels.
    """

    centres: Tensor
    log_variance: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, centres: Float[Tensor, "m d"], config: APKHConfig, *, variance: float = 0.05) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("centres", centres.clone())
        self.log_variance = nn.Parameter(torch.tensor(variance).log(), requires_grad=False)
        width = {"kernels": len(centres), "raw": centres.shape[1], "both": sum(centres.shape)}[config.inputs]
        self.register_buffer("mean", torch.zeros(2, width))
        self.register_buffer("scale", torch.ones(2))
        names = ("shared",) if config.shared else ("image", "text")
        self.heads = nn.ModuleDict(
            {name: HashFunction(width, config.bits, hidden=config.hidden, dropout=config.dropout) for name in names}
        )

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.centres.shape[1]

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.config.bits

    @property
    def variance(self) -> Float[Tensor, ""]:
        """``sigma^2``."""
        return self.log_variance.exp()

    def kernel(
        self, features: Float[Tensor, "n d"], centres: Float[Tensor, "m d"] | None = None
    ) -> Float[Tensor, "n m"]:
        """Activations phi of the attributes, at other centres than the model's where they are given."""
        at = self.centres if centres is None else centres
        return attribute_kernel(features, at, self.variance, normalise=self.config.normalise_kernel)

    def inputs(self, features: Float[Tensor, "n d"], phi: Float[Tensor, "n m"]) -> Float[Tensor, "n w"]:
        """What is standardised and hashed."""
        parts = {"kernels": [phi], "raw": [features], "both": [phi, features]}[self.config.inputs]
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def fit_statistics(
        self, fx: Float[Tensor, "n d"], fy: Float[Tensor, "n d"], centres: Float[Tensor, "m d"] | None = None
    ) -> None:
        """Take mean and scale of each modality from the training features."""
        if not self.config.standardise:
            return
        for side, features in enumerate((fx, fy)):
            values = self.inputs(features, self.kernel(features, centres))
            self.mean[side] = values.mean(0)
            self.scale[side] = values.std(0, correction=0).mean().clamp_min(1e-12)

    def hash(
        self, features: Float[Tensor, "n d"], phi: Float[Tensor, "n m"], modality: Modality
    ) -> Float[Tensor, "n bits"]:
        """Relaxed codes from features and their activations."""
        side = 0 if modality == "image" else 1
        values = (self.inputs(features, phi) - self.mean[side]) / self.scale[side]
        return self.heads["shared" if self.config.shared else modality](values)

    def relaxed(self, features: Float[Tensor, "n d"], modality: Modality) -> Float[Tensor, "n bits"]:
        """Relaxed codes of unit features."""
        return self.hash(features, self.kernel(features), modality)
