"""What happens around the steps of a run: checkpoints, random states, the guard against NaN, the end by a signal."""

import random
import signal
import sys
import time
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from contrastive_core.data.samplers import Order
from contrastive_core.distributed import is_active
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write
from contrastive_core.training.run_folder import RunFolder


class TrainingDivergedError(InputError):
    """The loss became NaN or infinite."""


class NanGuard(L.Callback):
    """Stop at the first loss that is not finite, before it reaches the weights."""

    def __init__(self, run: RunFolder | None, order: Order) -> None:
        self.run, self.order = run, order
        self._batch = order.first - 1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the batches, to name the one that fails."""
        self._batch += 1

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Look at the loss."""
        if torch.isfinite(loss):
            return
        kept = ""
        if self.run is not None:
            checkpoint = self.run.checkpoint("last")
            name = f"{checkpoint.parent.name}/{checkpoint.name}" if checkpoint.is_file() else "none yet"
            kept = f"; the last good checkpoint is {name}"
        raise TrainingDivergedError(
            f"training diverged: the loss is {float(loss.detach())} at step {trainer.global_step + 1}",
            where=None if self.run is None else self.run.path,
            why=f"the batch holds items {_listed(self.order.items(self._batch))} of the training data, counted "
            f"from 0{kept}",
            remedy="lower the learning rate, clip gradients (--clip-norm 1), or check the data for extreme values",
        )


def _listed(items: list[int], most: int = 32) -> str:
    shown = ", ".join(map(str, sorted(items)[:most]))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


class Checkpoints(L.Callback):
    """Keep the weights: ``last.ckpt`` every few steps, ``best.ckpt`` when the monitored metric improves.

    The checkpoint of a step is written when the next one begins, after its row in metrics.csv, its validation and
    whatever the system does at its end; so a run that was killed anywhere finds nothing missing. The random states
    travel with it and are put back before the first batch of a resumed run, which draws what the uninterrupted run
    would have drawn.

    Args:
        run: Where checkpoints go; without a run only the best weights are kept, in memory.
        every: Steps between checkpoints.
        monitor: Validation metric, lower is better.
    """

    def __init__(self, run: RunFolder | None, every: int, monitor: str) -> None:
        self.run, self.every, self.monitor = run, every, monitor
        self.best: float | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.ended = False
        self._pending: list[dict[str, Any]] | None = None
        self._saved = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The step a run begins with needs no checkpoint."""
        self._saved = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the random states of a checkpoint back; write the checkpoint of the step before where one is due."""
        if self._pending is not None:
            self._restore(trainer, self._pending)
            self._pending = None
        if trainer.global_step % self.every == 0:
            self.save_last(trainer)

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
            if self.run is None:
                self.best_weights = {name: entry.detach().clone() for name, entry in pl_module.state_dict().items()}
            else:
                self._save(trainer, "best")

    def save_last(self, trainer: L.Trainer) -> None:
        """Write ``last.ckpt`` unless this step has it."""
        if self.run is not None and self._saved != trainer.global_step:
            self._save(trainer, "last")
            self._saved = trainer.global_step

    def save_end(self, trainer: L.Trainer) -> None:
        """Write the checkpoint of a run that has ended; of one that stopped early, also that it is not to go on."""
        if trainer.global_step < trainer.max_steps:
            self.ended, self._saved = True, -1
        self.save_last(trainer)

    def _save(self, trainer: L.Trainer, name: str) -> None:
        """Write one checkpoint; an old one of the name stays whole until the new one is."""
        run, module = self.run, trainer.lightning_module
        if run is None or module is None:
            return
        for parameter_name, parameter in module.named_parameters():
            if not torch.isfinite(parameter).all():
                raise TrainingDivergedError(
                    f"training diverged: {parameter_name} is not finite at step {trainer.global_step}",
                    where=run.path,
                    remedy="lower the learning rate, or clip gradients (--clip-norm 1)",
                )
        if trainer.is_global_zero:
            with atomic_write(run.checkpoint(name)) as temporary:
                trainer.save_checkpoint(temporary)
        else:  # takes part in collecting the states, writes nothing
            trainer.save_checkpoint(run.checkpoint(name))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Forget the batch that has just begun: it is to be done again, and must not count for the next validation."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for scope in ("total", "current"):
            progress[scope]["ready"] = progress[scope]["completed"]

    def state_dict(self) -> dict[str, Any]:
        """Best score, and the random states of all processes."""
        states: list[dict[str, Any]] = [_random_state()]
        if is_active():
            states *= dist.get_world_size()
            dist.all_gather_object(states, _random_state())
        return {"best": self.best, "random": states, "ended": self.ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the random states until the first batch."""
        self.best = state_dict["best"]
        self._pending = state_dict["random"]


class StopBySignal(L.Callback):
    """End a run between two steps when it is interrupted or terminated, with a checkpoint of the last step.

    A second signal ends it at once. Processes of one run stop at the same step.

    Args:
        checkpoints: Writes the checkpoint.

    Attributes:
        signal: The signal that came, if one did.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen, after Lightning has set up handlers of its own."""
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._handlers[number] = signal.signal(number, self._remember)
            except ValueError:  # not the main thread, which alone hears signals
                return

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self.release()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End here if a signal came."""
        came = self.signal or 0
        if is_active():
            flag = torch.tensor(came, device=pl_module.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            came = int(flag)
        if came:
            self.signal = came
            self.checkpoints.save_last(trainer)
            raise Stopped(came, trainer.global_step)

    def release(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


class Stopped(BaseException):  # noqa: N818 - as KeyboardInterrupt, it is no error
    """A run was ended by a signal.

    Args:
        signal: Number of the signal.
        step: Steps done.
    """

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(signal, step)
        self.signal, self.step = signal, step


class Bar(RichProgressBar):
    """Lightning's bar without its count of epochs: a run is one long epoch."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"


class PlainProgress(L.Callback):
    """A line of progress now and then, where there is no terminal for a bar.

    Args:
        total: Steps of the run.
        seconds: Longest silence.
    """

    def __init__(self, total: int, seconds: float = 15.0) -> None:
        self.total, self.seconds = total, seconds
        self.every = max(1, total // 10)
        self._printed, self._last = -1, 0.0
        self._start, self._first = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = self._last = time.perf_counter()
        self._first = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print every tenth of the run, and when nothing was printed for a while."""
        step, now = trainer.global_step, time.perf_counter()
        due = step % self.every == 0 or step == self.total or now - self._last >= self.seconds
        if not trainer.is_global_zero or not due or step == self._printed:
            return
        self._printed, self._last = step, now
        loss = trainer.callback_metrics.get("loss")
        left = (now - self._start) / max(step - self._first, 1) * (self.total - step)
        parts = [f"step {step}/{self.total}"]
        parts += [] if loss is None else [f"loss {float(loss):.4f}"]
        parts += [f"{int(left) // 60}:{int(left) % 60:02d} left"] if step < self.total else []
        print("  ".join(parts), file=sys.stderr, flush=True)


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
