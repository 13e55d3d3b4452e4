"""How a learner of hash functions is trained: the same steps under :func:`contrastive_core.training.fit` or bare."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from contrastive_core.errors import InputError
from contrastive_core.index.interface import Modality
from contrastive_core.training.batches import batches, order_of, seeded_generator
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


@runtime_checkable
class HashModel(Protocol):
    """What turns features into relaxed codes; the signs are the code."""

    @property
    def dim(self) -> int:
        """Width of the features."""
        ...

    @property
    def bits(self) -> int:
        """Bits of a code."""
        ...

    def relaxed(self, features: Float[Tensor, "n d"], modality: Modality) -> Float[Tensor, "n bits"]:
        """Relaxed codes of unit features of one modality."""
        ...


@dataclasses.dataclass(frozen=True)
class StepTerms:
    """One step's loss and the terms it is made of, for the log."""

    loss: Float[Tensor, ""]
    terms: dict[str, Tensor]


class Learner(nn.Module, ABC):
    """A model in training. A method's learner says what an epoch begins with and what a step costs."""

    @abstractmethod
    def begin_epoch(self, epoch: int) -> None:
        """What happens once an epoch, before its first step."""

    @abstractmethod
    def step(
        self, fx: Float[Tensor, "b d"], fy: Float[Tensor, "b d"], *, epoch: int, generator: torch.Generator
    ) -> StepTerms:
        """Loss of one batch of pairs."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser of the parameters that learn."""

    def diagnostics(self) -> dict[str, float]:
        """What tells a collapse early, beside the bits; nothing by default."""
        return {}

    def finish(self) -> None:
        """What happens after the last step."""


def pair_batches(fx: Tensor, fy: Tensor, batch_size: int, seed: int) -> DataLoader[Any]:
    """Batches of pairs, none of them of a single pair, which would have no negatives.

    A last batch of one pair is avoided by the next larger batch size that leaves none.
    """
    if batch_size < 1:
        raise InputError("a batch holds at least one pair", where="--batch-size", why=f"got {batch_size}")
    size = min(batch_size, len(fx))
    while len(fx) > 1 and len(fx) % size == 1:
        size += 1
    return batches(TensorDataset(fx, fy), size, seed=seed, drop_last=False)


def optimise(
    learner: Learner,
    fx: Float[Tensor, "n d"],
    fy: Float[Tensor, "n d"],
    *,
    epochs: int = 500,
    batch_size: int = 100,
    seed: int = 0,
) -> None:
    """Train in memory, without run folder, to the weights that :func:`fit` gives.

    Args:
        learner: The learner; changed in place, left in eval mode.
        fx: Image features.
        fy: Text features, row by row of the same pairs.
        epochs: Passes over the pairs.
        batch_size: Pairs a step.
        seed: Seed of order and draws.
    """
    order = order_of(pair_batches(fx, fy, batch_size, seed))
    optimizer = learner.optimizer()
    learner.train()
    for step in range(epochs * order.per_epoch):
        epoch, place = divmod(step, order.per_epoch)
        if place == 0:
            learner.begin_epoch(epoch)
        rows = order.items(step)
        terms = learner.step(fx[rows], fy[rows], epoch=epoch, generator=step_generator(seed, step))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(terms.loss)
        optimizer.step()
    learner.finish()
    learner.eval()


def step_generator(seed: int, step: int) -> torch.Generator:
    """Source of the draws of one step, the same however the run came there."""
    return seeded_generator(seed, step)
