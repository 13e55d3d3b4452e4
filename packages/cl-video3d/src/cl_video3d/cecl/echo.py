"""The compression echo of a clip: how its rate and quality answer to a real encoder (section 5.1 of the method)."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from contrastive_core.errors import InputError
from jaxtyping import Float, Float16, Shaped, UInt8

from cl_video3d.video.encoding import (
    DEFAULT_CRF,
    DEFAULT_PRESET,
    Codec,
    EncodeSetting,
    encode,
    library_versions,
    require_codec,
)
from cl_video3d.video.quality import find_vmaf, psnr_frames, ssim, vmaf
from cl_video3d.video.reading import luma

EchoKind = Literal["stats", "extended", "rate", "quality"]

# log2 of fewer bits says nothing about the picture any more; static clips at high CRF get there.
BPP_FLOOR = 1e-5
RESIDUAL_BLOCK = 4
_FORMAT = 4  # raise when what a cached row means changes


@dataclasses.dataclass(frozen=True)
class EchoSettings:
    """What is measured.

    Attributes:
        codec: Codecs: h264, hevc, av1, vp9.
        preset: Presets, one a codec; veryfast, veryfast, 8 and 4 if not given.
        crf: Constant qualities; (20, 26, 32, 38) for h264 and hevc and (23, 35, 47, 59) for av1 and vp9 if neither
            these nor rates are given.
        kbps: Average rates in kilobits a second of the clip as it is cut, beside or instead of the CRFs.
        shares: Heights of the encoded frames as shares of the clip's, for ladders over resolutions.
        ssim: Measure SSIM too (loads torch in every worker).
        vmaf: Measure VMAF too (needs an ffmpeg with libvmaf; unreliable below 192 lines).
        residuals: Keep maps of what was lost, for ``--echo residual``.
    """

    codec: tuple[Codec, ...] = ("h264",)
    preset: tuple[str, ...] = ()
    crf: tuple[float, ...] = ()
    kbps: tuple[float, ...] = ()
    shares: tuple[float, ...] = (1.0,)
    ssim: bool = False
    vmaf: bool = False
    residuals: bool = False

    def __post_init__(self) -> None:
        if self.preset and len(self.preset) != len(self.codec):
            raise InputError(
                "there is one preset a codec",
                where="--preset",
                why=f"{len(self.preset)} presets for {len(self.codec)} codecs",
            )
        for option, values in (
            ("--codec", self.codec),
            ("--crf", self.crf),
            ("--kbps", self.kbps),
            ("--shares", self.shares),
        ):
            if len(set(values)) < len(values):
                raise InputError("a value is given twice", where=option, why=f"got {values}")
        if not self.codec or 1.0 not in self.shares:
            raise InputError(
                "the clip's own resolution is always measured",
                where="--codec, --shares",
                why=f"got {self.codec}, {self.shares}",
                remedy="include a codec, and the share 1",
            )
        self.settings()  # refuses what an encoder cannot do

    def settings(self) -> tuple[EncodeSetting, ...]:
        """All operating points, by codec, share and falling quality."""
        out = []
        for index, codec in enumerate(self.codec):
            preset = self.preset[index] if self.preset else DEFAULT_PRESET[codec]
            crf = self.crf or (() if self.kbps else DEFAULT_CRF[codec])
            for share in sorted(self.shares, reverse=True):
                out += [EncodeSetting(codec, preset, "crf", float(value), share) for value in sorted(crf)]
                out += [EncodeSetting(codec, preset, "kbps", float(v), share) for v in sorted(self.kbps, reverse=True)]
        return tuple(out)

    def require(self) -> None:
        """Look for everything that is needed before the work begins.

        Raises:
            InputError: A codec is missing, or VMAF is wanted and there is no ffmpeg that has it.
        """
        for codec in self.codec:
            require_codec(codec)
        if self.vmaf:
            find_vmaf()


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One clip at one operating point.

    Attributes:
        bits: Bits of all slices.
        bpp: Bits a pixel and frame of the clip.
        psnr: Mean PSNR of luma over frames, in dB, at most 61.1.
        psnr_std: Its standard deviation over frames.
        bits_i: Bits of I frames.
        bits_p: Bits of P frames.
        bits_b: Bits of B frames.
        n_i: Number of I frames.
        n_p: Number of P frames.
        n_b: Number of B frames.
        ssim: Mean SSIM of luma, where asked for.
        vmaf: Mean VMAF, where asked for.
    """

    bits: int
    bpp: float
    psnr: float
    psnr_std: float
    bits_i: int
    bits_p: int
    bits_b: int
    n_i: int
    n_p: int
    n_b: int
    ssim: float | None = None
    vmaf: float | None = None


def measure(
    frames: UInt8[np.ndarray, "t rows w"],
    setting: EncodeSetting,
    *,
    fps: float = 30.0,
    with_ssim: bool = False,
    with_vmaf: bool = False,
) -> tuple[Measurement, UInt8[np.ndarray, "t rows w"]]:
    """Encode a clip, decode it and compare.

    Args:
        frames: Planar 4:2:0 as rows ``[Y; U; V]``.
        setting: Operating point.
        fps: Frames a second.
        with_ssim: Measure SSIM.
        with_vmaf: Measure VMAF.

    Returns:
        What was measured, and the decoded frames.

    Raises:
        InputError: The encoder is missing or fails.
    """
    coded = encode(frames, setting, fps=fps)
    source, decoded = luma(frames), luma(coded.frames)
    quality = psnr_frames(source, decoded)
    bits = {kind: int(coded.frame_bits[coded.frame_types == kind].sum()) for kind in "IPB"}
    count = {kind: int((coded.frame_types == kind).sum()) for kind in "IPB"}
    total = int(coded.frame_bits.sum())
    measured = Measurement(
        total,
        total / source.size,
        float(quality.mean()),
        float(quality.std()),
        bits["I"],
        bits["P"],
        bits["B"],
        count["I"],
        count["P"],
        count["B"],
        ssim(source, decoded) if with_ssim else None,
        vmaf(frames, coded.frames, fps=fps) if with_vmaf else None,
    )
    return measured, coded.frames


def cache_key(frames_digest: str, setting: EncodeSetting, fps: float, echo: EchoSettings) -> str:
    """Name of a measurement: what was encoded, how, by which libraries, and what was measured."""
    words = [
        f"format-{_FORMAT}",
        frames_digest,
        setting.name,
        f"{fps:.6g}",
        library_versions(),
        f"ssim={echo.ssim}",
        f"vmaf={echo.vmaf}",
        f"residuals={echo.residuals}",
    ]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def frames_digest(frames: Shaped[np.ndarray, "..."]) -> str:
    """SHA-256 of the pixels and their shape."""
    return hashlib.sha256(str(frames.shape).encode() + np.ascontiguousarray(frames).tobytes()).hexdigest()


def residual_map(
    source: UInt8[np.ndarray, "t h w"], decoded: UInt8[np.ndarray, "t h w"]
) -> Float16[np.ndarray, "t h4 w4"]:
    """``log(1 + mean |x - decoded x|)`` over blocks of 4 x 4 pixels; rows and columns left over are dropped."""
    t, h, w = source.shape
    rows, columns = h // RESIDUAL_BLOCK, w // RESIDUAL_BLOCK
    error = np.abs(source.astype(np.int16) - decoded)[:, : rows * RESIDUAL_BLOCK, : columns * RESIDUAL_BLOCK]
    blocks = error.reshape(t, rows, RESIDUAL_BLOCK, columns, RESIDUAL_BLOCK).mean((2, 4), dtype=np.float32)
    return np.log1p(blocks).astype(np.float16)


def echo_vectors(
    bpp: Float[np.ndarray, "n c"],
    psnr: Float[np.ndarray, "n c"],
    *,
    kind: EchoKind = "stats",
    psnr_std: Float[np.ndarray, "n c"] | None = None,
    frame_bpp: Float[np.ndarray, "n c 3"] | None = None,
) -> Float[np.ndarray, "n e"]:
    """The echo as a vector: ``[log2 bpp] + [PSNR / 6]`` over operating points, not standardised.

    Six decibels are about one bit, so both halves have one unit.

    Args:
        bpp: Bits a pixel.
        psnr: Mean PSNR, in dB.
        kind: ``stats``: both; ``rate`` or ``quality``: one half; ``extended``: with ``[std PSNR / 6]`` and the log2 of
            mean bits a pixel of I, P and B frames.
        psnr_std: Standard deviation of PSNR over frames, for ``extended``.
        frame_bpp: Mean bits a pixel of I, P and B frames, 0 where there are none, for ``extended``.

    Raises:
        InputError: The kind is unknown, or lacks what it is made of.
    """
    if kind not in get_args(EchoKind):
        raise InputError(
            "the echo is of no known kind",
            where="--echo",
            why=f"got {kind}",
            remedy=f"one of {', '.join(get_args(EchoKind))}",
        )
    rate, quality = np.log2(np.maximum(bpp, BPP_FLOOR)), psnr / 6
    parts: Sequence[np.ndarray] = {"rate": [rate], "quality": [quality]}.get(kind, [rate, quality])
    if kind == "extended":
        if psnr_std is None or frame_bpp is None:
            raise InputError("the extended echo needs spread and frame types", where="psnr_std, frame_bpp")
        spread = np.log2(np.maximum(frame_bpp, BPP_FLOOR)).reshape(len(bpp), -1)
        parts = [*parts, psnr_std / 6, spread]
    return np.concatenate(parts, axis=1)
