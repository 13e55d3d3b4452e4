"""How a step of hashing from few pairs is trained and watched; what it costs is each method's own."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from contrastive_core.errors import require
from contrastive_core.index.interface import Modality
from contrastive_core.training import step_generator
from contrastive_core.training.batches import order_of
from jaxtyping import Float
from torch import Tensor

from cl_retrieval.hashing.codes import bit_statistics
from cl_retrieval.hashing.heads import sign_codes


@dataclasses.dataclass(frozen=True)
class AdamSettings:
    """Adam at a constant rate.

    Attributes:
        lr: Learning rate.
    """

    lr: float = 1e-4

    def __post_init__(self) -> None:
        require(0 < self.lr <= 1e3, "--optim.lr", self.lr, "a positive number, at most 1000")


class Term(NamedTuple):
    """A term of a loss, and what it is multiplied by."""

    weight: float
    value: Float[Tensor, ""]


class HashingSystem(L.LightningModule, ABC):
    """Hash functions and the training pairs they learn from; a method says what a step and an epoch are.

    An epoch is a pass over the pairs, however many batches make one optimiser step.

    Args:
        model: Hash functions, a :class:`cl_retrieval.hashing.codes.HashModel`.
        fx: Unit features of the training images, ``[n d]``.
        fy: Unit features of their texts.
    """

    fx: Tensor
    fy: Tensor
    model: Any

    def __init__(self, model: torch.nn.Module, fx: Float[Tensor, "n d"], fy: Float[Tensor, "n d"]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("fx", fx, persistent=False)
        self.register_buffer("fy", fy, persistent=False)

    @abstractmethod
    def terms(
        self, fx: Float[Tensor, "b d"], fy: Float[Tensor, "b d"], *, epoch: int, generator: torch.Generator
    ) -> Mapping[str, Term]:
        """Terms of the loss of one batch of pairs, means over the pairs of all processes."""

    def begin_epoch(self, epoch: int, progress: float) -> None:
        """What happens once an epoch, before its first step; ``progress`` is the share of the run that is done."""

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Loss of a batch of pairs: features of images and of texts, each ``[b d]``."""
        epoch = self._enter_epoch(index)
        terms = self.terms(*batch, epoch=epoch, generator=step_generator(self, index))
        loss = weighted_sum(terms)
        self.log("loss", loss, prog_bar=True)
        if self._is_logged():
            self.log_dict({name: term.weight * term.value.detach() for name, term in terms.items()})
            self.log_dict({f"{name}_weight": term.weight for name, term in terms.items()})
            self.log_dict(self.diagnostics())
        return loss

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """What tells a collapse of the codes early: statistics of the bits of all training pairs."""
        sides: tuple[tuple[Tensor, Modality], ...] = ((self.fx, "image"), (self.fy, "text"))
        codes = torch.cat([sign_codes(self.model.relaxed(features, modality)) for features, modality in sides])
        return {f"bit_{name}": value for name, value in bit_statistics(codes.cpu().numpy()).items()}

    def _is_logged(self) -> bool:
        """Whether this step is written down; looking at the bits every step would cost more than the step."""
        done = self.global_step + 1
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(self.trainer.loggers) and (done % every == 0 or done == self.trainer.max_steps)

    def _enter_epoch(self, index: int) -> int:
        """The epoch of this step; begins it where the step is its first."""
        accumulate, step = self.trainer.accumulate_grad_batches, self.global_step
        per_epoch = order_of(self.trainer.train_dataloader).per_epoch  # type: ignore[arg-type]
        epoch, before = (at * accumulate // per_epoch for at in (step, step - 1))
        if epoch != before and index % accumulate == 0:
            self.begin_epoch(epoch, step / self.trainer.max_steps)
        return epoch


def weighted_sum(terms: Mapping[str, Term]) -> Float[Tensor, ""]:
    """The loss: every term times its weight."""
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()
