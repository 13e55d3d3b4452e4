"""One function that trains."""

import dataclasses
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from contrastive_core.distributed import is_active
from contrastive_core.errors import InputError
from contrastive_core.files import writing
from contrastive_core.training.batches import order_of
from contrastive_core.training.callbacks import Checkpoints, MetricsCSV, NanGuard, PlainProgress
from contrastive_core.training.run_folder import RunFolder
from contrastive_core.training.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class FitResult:
    """How a training run ended.

    Attributes:
        steps: Optimiser steps taken in the whole run, resumed parts included.
        seconds: Wall time of this part.
        best: Best value of the monitored metric, if there was validation.
        stopped_early: Whether the run ended before its last step.
    """

    steps: int
    seconds: float
    best: float | None
    stopped_early: bool


def fit(
    system: L.LightningModule,
    train_data: DataLoader[Any],
    *,
    run: RunFolder,
    settings: TrainSettings,
    validation_data: DataLoader[Any] | None = None,
) -> FitResult:
    """Train a system and leave logs and checkpoints in the run folder.

    A run that was killed, or stopped with Ctrl-C, continues with ``RunFolder.create(..., resume=True)`` to the same
    weights, bit for bit on a CPU, as one that was not. That holds for systems whose draws come from the global
    generators or from :func:`seeded_generator`, and for loaders made by :func:`batches`.

    With ``strategy="ddp"`` and several devices the command is started once more for each of them. A batch is then the
    batch of all processes, so that losses with ``gather=True`` give the weights of one process with that batch. Only
    the first process returns; the others end here.

    Args:
        system: Model and objective.
        train_data: Loader made by :func:`batches`.
        run: Where everything goes.
        settings: Length, hardware, logging.
        validation_data: Batches for ``validation_step``, every ``settings.validate_every`` steps.

    Raises:
        TrainingDivergedError: The loss or a weight is no longer finite.
        InputError: The checkpoint to resume from cannot be read, the settings ask for hardware that is not there, the
            batch does not divide among the processes, or the run folder can no longer be written.
        KeyboardInterrupt: After Ctrl-C; the last checkpoint is kept.
    """
    order = order_of(train_data)
    order.share(settings.devices)
    total = settings.total_steps(order.per_epoch)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    done = _resume_step(run)
    order.first, order.last = done * settings.accumulate, total * settings.accumulate
    checkpoints = Checkpoints(run, settings.checkpoint_every, settings.monitor)
    callbacks: list[L.Callback] = [NanGuard(run, order), checkpoints]
    if settings.progress:
        callbacks.append(RichProgressBar(leave=True) if sys.stderr.isatty() else PlainProgress(total))
    stop = None
    if settings.patience and validation_data is not None:
        stop = EarlyStopping(settings.monitor, patience=settings.patience, check_finite=True)
        callbacks.append(stop)
    if done >= total:
        _load_weights(system, run)
        return FitResult(done, 0.0, None, False)

    if not run.resuming:
        L.seed_everything(settings.seed, workers=True, verbose=False)
    started = time.perf_counter()
    with _quiet(), writing(run.path):
        trainer = _trainer(settings, run, total, callbacks, done if run.resuming else None, validation_data is not None)
        with checkpoints.watching(trainer, system):
            trainer.fit(
                system,
                train_data,
                validation_data,
                ckpt_path=run.checkpoint("last") if run.resuming else None,
                weights_only=True,
            )
        if trainer.interrupted:
            raise KeyboardInterrupt
        checkpoints.save_final(trainer)
        _leave_group(trainer)
    return FitResult(trainer.global_step, time.perf_counter() - started, checkpoints.best, trainer.global_step < total)


def _leave_group(trainer: L.Trainer) -> None:
    """What follows a training run happens once, in the first process."""
    if not is_active():
        return
    dist.barrier()
    dist.destroy_process_group()
    if not trainer.is_global_zero:
        sys.exit(0)


def _trainer(
    settings: TrainSettings,
    run: RunFolder,
    total: int,
    callbacks: list[L.Callback],
    resume_at: int | None,
    validate: bool,
) -> L.Trainer:
    try:
        return L.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            strategy=settings.strategy,
            precision=settings.precision,  # type: ignore[arg-type]
            max_steps=total,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip_norm or None,
            deterministic="warn" if settings.deterministic and torch.cuda.is_available() else settings.deterministic,
            log_every_n_steps=settings.log_every,
            val_check_interval=settings.validate_every * settings.accumulate if validate else None,
            check_val_every_n_epoch=None if validate else 1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=any(isinstance(callback, RichProgressBar) for callback in callbacks),
            enable_checkpointing=False,
            enable_model_summary=False,
            logger=[
                MetricsCSV(run.path / "metrics.csv", resume_at),
                TensorBoardLogger(run.path, name="tensorboard", version=""),
            ],
            callbacks=callbacks,
        )
    except (ValueError, RuntimeError, L.fabric.utilities.exceptions.MisconfigurationException) as error:
        raise InputError(
            "the training options do not fit this machine",
            where="--accelerator, --devices, --strategy, --precision",
            why=str(error).splitlines()[0],
        ) from error


def _resume_step(run: RunFolder) -> int:
    return int(_read_checkpoint(run)["global_step"]) if run.resuming else 0


def _load_weights(system: L.LightningModule, run: RunFolder) -> None:
    system.load_state_dict(_read_checkpoint(run)["state_dict"])


def _read_checkpoint(run: RunFolder) -> dict[str, Any]:
    path = run.checkpoint("last")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state["global_step"], state["state_dict"]
    except Exception as error:  # truncated and foreign files fail in many ways inside the reader
        raise InputError(
            "the checkpoint to resume from cannot be read",
            where=path,
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy="start anew with --overwrite",
        ) from error
    return state


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice on workers, tips and hardware, which tells a user nothing; warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for text in (
                ".*does not have many workers.*",
                ".*GPU available but not used.*",
                ".*treespec.*",
                ".*isinstance.*",
            ):
                warnings.filterwarnings("ignore", message=text)
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
