"""Baselines on the same features: random projections, ITQ, CCA with ITQ, and joint-semantics reconstruction (DJSRH)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from contrastive_core.data.samplers import seeded_generator
from contrastive_core.evaluation import pack_codes
from contrastive_core.index.interface import Modality
from contrastive_core.training import TrainSettings
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cl_retrieval.hashing.codes import binary_codes
from cl_retrieval.hashing.heads import HashFunction
from cl_retrieval.hashing.system import HashingSystem, Term
from cl_retrieval.hashing.training import FEW_PAIRS, first_weights, fit_pairs
from cl_retrieval.pairs.features import PairFeatures


@dataclasses.dataclass(frozen=True)
class LinearHash:
    """``(f - mean) W`` of each modality, whose signs are the code.

    Attributes:
        means: Mean of each modality.
        weights: Projection of each modality.
    """

    means: Float[np.ndarray, "2 d"]
    weights: Float[np.ndarray, "2 d bits"]

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.weights.shape[2]

    def encode(self, features: Float[np.ndarray, "n d"], modality: Modality) -> UInt8[np.ndarray, "n bytes"]:
        """Packed codes."""
        side = 0 if modality == "image" else 1
        means, weights = self.means[side].astype(np.float32), self.weights[side].astype(np.float32)
        return pack_codes(np.where((features - means) @ weights >= 0, 1.0, -1.0))


def random_projection(
    fx: Float[np.ndarray, "n d"], fy: Float[np.ndarray, "n d"], bits: int, *, centre: bool, seed: int
) -> LinearHash:
    """Signs of random projections (Charikar, 2002), the same for both modalities.

    Args:
        fx: Image features, for their mean.
        fy: Text features.
        bits: Bits of a code.
        centre: Subtract each modality's mean first, which removes the gap between them.
        seed: Seed of the projections.
    """
    weights = torch.randn(fx.shape[1], bits, generator=seeded_generator(seed, 0x4A4D)).numpy()
    means = np.stack([fx.mean(0), fy.mean(0)]) if centre else np.zeros((2, fx.shape[1]))
    return LinearHash(means, np.stack([weights, weights]))


def itq(
    fx: Float[np.ndarray, "n d"], fy: Float[np.ndarray, "n d"], bits: int, *, seed: int, rounds: int = 50
) -> LinearHash:
    """PCA of the pooled, centred features and the rotation of least quantisation error (ITQ; Gong & Lazebnik, 2011)."""
    means = np.stack([fx.mean(0), fy.mean(0)])
    pooled = np.concatenate([fx - means[0], fy - means[1]])
    axes = np.linalg.svd(pooled, full_matrices=False)[2][:bits].T
    weights = _padded(axes, bits, seed) if axes.shape[1] < bits else axes
    rotation = _rotation(pooled @ weights, rounds, seed)
    return LinearHash(means, np.stack([weights @ rotation] * 2))


def cca_itq(
    fx: Float[np.ndarray, "n d"],
    fy: Float[np.ndarray, "n d"],
    bits: int,
    *,
    seed: int,
    ridge: float = 0.1,
    rounds: int = 50,
) -> LinearHash:
    """Canonical correlations of the two modalities, scaled by their strength, and ITQ's rotation (CCA-ITQ).

    With few pairs the correlations are regularised; beyond ``min(bits, n - 1)`` directions nothing is left to
    correlate, and random combinations of those fill the code.

    Args:
        fx: Image features.
        fy: Text features.
        bits: Bits of a code.
        seed: Seed of the first rotation.
        ridge: Ridge of both covariances, as a share of their mean variance times the width over the number of pairs.
        rounds: Alternations of ITQ.
    """
    means = np.stack([fx.mean(0), fy.mean(0)])
    a, b = (fx - means[0]).astype(np.float64), (fy - means[1]).astype(np.float64)
    n = len(a)
    whiten = []
    for each in (a, b):
        covariance = each.T @ each / n
        values, vectors = np.linalg.eigh(covariance)
        regular = values + ridge * values.sum() / min(n, len(values))
        whiten.append((vectors / np.sqrt(regular)) @ vectors.T)
    left, strengths, right = np.linalg.svd(whiten[0] @ (a.T @ b / n) @ whiten[1])
    kept = min(bits, n - 1, len(strengths))
    sides = [whiten[0] @ left[:, :kept] * strengths[:kept], whiten[1] @ right[:kept].T * strengths[:kept]]
    if kept < bits:
        fill = np.random.default_rng(seed).normal(size=(kept, bits - kept)) / np.sqrt(kept)
        sides = [np.concatenate([each, each @ fill], axis=1) for each in sides]
    rotation = _rotation(np.concatenate([a @ sides[0], b @ sides[1]]), rounds, seed)
    return LinearHash(means, np.stack([each @ rotation for each in sides]))


def _rotation(projected: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """Orthogonal R that brings ``VR`` nearest to its signs, by alternation."""
    bits = projected.shape[1]
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(bits, bits)))[0]
    for _ in range(rounds):
        signs = np.where(projected @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(projected.T @ signs)
        rotation = left @ right
    return rotation


def _padded(axes: np.ndarray, bits: int, seed: int) -> np.ndarray:
    fill = np.random.default_rng(seed).normal(size=(axes.shape[1], bits - axes.shape[1])) / np.sqrt(axes.shape[1])
    return np.concatenate([axes, axes @ fill], axis=1)


@dataclasses.dataclass(frozen=True)
class DJSRHSettings:
    """Deep joint-semantics reconstructing hashing (Su et al., ICCV 2019).

    Attributes:
        hidden: Width of the hidden layer of both hash functions.
        image_share: Share beta of the image similarities in the joint ones.
        high_order: Weight eta of the second-order similarities.
        scale: Scale mu of the joint similarities that the codes reconstruct.
        within: Weight lambda of the similarities inside each modality.
        lr: Learning rate of Adam.
    """

    hidden: int = 4096
    image_share: float = 0.9
    high_order: float = 0.4
    scale: float = 1.5
    within: float = 0.1
    lr: float = 1e-4


class DJSRH(nn.Module):
    """Two hash functions, trained by :func:`train_djsrh`."""

    def __init__(self, dim: int, bits: int, *, hidden: int) -> None:
        super().__init__()
        self.dim, self.bits = dim, bits
        self.functions = nn.ModuleDict({m: HashFunction(dim, bits, hidden=hidden) for m in ("image", "text")})
        self.sharpness = 1.0

    def relaxed(self, features: Float[Tensor, "n d"], modality: Modality) -> Float[Tensor, "n bits"]:
        """Relaxed codes ``tanh(sharpness x)``, of unit length."""
        function: Any = self.functions[modality]
        return F.normalize(torch.tanh(self.sharpness * function.layers(features)), dim=1, eps=1e-12)

    def encode(self, features: Float[np.ndarray, "n d"], modality: Modality) -> UInt8[np.ndarray, "n bytes"]:
        """Packed codes."""
        return binary_codes(self, features, modality)


class DJSRHSystem(HashingSystem):
    """Codes reconstruct the joint similarities of the batch, their tanh sharpening over the epochs."""

    def __init__(
        self, model: DJSRH, fx: Float[Tensor, "n d"], fy: Float[Tensor, "n d"], settings: DJSRHSettings
    ) -> None:
        super().__init__(model, fx, fy)
        self.settings = settings

    def begin_epoch(self, epoch: int, progress: float) -> None:
        """Sharpen tanh, as in the published code: ``sqrt(1 + epoch)``."""
        self.model.sharpness = float((1 + epoch) ** 0.5)

    def terms(
        self, fx: Float[Tensor, "b d"], fy: Float[Tensor, "b d"], *, epoch: int, generator: torch.Generator
    ) -> Mapping[str, Term]:
        """``|mu S - cos(B_x, B_y)|^2 + lambda (|mu S - cos(B_x, B_x)|^2 + |mu S - cos(B_y, B_y)|^2)``, means."""
        s = self.settings
        joint = s.image_share * fx @ fx.T + (1 - s.image_share) * fy @ fy.T
        target = s.scale * ((1 - s.high_order) * joint + s.high_order * joint @ joint.T / len(joint))
        target = target.clamp(-1, 1).detach()
        bx, by = self.model.relaxed(fx, "image"), self.model.relaxed(fy, "text")
        within = (target - bx @ bx.T).square().mean() + (target - by @ by.T).square().mean()
        return {
            "across": Term(1.0, (target - bx @ by.T).square().mean()),
            "within": Term(s.within, within),
            "paired": Term(1.0, (1.5 - (bx * by).sum(1)).square().mean()),
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over both hash functions."""
        return torch.optim.Adam(self.model.parameters(), lr=self.settings.lr, fused=True)


def train_djsrh(
    pairs: PairFeatures, bits: int, settings: DJSRHSettings = DJSRHSettings(), *, training: TrainSettings = FEW_PAIRS
) -> DJSRH:
    """Train the baseline from few pairs.

    Args:
        pairs: Training pairs.
        bits: Bits of a code.
        settings: The baseline's own.
        training: Length and seed.
    """
    with first_weights(training.seed):
        model = DJSRH(pairs.dim, bits, hidden=settings.hidden)
    system = DJSRHSystem(model, torch.from_numpy(pairs.image), torch.from_numpy(pairs.text), settings)
    fit_pairs(system, batch_size=100, settings=training)
    return model
