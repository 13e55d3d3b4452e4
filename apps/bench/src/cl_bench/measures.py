"""What a race is: two contestants with their times and their memory."""

import ctypes
import dataclasses
import gc
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Speed:
    """Times and memory of two contestants on the same task.

    Attributes:
        name: For instance ``mantis: embedding V2``.
        ours: Seconds of each round.
        theirs: Seconds of each round of the peer.
        peer: Name of the peer.
        memory: Peak extra memory in MiB, ours and theirs.
        notes: Size of the task (rows, width, token), accuracy differences.
        threads: CPU threads of both.
    """

    name: str
    ours: Sequence[float]
    theirs: Sequence[float]
    peer: str
    memory: tuple[float, float]
    notes: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ratios = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        return {
            "name": self.name,
            "peer": self.peer,
            "ratio": statistics.median(ratios),
            "ratios": [min(ratios), max(ratios)],
            "rounds": len(ratios),
            "threads": self.threads,
            "ours_seconds": statistics.median(self.ours),
            "theirs_seconds": statistics.median(self.theirs),
            "ours_peak_mib": self.memory[0],
            "theirs_peak_mib": self.memory[1],
            "notes": self.notes,
        }


def race(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    peer: str,
    rounds: int,
    notes: str,
    threads: int | None = None,
) -> Speed:
    """Run both contestants alternately and time them.

    Args:
        name: Name of the entry.
        ours: Our task.
        theirs: The peer's task of the same size.
        peer: Name of the peer.
        rounds: Timed rounds of each, after one that is not counted and in which memory is measured.
        notes: What the task is.
        threads: CPU threads of both; those of torch if not given.
    """
    memory = (_peak_memory(ours), _peak_memory(theirs))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for task, record in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            task()
            record.append(time.perf_counter() - start)
    return Speed(name, *times, peer, memory, notes, threads or torch.get_num_threads())


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


def processor() -> str:
    """Name of the processor, as the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
