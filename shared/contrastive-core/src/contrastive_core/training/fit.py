"""One function that trains."""

import dataclasses
import logging
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from contrastive_core.distributed import is_active
from contrastive_core.errors import InputError, Terminated, reason
from contrastive_core.files import reading, writing
from contrastive_core.training.batches import order_of
from contrastive_core.training.callbacks import Bar, Checkpoints, NanGuard, PlainProgress, StopBySignal, Stopped
from contrastive_core.training.metrics import MetricsCSV
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
    settings: TrainSettings,
    run: RunFolder | None = None,
    validation_data: DataLoader[Any] | None = None,
    keep: Literal["last", "best"] = "last",
) -> FitResult:
    """Train a system; it is ready to use afterwards: the kept weights, on the CPU, in eval mode.

    With a run folder, logs and checkpoints go there. A run that was killed, interrupted or terminated continues with
    ``RunFolder.create(..., resume=True)`` to the same weights, bit for bit on a CPU, as one that was not. That holds
    for systems whose draws come from the global generators or from :func:`step_generator`, and for loaders made by
    :func:`batches`. Without a run folder nothing is written. The global generators are left as they were.

    With ``strategy="ddp"`` and several devices the command is started once more for each of them. A batch is then the
    batch of all processes, so that losses with ``gather=True`` give the weights of one process with that batch. Only
    the first process returns; the others end here.

    Args:
        system: Model and objective.
        train_data: Loader made by :func:`batches`.
        settings: Length, hardware, logging.
        run: Where logs and checkpoints go.
        validation_data: Batches for ``validation_step``, every ``settings.validate_every`` steps.
        keep: Weights the system has afterwards: the last, or those best by ``settings.monitor``.

    Raises:
        TrainingDivergedError: The loss or a weight is no longer finite.
        InputError: The checkpoint to resume from cannot be used, the settings ask for hardware that is not there, the
            batch does not divide among the processes, or the run folder can no longer be written.
        KeyboardInterrupt: After Ctrl-C, when the step under way is done and kept.
        Terminated: After SIGTERM, likewise.
    """
    order = order_of(train_data)
    order.share(settings.devices * settings.num_nodes)
    total = settings.total_steps(order.per_epoch)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    checkpoint = _read_checkpoint(run, system) if run is not None and run.resuming else None
    done = 0 if checkpoint is None else int(checkpoint["global_step"])
    checkpoints = Checkpoints(run, settings.checkpoint_every, settings.monitor)
    if checkpoint is not None and (done >= total or checkpoint["callbacks"]["Checkpoints"].get("ended")):
        system.load_state_dict(checkpoint["state_dict"])
        checkpoints.best = checkpoint["callbacks"]["Checkpoints"]["best"]
        _take(system, run, checkpoints, keep)
        return FitResult(done, 0.0, checkpoints.best, done < total)
    order.first, order.last = done * settings.accumulate, total * settings.accumulate
    stop = StopBySignal(checkpoints)
    callbacks: list[L.Callback] = [NanGuard(run, order), checkpoints, stop]
    if settings.progress:
        callbacks.append(Bar(leave=True) if sys.stderr.isatty() else PlainProgress(total))
    if settings.patience and validation_data is not None:
        callbacks.append(EarlyStopping(settings.monitor, patience=settings.patience, check_finite=True))

    started = time.perf_counter()
    with _quiet(), isolate_rng(), nullcontext() if run is None else writing(run.path):
        L.seed_everything(settings.seed, workers=True, verbose=False)
        trainer, metrics = _trainer(settings, run, total, callbacks, done, validation_data is not None)
        try:
            trainer.fit(
                system,
                train_data,
                validation_data,
                ckpt_path=run.checkpoint("last") if run is not None and checkpoint is not None else None,
                weights_only=True,
            )
        except Stopped as stopped:
            _raise_stopped(stopped, total, run)
        finally:
            stop.release()
        if metrics is not None:
            metrics.log_last(trainer.callback_metrics)
        checkpoints.save_end(trainer)
        _leave_group(trainer)
    _take(system, run, checkpoints, keep)
    return FitResult(trainer.global_step, time.perf_counter() - started, checkpoints.best, trainer.global_step < total)


def _raise_stopped(stopped: Stopped, total: int, run: RunFolder | None) -> None:
    kept = "; repeat the command with --resume to go on" if run is not None else ""
    kind = KeyboardInterrupt if stopped.signal == signal.SIGINT else Terminated
    raise kind(f"training ended after step {stopped.step} of {total}{kept}") from None


def _take(system: L.LightningModule, run: RunFolder | None, checkpoints: Checkpoints, keep: str) -> None:
    """Leave the system with the weights that are kept."""
    if keep == "best" and checkpoints.best is not None:
        if run is None:
            system.load_state_dict(checkpoints.best_weights or {})
        else:
            system.load_state_dict(_load_checkpoint(run, "best")["state_dict"])
    system.cpu().eval()


def _leave_group(trainer: L.Trainer) -> None:
    """What follows a training run happens once, in the first process."""
    if not is_active():
        return
    dist.barrier()
    dist.destroy_process_group()
    if not trainer.is_global_zero:
        sys.exit(0)


def _trainer(
    settings: TrainSettings, run: RunFolder | None, total: int, callbacks: list[L.Callback], done: int, validate: bool
) -> tuple[L.Trainer, MetricsCSV | None]:
    loggers: list[Logger] = []
    metrics = None
    if run is not None:
        metrics = MetricsCSV(run.path / "metrics.csv", done if run.resuming else None, lambda: trainer.global_step)
        loggers = [metrics, TensorBoardLogger(run.path, name="tensorboard", version="")]
    try:
        trainer = L.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=settings.precision,  # type: ignore[arg-type]
            max_steps=total,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip_norm or None,
            deterministic="warn" if settings.deterministic and torch.cuda.is_available() else settings.deterministic,
            log_every_n_steps=max(1, min(settings.log_every, total // 10)),
            val_check_interval=min(settings.validate_every, total) * settings.accumulate if validate else None,
            check_val_every_n_epoch=None if validate else 1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=any(isinstance(callback, Bar) for callback in callbacks),
            enable_checkpointing=False,
            enable_model_summary=False,
            logger=loggers or False,
            callbacks=callbacks,
        )
    except (ValueError, RuntimeError, L.fabric.utilities.exceptions.MisconfigurationException) as error:
        raise InputError(
            "the training options do not fit this machine",
            where="--accelerator, --devices, --strategy, --precision",
            why=reason(error),
        ) from error
    trainer.seed = settings.seed  # type: ignore[attr-defined]
    return trainer, metrics


def _load_checkpoint(run: RunFolder, name: str) -> dict[str, Any]:
    path = run.checkpoint(name)
    with reading(path, "a checkpoint cannot be read", "start anew with --overwrite"):
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state["state_dict"].items()
    return state


def _read_checkpoint(run: RunFolder, system: L.LightningModule) -> dict[str, Any]:
    """The checkpoint to resume from, whole and of this network."""
    state, path = _load_checkpoint(run, "last"), run.checkpoint("last")
    expected = {name: value.shape for name, value in system.state_dict().items()}
    why = None
    if not isinstance(state.get("global_step"), int) or state["global_step"] < 0:
        why = "it holds no number of steps"
    elif not state.get("optimizer_states"):
        why = "it holds no state of the optimiser"
    elif not {"best", "random"} <= set(dict(state.get("callbacks") or {}).get("Checkpoints") or {}):
        why = "it holds no random states"
    elif {name: getattr(value, "shape", None) for name, value in state["state_dict"].items()} != expected:
        why = "its tensors are those of another network"
    if why is not None:
        raise InputError(
            "the checkpoint to resume from cannot be used", where=path, why=why, remedy="start anew with --overwrite"
        )
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
