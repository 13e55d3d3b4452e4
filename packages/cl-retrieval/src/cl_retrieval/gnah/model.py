"""The pair of hash functions, one a modality."""

import dataclasses

import torch
import torch.nn.functional as F
from contrastive_core.index.interface import Modality
from jaxtyping import Float
from torch import Tensor, nn

from cl_retrieval.hashing.heads import HashFunction


@dataclasses.dataclass(frozen=True)
class GNAHConfig:
    """Architecture.

    Attributes:
        bits: Bits of a code.
        hidden: Width of the hidden layer of each hash function.
        dropout: Dropout after the hidden layer.
        centre_modalities: Subtract each modality's training mean from its features, and normalise again. Off in the
            paper; it removes the gap between modalities, along which k-means splits otherwise.
    """

    bits: int = 32
    hidden: int = 4096
    dropout: float = 0.0
    centre_modalities: bool = False


class GNAH(nn.Module):
    """Hash functions of images and texts over features of one width.

    Args:
        dim: Width of the features.
        config: Architecture.
    """

    means: Tensor

    def __init__(self, dim: int, config: GNAHConfig) -> None:
        super().__init__()
        self.config = config
        self.functions = nn.ModuleDict(
            {
                modality: HashFunction(dim, config.bits, hidden=config.hidden, dropout=config.dropout)
                for modality in ("image", "text")
            }
        )
        self.register_buffer("means", torch.zeros(2, dim))

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.means.shape[1]

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.config.bits

    def set_means(self, fx: Float[Tensor, "n d"], fy: Float[Tensor, "n d"]) -> None:
        """Remember the means of the training features, where the configuration asks for centring."""
        if self.config.centre_modalities:
            self.means.copy_(torch.stack([fx.mean(0), fy.mean(0)]))

    def prepare(self, features: Float[Tensor, "n d"], modality: Modality) -> Float[Tensor, "n d"]:
        """Features as the hash functions take them: centred, where the model is."""
        if not self.config.centre_modalities:
            return features
        return F.normalize(features - self.means[0 if modality == "image" else 1], dim=1, eps=1e-12)

    def hash(self, prepared: Float[Tensor, "n d"], modality: Modality) -> Float[Tensor, "n bits"]:
        """Relaxed codes of prepared features."""
        return self.functions[modality](prepared)

    def relaxed(self, features: Float[Tensor, "n d"], modality: Modality) -> Float[Tensor, "n bits"]:
        """Relaxed codes of unit features."""
        return self.hash(self.prepare(features, modality), modality)
