"""How images, model and objective meet in one training step."""

import dataclasses
from typing import Annotated, Any, Literal

import lightning as L
import torch
from contrastive_core.cli import Flat
from contrastive_core.distributed import is_active
from contrastive_core.errors import InputError, require
from contrastive_core.training import (
    OptimSettings,
    TrainSettings,
    adamw,
    decay_groups,
    step_generator,
    with_schedule,
)
from torch import Tensor

from cl_foundations.cfa.model import FactorModel, ModelConfig
from cl_foundations.cfa.objective import ELBO, ObjectiveSettings, negative_elbo
from cl_foundations.cfa.posterior import FactorPosterior, WeibullPosterior
from cl_foundations.images.views import ViewSettings, two_views


@dataclasses.dataclass(frozen=True)
class FactorOptim(OptimSettings):
    """AdamW or LARS, with a linear warm-up and a cosine decay to zero.

    Attributes:
        lr: Peak learning rate; 0.002 for adamw, and 0.4 a 256 images of batch for lars, if not given.
        weight_decay: Weight decay.
        warmup: Share of all steps spent warming up, in [0, 1).
        decay: What decays: ``matrices`` (weights and kernels, not biases and norms), or ``all`` parameters.
        name: ``adamw``, or ``lars`` (momentum 0.9, trust coefficient 0.02 with clipping).
    """

    lr: float | None = None  # type: ignore[assignment]
    name: Literal["adamw", "lars"] = "adamw"

    def __post_init__(self) -> None:
        OptimSettings(self.peak(1), self.weight_decay, self.warmup, self.decay)

    def peak(self, batch_size: int) -> float:
        """Peak learning rate of a batch of so many images."""
        if self.lr is not None:
            return self.lr
        return 2e-3 if self.name == "adamw" else 0.4 * batch_size / 256


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a training run is made of, but for its images.

    Attributes:
        model: Network and kind of embedding.
        weights: Weights the backbone starts from: a local file, or ``hub`` for those of timm or torchvision.
        objective: Objective.
        optim: Optimiser.
        views: Augmentation.
        batch_size: Images in a batch, at most all; the others of a batch are an image's negatives.
        training: Length of the run and hardware.
        workers: Processes that read images, for sets too large for memory.
    """

    model: Annotated[ModelConfig, Flat] = ModelConfig()
    weights: str | None = None
    objective: Annotated[ObjectiveSettings, Flat] = ObjectiveSettings()
    optim: FactorOptim = FactorOptim()
    views: ViewSettings = ViewSettings()
    batch_size: int = 256
    training: Annotated[TrainSettings, Flat] = TrainSettings()
    workers: int = 0

    def __post_init__(self) -> None:
        require(2 <= self.batch_size <= 1 << 24, "--batch-size", self.batch_size, "at least two images")
        require(0 <= self.workers <= 4096, "--workers", self.workers, "a whole number from 0 to 4096")
        if self.objective.supervised and self.model.likelihood != "infonce":
            raise InputError(
                "classes as positives need the likelihood infonce",
                where="--supervised, --likelihood",
                why=f"got {self.model.likelihood}",
            )


class FactorSystem(L.LightningModule):
    """Two views of every image, one network, the negative evidence lower bound.

    Args:
        model: Backbone and head.
        settings: Settings of the run.
    """

    def __init__(self, model: FactorModel, settings: Settings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Loss of images ``[b 3 h w]`` and their classes ``[b]``, -1 where unknown."""
        images, labels = batch
        config, objective = self.settings.model, self.settings.objective
        draw = step_generator(self, index)
        first, second = self.model(two_views(images, config.image_size, self.settings.views, draw)).halves()
        elbo = negative_elbo(
            first,
            second,
            likelihood=config.likelihood,
            eta=objective.weight(config.likelihood, self.global_step, int(self.trainer.max_steps)),
            temperature=objective.temperature,
            prior=objective.prior,
            samples=objective.samples,
            labels=labels if objective.supervised else None,
            generator=draw,
            gather=is_active(),
        )
        self.log("loss", elbo.loss, prog_bar=True)
        self.log_dict(monitor(first, elbo, config.shape_min))
        return elbo.loss

    def configure_optimizers(self) -> Any:
        """AdamW or LARS over two groups, warm-up, cosine."""
        optim = self.settings.optim
        lr = optim.peak(self.settings.batch_size)
        if optim.name == "adamw":
            return adamw(self, dataclasses.replace(optim, lr=lr))
        from timm.optim.lars import Lars

        # Lars adapts the rate of what decays, and neither adapts nor decays the rest.
        lars = Lars(decay_groups(self, optim), lr=lr, momentum=0.9, trust_coeff=0.02, trust_clip=True)
        return with_schedule(self, lars, optim.warmup)


@torch.no_grad()
def monitor(posterior: FactorPosterior, elbo: ELBO, shape_min: float = 1.0) -> dict[str, Tensor]:
    """The terms of the objective, and what tells a collapse of the posterior early.

    Args:
        posterior: Posteriors of a batch.
        elbo: The objective's value.
        shape_min: Lower limit of Weibull shapes.

    Returns:
        ``likelihood`` and ``kl`` as the objective has them, unweighted; ``active``: factors whose mean varies over the
        batch (variance above 0.01); ``dead``: factors whose mean never exceeds 0.01; ``entropy``: mean entropy a
        factor, in nats; ``shape_at_bound``: share of Weibull shapes at one of their limits.
    """
    mean = posterior.mean()
    # Both are spreads over the batch: a batch of one has none.
    spread = mean.var(0, correction=0)
    out = {
        "likelihood": elbo.likelihood.detach(),
        "kl": elbo.kl.detach(),
        "active": (spread > 1e-2).sum().float(),
        "dead": (mean.abs().amax(0) < 1e-2).sum().float(),
    }
    if posterior.family != "point":
        out["entropy"] = posterior.entropy().mean() / mean.shape[1]
    if isinstance(posterior, WeibullPosterior):
        at_bound = (posterior.shape >= 99.9) | (posterior.shape <= shape_min + 1e-2)
        out["shape_at_bound"] = at_bound.float().mean()
    return out
