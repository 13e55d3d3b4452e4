"""What happens around the steps of a run: checkpoints, random states, the guard against NaN, the log."""

import csv
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from contrastive_core.distributed import is_active
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, writing
from contrastive_core.training.batches import BatchOrder
from contrastive_core.training.run_folder import RunFolder, is_follower


class TrainingDivergedError(InputError):
    """The loss became NaN or infinite."""


class NanGuard(L.Callback):
    """Stop at the first loss that is not finite, before it reaches the weights."""

    def __init__(self, run: RunFolder, order: BatchOrder) -> None:
        self.run, self.order = run, order
        self._batch = order.first - 1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the batches, to name the one that fails."""
        self._batch += 1

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Look at the loss."""
        if not torch.isfinite(loss):
            checkpoint = self.run.checkpoint("last")
            kept = f"{checkpoint.parent.name}/{checkpoint.name}" if checkpoint.is_file() else "none yet"
            raise TrainingDivergedError(
                f"training diverged: the loss is {float(loss.detach())} at step {trainer.global_step}",
                where=self.run.path,
                why=f"the batch holds items {_listed(self.order.items(self._batch))} of the training data, counted "
                f"from 0; the last good checkpoint is {kept}",
                remedy="lower the learning rate, clip gradients (--clip-norm 1), or check the data for extreme values",
            )


def _listed(items: list[int], most: int = 32) -> str:
    shown = ", ".join(map(str, sorted(items)[:most]))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


class Checkpoints(L.Callback):
    """Write ``last.ckpt`` every few steps and ``best.ckpt`` when the monitored metric improves.

    The random states travel with a checkpoint and are put back before the first batch of a resumed run, so that it
    draws what the uninterrupted run would have drawn.
    """

    def __init__(self, run: RunFolder, every: int, monitor: str) -> None:
        self.run, self.every, self.monitor = run, every, monitor
        self.best: float | None = None
        self._pending: list[dict[str, Any]] | None = None
        self._saved = -1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the random states of the checkpoint back."""
        if self._pending is not None:
            self._restore(trainer, self._pending)
            self._pending = None

    @contextmanager
    def watching(self, trainer: L.Trainer, system: L.LightningModule) -> Iterator[None]:
        """Write a checkpoint after every batch at which one is due.

        After the system's own ``on_train_batch_end``, which may move a teacher; the hook of a callback comes before it.
        """
        ended = system.on_train_batch_end

        def hook(outputs: Any, batch: Any, batch_idx: int) -> None:
            ended(outputs, batch, batch_idx)
            step = trainer.global_step
            if step % self.every == 0 and step != self._saved:
                self.save(trainer, "last")
                self._saved = step

        system.on_train_batch_end = hook  # type: ignore[method-assign]
        try:
            yield
        finally:
            del system.on_train_batch_end

    def _restore(self, trainer: L.Trainer, states: list[dict[str, Any]]) -> None:
        if len(states) != trainer.world_size:
            raise InputError(
                "a run is resumed with the number of processes it was started with",
                where="--devices",
                why=f"it had {len(states)}, now there are {trainer.world_size}",
            )
        _restore_random(states[trainer.global_rank])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the best."""
        score = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or score is None:
            return
        # Processes may differ in the last digit, and all have to write or none.
        value = float(trainer.strategy.broadcast(float(score)))
        if self.best is None or value < self.best:
            self.best = value
            self.save(trainer, "best")

    def save_final(self, trainer: L.Trainer) -> None:
        """Write the last checkpoint unless the last step has one."""
        if self._saved != trainer.global_step:
            self.save(trainer, "last")

    def save(self, trainer: L.Trainer, name: str) -> None:
        """Write one checkpoint; an old one of the name stays whole until the new one is."""
        assert trainer.lightning_module is not None
        for parameter_name, parameter in trainer.lightning_module.named_parameters():
            if not torch.isfinite(parameter).all():
                raise TrainingDivergedError(
                    f"training diverged: {parameter_name} is not finite at step {trainer.global_step}",
                    where=self.run.path,
                    remedy="lower the learning rate, or clip gradients (--clip-norm 1)",
                )
        if trainer.is_global_zero:
            with atomic_write(self.run.checkpoint(name)) as temporary:
                trainer.save_checkpoint(temporary)
        else:  # takes part in collecting the states, writes nothing
            trainer.save_checkpoint(self.run.checkpoint(name))

    def state_dict(self) -> dict[str, Any]:
        """Best score, and the random states of all processes."""
        states: list[dict[str, Any]] = [_random_state()]
        if is_active():
            states *= dist.get_world_size()
            dist.all_gather_object(states, _random_state())
        return {"best": self.best, "random": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the random states until the first batch."""
        self.best = state_dict["best"]
        self._pending = state_dict["random"]


class PlainProgress(L.Callback):
    """A line of progress now and then, where there is no terminal for a bar."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.every = max(1, total // 10)
        self._printed = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print every tenth of the run."""
        step = trainer.global_step
        if not trainer.is_global_zero:
            return
        if (step % self.every == 0 or step == self.total) and step != self._printed:
            self._printed = step
            loss = trainer.callback_metrics.get("loss")
            tail = "" if loss is None else f"  loss {float(loss):.4f}"
            print(f"step {step}/{self.total}{tail}", file=sys.stderr, flush=True)


class MetricsCSV(Logger):
    """``metrics.csv``: one row a logging step, every metric a column.

    Args:
        path: The file.
        resume_at: Step a resumed run continues from; later rows of the interrupted run are dropped.
    """

    def __init__(self, path: Path, resume_at: int | None) -> None:
        super().__init__()
        self._path = path
        self._columns: list[str] = ["step"]
        self._rows: dict[int, dict[str, Any]] = {}
        if resume_at is not None and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or ["step"])
                for row in reader:
                    # A kill can leave half a line at the end.
                    if row["step"] and row["step"].isdigit() and int(row["step"]) < resume_at:
                        self._rows[int(row["step"])] = row
        if not is_follower():
            self._write()

    @property
    def name(self) -> str:
        """Name shown by Lightning."""
        return "metrics"

    @property
    def version(self) -> str:
        """One per run folder."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one row, or more columns to the last."""
        at = int(step or 0)
        values = {name: f"{value:.8g}" for name, value in metrics.items() if name != "epoch"}
        new = [name for name in values if name not in self._columns]
        self._columns += new
        known = at in self._rows
        row = self._rows.setdefault(at, {"step": at})
        row.update(values)
        if new or known:
            self._write()
        else:
            with writing(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _write(self) -> None:
        with atomic_write(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self._rows.values())


def _random_state() -> dict[str, Any]:
    """States of all generators as tensors and plain numbers, which load without running code."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(internal), gauss_next],
    }


def _restore_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
