"""The folder of an embedded index: what may lie in it, who may write, what failures mean."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lancedb
from filelock import FileLock, Timeout

from contrastive_core.errors import InputError
from contrastive_core.files import remove_unfinished, writing
from contrastive_core.index.snapshot import TABLE, UnreadableError, damaged, first_line

PATIENCE = 60.0
"""Seconds to wait for another writer."""
LOCK = ".lock"
APPROXIMATION = "approximation.json"


def check_folder(folder: Path) -> None:
    """Refuse a place where no index can be built.

    Raises:
        InputError: It is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError("an index is a folder", where=folder, why="there is a file of that name")
    remove_unfinished(folder)  # a killed process may have left one, which is nobody's file
    if folder.is_dir() and {path.name for path in folder.iterdir()} - {f"{TABLE}.lance", LOCK, APPROXIMATION}:
        raise InputError(
            "an index has a folder of its own", where=folder, why="there are other files in it", remedy="name another"
        )


def finished(folder: Path) -> bool:
    """Whether a build came to its end there; the files may be damaged since."""
    return any((folder / f"{TABLE}.lance" / "_versions").glob("*.manifest"))


def readable(folder: Path) -> bool:
    """Whether the newest version can be opened."""
    with suppress(RuntimeError, OSError, ValueError):
        lancedb.connect(folder).open_table(TABLE)
        return True
    return False


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Wait for other writers, and keep them waiting.

    Raises:
        InputError: Another one takes longer than a minute.
    """
    guard = FileLock(folder / LOCK, timeout=PATIENCE)
    with writing(folder):
        try:
            guard.acquire()
        except Timeout as error:
            raise InputError("another process is changing the index", where=folder, remedy="try again later") from error
    try:
        yield
    finally:
        guard.release()


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what LanceDB raises on opening into a damaged index."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise damaged(folder, error) from error


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Turn what LanceDB raises on writing into an error a user can act on; the index is as before."""
    try:
        yield
    except (RuntimeError, OSError, UnreadableError) as error:
        raise InputError(
            "the index could not be changed",
            where=folder,
            why=first_line(error),
            remedy="it is as it was before; free space and permissions there, and try again",
        ) from error


def size(folder: Path) -> int:
    """Bytes on disk; files that a writer removes meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
