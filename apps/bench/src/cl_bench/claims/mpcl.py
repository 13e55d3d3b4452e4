"""Claims of MPCL."""

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cl_medical.mpcl.data import TrainingData
from cl_medical.mpcl.evaluation import evaluate_cases
from cl_medical.mpcl.ihpg import PrototypeSettings, spread
from cl_medical.mpcl.inference import Segmenter, labelled_prototypes
from cl_medical.mpcl.model import NetworkConfig
from cl_medical.mpcl.presets import ObjectiveSettings
from cl_medical.mpcl.system import Settings
from cl_medical.mpcl.training import train_segmenter
from cl_medical.volumes.caching import CachedVolumes
from cl_medical.volumes.cases import Case, read_cases
from cl_medical.volumes.plan import DataOptions, DataPlan
from cl_medical.volumes.samples import write_samples
from contrastive_core.errors import InputError
from contrastive_core.training import TrainSettings

from cl_bench.arms import Arm, Outcome, Result, Statement, compare, measure

_NETWORK = NetworkConfig(width=8, downsamplings=3)
_VOXELS = 4000
_ARMS = {
    "sup": ObjectiveSettings("sup"),
    "mean-teacher": ObjectiveSettings("mean-teacher"),
    "k1": ObjectiveSettings("upcol", max_voxels=_VOXELS),
    "mpcl paper-code": ObjectiveSettings(preset="paper-code", max_voxels=_VOXELS),
    "mpcl, gradients through k-means": ObjectiveSettings(gradient="iterations", max_voxels=_VOXELS),
    "mpcl without contrast": ObjectiveSettings(contrast=0.0, max_voxels=_VOXELS),
    "mpcl": ObjectiveSettings(max_voxels=_VOXELS),
}
# All voxels: prototypes of different draws differ by more than the collapsed ones differ from the mean.
_FIXED = {
    "K=1": PrototypeSettings(k=1, max_voxels=0),
    "K=3 official": PrototypeSettings(assignment="official", max_voxels=0),
    "K=3 sharp": PrototypeSettings(max_voxels=0),
}
_FULL, _OFFICIAL, _FIXED_CONDITION, _TRAINED = "mpcl", "K=3 official", "fixed features", "four labelled volumes"
STATEMENTS = [
    Statement("fixed features, Dice", "dice", "K=3 sharp", "K=1", gate=True, condition=_FIXED_CONDITION),
    Statement(
        "fixed features, cross-entropy", "ce", "K=3 sharp", "K=1", gate=True, condition=_FIXED_CONDITION, lower=True
    ),
    Statement(
        "fixed features, prototypes of the published assignment do no more than one (Dice within 0.001)",
        "|Dice - Dice of K=1|",
        _OFFICIAL,
        1e-3,
        gate=True,
        condition=_FIXED_CONDITION,
        lower=True,
    ),
    Statement(
        "prototype spread, corrected prototypes stay apart, published ones do not",
        "spread",
        _FULL,
        "mpcl paper-code",
        gate=True,
        condition=_TRAINED,
    ),
    Statement("Dice, against sup", "dice", _FULL, "sup", condition=_TRAINED),
    Statement("Dice, against k1: three prototypes beat one", "dice", _FULL, "k1", condition=_TRAINED),
    Statement("HD95 (voxels), against sup", "hd95", _FULL, "sup", condition=_TRAINED, lower=True),
    Statement("prototype branch, Dice: three prototypes beat one", "prototype_dice", _FULL, "k1", condition=_TRAINED),
    Statement(
        "prototype branch, cross-entropy: three prototypes beat one",
        "prototype_ce",
        _FULL,
        "k1",
        condition=_TRAINED,
        lower=True,
    ),
]


@dataclasses.dataclass(frozen=True)
class _Task:
    """Cases of the experiment, prepared once for all arms."""

    name: str
    data: TrainingData
    test: list[Case]


def claims(
    seeds: Sequence[int], data: Path | None, *, steps: int = 300, fixed_steps: int = 60, test: int = 10
) -> list[Outcome]:
    """MPCL against its baselines with four labelled volumes, and its prototypes on fixed features.

    Args:
        seeds: Seeds of network and draws; all arms share them.
        data: Folder with ``images/`` and ``labels/``, such as the hippocampus set of the Medical Segmentation
            Decathlon; the simulated sample data without it.
        steps: Training steps of every arm.
        fixed_steps: Steps of the supervised network whose features are kept fixed.
        test: Test volumes.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = _task(data, Path(folder), test)
        table = measure("mpcl", _fixed(task, fixed_steps), seeds, condition=_FIXED_CONDITION)
        trained = {arm: functools.partial(_trained, task, arm, steps) for arm in _ARMS}
        table += measure("mpcl", trained, seeds, condition=_TRAINED)
    notes = [
        f"{task.name}: {len(task.data.labelled)} labelled, {len(task.data.unlabelled)} unlabelled, "
        f"{len(task.test)} test volumes, drawn with seed 0; V-Net of width 8 with 3 downsamplings, patch "
        f"{'x'.join(map(str, task.data.plan.patch))}, {steps} steps of 1 + 1 patches, last weights; k-means of at "
        f"most {_VOXELS} voxels a class in all arms",
        f"fixed features: the supervised network after {fixed_steps} steps, prototypes of all voxels of its labelled "
        "volumes; cross-entropies are of cosines times 10",
    ]
    return compare("mpcl", STATEMENTS, table, notes=notes)


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
        raise InputError("the claim needs more labelled volumes", where=data, why=f"there are {len(order)}")
    held = [cases.cases[name] for name in order[4 : 4 + test]]
    rest = [cases.cases[name] for name in order[4 + test : 104 + test]]
    labelled = [cases.cases[name] for name in order[:4]]
    name = f"{cases.folder.name}, structures as one" if real else "SIMULATED sample data (no --data given)"
    volumes = CachedVolumes(labelled, plan, labelled=True), CachedVolumes(rest, plan, labelled=False)
    return _Task(name, TrainingData(plan, *volumes), held)


def _train(task: _Task, objective: ObjectiveSettings, seed: int, steps: int) -> Segmenter:
    training = TrainSettings(
        steps=steps, seed=seed, accelerator="cpu", progress=False, checkpoint_every=steps, log_every=steps
    )
    return train_segmenter(task.data, Settings(objective=objective, network=_NETWORK, batch_size=1, training=training))


def _trained(task: _Task, arm: str, steps: int, seed: int) -> Result:
    return Result(_scores(task, _train(task, _ARMS[arm], seed, steps)))


def _fixed(task: _Task, steps: int) -> dict[str, Arm]:
    """The three ways to find prototypes, on the features of one supervised network a seed."""

    @functools.lru_cache(maxsize=1)
    def supervised(seed: int) -> Segmenter:
        return _train(task, _ARMS["sup"], seed, steps)

    @functools.lru_cache(maxsize=len(_FIXED))
    def prototypes(arm: str, seed: int) -> dict[str, float]:
        segmenter = supervised(seed)
        segmenter.prototypes = labelled_prototypes(
            segmenter.network, task.data.labelled, task.data.plan, _FIXED[arm], seed
        )
        scores = _scores(task, segmenter)
        return {"dice": scores["prototype_dice"], "ce": scores["prototype_ce"], "spread": scores["spread"]}

    def score(arm: str, seed: int) -> Result:
        scores = prototypes(arm, seed)
        return Result(scores | {"|Dice - Dice of K=1|": abs(scores["dice"] - prototypes("K=1", seed)["dice"])})

    return {arm: functools.partial(score, arm) for arm in _FIXED}


def _scores(task: _Task, segmenter: Segmenter) -> dict[str, float]:
    scores = evaluate_cases(segmenter, task.test)
    names = {"dice": "dice", "hd95": "hd95_vox", "hd95 mm": "hd95_mm"}
    names |= {name: name for name in ("prototype_dice", "prototype_ce")}
    means = {name: scores.mean(key) for name, key in names.items()}
    return means | {"spread": float(spread(segmenter.prototypes.centers).mean())}
