"""What a measurement is: arms with their scores, or two contestants with their times."""

import ctypes
import dataclasses
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Claim:
    """The outcome of one claim.

    Attributes:
        name: For instance ``mantis: random forest``.
        statement: What is claimed.
        scores: Score of every arm, one number a seed.
        better: Arm that should score higher.
        baseline: Arm it is compared with.
        gate: Whether the claim is one the method stands on, or only reported.
        details: Further tables, ``title -> rows``.
        notes: What a reader has to know.
        seconds: Wall time.
        curves: Line plots, ``title -> name -> (x, y)``, drawn in the report.
    """

    name: str
    statement: str
    scores: Mapping[str, Sequence[float]]
    better: str
    baseline: str
    gate: bool
    details: Mapping[str, list[dict[str, Any]]]
    notes: Sequence[str]
    seconds: float
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def difference(self) -> list[float]:
        """Paired difference, seed by seed."""
        return [a - b for a, b in zip(self.scores[self.better], self.scores[self.baseline], strict=True)]

    @property
    def holds(self) -> bool:
        """Whether the mean difference is positive."""
        return statistics.fmean(self.difference) > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        difference = self.difference
        return {
            "name": self.name,
            "statement": self.statement,
            "holds": self.holds,
            "gate": self.gate,
            "arms": {
                arm: {"mean": statistics.fmean(values), "sd": _spread(values), "values": list(values)}
                for arm, values in self.scores.items()
            },
            "paired_difference": {
                "mean": statistics.fmean(difference),
                "sd": _spread(difference),
                "values": difference,
            },
            "details": dict(self.details),
            "notes": list(self.notes),
            "curves": {title: dict(lines) for title, lines in self.curves.items()},
            "seconds": round(self.seconds, 1),
        }


@dataclasses.dataclass(frozen=True)
class Speed:
    """Times and memory of two contestants on the same task.

    Attributes:
        name: For instance ``mantis: embedding V2``.
        ours: Seconds of each round.
        theirs: Seconds of each round of the peer.
        peer: Name of the peer.
        memory: Peak extra memory in MiB, ours and theirs.
        notes: Size of the task, accuracy differences.
    """

    name: str
    ours: Sequence[float]
    theirs: Sequence[float]
    peer: str
    memory: tuple[float, float]
    notes: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ratios = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        return {
            "name": self.name,
            "peer": self.peer,
            "ratio": statistics.median(ratios),
            "ours_seconds": statistics.median(self.ours),
            "theirs_seconds": statistics.median(self.theirs),
            "ours_peak_mib": self.memory[0],
            "theirs_peak_mib": self.memory[1],
            "notes": self.notes,
        }


def race(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], *, peer: str, rounds: int, notes: str
) -> Speed:
    """Run both contestants alternately and time them.

    Args:
        name: Name of the entry.
        ours: Our task.
        theirs: The peer's task of the same size.
        peer: Name of the peer.
        rounds: Timed rounds of each, after one that is not counted and in which memory is measured.
        notes: What the task is.
    """
    memory = (_peak_memory(ours), _peak_memory(theirs))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for task, record in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            task()
            record.append(time.perf_counter() - start)
    return Speed(name, *times, peer, memory, notes)


def _peak_memory(task: Callable[[], object]) -> float:
    """Largest growth of the resident memory during the task, in MiB, sampled every 2 ms."""
    _release()
    start, peak, done = _resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _resident() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        task()
    finally:
        done.set()
        watcher.join()
    return round(max(peak, _resident() - start), 1)


def _release() -> None:
    """Give freed memory back to the system, where the C library can: what is kept would hide growth."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _resident() -> float:
    """Resident memory in MiB; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0.0
    import resource

    return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
