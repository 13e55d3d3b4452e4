"""The Lightning module around any learner of hash functions, and training into a run folder."""

from typing import Any

import lightning as L
import torch
from contrastive_core.training import RunFolder, TrainSettings, fit
from contrastive_core.training.batches import order_of
from jaxtyping import Float
from torch import Tensor

from cl_retrieval.hashing.codes import bit_statistics
from cl_retrieval.hashing.heads import sign_codes
from cl_retrieval.hashing.learning import Learner, pair_batches, step_generator


class HashSystem(L.LightningModule):
    """One step of a learner, logged with what tells a collapse of the codes early.

    Args:
        learner: Model in training.
        per_epoch: Steps an epoch.
        fx: Image features of all training pairs, for the statistics of the bits.
        fy: Text features.
        seed: Seed of the draws, which depend on it and the step alone.
        log_every: Steps between rows of the log, on which the bits are looked at.
    """

    def __init__(self, learner: Learner, *, per_epoch: int, fx: Tensor, fy: Tensor, seed: int, log_every: int) -> None:
        super().__init__()
        self.learner, self.per_epoch, self.seed, self.log_every = learner, per_epoch, seed, log_every
        self.register_buffer("_fx", fx, persistent=False)
        self.register_buffer("_fy", fy, persistent=False)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Loss of one batch of pairs, after what an epoch begins with."""
        epoch, place = divmod(self.global_step, self.per_epoch)
        if place == 0:
            self.learner.begin_epoch(epoch)
        fx, fy = batch
        step = self.learner.step(fx, fy, epoch=epoch, generator=step_generator(self.seed, self.global_step))
        self.log("loss", step.loss, prog_bar=True)
        self.log_dict({name: value.detach() for name, value in step.terms.items()})
        if (self.global_step + 1) % self.log_every == 0:
            self.log_dict(self._monitor())
        return step.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The learner's own."""
        return self.learner.optimizer()

    @torch.no_grad()
    def _monitor(self) -> dict[str, float]:
        model: Any = self.learner.model
        codes = torch.cat([sign_codes(model.relaxed(f, m)) for f, m in ((self._fx, "image"), (self._fy, "text"))])
        bits = {f"bit_{name}": value for name, value in bit_statistics(codes.cpu().numpy()).items()}
        return bits | self.learner.diagnostics()


def train_learner(
    learner: Learner,
    fx: Float[Tensor, "n d"],
    fy: Float[Tensor, "n d"],
    *,
    run: RunFolder,
    batch_size: int,
    settings: TrainSettings,
) -> None:
    """Train in place, into a run folder; the learner is left on the CPU, in eval mode.

    Args:
        learner: The learner.
        fx: Image features.
        fy: Text features of the same pairs.
        run: Where logs and checkpoints go.
        batch_size: Pairs a step.
        settings: Length, seed, hardware.
    """
    loader = pair_batches(fx, fy, batch_size, settings.seed)
    system = HashSystem(
        learner, per_epoch=order_of(loader).per_epoch, fx=fx, fy=fy, seed=settings.seed, log_every=settings.log_every
    )
    fit(system, loader, run=run, settings=settings)
    learner.cpu()
    learner.finish()
    learner.eval()
