"""Clips with their echoes, and the way to tensors."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import reading
from jaxtyping import Float, Float32, Int, UInt8

from cl_video3d.cecl.clips import ClipSettings
from cl_video3d.cecl.echo import EchoKind, EchoSettings, echo_vectors, frames_digest, measure
from cl_video3d.video.encoding import Codec, EncodeSetting
from cl_video3d.video.manifest import split_name
from cl_video3d.video.reading import luma

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

MEASURED = ("bits", "bpp", "psnr", "psnr_std", "bits_i", "bits_p", "bits_b", "n_i", "n_p", "n_b", "ssim", "vmaf")
AGAIN = "run encode-echo again with the same output"
_IN_MEMORY = 2**30


@dataclasses.dataclass(frozen=True)
class ClipRecord:
    """Where a clip comes from and where its pixels are.

    Attributes:
        clip_id: ``VIDEO@SHORT_SIDE#NUMBER``.
        video_id: Its video.
        group: Title or source of the video.
        split: Part of the list the video is in.
        path: The file.
        short_side: Short side the frames were resized to; 0 for native pixels.
        number: Number among the clips of the video and short side.
        start: First frame.
        x: Left edge.
        y: Top edge.
        fps: Frames a second of the clip.
        video_fps: Frames a second of the video.
        width: Width of the video.
        height: Height of the video.
        source_bpp: Bits a pixel of the file it was cut from.
        digest: SHA-256 of the pixels.
        shard: File of ``pixels/`` that holds them.
        place: Row in the shard.
        residual_shard: File of the residual maps; empty without.
        residual_digest: SHA-256 of the maps; empty without.
        keys: Keys of its measurements, one a setting.
    """

    clip_id: str
    video_id: str
    group: str
    split: str = ""
    path: str = ""
    short_side: int = 0
    number: int = 0
    start: int = 0
    x: int = 0
    y: int = 0
    fps: float = 30.0
    video_fps: float = 30.0
    width: int = 0
    height: int = 0
    source_bpp: float = 0.0
    digest: str = ""
    shard: str = ""
    place: int = 0
    residual_shard: str = ""
    residual_digest: str = ""
    keys: tuple[str, ...] = ()

    @property
    def video_size(self) -> str:
        """Name of the video at the size its frames were resized to: what a curve over resolutions belongs to."""
        return f"{self.video_id}@{self.short_side}"

    @property
    def frame_size(self) -> tuple[float, float]:
        """Width and height of the frames the clip was cut from."""
        factor = self.short_side / min(self.width, self.height) if self.short_side else 1.0
        return self.width * factor, self.height * factor


@dataclasses.dataclass(frozen=True)
class EchoSet:
    """Clips with their echoes.

    Attributes:
        folder: Where they are.
        clips: The clips.
        settings: Operating points, the columns of the measurements.
        measured: Measurements by name, ``[n c]``, NaN where not measured.
        cut: How the clips were cut.
        frames: Their frames, where they are in memory; else they are read from the folder.
    """

    folder: Path
    clips: tuple[ClipRecord, ...]
    settings: tuple[EncodeSetting, ...]
    measured: dict[str, Float[np.ndarray, "n c"]]
    cut: ClipSettings = ClipSettings()
    frames: UInt8[np.ndarray, "n t rows w"] | None = None

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def ids(self) -> list[str]:
        """Ids of the clips."""
        return [clip.clip_id for clip in self.clips]

    @property
    def groups(self) -> list[str]:
        """Group of every clip."""
        return [clip.group for clip in self.clips]

    @property
    def videos(self) -> list[str]:
        """Video of every clip."""
        return [clip.video_id for clip in self.clips]

    @property
    def middle(self) -> int:
        """Place of the middle operating point."""
        return (len(self.settings) - 1) // 2

    def take(self, rows: Sequence[int] | Int[np.ndarray, " m"]) -> "EchoSet":
        """Some of the clips."""
        index = np.asarray(rows, dtype=np.int64)
        return dataclasses.replace(
            self,
            clips=tuple(self.clips[i] for i in index.tolist()),
            measured={name: values[index] for name, values in self.measured.items()},
            frames=None if self.frames is None else self.frames[index],
        )

    def part(self, split: str) -> "EchoSet":
        """The clips of one split of the list.

        Raises:
            InputError: There are none.
        """
        name = split_name(split, "--split")
        rows = [index for index, clip in enumerate(self.clips) if clip.split == name]
        if not rows or not name:
            there = sorted({clip.split for clip in self.clips if clip.split})
            raise InputError(
                "there are no clips of that split",
                where="--split",
                why=f"got {split}",
                remedy=f"one of {', '.join(there)}" if there else "write a column `split` in the list of videos",
            )
        return self.take(rows)

    def training_part(self, split: str | None = None) -> tuple["EchoSet", str]:
        """The clips to learn from, and the name of their split: ``train`` where the list has one, else ``all``."""
        if split is None and not any(clip.split == "train" for clip in self.clips):
            return self, "all"
        name = split_name(split or "train", "--split")
        return self.part(name), name

    def at(self, codec: Codec | None = None, share: float = 1.0) -> "EchoSet":
        """Measurements at constant quality of one codec and resolution, by rising CRF.

        Args:
            codec: The codec; the first measured one by default.
            share: Resolution, as a share of the clip's.

        Raises:
            InputError: There are none.
        """
        wanted = codec or self.settings[0].codec
        columns = [
            index
            for index, each in enumerate(self.settings)
            if each.codec == wanted and each.share == share and each.control == "crf"
        ]
        columns.sort(key=lambda index: self.settings[index].value)
        if not columns:
            there = sorted({each.codec for each in self.settings if each.control == "crf"})
            raise InputError(
                "there are no measurements of that codec at constant quality",
                where="--codec",
                why=f"got {wanted}; measured: {', '.join(there) or 'rates only'}",
                remedy="measure with --crf, or name a measured codec",
            )
        return self.columns(columns)

    def shares(self, codec: Codec | None = None) -> tuple[float, ...]:
        """Resolutions measured at constant quality, as shares of the clip's, largest first."""
        wanted = codec or self.settings[0].codec
        return tuple(sorted({s.share for s in self.settings if s.codec == wanted and s.control == "crf"}, reverse=True))

    def columns(self, columns: Sequence[int]) -> "EchoSet":
        """Some of the operating points."""
        index = list(columns)
        measured = {name: values[:, index] for name, values in self.measured.items()}
        return dataclasses.replace(self, settings=tuple(self.settings[i] for i in index), measured=measured)

    def vectors(self, kind: EchoKind = "stats") -> Float[np.ndarray, "n e"]:
        """Echo vectors over all operating points held, not standardised."""
        m = self.measured
        frames = None
        if kind == "extended":
            with np.errstate(invalid="ignore", divide="ignore"):
                area = m["bits"] / m["bpp"] / (m["n_i"] + m["n_p"] + m["n_b"])
                means = [m[f"bits_{k}"] / np.maximum(m[f"n_{k}"], 1) / area for k in "ipb"]
            frames = np.nan_to_num(np.stack(means, axis=2))
        return echo_vectors(m["bpp"], m["psnr"], kind=kind, psnr_std=m.get("psnr_std"), frame_bpp=frames)

    def pixels(self, rows: Sequence[int] | Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m t rows w"]:
        """Frames of some clips, planar 4:2:0.

        Raises:
            InputError: A shard is missing or was changed, or the clips are of several sizes.
        """
        index = np.asarray(rows, dtype=np.int64)
        if self.frames is not None:
            return self.frames[index]
        return self._gather(index.tolist(), "shard", "digest")

    def residuals(self, rows: Sequence[int] | Int[np.ndarray, " m"]) -> Float32[np.ndarray, "m c t h w"]:
        """Maps of what was lost at every operating point that was measured.

        Raises:
            InputError: They were not kept.
        """
        index = np.asarray(rows, dtype=np.int64).tolist()
        if any(not self.clips[row].residual_shard for row in index):
            raise InputError("residual maps were not kept", where=self.folder, remedy="measure again with --residuals")
        return self._gather(index, "residual_shard", "residual_digest").astype(np.float32)

    def blocks(self, size: int = 64) -> Iterator[UInt8[np.ndarray, "b t rows w"]]:
        """Frames of all clips, some at a time."""
        for start in range(0, len(self), size):
            yield self.pixels(range(start, min(start + size, len(self))))

    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width of the clips.

        Raises:
            InputError: They are of several sizes.
        """
        shards = {clip.shard: row for row, clip in enumerate(self.clips)}
        first = luma(self.pixels(list(shards.values())))  # one clip a shard; refuses several sizes
        return (int(first.shape[1]), int(first.shape[2]), int(first.shape[3]))

    def _gather(self, rows: Sequence[int], shard_of: str, digest_of: str) -> np.ndarray:
        parts, opened = [], dict[str, np.ndarray]()
        for row in rows:
            clip = self.clips[row]
            shard = getattr(clip, shard_of)
            path = self.folder / "pixels" / shard
            with reading(path, "the pixels of the clips cannot be read", AGAIN):
                if shard not in opened:
                    opened[shard] = np.load(path, mmap_mode="r", allow_pickle=False)
                part = np.array(opened[shard][clip.place])
            if frames_digest(part) != getattr(clip, digest_of):
                raise InputError(
                    "the pixels of the clips were changed",
                    where=path,
                    why=f"their checksum differs from that of {clip.clip_id}",
                    remedy=AGAIN,
                )
            parts.append(part)
        shapes = sorted({part.shape for part in parts})
        if len(shapes) > 1:
            raise InputError(
                "the clips are of several sizes",
                where=self.folder,
                why=f"{shapes[0]} and {shapes[1]}",
                remedy="measure clips of one --size",
            )
        return np.stack(parts)


def measure_clips(
    clips: UInt8[np.ndarray, "n t rows w"],
    *,
    groups: Sequence[str] | None = None,
    echo: EchoSettings = EchoSettings(),
    fps: float = 30.0,
) -> EchoSet:
    """Measure the echoes of clips in memory; for videos on disk there is :func:`cl_video3d.cecl.measure_videos`.

    Args:
        clips: Planar 4:2:0 as rows ``[Y; U; V]``.
        groups: Source of each clip; each its own if absent.
        echo: What is measured; maps of what was lost are not kept.
        fps: Frames a second.

    Raises:
        InputError: An encoder is missing, or the clips are too small for it.
    """
    echo.require()
    settings = echo.settings()
    rows = [
        [measure(clip, each, fps=fps, with_ssim=echo.ssim, with_vmaf=echo.vmaf)[0] for each in settings]
        for clip in clips
    ]
    values = [[dataclasses.asdict(each) for each in row] for row in rows]
    measured = {name: np.array([[e[name] for e in row] for row in values], dtype=np.float64) for name in MEASURED}
    t, height, width = clips.shape[1], clips.shape[2] * 2 // 3, clips.shape[3]
    names = [f"clip-{index:05d}" for index in range(len(clips))]
    records = tuple(
        ClipRecord(
            name, name, name if groups is None else groups[k], fps=fps, video_fps=fps, width=width, height=height
        )
        for k, name in enumerate(names)
    )
    cut = ClipSettings(frames=t, size=width if width == height else 0)
    return EchoSet(Path("memory"), records, settings, measured, cut, clips)


def training_set(echoes: EchoSet) -> "Dataset[list[Tensor]]":
    """Numbers and luma of the clips, in memory where they fit, else from disk."""
    import torch
    from torch.utils.data import TensorDataset

    if echoes.frames is None and len(echoes) * int(np.prod(echoes.clip_shape())) > _IN_MEMORY:
        return _OnDisk(echoes)  # type: ignore[return-value]
    pixels = np.concatenate([luma(block) for block in echoes.blocks()])
    return TensorDataset(torch.arange(len(echoes)), torch.from_numpy(pixels))  # type: ignore[return-value]


class _OnDisk:
    """Clips read from the shards as they are needed, for sets too large for memory."""

    def __init__(self, echoes: EchoSet) -> None:
        self.echoes = echoes

    def __len__(self) -> int:
        return len(self.echoes)

    def __getitem__(self, index: int) -> "list[Tensor]":
        import torch

        frames = luma(self.echoes.pixels([index]))[0]
        return [torch.tensor(index), torch.from_numpy(np.ascontiguousarray(frames))]
