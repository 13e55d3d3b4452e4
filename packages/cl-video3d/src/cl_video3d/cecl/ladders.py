"""One bit rate ladder for each cluster (section 5.6)."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from cl_video3d.cecl.clusters import RQClusters
from cl_video3d.cecl.curves import interpolate, log_rates, quality_at_rate, rate_at_quality
from cl_video3d.cecl.data import EchoSet
from cl_video3d.cecl.resolutions import by_video, cluster_crossovers, picks_of, resolution_curves
from cl_video3d.video.encoding import Codec

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
        """The step for a video of some size and frame rate: kbps, width, height, CRF, expected quality in dB."""
        scaled = [max(2, 2 * round(side * self.share / 2)) for side in (width, height)]
        return {
            "kbps": round(self.bpp * width * height * fps / 1000),
            "width": scaled[0],
            "height": scaled[1],
            "crf": round(self.crf, 1),
            "expected_quality": round(self.expected_quality, 1),
            "low": round(self.low, 1),
            "high": round(self.high, 1),
        }


def cluster_rungs(
    echoes: EchoSet, labels: Int[np.ndarray, " n"], clusters: RQClusters, codec: Codec | None = None
) -> list[list[Rung]]:
    """A ladder for each cluster, over the resolutions that were measured.

    Args:
        echoes: Training clips at all operating points.
        labels: Their clusters.
        clusters: The clusters.
        codec: Codec of the curves; the first measured one if absent.
    """
    parts = {share: echoes.at(codec, share) for share in echoes.shares(codec)}
    if len(parts) == 1:
        return rungs(parts, labels, clusters)
    curves = resolution_curves(echoes, codec)
    names = [clip.video_size for clip in echoes.clips]
    votes = by_video(curves.videos, names, np.arange(len(names)), np.eye(len(clusters))[labels])
    crossing = cluster_crossovers(curves, np.array([v.argmax() for v in votes.values()]), len(clusters))
    # Crossovers are rates of whole frames, those of the steps are bits a pixel: joined at the median frame.
    scale = np.median([np.prod(clip.frame_size) * clip.fps / 1000 for clip in echoes.clips])
    shares = [
        [curves.shares[int(pick)] for pick in picks_of(np.log2([rung.bpp * scale for rung in steps]), crossing[k])]
        for k, steps in enumerate(rungs(parts, labels, clusters))
    ]
    return rungs(parts, labels, clusters, shares=shares)


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
        own = labels == cluster
        steps = []
        for place, target in enumerate(sorted(targets)):
            share = 1.0 if shares is None else float(shares[cluster][place])
            measured = parts[share].measured
            if own.any():
                r, q = log_rates(measured["bpp"][own]), measured["psnr"][own]
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
