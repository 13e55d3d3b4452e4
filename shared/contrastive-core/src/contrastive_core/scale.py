"""One way to spread work over many items: files, slides, videos, series, pairs.

Worker processes on this machine, or a Ray cluster, do the same work and give the same results, in the items' order. A
worker that dies takes nothing with it, an item that fails is listed and the others go on, and a ledger lets a run that
was killed go on where it was.
"""

import ctypes
import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from contrastive_core.errors import InputError, reason
from contrastive_core.files import read_lines, writing

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

_DEATHS = 2
"""How often an item may take its worker with it before it counts as failed."""


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of one item.

    Attributes:
        key: Name of the item.
        value: The result, ``None`` if the item failed.
        failure: Why it failed.
    """

    key: str
    value: R | None
    failure: InputError | None = None

    def get(self) -> R:
        """The result.

        Raises:
            InputError: The item failed.
        """
        if self.failure is not None:
            raise self.failure
        return self.value  # type: ignore[return-value]


def spread(
    work: Callable[[S, T], R],
    items: Iterable[T],
    *,
    setup: Callable[[], S],
    key: Callable[[T], str] = str,
    workers: int = 1,
    cluster: str | None = None,
    ledger: Path | None = None,
    label: str = "",
) -> Generator[Outcome[R], None, None]:
    """Do the same work on many items, and give the results in their order as they come.

    Only a few items a worker are under way or waiting at any time, so memory does not grow with their number.

    Args:
        work: Called with what ``setup`` gave and one item. With several workers it, ``setup``, items and results travel
            between processes: functions of a module, or :func:`functools.partial` of one.
        items: The items; read as they are needed.
        setup: Called once in every worker, for instance to load a model.
        key: Name of an item, unique, for errors and the ledger.
        workers: Processes on this machine; 1 works in this process.
        cluster: ``ray://HOST:PORT``, or ``auto`` inside a Ray job, to work there instead.
        ledger: A file beside the outputs that remembers finished items and their results, which JSON must hold then.
            Items in it are not done again; failed ones are.
        label: What is done, for a line of progress on standard error; none is shown without.

    Raises:
        InputError: No worker could be set up, the cluster cannot be reached, or the ledger is damaged.
    """
    if workers < 1:
        raise InputError("at least one worker is needed", where="--workers", why=f"got {workers}")
    book = None if ledger is None else _Ledger(ledger)
    total = len(items) if isinstance(items, Sequence) else None
    progress = _Progress(label, total) if label else None

    def todo() -> Iterator[tuple[str, T] | Outcome[R]]:
        for item in items:
            name = key(item)
            yield Outcome(name, book.done[name]) if book is not None and name in book.done else (name, item)

    if cluster is not None:
        outcomes = _on_cluster(work, setup, todo(), cluster)
    elif workers == 1:
        outcomes = _here(work, setup, todo())
    else:
        outcomes = _shared_out(_Processes(work, setup), todo(), workers)
    for outcome in outcomes:
        if book is not None and outcome.failure is None:
            book.write(outcome.key, outcome.value)
        if progress is not None:
            progress.advance(outcome)
        yield outcome


def _here(
    work: Callable[[S, T], R], setup: Callable[[], S], todo: Iterator[tuple[str, T] | Outcome[R]]
) -> Iterator[Outcome[R]]:
    state: list[S] = []
    for entry in todo:
        if isinstance(entry, Outcome):
            yield entry
            continue
        if not state:
            state.append(setup())
        yield _attempt(work, state[0], *entry)


def _attempt(work: Callable[[S, T], R], state: S, name: str, item: T) -> Outcome[R]:
    try:
        return Outcome(name, work(state, item))
    except InputError as error:
        return Outcome(name, None, error)
    except Exception as error:  # one item must not end the others
        if os.environ.get("CONTRASTIVE_DEBUG"):
            traceback.print_exc()
        return Outcome(name, None, _failed(name, reason(error)))


def _failed(name: str, why: str) -> InputError:
    return InputError("an item could not be processed", where=name, why=why, remedy="the other items were done")


@runtime_checkable
class _Worker(Protocol):
    """Something that works on one item at a time."""

    place: int | None
    """The item it works on."""

    def give(self, place: int, entry: tuple[str, Any]) -> None: ...

    def receive(self) -> Outcome[Any] | None:
        """What became of the item; ``None`` if the worker died over it."""

    def close(self) -> str:
        """End the worker, and say how it ended."""


W = TypeVar("W", bound=_Worker)


@runtime_checkable
class _Host(Protocol[W]):
    """Where workers live."""

    def start(self) -> W: ...

    def heard(self, busy: Sequence[W]) -> list[W]:
        """Wait until some have a result, or have died."""


def _shared_out(host: _Host[W], todo: Iterator[tuple[str, Any] | Outcome[Any]], workers: int) -> Iterator[Outcome[Any]]:
    """Give items out to workers, and results in the order of the items."""
    ready: dict[int, Outcome[Any]] = {}  # results that wait for an earlier one
    entries: dict[int, tuple[str, Any]] = {}  # items under way
    deaths: dict[int, int] = {}
    again: deque[int] = deque()
    busy: list[W] = []
    idle: list[W] = []
    given, yielded, exhausted = 0, 0, False

    def next_place() -> int | None:
        """The next item to give out; finished ones of a ledger go straight to the results."""
        nonlocal given, exhausted
        if again:
            return again.popleft()
        while not exhausted and given - yielded < 4 * workers:
            entry = next(todo, None)
            if entry is None:
                exhausted = True
                return None
            given += 1
            if isinstance(entry, Outcome):
                ready[given - 1] = entry
            else:
                entries[given - 1] = entry
                return given - 1
        return None

    try:
        while True:
            while yielded in ready:
                yield ready.pop(yielded)
                yielded += 1
            while len(busy) < workers and (place := next_place()) is not None:
                worker = idle.pop() if idle else host.start()
                worker.give(place, entries[place])
                busy.append(worker)
            if yielded in ready:
                continue
            if exhausted and not entries:
                return
            for worker in host.heard(busy):
                busy.remove(worker)
                place, outcome = worker.place, worker.receive()
                if place is None:
                    continue
                if outcome is not None:
                    ready[place] = outcome
                    del entries[place]
                    idle.append(worker)
                    continue
                end, deaths[place] = worker.close(), deaths.get(place, 0) + 1
                if deaths[place] < _DEATHS:
                    again.append(place)
                else:
                    name, _ = entries.pop(place)
                    why = f"its worker died {_DEATHS} times ({end}); out of memory?"
                    ready[place] = Outcome(name, None, _failed(name, why))
    finally:
        for worker in [*busy, *idle]:
            worker.close()


class _Process:
    """A worker process of this machine."""

    def __init__(self, work: Any, setup: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, setup), daemon=True)
        self.process.start()
        theirs.close()
        self.place: int | None = None

    def give(self, place: int, entry: tuple[str, Any]) -> None:
        self.place = place
        with suppress(OSError):  # it has just died, which the next wait tells
            self.connection.send(entry)

    def receive(self) -> Outcome[Any] | None:
        try:
            outcome: Outcome[Any] = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return None
        return outcome

    def close(self) -> str:
        self.connection.close()
        self.process.terminate()
        self.process.join()
        return f"status {self.process.exitcode}"


class _Processes:
    """Worker processes of this machine."""

    def __init__(self, work: Any, setup: Any) -> None:
        self.work, self.setup = work, setup

    def start(self) -> _Process:
        process = _Process(self.work, self.setup)
        try:
            failure = process.connection.recv()
        except (EOFError, OSError):
            process.process.join()
            failure = _failed("the worker's start", f"it ended with status {process.process.exitcode}")
        if failure is not None:
            process.close()
            raise failure
        return process

    def heard(self, busy: Sequence[_Process]) -> list[_Process]:
        ready = set(wait([process.connection for process in busy]))
        return [process for process in busy if process.connection in ready]


def _serve(connection: Connection, work: Any, setup: Any) -> None:
    """A worker's life: set up, then one item after another, until the parent has gone."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        state = setup()
    except Exception as error:
        connection.send(error if isinstance(error, InputError) else _failed("the worker's start", reason(error)))
        return
    connection.send(None)
    with suppress(EOFError, OSError):
        while True:
            connection.send(_attempt(work, state, *connection.recv()))


def die_with_parent() -> None:
    """End this process when the one that started it ends, however it ends."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_cluster(
    work: Any, setup: Any, todo: Iterator[tuple[str, Any] | Outcome[Any]], cluster: str
) -> Iterator[Outcome[Any]]:
    """The same on Ray, with a worker a core of the cluster."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "Ray is not installed", where="--cluster", remedy="pip install 'contrastive-core[ray]'"
        ) from error
    started = not ray.is_initialized()
    if started:
        try:
            if cluster.startswith("ray://"):  # Ray itself tries for half a minute
                host, _, port = cluster.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=5).close()
            ray.init(cluster, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise InputError(
                "the Ray cluster cannot be reached",
                where=f"--cluster {cluster}",
                why=reason(error),
                remedy="name it as ray://HOST:PORT, or use auto inside a Ray job",
            ) from error
    try:
        yield from _shared_out(_Ray(ray, work, setup), todo, max(1, int(ray.cluster_resources().get("CPU", 1))))
    finally:
        if started:
            ray.shutdown()


class _Actor:
    """What works on a cluster."""

    def __init__(self, work: Any, setup: Any) -> None:
        self.work, self.state = work, setup()

    def attempt(self, name: str, item: Any) -> Outcome[Any]:
        return _attempt(self.work, self.state, name, item)


class _RayWorker:
    """An actor of a Ray cluster."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.ray, self.actor = ray, actor
        self.place: int | None = None
        self.pending: Any = None

    def give(self, place: int, entry: tuple[str, Any]) -> None:
        self.place, self.pending = place, self.actor.attempt.remote(*entry)

    def receive(self) -> Outcome[Any] | None:
        try:
            outcome: Outcome[Any] = self.ray.get(self.pending)
        except self.ray.exceptions.RayTaskError as error:  # the actor's start failed
            raise error.as_instanceof_cause() from error
        except self.ray.exceptions.ActorDiedError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, InputError):
                raise cause from error
            return None
        except self.ray.exceptions.RayError:
            return None
        return outcome

    def close(self) -> str:
        self.ray.kill(self.actor)
        return "on the cluster"


class _Ray:
    """Workers of a Ray cluster, a core each."""

    def __init__(self, ray: Any, work: Any, setup: Any) -> None:
        self.ray, self.work, self.setup = ray, work, setup

    def start(self) -> _RayWorker:
        actor = self.ray.remote(num_cpus=1, max_restarts=0)(_Actor)
        return _RayWorker(self.ray, actor.remote(self.work, self.setup))

    def heard(self, busy: Sequence[_RayWorker]) -> list[_RayWorker]:
        ready, _ = self.ray.wait([worker.pending for worker in busy], num_returns=1)
        return [worker for worker in busy if worker.pending in ready]


class _Ledger:
    """Finished items, one JSON line each; a line that a kill cut in half does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Any] = {}
        if path.is_file():
            lines = read_lines(path)
            for number, line in enumerate(lines, start=1):
                try:
                    entry = json.loads(line)
                    self.done[entry["item"]] = entry["result"]
                except (ValueError, KeyError, TypeError) as error:
                    if number < len(lines):
                        why = f"line {number}: {reason(error)}"
                        raise InputError("the ledger is damaged", where=path, why=why, remedy="remove it") from error
            text = "".join(json.dumps({"item": name, "result": value}) + "\n" for name, value in self.done.items())
            path.write_text(text, encoding="utf-8")

    def write(self, name: str, value: Any) -> None:
        if name in self.done:
            return
        self.done[name] = value
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"item": name, "result": value}) + "\n")


class _Progress:
    """A line now and then: how many are done, how many failed, how long it will take."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total = label, total
        self.count = self.failed = 0
        self.start = self.last = time.perf_counter()

    def advance(self, outcome: Outcome[Any]) -> None:
        self.count += 1
        self.failed += outcome.failure is not None
        now = time.perf_counter()
        last = self.count == self.total
        if now - self.last < 5 and not (last and now - self.start > 5):
            return
        self.last = now
        parts = [f"{self.label} {self.count}" + (f"/{self.total}" if self.total else "")]
        parts += [f"{self.failed} failed"] if self.failed else []
        if self.total and not last:
            left = int((now - self.start) / self.count * (self.total - self.count))
            parts.append(f"{left // 60}:{left % 60:02d} left")
        print("  ".join(parts), file=sys.stderr, flush=True)
