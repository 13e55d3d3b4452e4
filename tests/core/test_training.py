"""Training: bit-identical resumption after a kill, the guard against NaN, logs, folders, schedules."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from contrastive_core.data import ShuffledBatches
from contrastive_core.errors import InputError
from contrastive_core.nn import EMATeacher
from contrastive_core.training import (
    RunFolder,
    TrainingDivergedError,
    TrainSettings,
    batches,
    fit,
    seeded_generator,
    warmup_cosine,
)
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

SCRIPT = """
import sys, time, torch, lightning as L
from torch.utils.data import TensorDataset
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
torch.set_num_threads(1)

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 1))
    def training_step(self, batch, index):
        x, y = batch
        time.sleep(float(sys.argv[2]))
        loss = ((self.net(x + 0.1 * torch.randn_like(x))[:, 0] - y) ** 2).mean()
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

g = torch.Generator().manual_seed(1)
data = TensorDataset(torch.randn(50, 6, generator=g), torch.randn(50, generator=g))
torch.manual_seed(3)
net = Net()
settings = TrainSettings(epochs=6, seed=5, log_every=1, checkpoint_every=4, progress=False, accelerator="cpu")
with RunFolder.create(sys.argv[1], {"seed": 5}, resume=True) as run:
    fit(net, batches(data, 8, seed=5), run=run, settings=settings)
    run.save_model(net.state_dict(), {"kind": "test"})
"""


class Regression(L.LightningModule):
    def __init__(self, *, explode_at=None, lr=0.01):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(4, 1)
        self.explode_at, self.lr = explode_at, lr

    def training_step(self, batch, index):
        x, y = batch
        loss = ((self.net(x)[:, 0] - y) ** 2).mean()
        if self.global_step == self.explode_at:
            loss = loss * float("nan")
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val_loss", ((self.net(x)[:, 0] - y) ** 2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator)
    return TensorDataset(x, x.sum(1))


def settings(**options):
    return TrainSettings(**{"progress": False, "accelerator": "cpu", "log_every": 1, **options})


def run_script(folder, delay=0.0):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(delay)], stderr=subprocess.PIPE)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    whole = run_script(tmp_path / "whole")
    broken = run_script(tmp_path / "broken", delay=0.1)
    log = tmp_path / "broken" / "metrics.csv"
    deadline = time.monotonic() + 120
    # Epochs have 6 steps and checkpoints come every 4, so a kill after row 10 falls in the middle of an epoch, off a
    # checkpoint.
    while not (log.exists() and len(log.read_text().splitlines()) > 11):
        assert broken.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    assert whole.wait() == 0, whole.stderr.read().decode()
    resumed = run_script(tmp_path / "broken")
    assert resumed.wait() == 0, resumed.stderr.read().decode()

    expected = load_file(tmp_path / "whole" / "model.safetensors")
    actual = load_file(tmp_path / "broken" / "model.safetensors")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    rows = [RunFolder.open(tmp_path / name).metrics() for name in ("whole", "broken")]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(1, 37))


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(tmp_path, data):
    run = RunFolder.create(tmp_path / "r", {})
    with pytest.raises(TrainingDivergedError, match="step 8") as caught:
        fit(
            Regression(explode_at=7), batches(data, 8, seed=0), run=run, settings=settings(steps=20, checkpoint_every=3)
        )
    assert "last.ckpt" in str(caught.value)
    # Batches 0 to 7 of the seeded order were drawn; the last of them is named.
    order = ShuffledBatches(40, 8, seed=0, drop_last=True)
    assert f"items {', '.join(map(str, sorted(order.items(7))))} of" in str(caught.value)
    checkpoint = torch.load(run.checkpoint("last"), weights_only=True)
    assert checkpoint["global_step"] == 6
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())


def test_infinite_weights_are_never_checkpointed(tmp_path, data):
    run = RunFolder.create(tmp_path / "r", {})
    with pytest.raises(TrainingDivergedError):
        fit(Regression(lr=1e30), batches(data, 8, seed=0), run=run, settings=settings(steps=50, checkpoint_every=1))
    if run.checkpoint("last").exists():
        state = torch.load(run.checkpoint("last"), weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())


def test_accumulation_equals_a_larger_batch(tmp_path, data):
    weights = []
    for size, accumulate in ((16, 1), (8, 2)):
        system = Regression()
        run = RunFolder.create(tmp_path / str(size), {})
        x = TensorDataset(*(tensor[:16] for tensor in data.tensors))
        result = fit(system, batches(x, size, seed=0), run=run, settings=settings(steps=5, accumulate=accumulate))
        assert result.steps == 5
        weights.append(system.net.weight.detach())
    torch.testing.assert_close(weights[0], weights[1])


def test_early_stopping_keeps_the_best(tmp_path, data):
    system = Regression(lr=0.0)
    run = RunFolder.create(tmp_path / "r", {})
    result = fit(
        system,
        batches(data, 8, seed=0),
        run=run,
        settings=settings(steps=50, validate_every=2, patience=3),
        validation_data=torch.utils.data.DataLoader(data, 40),
    )
    assert result.stopped_early
    assert result.steps == 8
    assert run.checkpoint("best").is_file()


def test_a_finished_run_resumes_without_training(tmp_path, data):
    system = Regression()
    with RunFolder.create(tmp_path / "r", {"a": 1}) as run:
        fit(system, batches(data, 8, seed=0), run=run, settings=settings(steps=5))
    other = Regression()
    with RunFolder.create(tmp_path / "r", {"a": 1}, resume=True) as run:
        assert fit(other, batches(data, 8, seed=0), run=run, settings=settings(steps=5)).steps == 5
    assert torch.equal(system.net.weight, other.net.weight)


def test_a_corrupt_checkpoint_is_refused(tmp_path, data):
    with RunFolder.create(tmp_path / "r", {}) as run:
        fit(Regression(), batches(data, 8, seed=0), run=run, settings=settings(steps=5))
        path = run.checkpoint("last")
    path.write_bytes(path.read_bytes()[:200])
    with RunFolder.create(tmp_path / "r", {}, resume=True) as run, pytest.raises(InputError, match="cannot be read"):
        fit(Regression(), batches(data, 8, seed=0), run=run, settings=settings(steps=9))


DIES_WHILE_SAVING = """
import os, signal, sys, torch
saved, whole = [], torch.save

def half(value, file, *args, **kwargs):
    saved.append(None)
    whole(value, file, *args, **kwargs)
    if len(saved) == 3:  # Lightning serialises into a buffer: only half of it reaches the disk
        (name,) = [name for name in os.listdir(sys.argv[1] + "/checkpoints") if name.startswith(".unfinished-")]
        with open(f"{sys.argv[1]}/checkpoints/{name}", "wb") as disk:
            disk.write(file.getbuffer()[: file.getbuffer().nbytes // 2])
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = half
"""


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_to_the_same_bits(tmp_path):
    words = [sys.executable, "-c", DIES_WHILE_SAVING + SCRIPT, str(tmp_path / "broken"), "0"]
    assert subprocess.run(words).returncode == -signal.SIGKILL
    unfinished = [path.name for path in (tmp_path / "broken" / "checkpoints").iterdir() if path.name != "last.ckpt"]
    assert len(unfinished) == 1
    assert torch.load(tmp_path / "broken" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    for name in ("broken", "whole"):
        done = run_script(tmp_path / name)
        assert done.wait() == 0, done.stderr.read().decode()
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()] == ["last.ckpt"]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(a[name], b[name]) for name in b)


FULL_DISK = """
import resource
import contrastive_core.training.fit
resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))
"""


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing_half_written(tmp_path):
    """A limit on the size of files stands for the disk: the first checkpoint does not fit."""
    words = [sys.executable, "-c", FULL_DISK + SCRIPT, str(tmp_path / "run"), "0"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode != 0
    assert "InputError" in done.stderr
    assert "could not be written" in done.stderr
    assert str(tmp_path / "run") in done.stderr
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert not list((tmp_path / "run").glob("checkpoints/.*"))


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder in which nobody can write")
def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(InputError, match="cannot be made") as caught:
        RunFolder.create("/sys/kernel/run", {})
    assert "/sys/kernel/run" in str(caught.value)


DISTRIBUTED = """
import sys, torch, lightning as L
from torch.utils.data import TensorDataset
from contrastive_core import losses
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
torch.set_num_threads(1)
folder, devices, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(6, 4, dtype=torch.double)
    def training_step(self, batch, index):
        x, y, labels = batch
        loss = losses.nt_xent(self.net(x), self.net(y), gather=True)
        loss = loss + losses.sup_con(self.net(x), labels, gather=True)
        self.log("loss", loss)
        return loss
    def validation_step(self, batch, index):
        self.log("val_loss", self.net(batch[0]).square().mean())
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

g = torch.Generator().manual_seed(1)
x = torch.randn(50, 6, generator=g, dtype=torch.double)
data = TensorDataset(x, x + 0.1 * torch.randn(50, 6, generator=g, dtype=torch.double), torch.arange(50) % 5)
torch.manual_seed(3)
net = Net()
settings = TrainSettings(steps=steps, seed=5, log_every=1, checkpoint_every=2, validate_every=3, progress=False,
                         accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", clip_norm=0.5)
with RunFolder.create(folder, {"devices": devices}, resume=True) as run:
    fit(net, batches(data, 8, seed=5, drop_last=False), run=run, settings=settings,
        validation_data=torch.utils.data.DataLoader(data, 50))
    run.save_model(net.state_dict(), {"kind": "test"})
print("returned")
"""


def test_two_processes_train_as_one_with_the_global_batch_and_resume(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(DISTRIBUTED)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}

    def train(steps):
        words = [sys.executable, tmp_path / "train.py", tmp_path / "two", "2", str(steps)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("returned") == 1
        return load_file(tmp_path / "two" / "model.safetensors")

    # An epoch is six batches of 8 and one of 2.
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "one"), "1", "10"])
    runpy.run_path(str(tmp_path / "train.py"))
    one = load_file(tmp_path / "one" / "model.safetensors")
    train(5)
    two = train(10)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-10)
    rows = RunFolder.open(tmp_path / "two").metrics()
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
    assert (tmp_path / "two" / "checkpoints" / "best.ckpt").is_file()


def test_a_batch_that_does_not_divide_among_processes_is_refused(tmp_path, data):
    run = RunFolder.create(tmp_path / "r", {})
    with pytest.raises(InputError, match="do not divide into 3"):
        fit(Regression(), batches(data, 8, seed=0), run=run, settings=settings(steps=2, devices=3, strategy="ddp"))


class Distilled(Regression):
    """A student with a teacher that follows it."""

    def __init__(self):
        super().__init__()
        self.teacher = EMATeacher(self.net, momentum=0.9)

    def training_step(self, batch, index):
        x, _ = batch
        loss = super().training_step(batch, index)
        return loss + (self.net(x) - self.teacher(x)).square().mean()

    def on_train_batch_end(self, outputs, batch, index):
        self.teacher.update(self.net)


def test_the_teacher_travels_with_the_checkpoint(tmp_path, data):
    def train(name, system, steps, resume=False):
        with RunFolder.create(tmp_path / name, {}, resume=resume) as run:
            fit(system, batches(data, 8, seed=0), run=run, settings=settings(steps=steps, checkpoint_every=3))
        return system.state_dict()

    whole = train("whole", Distilled(), 11)
    train("broken", Distilled(), 6)
    resumed = train("broken", Distilled(), 11, resume=True)
    assert any("teacher" in name for name in whole)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_clipping_bounds_the_step(tmp_path, data):
    system = Regression(lr=1.0)
    before = [value.detach().clone() for value in system.parameters()]
    run = RunFolder.create(tmp_path / "r", {})
    fit(system, batches(data, 8, seed=0), run=run, settings=settings(steps=1, clip_norm=0.01))
    moved = torch.cat([(a - b).flatten() for a, b in zip(system.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


def test_bf16_multiplies_in_bfloat16_and_keeps_float32_weights(tmp_path, data):
    seen = set()

    class Watched(Regression):
        def training_step(self, batch, index):
            seen.add(self.net(batch[0]).dtype)
            return super().training_step(batch, index)

    weights = {}
    for precision in ("bf16-mixed", "32-true"):
        system = Watched(lr=0.05)
        run = RunFolder.create(tmp_path / precision, {})
        fit(system, batches(data, 8, seed=0), run=run, settings=settings(steps=20, precision=precision))
        weights[precision] = system.net.weight.detach()
    assert seen == {torch.bfloat16, torch.float32}
    assert weights["bf16-mixed"].dtype == torch.float32
    assert not torch.equal(*weights.values())
    torch.testing.assert_close(*weights.values(), rtol=0.05, atol=0.02)


def test_every_epoch_sees_every_item_once_in_an_order_of_its_own():
    order = ShuffledBatches(10, 3, seed=1, drop_last=False)
    order.last = 8
    drawn = list(order)
    epochs = [[item for batch in part for item in batch] for part in (drawn[:4], drawn[4:])]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    order.first = 3
    assert list(order) == drawn[3:]
    dropping = ShuffledBatches(10, 3, seed=1, drop_last=True)
    assert dropping.per_epoch == 3
    shared = ShuffledBatches(10, 4, seed=1, drop_last=False)
    shared.share(4)  # the last two items do not reach four processes
    assert shared.per_epoch == 2
    assert [len(shared.items(number)) for number in range(2)] == [1, 1]


def test_generators_differ_by_stream_and_repeat():
    draw = lambda *stream: torch.rand(4, generator=seeded_generator(*stream)).tolist()  # noqa: E731
    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2) != draw(1, 3)
    assert draw(1, 2) != draw(2, 2)


def test_warmup_cosine():
    values = [warmup_cosine(step, 100, 10, base=2.0) for step in range(101)]
    assert values[0] == 0
    assert values[10] == 2.0
    assert abs(values[100]) < 1e-12
    assert values[10:] == sorted(values[10:], reverse=True)
    assert warmup_cosine(0, 10, 0) == 1.0


@pytest.mark.parametrize("options", [{"epochs": 0}, {"steps": 0}, {"accumulate": 0}, {"clip_norm": -1.0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InputError, match="--" + next(iter(options)).replace("_", "-")):
        TrainSettings(**options)


def test_folder_with_a_run_is_refused_unless_told(tmp_path):
    RunFolder.create(tmp_path / "r", {"lr": 1}).close()
    with pytest.raises(InputError, match="--resume"):
        RunFolder.create(tmp_path / "r", {"lr": 1})
    with pytest.raises(InputError, match="lr was 1, is 2"):
        RunFolder.create(tmp_path / "r", {"lr": 2}, resume=True)
    with RunFolder.create(tmp_path / "r", {"lr": 2}, overwrite=True) as run:
        assert run.config() == {"lr": 2}
        with pytest.raises(InputError, match="in use"):
            RunFolder.create(tmp_path / "r", {"lr": 2}, overwrite=True)
    with pytest.raises(InputError, match="either"):
        RunFolder.create(tmp_path / "r", {}, overwrite=True, resume=True)


def test_overwriting_never_removes_foreign_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        RunFolder.create(tmp_path, {}, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_model_files_are_checked(tmp_path):
    with RunFolder.create(tmp_path / "r", {}) as run:
        run.save_model({"w": torch.arange(3.0)}, {"kind": "x"})
    state, about = RunFolder.open(tmp_path / "r").load_model()
    assert state["w"].tolist() == [0, 1, 2]
    assert about == {"kind": "x"}
    weights = tmp_path / "r" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="corrupt"):
        RunFolder.open(tmp_path / "r").load_model()
    weights.unlink()
    with pytest.raises(InputError, match="missing"):
        RunFolder.open(tmp_path / "r").load_model()
    (tmp_path / "r" / "model.json").write_text("{")
    with pytest.raises(InputError, match="JSON"):
        RunFolder.open(tmp_path / "r").load_model()
    with pytest.raises(InputError, match="no finished run"):
        RunFolder.open(tmp_path)
