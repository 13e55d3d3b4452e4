"""Bit rate ladders: the fixed one, one for each cluster, and the convex hull of a video (section 5.6)."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from contrastive_core.errors import InputError
from jaxtyping import Float, Int

from cl_video3d.cecl.clusters import RQClusters
from cl_video3d.cecl.curves import interpolate, log_rates, quality_at_rate, rate_at_quality
from cl_video3d.cecl.store import EchoSet
from cl_video3d.video.bjontegaard import Delta, bd_quality, bd_rate
from cl_video3d.video.encoding import Codec

# Lowest rate, in kbps, at which a height is used (Apple's authoring specification for HLS, as used by the
# predecessor code); lower heights follow by the same power of the number of pixels.
FIXED_CROSSOVERS: dict[int, int] = {2160: 11600, 1440: 8100, 1080: 4500, 720: 2400, 540: 600, 432: 300}
TARGETS = (33.0, 36.0, 39.0)


@dataclasses.dataclass(frozen=True)
class Rung:
    """One step of a ladder.

    Attributes:
        quality: Quality the step aims at, in dB.
        bpp: Rate, in bits a pixel of the source.
        crf: CRF at which the median clip of the cluster has that quality, within the codec's range.
        expected_quality: Mean quality of the cluster's training clips at this rate.
        low: A tenth of them fall below this quality.
        high: A tenth of them exceed it.
        share: Height of the encode as a share of the source's.
        beyond: Share of the training clips that were not measured at this quality, where a straight line goes on.
    """

    quality: float
    bpp: float
    crf: float
    expected_quality: float
    low: float
    high: float
    share: float
    beyond: float

    def at(self, width: int, height: int, fps: float) -> dict[str, float | int]:
        """The step for a video of some size and frame rate: kbps, width, height, CRF and expected quality."""
        scaled = [max(2, 2 * round(side * self.share / 2)) for side in (width, height)]
        return {
            "kbps": self.bpp * width * height * fps / 1000,
            "width": scaled[0],
            "height": scaled[1],
            "crf": self.crf,
            "expected_quality": self.expected_quality,
            "low": self.low,
            "high": self.high,
        }


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
    found = []
    for (large_rate, large_quality), (small_rate, small_quality) in itertools.pairwise(curves):
        low = min(large_rate.min(), small_rate.min())
        high = max(large_rate.max(), small_rate.max())
        grid = np.linspace(low, high, 257)
        better = interpolate(large_rate, large_quality, grid) >= interpolate(small_rate, small_quality, grid)
        # From the top down, as far as the larger one stays ahead.
        behind = np.flatnonzero(~better)
        if not len(behind):
            found.append(low)
        else:
            found.append(grid[min(behind[-1] + 1, len(grid) - 1)] if behind[-1] < len(grid) - 1 else high)
    return np.minimum.accumulate(np.array(found, dtype=np.float64))


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
    wanted = codec or echoes.settings[0].codec
    shares = sorted({s.share for s in echoes.settings if s.codec == wanted and s.control == "crf"}, reverse=True)
    if len(shares) < 2:
        raise InputError(
            "a ladder over resolutions needs several",
            where=echoes.folder,
            why=f"measured at the shares {shares}",
            remedy="measure with --shares 1 0.667 0.5",
        )
    names = [f"{clip.video_id}@{clip.short_side}" for clip in echoes.clips]
    videos = tuple(dict.fromkeys(names))
    rates, qualities, heights = [], [], []
    parts = [echoes.at(wanted, share) for share in shares]
    for video in videos:
        rows = [index for index, name in enumerate(names) if name == video]
        clip = echoes.clips[rows[0]]
        factor = clip.short_side / min(clip.width, clip.height) if clip.short_side else 1.0
        pixels = clip.width * clip.height * factor**2
        heights.append(round(clip.height * factor))
        rates.append([np.log2(p.measured["bpp"][rows].mean(0) * pixels * clip.fps / 1000) for p in parts])
        qualities.append([p.measured["psnr"][rows].mean(0) for p in parts])
    return ResolutionCurves(videos, tuple(shares), np.array(rates), np.array(qualities), np.array(heights))


def compare_ladders(
    curves: ResolutionCurves, predicted: Sequence[Float[np.ndarray, " m"]], oracle: Sequence[Float[np.ndarray, " m"]]
) -> list[dict[str, object]]:
    """Cluster ladders and the video's own hull against the fixed ladder, by Bjøntegaard deltas.

    Args:
        curves: The videos.
        predicted: Crossovers (``log2 kbps``) of each video's predicted cluster.
        oracle: Those of its true cluster.

    Returns:
        One row a video and ladder: ``bd_rate`` in percent (negative saves) and ``bd_quality`` in dB (positive gains).
    """
    rows: list[dict[str, object]] = []
    for index, name in enumerate(curves.videos):
        mine = curves.of(index)
        log_rate = np.linspace(curves.log_rate[index].min(), curves.log_rate[index].max(), 12)
        heights = [round(share * int(curves.height[index])) for share in curves.shares]
        fixed = np.array([heights.index(fixed_ladder(float(2**rate), heights)) for rate in log_rate])
        quality = np.stack([interpolate(*curve, log_rate) for curve in mine])
        ladders = {
            "predicted cluster": picks_of(log_rate, predicted[index]),
            "oracle cluster": picks_of(log_rate, oracle[index]),
            "hull": quality.argmax(0),
        }
        anchor = ladder_curve(mine, fixed, log_rate)
        for ladder, picks in ladders.items():
            test = ladder_curve(mine, picks, log_rate)
            rate, gain = bd_rate(anchor, test), bd_quality(anchor, test)
            if np.array_equal(picks, fixed):  # the same encodes: nothing to measure
                rate, gain = Delta(0.0), Delta(0.0)
            rows.append(
                {
                    "video": name,
                    "ladder": ladder,
                    "bd_rate": rate.value,
                    "bd_quality": gain.value,
                    "reason": rate.reason or gain.reason,
                }
            )
    return rows


def cluster_crossovers(
    curves: ResolutionCurves, labels: Int[np.ndarray, " v"], clusters: int
) -> list[Float[np.ndarray, " m"]]:
    """Median crossovers of the videos of each cluster, in ``log2 kbps``; of all videos where a cluster has none."""
    each = np.stack([crossovers(curves.of(index)) for index in range(len(curves.videos))])
    out = []
    for cluster in range(clusters):
        mine = each[labels == cluster] if (labels == cluster).any() else each
        out.append(np.minimum.accumulate(np.median(mine, axis=0)))
    return out


def rungs(
    parts: Mapping[float, EchoSet],
    labels: Int[np.ndarray, " n"],
    clusters: RQClusters,
    *,
    targets: Sequence[float] = TARGETS,
    shares: Sequence[Sequence[float]] | None = None,
) -> list[list[Rung]]:
    """A ladder for each cluster: the median rate its training clips need for each quality, and the CRF that gives it.

    Args:
        parts: Training clips at each resolution, by share; 1 is always among them.
        labels: Their clusters.
        clusters: The clusters; the mean curve stands in for one without clips.
        targets: Qualities, in dB.
        shares: Resolution of each cluster's steps, as shares of the source's; 1 when absent.
    """
    crf = np.array(clusters.crf)
    out = []
    for cluster in range(len(clusters)):
        mine = labels == cluster
        steps = []
        for place, target in enumerate(sorted(targets)):
            share = 1.0 if shares is None else float(shares[cluster][place])
            measured = parts[share].measured
            if mine.any():
                r, q = log_rates(measured["bpp"][mine]), measured["psnr"][mine]
            else:
                r, q = clusters.log_rate[cluster : cluster + 1], clusters.quality[cluster : cluster + 1]
            needed, beyond = rate_at_quality(r, q, np.array([target]))
            rate = np.median(needed, axis=0)
            reached = quality_at_rate(r, q, np.repeat(rate[None], len(r), axis=0))[:, 0]
            at_crf = np.median([interpolate(each, crf, np.array([target]))[0] for each in q])
            steps.append(
                Rung(
                    float(target),
                    float(2 ** rate[0]),
                    float(np.clip(at_crf, 0, clusters.largest_crf)),
                    float(reached.mean()),
                    float(np.quantile(reached, 0.1)),
                    float(np.quantile(reached, 0.9)),
                    share,
                    float(beyond.mean()),
                )
            )
        out.append(steps)
    return out


def rung_error(
    log_rate: Float[np.ndarray, "n c"],
    quality: Float[np.ndarray, "n c"],
    rates: Float[np.ndarray, "n q"],
    targets: Sequence[float] = TARGETS,
) -> float:
    """Mean ``|reached - wanted|`` quality, in dB, when each clip is encoded at given rates.

    Args:
        log_rate: ``log2`` rates of the measured points.
        quality: Their qualities.
        rates: ``log2`` rate each clip gets for each target.
        targets: Wanted qualities.
    """
    return float(np.abs(quality_at_rate(log_rate, quality, rates) - np.asarray(targets)).mean())


def ladder_rates(
    log_rate: Float[np.ndarray, "n c"],
    quality: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    clusters: int,
    targets: Sequence[float] = TARGETS,
) -> Float[np.ndarray, "k q"]:
    """Median ``log2`` rate the clips of each cluster need for each quality; of all clips where a cluster has none."""
    needed = rate_at_quality(log_rate, quality, np.asarray(targets, dtype=np.float64))[0]
    return np.stack(
        [np.median(needed[labels == k] if (labels == k).any() else needed, axis=0) for k in range(clusters)]
    )
