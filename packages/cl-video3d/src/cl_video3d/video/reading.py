"""What a video is: found in one pass over its packets and its first frame, without decoding it."""

import dataclasses
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from contrastive_core.errors import InputError, require
from contrastive_core.files import reading
from jaxtyping import Int64, UInt8

_NAMES = "mp4 mkv webm avi mov m4v ts mts m2ts mpg mpeg y4m yuv flv wmv 3gp ogv mxf ivf h264 hevc"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split(" "))
_PQ, _HLG = 16, 18  # transfer characteristics of ITU-T H.273
# Playlists, which name further files and addresses, are not among them.
_FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,yuv4mpegpipe,rawvideo,flv,asf,ogg,mxf,ivf,h264,hevc,obu,nut"
_REMEDY = "check that the file is whole; an .mp4 that was not written to its end has no index"


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

    def __post_init__(self) -> None:
        require(0 < self.fps <= 1000, "--raw.fps", self.fps, "a positive number, at most 1000")
        if self.size is not None:
            parse_size(self.size, "--raw.size")
            self.frame_bytes()

    def frame_bytes(self) -> int:
        """Bytes of a frame.

        Raises:
            InputError: There is no size, or no such pixel format.
        """
        width, height = parse_size(self.size or "", "--raw.size")
        try:
            layout = av.VideoFormat(self.pix_fmt, width, height)
        except ValueError as error:
            raise InputError(
                "unknown pixel format", where="--raw.pix-fmt", why=f"got {self.pix_fmt}", remedy="such as yuv420p"
            ) from error
        return sum(part.width * part.height * (1 + (part.bits > 8)) for part in layout.components)


@dataclasses.dataclass(frozen=True)
class Orientation:
    """How players turn frames as they are stored: transposed first, then mirrored.

    Attributes:
        transposed: Whether rows become columns.
        mirrored: Whether left and right change sides.
        flipped: Whether top and bottom do.
    """

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False

    def turn(self, plane: np.ndarray) -> np.ndarray:
        """A plane ``[h w]`` as it is displayed."""
        plane = plane.T if self.transposed else plane
        return plane[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a video is.

    Attributes:
        path: The file.
        width: Width as displayed, in pixels.
        height: Height as displayed.
        frames: Frames.
        fps: Mean frames a second.
        variable_rate: Whether the distances of frames differ by more than a tenth.
        pixel_format: By ffmpeg's name, such as ``yuv420p10le``.
        codec: Decoder.
        orientation: How players turn the frames.
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
    orientation: Orientation
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
        InputError: The file is missing, empty, no video, cut off before its index, or holds no frame that decodes; or
            it is raw and its length is no whole number of frames.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("the video is missing", where=path, remedy="check the path")
    if path.stat().st_size == 0:
        raise InputError("the video is empty", where=path, why="the file has no bytes", remedy="copy it again")
    with reading(path, "the video cannot be read", _REMEDY), open_video(path, raw) as container:
        stream = video_stream(container, path)
        first, times, size, damaged = None, [], 0, 0
        for packet in packets_of(container, stream):
            if packet.size:
                size += packet.size
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
        return _info(path, stream, first, times, size, raw)


def _info(path: Path, stream: Any, first: Any, times: list[Any], size: int, raw: RawFormat) -> VideoInfo:
    orientation = _orientation(path, first)
    stamps = None
    if None not in times and len(set(times)) == len(times):
        stamps = np.sort(np.array(times, dtype=np.int64))
    fps, variable = float(stream.average_rate or stream.guessed_rate or raw.fps), False
    if stamps is not None and len(stamps) > 2 and stream.time_base:
        steps = np.diff(stamps)
        variable = bool((np.abs(steps - np.median(steps)) > 0.1 * np.median(steps)).mean() > 0.02)
        fps = float(Fraction(len(steps)) / (int(stamps[-1] - stamps[0]) * Fraction(stream.time_base)))
    turned = orientation.transposed
    return VideoInfo(
        path=path,
        width=first.height if turned else first.width,
        height=first.width if turned else first.height,
        frames=len(times),
        fps=fps,
        variable_rate=variable,
        pixel_format=first.format.name,
        codec=stream.codec_context.name,
        orientation=orientation,
        interlaced=bool(first.interlaced_frame),
        transfer={_PQ: "pq", _HLG: "hlg"}.get(int(first.color_trc or 0), "sdr"),
        bits=8 * size,
        times=stamps,
        raw=raw,
    )


def _orientation(path: Path, frame: Any) -> Orientation:
    """From the display matrix: ``x' = a x + c y``, ``y' = b x + d y``, in 1/65536."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Orientation()
    a, b, _, c, d = (np.frombuffer(bytes(data), np.int32)[:5] / 2**16).round(3).tolist()
    scale = max(abs(a), abs(b)) or 1.0
    if sorted(abs(value) / scale for value in (a, b, c, d)) != [0, 0, 1, 1] or (a == 0) != (d == 0):
        raise InputError(
            "the video is turned by no multiple of a right angle",
            where=path,
            why=f"its display matrix is [{a:g} {b:g}; {c:g} {d:g}]",
            remedy="turn and encode it first",
        )
    return Orientation(False, a < 0, d < 0) if a else Orientation(True, c < 0, b < 0)


def luma(frames: UInt8[np.ndarray, "*n rows w"]) -> UInt8[np.ndarray, "*n h w"]:
    """The upper two thirds of planar 4:2:0 rows."""
    return frames[..., : frames.shape[-2] * 2 // 3, :]


def parse_size(text: str, option: str) -> tuple[int, int]:
    """Width and height of ``1920x1080``.

    Raises:
        InputError: The text is no size.

    Example:
        >>> parse_size("1920x1080", "--size")
        (1920, 1080)
    """
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text, re.ASCII)
    sides = tuple(map(int, match.groups())) if match else (0, 0)
    require(min(sides) >= 16, option, text or "nothing", "a width and a height from 16, such as 1920x1080")
    return sides[0], sides[1]


def open_video(path: Path, raw: RawFormat) -> Any:
    """A container, to be closed by ``with``. Names are files even if they look like addresses (``12:30 take.mp4``).

    Raises:
        InputError: The file is headerless, and there is no layout or it does not fit.
    """
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    if path.suffix.lower() != ".yuv":
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    if raw.size is None:
        raise InputError(
            "a headerless file does not say how it is laid out",
            where=path,
            why="there is no frame size",
            remedy="pass --raw.size 1920x1080, --raw.fps and --raw.pix-fmt",
        )
    length, each = path.stat().st_size, raw.frame_bytes()
    if length % each:
        raise InputError(
            "the raw file is of another size or pixel format",
            where=path,
            why=f"its {length} bytes are {length / each:.2f} frames of {raw.size} {raw.pix_fmt}",
            remedy="check --raw.size and --raw.pix-fmt",
        )
    options |= {"video_size": raw.size.lower(), "framerate": f"{raw.fps:g}", "pixel_format": raw.pix_fmt}
    return av.open(f"file:{path}", format="rawvideo", options=options)


def video_stream(container: Any, path: Path) -> Any:
    """The first stream of moving pictures; cover art is a stream too.

    Raises:
        InputError: There is none.
    """
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    raise InputError(
        "the file holds no video",
        where=path,
        why=f"its streams: {', '.join([*kinds, *['cover art'] * bool(container.streams.video)]) or 'none'}",
        remedy="name a file with moving pictures",
    )


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
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
