"""What a training run needs to know besides its model and data."""

import dataclasses

from contrastive_core.errors import require


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Length, hardware and bookkeeping of a training run.

    Attributes:
        epochs: Passes over the training data; ignored when ``steps`` is given.
        steps: Optimiser steps.
        seed: Seed of data order, dropout and augmentation.
        devices: Number of devices of a machine; each has a process, and a batch is divided among all of them.
        num_nodes: Number of machines.
        accelerator: Lightning accelerator: ``auto``, ``cpu``, ``gpu``.
        strategy: Lightning strategy: ``auto``, ``ddp``, ``fsdp``.
        precision: Lightning precision: ``32-true``, ``bf16-mixed``, ``16-mixed``.
        accumulate: Batches whose gradients make one step.
        clip_norm: Largest gradient norm, 0 for no clipping.
        deterministic: Refuse operations that do not repeat bit for bit.
        log_every: Steps between rows of metrics.csv.
        checkpoint_every: Steps between checkpoints; a killed run loses at most these.
        validate_every: Steps between validations, where there is validation data.
        monitor: Validation metric that picks the best checkpoint and stops early; lower is better.
        patience: Validations without improvement after which training stops, 0 for never.
        threads: CPU threads of torch, 0 for torch's own choice.
        progress: Show a progress bar on a terminal, a line now and then elsewhere.
    """

    epochs: int = dataclasses.field(default=100, metadata={"instead_of": "steps"})
    steps: int | None = None
    seed: int = 0
    devices: int = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate: int = 1
    clip_norm: float = 0.0
    deterministic: bool = True
    log_every: int = 10
    checkpoint_every: int = 100
    validate_every: int = 100
    monitor: str = "val_loss"
    patience: int = 0
    threads: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "devices", "num_nodes", "accumulate", "log_every", "checkpoint_every", "validate_every"):
            _check(name, getattr(self, name), 1, 10**9)
        if self.steps is not None:
            _check("steps", self.steps, 1, 10**12)
        _check("seed", self.seed, 0, 2**32 - 1)
        _check("patience", self.patience, 0, 10**9)
        _check("threads", self.threads, 0, 4096)
        require(0 <= self.clip_norm < float("inf"), "--clip-norm", self.clip_norm, "a number that is not negative")

    def total_steps(self, batches_per_epoch: int) -> int:
        """Optimiser steps of the whole run.

        Args:
            batches_per_epoch: Batches in one pass over the training data.
        """
        if self.steps is not None:
            return self.steps
        return max(1, self.epochs * batches_per_epoch // self.accumulate)


def _check(name: str, value: int, low: int, high: int) -> None:
    require(low <= value <= high, "--" + name.replace("_", "-"), value, f"a whole number from {low} to {high}")
