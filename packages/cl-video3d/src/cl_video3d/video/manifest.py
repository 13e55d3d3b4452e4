"""Lists of videos: CSV files, folders, single files."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write

from cl_video3d.video.reading import SUFFIXES

COLUMNS = ("video_id", "path", "group", "start", "frames", "split")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One video of a list.

    Attributes:
        video_id: Its name, unique in the list.
        path: The file.
        group: Title or source; all videos of a group stay on one side of every split.
        start: First frame used.
        frames: Number of frames used from there on; ``None`` for all.
        split: Part the list puts it in; empty for none.
    """

    video_id: str
    path: Path
    group: str
    start: int = 0
    frames: int | None = None
    split: str = ""


def read_manifest(source: Path | str) -> list[Entry]:
    """Read a list of videos.

    Args:
        source: CSV with the columns ``video_id,path`` and optionally ``group,start,frames,split`` (paths relative to
            the file); a folder with a ``manifest.csv``; a folder of videos, each its own group; or one video.

    Raises:
        InputError: The source is missing or empty, a column is missing or not what it should be, an id occurs twice,
            or a group is in two splits.
    """
    source = Path(source)
    if source.is_dir():
        if not (source / "manifest.csv").is_file():
            return _folder(source)
        source = source / "manifest.csv"
    if not source.is_file():
        raise InputError("the list of videos is missing", where=source, remedy="name a CSV, a folder or a video")
    if source.suffix.lower() in SUFFIXES:
        return [Entry(source.stem, source, source.stem)]
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            "the list of videos cannot be read",
            where=source,
            why=str(error),
            remedy=f"write a CSV with the columns {','.join(COLUMNS[:3])}",
        ) from error
    missing = [name for name in ("video_id", "path") if name not in columns]
    if missing:
        raise InputError(
            "the list of videos lacks a column",
            where=source,
            why=f"there is no {missing[0]} among {columns}",
            remedy=f"its first line is {','.join(COLUMNS)}; the last four are optional",
        )
    entries = [_entry(source, line, row) for line, row in enumerate(rows, 2)]
    if not entries:
        raise InputError("the list of videos is empty", where=source, why="it holds no row below its header")
    seen: dict[str, int] = {}
    for line, entry in enumerate(entries, 2):
        if entry.video_id in seen:
            raise InputError(
                "two videos have one id",
                where=f"{source}: line {line}",
                why=f"{entry.video_id} stands on line {seen[entry.video_id]} too",
            )
        seen[entry.video_id] = line
    check_disjoint([entry.group for entry in entries], [entry.split for entry in entries], where=source)
    return entries


def write_manifest(path: Path | str, entries: Sequence[Entry]) -> None:
    """Write a list of videos, with paths relative to it where they are below its folder."""
    path = Path(path)
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for entry in entries:
            inside = entry.path.is_relative_to(path.parent)
            shown = entry.path.relative_to(path.parent) if inside else entry.path.absolute()
            frames = "" if entry.frames is None else entry.frames
            writer.writerow([entry.video_id, shown.as_posix(), entry.group, entry.start, frames, entry.split])


def check_disjoint(groups: Sequence[str], splits: Sequence[str], *, where: object | None = None) -> None:
    """Refuse a group in two splits: clips of one title on both sides make every figure too good.

    Raises:
        InputError: It names the group.
    """
    home: dict[str, str] = {}
    for group, split in zip(groups, splits, strict=True):
        if home.setdefault(group, split) != split:
            raise InputError(
                "a group is in two splits",
                where=where,
                why=f"videos of {group} are in {home[group] or 'no split'} and in {split or 'no split'}",
                remedy="put all videos of one title or source into one split",
            )


def _folder(folder: Path) -> list[Entry]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError("there are no videos", where=folder, why=f"no file ends in {', '.join(sorted(SUFFIXES))}")
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    if len(set(names)) < len(names):  # a.mp4 beside a.mkv
        names = [path.relative_to(folder).as_posix() for path in paths]
    return [Entry(name, path, name) for name, path in zip(names, paths, strict=True)]


def _entry(source: Path, line: int, row: dict[str, str | None]) -> Entry:
    where = f"{source}: line {line}"
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    for name in ("video_id", "path"):
        if not values[name]:
            raise InputError("a row of the list lacks a value", where=where, why=f"{name} is empty")
    numbers = []
    for name, least in (("start", 0), ("frames", 1)):
        text = values[name]
        if text and (not text.isdigit() or int(text) < least):
            raise InputError(
                "a row of the list holds no number of frames",
                where=where,
                why=f"{name} is {text!r}",
                remedy=f"use whole numbers from {least}, or leave it empty",
            )
        numbers.append(int(text) if text else None)
    path = Path(values["path"])
    return Entry(
        values["video_id"],
        path if path.is_absolute() else source.parent / path,
        values["group"] or values["video_id"],
        numbers[0] or 0,
        numbers[1],
        values["split"],
    )
