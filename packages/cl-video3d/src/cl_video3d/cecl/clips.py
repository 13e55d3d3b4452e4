"""Which clips are cut from a video: short windows of native pixels, spread over its length and its frame."""

import dataclasses
import hashlib

import numpy as np
from contrastive_core.errors import InputError

from cl_video3d.video.manifest import Entry
from cl_video3d.video.reading import VideoInfo, Window, scaled_size


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """What a clip is.

    Attributes:
        frames: Frames of a clip, at least 4.
        size: Side of the square crop in pixels, even; 0 for the whole frame.
        stride: Distance of its frames; 0 for every frame up to 45 a second, every other up to 75, and so on.
        short_sides: Short sides frames are resized to first, by area averaging; 0 for native pixels. Each gives its
            own clips: the same picture at another size is another complexity.
        clips: Clips of each video and short side, spread evenly over its length.
        seed: Seed of the places of the crops.
        allow_pq: Take HDR video with PQ transfer as it is, at 8 bits.
    """

    frames: int = 16
    size: int = 96
    stride: int = 0
    short_sides: tuple[int, ...] = (0,)
    clips: int = 8
    seed: int = 0
    allow_pq: bool = False

    def __post_init__(self) -> None:
        def check(option: str, fine: bool, wanted: str, value: object) -> None:
            if not fine:
                raise InputError(
                    "a setting of the clips is out of range", where=option, why=f"got {value}", remedy=f"use {wanted}"
                )

        check("--frames", self.frames >= 4, "at least 4", self.frames)
        check(
            "--size",
            self.size == 0 or (self.size >= 16 and self.size % 2 == 0),
            "0 or an even number from 16",
            self.size,
        )
        check("--stride", self.stride >= 0, "0 or a positive number", self.stride)
        check("--clips", self.clips >= 1, "at least 1", self.clips)
        check("--seed", self.seed >= 0, "0 or a positive number", self.seed)
        fine = bool(self.short_sides) and len(set(self.short_sides)) == len(self.short_sides)
        fine = fine and all(side == 0 or (side % 2 == 0 and side >= max(16, self.size)) for side in self.short_sides)
        check("--short-sides", fine, "0, or even numbers not below --size, each once", self.short_sides)

    def stride_of(self, fps: float) -> int:
        """Distance of the frames of a clip at a frame rate."""
        return self.stride or max(1, round(fps / 30))


def plan_clips(video: VideoInfo, entry: Entry, settings: ClipSettings, short_side: int) -> list[Window]:
    """Places of the clips of one video: the same for the same id, settings and seed.

    Args:
        video: The video.
        entry: Its row of the list.
        settings: What a clip is.
        short_side: Which of the short sides.

    Raises:
        InputError: The video has too few frames or is too small, or its transfer is PQ.
    """
    if video.transfer == "pq" and not settings.allow_pq:
        raise InputError(
            "the video is HDR with PQ transfer",
            where=video.path,
            why="its code values at 8 bits are no comparable luma",
            remedy="tone-map it first, or pass --allow-pq",
        )
    span = (settings.frames - 1) * settings.stride_of(video.fps) + 1
    end = video.frames if entry.frames is None else min(video.frames, entry.start + entry.frames)
    if end - entry.start < span:
        raise InputError(
            "the video is too short for a clip",
            where=video.path,
            why=f"{max(0, end - entry.start)} frames, a clip spans {span}",
            remedy="use fewer --frames, or leave it out",
        )
    if short_side > min(video.width, video.height):
        raise InputError(
            "the video is smaller than the short side",
            where=video.path,
            why=f"{video.width}x{video.height}, --short-sides asks for {short_side}",
            remedy="use a smaller one; videos are not enlarged",
        )
    width, height = scaled_size(video.width, video.height, short_side)
    side = settings.size
    if min(width, height) < side:
        raise InputError(
            "the video is smaller than a clip",
            where=video.path,
            why=f"{width}x{height}, a clip has {side}x{side}",
            remedy="use a smaller --size; clips are not enlarged",
        )
    word = hashlib.sha256(f"{entry.video_id}\0{short_side}\0{settings.seed}".encode()).digest()
    draw = np.random.default_rng(int.from_bytes(word[:8], "little"))
    latest = end - span
    starts = np.unique(np.linspace(entry.start, latest, settings.clips + 2).round().astype(int)[1:-1])
    if side:  # crops differ, so clips may share their frames
        starts = np.linspace(entry.start, latest, settings.clips + 2).round().astype(int)[1:-1]
    windows = []
    for start in starts.tolist():
        x, y = (2 * int(draw.integers(0, (room - side) // 2 + 1)) if side else 0 for room in (width, height))
        windows.append(Window(start, x, y))
    return list(dict.fromkeys(windows))
