"""Lists of videos: CSV files, folders, single files.

One rule for what is read: ids and groups are strings as they are written; every entry is used, refused or named.
"""

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import read_csv, write_csv

from cl_video3d.video.reading import SUFFIXES

COLUMNS = ("video_id", "path", "group", "start", "frames", "split")
SPLITS = ("train", "val", "test")
_NAMES = {
    "video_id": ("id", "video", "name"),
    "path": ("file", "filename", "file_name", "filepath", "video_path"),
    "group": ("title", "source"),
    "start": ("first_frame", "start_frame"),
    "frames": ("num_frames", "n_frames"),
    "split": ("set", "subset", "partition"),
}
_COLUMN_OF = {name: column for column, names in _NAMES.items() for name in (column, *names)}
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MOST_FRAMES = 10**9


@dataclasses.dataclass(frozen=True)
class Entry:
    """One video of a list.

    Attributes:
        video_id: Its name, unique in the list.
        path: The file.
        group: Title or source; all videos of a group stay on one side of every split.
        start: First frame used.
        frames: Number of frames used from there on; ``None`` for all.
        split: ``train``, ``val`` or ``test``; empty where the list has no splits.
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
            the file; letter case and usual synonyms do not matter); a folder with a ``manifest.csv``; a folder of
            videos, each its own group; or one video.

    Raises:
        InputError: The source is missing or empty, a column is missing or not what it should be, an id occurs twice,
            or a group or file is in two splits.
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
    entries, lines = [], dict[str, int]()
    for line, row in _rows(source):
        entry = _entry(source, line, row)
        if entry.video_id in lines:
            raise InputError(
                "two videos have one id",
                where=f"{source}, line {line}",
                why=f"{entry.video_id} stands in line {lines[entry.video_id]} too",
            )
        lines[entry.video_id] = line
        entries.append(entry)
    if not entries:
        raise InputError("the list of videos is empty", where=source, why="it holds no row below its header")
    splits = [entry.split for entry in entries]
    if any(splits) and not all(splits):
        name = next(entry.video_id for entry in entries if not entry.split)
        raise InputError(
            "a row lacks its split", where=f"{source}, line {lines[name]}", remedy=f"write {', '.join(SPLITS)}"
        )
    check_disjoint([entry.group for entry in entries], splits, where=source)
    check_disjoint([os.path.realpath(entry.path) for entry in entries], splits, where=source)
    return entries


def write_manifest(path: Path | str, entries: Sequence[Entry]) -> None:
    """Write a list of videos, with paths relative to it where they are below its folder."""
    path = Path(path)
    rows = []
    for entry in entries:
        inside = entry.path.is_relative_to(path.parent)
        shown = entry.path.relative_to(path.parent) if inside else entry.path.absolute()
        frames = "" if entry.frames is None else entry.frames
        rows.append({**dataclasses.asdict(entry), "path": shown.as_posix(), "frames": frames})
    write_csv(path, rows, COLUMNS)


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


def split_name(text: str, where: object) -> str:
    """``train``, ``val`` or ``test`` of their usual names; empty for an empty text.

    Raises:
        InputError: The split has no known name.
    """
    if text and text.lower() not in _SPLIT_OF:
        raise InputError("unknown split", where=where, why=f"got {text!r}", remedy=f"one of {', '.join(SPLITS)}")
    return _SPLIT_OF[text.lower()] if text else ""


def _rows(source: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows by our names of the columns."""
    columns: dict[str, str] | None = None
    for line, row in read_csv(source):
        if columns is None:
            columns = _columns(source, row)
        yield line, {column: row[name] for column, name in columns.items()}


def _columns(source: Path, row: Mapping[str, str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for name in row:
        column = _COLUMN_OF.get(name.lower().replace(" ", "_"))
        if column in columns:
            raise InputError("two columns mean the same", where=source, why=f"{columns[str(column)]} and {name}")
        if column is not None:
            columns[column] = name
    missing = [name for name in COLUMNS[:2] if name not in columns]
    if missing:
        raise InputError(
            "the list of videos lacks a column",
            where=source,
            why=f"there is no {missing[0]} among {', '.join(list(row)[:12])}",
            remedy=f"its first line is {','.join(COLUMNS)}; the last four are optional",
        )
    others = [name for name in row if name not in columns.values()]
    if others:
        warnings.warn(f"{source}: columns that are not used: {', '.join(others[:12])}", ContrastiveWarning, 4)
    return columns


def _entry(source: Path, line: int, row: Mapping[str, str]) -> Entry:
    where = f"{source}, line {line}"
    for name in COLUMNS[:2]:
        if not row[name].strip():
            raise InputError("a row of the list lacks a value", where=where, why=f"{name} is empty")
    group = row.get("group", "") or row["video_id"]
    for text in (row["video_id"], group):
        if text != text.strip() or not text.isprintable():
            raise InputError(
                "an id begins or ends with a space, or holds what cannot be printed", where=where, why=repr(text)
            )
    path = Path(row["path"])
    return Entry(
        row["video_id"],
        path if path.is_absolute() else source.parent / path,
        group,
        _count(row.get("start", ""), "start", 0, where) or 0,
        _count(row.get("frames", ""), "frames", 1, where),
        split_name(row.get("split", "").strip(), where),
    )


def _count(text: str, name: str, least: int, where: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or not least <= int(text) <= _MOST_FRAMES:
        raise InputError(
            "a row of the list holds no number of frames",
            where=where,
            why=f"{name} is {text!r}",
            remedy=f"use whole numbers from {least}, or leave it empty",
        )
    return int(text)


def _folder(folder: Path) -> list[Entry]:
    paths, others = list[Path](), list[Path]()
    for path in _files(folder):
        (paths if path.suffix.lower() in SUFFIXES else others).append(path)
    if not paths:
        raise InputError("there are no videos", where=folder, why=f"no file ends in {', '.join(sorted(SUFFIXES))}")
    if others:
        few = ", ".join(path.name for path in others[:4])
        warnings.warn(f"{folder}: {len(others)} files that are no videos, such as {few}", ContrastiveWarning, 3)
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    if len(set(names)) < len(names):  # a.mp4 beside a.mkv
        names = [path.relative_to(folder).as_posix() for path in paths]
    # Links to one file are one title.
    group: dict[str, str] = {}
    return [
        Entry(name, path, group.setdefault(os.path.realpath(path), name))
        for name, path in zip(names, paths, strict=True)
    ]


def _files(folder: Path) -> Iterator[Path]:
    """All files that are not hidden, those in linked folders and broken links included; each folder once."""
    seen = set[str]()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in sorted(files) if not name.startswith("."))
