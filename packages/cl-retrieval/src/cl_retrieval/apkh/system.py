"""How attribute prompts, kernels, neighbourhoods and the hash head meet in one training step."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from contrastive_core.cli import Flat
from contrastive_core.distributed import gather as gather_rows
from contrastive_core.distributed import is_active, rank_slice, sizes
from contrastive_core.errors import ContrastiveWarning, require
from contrastive_core.training import TrainSettings
from jaxtyping import Float
from torch import Tensor, nn

from cl_retrieval.apkh.model import APKH, APKHConfig
from cl_retrieval.apkh.objective import (
    VARIANCE_BOUNDS,
    anchor_loss,
    attribute_kernel,
    effective_number,
    gaussian_overlap,
    js_divergence,
    kernel_nce,
)
from cl_retrieval.apkh.prompts import PromptOptions
from cl_retrieval.hashing.objective import (
    BinaryReference,
    NoiseScale,
    binarisation,
    pair_gaussian,
    pair_neighbourhood,
    symmetric_contrast,
)
from cl_retrieval.hashing.system import AdamSettings, HashingSystem, Term
from cl_retrieval.hashing.training import FEW_PAIRS


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """The objective.

    Attributes:
        temperature: Temperature of the contrast.
        samples: Samples of each pair a step.
        smooth: Take samples of the pair as positives (KSCA); otherwise the other view.
        discount: Weigh negatives by one less their kernel overlap with the pair.
        align: How the two views' activations are aligned: ``js`` (of their shares), ``nce`` or ``none``.
        align_weight: Weight of that.
        anchor_weight: Weight of keeping prompts near their attributes.
        binarisation_weight: Weight of the binarisation.
        learn_variance: Learn the kernels' width too, within [0.005, 1].
        refresh_statistics: Take the statistics of the activations anew every epoch, as the prompts move.
        noise: ``total``, or ``per_coordinate``, the printed form, which does not train.
        reference: ``unit``, or ``pm1``, the printed form, which does not train.
    """

    temperature: float = 0.5
    samples: int = 1
    smooth: bool = True
    discount: bool = False
    align: Literal["js", "nce", "none"] = "js"
    align_weight: float = 0.5
    anchor_weight: float = 0.1
    binarisation_weight: float = 1.0
    learn_variance: bool = False
    refresh_statistics: bool = False
    noise: NoiseScale = "total"
    reference: BinaryReference = "unit"

    def __post_init__(self) -> None:
        require(0 < self.temperature < math.inf, "--temperature", self.temperature, "a positive number")
        require(1 <= self.samples <= 10**4, "--samples", self.samples, "a whole number from 1 to 10,000")
        for name in ("align_weight", "anchor_weight", "binarisation_weight"):
            weight = getattr(self, name)
            require(0 <= weight < math.inf, f"--{name.replace('_', '-')}", weight, "a number that is not negative")


@dataclasses.dataclass(frozen=True)
class OptimSettings(AdamSettings):
    """Adam, with a rate of its own for prompts and width.

    Attributes:
        lr: Learning rate of the head.
        lr_prompt: Learning rate of prompts and width.
    """

    lr_prompt: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.lr_prompt <= 1e3, "--optim.lr-prompt", self.lr_prompt, "a positive number, at most 1000")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a training is made of.

    Attributes:
        prompts: Attributes and how they learn.
        model: Kernels and hash head.
        objective: Objective.
        optim: Adam.
        batch_size: Pairs a step; the others of a batch are a pair's negatives.
        training: Length of the run, seed and hardware.
    """

    prompts: Annotated[PromptOptions, Flat] = PromptOptions()
    model: Annotated[APKHConfig, Flat] = APKHConfig()
    objective: Annotated[ObjectiveSettings, Flat] = ObjectiveSettings()
    optim: OptimSettings = OptimSettings()
    batch_size: int = 100
    training: Annotated[TrainSettings, Flat] = FEW_PAIRS


class APKHSystem(HashingSystem):
    """Head, prompts, and the training pairs the statistics come from.

    Args:
        model: Kernels and head.
        prompts: Gives the centres; frozen, residual or through a text tower.
        fx: Unit features of the training images, ``[n d]``.
        fy: Unit features of the texts.
        settings: Objective and optimiser.
    """

    first: Tensor

    def __init__(
        self,
        model: APKH,
        prompts: nn.Module,
        fx: Float[Tensor, "n d"],
        fy: Float[Tensor, "n d"],
        settings: Settings,
    ) -> None:
        super().__init__(model, fx, fy)
        self.prompts, self.settings = prompts, settings
        with torch.no_grad():
            self.register_buffer("first", prompts().clone())
        model.log_variance.requires_grad_(settings.objective.learn_variance)
        model.centres.copy_(self.first)
        model.fit_statistics(fx, fy)
        self._learns = any(parameter.requires_grad for parameter in prompts.parameters())
        warn_of_width(model, fx, fy)

    @torch.no_grad()
    def begin_epoch(self, epoch: int, progress: float) -> None:
        """Take the statistics anew, where asked for."""
        if self.settings.objective.refresh_statistics and epoch > 0:
            self.model.fit_statistics(self.fx, self.fy, self.prompts())

    def terms(
        self, fx: Float[Tensor, "b d"], fy: Float[Tensor, "b d"], *, epoch: int, generator: torch.Generator
    ) -> Mapping[str, Term]:
        """``l_c + lambda_b l_b + lambda_a l_a + lambda_t l_t``."""
        objective, model, gather = self.settings.objective, self.model, is_active()
        if objective.learn_variance:
            with torch.no_grad():
                model.log_variance.clamp_(*(math.log(bound) for bound in VARIANCE_BOUNDS))
        centres = self.prompts()
        phi_x, phi_y = model.kernel(fx, centres), model.kernel(fy, centres)
        hx, hy = model.hash(fx, phi_x, "image"), model.hash(fy, phi_y, "text")
        positive_of_x, positive_of_y = self._positives(fx, fy, centres, generator) if objective.smooth else (hy, hx)
        contrasted = symmetric_contrast(
            hx,
            hy,
            positive_of_x,
            positive_of_y,
            temperature=objective.temperature,
            negative_weights=_discounts(fx, fy) if objective.discount else None,
            gather=gather,
        )
        bits_x, bits_y = (binarisation(h, reference=objective.reference, gather=gather) for h in (hx, hy))
        terms = {
            "contrast": Term(1.0, contrasted),
            "binarisation": Term(objective.binarisation_weight, bits_x + bits_y),
        }
        # Alignment reaches the prompts alone: the features are frozen.
        if objective.align != "none" and (self._learns or objective.learn_variance):
            if objective.align == "nce":
                aligned = kernel_nce(phi_x, phi_y, gather=gather)
            else:
                p, q = (
                    phi if model.config.normalise_kernel else attribute_kernel(features, centres, model.variance)
                    for features, phi in ((fx, phi_x), (fy, phi_y))
                )
                aligned = js_divergence(p, q, gather=gather)
            terms["alignment"] = Term(objective.align_weight, aligned)
        if self._learns:
            terms["anchor"] = Term(objective.anchor_weight, anchor_loss(centres, self.first))
        return terms

    def _positives(
        self, fx: Tensor, fy: Tensor, centres: Tensor, generator: torch.Generator
    ) -> tuple[Float[Tensor, "s b l"], Float[Tensor, "s b l"]]:
        """Codes of samples of each pair, through the text and through the image function."""
        objective = self.settings.objective
        mu, sigma = pair_gaussian(fx, fy)
        drawn = pair_neighbourhood(mu, sigma, samples=objective.samples, scale=objective.noise, generator=generator)
        flat = drawn.flatten(0, 1)
        phi = self.model.kernel(flat, centres)
        of_x, of_y = (self.model.hash(flat, phi, m).unflatten(0, drawn.shape[:2]) for m in ("text", "image"))
        return of_x, of_y

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with a learning rate of its own for prompts and width."""
        slow = [p for p in (*self.prompts.parameters(), self.model.log_variance) if p.requires_grad]
        groups = [{"params": list(self.model.heads.parameters()), "lr": self.settings.optim.lr}]
        if slow:
            groups.append({"params": slow, "lr": self.settings.optim.lr_prompt})
        return torch.optim.Adam(groups, fused=True)


def _discounts(fx: Float[Tensor, "b d"], fy: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
    """One less the overlap of this process's pairs with those of all."""
    counts = sizes(len(fx), fx.device)
    overlap = gaussian_overlap(*pair_gaussian(gather_rows(fx, counts), gather_rows(fy, counts)))
    return 1 - overlap[rank_slice(counts)]


def warn_of_width(model: APKH, fx: Float[Tensor, "n d"], fy: Float[Tensor, "n d"]) -> dict[str, float]:
    """Median effective number of attributes of each modality, with a warning where it is useless.

    Returns:
        Modality to effective number.
    """
    if not model.config.normalise_kernel or model.config.inputs == "raw":
        return {}
    with torch.no_grad():
        numbers = {
            name: float(effective_number(model.kernel(features)).median())
            for name, features in (("image", fx), ("text", fy))
        }
    count = len(model.centres)
    for name, number in numbers.items():
        if not 0.02 * count <= number <= 0.9 * count:
            warnings.warn(
                f"a median {name} excites {number:.1f} of {count} attributes: the kernels are too "
                f"{'narrow' if number < 0.02 * count else 'wide'}; try --variance auto",
                ContrastiveWarning,
                stacklevel=3,
            )
    return numbers
