"""A run that is killed at any write continues to the same bits: checkpoints, log, validation, one by one."""

import os
import random
import signal
import traceback

import lightning as L
import numpy as np
import pytest
import torch
from contrastive_core.training import RunFolder, TrainSettings, batches, fit, step_generator
from contrastive_core.training.callbacks import Checkpoints
from contrastive_core.training.metrics import MetricsCSV
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.unchecked  # the checks of types draw from Python's global generator themselves

SETTINGS = TrainSettings(steps=8, log_every=1, checkpoint_every=3, validate_every=2, progress=False, accelerator="cpu")


class Noisy(L.LightningModule):
    """Draws from every generator there is, in training and in validation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.moved = torch.nn.Linear(3, 1), torch.nn.Buffer(torch.zeros(1))

    def training_step(self, batch, index):
        (x,) = batch
        foreign = random.random() + np.random.rand()  # noqa: NPY002
        noise = torch.rand(3) + torch.rand(3, generator=step_generator(self, index)) + foreign
        loss = (self.net(x + noise) - 1).square().mean()
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, index):
        self.moved += self.net.weight.detach().sum()

    def validation_step(self, batch, index):
        self.log("val_loss", (self.net(batch[0]) - torch.rand(1)).square().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def train(folder, *, resume=False):
    data = TensorDataset(torch.randn(12, 3, generator=torch.Generator().manual_seed(1)))
    with RunFolder.create(folder, {"seed": 0}, resume=resume) as run:
        system = Noisy()
        fit(
            system,
            batches(data, 4, seed=0),
            settings=SETTINGS,
            run=run,
            validation_data=DataLoader(data, 12),
            keep="best",
        )
        run.save_model(system.state_dict(), {"kind": "noisy"})
    return 0


def kill_at(moment):
    """Die at the n-th write: before a checkpoint, before a row of the log, as a validation ends."""
    count = [0]

    def dying(function):
        def wrapper(*args, **kwargs):
            count[0] += 1
            if count[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    Checkpoints._save = dying(Checkpoints._save)
    MetricsCSV.log_metrics = dying(MetricsCSV.log_metrics)
    Noisy.on_validation_epoch_end = dying(lambda self: None)


def forked(task):
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = task()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


WHOLE = []


@pytest.fixture
def whole(_checked_shapes, tmp_path_factory):
    """A run that nothing disturbed, made once."""
    if not WHOLE:
        torch.set_num_threads(1)
        WHOLE.append(tmp_path_factory.mktemp("whole") / "run")
        assert forked(lambda: train(WHOLE[0])) == 0
    return WHOLE[0]


@pytest.mark.parametrize("moment", range(1, 24))
def test_killed_at_any_write(whole, tmp_path, moment):
    def killed():
        kill_at(moment)
        return train(tmp_path / "run")

    status = forked(killed)
    if status == 0:
        assert moment > 18, "the run has fewer writes than it should"
        return
    assert status == -signal.SIGKILL
    assert forked(lambda: train(tmp_path / "run", resume=True)) == 0
    expected, actual = (load_file(run / "model.safetensors") for run in (whole, tmp_path / "run"))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert RunFolder(tmp_path / "run").metrics() == RunFolder(whole).metrics()
    left = [path.name for path in (tmp_path / "run").rglob(".unfinished*")]
    assert not left
