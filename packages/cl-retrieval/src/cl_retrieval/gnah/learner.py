"""How prototypes, anchors, neighbourhoods and hash functions meet in one training step."""

import dataclasses
import warnings
from typing import Literal

import numpy as np
import torch
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.training.batches import seeded_generator
from jaxtyping import Float
from torch import Tensor

from cl_retrieval.gnah.model import GNAH
from cl_retrieval.gnah.objective import binary_anchors, cluster_means, global_weight, prototype_alignment
from cl_retrieval.hashing.learning import Learner, StepTerms
from cl_retrieval.hashing.objective import (
    BinaryReference,
    NoiseScale,
    binarisation,
    pair_gaussian,
    pair_neighbourhood,
    symmetric_contrast,
)
from cl_retrieval.hashing.prototypes import kmeans_prototypes, modality_purity

Variant = Literal["full", "no_p", "no_c", "no_b", "pairwise", "relaxed_anchor", "projected_anchor"]


@dataclasses.dataclass(frozen=True)
class GNAHSettings:
    """Objective and optimiser.

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
        anchor_warmup: Epochs for which the random anchors are kept.
        lr: Learning rate of Adam.
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
    lr: float = 1e-4

    def __post_init__(self) -> None:
        checks = {
            "--temperature": self.temperature > 0,
            "--teacher-temperature": self.teacher_temperature is None or self.teacher_temperature > 0,
            "--beta": 0 <= self.beta <= 1,
            "--gamma": self.gamma >= 0,
            "--k-max": self.k_max >= 2,
            "--binarisation-weight": self.binarisation_weight >= 0,
            "--anchor-warmup": self.anchor_warmup >= 0,
            "--lr": self.lr > 0,
        }
        for option, fine in checks.items():
            if not fine:
                name = option.removeprefix("--").replace("-", "_")
                raise InputError("an option is out of range", where=option, why=f"got {getattr(self, name)}")

    @property
    def uses_prototypes(self) -> bool:
        """Whether the variant has prototypes and anchors."""
        return self.variant not in ("no_p", "pairwise")


class GNAHLearner(Learner):
    """Hash functions, the training pairs they learn from, and the anchors.

    Args:
        model: Hash functions; their centring is fitted here.
        fx: Unit features of the training images, ``[n d]``.
        fy: Unit features of the texts.
        settings: Objective and optimiser.
        epochs: Length of the training, for the warning on collapsed anchors.
        seed: Seed of k-means and of the first anchors.
    """

    fx: Tensor
    fy: Tensor
    prototypes: Tensor
    labels: Tensor
    state: Tensor

    def __init__(
        self,
        model: GNAH,
        fx: Float[Tensor, "n d"],
        fy: Float[Tensor, "n d"],
        settings: GNAHSettings,
        *,
        epochs: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.model, self.settings, self.epochs = model, settings, epochs
        model.set_means(fx, fy)
        self.register_buffer("fx", model.prepare(fx, "image"), persistent=False)
        self.register_buffer("fy", model.prepare(fy, "text"), persistent=False)
        self.purity = float("nan")
        self.inertia: dict[int, float] = {}
        pooled = torch.cat([self.fx, self.fy]).numpy().astype(np.float64)
        if settings.uses_prototypes:
            found = kmeans_prototypes(pooled, k=settings.k, k_max=settings.k_max, seed=seed)
            labels, centres, self.inertia = found.assign(pooled), found.centres, found.inertia
            self.purity = modality_purity(labels[: len(fx)], labels[len(fx) :], len(centres))
        else:
            labels, centres = np.zeros(len(pooled), np.int64), np.zeros((1, model.dim), np.float32)
        self.register_buffer("prototypes", torch.from_numpy(centres).float())
        self.register_buffer("labels", torch.from_numpy(labels))
        first = torch.randn(len(centres), model.bits, generator=seeded_generator(seed, 0x5EED))
        self.register_buffer("state", first)
        self._warned = False

    @property
    def anchors(self) -> Float[Tensor, "k l"]:
        """Anchors ``C_b`` of this epoch, unit rows."""
        if self.settings.variant == "relaxed_anchor":
            return torch.nn.functional.normalize(self.state, dim=1, eps=1e-12)
        return binary_anchors(self.state)

    @torch.no_grad()
    def begin_epoch(self, epoch: int) -> None:
        """Move the anchors to where the codes of the last epoch have gone (Eq. 4), over the whole training set."""
        if not self.settings.uses_prototypes or epoch <= self.settings.anchor_warmup or epoch == 0:
            return
        was_training = self.model.training
        self.model.eval()
        if self.settings.variant == "projected_anchor":
            self.state.copy_(self.model.hash(self.prototypes, "image") + self.model.hash(self.prototypes, "text"))
        else:
            h = torch.cat([self.model.hash(self.fx, "image"), self.model.hash(self.fy, "text")])
            labels = self.labels
            if self.settings.assign_space == "hamming":
                labels = (h @ self.anchors.T).argmax(1)
            self.state.copy_(cluster_means(h, labels, self.state))
        self.model.train(was_training)
        self._warn_of_collapse(epoch)

    def step(
        self, fx: Float[Tensor, "b d"], fy: Float[Tensor, "b d"], *, epoch: int, generator: torch.Generator
    ) -> StepTerms:
        """``w_t l_p + (1 - w_t) l_c + l_b`` (Eq. 12), means over the batch."""
        settings, model = self.settings, self.model
        fx, fy = model.prepare(fx, "image"), model.prepare(fy, "text")
        batch = len(fx)
        if settings.variant == "pairwise":
            hx, hy = model.hash(fx, "image"), model.hash(fy, "text")
            positive_of_x, positive_of_y = hy, hx
        else:
            sampled = pair_neighbourhood(*pair_gaussian(fx, fy), scale=settings.noise, generator=generator)[0]
            # One pass through each function for the originals and the samples.
            hx, positive_of_y = model.hash(torch.cat([fx, sampled]), "image").split(batch)
            hy, positive_of_x = model.hash(torch.cat([fy, sampled]), "text").split(batch)
        weight = global_weight(epoch, settings.beta, settings.gamma) if settings.uses_prototypes else 0.0
        terms: dict[str, Tensor] = {}
        loss = fx.new_zeros(())
        if settings.uses_prototypes:
            terms["alignment"] = self._alignment(fx, hx) + self._alignment(fy, hy)
            loss = loss + weight * terms["alignment"]
        if settings.variant != "no_c":
            terms["contrast"] = symmetric_contrast(
                hx, hy, positive_of_x, positive_of_y, temperature=settings.temperature
            )
            loss = loss + (1 - weight) * terms["contrast"]
        if settings.variant != "no_b" and settings.binarisation_weight > 0:
            reference = settings.reference
            terms["binarisation"] = binarisation(hx, reference=reference) + binarisation(hy, reference=reference)
            loss = loss + settings.binarisation_weight * terms["binarisation"]
        return StepTerms(loss, {**terms, "alignment_weight": torch.tensor(weight)})

    def _alignment(self, features: Float[Tensor, "b d"], h: Float[Tensor, "b l"]) -> Float[Tensor, ""]:
        return prototype_alignment(
            features,
            h,
            self.prototypes,
            self.anchors,
            temperature=self.settings.temperature,
            teacher_temperature=self.settings.teacher_temperature or self.settings.temperature,
        )

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over both hash functions."""
        return torch.optim.Adam(self.model.parameters(), lr=self.settings.lr, fused=True)

    def diagnostics(self) -> dict[str, float]:
        """Number of different anchors."""
        return {"distinct_anchors": float(self.distinct_anchors())}

    def distinct_anchors(self) -> int:
        """Number of different sign patterns among the anchors."""
        return len(torch.unique(self.state >= 0, dim=0))

    def _warn_of_collapse(self, epoch: int) -> None:
        if self._warned or epoch < 0.2 * self.epochs or len(self.state) < 2 or self.distinct_anchors() > 1:
            return
        self._warned = True
        warnings.warn(
            f"all {len(self.state)} anchors have one sign pattern in epoch {epoch}: the prototype alignment teaches "
            "nothing; try a smaller --beta, a larger --gamma, --anchor-warmup, or --centre-modalities",
            ContrastiveWarning,
            stacklevel=2,
        )
