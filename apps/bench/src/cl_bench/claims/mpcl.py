"""Claims of MPCL."""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cl_medical.mpcl.data import CachedVolumes, DataOptions, DataPlan, Volumes
from cl_medical.mpcl.ihpg import PrototypeSettings, spread
from cl_medical.mpcl.model import NetworkConfig
from cl_medical.mpcl.predict import Segmenter, labelled_prototypes
from cl_medical.mpcl.system import Method, MethodOptions, MethodSettings, OptimSettings, Preset, resolve_method
from cl_medical.mpcl.training import StepSettings, evaluate_cases, train_volumes
from cl_medical.volumes.cases import Case, read_cases
from cl_medical.volumes.samples import write_samples
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, TrainSettings

from cl_bench.arms import Claim

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
