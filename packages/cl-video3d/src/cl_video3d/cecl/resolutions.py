"""At which resolution a rate is best spent: the fixed ladder, crossovers of curves, the convex hull (section 5.6)."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from contrastive_core.errors import InputError
from jaxtyping import Float, Int

from cl_video3d.cecl.curves import interpolate
from cl_video3d.cecl.data import EchoSet
from cl_video3d.video.encoding import Codec

# Lowest rate, in kbps, at which a height is used (Apple's authoring specification for HLS, as used by the
# predecessor code); lower heights follow by the same power of the number of pixels.
FIXED_CROSSOVERS: dict[int, int] = {2160: 11600, 1440: 8100, 1080: 4500, 720: 2400, 540: 600, 432: 300}


def fixed_threshold(height: float) -> float:
    """Lowest rate, in kbps, at which the fixed ladder uses a height; between the listed ones by power law.

    Example:
        >>> fixed_threshold(1080), 600 < fixed_threshold(640) < 2400
        (4500.0, True)
    """
    if height in FIXED_CROSSOVERS:  # exactly, so that a rate on the threshold reaches it
        return float(FIXED_CROSSOVERS[int(height)])
    heights = np.array(sorted(FIXED_CROSSOVERS), dtype=np.float64)
    rates = np.log([float(FIXED_CROSSOVERS[int(h)]) for h in heights])
    x, knots = np.log(height), np.log(heights)
    if x < knots[0]:
        return float(np.exp(rates[0] + (x - knots[0]) * (rates[-1] - rates[0]) / (knots[-1] - knots[0])))
    if x > knots[-1]:
        return float(np.exp(rates[-1] + (x - knots[-1]) * (rates[-1] - rates[-2]) / (knots[-1] - knots[-2])))
    return float(np.exp(np.interp(x, knots, rates)))


def fixed_ladder(kbps: float, heights: Sequence[int]) -> int:
    """Height the fixed ladder encodes at: the largest whose threshold the rate reaches, else the smallest.

    Example:
        >>> [fixed_ladder(rate, (2160, 1080, 540)) for rate in (100, 4499, 4500, 20000)]
        [540, 540, 1080, 2160]
    """
    if not heights:
        raise InputError("a ladder has one height at least", where="heights")
    fine = [height for height in heights if kbps >= fixed_threshold(height)]
    return max(fine) if fine else min(heights)


def crossovers(
    curves: Sequence[tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]],
) -> Float[np.ndarray, " m"]:
    """Log rates above which each resolution beats the next smaller one, made monotone.

    Args:
        curves: Log rate and quality of one video at each resolution, largest first.

    Returns:
        One a pair of neighbours, largest first, not ascending: ``c_k = min(c_k, c_(k-1))``.
    """
    rates = []
    for (large_rate, large_quality), (small_rate, small_quality) in itertools.pairwise(curves):
        low = min(large_rate.min(), small_rate.min())
        high = max(large_rate.max(), small_rate.max())
        grid = np.linspace(low, high, 257)
        better = interpolate(large_rate, large_quality, grid) >= interpolate(small_rate, small_quality, grid)
        # From the top down, as far as the larger one stays ahead.
        behind = np.flatnonzero(~better)
        if not len(behind):
            rates.append(low)
        else:
            rates.append(grid[min(behind[-1] + 1, len(grid) - 1)] if behind[-1] < len(grid) - 1 else high)
    return np.minimum.accumulate(np.array(rates, dtype=np.float64))


def ladder_curve(
    curves: Sequence[tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]],
    picks: Int[np.ndarray, " r"],
    log_rate: Float[np.ndarray, " r"],
) -> Float[np.ndarray, "r 2"]:
    """Rate and quality a video gets when each rate is encoded at the picked resolution.

    Args:
        curves: Log2 rate and quality at each resolution, largest first.
        picks: Resolution of each rate.
        log_rate: Log2 rates.
    """
    quality = np.array(
        [
            interpolate(curves[pick][0], curves[pick][1], np.array([rate]))[0]
            for pick, rate in zip(picks, log_rate, strict=True)
        ]
    )
    return np.stack([2**log_rate, quality], axis=1)


def picks_of(log_rate: Float[np.ndarray, " r"], crossing: Float[np.ndarray, " m"]) -> Int[np.ndarray, " r"]:
    """Resolution of each rate: the largest whose crossover the rate reaches."""
    return (log_rate[:, None] < crossing[None]).sum(1)


@dataclasses.dataclass(frozen=True)
class ResolutionCurves:
    """Rate-quality curves of videos over resolutions.

    Attributes:
        videos: Names.
        shares: Resolutions as shares of the source's height, largest first.
        log_rate: ``log2 kbps`` of the whole frame, ``[v s c]``.
        quality: Quality at the source's size, ``[v s c]``.
        height: Height of each video.
    """

    videos: tuple[str, ...]
    shares: tuple[float, ...]
    log_rate: Float[np.ndarray, "v s c"]
    quality: Float[np.ndarray, "v s c"]
    height: Int[np.ndarray, " v"]

    def of(self, video: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Curves of one video, largest resolution first."""
        return list(zip(self.log_rate[video], self.quality[video], strict=True))

    def take(self, names: Sequence[str]) -> "ResolutionCurves":
        """Some of the videos, by name."""
        index = [self.videos.index(name) for name in names]
        return ResolutionCurves(
            tuple(names), self.shares, self.log_rate[index], self.quality[index], self.height[index]
        )


def resolution_curves(echoes: EchoSet, codec: Codec | None = None) -> ResolutionCurves:
    """Mean curves of each video at the resolutions that were measured.

    Rates are those of the whole frame: bits a pixel times its pixels and frame rate. Clips of resized frames count for
    the resized video.

    Args:
        echoes: Clips measured with several ``--shares``.
        codec: The codec; the first measured one by default.

    Raises:
        InputError: Only one resolution was measured.
    """
    shares = echoes.shares(codec)
    if len(shares) < 2:
        raise InputError(
            "a ladder over resolutions needs several",
            where=echoes.folder,
            why=f"measured at the shares {shares}",
            remedy="measure with --shares 1 0.667 0.5",
        )
    names = [clip.video_size for clip in echoes.clips]
    videos = tuple(dict.fromkeys(names))
    rates, qualities, heights = [], [], []
    parts = [echoes.at(codec, share) for share in shares]
    for video in videos:
        rows = [index for index, name in enumerate(names) if name == video]
        clip = echoes.clips[rows[0]]
        width, height = clip.frame_size
        heights.append(round(height))
        rates.append([np.log2(p.measured["bpp"][rows].mean(0) * width * height * clip.fps / 1000) for p in parts])
        qualities.append([p.measured["psnr"][rows].mean(0) for p in parts])
    return ResolutionCurves(videos, shares, np.array(rates), np.array(qualities), np.array(heights))


def by_video(
    videos: Sequence[str], names: Sequence[str], rows: Int[np.ndarray, " m"], values: Float[np.ndarray, "m k"]
) -> dict[str, Float[np.ndarray, " k"]]:
    """Means of values of clips over the videos they are of, in the order of ``videos``.

    Args:
        videos: Names of all videos.
        names: Video of every clip.
        rows: Clips the values are of.
        values: One row each.
    """
    out: dict[str, list[np.ndarray]] = {}
    for row, value in zip(rows.tolist(), values, strict=True):
        out.setdefault(names[row], []).append(value)
    return {name: np.mean(out[name], axis=0) for name in videos if name in out}


def cluster_crossovers(
    curves: ResolutionCurves, labels: Int[np.ndarray, " v"], clusters: int
) -> list[Float[np.ndarray, " m"]]:
    """Median crossovers of the videos of each cluster, in ``log2 kbps``; of all videos where a cluster has none."""
    each = np.stack([crossovers(curves.of(index)) for index in range(len(curves.videos))])
    out = []
    for cluster in range(clusters):
        own = each[labels == cluster] if (labels == cluster).any() else each
        out.append(np.minimum.accumulate(np.median(own, axis=0)))
    return out
