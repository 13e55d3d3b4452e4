"""How attribute prompts, kernels, neighbourhoods and the hash head meet in one training step."""

import dataclasses
import math
import warnings
from typing import Literal

import torch
from contrastive_core.errors import ContrastiveWarning, InputError
from jaxtyping import Float
from torch import Tensor, nn

from cl_retrieval.apkh.model import APKH
from cl_retrieval.apkh.objective import (
    VARIANCE_BOUNDS,
    anchor_loss,
    effective_number,
    gaussian_overlap,
    js_divergence,
    kernel_nce,
)
from cl_retrieval.hashing.learning import Learner, StepTerms
from cl_retrieval.hashing.objective import (
    BinaryReference,
    NoiseScale,
    binarisation,
    pair_gaussian,
    pair_neighbourhood,
    symmetric_contrast,
)


@dataclasses.dataclass(frozen=True)
class APKHSettings:
    """Objective and optimiser.

    Attributes:
        temperature: Temperature of the contrast.
        samples: Samples of each pair a step.
        smooth: Take samples of the pair as positives (KSCA); otherwise the other view.
        discount: Weigh negatives by one less their kernel overlap with the pair.
        align: How the two views' activations are aligned: ``js``, ``nce`` or ``none``.
        align_weight: Weight of that.
        anchor_weight: Weight of keeping prompts near their attributes.
        binarisation_weight: Weight of the binarisation.
        learn_variance: Learn the kernels' width too, within [0.005, 1].
        refresh_statistics: Take the statistics of the activations anew every epoch, as the prompts move.
        noise: ``total``, or ``per_coordinate``, the printed form, which does not train.
        reference: ``unit``, or ``pm1``, the printed form, which does not train.
        lr: Learning rate of Adam for the head.
        lr_prompt: Learning rate of Adam for prompts and width.
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
    lr: float = 1e-4
    lr_prompt: float = 1e-4

    def __post_init__(self) -> None:
        checks = {
            "temperature": self.temperature > 0,
            "samples": self.samples >= 1,
            "align_weight": self.align_weight >= 0,
            "anchor_weight": self.anchor_weight >= 0,
            "binarisation_weight": self.binarisation_weight >= 0,
            "lr": self.lr > 0,
            "lr_prompt": self.lr_prompt > 0,
        }
        for name, fine in checks.items():
            if not fine:
                option = "--" + name.replace("_", "-")
                raise InputError("an option is out of range", where=option, why=f"got {getattr(self, name)}")


class APKHLearner(Learner):
    """Head, prompts and the training pairs the statistics come from.

    Args:
        model: Kernels and head.
        prompts: Gives the centres; frozen, residual or through a text tower.
        fx: Unit features of the training images.
        fy: Unit features of the texts.
        settings: Objective and optimiser.
    """

    fx: Tensor
    fy: Tensor
    first: Tensor

    def __init__(
        self,
        model: APKH,
        prompts: nn.Module,
        fx: Float[Tensor, "n d"],
        fy: Float[Tensor, "n d"],
        settings: APKHSettings,
    ) -> None:
        super().__init__()
        self.model, self.prompts, self.settings = model, prompts, settings
        self.register_buffer("fx", fx, persistent=False)
        self.register_buffer("fy", fy, persistent=False)
        with torch.no_grad():
            self.register_buffer("first", prompts().clone())
        model.log_variance.requires_grad_(settings.learn_variance)
        model.centres.copy_(self.first)
        model.fit_statistics(fx, fy)
        self._learns = any(parameter.requires_grad for parameter in prompts.parameters())
        warn_of_width(model, fx, fy)

    @torch.no_grad()
    def begin_epoch(self, epoch: int) -> None:
        """Take the statistics anew, where asked for."""
        if self.settings.refresh_statistics and epoch > 0:
            self.model.fit_statistics(self.fx, self.fy, self.prompts())

    def step(
        self, fx: Float[Tensor, "b d"], fy: Float[Tensor, "b d"], *, epoch: int, generator: torch.Generator
    ) -> StepTerms:
        """``l_c + lambda_a l_a + lambda_t l_t + lambda_b l_b``, means over the batch."""
        settings, model = self.settings, self.model
        if settings.learn_variance:
            with torch.no_grad():
                model.log_variance.clamp_(*(math.log(bound) for bound in VARIANCE_BOUNDS))
        centres = self.prompts()
        phi_x, phi_y = model.kernel(fx, centres), model.kernel(fy, centres)
        hx, hy = model.hash(fx, phi_x, "image"), model.hash(fy, phi_y, "text")
        mu, sigma = pair_gaussian(fx, fy)
        if settings.smooth:
            drawn = pair_neighbourhood(mu, sigma, samples=settings.samples, scale=settings.noise, generator=generator)
            flat = drawn.flatten(0, 1)
            phi = model.kernel(flat, centres)
            positive_of_x, positive_of_y = (
                model.hash(flat, phi, modality).unflatten(0, drawn.shape[:2]) for modality in ("text", "image")
            )
        else:
            positive_of_x, positive_of_y = hy, hx
        weights = 1 - gaussian_overlap(mu, sigma) if settings.discount else None
        terms = {
            "contrast": symmetric_contrast(
                hx, hy, positive_of_x, positive_of_y, temperature=settings.temperature, negative_weights=weights
            ),
            "binarisation": binarisation(hx, reference=settings.reference)
            + binarisation(hy, reference=settings.reference),
        }
        loss = terms["contrast"] + settings.binarisation_weight * terms["binarisation"]
        # Alignment reaches the prompts alone: the features are frozen.
        if self._learns or settings.learn_variance:
            if settings.align != "none" and model.config.normalise_kernel:
                terms["alignment"] = js_divergence(phi_x, phi_y) if settings.align == "js" else kernel_nce(phi_x, phi_y)
                loss = loss + settings.align_weight * terms["alignment"]
            if self._learns:
                terms["anchor"] = anchor_loss(centres, self.first)
                loss = loss + settings.anchor_weight * terms["anchor"]
        return StepTerms(loss, terms)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, with a learning rate of its own for prompts and width."""
        slow = [p for p in (*self.prompts.parameters(), self.model.log_variance) if p.requires_grad]
        groups = [{"params": list(self.model.heads.parameters()), "lr": self.settings.lr}]
        if slow:
            groups.append({"params": slow, "lr": self.settings.lr_prompt})
        return torch.optim.Adam(groups, fused=True)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the learnt centres in the model, which needs no prompts from here on."""
        self.model.centres.copy_(self.prompts())


def warn_of_width(model: APKH, fx: Tensor, fy: Tensor) -> dict[str, float]:
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
