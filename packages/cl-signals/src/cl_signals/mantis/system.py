"""How batches, model and objective meet in one training step: pre-training and fine-tuning."""

import dataclasses
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from contrastive_core.training import seeded_generator, warmup_cosine
from jaxtyping import Float
from torch import Tensor, nn

from cl_signals.mantis.augment import RandomCropResize
from cl_signals.mantis.model import Mantis
from cl_signals.mantis.objective import mantis_contrastive


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """AdamW with a linear warm-up and a cosine decay to zero.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay, on all parameters.
        warmup: Share of all steps spent warming up, in [0, 1).
    """

    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise InputError("the learning rate must be positive", where="--optim.lr", why=f"got {self.lr}")
        if self.weight_decay < 0:
            raise InputError(
                "the weight decay must not be negative", where="--optim.weight-decay", why=f"got {self.weight_decay}"
            )
        if not 0 <= self.warmup < 1:
            raise InputError(
                "the warm-up is a share of all steps in [0, 1)", where="--optim.warmup", why=f"got {self.warmup}"
            )


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """The augmentation and the temperature of the contrastive objective.

    Attributes:
        temperature: Softmax temperature τ, positive.
        crop: Largest share of a series that a crop drops, in [0, 1).
        per_sample: Draw a crop for every series instead of one for the whole batch.
    """

    temperature: float = 0.1
    crop: float = 0.2
    per_sample: bool = False

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise InputError(
                "the temperature must be positive", where="--views.temperature", why=f"got {self.temperature}"
            )
        if not 0 <= self.crop < 1:
            raise InputError("the crop rate lies in [0, 1)", where="--views.crop", why=f"got {self.crop}")


def adamw(parameters: Any, optim: OptimSettings, total_steps: int) -> Any:
    """Optimiser and per-step schedule in the form Lightning takes.

    Args:
        parameters: Trainable parameters.
        optim: Learning rate, decay, warm-up share.
        total_steps: Optimiser steps of the whole run.
    """
    optimizer = torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay, betas=(0.9, 0.999))
    warmup = round(optim.warmup * total_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(min(step, total_steps), total_steps, warmup)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class PretrainSystem(L.LightningModule):
    """Contrastive pre-training: two crops of every series, one encoder, InfoNCE in one direction.

    Args:
        model: The encoder with its projector.
        optim: Optimiser settings.
        views: Augmentation and temperature.
        total_steps: Optimiser steps of the whole run, for the schedule.
        seed: Seed of the crops. The crops of a step depend on the seed and the step alone, so a resumed run sees the
            crops an uninterrupted one sees.
    """

    def __init__(
        self, model: Mantis, *, optim: OptimSettings, views: ViewSettings, total_steps: int, seed: int
    ) -> None:
        super().__init__()
        self.model = model
        self.optim = optim
        self.views = views
        self.total_steps = total_steps
        self.seed = seed
        self.crop = RandomCropResize(rate=(0.0, views.crop), per_sample=views.per_sample)

    def training_step(self, batch: list[Float[Tensor, "b 1 t"]], batch_index: int) -> Tensor:
        """Loss of one batch of series."""
        (series,) = batch
        # The micro-batch counts too: accumulated batches of one step must not share their crops.
        draw = seeded_generator(self.seed, self.global_step, batch_index)
        query = self.model.project(self.crop(series, draw))
        key = self.model.project(self.crop(series, draw))
        loss = mantis_contrastive(query, key, temperature=self.views.temperature)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, warm-up, cosine."""
        return adamw(self.parameters(), self.optim, self.total_steps)


class ClassifierSystem(L.LightningModule):
    """Cross-entropy training of a classifier, or of its head on ready-made embeddings.

    Args:
        network: Maps a batch to class logits ``[b k]``.
        optim: Optimiser settings.
        total_steps: Optimiser steps of the whole run.
        frozen: Part of the network that stays in eval mode (and without gradients) while the rest is trained.
    """

    def __init__(
        self, network: nn.Module, *, optim: OptimSettings, total_steps: int, frozen: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.optim = optim
        self.total_steps = total_steps
        self._frozen = [frozen] if frozen is not None else []  # in a list: it is already part of the network
        for part in self._frozen:
            part.requires_grad_(False)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Keep the frozen part free of dropout noise."""
        for part in self._frozen:
            part.eval()

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Cross-entropy of one batch."""
        x, labels = batch
        logits = self.network(x)
        loss = F.cross_entropy(logits, labels)
        self.log("loss", loss, prog_bar=True)
        self.log("accuracy", (logits.argmax(1) == labels).float().mean())
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW over what is trainable, warm-up, cosine."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return adamw(trainable, self.optim, self.total_steps)
