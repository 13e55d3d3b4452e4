"""A folder of echoes: one table of clips, one of measurements, and the clips' pixels in shards, all under checksums."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, read_json, reading, write_csv, write_json
from filelock import FileLock, Timeout

from cl_video3d.cecl.clips import ClipSettings
from cl_video3d.cecl.data import AGAIN, MEASURED, ClipRecord, EchoSet
from cl_video3d.cecl.echo import EchoSettings
from cl_video3d.video.encoding import EncodeSetting
from cl_video3d.video.manifest import Entry, check_disjoint

READ_WAIT = 10.0
"""Seconds a reader waits for another process to have read or written."""
TABLES = ("clips.parquet", "echo.parquet")


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A video, or some of its clips, that were left out.

    Attributes:
        video_id: The video.
        path: Its file.
        what: What went wrong.
        why: The reason.
    """

    video_id: str
    path: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.video_id} ({self.path}): {self.what}" + (f" ({self.why})" if self.why else "")

    @classmethod
    def of(cls, entry: Entry, error: InputError) -> "Skipped":
        """From an error on a video."""
        return cls(entry.video_id, str(entry.path), error.what, error.why or "")


def write_echoes(
    folder: Path,
    records: Sequence[ClipRecord],
    measured: Mapping[str, Mapping[str, Any]],
    skipped: Sequence[Skipped],
    echo: EchoSettings,
    clips: ClipSettings,
) -> None:
    """Write ``clips.parquet``, ``echo.parquet``, ``skipped.csv`` and ``settings.json``; remove unused shards.

    Args:
        folder: The folder.
        records: The clips.
        measured: Measurements by key.
        skipped: What was left out.
        echo: What was measured.
        clips: How the clips were cut.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    points = echo.settings()
    names = [field.name for field in dataclasses.fields(ClipRecord) if field.name != "keys"]
    rows = [
        {"clip_id": record.clip_id, "key": key, **dataclasses.asdict(point), **measured[key]}
        for record in records
        for key, point in zip(record.keys, points, strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    floats = {name: pa.array(columns[name], type=pa.float32()) for name in ("ssim", "vmaf")}
    tables = (
        pa.table({name: [getattr(record, name) for record in records] for name in names}),
        pa.table({**columns, **floats}),
    )
    for name, table in zip(TABLES, tables, strict=True):
        with atomic_write(folder / name) as temporary:
            pq.write_table(table, temporary)
    write_csv(
        folder / "skipped.csv",
        [dataclasses.asdict(each) for each in skipped],
        [field.name for field in dataclasses.fields(Skipped)],
    )
    digests = {name: file_digest(folder / name) for name in TABLES}
    plain = {"echo": dataclasses.asdict(echo), "clips": dataclasses.asdict(clips), "sha256": digests}
    write_json(folder / "settings.json", plain)
    shards = {record.shard for record in records} | {record.residual_shard for record in records}
    for path in (folder / "pixels").glob("*.npy"):
        if path.name not in shards:
            path.unlink()


def read_echoes(folder: Path | str) -> EchoSet:
    """Read what ``encode-echo`` left.

    Raises:
        InputError: The folder holds no echoes, is being written, a table is damaged or was changed, or a group is in
            two splits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("the folder of echoes is missing", where=folder, remedy="run encode-echo first")
    for name in (*TABLES, "settings.json"):
        if not (folder / name).is_file():
            raise InputError(
                "the folder holds no echoes",
                where=folder,
                why=f"{name} is missing",
                remedy="name the OUT of an encode-echo that has ended",
            )
    with folder_lock(folder, wait=READ_WAIT):
        echoes = _read_tables(folder)
    check_disjoint(echoes.groups, [clip.split for clip in echoes.clips], where=folder)
    return echoes


def _read_tables(folder: Path) -> EchoSet:
    import pyarrow.parquet as pq

    with reading(folder / "settings.json", "the settings of the echoes cannot be read", AGAIN):
        settings = read_json(folder / "settings.json")
        cut = ClipSettings(**{**settings["clips"], "short_sides": tuple(settings["clips"]["short_sides"])})
        digests = {name: settings["sha256"][name] for name in TABLES}
    for name in TABLES:
        with reading(folder / name, "the table of echoes cannot be read", AGAIN):
            if file_digest(folder / name) != digests[name]:
                raise InputError(
                    "the table of echoes was changed",
                    where=folder / name,
                    why="its checksum differs from the one in settings.json",
                    remedy=AGAIN,
                )
    with reading(folder / TABLES[1], "the table of echoes cannot be read", AGAIN):
        clip_rows, echo_rows = (pq.read_table(folder / name).to_pylist() for name in TABLES)
        by_clip: dict[str, list[dict[str, Any]]] = {}
        for row in echo_rows:
            by_clip.setdefault(row["clip_id"], []).append(row)
        fields = [field.name for field in dataclasses.fields(EncodeSetting)]
        points = tuple(
            EncodeSetting(**{name: row[name] for name in fields}) for row in by_clip[clip_rows[0]["clip_id"]]
        )
        clips = tuple(ClipRecord(**row, keys=tuple(e["key"] for e in by_clip[row["clip_id"]])) for row in clip_rows)
        measured = {
            name: np.array([[each[name] for each in by_clip[clip.clip_id]] for clip in clips], dtype=np.float64)
            for name in MEASURED
        }
    return EchoSet(folder, clips, points, measured, cut)


@contextmanager
def folder_lock(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Keep a folder of echoes from being written by two processes, or read while it is written.

    Args:
        folder: The folder.
        wait: Seconds to wait for another process. With waiting, a folder that cannot be written needs no lock.

    Raises:
        InputError: Another process holds it.
    """
    if wait and not os.access(folder, os.W_OK):
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise InputError(
            "the folder is in use by another process", where=folder, remedy="wait for it, or name another"
        ) from error
    try:
        yield
    finally:
        lock.release()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
