"""How prototypes, anchors, neighbourhoods and hash functions meet in one training step."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from contrastive_core.cli import Flat
from contrastive_core.distributed import is_active
from contrastive_core.errors import ContrastiveWarning, require
from contrastive_core.training import TrainSettings, seeded_generator
from jaxtyping import Float
from torch import Tensor

from cl_retrieval.gnah.model import GNAH, GNAHConfig
from cl_retrieval.gnah.objective import binary_anchors, cluster_means, global_weight, prototype_alignment
from cl_retrieval.hashing.objective import (
    BinaryReference,
    NoiseScale,
    binarisation,
    pair_gaussian,
    pair_neighbourhood,
    symmetric_contrast,
)
from cl_retrieval.hashing.prototypes import kmeans_prototypes, modality_purity
from cl_retrieval.hashing.system import AdamSettings, HashingSystem, Term
from cl_retrieval.hashing.training import FEW_PAIRS

Variant = Literal["full", "no_p", "no_c", "no_b", "pairwise", "relaxed_anchor", "projected_anchor"]


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """The objective.

    Attributes:
        variant: ``full``; ``no_p``, ``no_c``, ``no_b`` leave out the prototype alignment, the neighbourhood contrast or
            the binarisation; ``pairwise`` is the plain contrast of the two views (ablation A), without prototypes;
            ``relaxed_anchor`` does not binarise the anchors (B); ``projected_anchor`` hashes the prototypes (C).
        temperature: Temperature of the contrast and of the codes' softmax over anchors.
        teacher_temperature: Temperature of the features' softmax over prototypes; ``temperature`` when absent.
        beta: Weight of the prototype alignment in the first epoch.
        gamma: Decay of that weight an epoch.
        k: Prototypes; by the elbow of k-means when absent.
        k_max: Most prototypes the elbow looks at.
        binarisation_weight: Weight of the binarisation; 1 in the paper, which with ``unit`` freezes bits early.
        noise: ``total``, or ``per_coordinate`` as Eq. 7 is printed (does not train).
        reference: ``unit``, or ``pm1`` as Eq. 11 is printed (does not train).
        assign_space: Instances belong to the nearest prototype among features (``latent``), or to the nearest anchor
            among codes (``hamming``).
        anchor_warmup: Epochs for which the random anchors are kept; the first always is one.
    """

    variant: Variant = "full"
    temperature: float = 0.5
    teacher_temperature: float | None = None
    beta: float = 0.5
    gamma: float = 0.01
    k: int | None = None
    k_max: int = 20
    binarisation_weight: float = 0.1
    noise: NoiseScale = "total"
    reference: BinaryReference = "unit"
    assign_space: Literal["latent", "hamming"] = "latent"
    anchor_warmup: int = 0

    def __post_init__(self) -> None:
        require(0 < self.temperature < math.inf, "--temperature", self.temperature, "a positive number")
        teacher = self.teacher_temperature
        require(teacher is None or 0 < teacher < math.inf, "--teacher-temperature", teacher, "a positive number")
        require(0 <= self.beta <= 1, "--beta", self.beta, "a number from 0 to 1")
        require(0 <= self.gamma < math.inf, "--gamma", self.gamma, "a number that is not negative")
        require(self.k is None or 1 <= self.k <= 10**5, "--k", self.k, "a whole number from 1 to 100,000")
        require(2 <= self.k_max <= 10**4, "--k-max", self.k_max, "a whole number from 2 to 10,000")
        weight = self.binarisation_weight
        require(0 <= weight < math.inf, "--binarisation-weight", weight, "a number that is not negative")
        require(self.anchor_warmup >= 0, "--anchor-warmup", self.anchor_warmup, "a number that is not negative")

    @property
    def has_prototypes(self) -> bool:
        """Whether the variant has prototypes and anchors."""
        return self.variant not in ("no_p", "pairwise")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a training is made of.

    Attributes:
        model: Hash functions.
        objective: Objective.
        optim: Adam.
        batch_size: Pairs a step; the others of a batch are a pair's negatives.
        training: Length of the run, seed and hardware.
    """

    model: Annotated[GNAHConfig, Flat] = GNAHConfig()
    objective: Annotated[ObjectiveSettings, Flat] = ObjectiveSettings()
    optim: AdamSettings = AdamSettings()
    batch_size: int = 100
    training: Annotated[TrainSettings, Flat] = FEW_PAIRS


class GNAHSystem(HashingSystem):
    """Hash functions, prototypes and anchors.

    Args:
        model: Hash functions; their centring is fitted here.
        fx: Unit features of the training images, ``[n d]``.
        fy: Unit features of the texts.
        settings: Objective, optimiser, and the seed of k-means and of the first anchors.

    Raises:
        InputError: Too few different pairs for prototypes.
    """

    prototypes: Tensor
    labels: Tensor
    state: Tensor

    def __init__(self, model: GNAH, fx: Float[Tensor, "n d"], fy: Float[Tensor, "n d"], settings: Settings) -> None:
        super().__init__(model, fx, fy)
        self.settings, seed = settings, settings.training.seed
        model.set_means(fx, fy)
        self.purity = float("nan")
        pooled = torch.cat([model.prepare(fx, "image"), model.prepare(fy, "text")]).numpy().astype(np.float64)
        labels, centres = np.zeros(len(pooled), np.int64), np.zeros((1, model.dim), np.float32)
        if settings.objective.has_prototypes:
            clusters = kmeans_prototypes(pooled, k=settings.objective.k, k_max=settings.objective.k_max, seed=seed)
            labels, centres = clusters.assign(pooled), clusters.centres
            self.purity = modality_purity(labels[: len(fx)], labels[len(fx) :], len(centres))
        self.register_buffer("prototypes", torch.from_numpy(centres).float())
        self.register_buffer("labels", torch.from_numpy(labels))
        first = torch.randn(len(centres), model.bits, generator=seeded_generator(seed, 0x5EED))
        self.register_buffer("state", first)
        self._warned = False

    @property
    def anchors(self) -> Float[Tensor, "k l"]:
        """Anchors ``C_b`` of this epoch, unit rows."""
        if self.settings.objective.variant == "relaxed_anchor":
            return torch.nn.functional.normalize(self.state, dim=1, eps=1e-12)
        return binary_anchors(self.state)

    @torch.no_grad()
    def begin_epoch(self, epoch: int, progress: float) -> None:
        """Move the anchors to where the codes of the last epoch have gone (Eq. 4), over the whole training set."""
        objective = self.settings.objective
        if not objective.has_prototypes or epoch < max(1, objective.anchor_warmup):
            return
        was_training = self.model.training
        self.model.eval()
        if objective.variant == "projected_anchor":
            self.state.copy_(self.model.hash(self.prototypes, "image") + self.model.hash(self.prototypes, "text"))
        else:
            h = torch.cat([self.model.relaxed(self.fx, "image"), self.model.relaxed(self.fy, "text")])
            labels = (h @ self.anchors.T).argmax(1) if objective.assign_space == "hamming" else self.labels
            self.state.copy_(cluster_means(h, labels, self.state))
        self.model.train(was_training)
        if progress >= 0.2:
            self._warn_of_collapse(epoch)

    def terms(
        self, fx: Float[Tensor, "b d"], fy: Float[Tensor, "b d"], *, epoch: int, generator: torch.Generator
    ) -> Mapping[str, Term]:
        """``w_t l_p + (1 - w_t) l_c + lambda l_b`` (Eq. 12)."""
        objective, gather = self.settings.objective, is_active()
        fx, fy = self.model.prepare(fx, "image"), self.model.prepare(fy, "text")
        hx, hy, positive_of_x, positive_of_y = self._codes(fx, fy, generator)
        weight = global_weight(epoch, objective.beta, objective.gamma) if objective.has_prototypes else 0.0
        terms = {}
        if objective.has_prototypes:
            aligned = self._alignment(fx, hx, gather) + self._alignment(fy, hy, gather)
            terms["alignment"] = Term(weight, aligned)
        if objective.variant != "no_c":
            contrasted = symmetric_contrast(
                hx, hy, positive_of_x, positive_of_y, temperature=objective.temperature, gather=gather
            )
            terms["contrast"] = Term(1 - weight, contrasted)
        if objective.variant != "no_b" and objective.binarisation_weight > 0:
            bits_x, bits_y = (binarisation(h, reference=objective.reference, gather=gather) for h in (hx, hy))
            terms["binarisation"] = Term(objective.binarisation_weight, bits_x + bits_y)
        return terms

    def _codes(self, fx: Tensor, fy: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes of images and of texts, and the positives of each."""
        if self.settings.objective.variant == "pairwise":
            hx, hy = self.model.hash(fx, "image"), self.model.hash(fy, "text")
            return hx, hy, hy, hx
        noise = self.settings.objective.noise
        (sampled,) = pair_neighbourhood(*pair_gaussian(fx, fy), scale=noise, generator=generator)
        # One pass through each function for the originals and the samples.
        hx, positive_of_y = self.model.hash(torch.cat([fx, sampled]), "image").split(len(fx))
        hy, positive_of_x = self.model.hash(torch.cat([fy, sampled]), "text").split(len(fx))
        return hx, hy, positive_of_x, positive_of_y

    def _alignment(self, features: Tensor, h: Tensor, gather: bool) -> Tensor:
        objective = self.settings.objective
        return prototype_alignment(
            features,
            h,
            self.prototypes,
            self.anchors,
            temperature=objective.temperature,
            teacher_temperature=objective.teacher_temperature or objective.temperature,
            gather=gather,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over both hash functions."""
        return torch.optim.Adam(self.model.parameters(), lr=self.settings.optim.lr, fused=True)

    def diagnostics(self) -> dict[str, float]:
        """Statistics of the bits, and the number of different anchors."""
        return {**super().diagnostics(), "distinct_anchors": float(self.distinct_anchors())}

    def distinct_anchors(self) -> int:
        """Number of different sign patterns among the anchors."""
        return len(torch.unique(self.state >= 0, dim=0))

    def _warn_of_collapse(self, epoch: int) -> None:
        if self._warned or len(self.state) < 2 or self.distinct_anchors() > 1:
            return
        self._warned = True
        warnings.warn(
            f"all {len(self.state)} anchors have one sign pattern in epoch {epoch}: the prototype alignment teaches "
            "nothing; try a smaller --beta, a larger --gamma, --anchor-warmup, or --centre-modalities",
            ContrastiveWarning,
            stacklevel=2,
        )
