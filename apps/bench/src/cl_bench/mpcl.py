"""Claims and speed of MPCL."""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from cl_medical.mpcl.data import CachedVolumes, DataOptions, DataPlan, Volumes
from cl_medical.mpcl.ihpg import PrototypeSettings, histogram_seeds, ihpg, scale_intensity, spread
from cl_medical.mpcl.model import NetworkConfig, VNet
from cl_medical.mpcl.objective import fuse, prototype_contrast, prototype_cross_entropy, pseudo_labels, supervised_loss
from cl_medical.mpcl.predict import Segmenter, labelled_prototypes
from cl_medical.mpcl.system import Method, MethodOptions, MethodSettings, OptimSettings, Preset, resolve_method
from cl_medical.mpcl.training import StepSettings, evaluate_cases, train_volumes
from cl_medical.volumes.cases import Case, read_cases
from cl_medical.volumes.samples import write_samples
from cl_medical.volumes.sliding import slide
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, TrainSettings
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cl_bench.results import Claim, Speed, race

_T = TypeVar("_T")

_NETWORK = NetworkConfig(width=8, downsamplings=3)
_VOXELS = 4000
_ARMS: dict[str, tuple[Method, Preset, MethodOptions]] = {
    "sup": ("sup", "corrected", MethodOptions()),
    "mean-teacher": ("mean-teacher", "corrected", MethodOptions()),
    "k1": ("upcol", "corrected", MethodOptions()),
    "mpcl paper-code": ("mpcl", "paper-code", MethodOptions()),
    "mpcl, gradients through k-means": ("mpcl", "corrected", MethodOptions(gradient="iterations")),
    "mpcl without contrast": ("mpcl", "corrected", MethodOptions(contrast=0.0)),
    "mpcl": ("mpcl", "corrected", MethodOptions()),
}
# All voxels: prototypes of different draws differ by more than the collapsed ones differ from the mean.
_FIXED = {
    "K=1": PrototypeSettings(k=1, max_voxels=0),
    "K=3 official": PrototypeSettings(assignment="official", max_voxels=0),
    "K=3 sharp": PrototypeSettings(max_voxels=0),
}


@dataclasses.dataclass(frozen=True)
class _Task:
    """Cases of the experiment, prepared once for all arms."""

    name: str
    plan: DataPlan
    labelled: Volumes
    unlabelled: Volumes
    test: list[Case]


def claims(
    seeds: Sequence[int], data: Path | None, *, steps: int = 300, fixed_steps: int = 60, test: int = 10
) -> list[Claim]:
    """MPCL against its baselines with four labelled volumes, and its prototypes on fixed features.

    Args:
        seeds: Seeds of network and draws; all arms share them.
        data: Folder with ``images/`` and ``labels/``, such as the hippocampus set of the Medical Segmentation
            Decathlon; the simulated sample data without it.
        steps: Training steps of every arm.
        fixed_steps: Steps of the supervised network whose features are kept fixed.
        test: Test volumes.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        task = _task(data, Path(folder), test)
        fixed = [_told(f"fixed features, seed {seed}", _fixed(task, seed, fixed_steps)) for seed in seeds]
        trained: dict[str, list[dict[str, float]]] = {arm: [] for arm in _ARMS}
        for seed in seeds:
            for arm, results in trained.items():
                results.append(_told(f"{arm}, seed {seed}", _arm(task, arm, seed, steps)))
    notes = [
        f"{task.name}: {len(task.labelled)} labelled, {len(task.unlabelled)} unlabelled, {len(task.test)} test "
        f"volumes, drawn with seed 0; V-Net of width 8 with 3 downsamplings, patch "
        f"{'x'.join(map(str, task.plan.patch))}, {steps} steps of 1 + 1 patches, last weights; k-means of at "
        f"most {_VOXELS} voxels a class in all arms",
        f"fixed features: the supervised network after {fixed_steps} steps, prototypes of all voxels of its labelled "
        "volumes; cross-entropies are of cosines times 10",
    ]
    seconds = time.perf_counter() - started
    rows = [
        {"arm": arm, "seed": seed, **result}
        for arm, results in trained.items()
        for seed, result in zip(seeds, results, strict=True)
    ]
    fixed_rows = [
        {"prototypes": arm, "seed": seed, **result[arm]}
        for seed, result in zip(seeds, fixed, strict=True)
        for arm in _FIXED
    ]

    def claim(name: str, statement: str, scores: dict[str, list[float]], *, gate: bool, **details: Any) -> Claim:
        better, baseline = list(scores)[-1], next(iter(scores))
        return Claim(f"mpcl: {name}", statement, scores, better, baseline, gate, details, notes, seconds)

    def on_fixed(metric: str, sign: float = 1) -> dict[str, list[float]]:
        return {arm: [sign * result[arm][metric] for result in fixed] for arm in _FIXED}

    def on_trained(metric: str, baseline: str, sign: float = 1) -> dict[str, list[float]]:
        order = [baseline, *(arm for arm in _ARMS if arm not in (baseline, "mpcl")), "mpcl"]
        return {arm: [sign * result[metric] for result in trained[arm]] for arm in order}

    gap = [abs(result["K=3 official"]["dice"] - result["K=1"]["dice"]) for result in fixed]
    spreads = {arm: [result["spread"] for result in trained[arm]] for arm in ("mpcl paper-code", "mpcl")}
    return [
        claim(
            "fixed features, Dice",
            "K=3 sharp beats K=1",
            on_fixed("dice"),
            gate=True,
            **{"per arm and seed": rows, "fixed features": fixed_rows},
        ),
        claim("fixed features, minus cross-entropy", "K=3 sharp beats K=1", on_fixed("ce", -1), gate=True),
        claim(
            "fixed features, published assignment",
            "its prototypes do no more than one (Dice within 0.001)",
            {"|Dice(K=3 official) - Dice(K=1)|": gap, "allowed": [1e-3] * len(gap)},
            gate=True,
        ),
        claim("prototype spread", "corrected prototypes stay apart, published ones do not", spreads, gate=True),
        claim("Dice, against sup", "MPCL beats supervised training", on_trained("dice", "sup"), gate=False),
        claim("Dice, against k1", "three prototypes beat one", on_trained("dice", "k1"), gate=False),
        claim(
            "minus HD95 (voxels)",
            "MPCL's surfaces are closer than supervised training's",
            on_trained("hd95", "sup", -1),
            gate=False,
        ),
        claim("prototype branch, Dice", "three prototypes beat one", on_trained("prototype_dice", "k1"), gate=False),
        claim(
            "prototype branch, minus cross-entropy",
            "three prototypes beat one",
            on_trained("prototype_ce", "k1", -1),
            gate=False,
        ),
    ]


def speed(rounds: int) -> list[Speed]:
    """A training step's prototype part against the published dense algorithm, and sliding-window prediction.

    Args:
        rounds: Timed rounds of each contestant.
    """
    if _free_gib() >= 32:
        return [*_steps(rounds, 96), _windows(rounds)]
    return [*_steps(rounds, 64), *_steps(rounds, 96, recompute=True), _windows(rounds)]


def _free_gib() -> float:
    """Memory that can be had; the dense algorithm needs more than 24 GB at 96³."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable")), 0.0)


def _task(data: Path | None, folder: Path, test: int) -> _Task:
    real = data is not None
    if data is None:
        write_samples(folder / "simulated", cases=20, unlabelled=0)
    cases = read_cases(folder / "simulated" if data is None else data)
    options = DataOptions(
        patch=(32, 48, 32), stride=(32, 48, 32), augment="flip", merge_labels=real, largest_component=True
    )
    plan = DataPlan.resolve(options, cases, _NETWORK.divisor)
    names = [case.name for case in cases.cases.values() if case.label is not None]
    order = [names[index] for index in np.random.default_rng(0).permutation(len(names))]
    test = min(test, len(order) // 2)
    if len(order) < 4 + test + 1:
        raise InputError("the claim needs more labelled volumes", where=data, why=f"found {len(order)}")
    held = [cases.cases[name] for name in order[4 : 4 + test]]
    rest = [cases.cases[name] for name in order[4 + test : 104 + test]]
    labelled = [cases.cases[name] for name in order[:4]]
    name = f"{cases.folder.name}, structures as one" if real else "SIMULATED sample data (no --data given)"
    return _Task(
        name,
        plan,
        CachedVolumes(labelled, plan, labelled=True),
        CachedVolumes(rest, plan, labelled=False),
        held,
    )


def _told(what: str, result: _T) -> _T:
    """Show a result when it is there: the whole takes long."""
    print(f"mpcl: {what}: {result}", file=sys.stderr, flush=True)
    return result


def _train(task: _Task, method: MethodSettings, preset: Preset, seed: int, steps: int) -> Segmenter:
    settings = TrainSettings(
        steps=steps, seed=seed, accelerator="cpu", progress=False, checkpoint_every=steps, log_every=steps
    )
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, {}) as run:
        return train_volumes(
            task.labelled,
            task.unlabelled if method.uses_unlabelled else [],
            [],
            task.plan,
            run=run,
            network=_NETWORK,
            method=method,
            steps=StepSettings(unlabelled_crop="centre" if preset == "paper-code" else "random"),
            optim=OptimSettings(),
            train=settings,
        )


def _arm(task: _Task, arm: str, seed: int, steps: int) -> dict[str, float]:
    method, preset, options = _ARMS[arm]
    options = dataclasses.replace(options, max_voxels=_VOXELS)
    return _judged(task, _train(task, resolve_method(method, preset, options), preset, seed, steps))


def _fixed(task: _Task, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """The three ways to find prototypes, on the features of one supervised network."""
    segmenter = _train(task, resolve_method("sup", "corrected"), "corrected", seed, steps)
    results = {}
    for arm, settings in _FIXED.items():
        segmenter.prototypes = labelled_prototypes(segmenter.network, task.labelled, task.plan, settings, seed)
        judged = _judged(task, segmenter)
        results[arm] = {
            "dice": judged["prototype_dice"],
            "ce": judged["prototype_ce"],
            "spread": judged["spread"],
        }
    return results


def _judged(task: _Task, segmenter: Segmenter) -> dict[str, float]:
    rows = evaluate_cases(segmenter, task.test)
    means = {
        name: statistics.fmean(row[key] for row in rows)
        for name, key in (
            ("dice", "dice"),
            ("hd95", "hd95_vox"),
            ("hd95 mm", "hd95_mm"),
            ("prototype_dice", "prototype_dice"),
            ("prototype_ce", "prototype_ce"),
        )
    }
    return means | {"spread": float(spread(segmenter.prototypes.centers).mean())}


def _windows(rounds: int) -> Speed:
    """Prediction over half-overlapping windows, against MONAI's inferer with the same windows."""
    from monai.inferers.utils import sliding_window_inference

    torch.manual_seed(0)
    network = VNet(NetworkConfig(width=8, downsamplings=3), 2).eval()
    volume = torch.rand(1, 96, 96, 96)
    patch, stride = (48, 48, 48), (24, 24, 24)

    def predict(x: Tensor) -> Tensor:
        return network(x).logits.softmax(1)

    def ours() -> Tensor:
        with torch.inference_mode():
            return torch.cat([slab for _, slab in slide(volume, predict, patch=patch, stride=stride, batch=4)], 1)

    def theirs() -> Tensor:
        with torch.inference_mode():
            return sliding_window_inference(volume[None], patch, 4, predict, overlap=0.5)[0]  # type: ignore[index,return-value]

    gap = float((ours() - theirs()).abs().max())
    start = time.perf_counter()
    ours()
    rate = volume.numel() / (time.perf_counter() - start)
    notes = f"96³ voxels in 27 windows of 48³, width 8; {rate:,.0f} voxels/s; results differ by at most {gap:.0e}"
    return race("mpcl: sliding windows", ours, theirs, peer="MONAI's inferer", rounds=rounds, notes=notes)


def _steps(rounds: int, side: int, width: int = 16, *, recompute: bool = False) -> list[Speed]:
    """The terms of one step on the same labelled and unlabelled maps: without and with the network."""
    generator = torch.Generator().manual_seed(0)
    size = (side, side, side)
    config = NetworkConfig(width=width)
    image = torch.rand(1, 1, *size, generator=generator)
    other = torch.rand(1, 1, *size, generator=generator)
    label = torch.zeros(1, *size, dtype=torch.long)
    label[:, side // 4 : side // 2, side // 4 : side // 2, side // 4 : 3 * side // 4] = 1
    torch.manual_seed(0)
    student, teacher = VNet(config, 2), VNet(config, 2)

    def step(terms: Callable[..., Tensor]) -> Callable[[], None]:
        def task() -> None:
            student.zero_grad()
            output = student(image)
            with torch.no_grad():
                taught = teacher(other)
            loss = supervised_loss(output.heads, label) + terms(output.features, taught.features, taught.logits)
            loss.backward()

        return task

    low = side // 8
    maps = [torch.rand(1, config.feature_width, low, low, low, generator=generator) for _ in range(2)]
    logits = torch.randn(1, 2, *size, generator=generator) * 4

    def alone(terms: Callable[..., Tensor]) -> Callable[[], None]:
        def task() -> None:
            terms(maps[0].clone().requires_grad_(), maps[1], logits).backward()

        return task

    def ours(x6: Tensor, taught: Tensor, scores: Tensor) -> Tensor:
        return _our_terms(x6, taught, scores, image, other, label)

    def theirs(x6: Tensor, taught: Tensor, scores: Tensor) -> Tensor:
        return _dense_terms(x6, taught, scores, image, other, label, recompute=recompute)

    notes = f"{side}³ patches, 1 + 1, C=2, K=3, d={config.feature_width}, forward and backward; ours clusters 20 000 voxels a class"  # noqa: E501
    peer = "the published dense algorithm" + (", iterations recomputed in the backward pass" if recompute else "")
    return [
        race(f"mpcl: prototype terms, {side}³", alone(ours), alone(theirs), peer=peer, rounds=rounds, notes=notes),
        race(f"mpcl: training step, {side}³", step(ours), step(theirs), peer=peer, rounds=rounds, notes=notes),
    ]


def _our_terms(x6: Tensor, taught: Tensor, scores: Tensor, image: Tensor, other: Tensor, label: Tensor) -> Tensor:
    draw, settings = torch.Generator().manual_seed(0), PrototypeSettings()
    a = ihpg(x6, image, label, 2, settings, draw)
    with torch.no_grad():
        pseudo, trust = pseudo_labels(scores)
        b = ihpg(taught, other, pseudo, 2, settings, draw, reliability=trust)
    fused, present = fuse(a, b, 0.5)
    return (
        prototype_cross_entropy(x6, fused, present, label)
        + 0.5 * prototype_cross_entropy(taught, fused, present, pseudo, weight=trust)
        + 0.5 * prototype_contrast(a, b)
    )


def _dense_terms(
    x6: Tensor, taught: Tensor, scores: Tensor, image: Tensor, other: Tensor, label: Tensor, *, recompute: bool = False
) -> Tensor:
    """The algorithm as published: all maps at full resolution, ``[n k d]`` differences in every iteration.

    With ``recompute`` the iterations do not keep these differences for the backward pass (gradient checkpointing): a
    third more time at most, and the only way to fit 96³ into 24 GB.
    """
    size = label.shape[1:]
    full = F.interpolate(x6, size=size, mode="trilinear", align_corners=False)
    a = _dense_prototypes(full, image, label, recompute=recompute)
    with torch.no_grad():
        full_other = F.interpolate(taught, size=size, mode="trilinear", align_corners=False)
        probability = scores.softmax(1)
        pseudo = probability.argmax(1)
        entropy = -(probability * (probability + 1e-16).log()).sum(1)
        trust = 1 - entropy / entropy.sum()
        b = _dense_prototypes(full_other, other, pseudo)
    fused = (a + 0.5 * b) / 1.5

    def logits(features: Tensor) -> Tensor:
        columns = [
            torch.stack([F.cosine_similarity(features, p[None, :, None, None, None], dim=1) for p in rows]).amax(0)
            for rows in fused
        ]
        return torch.stack(columns, 1)

    z = F.normalize(torch.cat([a.flatten(0, 1), b.flatten(0, 1)]), dim=1)
    group = torch.arange(2).repeat_interleave(3).repeat(2)
    s = (z @ z.T / 0.1).exp()
    same = (group[:, None] == group) & ~torch.eye(12, dtype=torch.bool)
    contrast = -((s * same).sum(1) / s.sum(1)).log().mean()
    unlabelled = (trust * F.cross_entropy(logits(full_other), pseudo, reduction="none")).mean()
    return F.cross_entropy(logits(full), label) + 0.5 * unlabelled + 0.5 * contrast


def _dense_prototypes(features: Tensor, image: Tensor, label: Tensor, *, recompute: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    flat, values = features[0].flatten(1).T, scale_intensity(image).flatten()
    axes = [torch.linspace(-1, 1, side) for side in label.shape[1:]]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    found = []
    for number in range(2):
        inside = (label.flatten() == number).nonzero()[:, 0]
        x, where, own = flat[inside], places[inside], values[inside]
        seeds = []
        for bin_index in histogram_seeds(own, 3).tolist():
            pool = ((own * 100).long().clamp(0, 99) == bin_index).nonzero()[:, 0]
            pool = pool if len(pool) else torch.arange(len(own))
            seeds.append(pool[torch.randint(len(pool), (1,), generator=generator)])
        centers, spots = x[torch.cat(seeds)], where[torch.cat(seeds)]
        for _ in range(10):
            if recompute:
                centers, spots = checkpoint(_dense_iteration, x, where, centers, spots, use_reentrant=False)
            else:
                centers, spots = _dense_iteration(x, where, centers, spots)
        found.append(centers)
    return torch.stack(found)


def _dense_iteration(x: Tensor, where: Tensor, centers: Tensor, spots: Tensor) -> tuple[Tensor, Tensor]:
    distance = (x[:, None] - centers).norm(dim=2) + (where[:, None] - spots).norm(dim=2) / 100
    weight = torch.exp(-(distance + 1e-12).sqrt())
    weight = weight / (weight.sum(1, keepdim=True) + 1e-10)
    mass = weight.sum(0)[:, None]
    return (weight[:, :, None] * x[:, None]).sum(0) / mass, (weight[:, :, None] * where[:, None]).sum(0) / mass
