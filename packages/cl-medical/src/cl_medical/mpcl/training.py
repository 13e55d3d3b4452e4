"""Training a segmenter from cases, and judging it on cases."""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
from monai.data.meta_tensor import MetaTensor
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cl_medical.mpcl.data import CachedVolumes, Crop, DataPlan, PatchPairs, Volumes
from cl_medical.mpcl.model import NetworkConfig, VNet
from cl_medical.mpcl.predict import CE_SCALE, Segmenter, labelled_prototypes, pick_device
from cl_medical.mpcl.system import MethodSettings, OptimSettings, SegmentationSystem
from cl_medical.volumes.cases import Case, CaseSet, Split
from cl_medical.volumes.metrics import case_metrics, dice
from cl_medical.volumes.reading import spacing

Select = Literal["validation", "last", "test"]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What one step sees.

    Attributes:
        batch_size: Labelled patches a step.
        ratio: Unlabelled patches for each labelled one.
        repeats: Patches of a labelled case in one epoch.
        unlabelled_crop: Where unlabelled patches are cut; random, or centre as in the official code.
        cache: Share of the prepared volumes kept in memory, 0 to 1.
    """

    batch_size: int = 1
    ratio: int = 1
    repeats: int = 5
    unlabelled_crop: Crop | None = None
    cache: float = 1.0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.ratio, self.repeats) < 1 or not 0 <= self.cache <= 1:
            raise InputError(
                "a step's settings are out of range",
                where="--batch-size, --ratio, --repeats, --cache",
                why=f"got {self.batch_size}, {self.ratio}, {self.repeats}, {self.cache}",
                remedy="use at least 1, and a share between 0 and 1 for --cache",
            )


def load_split(
    data: CaseSet, split: Split, plan: DataPlan, method: MethodSettings, *, select: Select, cache: float = 1.0
) -> tuple[Volumes, Volumes, Volumes]:
    """Read the volumes a method trains with.

    Args:
        data: The cases.
        split: Which of them train, and which choose the checkpoint.
        plan: How they are read and cut.
        method: The method; ``sup`` looks at no unlabelled case.
        select: Keep the weights that are best on validation (or test) cases, or the last.
        cache: Share of the volumes kept in memory.

    Returns:
        Labelled, unlabelled and judged volumes.

    Raises:
        InputError: A case cannot be used, there are no unlabelled cases for a method that needs them, or no test cases
            to choose on.
    """
    if method.uses_unlabelled and not split.unlabelled:
        raise InputError(
            f"{method.method} needs unlabelled cases",
            where=data.folder,
            why=f"all {len(split.labelled)} training cases are used with their labels",
            remedy="add images without label maps, lower --labelled, or use --method sup",
        )
    if select == "test" and not split.test:
        raise InputError("there are no test cases to choose the weights on", where="--select", remedy="raise --test")
    unlabelled = split.unlabelled if method.uses_unlabelled else ()
    judged = {"validation": split.validation, "test": split.test, "last": ()}[select]

    def volumes(names: Sequence[str], *, labelled: bool) -> Volumes:
        return CachedVolumes([data.cases[name] for name in names], plan, labelled=labelled, rate=cache)

    return volumes(split.labelled, labelled=True), volumes(unlabelled, labelled=False), volumes(judged, labelled=True)


def train_volumes(
    labelled: Volumes,
    unlabelled: Volumes,
    validation: Volumes,
    plan: DataPlan,
    *,
    run: RunFolder,
    network: NetworkConfig,
    method: MethodSettings,
    steps: StepSettings,
    optim: OptimSettings,
    train: TrainSettings,
) -> Segmenter:
    """Train a method.

    Args:
        labelled: Images and label maps on the network's grid.
        unlabelled: Images.
        validation: Volumes that choose the checkpoint; the last weights are kept if there are none.
        plan: How volumes are cut.
        run: Where logs and checkpoints go.
        network: Architecture.
        method: The method and its settings.
        steps: Batches.
        optim: Optimiser.
        train: Length of the run, hardware.

    Returns:
        The segmenter, with prototypes of the labelled volumes.
    """
    per_epoch = max(1, len(labelled) * steps.repeats // steps.batch_size)
    total = train.steps if train.steps is not None else train.epochs * per_epoch
    train = dataclasses.replace(train, steps=total)
    pairs = PatchPairs(
        labelled,
        unlabelled,
        total * steps.batch_size * train.accumulate,
        plan,
        seed=train.seed,
        ratio=steps.ratio if method.uses_unlabelled else 0,
        unlabelled_crop=steps.unlabelled_crop or "random",
    )
    device = pick_device("auto" if train.accelerator in ("auto", "gpu", "cuda") else "cpu")

    def validate(net: VNet, index: int) -> float:
        image, label = validation[index]
        assert label is not None
        return mean_dice(net, image, label, plan)

    torch.manual_seed(train.seed)
    system = SegmentationSystem(
        VNet(network, len(plan.classes)),
        method,
        optim=optim,
        total_steps=total,
        seed=train.seed,
        validate=validate if len(validation) else None,
    )
    loader = batches(pairs, steps.batch_size, seed=train.seed)
    every = min(train.validate_every, total)
    fit(
        system,
        loader,
        run=run,
        settings=dataclasses.replace(train, validate_every=every),
        validation_data=DataLoader(TensorDataset(torch.arange(len(validation)))) if len(validation) else None,
    )
    if len(validation) and run.checkpoint("best").is_file():
        state = torch.load(run.checkpoint("best"), map_location="cpu", weights_only=True)["state_dict"]
        system.load_state_dict(state)
    student = system.network.to(device).eval()
    prototypes = labelled_prototypes(student, labelled, plan, method.prototypes, train.seed)
    return Segmenter(student, plan, prototypes, device)


@torch.no_grad()
def mean_dice(network: VNet, image: Tensor, label: Tensor, plan: DataPlan) -> float:
    """Dice of one prepared volume, averaged over structures."""
    device = next(network.parameters()).device
    segmenter = Segmenter(network, dataclasses.replace(plan, largest_component=False), _none(network), str(device))
    found = segmenter.segment_prepared(image).labels
    reference = label.numpy()
    return float(np.mean([dice(found == c, reference == c) for c in range(1, len(plan.classes))]))


def evaluate_cases(
    segmenter: Segmenter, cases: Iterable[Case], *, prototypes: bool = True, progress: bool = False
) -> list[dict[str, Any]]:
    """Metrics of cases, one row a case and structure.

    Args:
        segmenter: The model.
        cases: Cases with label maps.
        prototypes: Judge the prototype classifier as well: ``prototype_dice``, and ``prototype_ce``, the voxels' mean
            cross-entropy of the cosines times 10 (one number a case, the same in each of its rows).
        progress: Show a bar.

    Raises:
        InputError: A case has no label map or cannot be used.
    """
    rows: list[dict[str, Any]] = []
    classes = segmenter.plan.classes
    for case in tracked(list(cases), "evaluating", progress):
        if case.label is None:
            raise InputError("a case to be judged has no label map", where=case.image)
        image, label = segmenter.plan.read(case)
        found = segmenter.segment(image, prototypes=prototypes)
        reference = label.as_tensor()[0].numpy()
        for row in case_metrics(found.labels, reference, classes, spacing(image)):
            if found.prototype_labels is not None:
                number = classes.index(row["class"])
                row["prototype_dice"] = dice(found.prototype_labels == number, reference == number)
                row["prototype_ce"] = _cross_entropy(segmenter, found.cosines, label)
            rows.append({"case": case.name, **row})
    return rows


def tracked(items: Sequence[Any], what: str, progress: bool) -> Iterable[Any]:
    """The items, with a progress bar on a terminal."""
    if not progress or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, console=Console(stderr=True))


def _cross_entropy(segmenter: Segmenter, cosines: Tensor | None, label: MetaTensor) -> float:
    assert cosines is not None
    target = segmenter.plan.preprocessing.label(label).as_tensor()
    return float(F.cross_entropy(CE_SCALE * cosines[None], target))


def _none(network: VNet) -> Any:
    from cl_medical.mpcl.ihpg import Prototypes

    c, d = network.classes, network.config.feature_width
    return Prototypes(torch.zeros(c, 1, d), torch.zeros(c, 1), torch.zeros(c, 1), torch.zeros(c, dtype=torch.bool))
