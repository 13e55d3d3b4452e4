"""What every training verb keeps, whatever the method."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import traceback
from pathlib import Path

import pytest
import torch
import yaml
from contrastive_core.training import RunFolder
from contrastive_core.training.callbacks import Checkpoints
from safetensors.torch import load_file

from tests.contract.methods import VERBS

pytestmark = pytest.mark.parametrize("verb", VERBS, ids=str)
REFERENCE: dict[str, tuple[Path, Path]] = {}


@pytest.fixture
def reference(verb, tmp_path_factory):
    """The verb's data and a finished run, made once."""
    if verb.words not in REFERENCE:
        torch.set_num_threads(1)
        folder = tmp_path_factory.mktemp(verb.words.replace(" ", "-"))
        data = verb.data(folder)
        assert verb.run(data, folder / "run") == 0
        REFERENCE[verb.words] = data, folder / "run"
    return REFERENCE[verb.words]


def weights(run):
    return load_file(run / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def forked(*tasks):
    """Run tasks in children of this process, which need not import anything again; their statuses."""
    children = []
    for task in tasks:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                status = task()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_leaves_a_whole_run_folder(verb, reference):
    _, run = reference
    names = {path.name for path in run.iterdir()}
    whole = {"config.yaml", "environment.json", "model.safetensors", "model.json", "results.json", "report.html"}
    assert whole <= names
    assert "kind" in json.loads((run / "model.json").read_text())
    assert not [name for name in names if name.startswith(".") and name != ".lock"]
    if verb.network:
        assert {"metrics.csv", "tensorboard", "checkpoints"} <= names
        rows = RunFolder(run).metrics()
        assert [row["step"] for row in rows if "loss" in row][-1] >= 6
        assert all(row["step"] >= 1 for row in rows)


def test_gives_the_same_bits_twice(verb, reference, tmp_path):
    data, run = reference
    torch.manual_seed(12345)  # whatever happened before in this process
    assert verb.run(data, tmp_path / "again") == 0
    assert same(weights(tmp_path / "again"), weights(run))
    assert RunFolder(tmp_path / "again").metrics() == RunFolder(run).metrics()


def test_its_config_repeats_the_run(verb, reference, tmp_path):
    data, run = reference
    words = [*verb.words.split()[1:], str(data), str(tmp_path / "again"), "--config", str(run / "config.yaml")]
    assert verb.app.run(words) == 0
    assert same(weights(tmp_path / "again"), weights(run))
    assert yaml.safe_load((tmp_path / "again" / "config.yaml").read_text()) == yaml.safe_load(
        (run / "config.yaml").read_text()
    )


@pytest.mark.parametrize("moment", [1, 2])
def test_a_killed_run_resumes_to_the_same_bits(verb, reference, tmp_path, moment):
    """The kill comes as a checkpoint is due, before it is written."""
    if not verb.network:
        pytest.skip("trains in one go")
    data, run = reference

    def killed():
        write, count = Checkpoints._save, 0

        def or_die(self, trainer, name):
            nonlocal count
            count += name == "last"
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, trainer, name)

        Checkpoints._save = or_die
        return verb.run(data, tmp_path / "run")

    assert forked(killed) == [-signal.SIGKILL]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert verb.run(data, tmp_path / "run", "--resume") == 0
    assert same(weights(tmp_path / "run"), weights(run))
    assert RunFolder(tmp_path / "run").metrics() == RunFolder(run).metrics()


def test_accumulated_batches_equal_the_larger_batch(verb, reference, tmp_path):
    if verb.halves is None:
        pytest.skip("micro-batches are contrasted, or drawn, on their own")
    data, run = reference
    option, size = verb.halves
    assert verb.run(data, tmp_path / "run", option, str(size // 2), "--accumulate", "2") == 0
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, weights(run)[name], rtol=1e-3, atol=1e-4)


def test_two_processes(verb, reference, tmp_path):
    """Two processes, as torchrun starts them, give the weights of one; where draws remain, they agree and exchange."""
    if not verb.network:
        pytest.skip("trains in one go")
    data, _ = reference
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def process(rank):
        def task():
            common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank), TORCHELASTIC_RUN_ID="contract")
            os.environ.update(GROUP_RANK="0", ROLE_RANK=str(rank), TORCHELASTIC_RESTART_COUNT="0")
            without_dropout()
            exchanged = counting_exchanges()
            with contextlib.suppress(SystemExit):
                verb.run(data, tmp_path / "two", *(verb.still or "").split(), "--devices", "2", "--strategy", "ddp")
            (tmp_path / f"exchanged-{rank}").write_text(str(exchanged[0]))
            return 0

        return task

    assert forked(process(0), process(1)) == [0, 0]
    two = weights(tmp_path / "two")
    if verb.contrasts:
        assert int((tmp_path / "exchanged-0").read_text()) >= 6
    if verb.still is None:
        assert all(torch.isfinite(value).all() for value in two.values())
        return

    def alone():
        without_dropout()
        return verb.run(data, tmp_path / "one", *verb.still.split())

    assert forked(alone) == [0]
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def without_dropout():
    torch.nn.Dropout.forward = lambda self, x: x
    torch.nn.functional.dropout = lambda x, *args, **kwargs: x
    attend = torch.nn.functional.scaled_dot_product_attention

    def attention(*args, dropout_p=0.0, **kwargs):
        return attend(*args, dropout_p=0.0, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = attention


def counting_exchanges():
    """Count how often rows are gathered, or passed on from process to process."""
    count = [0]

    def counted(function):
        def wrapper(*args, **kwargs):
            count[0] += 1
            return function(*args, **kwargs)

        return wrapper

    torch.distributed.all_gather = counted(torch.distributed.all_gather)
    torch.distributed.batch_isend_irecv = counted(torch.distributed.batch_isend_irecv)
    return count


def refused(verb, data, out, *options):
    """The block a command prints when it refuses."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert verb.run(data, out, *options) == 2
    text = said.getvalue()
    assert "error: " in text
    assert "Traceback" not in text
    return text


def test_an_existing_run_is_refused_and_replaced_only_when_told(verb, reference, tmp_path):
    data, run = reference
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert "--overwrite" in refused(verb, data, run)
    assert "settings" in refused(verb, data, run, "--resume", "--seed", "9")
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "thesis.tex").write_text("years")
    assert "thesis.tex" in refused(verb, data, tmp_path / "run", "--overwrite")


def test_what_cannot_be_used_leaves_nothing(verb, reference, tmp_path):
    data, run = reference
    refused(verb, tmp_path / "no-such-data", tmp_path / "out")
    for option in (("--steps", "0"), ("--optim.lr", "nan"), ("--accelerator", "banana"), ("--seed", "-1")):
        refused(verb, data, tmp_path / "out", *option)
    assert not (tmp_path / "out").exists()
    shutil.copytree(run, tmp_path / "kept")
    refused(verb, tmp_path / "no-such-data", tmp_path / "kept", "--overwrite")
    assert same(weights(tmp_path / "kept"), weights(run))


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder in which nobody can write")
def test_a_folder_that_cannot_be_written_is_refused(verb, reference):
    assert "/sys/kernel" in refused(verb, reference[0], "/sys/kernel/run")


def test_help_and_info_answer(verb, capsys):
    words = verb.words.split()[1:]
    assert verb.app.run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--steps", "--seed", "--optim.lr", "--resume", "--overwrite", "--batch-size"):
        assert option in text, option
    assert verb.app.run([words[0], "info"]) == 0
    assert len(capsys.readouterr().out) > 100
