"""What every verb stands on: settings that repeat a run, folders that lose nothing, signals, readers, tables."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from contrastive_core.cli import App, Command, Flat, options_of
from contrastive_core.data import packaged, stratified_split
from contrastive_core.devices import pick_device
from contrastive_core.errors import InputError, reason, require
from contrastive_core.files import atomic_write, read_csv, read_json_lines, read_lines, reading, write_csv
from contrastive_core.tables import text_table
from contrastive_core.training import (
    OptimSettings,
    RunFolder,
    TrainSettings,
    adamw,
    batches,
    decay_groups,
    fit,
    step_generator,
)
from contrastive_core.weights import load_model, read_tensors, save_weights
from torch.utils.data import DataLoader, TensorDataset


@dataclasses.dataclass(frozen=True)
class Network:
    depth: int = 1
    widths: tuple[int, ...] = (8,)
    name: str | None = "x"


@dataclasses.dataclass(frozen=True)
class Settings:
    network: Annotated[Network, Flat] = Network()
    optim: OptimSettings = OptimSettings(lr=0.5)
    training: Annotated[TrainSettings, Flat] = TrainSettings(steps=40)
    batch_size: int = 3


CALLS: list[dict[str, object]] = []


def verb(
    data: Path,
    out: Path,
    *,
    settings: Annotated[Settings, Flat] = Settings(batch_size=7),
    on_corrupt: Literal["refuse", "skip"] = "refuse",
    resume: bool = False,
) -> None:
    """A verb.

    Args:
        data: Data.
        out: Run.
        settings: Settings.
        on_corrupt: What to do.
        resume: Go on.
    """
    CALLS.append({"settings": settings, "on_corrupt": on_corrupt, "options": options_of(verb, locals())})


@pytest.fixture
def call(monkeypatch):
    """Run the verb by a command line and give back what it was called with."""
    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "house_verbs", module)
    app = App("tool", help="A tool.", version="1")
    app.method("method", help="A method.", commands=[Command("train", "house_verbs:verb", "Train.")])

    def run(*words):
        CALLS.clear()
        assert app.run(["method", "train", *map(str, words)]) == 0
        return CALLS[0]

    return run


class TestSettings:
    def test_nested_defaults_survive_when_one_option_is_given(self, call):
        assert call("d", "o")["settings"] == Settings(batch_size=7)
        given = call("d", "o", "--optim.warmup", 0.3, "--seed", 4, "--depth", 2)["settings"]
        assert given == Settings(
            Network(depth=2), OptimSettings(lr=0.5, warmup=0.3), TrainSettings(steps=40, seed=4), batch_size=7
        )

    def test_epochs_end_the_default_number_of_steps(self, call):
        training = call("d", "o", "--epochs", 2)["settings"].training
        assert (training.epochs, training.steps) == (2, None)

    def test_a_config_given_back_repeats_the_call(self, call, tmp_path):
        first = call("d", "o", "--widths", 4, "--widths", 5, "--optim.lr", 0.25, "--on-corrupt", "skip", "--epochs", 9)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(first["options"]))
        again = call("--out", "elsewhere", "--config", path)
        assert again == first
        assert first["options"]["optim"] == dataclasses.asdict(OptimSettings(lr=0.25))
        assert "out" not in first["options"]
        assert "resume" not in first["options"]
        assert call("d", "o", "--config", path, "--batch-size", 11)["settings"].batch_size == 11

    def test_two_options_of_one_name_are_a_fault_of_the_verb(self):
        def clashing(data: Path, *, settings: Annotated[Settings, Flat] = Settings(), depth: int = 2) -> None: ...

        with pytest.raises(ValueError, match="two options of the name depth"):
            options_of(clashing, {"data": Path("d"), "settings": Settings(), "depth": 1})

    @pytest.mark.parametrize(
        "text", ["bogus: 1", "optim: {bogus: 1}", "1: 2", "optim: {lr: -1}", "a: [", "[1, 2]", "epochs: [1, 2]"]
    )
    def test_a_config_that_cannot_be_used_is_one_block(self, call, tmp_path, text, capsys):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        with pytest.raises(AssertionError):
            call("d", "o", "--config", path)
        assert not CALLS
        assert capsys.readouterr().err.startswith("error: ")

    @pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf")])
    def test_nan_never_passes(self, value):
        with pytest.raises(InputError, match=r"--optim\.lr"):
            OptimSettings(lr=value)
        with pytest.raises(InputError, match="--clip-norm"):
            TrainSettings(clip_norm=value)
        with pytest.raises(InputError, match="--x"):
            require(0 <= value < float("inf"), "--x", value, "a number")


class Net(L.LightningModule):
    """A line of one weight whose best value on the validation data is passed on the way."""

    def __init__(self, optim=OptimSettings(lr=0.1)):
        super().__init__()
        self.net, self.optim, self.rates, self.draws = torch.nn.Linear(2, 1), optim, [], []
        torch.nn.init.zeros_(self.net.weight)
        torch.nn.init.zeros_(self.net.bias)

    def training_step(self, batch, index):
        (x,) = batch
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        self.draws.append((self.global_step, torch.rand(2, generator=step_generator(self, index)).tolist()))
        loss = (self.net(x) - 1).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", (self.net.bias - 0.3).square().sum())

    def configure_optimizers(self):
        return adamw(self, self.optim)


def small(**options):
    return TrainSettings(**{"progress": False, "accelerator": "cpu", "steps": 12, **options})


@pytest.fixture
def data():
    return TensorDataset(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)))


class TestFit:
    def test_trains_in_memory_and_leaves_the_generators_alone(self, data, tmp_path):
        alone, before = Net(), torch.get_rng_state()
        result = fit(alone, batches(data, 8, seed=0), settings=small())
        assert torch.equal(torch.get_rng_state(), before)
        assert result.steps == 12
        assert not alone.training
        written = Net()
        with RunFolder.create(tmp_path / "r", {}) as run:
            fit(written, batches(data, 8, seed=0), settings=small(), run=run)
        assert torch.equal(alone.net.weight, written.net.weight)

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_the_best_weights_are_kept(self, data, tmp_path, in_memory):
        validation = DataLoader(data, 16)
        errors = {}
        for keep in ("last", "best"):
            system = Net()
            run = None if in_memory else RunFolder.create(tmp_path / keep, {})
            options = small(steps=40, validate_every=1)
            result = fit(
                system, batches(data, 8, seed=0), settings=options, run=run, validation_data=validation, keep=keep
            )
            errors[keep] = (system.net.bias - 0.3).square().sum().item()
        assert errors["best"] == pytest.approx(result.best)
        assert errors["best"] < errors["last"] / 10

    def test_first_and_last_step_learn(self, data):
        system = Net(OptimSettings(lr=0.1, warmup=0.5))
        fit(system, batches(data, 8, seed=0), settings=small())
        assert 0 < system.rates[0] < system.rates[5]
        assert max(system.rates) == system.rates[6] == pytest.approx(0.1)
        assert 0 < system.rates[-1] < system.rates[7]

    def test_draws_differ_between_steps_and_micro_batches(self, data):
        system = Net()
        fit(system, batches(data, 4, seed=0), settings=small(steps=3, accumulate=2))
        assert [step for step, _ in system.draws] == [0, 0, 1, 1, 2, 2]
        assert len({tuple(values) for _, values in system.draws}) == 6
        again = Net()
        fit(again, batches(data, 4, seed=0), settings=small(steps=3, accumulate=2))
        assert again.draws == system.draws

    def test_norms_and_biases_do_not_decay_unless_told(self):
        system = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        decays, others = decay_groups(system, OptimSettings(weight_decay=0.5))
        assert (decays["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
        assert [len(group["params"]) for group in (decays, others)] == [1, 3]
        (everything,) = decay_groups(system, OptimSettings(weight_decay=0.5, decay="all"))
        assert len(everything["params"]) == 4

    def test_a_short_run_has_its_last_loss(self, data, tmp_path):
        with RunFolder.create(tmp_path / "r", {}) as run:
            fit(Net(), batches(data, 8, seed=0), settings=small(steps=3, log_every=100), run=run)
        assert [row["step"] for row in run.metrics()] == [1, 2, 3]
        with RunFolder.create(tmp_path / "s", {}) as run:
            fit(Net(), batches(data, 8, seed=0), settings=small(steps=25, log_every=10), run=run)
        assert run.metrics()[-1]["step"] == 25

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda state: state.pop("optimizer_states"), "optimiser"),
            (lambda state: state.update(global_step="x"), "number of steps"),
            (lambda state: state["state_dict"].update({"net.weight": torch.zeros(3, 2)}), "another network"),
            (lambda state: state["callbacks"].clear(), "random states"),
        ],
    )
    def test_a_checkpoint_that_cannot_be_resumed_is_refused(self, data, tmp_path, change, why):
        with RunFolder.create(tmp_path / "r", {}) as run:
            fit(Net(), batches(data, 8, seed=0), settings=small(), run=run)
        path = run.checkpoint("last")
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
        with RunFolder.create(tmp_path / "r", {}, resume=True) as run, pytest.raises(InputError, match=why):
            fit(Net(), batches(data, 8, seed=0), settings=small(steps=20), run=run)


SIGNALLED = """
import sys, time
from pathlib import Path
from contrastive_core.cli import App, Command
app = App("tool", help="A tool.", version="1")
app.method("m", help="M.", commands=[Command("train", "verbs:train", "Train.")])
app.main()
"""
VERBS = """
import sys, time, torch, lightning as L
from pathlib import Path
from torch.utils.data import TensorDataset
from contrastive_core.training import RunFolder, TrainSettings, batches, fit

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(2, 1)
    def training_step(self, batch, index):
        time.sleep(0.02)
        self.log("loss", loss := (self.net(batch[0]) - 1).square().mean())
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def train(out: Path, *, steps: int = 60, resume: bool = False) -> None:
    '''Train.'''
    data = TensorDataset(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)))
    settings = TrainSettings(steps=steps, log_every=1, progress=False, accelerator="cpu")
    with RunFolder.create(out, {}, resume=resume) as run:
        net = Net()
        fit(net, batches(data, 8, seed=0), settings=settings, run=run)
        run.save_model(net.state_dict(), {"kind": "net"})
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_training_with_its_status_a_checkpoint_and_a_word(tmp_path, number, status):
    (tmp_path / "verbs.py").write_text(VERBS)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def start(*words):
        command = [sys.executable, "-c", SIGNALLED, "m", "train", str(tmp_path / "run"), *words]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    process, log = start(), tmp_path / "run" / "metrics.csv"
    while not (log.exists() and len(log.read_text().splitlines()) > 5):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert "--resume" in said
    assert "Traceback" not in said
    step = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 5 <= step < 60
    assert RunFolder(tmp_path / "run").metrics()[-1]["step"] == step
    resumed = start("--resume")
    assert resumed.wait() == 0
    assert [row["step"] for row in RunFolder(tmp_path / "run").metrics()] == list(range(1, 61))


class TestRunFolder:
    def test_a_run_that_fails_before_training_leaves_nothing(self, tmp_path):
        with pytest.raises(RuntimeError), RunFolder.create(tmp_path / "a" / "b", {"x": 1}):
            raise RuntimeError
        assert not (tmp_path / "a").exists()
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / ".notes.tmpl").write_text("mine")
        with pytest.raises(RuntimeError), RunFolder.create(tmp_path / "own", {"x": 1}):
            raise RuntimeError
        assert sorted(path.name for path in (tmp_path / "own").iterdir() if path.name != ".lock") == [".notes.tmpl"]

    def test_an_overwritten_run_comes_back_when_the_new_one_fails(self, tmp_path):
        with RunFolder.create(tmp_path / "r", {"x": 1}) as run:
            run.save_model({"w": torch.ones(1)}, {"kind": "old"})
        with pytest.raises(RuntimeError), RunFolder.create(tmp_path / "r", {"x": 2}, overwrite=True):
            raise RuntimeError
        assert RunFolder.open(tmp_path / "r").load_model()[1] == {"kind": "old"}
        assert RunFolder.open(tmp_path / "r").config() == {"x": 1}
        with RunFolder.create(tmp_path / "r", {"x": 2}, overwrite=True) as run:
            run.save_model({"w": torch.ones(1)}, {"kind": "new"})
        assert RunFolder.open(tmp_path / "r").load_model()[1] == {"kind": "new"}
        assert sorted(path.name for path in (tmp_path / "r").iterdir() if path.name != ".lock") == [
            "config.yaml",
            "environment.json",
            "model.json",
            "model.safetensors",
        ]

    def test_a_linked_folder_is_unlinked_not_emptied(self, tmp_path):
        RunFolder.create(tmp_path / "r", {}).close()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "events").write_text("kept")
        (tmp_path / "r" / "tensorboard").symlink_to(tmp_path / "elsewhere")
        with RunFolder.create(tmp_path / "r", {}, overwrite=True) as run:
            run.write_results({})
        assert (tmp_path / "elsewhere" / "events").read_text() == "kept"
        assert not (tmp_path / "r" / "tensorboard").exists()

    def test_environment_names_package_and_command(self, tmp_path):
        with RunFolder.create(tmp_path / "r", {}) as run:
            pass
        text = (run.path / "environment.json").read_text()
        assert "contrastive-core" in text
        assert "cl-bench" in text
        assert '"command"' in text


class TestFiles:
    def test_modes_follow_the_umask_whatever_writes(self, tmp_path):
        old = os.umask(0o022)
        try:
            save_weights(tmp_path, {"w": torch.ones(1)}, {"kind": "x"})
        finally:
            os.umask(old)
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}

    def test_names_of_255_characters(self, tmp_path):
        with atomic_write(tmp_path / ("x" * 251 + ".txt")) as temporary:
            temporary.write_text("whole")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]
        with pytest.raises(InputError, match="could not be written"), atomic_write(tmp_path / ("x" * 256)) as temporary:
            temporary.write_text("")

    def test_tables_are_strict(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_bytes(b'\xef\xbb\xbfid,text\n007,"a \xe2\x80\xa8 line"\n1_1,\n')
        assert [row for _, row in read_csv(path)] == [{"id": "007", "text": "a \u2028 line"}, {"id": "1_1", "text": ""}]
        for text, wanted in (
            ("id,text\n1,a dog, two cats\n", "line 2"),
            ("id,text\n1\n", "line 2"),
            ('id,text\n1,"open\n2,b\n', "cannot be read"),
            ("id,id\n1,2\n", "stands twice"),
            ("", "empty"),
            ("a,b\n1,2\n", "no id"),
        ):
            path.write_text(text)
            with pytest.raises(InputError, match=wanted):
                list(read_csv(path, required=["id"]))
        path.write_bytes(b"id\n\xff\n")
        with pytest.raises(InputError, match="line 2 is not UTF-8"):
            list(read_csv(path))
        write_csv(path, [{"a": 1}, {"b": "x,y"}])
        assert [row for _, row in read_csv(path)] == [{"a": "1", "b": ""}, {"a": "", "b": "x,y"}]

    def test_json_lines_are_split_at_line_feeds_only(self, tmp_path):
        path = tmp_path / "t.jsonl"
        path.write_text('{"a": "x\u2028y\x85z"}\n\n[1]\n', encoding="utf-8")
        assert list(read_json_lines(path)) == [(1, {"a": "x\u2028y\x85z"}), (3, [1])]
        assert len(read_lines(path)) == 3
        path.write_text("[" * 100_000)
        with pytest.raises(InputError, match="line 1"):
            list(read_json_lines(path))

    def test_whatever_a_reader_raises_is_one_block(self):
        for error in (KeyError("Rows"), MemoryError(), RecursionError("deep"), UnicodeDecodeError("a", b"", 0, 1, "x")):
            with pytest.raises(InputError) as caught, reading("scan.dcm"):
                raise error
            assert caught.value.where == "scan.dcm"
            assert caught.value.why
        assert reason(ValueError("\n\n second")) == "second"
        assert len(str(InputError("x", why="y" * 10**6))) < 2000


class TestModels:
    def test_a_model_of_another_kind_or_shape_is_one_block(self, tmp_path):
        def build(state, description):
            net = torch.nn.Linear(description["width"], 1)
            net.load_state_dict(state)
            return net

        net = torch.nn.Linear(3, 1)
        save_weights(tmp_path, net.state_dict(), {"kind": "line", "width": 3})
        assert torch.equal(load_model(tmp_path, "line", build, made_by="tool train").weight, net.weight)
        with pytest.raises(InputError, match="no curve"):
            load_model(tmp_path, "curve", build, made_by="tool train")
        for wrong in ({}, {"width": "3"}, {"width": 4}, {"width": -1}):
            save_weights(tmp_path, net.state_dict(), {"kind": "line", **wrong})
            with pytest.raises(InputError, match="tool train"):
                load_model(tmp_path, "line", build, made_by="tool train")

    def test_foreign_weights_are_tensors_or_refused(self, tmp_path):
        torch.save({"state_dict": {"w": torch.ones(2), "epoch": 3}}, tmp_path / "a.pt")
        assert read_tensors(tmp_path / "a.pt")["w"].tolist() == [1, 1]
        torch.save({"w": subprocess.Popen}, tmp_path / "b.pt")
        with pytest.raises(InputError, match="foreign code"):
            read_tensors(tmp_path / "b.pt")
        (tmp_path / "c.safetensors").write_bytes(b"\xff" * 40)
        with pytest.raises(InputError, match="cannot be read"):
            read_tensors(tmp_path / "c.safetensors")


def test_a_share_of_every_class_is_held_out():
    labels = np.repeat(["a", "b", "c"], [20, 10, 1])
    kept, held_out = stratified_split(labels, 0.3, seed=1)
    assert sorted([*kept, *held_out]) == list(range(31))
    assert [int((labels[held_out] == name).sum()) for name in "abc"] == [6, 3, 0]
    assert not np.array_equal(held_out, stratified_split(labels, 0.3, seed=2)[1])
    with pytest.raises(InputError, match="share"):
        stratified_split(labels, float("nan"))


def test_packages_and_devices():
    assert packaged("sklearn", "datasets/data").is_dir()
    assert packaged("sklearn", "no/such") is None
    assert packaged("no_such_package") is None
    assert pick_device("cpu") == "cpu"
    for name in ("gpu", "cuda:99", "banana"):
        with pytest.raises(InputError, match="--device"):
            pick_device(name)


def test_a_table_aligns_numbers_and_dashes_what_is_missing():
    table = text_table([{"name": "a", "n": 3}, {"name": "bb", "n": 1234.5, "x": None}])
    assert table.splitlines()[2:] == ["a         3  -", "bb    1,234  -"]
