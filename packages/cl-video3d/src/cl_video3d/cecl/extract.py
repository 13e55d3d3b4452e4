"""Echo extraction: worker processes decode, cut and encode; what is measured is stored as it comes."""

import dataclasses
import hashlib
import io
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, remove_unfinished
from filelock import FileLock, Timeout

from cl_video3d.cecl.cache import EchoCache, Row, to_row
from cl_video3d.cecl.clips import ClipSettings, plan_clips
from cl_video3d.cecl.echo import EchoSettings, cache_key, frames_digest, measure, residual_map
from cl_video3d.cecl.store import CACHE, ClipRecord, Skipped, write_store
from cl_video3d.video.encoding import check_size
from cl_video3d.video.manifest import Entry
from cl_video3d.video.reading import RawFormat, VideoInfo, Window, luma, probe, read_windows

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

    records: list[ClipRecord]
    rows: dict[str, Row]
    encoded: int
    lost: int
    failure: InputError | None = None


@dataclasses.dataclass(frozen=True)
class Extraction:
    """Outcome of :func:`extract`.

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


def extract(
    entries: Sequence[Entry],
    out: Path | str,
    *,
    clips: ClipSettings = ClipSettings(),
    echo: EchoSettings = EchoSettings(),
    raw: RawFormat = RawFormat(),
    jobs: int = 1,
    progress: bool = True,
) -> Extraction:
    """Measure the echo of the clips of all videos.

    Frames are streamed: memory does not grow with the length of a video. What is measured is stored after every few
    clips; running again continues, and measures nothing twice. Videos that cannot be used are left out and listed.

    Args:
        entries: The videos.
        out: Folder of the results.
        clips: What a clip is.
        echo: What is measured.
        raw: Layout of headerless files.
        jobs: Worker processes, each with one thread; 1 works in this process.
        progress: Show how far it is.

    Raises:
        InputError: A codec is missing, the clips are too small for it, no video can be used, the folder is used by
            another process, or it cannot be written.
    """
    out = Path(out)
    if jobs < 1:
        raise InputError("there is at least one worker", where="--jobs", why=f"got {jobs}")
    echo.require()
    if clips.size:
        for setting in echo.settings():
            check_size(setting, clips.size, clips.size)
    if out.exists() and not out.is_dir():
        raise InputError("the output is not a folder", where=out, remedy="name another folder")
    with _locked(out):
        remove_unfinished(out)
        remove_unfinished(out / "pixels")
        cache = EchoCache(out / CACHE)
        records: list[ClipRecord] = []
        skipped: list[Skipped] = []
        tally = {"encoded": 0, "lost": 0}

        def planned(entry: Entry) -> list[Task]:
            tasks, failures = _plan(entry, clips, echo, raw, out)
            skipped.extend(failures)
            return tasks

        def store(task: Task, done: Done) -> None:
            cache.put(done.rows)
            records.extend(done.records)
            tally["encoded"] += done.encoded
            if done.failure is not None:
                skipped.append(Skipped.of(task.entry, done.failure))
            if done.lost:
                skipped.append(
                    Skipped(
                        task.entry.video_id,
                        str(task.entry.path),
                        "clips were left out",
                        f"{done.lost} of {len(task.windows)} from frame {task.windows[0].start} on touch damaged "
                        "packets or a change of the frame size",
                    )
                )

        with _progress(len(entries), progress) as advance:
            _run(entries, planned, store, jobs, advance)
        if not records:
            first = skipped[0]
            raise InputError(
                "no video could be measured",
                where=first.path,
                why=f"{first.what}: {first.why}",
                remedy=f"{len(entries)} videos were tried; this is the first",
            )
        records.sort(key=lambda record: (record.video_id, record.short_side, record.number))
        write_store(out, records, echo, clips, skipped, cache)
        total = len(records) * len(echo.settings())
        return Extraction(
            len(entries),
            len(records),
            tally["encoded"],
            total - tally["encoded"],
            tuple(sorted(skipped, key=lambda each: (each.video_id, each.why))),
        )


def work(task: Task) -> Done:
    """Decode, cut, encode and compare the clips of one task.

    Reading errors become part of the outcome; errors of writing are raised, because they are not the video's.
    """
    settings = task.echo.settings()
    cache = EchoCache(task.folder / CACHE)
    stride, size = task.clips.stride_of(task.video.fps), task.clips.size
    fps = task.video.fps / stride
    pixels: list[np.ndarray] = []
    residuals: list[np.ndarray] = []
    found: list[tuple[int, str]] = []
    rows: dict[str, Row] = {}
    keys: list[tuple[str, ...]] = []
    encoded, failure = 0, None
    try:
        for number, frames in read_windows(
            task.video, task.windows, length=task.clips.frames, stride=stride, size=size, short_side=task.short_side
        ):
            digest = frames_digest(frames)
            mine = tuple(cache_key(digest, setting, fps, task.echo) for setting in settings)
            known = cache.get([key for key in mine if key not in rows])
            rows |= known
            for key, setting in zip(mine, settings, strict=True):
                if key in rows:
                    continue
                result, decoded = measure(frames, setting, fps=fps, with_ssim=task.echo.ssim, with_vmaf=task.echo.vmaf)
                lost = residual_map(luma(frames), luma(decoded)) if task.echo.residuals else None
                rows[key] = (to_row(result), lost)
                encoded += 1
            if task.echo.residuals:
                residuals.append(np.stack([_residual(rows[key]) for key in mine]))
            pixels.append(frames)
            found.append((number, digest))
            keys.append(mine)
    except InputError as error:
        failure = error
    records = []
    if pixels:
        shard = _write_shard(task.folder, [digest for _, digest in found], pixels, "")
        if residuals:
            names = [key for mine in keys for key in mine]
            residual_shard = _write_shard(task.folder, names, residuals, "-residuals")
        for place, ((number, digest), mine) in enumerate(zip(found, keys, strict=True)):
            window = task.windows[number]
            records.append(
                ClipRecord(
                    clip_id=f"{task.entry.video_id}@{task.short_side or 'native'}#{task.first + number:05d}",
                    video_id=task.entry.video_id,
                    group=task.entry.group,
                    split=task.entry.split,
                    path=str(task.entry.path.absolute()),
                    short_side=task.short_side,
                    number=task.first + number,
                    start=window.start,
                    x=window.x,
                    y=window.y,
                    fps=fps,
                    video_fps=task.video.fps,
                    width=task.video.width,
                    height=task.video.height,
                    source_bpp=task.video.bpp,
                    digest=digest,
                    shard=shard,
                    place=place,
                    residual_shard=residual_shard if residuals else "",
                    keys=mine,
                )
            )
    lost_windows = 0 if failure else len(task.windows) - len(found)
    return Done(records, rows, encoded, lost_windows, failure)


def _residual(row: Row) -> np.ndarray:
    assert row[1] is not None
    return row[1]


def _plan(
    entry: Entry, clips: ClipSettings, echo: EchoSettings, raw: RawFormat, out: Path
) -> tuple[list[Task], list[Skipped]]:
    try:
        video = probe(entry.path, raw=raw)
    except InputError as error:
        return [], [Skipped.of(entry, error)]
    tasks, skipped = [], []
    for short_side in clips.short_sides:
        try:
            windows = plan_clips(video, entry, clips, short_side)
            if not clips.size:
                for setting in echo.settings():
                    check_size(setting, video.width // 2 * 2, video.height // 2 * 2)
        except InputError as error:
            skipped.append(Skipped.of(entry, error))
            continue
        side = clips.size
        area = side * side if side else (short_side or video.height) * (short_side or video.width) * 2
        most = max(1, min(_CLIPS_A_TASK, _BYTES_A_TASK // (area * clips.frames * 3 // 2)))
        for first in range(0, len(windows), most):
            part = tuple(windows[first : first + most])
            tasks.append(Task(video, entry, short_side, part, first, clips, echo, out))
    return tasks, skipped


def _run(
    entries: Sequence[Entry],
    planned: Callable[[Entry], list[Task]],
    store: Callable[[Task, Done], None],
    jobs: int,
    advance: Callable[[str], None],
) -> None:
    """Plan and work through all videos, a few tasks ahead of the workers."""
    if jobs == 1:
        for entry in entries:
            for mine in planned(entry):
                store(mine, work(mine))
            advance(entry.video_id)
        return
    stream = ((entry, task) for entry in entries for task in [*planned(entry), None])
    broken: list[Task] = []
    while True:
        running: dict[Future[Done], Task] = {}
        try:
            with _pool(jobs) as pool:
                for entry, task in stream:
                    if task is None:
                        advance(entry.video_id)
                        continue
                    try:
                        running[pool.submit(work, task)] = task
                    except BrokenProcessPool:
                        broken.append(task)
                        raise
                    while len(running) >= 2 * jobs:
                        _collect(running, store)
                while running:
                    _collect(running, store)
            break
        except BrokenProcessPool:  # a worker was killed, by the system or by a decoder: its tasks are tried alone
            broken += running.values()
    for lone in broken:
        try:
            with _pool(1) as pool:
                store(lone, pool.submit(work, lone).result())
        except BrokenProcessPool:
            store(
                lone,
                Done(
                    [],
                    {},
                    0,
                    0,
                    InputError(
                        "a worker died on the video",
                        where=lone.entry.path,
                        why="the decoder or encoder crashed, or the system ended it for memory",
                        remedy="leave the video out, or use fewer --jobs",
                    ),
                ),
            )


def _collect(running: dict[Future[Done], Task], store: Callable[[Task, Done], None]) -> None:
    finished, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        done = future.result()  # before the task is taken off: after a crash it is tried again
        store(running.pop(future), done)


def _pool(jobs: int) -> ProcessPoolExecutor:
    # Spawned, not forked: torch and codecs hold threads and locks that do not survive a fork.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def _write_shard(folder: Path, names: Sequence[str], arrays: Sequence[np.ndarray], suffix: str) -> str:
    """Store arrays in a file named by their content; one that is there already holds the same."""
    name = hashlib.sha256("".join(names).encode()).hexdigest()[:32] + suffix + ".npy"
    path = folder / "pixels" / name
    if not path.is_file():
        buffer = io.BytesIO()
        np.save(buffer, np.stack(arrays), allow_pickle=False)
        with atomic_write(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    return name


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            "the folder is in use by another process", where=out, remedy="wait for it, or name another"
        ) from error
    except OSError as error:
        raise InputError(
            "the output folder cannot be made", where=out, why=error.strerror, remedy="name another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


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
