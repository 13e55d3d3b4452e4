"""From volumes to the patches of a step: labelled and unlabelled ones, cropped and augmented by seeded draws."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from contrastive_core.data import TwoStreamSampler
from contrastive_core.errors import InputError
from contrastive_core.training import batches, seeded_generator
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cl_medical.mpcl.plan import TrainingPlan, batch_for
from cl_medical.mpcl.system import Settings
from cl_medical.volumes.caching import CachedVolumes, Volumes
from cl_medical.volumes.grid import Preprocessing
from cl_medical.volumes.metrics import IGNORED
from cl_medical.volumes.patches import Crop, augment, crop
from cl_medical.volumes.plan import DataOptions, DataPlan, plan_patch
from cl_medical.volumes.reading import check_labels, volume_of

__all__ = ["DataOptions", "DataPlan", "Patches", "TrainingData", "in_memory", "patches", "read_training"]


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Volumes a method trains with, on the network's grid.

    Attributes:
        plan: How they were read, and how they are cut.
        labelled: Images with label maps.
        unlabelled: Images; none for methods that look at none.
        validation: Volumes that choose the checkpoint; the last weights are kept if there are none.
    """

    plan: DataPlan
    labelled: Volumes
    unlabelled: Volumes = ()
    validation: Volumes = ()


def read_training(plan: TrainingPlan, settings: Settings) -> TrainingData:
    """Read the volumes of a plan.

    Raises:
        InputError: A case cannot be used.
    """
    split = plan.split
    chosen = {"validation": split.validation, "test": split.test, "last": ()}[settings.select]

    def volumes(names: Sequence[str], *, labelled: bool) -> Volumes:
        cases = [plan.cases.cases[name] for name in names]
        return CachedVolumes(cases, plan.data, labelled=labelled, rate=settings.cache)

    unlabelled = split.unlabelled if settings.objective.needs_unlabelled else ()
    return TrainingData(
        plan.data,
        volumes(split.labelled, labelled=True),
        volumes(unlabelled, labelled=False),
        volumes(chosen, labelled=True),
    )


def in_memory(
    labelled: Sequence[tuple[Any, Any]],
    unlabelled: Sequence[Any] = (),
    validation: Sequence[tuple[Any, Any]] = (),
    *,
    classes: Sequence[str],
    options: DataOptions = DataOptions(),
) -> TrainingData:
    """Volumes from arrays.

    Args:
        labelled: Images ``[x y z]`` (arrays, tensors, or MONAI's ``MetaTensor [1 x y z]``) with their label maps
            ``[x y z]``, whole numbers below C; -1 for voxels that do not count.
        unlabelled: Images.
        validation: Images with label maps that choose the weights.
        classes: Names of the classes, background first.
        options: Patch, scaling and the rest; ``spacing`` resamples images only, so it is refused here.

    Raises:
        InputError: Shapes or labels do not fit, or there is no labelled image.
    """
    if not labelled or options.spacing is not None:
        why = "there is none" if not labelled else "spacing is for files"
        raise InputError("training in memory needs labelled volumes on one grid", where="labelled", why=why)
    scaling = Preprocessing(options.scaling or "percentile", options.window or Preprocessing.window)

    def prepared(image: Any, label: Any = None) -> tuple[Tensor, Tensor | None]:
        x = scaling.image(volume_of(image)).as_tensor()
        if label is None:
            return x, None
        y = torch.as_tensor(np.asarray(label)).long()
        if y.shape != x.shape[1:]:
            raise InputError(
                "an image and its label map differ in shape", why=f"{tuple(x.shape[1:])}, {tuple(y.shape)}"
            )
        check_labels(y, len(classes), "labels")
        return x, y

    volumes = [[prepared(*pair) for pair in pairs] for pairs in (labelled, validation)]
    shape = np.median([image.shape[1:] for image, _ in volumes[0]], axis=0).tolist()
    patch = options.patch or plan_patch(shape, (1.0, 1.0, 1.0))
    x, y, z = (max(side // 2, 1) for side in patch)
    largest = options.largest_component is not False
    plan = DataPlan(
        patch,
        options.stride or (x, y, z),
        scaling,
        options.augment or "none",
        tuple(classes),
        largest_component=largest,
    )
    return TrainingData(plan, volumes[0], [prepared(image) for image in unlabelled], volumes[1])


class Patches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Patches drawn anew for every batch: first those of labelled volumes, then those of unlabelled ones.

    A volume stands for several items, so that one that comes twice in a batch is cut twice.

    Args:
        data: The volumes.
        seed: Seed of the draws; those of an item depend on it, the batch and the item alone.
        labelled: Items of labelled volumes.
        unlabelled: Items of unlabelled volumes.
        unlabelled_crop: ``random``, or ``centre`` as in the official code.
    """

    def __init__(
        self, data: TrainingData, *, seed: int, labelled: int, unlabelled: int, unlabelled_crop: Crop = "random"
    ) -> None:
        self.data, self.seed, self.labelled, self.unlabelled = data, seed, labelled, unlabelled
        self.crop = unlabelled_crop

    def __len__(self) -> int:
        return self.labelled + self.unlabelled

    def at(self, index: int, *, draw: int) -> tuple[Float[Tensor, "1 x y z"], Int[Tensor, "x y z"], Bool[Tensor, ""]]:
        """Patch, labels (all :data:`IGNORED` where there are none), and whether it is labelled."""
        generator = seeded_generator(self.seed, 1, draw, index)
        plan = self.data.plan
        if index < self.labelled:
            image, label = self.data.labelled[index % len(self.data.labelled)]
            if label is None:
                raise InputError("a labelled volume has no label map", where=f"labelled volume {index}")
            image, label = crop(image, label, plan.patch, generator)
            image, label = augment(image, label, plan.augment, generator)
            return image.contiguous(), label.contiguous(), torch.tensor(True)
        image, _ = self.data.unlabelled[(index - self.labelled) % len(self.data.unlabelled)]
        image, _ = crop(image, None, plan.patch, generator if self.crop == "random" else None)
        return image.contiguous(), torch.full(image.shape[1:], IGNORED), torch.tensor(False)


def patches(data: TrainingData, settings: Settings) -> DataLoader[Any]:
    """The loader of a run: ``batch_size`` labelled patches a step, and ``ratio`` unlabelled ones with each.

    An epoch goes through every labelled volume ``repeats`` times; the unlabelled ones run on beside it. Both streams
    divide among processes.

    Raises:
        InputError: The method needs unlabelled volumes and there are none.
    """
    if settings.objective.needs_unlabelled and not len(data.unlabelled):
        raise InputError(f"{settings.objective.method} needs unlabelled volumes", remedy="use --method sup without any")
    seed, size = settings.training.seed, batch_for(settings, data.plan)
    labelled = max(len(data.labelled) * settings.repeats, size)
    unlabelled = 0
    if settings.objective.needs_unlabelled:
        unlabelled = len(data.unlabelled) * -(-size * settings.ratio // len(data.unlabelled))
    items = Patches(
        data,
        seed=seed,
        labelled=labelled,
        unlabelled=unlabelled,
        unlabelled_crop=settings.objective.choices.unlabelled_crop,
    )
    if not unlabelled:
        return batches(items, size, seed=seed, workers=settings.workers)
    order = TwoStreamSampler(
        range(labelled),
        range(labelled, labelled + unlabelled),
        size * (1 + settings.ratio),
        labelled_per_batch=size,
        epoch_of="labelled",
        seed=seed,
    )
    return batches(items, order=order, seed=seed, workers=settings.workers)
