"""The optimiser of most methods: AdamW, a linear warm-up and half a cosine."""

import dataclasses
from typing import Any, Literal

import lightning as L
import torch

from contrastive_core.errors import require
from contrastive_core.training.schedules import warmup_cosine


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """AdamW with a linear warm-up and a cosine decay to zero.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay.
        warmup: Share of all steps spent warming up, in [0, 1).
        decay: What decays: ``matrices`` (weights and kernels, not biases and norms), or ``all`` parameters.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.1
    decay: Literal["matrices", "all"] = "matrices"

    def __post_init__(self) -> None:
        require(0 < self.lr <= 1e3, "--optim.lr", self.lr, "a positive number, at most 1000")
        require(0 <= self.weight_decay <= 1e3, "--optim.weight-decay", self.weight_decay, "a number from 0 to 1000")
        require(0 <= self.warmup < 1, "--optim.warmup", self.warmup, "a share of all steps in [0, 1)")


def adamw(system: L.LightningModule, optim: OptimSettings) -> dict[str, Any]:
    """Optimiser and schedule of a system's trainable parameters, for ``configure_optimizers``.

    Args:
        system: The system, in a trainer that knows its number of steps (:func:`contrastive_core.training.fit`).
        optim: Learning rate, decay, warm-up.
    """
    optimizer = torch.optim.AdamW(decay_groups(system, optim), lr=optim.lr, betas=(0.9, 0.999))
    return with_schedule(system, optimizer, optim.warmup)


def decay_groups(system: torch.nn.Module, optim: OptimSettings) -> list[dict[str, Any]]:
    """Trainable parameters in two groups, with and without weight decay."""
    trainable = [parameter for parameter in system.parameters() if parameter.requires_grad]
    decays = [parameter for parameter in trainable if parameter.ndim > 1 or optim.decay == "all"]
    others = [parameter for parameter in trainable if parameter.ndim <= 1 and optim.decay != "all"]
    groups = [{"params": decays, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def with_schedule(system: L.LightningModule, optimizer: torch.optim.Optimizer, warmup: float) -> dict[str, Any]:
    """An optimiser with a learning rate that rises linearly, then falls by half a cosine over the trainer's steps.

    The first step has already a positive rate, the last one still has.

    Args:
        system: The system, in its trainer.
        optimizer: Its learning rates are the peaks.
        warmup: Share of all steps spent warming up, in [0, 1).
    """
    total = int(system.trainer.max_steps)
    rising = round(warmup * total)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(min(step, total) + 1, total + 1, rising + 1)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
