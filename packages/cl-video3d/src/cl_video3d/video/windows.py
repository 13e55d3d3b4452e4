"""Windows of frames out of videos of any length: streamed, cut as they are decoded, never loaded whole."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import reading
from jaxtyping import UInt8

from cl_video3d.video.planes import planes_of, scaled_size
from cl_video3d.video.reading import VideoInfo, Window, open_video, packets_of, video_stream

# Frames between two windows that are cheaper to decode than to jump over.
_WORTH_A_SEEK = 64


@dataclasses.dataclass(frozen=True)
class _Shape:
    """Frames, their distance, the side of the crop (0 for none), and the short side frames are resized to (or 0)."""

    length: int
    stride: int
    size: int
    short_side: int

    @property
    def span(self) -> int:
        return (self.length - 1) * self.stride + 1


def read_windows(
    video: VideoInfo,
    windows: Sequence[Window],
    *,
    length: int,
    stride: int = 1,
    size: int = 0,
    short_side: int = 0,
) -> Iterator[tuple[int, UInt8[np.ndarray, "t rows w"]]]:
    """Decode windows of a video; at most those that overlap in time are in memory.

    Luma is taken as it is stored, at 8 bits and limited range: nothing is resized unless ``short_side`` asks for it.
    Windows that touch a damaged packet, or a change of the frame size, are left out. It jumps to the key frame before
    each window; what does not decode from there (recovery points of intra-refresh) is read from the start.

    Args:
        video: Of :func:`cl_video3d.video.probe`.
        windows: Where; in any order.
        length: Frames of a window.
        stride: Distance of its frames.
        size: Side of the square crop; 0 for the whole frame.
        short_side: Resize frames to this short side first, by area averaging; 0 for none.

    Yields:
        Number of the window and its frames, planar 4:2:0 as rows ``[Y; U; V]``.

    Raises:
        InputError: A window does not fit, or the file cannot be read any more.
    """
    shape = _Shape(length, stride, size, short_side)
    _check_fit(video, windows, shape)
    order = sorted(range(len(windows)), key=lambda place: windows[place].start)
    missed: list[int] = []
    for numbers in _segments(windows, order, shape.span):
        jump = video.times is not None and windows[numbers[0]].start > _WORTH_A_SEEK
        whole = set[int]()
        for number, frames in _cut_all(video, windows, numbers, shape, jump=jump):
            whole.add(number)
            yield number, frames
        missed += [number for number in numbers if jump and number not in whole]
    if missed:
        yield from _cut_all(video, windows, missed, shape, jump=False)


def _check_fit(video: VideoInfo, windows: Sequence[Window], shape: _Shape) -> None:
    width, height = scaled_size(video.width, video.height, shape.short_side)
    side = shape.size or 2
    for window in windows:
        last = window.start + shape.span - 1
        inside = 0 <= window.x <= width - side and 0 <= window.y <= height - side
        if window.start < 0 or last >= video.frames or not inside:
            raise InputError(
                "a window does not fit in the video",
                where=video.path,
                why=f"frames {window.start} to {last} of {video.frames}, crop of {shape.size or 'all'} at "
                f"({window.x}, {window.y}) of {width}x{height}",
            )


def _segments(windows: Sequence[Window], order: Sequence[int], span: int) -> Iterator[list[int]]:
    """Windows that are read in one go: those that overlap, or lie close together."""
    group: list[int] = []
    end = 0
    for number in order:
        start = windows[number].start
        if group and start - end > _WORTH_A_SEEK:
            yield group
            group = []
        group.append(number)
        end = max(end, start + span)
    if group:
        yield group


def _cut_all(
    video: VideoInfo, windows: Sequence[Window], numbers: Sequence[int], shape: _Shape, *, jump: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Windows of one go, by ascending start, without those that touch damage."""
    width, height = scaled_size(video.width, video.height, shape.short_side)
    last = max(windows[n].start for n in numbers) + shape.span - 1
    waiting, active = list(numbers), dict[int, list[np.ndarray]]()
    for index, frame in _frames(video, windows[numbers[0]].start, last, jump=jump):
        while waiting and windows[waiting[0]].start <= index:
            active[waiting.pop(0)] = []
        wanted = [n for n in active if (index - windows[n].start) % shape.stride == 0]
        if not wanted:
            continue
        planes = None if frame is None else [video.orientation.turn(p) for p in planes_of(frame, shape.short_side)]
        if planes is not None and planes[0].shape != (height, width):
            planes = None
        for n in wanted:
            if planes is None or len(active[n]) != (index - windows[n].start) // shape.stride:
                del active[n]
                continue
            active[n].append(_cut(planes, windows[n], shape.size))
            if len(active[n]) == shape.length:
                yield n, np.stack(active.pop(n))


def _frames(video: VideoInfo, first: int, last: int, *, jump: bool) -> Iterator[tuple[int, Any]]:
    """Frames ``first`` to ``last`` with their numbers; ``None`` in place of damaged ones."""
    with reading(video.path, "the video cannot be read"), open_video(video.path, video.raw) as container:
        stream = video_stream(container, video.path)
        stream.codec_context.thread_count = 1
        # Errors are raised instead of being painted over: a concealed frame is not what was filmed.
        stream.codec_context.options = {"err_detect": "explode"}
        if jump and video.times is not None:
            try:
                container.seek(int(video.times[first]), stream=stream, backward=True, any_frame=False)
            except av.FFmpegError:
                return
        numbered = _numbered(container, stream, video)
        head = next(numbered, None)
        if head is None or (jump and head[0] > first):  # landed too late
            return
        for index, frame in itertools.chain([head], numbered):
            if index > last:
                return
            if index >= first:
                yield index, frame


def _numbered(container: Any, stream: Any, video: VideoInfo) -> Iterator[tuple[int, Any]]:
    """Decoded frames with their numbers; from a damaged packet to the next key frame there is ``None`` instead."""
    damaged, count = False, 0
    for packet in packets_of(container, stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            damaged = True
            if video.times is None:
                count += 1
            continue
        for frame in frames:
            index = count if video.times is None else _number(video.times, frame.pts)
            count += 1
            if index is None:
                continue
            damaged = (damaged and not frame.key_frame) or frame.is_corrupt
            yield index, None if damaged else frame


def _number(times: np.ndarray, pts: int | None) -> int | None:
    if pts is None:
        return None
    place = int(np.searchsorted(times, pts))
    return place if place < len(times) and times[place] == pts else None


def _cut(planes: Sequence[np.ndarray], window: Window, size: int) -> np.ndarray:
    y, u, v = planes
    height, width = (size, size) if size else y.shape
    half = (slice(window.y // 2, (window.y + height) // 2), slice(window.x // 2, (window.x + width) // 2))
    cut = y[window.y : window.y + height, window.x : window.x + width]
    chroma = [plane[half].reshape(-1) for plane in (u, v)]
    return np.concatenate([cut.reshape(-1), *chroma]).reshape(height * 3 // 2, width)
