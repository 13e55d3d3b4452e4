"""Which clips are cut from a video: short windows of native pixels, spread over its length and its frame."""

import dataclasses
import hashlib

import numpy as np
from contrastive_core.errors import InputError, require

from cl_video3d.video.manifest import Entry
from cl_video3d.video.planes import scaled_size
from cl_video3d.video.reading import VideoInfo, Window


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
        require(4 <= self.frames <= 512, "--frames", self.frames, "a whole number from 4 to 512")
        size = self.size == 0 or (16 <= self.size <= 8192 and self.size % 2 == 0)
        require(size, "--size", self.size, "0, or an even number from 16 to 8192")
        require(0 <= self.stride <= 1000, "--stride", self.stride, "a whole number from 0 to 1000")
        require(1 <= self.clips <= 10**6, "--clips", self.clips, "a whole number from 1 to 1000000")
        require(0 <= self.seed < 2**32, "--seed", self.seed, "a whole number from 0 to 2^32 - 1")
        fine = bool(self.short_sides) and len(set(self.short_sides)) == len(self.short_sides)
        fine = fine and all(s == 0 or (s % 2 == 0 and max(16, self.size) <= s <= 8192) for s in self.short_sides)
        require(fine, "--short-sides", self.short_sides, "0, or even numbers not below --size, each once")

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
