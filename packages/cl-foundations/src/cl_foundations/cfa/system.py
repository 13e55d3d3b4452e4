"""How images, model and objective meet in one training step."""

import dataclasses
from typing import Any, Literal

import lightning as L
import torch
from contrastive_core.errors import InputError
from contrastive_core.training import seeded_generator, warmup_cosine
from torch import Tensor

from cl_foundations.cfa.model import FactorModel
from cl_foundations.cfa.objective import DEFAULT_ETA, kl_weight, negative_elbo
from cl_foundations.cfa.posterior import FactorPosterior, GammaPrior, WeibullPosterior
from cl_foundations.cfa.views import ViewSettings, random_view


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """Weights of the negative evidence lower bound.

    Attributes:
        eta: Weight η of the KL; 0.1 a factor with infonce and 0.01 an image with the spectral likelihoods if not given.
        kl_warmup: Share of all steps over which η grows from zero, in [0, 1).
        temperature: Temperature of infonce, positive.
        samples: Posterior draws per view, for the sampled likelihoods.
        prior_shape: Shape α of the Gamma prior of cnfa; below 1 favours sparse factors.
        prior_rate: Rate β of the Gamma prior of cnfa.
        supervised: Images of one class are each other's positives (infonce only; needs labels).
    """

    eta: float | None = None
    kl_warmup: float = 0.1
    temperature: float = 0.2
    samples: int = 1
    prior_shape: float = 1.0
    prior_rate: float = 1.0
    supervised: bool = False

    def __post_init__(self) -> None:
        def check(option: str, fine: bool, wanted: str, value: object) -> None:
            if not fine:
                raise InputError(f"the option is {wanted}", where=option, why=f"got {value}")

        if self.eta is not None:
            check("--eta", 0 <= self.eta < float("inf"), "not negative", self.eta)
        check("--kl-warmup", 0 <= self.kl_warmup < 1, "a share of all steps in [0, 1)", self.kl_warmup)
        check("--temperature", 0 < self.temperature < float("inf"), "positive", self.temperature)
        check("--samples", self.samples >= 1, "at least 1", self.samples)
        check("--prior-shape", 0 < self.prior_shape < float("inf"), "positive", self.prior_shape)
        check("--prior-rate", 0 < self.prior_rate < float("inf"), "positive", self.prior_rate)

    @property
    def prior(self) -> GammaPrior:
        """Prior of non-negative factors."""
        return GammaPrior(self.prior_shape, self.prior_rate)


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """Optimiser with a linear warm-up and a cosine decay to zero.

    Attributes:
        name: ``adamw``, or ``lars`` (trust coefficient 0.02 with clipping; biases and norms without decay and
            adaptation).
        lr: Peak learning rate; 0.002 for adamw, and 0.4 a 256 images of batch for lars, if not given.
        weight_decay: Weight decay of the matrices and kernels.
        warmup: Share of all steps spent warming up, in [0, 1).
    """

    name: Literal["adamw", "lars"] = "adamw"
    lr: float | None = None
    weight_decay: float = 1e-4
    warmup: float = 0.1

    def __post_init__(self) -> None:
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError("the learning rate must be positive", where="--optim.lr", why=f"got {self.lr}")
        if self.weight_decay < 0:
            raise InputError(
                "the weight decay must not be negative", where="--optim.weight-decay", why=f"got {self.weight_decay}"
            )
        if not 0 <= self.warmup < 1:
            raise InputError(
                "the warm-up is a share of all steps in [0, 1)", where="--optim.warmup", why=f"got {self.warmup}"
            )


class FactorSystem(L.LightningModule):
    """Two views of every image, one network, the negative evidence lower bound.

    Args:
        model: Backbone and head.
        objective: Weights of the objective.
        optim: Optimiser.
        views: Augmentation.
        batch_size: Images of a batch, for the learning rate of LARS.
        total_steps: Optimiser steps of the whole run, for the schedules.
        seed: Seed of views and posterior draws, which depend on it and the step alone, so that a resumed run draws what
            an uninterrupted one draws.
    """

    def __init__(
        self,
        model: FactorModel,
        *,
        objective: ObjectiveSettings,
        optim: OptimSettings,
        views: ViewSettings,
        batch_size: int,
        total_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.optim = optim
        self.views = views
        self.batch_size = batch_size
        self.total_steps = total_steps
        self.seed = seed
        self.eta = DEFAULT_ETA[model.config.likelihood] if objective.eta is None else objective.eta

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Loss of one batch of images ``[b 3 h w]`` and their classes ``[b]``, -1 where they have none."""
        images, labels = batch
        # The micro-batch counts too: accumulated batches of one step must not share their views.
        draw = seeded_generator(self.seed, self.global_step, batch_index, self.global_rank)
        side = self.model.config.image_size
        pair = torch.cat([random_view(images, side, self.views, draw) for _ in range(2)])
        first, second = self.model(pair).halves()
        terms = negative_elbo(
            first,
            second,
            likelihood=self.model.config.likelihood,
            eta=kl_weight(self.global_step, self.total_steps, self.eta, self.objective.kl_warmup),
            temperature=self.objective.temperature,
            prior=self.objective.prior,
            samples=self.objective.samples,
            labels=labels if self.objective.supervised else None,
            generator=draw,
            gather=torch.distributed.is_available() and torch.distributed.is_initialized(),
        )
        self.log("loss", terms.loss, prog_bar=True)
        self.log("likelihood", terms.likelihood)
        self.log_dict({**monitor(first, self.model.config.shape_min), "kl": terms.kl.detach()})
        return terms.loss

    def configure_optimizers(self) -> Any:
        """AdamW or LARS over two groups, warm-up, cosine."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": self.optim.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if self.optim.name == "lars":
            from timm.optim.lars import Lars

            lr = self.optim.lr or 0.4 * self.batch_size / 256
            optimizer = Lars(groups, lr=lr, momentum=0.9, trust_coeff=0.02, trust_clip=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.optim.lr or 2e-3)
        warmup = round(self.optim.warmup * self.total_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(min(step, self.total_steps) + 1, self.total_steps + 1, warmup + 1)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def monitor(posterior: FactorPosterior, shape_min: float = 1.0) -> dict[str, Tensor]:
    """What tells a collapse of the posterior early.

    Args:
        posterior: Posteriors of a batch.
        shape_min: Lower limit of Weibull shapes.

    Returns:
        ``active``: factors whose mean varies over the batch (variance above 0.01); ``dead``: factors whose mean never
        exceeds 0.01; ``entropy``: mean entropy a factor, in nats; ``shape_at_bound``: share of Weibull shapes at one
        of their limits.
    """
    mean = posterior.mean()
    # Both are spreads over the batch: a batch of one has none.
    spread = mean.var(0, correction=0)
    out = {"active": (spread > 1e-2).sum().float(), "dead": (mean.abs().amax(0) < 1e-2).sum().float()}
    if posterior.family != "point":
        out["entropy"] = posterior.entropy().mean() / mean.shape[1]
    if isinstance(posterior, WeibullPosterior):
        at_bound = (posterior.shape >= 99.9) | (posterior.shape <= shape_min + 1e-2)
        out["shape_at_bound"] = at_bound.float().mean()
    return out
