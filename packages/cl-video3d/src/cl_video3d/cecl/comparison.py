"""Cluster ladders over resolutions against the fixed ladder and the hull (protocol D)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from cl_video3d.cecl.curves import interpolate, log_rates
from cl_video3d.cecl.data import EchoSet
from cl_video3d.cecl.predictor import fit_predictor
from cl_video3d.cecl.resolutions import (
    ResolutionCurves,
    by_video,
    cluster_crossovers,
    fixed_ladder,
    ladder_curve,
    picks_of,
    resolution_curves,
)
from cl_video3d.video.bjontegaard import Delta, bd_quality, bd_rate
from cl_video3d.video.encoding import Codec

if TYPE_CHECKING:
    from cl_video3d.cecl.evaluation import Fold


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
        own = curves.of(index)
        log_rate = np.linspace(curves.log_rate[index].min(), curves.log_rate[index].max(), 12)
        heights = [round(share * int(curves.height[index])) for share in curves.shares]
        fixed = np.array([heights.index(fixed_ladder(float(2**rate), heights)) for rate in log_rate])
        quality = np.stack([interpolate(*curve, log_rate) for curve in own])
        ladders = {
            "predicted cluster": picks_of(log_rate, predicted[index]),
            "oracle cluster": picks_of(log_rate, oracle[index]),
            "hull": quality.argmax(0),
        }
        anchor = ladder_curve(own, fixed, log_rate)
        for ladder, picks in ladders.items():
            test = ladder_curve(own, picks, log_rate)
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


def ladder_gains(
    echoes: EchoSet, codec: Codec | None, features: Mapping[str, Float[np.ndarray, "n _"]], folds: Sequence["Fold"]
) -> list[dict[str, Any]]:
    """Mean and median Bjøntegaard deltas over held-out videos, with clusters told from each feature set.

    Args:
        echoes: Clips measured at several resolutions.
        codec: Codec of the curves; the first measured one if absent.
        features: Features of all clips, by name.
        folds: Training and held-out clips.
    """
    curves, part = resolution_curves(echoes, codec), echoes.at(codec)
    out = []
    for name, values in features.items():
        rows = [row for fold in folds for row in _on_fold(curves, part, values, fold)]
        out += [
            {"features": name, "ladder": kind, **_summary([row for row in rows if row["ladder"] == kind])}
            for kind in ("predicted cluster", "oracle cluster", "hull")
        ]
    return out


def _on_fold(curves: ResolutionCurves, part: EchoSet, values: np.ndarray, fold: "Fold") -> list[dict[str, object]]:
    names, count = [clip.video_size for clip in part.clips], len(fold.clusters)
    known, quality = log_rates(part.measured["bpp"])[fold.train], part.measured["psnr"][fold.train]
    predictor = fit_predictor(values[fold.train], fold.train_labels, known, quality)
    train = by_video(curves.videos, names, fold.train, np.eye(count)[fold.train_labels])
    labels = np.array([odds.argmax() for odds in train.values()])
    crossing = cluster_crossovers(curves.take(list(train)), labels, count)
    odds = by_video(curves.videos, names, fold.test, predictor.probabilities(values[fold.test], count))
    truth = by_video(curves.videos, names, fold.test, np.eye(count)[fold.test_labels])
    picks = ([crossing[each.argmax()] for each in votes.values()] for votes in (odds, truth))
    return compare_ladders(curves.take(list(odds)), *picks)


def _summary(rows: Sequence[dict[str, object]]) -> dict[str, Any]:
    rate, gain = (np.array([row[name] for row in rows], dtype=np.float64) for name in ("bd_rate", "bd_quality"))
    rates, gains = rate[np.isfinite(rate)], gain[np.isfinite(gain)]
    return {
        "videos": len(rows),
        "no delta": len(rows) - len(rates),
        "BD-rate, %": float(rates.mean()) if len(rates) else None,
        "median": float(np.median(rates)) if len(rates) else None,
        "sd": float(rates.std()) if len(rates) else None,
        "BD-PSNR, dB": float(gains.mean()) if len(gains) else None,
    }
