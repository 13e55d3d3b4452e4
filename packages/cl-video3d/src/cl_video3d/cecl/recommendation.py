"""A bit rate ladder for a new video without a trial encode: its predicted curves, and steps that lie on them."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError, require
from contrastive_core.tables import text_table
from contrastive_core.weights import load_model, save_weights
from jaxtyping import Float, Int, UInt8
from sklearn.model_selection import GroupKFold

from cl_video3d.cecl.clusters import Algorithm, RQClusters, Space, fit_clusters
from cl_video3d.cecl.curves import log_rates
from cl_video3d.cecl.data import EchoSet
from cl_video3d.cecl.inference import EchoEncoder, VideoEmbedding
from cl_video3d.cecl.ladders import Rung, cluster_rungs
from cl_video3d.cecl.predictor import Predictor, fit_predictor
from cl_video3d.video.encoding import WHOLE_CRF, Codec, command_line
from cl_video3d.video.manifest import Entry
from cl_video3d.video.quality import MSE_FLOOR
from cl_video3d.video.reading import RawFormat

KIND = "cecl-ladders"
QUALITIES = (30.0, 33.0, 36.0, 39.0, 42.0)
RATES = "rates are those of short clips that begin with a key frame; files of longer groups of pictures need less"
_SURE = 0.5
PSNR_LIMIT = float(10 * np.log10(255**2 / MSE_FLOOR))


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a recommended ladder.

    Attributes:
        kbps: Rate of the whole frame, in kilobits a second.
        width: Width of the encode.
        height: Its height.
        codec: Codec.
        crf: CRF that is predicted to give the rate.
        expected_quality: Predicted PSNR of luma at the source's size, in dB.
        low: A tenth of held-out training clips fell below it.
        high: A tenth of them exceeded it.
        extrapolated: Whether it lies beyond the predicted points, on a straight line.
        command: An ffmpeg command for it.
    """

    kbps: int
    width: int
    height: int
    codec: Codec
    crf: float
    expected_quality: float
    low: float
    high: float
    extrapolated: bool
    command: str


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What is predicted for one video.

    Attributes:
        name: The video.
        width: Its width.
        height: Its height.
        fps: Frames a second the rates are for.
        clips: Clips that were looked at.
        cluster: Its cluster, from the easiest (0) to the hardest.
        confidence: Probability of the cluster.
        doubts: Why the prediction is not to be relied on; empty where it is.
        shares: Resolutions, as shares of the source's, largest first.
        crf: CRFs of the predicted points.
        kbps: Predicted rates at each resolution and CRF.
        quality: Predicted PSNR at the source's size, in dB.
        steps: The ladder, from low to high; every step lies on the curve of its resolution.
    """

    name: str
    width: int
    height: int
    fps: float
    clips: int
    cluster: int
    confidence: float
    doubts: tuple[str, ...]
    shares: tuple[float, ...]
    crf: tuple[float, ...]
    kbps: Float[np.ndarray, "s c"]
    quality: Float[np.ndarray, "s c"]
    steps: tuple[Step, ...]

    def text(self) -> str:
        """Cluster, doubts and ladder for a terminal."""
        lines = [f"{self.name}: cluster {self.cluster}, confidence {self.confidence:.2f}", *self.doubts]
        shown = ("kbps", "width", "height", "codec", "crf", "expected_quality", "low", "high", "extrapolated")
        rows = [{name: _short(getattr(step, name)) for name in shown} for step in self.steps]
        return "\n".join([*lines, text_table(rows)])

    def row(self) -> dict[str, Any]:
        """Plain values for a table: cluster, confidence, and the curve at the source's resolution."""
        points: dict[str, float] = {}
        for crf, kbps, quality in zip(self.crf, self.kbps[0].tolist(), self.quality[0].tolist(), strict=True):
            points |= {f"kbps@CRF{crf:g}": round(kbps), f"psnr@CRF{crf:g}": round(quality, 1)}
        return {
            "video": self.name,
            "width": self.width,
            "height": self.height,
            "fps": round(self.fps, 3),
            "clips": self.clips,
            "cluster": self.cluster,
            "confidence": round(self.confidence, 2),
            "doubts": "; ".join(self.doubts),
            **points,
        }


@dataclasses.dataclass(frozen=True)
class LadderPredictor:
    """Clusters of complexity, a ladder for each, and what tells them from embeddings.

    Attributes:
        clusters: The clusters.
        rungs: A ladder for each.
        shares: Resolutions that were measured, as shares of the source's, largest first.
        predictor: Cluster and curves from embeddings; ``None`` without an encoder.
        encoder: The encoder; ``None`` where only clusters were fitted.
        error: Tenth and ninetieth percentile of ``measured - predicted`` quality at equal rate of clips whose groups
            were held out, in dB.
    """

    clusters: RQClusters
    rungs: tuple[tuple[Rung, ...], ...]
    shares: tuple[float, ...]
    predictor: Predictor | None = None
    encoder: EchoEncoder | None = None
    error: tuple[float, float] = (0.0, 0.0)

    def predict(
        self,
        clips: UInt8[np.ndarray, "n t h w"],
        *,
        size: tuple[int, int],
        fps: float = 30.0,
        name: str = "video",
        qualities: Sequence[float] = QUALITIES,
    ) -> Recommendation:
        """Cluster, curves and ladder of one video.

        Args:
            clips: Luma of clips cut from it.
            size: Its width and height.
            fps: Frames a second.
            name: What it is called.
            qualities: PSNR the steps aim at, in dB.

        Raises:
            InputError: There is no encoder, or a value is out of range.
        """
        encoder, _ = self._parts()
        embedded = VideoEmbedding(name, Path(name), name, 0, size[0], size[1], fps, encoder.embed(clips))
        return self.recommend(embedded, qualities=qualities)

    def recommend_all(
        self,
        videos: Path | str | Sequence[Entry],
        *,
        raw: RawFormat = RawFormat(),
        qualities: Sequence[float] = QUALITIES,
    ) -> tuple[list[Recommendation], list[str]]:
        """As :meth:`predict`, of videos on disk.

        Returns:
            One recommendation a video and size; and what could not be used, with the reason.

        Raises:
            InputError: No video could be used.
        """
        embedded, failures = self._parts()[0].embed_videos(videos, raw=raw)
        return [self.recommend(each, qualities=qualities) for each in embedded], failures

    def assignment(self, echoes: EchoSet) -> list[dict[str, Any]]:
        """Cluster of measured clips, one row each."""
        return [
            {"clip_id": c.clip_id, "video_id": c.video_id, "group": c.group, "split": c.split, "cluster": int(label)}
            for c, label in zip(echoes.clips, self.clusters.assign(echoes), strict=True)
        ]

    def recommend(self, video: VideoEmbedding, *, qualities: Sequence[float] = QUALITIES) -> Recommendation:
        """As :meth:`predict`, of a video that :meth:`EchoEncoder.embed_videos` has embedded."""
        fine = bool(qualities) and len(set(qualities)) == len(qualities) and all(10 <= q <= 60 for q in qualities)
        require(fine, "--qualities", tuple(qualities), "PSNR from 10 to 60 dB, each once")
        _, predictor = self._parts()
        odds = predictor.probabilities(video.z, len(self.clusters)).mean(0)
        points = (len(video.z), len(self.shares), len(self.clusters.crf))
        rate, quality = (values.reshape(points) for values in predictor.curves(video.z))
        scale = video.width * video.height * video.fps / 1000
        # The rate of a video is the mean over its clips. With a rising CRF neither rate nor quality can rise.
        log_kbps = np.minimum.accumulate(np.log2((2.0**rate).mean(0) * scale), axis=1)
        curve = np.minimum.accumulate(quality.mean(0), axis=1)
        best = int(odds.argmax())
        doubts = []
        if odds[best] < _SURE:
            doubts.append(f"low confidence: no cluster is likelier than {odds[best]:.2f}")
        if predictor.is_new(video.z):
            doubts.append("its clips are unlike those of training")
        return Recommendation(
            name=video.name,
            width=video.width,
            height=video.height,
            fps=video.fps,
            clips=len(video.z),
            cluster=best,
            confidence=float(odds[best]),
            doubts=tuple(doubts),
            shares=self.shares,
            crf=self.clusters.crf,
            kbps=2.0**log_kbps,
            quality=curve,
            steps=self._steps(video, log_kbps, curve, sorted(qualities)),
        )

    def _steps(
        self, video: VideoEmbedding, log_kbps: np.ndarray, quality: np.ndarray, targets: Sequence[float]
    ) -> tuple[Step, ...]:
        """From the highest step down: the resolution that gives the quality at the lowest rate, never a higher one."""
        setting, crf = self.clusters.setting, np.array(self.clusters.crf)
        steps: list[Step] = []
        smallest = 0
        for target in reversed(targets):
            rates = np.array([_line(quality[k], log_kbps[k], target) for k in range(len(self.shares))])
            smallest += int(rates[smallest:].argmin())
            chosen = float(np.clip(_line(quality[smallest], crf, target), 0, self.clusters.largest_crf))
            chosen = float(round(chosen)) if setting.codec in WHOLE_CRF else round(chosen, 1)
            # What the CRF as it is written gives: on the curve again.
            kbps = 2 ** _line(crf, log_kbps[smallest], chosen)
            reached = _line(crf, quality[smallest], chosen)
            point = dataclasses.replace(setting, value=chosen, share=self.shares[smallest])
            size = point.encoded_size(video.width, video.height)
            out = f"{video.path.stem}-{size[1]}p-{kbps:.0f}k{'.webm' if setting.codec == 'vp9' else '.mp4'}"
            steps.append(
                Step(
                    kbps=max(1, round(kbps)),
                    width=size[0],
                    height=size[1],
                    codec=setting.codec,
                    crf=chosen,
                    expected_quality=round(reached, 1),
                    low=round(min(max(reached + self.error[0], 0.0), PSNR_LIMIT), 1),
                    high=round(min(max(reached + self.error[1], 0.0), PSNR_LIMIT), 1),
                    extrapolated=not crf.min() <= chosen <= crf.max(),
                    command=command_line(point, str(video.path), out, size=size, kbps=max(1, round(kbps))),
                )
            )
        unique = {(step.kbps, step.crf, step.height): step for step in reversed(steps)}
        return tuple(unique.values())

    def _parts(self) -> tuple[EchoEncoder, Predictor]:
        if self.encoder is None or self.predictor is None:
            raise InputError(
                "the clusters cannot be predicted for new videos",
                why="they were fitted without an encoder",
                remedy="run cluster with --run RUN",
            )
        return self.encoder, self.predictor

    def save(self, folder: Path | str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``model.json``."""
        import torch

        arrays, plain = _divided(self.clusters, "clusters")
        about: dict[str, Any] = {
            "kind": KIND,
            "clusters": plain,
            "shares": list(self.shares),
            "error": list(self.error),
        }
        about["rungs"] = [[dataclasses.asdict(rung) for rung in steps] for steps in self.rungs]
        if self.predictor is not None:
            more, about["predictor"] = _divided(self.predictor, "predictor")
            arrays |= more
        state = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        if self.encoder is not None:
            about["encoder"] = self.encoder.description()
            state |= {f"encoder.{name}": value for name, value in self.encoder.model.state_dict().items()}
        save_weights(folder, state, about)

    @classmethod
    def load(cls, folder: Path | str | os.PathLike[str], *, device: str = "auto") -> "LadderPredictor":
        """Read it back.

        Raises:
            InputError: The folder holds none, or there is no such device.
        """
        return load_model(
            folder, KIND, lambda state, about: cls._rebuilt(state, about, device), made_by="cl-video3d cecl cluster"
        )

    @classmethod
    def _rebuilt(cls, state: dict[str, Any], about: dict[str, Any], device: str) -> "LadderPredictor":
        def arrays(prefix: str) -> dict[str, Any]:
            return {n.removeprefix(prefix): v.numpy() for n, v in state.items() if n.startswith(prefix)}

        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in about["clusters"].items()}
        weights = {n.removeprefix("encoder."): v for n, v in state.items() if n.startswith("encoder.")}
        low, high = about["error"]
        return cls(
            RQClusters(**plain, **arrays("clusters.")),
            tuple(tuple(Rung(**rung) for rung in steps) for steps in about["rungs"]),
            tuple(about["shares"]),
            Predictor(**about["predictor"], **arrays("predictor.")) if "predictor" in about else None,
            EchoEncoder.rebuilt(weights, about["encoder"], device) if "encoder" in about else None,
            (float(low), float(high)),
        )


def fit_ladders(
    echoes: EchoSet,
    encoder: EchoEncoder | None = None,
    *,
    split: str | None = None,
    codec: Codec | None = None,
    clusters: int | None = 5,
    algorithm: Algorithm = "rq-kmeans",
    space: Space = "echo",
    seed: int = 0,
) -> LadderPredictor:
    """Group clips by how rate and quality move, and learn to tell group and curves from an embedding.

    Args:
        echoes: Measured clips.
        encoder: Needed to predict for new videos.
        split: Fit on this split of the list; on ``train`` where the list has one, else on all clips.
        codec: Codec of the curves; the first measured one if absent.
        clusters: How many; chosen from 3 to 8 by silhouette if ``None``.
        algorithm: ``rq-kmeans``, or ``bd-kmedoids`` on distances between curves.
        space: What k-means sees.
        seed: Seed of the starts.

    Raises:
        InputError: Fewer clips than clusters, fewer than two operating points, or no clips of the split.
    """
    known, _ = echoes.training_part(split)
    part, shares = known.at(codec), known.shares(codec)
    groups = fit_clusters(part, clusters=clusters, algorithm=algorithm, space=space, seed=seed)
    labels = groups.assign(part)
    rungs = tuple(tuple(steps) for steps in cluster_rungs(known, labels, groups, codec))
    if encoder is None:
        return LadderPredictor(groups, rungs, shares)
    z = encoder.embed_echoes(part)
    parts = [known.at(codec, share).measured for share in shares]
    rate = np.concatenate([log_rates(measured["bpp"]) for measured in parts], axis=1)
    quality = np.concatenate([measured["psnr"] for measured in parts], axis=1)
    predictor = fit_predictor(z, labels, rate, quality)
    error = _held_out_error(z, labels, rate, quality, part.groups, len(groups.crf))
    return LadderPredictor(groups, rungs, shares, predictor, encoder, error)


def _held_out_error(
    z: np.ndarray,
    labels: Int[np.ndarray, " n"],
    rate: Float[np.ndarray, "n p"],
    quality: Float[np.ndarray, "n p"],
    groups: Sequence[str],
    points: int,
) -> tuple[float, float]:
    """Percentiles of ``measured - predicted`` quality at the predicted rates, sources held out where there are some."""
    count = len(set(groups))
    everything = np.arange(len(z))
    folds = GroupKFold(min(5, count)).split(z, groups=groups) if count > 1 else [(everything, everything)]
    errors = []
    for train, test in folds:
        if len(set(labels[train].tolist())) < 2:
            continue
        predicted_rate, predicted = fit_predictor(z[train], labels[train], rate[train], quality[train]).curves(z[test])
        for start in range(0, rate.shape[1], points):
            own = slice(start, start + points)
            for row, index in enumerate(test):
                reached = [_line(rate[index, own], quality[index, own], r) for r in predicted_rate[row, own]]
                errors.append(np.clip(reached, 0, PSNR_LIMIT) - predicted[row, own])
    if not errors:
        return 0.0, 0.0
    low, high = np.quantile(np.concatenate(errors), [0.1, 0.9]).tolist()
    return low, high


def _line(x: Float[np.ndarray, " c"], y: Float[np.ndarray, " c"], at: float) -> float:
    """Straight lines between points, going on beyond them; of equal ``x`` the smaller ``y`` counts.

    The same read from either side, so that a rate read off at a quality has that quality.
    """
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    kept = np.concatenate([[True], np.diff(x) > 1e-9])
    x, y = x[kept], y[kept]
    if len(x) == 1:
        return float(y[0])
    k = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
    return float(y[k] + (at - x[k]) * (y[k + 1] - y[k]) / (x[k + 1] - x[k]))


def _short(value: Any) -> Any:
    return f"{value:.1f}" if isinstance(value, float) else value


def _divided(value: Any, prefix: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and plain values of a dataclass."""
    arrays, plain = dict[str, np.ndarray](), dict[str, Any]()
    for field in dataclasses.fields(value):
        entry = getattr(value, field.name)
        if isinstance(entry, np.ndarray):
            arrays[f"{prefix}.{field.name}"] = entry
        else:
            plain[field.name] = entry
    return arrays, plain
