"""Windows of frames out of videos of any length: streamed, cut as they are decoded, never loaded whole."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from contrastive_core.errors import InputError
from jaxtyping import Int64, UInt8

SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".y4m", ".yuv"})
_PQ, _HLG = 16, 18  # transfer characteristics of ITU-T H.273
_FULL_RANGE = 2
# Frames between two windows that are cheaper to decode than to jump over.
_WORTH_A_SEEK = 64


@dataclasses.dataclass(frozen=True)
class RawFormat:
    """How to read headerless ``.yuv`` files.

    Attributes:
        size: Width and height, such as ``1920x1080``.
        fps: Frames a second.
        pix_fmt: Pixel format by ffmpeg's name.
    """

    size: str | None = None
    fps: float = 30.0
    pix_fmt: str = "yuv420p"


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a video is, found in one pass over its packets and its first frame.

    Attributes:
        path: The file.
        width: Width as displayed, in pixels.
        height: Height as displayed.
        frames: Frames.
        fps: Mean frames a second.
        variable_rate: Whether the distances of frames differ by more than a tenth.
        pixel_format: By ffmpeg's name, such as ``yuv420p10le``.
        codec: Decoder.
        rotation: Degrees counterclockwise by which players turn the frames: 0, 90, 180 or -90.
        interlaced: Whether the first frame is made of two fields.
        transfer: ``sdr``, ``pq`` or ``hlg``.
        bits: Bits of all packets.
        times: Time stamps of the frames, ascending; ``None`` where the file has none that tell frames apart.
        raw: How the file is read if it is headerless.
    """

    path: Path
    width: int
    height: int
    frames: int
    fps: float
    variable_rate: bool
    pixel_format: str
    codec: str
    rotation: int
    interlaced: bool
    transfer: str
    bits: int
    times: Int64[np.ndarray, " n"] | None
    raw: RawFormat

    @property
    def bpp(self) -> float:
        """Bits a pixel of the file itself: how much it was compressed before."""
        return self.bits / (self.frames * self.width * self.height)


@dataclasses.dataclass(frozen=True)
class Window:
    """Frames of a clip and where it is cut.

    Attributes:
        start: First frame.
        x: Left edge, even.
        y: Top edge, even.
    """

    start: int
    x: int = 0
    y: int = 0


def probe(path: Path | str, *, raw: RawFormat = RawFormat()) -> VideoInfo:
    """Read what a video is.

    Args:
        path: The file.
        raw: Layout of headerless files.

    Raises:
        InputError: The file is missing, empty, no video, cut off before its index, or holds no frame that decodes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("the video is missing", where=path, remedy="check the path")
    if path.stat().st_size == 0:
        raise InputError("the video is empty", where=path, why="the file has no bytes", remedy="copy it again")
    try:
        with _open(path, raw) as container:
            stream = _video_stream(container, path)
            first, times, sizes, damaged = None, [], 0, 0
            for packet in _packets(container, stream):
                if packet.size:
                    sizes += packet.size
                    if not packet.is_discard:
                        times.append(packet.pts)
                if first is None:
                    try:
                        first = next(iter(packet.decode()), None)
                    except av.FFmpegError:
                        damaged += 1
            if first is None or not times:
                why = f"{damaged} of its first packets are damaged" if damaged else "no packet gave a frame"
                raise InputError("the video holds no frame that decodes", where=path, why=why, remedy="copy it again")
            return _info(path, stream, first, times, sizes, raw)
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error


def _info(path: Path, stream: Any, first: Any, times: list[Any], size: int, raw: RawFormat) -> VideoInfo:
    rotation = int(round(first.rotation / 90) * 90)
    rotation = {270: -90, -180: 180, -270: 90}.get(rotation, rotation)
    turned = rotation in (90, -90)
    stamps = None
    if None not in times and len(set(times)) == len(times):
        stamps = np.sort(np.array(times, dtype=np.int64))
    fps, variable = float(stream.average_rate or stream.guessed_rate or raw.fps), False
    if stamps is not None and len(stamps) > 2 and stream.time_base:
        steps = np.diff(stamps)
        variable = bool((np.abs(steps - np.median(steps)) > 0.1 * np.median(steps)).mean() > 0.02)
        fps = float(Fraction(len(steps)) / (int(stamps[-1] - stamps[0]) * Fraction(stream.time_base)))
    return VideoInfo(
        path=path,
        width=first.height if turned else first.width,
        height=first.width if turned else first.height,
        frames=len(times),
        fps=fps,
        variable_rate=variable,
        pixel_format=first.format.name,
        codec=stream.codec_context.name,
        rotation=rotation,
        interlaced=bool(first.interlaced_frame),
        transfer={_PQ: "pq", _HLG: "hlg"}.get(int(first.color_trc or 0), "sdr"),
        bits=8 * size,
        times=stamps,
        raw=raw,
    )


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Even width and height whose smaller one is ``short_side``; the largest even sizes within the frame for 0."""
    if short_side == 0:
        return width // 2 * 2, height // 2 * 2
    factor = short_side / min(width, height)
    return max(2, 2 * round(width * factor / 2)), max(2, 2 * round(height * factor / 2))


def read_windows(
    video: VideoInfo,
    windows: Sequence[Window],
    *,
    length: int,
    stride: int = 1,
    size: int = 0,
    short_side: int = 0,
) -> Iterator[tuple[int, UInt8[np.ndarray, "t rows w"]]]:
    """Decode windows of a video, one after another; at most the windows that overlap in time are in memory.

    Luma is taken as it is stored, at 8 bits and limited range: nothing is resized unless ``short_side`` asks for it.
    Windows that touch a damaged packet, or a change of the frame size, are left out.

    Args:
        video: Of :func:`probe`.
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
    span = (length - 1) * stride + 1
    width, height = scaled_size(video.width, video.height, short_side)
    for window in windows:
        side = size or 2
        if (
            window.start < 0
            or window.start + span > video.frames
            or not (0 <= window.x <= width - side and 0 <= window.y <= height - side)
        ):
            raise InputError(
                "a window does not fit in the video",
                where=video.path,
                why=f"frames {window.start} to {window.start + span - 1} of {video.frames}, crop of {size or 'all'} at "
                f"({window.x}, {window.y}) of {width}x{height}",
            )
    order = sorted(range(len(windows)), key=lambda place: windows[place].start)
    for numbers in _segments([windows[n].start for n in order], order, span):
        first, last = windows[numbers[0]].start, max(windows[n].start for n in numbers) + span - 1
        waiting, active = list(numbers), dict[int, list[np.ndarray]]()
        for index, frame in _frames(video, first, last):
            while waiting and windows[waiting[0]].start <= index:
                active[waiting.pop(0)] = []
            wanted = [n for n in active if (index - windows[n].start) % stride == 0]
            if wanted:
                planes = None if frame is None else _planes(frame, video, short_side)
                if planes is not None and planes[0].shape != (height, width):
                    planes = None
                for n in wanted:
                    if planes is None or len(active[n]) != (index - windows[n].start) // stride:
                        del active[n]
                        continue
                    active[n].append(_cut(planes, windows[n], size))
                    if len(active[n]) == length:
                        yield n, np.stack(active.pop(n))


def _segments(starts: list[int], order: list[int], span: int) -> Iterator[list[int]]:
    """Windows that are read in one go: those that overlap, or lie close together."""
    group: list[int] = []
    end = 0
    for start, number in zip(starts, order, strict=True):
        if group and start - end > _WORTH_A_SEEK:
            yield group
            group = []
        group.append(number)
        end = max(end, start + span)
    if group:
        yield group


def _frames(video: VideoInfo, first: int, last: int) -> Iterator[tuple[int, Any]]:
    """Frames ``first`` to ``last`` with their numbers; ``None`` in place of damaged ones."""
    jumps = [True, False] if video.times is not None and first > _WORTH_A_SEEK else [False]
    try:
        for jump in jumps:
            with _open(video.path, video.raw) as container:
                stream = _video_stream(container, video.path)
                stream.codec_context.thread_count = 1
                # Errors are raised instead of being painted over: a concealed frame is not what was filmed.
                stream.codec_context.options = {"err_detect": "explode"}
                if jump and not _jump(container, stream, video, first):
                    continue
                numbered = _numbered(container, stream, video, jumped=jump)
                head = next(numbered, None)
                if head is None or (jump and head[0] > first):  # landed too late: read from the start
                    continue
                for index, frame in itertools.chain([head], numbered):
                    if index > last:
                        return
                    if index >= first:
                        yield index, frame
                return
    except av.FFmpegError as error:
        raise _unreadable(video.path, error) from error


def _jump(container: Any, stream: Any, video: VideoInfo, first: int) -> bool:
    assert video.times is not None
    try:
        container.seek(int(video.times[first]), stream=stream, backward=True, any_frame=False)
    except av.FFmpegError:
        return False
    return True


def _numbered(container: Any, stream: Any, video: VideoInfo, *, jumped: bool) -> Iterator[tuple[int, Any]]:
    """Decoded frames with their numbers; from a damaged packet to the next key frame there is ``None`` instead."""
    damaged, count = False, 0
    for packet in _packets(container, stream):
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


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets up to the end, or to where the file breaks off."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        yield packet


def _planes(frame: Any, video: VideoInfo, short_side: int) -> list[np.ndarray]:
    """Y, U and V at 8 bits, limited range, upright, of even size."""
    full = int(frame.color_range or 0) == _FULL_RANGE or frame.format.name.startswith("yuvj")
    change: dict[str, Any] = {}
    if short_side:
        # The frame as stored may lie on its side.
        width, height = scaled_size(frame.width, frame.height, short_side)
        if (width, height) != (frame.width, frame.height):
            change |= {"width": width, "height": height, "interpolation": "AREA"}
    if frame.format.name != "yuv420p" or full:
        change |= {"format": "yuv420p", "dst_color_range": "MPEG"}
        if full:
            change |= {"src_color_range": "JPEG"}
    if change:
        frame = frame.reformat(**change)
    turns = video.rotation // 90 % 4
    planes = []
    height, width = frame.height // 2 * 2, frame.width // 2 * 2
    for number, plane in enumerate(frame.planes):
        rows, columns = (height, width) if number == 0 else (height // 2, width // 2)
        values = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:rows, :columns]
        planes.append(np.rot90(values, turns) if turns else values)
    return planes


def _cut(planes: list[np.ndarray], window: Window, size: int) -> np.ndarray:
    y, u, v = planes
    height, width = (size, size) if size else y.shape
    half = (slice(window.y // 2, (window.y + height) // 2), slice(window.x // 2, (window.x + width) // 2))
    luma = y[window.y : window.y + height, window.x : window.x + width]
    chroma = [plane[half].reshape(-1) for plane in (u, v)]
    return np.concatenate([luma.reshape(-1), *chroma]).reshape(height * 3 // 2, width)


def luma(frames: UInt8[np.ndarray, "*n rows w"]) -> UInt8[np.ndarray, "*n h w"]:
    """The upper two thirds of planar 4:2:0 rows."""
    return frames[..., : frames.shape[-2] * 2 // 3, :]


def to_rgb(frame: UInt8[np.ndarray, "rows w"]) -> UInt8[np.ndarray, "h w 3"]:
    """One planar 4:2:0 frame as RGB, by BT.601 below 720 lines and BT.709 from there on."""
    height = frame.shape[0] * 2 // 3
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="yuv420p")
    matrix = "ITU709" if height >= 720 else "ITU601"
    return picture.reformat(format="rgb24", src_colorspace=matrix, dst_colorspace="DEFAULT").to_ndarray()


def _open(path: Path, raw: RawFormat) -> Any:
    if path.suffix.lower() != ".yuv":
        return av.open(str(path))
    if raw.size is None:
        raise InputError(
            "a headerless file does not say how it is laid out",
            where=path,
            why="there is no frame size",
            remedy="pass --raw.size 1920x1080, --raw.fps and --raw.pix-fmt",
        )
    options = {"video_size": raw.size, "framerate": f"{raw.fps:g}", "pixel_format": raw.pix_fmt}
    try:
        return av.open(str(path), format="rawvideo", options=options)
    except (av.FFmpegError, ValueError) as error:
        raise InputError(
            "the raw file cannot be read like this",
            where=path,
            why=f"--raw.size {raw.size}, --raw.fps {raw.fps:g}, --raw.pix-fmt {raw.pix_fmt}: {error}",
        ) from error


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        kinds = sorted({stream.type for stream in container.streams})
        raise InputError(
            "the file holds no video",
            where=path,
            why=f"its streams: {', '.join(kinds) or 'none'}",
            remedy="name a file with pictures",
        )
    return container.streams.video[0]


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        "the video cannot be read",
        where=path,
        why=str(error).split(": '")[0].removeprefix("[Errno 1094995529] "),
        remedy="check that the file is whole; an .mp4 that was not written to its end has no index",
    )
