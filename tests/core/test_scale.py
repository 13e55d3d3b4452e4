"""Spreading work: the same results in order however many work on them, failures listed, deaths survived."""

import functools
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from contrastive_core.errors import InputError
from contrastive_core.scale import spread

WORK = '''
import os, signal, time
from pathlib import Path
import numpy as np
from contrastive_core.errors import InputError


def nothing():
    return None


def start(value):
    return value


def broken():
    raise InputError("no model here", where="model.json")


def square(state, item):
    """Noise that depends on the item alone; uneven sleeps, so that results come out of order."""
    time.sleep(0.02 * (item % 3))
    if item == 5:
        raise InputError("five is refused", where="5")
    if item == 7:
        raise ZeroDivisionError
    return np.random.default_rng(item).normal(size=3) * state


def lethal(marks, item):
    """Kills its worker on item 2 always, on item 4 the first time."""
    mark = Path(marks) / f"{item}-{os.getpid()}-{time.monotonic_ns()}"
    mark.touch()
    if item == 2 or (item == 4 and len(list(Path(marks).glob("4-*"))) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def counted(folder, item):
    (Path(folder) / f"{item}-{time.monotonic_ns()}").touch()
    return {"item": item, "twice": 2 * item}


def slow(folder, item):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)
'''


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Functions of a module that worker processes can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "scale_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "scale_work", raising=False)
    return importlib.import_module("scale_work")


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_and_failures_are_listed(work, workers):
    outcomes = list(spread(work.square, range(12), setup=functools.partial(work.start, 2.0), workers=workers))
    assert [outcome.key for outcome in outcomes] == [str(item) for item in range(12)]
    for item, outcome in enumerate(outcomes):
        if item in (5, 7):
            assert outcome.value is None
            with pytest.raises(InputError, match="five" if item == 5 else "ZeroDivisionError"):
                outcome.get()
        else:
            assert np.array_equal(outcome.get(), np.random.default_rng(item).normal(size=3) * 2.0)


def test_a_worker_that_dies_takes_nothing_with_it(work, tmp_path):
    outcomes = list(spread(work.lethal, range(8), setup=functools.partial(work.start, str(tmp_path)), workers=2))
    assert [outcome.value for outcome in outcomes] == [0, 1, None, 3, 4, 5, 6, 7]
    assert "died" in str(outcomes[2].failure)
    tries = [int(path.name.split("-")[0]) for path in tmp_path.glob("*-*")]
    assert sorted(tries) == [0, 1, 2, 2, 3, 4, 4, 5, 6, 7]


def test_items_are_read_as_they_are_needed(work):
    taken = []

    def endless():
        for item in range(10**9):
            taken.append(item)
            yield item * 3

    stream = spread(work.square, endless(), setup=functools.partial(work.start, 1.0), workers=2)
    for _ in range(3):
        next(stream)
    stream.close()
    assert len(taken) < 20


def test_a_setup_that_fails_is_one_error(work):
    for workers in (1, 2):
        with pytest.raises(InputError, match="no model here"):
            list(spread(work.square, [1, 2], setup=work.broken, workers=workers))


DRIVER = """
import functools, sys, os, signal
sys.path.insert(0, sys.argv[1])
from scale_work import counted, start
from contrastive_core.scale import spread
from pathlib import Path
for number, outcome in enumerate(spread(counted, range(6), setup=functools.partial(start, sys.argv[2]),
                                        ledger=Path(sys.argv[3]))):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_driver_goes_on_from_its_ledger(work, tmp_path):
    (tmp_path / "scale_work.py").write_text(WORK)
    (tmp_path / "marks").mkdir()
    ledger = tmp_path / "out" / "ledger.jsonl"
    words = [sys.executable, "-c", DRIVER, str(tmp_path), str(tmp_path / "marks"), str(ledger)]
    assert subprocess.run(words).returncode == -signal.SIGKILL
    assert len(ledger.read_text().splitlines()) == 4
    with ledger.open("a") as file:
        file.write('{"item": "4", "resu')  # half a line, as a kill can leave it
    outcomes = list(
        spread(work.counted, range(6), setup=functools.partial(work.start, str(tmp_path / "marks")), ledger=ledger)
    )
    assert [outcome.get() for outcome in outcomes] == [{"item": item, "twice": 2 * item} for item in range(6)]
    tries = sorted(int(path.name.split("-")[0]) for path in (tmp_path / "marks").iterdir())
    assert tries == [0, 1, 2, 3, 4, 5]
    assert [json.loads(line)["item"] for line in ledger.read_text().splitlines()] == [str(item) for item in range(6)]
    ledger.write_text("{}\n" + ledger.read_text())
    with pytest.raises(InputError, match="damaged"):
        list(spread(work.counted, range(6), setup=work.nothing, ledger=ledger))


ORPHANS = """
import functools, sys, time
sys.path.insert(0, sys.argv[1])
from scale_work import slow, start
from contrastive_core.scale import spread
if __name__ == "__main__":
    for _ in spread(slow, range(4), setup=functools.partial(start, sys.argv[2]), workers=2):
        pass
"""


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "scale_work.py").write_text(WORK)
    (tmp_path / "driver.py").write_text(ORPHANS)
    marks = tmp_path / "marks"
    marks.mkdir()
    parent = subprocess.Popen([sys.executable, tmp_path / "driver.py", tmp_path, marks])
    deadline = time.monotonic() + 60
    while len(list(marks.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = [int(path.name) for path in marks.iterdir()]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() and _state(worker) != "Z" for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _state(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def test_refusals(work):
    with pytest.raises(InputError, match="--workers"):
        list(spread(work.square, [1], setup=work.nothing, workers=0))


def test_ray_gives_the_same_bits_and_survives_deaths(work, tmp_path):
    ray = pytest.importorskip("ray")
    folder = str(Path(work.__file__).parent)
    ray.init(
        num_cpus=2, include_dashboard=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": folder}}
    )
    try:
        setup = functools.partial(work.start, 2.0)
        here, there = (list(spread(work.square, range(12), setup=setup, cluster=cluster)) for cluster in (None, "auto"))
        marks = functools.partial(work.start, str(tmp_path))
        deaths = list(spread(work.lethal, range(3, 6), setup=marks, cluster="auto"))
    finally:
        ray.shutdown()
    assert [outcome.key for outcome in there] == [outcome.key for outcome in here]
    for a, b in zip(here, there, strict=True):
        assert str(a.failure) == str(b.failure)
        assert a.value is None or a.value.tobytes() == b.value.tobytes()
    assert [outcome.value for outcome in deaths] == [3, 4, 5]
    assert sorted(path.name[0] for path in tmp_path.glob("*-*")) == ["3", "4", "4", "5"]


def test_a_cluster_that_is_not_there_is_one_error(work):
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="--cluster"):
        list(spread(work.square, [1], setup=work.nothing, cluster="ray://127.0.0.1:1"))
