"""Clips through real encoders, one thread each so that the same frames give the same bits."""

import dataclasses
import functools
import os
import shlex
from fractions import Fraction
from typing import Any, Literal, get_args

import av
import numpy as np
from contrastive_core.errors import InputError
from jaxtyping import Int64, Shaped, UInt8

from cl_video3d.video.bitstream import slice_bytes

Codec = Literal["h264", "hevc", "av1", "vp9"]
Control = Literal["crf", "kbps"]

_ENCODER: dict[Codec, str] = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9"}
_DECODERS: dict[Codec, tuple[str, ...]] = {
    "h264": ("h264",),
    "hevc": ("hevc",),
    "av1": ("libdav1d", "av1"),
    "vp9": ("vp9", "libvpx-vp9"),
}
DEFAULT_PRESET: dict[Codec, str] = {"h264": "veryfast", "hevc": "veryfast", "av1": "8", "vp9": "4"}
DEFAULT_CRF: dict[Codec, tuple[int, ...]] = {
    "h264": (20, 26, 32, 38),
    "hevc": (20, 26, 32, 38),
    "av1": (23, 35, 47, 59),
    "vp9": (23, 35, 47, 59),
}
LARGEST_CRF: dict[Codec, int] = {"h264": 51, "hevc": 51, "av1": 63, "vp9": 63}
WHOLE_CRF: frozenset[Codec] = frozenset({"av1", "vp9"})
"""Codecs whose encoders take whole numbers only."""
_SMALLEST_SIDE: dict[Codec, int] = {"h264": 16, "hevc": 32, "av1": 64, "vp9": 8}
_NAMED_PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
)
_TYPES = {1: "I", 2: "P", 3: "B"}  # AVPictureType
_NUMBERED_PRESETS: dict[Codec, int] = {"av1": 13, "vp9": 8}


@dataclasses.dataclass(frozen=True, order=True)
class EncodeSetting:
    """One operating point of an encoder.

    Attributes:
        codec: What is encoded to.
        preset: Speed preset of the encoder; a name for h264 and hevc, a number for av1 and vp9 (``cpu-used``).
        control: Constant quality (``crf``), or average rate (``kbps``, of the clip as it is cut).
        value: The CRF, or kilobits a second.
        share: Height of the encoded frames as a share of the clip's, in (0, 1].
    """

    codec: Codec = "h264"
    preset: str = "veryfast"
    control: Control = "crf"
    value: float = 26.0
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.codec not in get_args(Codec):
            raise InputError(
                "the codec is unknown",
                where="--codec",
                why=f"got {self.codec}",
                remedy=f"one of {', '.join(get_args(Codec))}",
            )
        if not valid_preset(self.codec, self.preset):
            wanted = (
                f"a number from 0 to {_NUMBERED_PRESETS[self.codec]}"
                if self.codec in _NUMBERED_PRESETS
                else f"one of {', '.join(_NAMED_PRESETS)}"
            )
            raise InputError(
                "the encoder has no such preset",
                where="--preset",
                why=f"got {self.preset} for {self.codec}",
                remedy=f"use {wanted}",
            )
        if self.control == "crf" and not 0 <= self.value <= LARGEST_CRF[self.codec]:
            raise InputError(
                "the CRF is out of range",
                where="--crf",
                why=f"got {self.value:g} for {self.codec}",
                remedy=f"use 0 to {LARGEST_CRF[self.codec]}",
            )
        if self.control == "kbps" and not 0 < self.value < 1e7:
            raise InputError("the bit rate is positive", where="--kbps", why=f"got {self.value:g}")
        if not 0 < self.share <= 1:
            raise InputError(
                "a resolution is a share of the clip's in (0, 1]", where="--shares", why=f"got {self.share:g}"
            )

    @property
    def name(self) -> str:
        """Short name, such as ``h264 veryfast crf 26``."""
        share = "" if self.share == 1 else f" at {self.share:g}"
        return f"{self.codec} {self.preset} {self.control} {self.value:g}{share}"

    def encoded_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the encoded frames, both even."""
        return tuple(max(2, 2 * round(side * self.share / 2)) for side in (width, height))  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A clip after an encoder, and after the decoder.

    Attributes:
        frame_bits: Bits of slices of each frame, in the order of display.
        frame_types: ``I``, ``P`` or ``B`` of each frame, as the decoder names it.
        frames: Decoded frames at the clip's size, planar 4:2:0 as rows ``[Y; U; V]``.
    """

    frame_bits: Int64[np.ndarray, " t"]
    frame_types: Shaped[np.ndarray, " t"]
    frames: UInt8[np.ndarray, "t rows w"]


def valid_preset(codec: Codec, preset: str) -> bool:
    """Whether the encoder of a codec has such a preset."""
    if codec in _NUMBERED_PRESETS:
        return preset.isdigit() and int(preset) <= _NUMBERED_PRESETS[codec]
    return preset in _NAMED_PRESETS


def available_codecs() -> tuple[Codec, ...]:
    """Codecs whose encoder and decoder the installed PyAV carries."""
    return tuple(codec for codec in get_args(Codec) if _has(_ENCODER[codec], "w") and _decoder(codec) is not None)


def require_codec(codec: Codec) -> None:
    """Say which codecs there are when one is missing.

    Raises:
        InputError: The installed PyAV cannot encode or decode it.
    """
    if codec not in available_codecs():
        raise InputError(
            f"the installed PyAV has no encoder for {codec}",
            where="--codec",
            why=f"{_ENCODER[codec]} is not in its libraries; there are: {', '.join(available_codecs()) or 'none'}",
            remedy="use one of these, or install a PyAV wheel that carries it",
        )


def check_size(setting: EncodeSetting, width: int, height: int) -> None:
    """Refuse sizes an encoder cannot take.

    Raises:
        InputError: The frames are too small for it.
    """
    small = min(setting.encoded_size(width, height))
    if small < _SMALLEST_SIDE[setting.codec]:
        raise InputError(
            "the frames are too small for the encoder",
            where=setting.name,
            why=f"{_ENCODER[setting.codec]} takes {_SMALLEST_SIDE[setting.codec]} pixels at least, the side is {small}",
            remedy="use a larger --size, or fewer --shares",
        )


@functools.cache
def library_versions() -> str:
    """Versions of the libraries that decide over the bits, for cache keys."""
    libraries = ",".join(f"{name}-{'.'.join(map(str, number))}" for name, number in sorted(av.library_versions.items()))
    return f"pyav-{av.__version__},{libraries}"


def command_line(
    setting: EncodeSetting, source: str, out: str, *, size: tuple[int, int], kbps: float | None = None
) -> str:
    """The ffmpeg command that encodes a file at an operating point, to be pasted into a shell.

    Args:
        setting: Operating point at constant quality.
        source: The file.
        out: The file to write.
        size: Width and height of the encoded frames.
        kbps: Rate that is not to be exceeded, in kilobits a second.

    Example:
        >>> command_line(EncodeSetting(), "a b.mp4", "out.mp4", size=(640, 360), kbps=800)
        "ffmpeg -i 'a b.mp4' -vf scale=640:360:flags=lanczos -c:v libx264 -preset veryfast -crf 26 -maxrate 800k \
-bufsize 1600k -an out.mp4"
    """
    words = ["ffmpeg", "-i", source, "-vf", f"scale={size[0]}:{size[1]}:flags=lanczos", "-c:v", _ENCODER[setting.codec]]
    if setting.codec == "vp9":
        words += ["-cpu-used", setting.preset, "-deadline", "good", "-crf", f"{setting.value:g}"]
        words += ["-b:v", "0" if kbps is None else f"{kbps:.0f}k"]  # its form of a capped constant quality
    else:
        words += ["-preset", setting.preset, "-crf", f"{setting.value:g}"]
        words += [] if kbps is None else ["-maxrate", f"{kbps:.0f}k", "-bufsize", f"{2 * kbps:.0f}k"]
    return shlex.join([*words, "-an", out])


def encode(frames: UInt8[np.ndarray, "t rows w"], setting: EncodeSetting, *, fps: float = 30.0) -> Encoded:
    """Encode and decode one clip: a single closed group of pictures, one thread.

    Args:
        frames: Planar 4:2:0 as rows ``[Y; U; V]`` (``rows = 3 h / 2``), h and w even.
        setting: Operating point.
        fps: Frames a second; matters to rate control.

    Returns:
        Bits and types of the frames, and the decoded frames at the clip's size.

    Raises:
        InputError: The codec is missing, the frames are too small, or the encoder fails.

    Example:
        >>> flat = np.full((4, 96, 64), 128, dtype=np.uint8)
        >>> encode(flat, EncodeSetting("h264")).frames.shape
        (4, 96, 64)
    """
    require_codec(setting.codec)
    count, rows, width = frames.shape
    height = rows * 2 // 3
    if not count or rows % 3 or width % 2:
        raise InputError(
            "the frames are no planar 4:2:0",
            where="frames",
            why=f"their shape is {frames.shape}",
            remedy="stack rows [Y; U; V] of an even height and width: 3 h / 2 rows",
        )
    check_size(setting, width, height)
    try:
        return _encode(frames, setting, fps, width, height)
    except av.FFmpegError as error:
        raise InputError(
            "the encoder failed",
            where=setting.name,
            why=f"{count} frames of {width}x{height}: {error}",
            remedy="use another preset or size",
        ) from error


def _encode(frames: np.ndarray, setting: EncodeSetting, fps: float, width: int, height: int) -> Encoded:
    count = len(frames)
    encoder = _encoder(setting, count, fps, *setting.encoded_size(width, height))
    packets: list[Any] = []
    for index, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="yuv420p")
        if setting.share != 1:
            picture = picture.reformat(width=encoder.width, height=encoder.height, interpolation="LANCZOS")
        picture.pts = index
        packets += encoder.encode(picture)
    packets += encoder.encode(None)  # encoders with B frames hold some back
    decoder: Any = av.CodecContext.create(str(_decoder(setting.codec)), "r")
    decoder.thread_count = 1
    pictures = [picture for packet in packets for picture in decoder.decode(packet)]
    pictures += decoder.decode(None)
    # Packets come in the order of decoding: bits are matched to frames by time stamp.
    bits = np.zeros(count, dtype=np.int64)
    for packet in packets:
        if packet.pts is not None and 0 <= packet.pts < count:
            bits[packet.pts] += 8 * slice_bytes(bytes(packet), setting.codec)
    types = np.full(count, "?", dtype="<U1")
    decoded = np.empty_like(frames)
    seen = np.zeros(count, dtype=bool)
    for picture in pictures:
        if picture.pts is None or not 0 <= picture.pts < count:
            continue
        if setting.share != 1:
            picture = picture.reformat(width=width, height=height, interpolation="LANCZOS")
        decoded[picture.pts] = picture.to_ndarray(format="yuv420p")
        types[picture.pts] = _TYPES.get(int(picture.pict_type), "?")
        seen[picture.pts] = True
    if not seen.all():
        raise InputError("the decoder lost frames", where=setting.name, why=f"{count - int(seen.sum())} of {count}")
    return Encoded(bits, types, decoded)


def _encoder(setting: EncodeSetting, count: int, fps: float, width: int, height: int) -> Any:
    context: Any = av.CodecContext.create(_ENCODER[setting.codec], "w")
    rate = Fraction(fps).limit_denominator(1001 * 120)
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.framerate, context.time_base, context.thread_count = rate, 1 / rate, 1
    context.gop_size = count
    if setting.control == "kbps":
        context.bit_rate = round(1000 * setting.value)
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes a banner to standard error for every clip otherwise
    context.options = _options(setting, count, width, height)
    return context


def _options(setting: EncodeSetting, count: int, width: int, height: int) -> dict[str, str]:
    quality = {"crf": f"{setting.value:g}"} if setting.control == "crf" else {}
    if setting.codec == "h264":
        # Some of x264's vector code gives other decisions for other alignments of memory: bits would not repeat.
        stable = {"x264-params": "cpu-independent=1"}
        return {"preset": setting.preset, "keyint_min": str(count), "sc_threshold": "0", **stable, **quality}
    if setting.codec == "hevc":
        threads = "pools=none:frame-threads=1:info=0:log-level=none"
        structure = f"keyint={count}:min-keyint={count}:scenecut=0:open-gop=0"
        # Frames of a single coding tree unit (64 pixels) come out differently every time.
        units = ":ctu=16" if max(width, height) <= 64 else ""
        return {"preset": setting.preset, "x265-params": f"{threads}:{structure}{units}", **quality}
    if setting.codec == "av1":
        return {"preset": setting.preset, "svtav1-params": f"lp=1:keyint={count}:scd=0", **quality}
    lag = {"lag-in-frames": str(min(count, 25)), "row-mt": "0", "deadline": "good"}
    constant = {"b": "0"} if setting.control == "crf" else {}
    return {"cpu-used": setting.preset, **lag, **constant, **quality}


@functools.cache
def _decoder(codec: Codec) -> str | None:
    return next((name for name in _DECODERS[codec] if _has(name, "r")), None)


@functools.cache
def _has(name: str, mode: Literal["r", "w"]) -> bool:
    try:
        av.Codec(name, mode)
    except (av.FFmpegError, ValueError):
        return False
    return True
