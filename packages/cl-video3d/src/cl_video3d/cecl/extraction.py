"""Echoes of videos: worker processes decode, cut and encode; what is measured is stored as it comes."""

import dataclasses
import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError, require
from contrastive_core.files import atomic_write, remove_unfinished, writing
from contrastive_core.scale import Outcome, spread

from cl_video3d.cecl.cache import EchoCache, Row, StoreError
from cl_video3d.cecl.clips import ClipSettings, plan_clips
from cl_video3d.cecl.data import ClipRecord
from cl_video3d.cecl.echo import EchoSettings, cache_key, frames_digest, measure, residual_map
from cl_video3d.cecl.folder import TABLES, Skipped, folder_lock, write_echoes
from cl_video3d.video.encoding import check_size
from cl_video3d.video.manifest import Entry
from cl_video3d.video.planes import scaled_size
from cl_video3d.video.reading import RawFormat, VideoInfo, Window, luma, probe
from cl_video3d.video.windows import read_windows

CACHE = "cache.sqlite"
_OURS = {CACHE, f"{CACHE}-journal", "pixels", "skipped.csv", "settings.json", *TABLES}
# A worker holds the clips of one task: this many, or fewer where they are large.
_CLIPS_A_TASK = 16
_BYTES_A_TASK = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Task:
    """Some clips of one video.

    Attributes:
        video: The video.
        entry: Its row of the list.
        short_side: Short side it is resized to, or 0.
        windows: Where the clips are cut.
        first: Number of the first clip among those of this video and short side.
        clips: What a clip is.
        echo: What is measured.
        folder: Folder of the results.
    """

    video: VideoInfo
    entry: Entry
    short_side: int
    windows: tuple[Window, ...]
    first: int
    clips: ClipSettings
    echo: EchoSettings
    folder: Path

    def key(self) -> str:
        """A name that no other task has."""
        return f"{self.entry.video_id}@{self.short_side}#{self.first}"


@dataclasses.dataclass(frozen=True)
class Done:
    """What came of a task.

    Attributes:
        records: The clips that could be measured.
        rows: One measurement for every record and setting, by key.
        encoded: Encodes that were made; the others were in the cache.
        lost: Windows left out because packets were damaged.
        failure: Why the rest could not be measured.
    """

    records: Sequence[ClipRecord] = ()
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)
    encoded: int = 0
    lost: int = 0
    failure: InputError | None = None


@dataclasses.dataclass(frozen=True)
class Extraction:
    """Outcome of :func:`measure_videos`.

    Attributes:
        videos: Videos of the list.
        clips: Clips measured.
        encoded: Encodes made now.
        cached: Encodes taken from the cache.
        skipped: What was left out, and why.
    """

    videos: int
    clips: int
    encoded: int
    cached: int
    skipped: tuple[Skipped, ...]


def measure_videos(
    entries: Sequence[Entry],
    out: Path | str,
    *,
    clips: ClipSettings = ClipSettings(),
    echo: EchoSettings = EchoSettings(),
    raw: RawFormat = RawFormat(),
    workers: int = 1,
    progress: bool = True,
) -> Extraction:
    """Measure the echo of the clips of all videos.

    Frames are streamed: memory does not grow with the length of a video. What is measured is stored after every few
    clips; running again continues, measures nothing twice, and repairs shards and tables that were changed. Videos that
    cannot be used are left out and listed.

    Args:
        entries: The videos.
        out: Folder of the results.
        clips: What a clip is.
        echo: What is measured.
        raw: Layout of headerless files.
        workers: Worker processes, each with one thread; 1 works in this process.
        progress: Show how far it is.

    Raises:
        InputError: A codec is missing, the clips are too small for it, no video can be used, the folder is used by
            another process or holds something else, or it cannot be written.
    """
    out = Path(out)
    require(1 <= workers <= 1024, "--workers", workers, "a whole number from 1 to 1024")
    echo.require()
    for setting in echo.settings() if clips.size else ():
        check_size(setting, clips.size, clips.size)
    with _claimed(out):
        return _Collected(out, EchoCache(out / CACHE), clips, echo, raw).all(entries, workers, progress)


class _Collected:
    """What has come of the tasks so far."""

    def __init__(self, out: Path, cache: EchoCache, clips: ClipSettings, echo: EchoSettings, raw: RawFormat) -> None:
        self.out, self.cache, self.clips, self.echo, self.raw = out, cache, clips, echo, raw
        self.records: list[ClipRecord] = []
        self.skipped: list[Skipped] = []
        self.under_way: dict[str, Task] = {}
        self.encoded = 0

    def all(self, entries: Sequence[Entry], workers: int, progress: bool) -> Extraction:
        with _progress(len(entries), progress) as advance:
            tasks = self._tasks(entries, advance)
            for outcome in spread(work, tasks, setup=_no_setup, key=Task.key, workers=workers):
                self._store(outcome)
        if not self.records:
            first = self.skipped[0]
            raise InputError(
                "no video could be measured",
                where=first.path,
                why=f"{first.what}: {first.why}",
                remedy=f"{len(entries)} videos were tried; this is the first",
            )
        self.records.sort(key=lambda record: (record.video_id, record.short_side, record.number))
        self.skipped.sort(key=lambda each: (each.video_id, each.why))
        rows = self.cache.get([key for record in self.records for key in record.keys])
        measured = {key: row for key, (row, _) in rows.items()}
        write_echoes(self.out, self.records, measured, self.skipped, self.echo, self.clips)
        total = len(self.records) * len(self.echo.settings())
        cached = total - self.encoded
        return Extraction(len(entries), len(self.records), self.encoded, cached, tuple(self.skipped))

    def _tasks(self, entries: Sequence[Entry], advance: Callable[[str], None]) -> Iterator[Task]:
        for entry in entries:
            for short_side in self.clips.short_sides:
                try:
                    video = probe(entry.path, raw=self.raw)
                    for task in self._cut(video, entry, short_side):
                        self.under_way[task.key()] = task
                        yield task
                except InputError as error:
                    self.skipped.append(Skipped.of(entry, error))
            advance(entry.video_id)

    def _cut(self, video: VideoInfo, entry: Entry, short_side: int) -> list[Task]:
        windows = plan_clips(video, entry, self.clips, short_side)
        side = self.clips.size
        width, height = (side, side) if side else scaled_size(video.width, video.height, short_side)
        for setting in self.echo.settings():
            check_size(setting, width, height)
        most = max(1, min(_CLIPS_A_TASK, _BYTES_A_TASK // (width * height * self.clips.frames * 3 // 2)))
        return [
            Task(video, entry, short_side, tuple(windows[k : k + most]), k, self.clips, self.echo, self.out)
            for k in range(0, len(windows), most)
        ]

    def _store(self, outcome: Outcome[Done]) -> None:
        """Keep what came of a task; what is wrong with the folder of results ends the work, with a video does not."""
        if isinstance(outcome.failure, StoreError):
            raise outcome.failure
        task, done = self.under_way.pop(outcome.key), outcome.value or Done(failure=outcome.failure)
        self.cache.put(done.rows)
        self.records.extend(done.records)
        self.encoded += done.encoded
        if done.failure is not None:
            self.skipped.append(Skipped.of(task.entry, done.failure))
        if done.lost:
            why = f"{done.lost} of {len(task.windows)} from frame {task.windows[0].start} on touch damaged packets or "
            why += "a change of the frame size"
            self.skipped.append(Skipped(task.entry.video_id, str(task.entry.path), "clips were left out", why))


def _no_setup() -> None:
    """A worker needs nothing but its task."""


def work(_: None, task: Task) -> Done:
    """Decode, cut, encode and compare the clips of one task.

    What is wrong with the video becomes part of the outcome.

    Raises:
        StoreError: The folder of results cannot be written or read.
    """
    cache = EchoCache(task.folder / CACHE)
    stride = task.clips.stride_of(task.video.fps)
    fps = task.video.fps / stride
    pixels: list[np.ndarray] = []
    places: list[tuple[int, str, tuple[str, ...]]] = []
    rows: dict[str, Row] = {}
    encoded, failure = 0, None
    try:
        for number, frames in read_windows(
            task.video,
            task.windows,
            length=task.clips.frames,
            stride=stride,
            size=task.clips.size,
            short_side=task.short_side,
        ):
            digest = frames_digest(frames)
            keys = tuple(cache_key(digest, setting, fps, task.echo) for setting in task.echo.settings())
            rows |= cache.get([key for key in keys if key not in rows])
            for key, setting in zip(keys, task.echo.settings(), strict=True):
                if key not in rows:
                    rows[key] = _measured(frames, setting, fps, task.echo)
                    encoded += 1
            pixels.append(frames)
            places.append((number, digest, keys))
    except StoreError:
        raise
    except InputError as error:
        failure = error
    records = _records(task, fps, pixels, places, rows) if pixels else []
    return Done(records, rows, encoded, 0 if failure else len(task.windows) - len(places), failure)


def _measured(frames: np.ndarray, setting: Any, fps: float, echo: EchoSettings) -> Row:
    measured, decoded = measure(frames, setting, fps=fps, with_ssim=echo.ssim, with_vmaf=echo.vmaf)
    return dataclasses.asdict(measured), residual_map(luma(frames), luma(decoded)) if echo.residuals else None


def _records(
    task: Task,
    fps: float,
    pixels: Sequence[np.ndarray],
    places: Sequence[tuple[int, str, tuple[str, ...]]],
    rows: dict[str, Row],
) -> list[ClipRecord]:
    """Write the shards of a task, and say where its clips are."""
    shard = _write_shard(task.folder, pixels, "")
    maps = [np.stack([np.asarray(rows[key][1]) for key in keys]) for _, _, keys in places if task.echo.residuals]
    residual_shard = _write_shard(task.folder, maps, "-residuals") if maps else ""
    return [
        ClipRecord(
            clip_id=f"{task.entry.video_id}@{task.short_side or 'native'}#{task.first + number:05d}",
            video_id=task.entry.video_id,
            group=task.entry.group,
            split=task.entry.split,
            path=str(task.entry.path.absolute()),
            short_side=task.short_side,
            number=task.first + number,
            start=task.windows[number].start,
            x=task.windows[number].x,
            y=task.windows[number].y,
            fps=fps,
            video_fps=task.video.fps,
            width=task.video.width,
            height=task.video.height,
            source_bpp=task.video.bpp,
            digest=digest,
            shard=shard,
            place=place,
            residual_shard=residual_shard,
            residual_digest=frames_digest(maps[place]) if maps else "",
            keys=keys,
        )
        for place, (number, digest, keys) in enumerate(places)
    ]


def _write_shard(folder: Path, arrays: Sequence[np.ndarray], suffix: str) -> str:
    """Store arrays in a file named by their content; one of that name that holds something else is replaced."""
    buffer = io.BytesIO()
    np.save(buffer, np.stack(arrays), allow_pickle=False)
    content = buffer.getbuffer()
    name = hashlib.sha256(content).hexdigest()[:32] + suffix + ".npy"
    path = folder / "pixels" / name
    if not path.is_file() or path.read_bytes() != content:
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
        except InputError as error:
            raise StoreError(error.what, where=error.where, why=error.why, remedy=error.remedy) from error
    return name


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """The folder of results, for this process alone."""
    if out.exists() and not out.is_dir():
        raise InputError("the output is not a folder", where=out, remedy="name another folder")
    others = {path.name for path in out.iterdir() if not path.name.startswith(".")} - _OURS if out.is_dir() else set()
    if others:
        why = f"for instance {min(others)}"
        raise InputError("the output folder holds something else", where=out, why=why, remedy="name another folder")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with folder_lock(out):
            remove_unfinished(out)
            remove_unfinished(out / "pixels")
            yield


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    if not shown:
        yield lambda name: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task: Any = bar.add_task("encoding", total=total)
            yield lambda name: bar.update(task, advance=1, description=f"encoding {name[:30]}")
    else:
        done, every = [0], max(1, total // 10)

        def advance(name: str) -> None:
            done[0] += 1
            if done[0] % every == 0 or done[0] == total:
                print(f"encoding {done[0]}/{total} videos", file=sys.stderr, flush=True)

        yield advance
