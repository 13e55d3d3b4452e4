"""Patches for training: labelled and unlabelled volumes, cropped and augmented by seeded draws."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from contrastive_core.training import seeded_generator
from jaxtyping import Float, Int
from monai.data.dataset import CacheDataset
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import Transform
from torch import Tensor
from torch.utils.data import Dataset

from cl_medical.volumes.cases import Case, CaseSet, found_classes
from cl_medical.volumes.grid import Preprocessing, Scaling
from cl_medical.volumes.reading import read_image, read_label, read_pair

Augment = Literal["none", "flip", "flip-rotate"]
Crop = Literal["random", "centre"]


@runtime_checkable
class Volumes(Protocol):
    """Images ``[1 x y z]`` and label maps ``[x y z]`` on the network's grid: a list, or a MONAI data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor | None]: ...


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """How volumes are read; what is absent comes from the folder's ``dataset.json``, then from the default.

    Attributes:
        patch: Sides of the training patches and prediction windows, in voxels (96 96 96).
        stride: Steps of the prediction windows (half the patch).
        scaling: Intensity scale: percentile, z-score, ct or none (percentile).
        window: Lowest and highest Hounsfield unit of scaling ct.
        spacing: Voxel sides in mm everything is resampled to (none: the volumes' own).
        augment: Augmentation of labelled patches besides cropping: none, flip, flip-rotate, which turns patches that
            are as wide as high (none).
        classes: Names of the classes, background first.
        merge_labels: Take all structures as one.
        largest_component: Keep only the largest piece of every structure when predicting (yes).
    """

    patch: tuple[int, int, int] | None = None
    stride: tuple[int, int, int] | None = None
    scaling: Scaling | None = None
    window: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None
    augment: Augment | None = None
    classes: tuple[str, ...] | None = None
    merge_labels: bool = False
    largest_component: bool | None = None


@dataclasses.dataclass(frozen=True)
class DataPlan:
    """:class:`DataOptions` with every value fixed; stored with a model.

    Attributes:
        patch: Sides of patches and windows.
        stride: Steps of the windows.
        preprocessing: Orientation, spacing, scale.
        augment: Augmentation of labelled patches.
        classes: Names, background first.
        merge_labels: Whether all structures count as one.
        largest_component: Whether small pieces are dropped.
    """

    patch: tuple[int, int, int]
    stride: tuple[int, int, int]
    preprocessing: Preprocessing
    augment: Augment
    classes: tuple[str, ...]
    merge_labels: bool
    largest_component: bool

    @classmethod
    def resolve(cls, options: DataOptions, data: CaseSet, divisor: int) -> "DataPlan":
        """Fill in what the options leave open, and check it.

        Args:
            options: From the command line.
            data: The folder; its ``dataset.json`` may recommend values.
            divisor: What the network's patches divide by.

        Raises:
            InputError: A value is out of range, or the classes are not known.
        """
        given = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
        try:
            return cls._resolved({**data.settings, **given}, options, data, divisor)
        except InputError as error:
            named = {word.strip(", ").lstrip("-") for word in (error.where or "").split()}
            if not named & (set(data.settings) - set(given)):
                raise
            where = f"{data.folder / 'dataset.json'}, settings ({error.where})"
            raise InputError(error.what, where=where, why=error.why, remedy=error.remedy) from error

    @classmethod
    def _resolved(cls, values: Mapping[str, Any], options: DataOptions, data: CaseSet, divisor: int) -> "DataPlan":
        patch = _triple(values.get("patch", (96, 96, 96)), "--patch")
        if any(side < divisor or side % divisor for side in patch) or math.prod(patch) == divisor**3:
            raise InputError(
                "the patch does not fit the network",
                where="--patch",
                why=f"got {patch}; sides are multiples of {divisor}, at least one of them larger",
                remedy="change --patch, or use fewer --network.downsamplings",
            )
        stride = _triple(values.get("stride", [max(side // 2, 1) for side in patch]), "--stride")
        if any(not 1 <= step <= side for step, side in zip(stride, patch, strict=True)):
            raise InputError("a stride lies between 1 and the patch", where="--stride", why=f"got {stride} for {patch}")
        preprocessing = Preprocessing.from_dict(
            {
                "scaling": values.get("scaling", "percentile"),
                "window": values.get("window", Preprocessing.window),
                "spacing": values.get("spacing"),
            }
        )
        augment = values.get("augment", "none")
        if augment not in get_args(Augment) or (augment == "flip-rotate" and patch[0] != patch[1]):
            raise InputError(
                "the augmentation cannot be used",
                where="--augment",
                why=f"got {augment} for patches of {patch}",
                remedy=f"one of {', '.join(get_args(Augment))}; rotation needs equal first and second sides",
            )
        classes = options.classes or data.classes or _found_classes(data, merge=options.merge_labels)
        if options.merge_labels:
            classes = (classes[0], "structure" if len(classes) > 2 else classes[-1])
        if len(classes) < 2:
            raise InputError("there is nothing to segment", where=data.folder, why=f"the only class is {classes[0]}")
        return cls(
            patch,
            stride,
            preprocessing,
            augment,
            classes,
            options.merge_labels,
            bool(values.get("largest_component", True)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataPlan":
        """Inverse of :meth:`to_dict`.

        Raises:
            InputError: A value is missing.
        """
        try:
            return cls(
                tuple(values["patch"]),
                tuple(values["stride"]),
                Preprocessing.from_dict(values["preprocessing"]),
                values["augment"],
                tuple(values["classes"]),
                values["merge_labels"],
                values["largest_component"],
            )
        except KeyError as error:
            raise InputError("the model's description lacks a value", why=str(error)) from error

    def read(self, case: Case) -> tuple[MetaTensor, MetaTensor]:
        """Image and label map of a case as they are on disk, ``[1 x y z]``, structures merged if the plan says so.

        Raises:
            InputError: A file cannot be used, or the two do not belong together.
        """
        assert case.label is not None
        x, y = read_pair(case.image, case.label, None if self.merge_labels else len(self.classes))
        return x, MetaTensor(self.merged(y.as_tensor()), affine=y.affine)

    def load(self, case: Case, *, labelled: bool) -> tuple[Tensor, Tensor | None]:
        """A case on the network's grid: image ``[1 x y z]`` and label map ``[x y z]``.

        Raises:
            InputError: A file cannot be used.
        """
        if not labelled or case.label is None:
            return self.preprocessing.image(read_image(case.image)).as_tensor(), None
        x, y = self.read(case)
        return self.preprocessing.image(x).as_tensor(), self.preprocessing.label(y).as_tensor()[0]

    def merged(self, label: Tensor) -> Tensor:
        """All structures as one, if the plan says so."""
        return (label > 0).long() if self.merge_labels else label


class LoadCase(Transform):
    """A case's image and label map as a transform, so that MONAI caches the result."""

    def __init__(self, plan: DataPlan, *, labelled: bool) -> None:
        self.plan, self.labelled = plan, labelled

    def __call__(self, data: Case) -> tuple[Tensor, Tensor | None]:
        """Read and prepare."""
        return self.plan.load(data, labelled=self.labelled)


class CachedVolumes:
    """Prepared volumes of cases, a share of them kept in memory by MONAI's ``CacheDataset``.

    Args:
        cases: The cases.
        plan: How they are read.
        labelled: Whether their labels are read.
        rate: Share kept in memory; the others are read again each time.

    Raises:
        InputError: A case cannot be used.
    """

    def __init__(self, cases: Sequence[Case], plan: DataPlan, *, labelled: bool, rate: float = 1.0) -> None:
        load = LoadCase(plan, labelled=labelled)
        with _own_errors():
            self._data = CacheDataset(list(cases), load, cache_rate=rate, num_workers=1, progress=False)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor | None]:
        with _own_errors():
            image, label = self._data[index]
        return image, label


@contextmanager
def _own_errors() -> Iterator[None]:
    """MONAI wraps what a transform raises; what the user can mend is raised as it was."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None


class PatchPairs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Patches of labelled volumes, each with patches of unlabelled ones (the two streams of a step).

    Item t is drawn from the seed and t alone. Volumes are visited in permutations, so that all are seen equally often.

    Args:
        labelled: Images with label maps.
        unlabelled: Images.
        length: Items.
        plan: Patch and augmentation.
        seed: Seed of the draws.
        ratio: Unlabelled patches an item; 0 for none.
        unlabelled_crop: ``random``, or ``centre`` as in the official code.
    """

    def __init__(
        self,
        labelled: Volumes,
        unlabelled: Volumes,
        length: int,
        plan: DataPlan,
        *,
        seed: int,
        ratio: int = 1,
        unlabelled_crop: Crop = "random",
    ) -> None:
        self.labelled, self.unlabelled, self.length = labelled, unlabelled, length
        self.plan, self.seed, self.ratio, self.crop = plan, seed, ratio, unlabelled_crop

    def __len__(self) -> int:
        return self.length

    def __getitem__(
        self, item: int
    ) -> tuple[Float[Tensor, "1 x y z"], Int[Tensor, "x y z"], Float[Tensor, "u 1 x y z"]]:
        draw = seeded_generator(self.seed, 1, item)
        image, label = self.labelled[self._pick(item, len(self.labelled), 2)]
        assert label is not None
        image, label = crop(image, label, self.plan.patch, draw)
        image, label = augment(image, label, self.plan.augment, draw)
        patches = [image.new_zeros(0, *image.shape)]
        for index in range(self.ratio):
            place = self._pick(item * self.ratio + index, len(self.unlabelled), 3)
            other, _ = self.unlabelled[place]
            patch, _ = crop(other, None, self.plan.patch, draw if self.crop == "random" else None)
            patches.append(patch[None])
        return image.contiguous(), label.contiguous(), torch.cat(patches)

    def _pick(self, place: int, count: int, stream: int) -> int:
        pass_number, index = divmod(place, count)
        return int(torch.randperm(count, generator=seeded_generator(self.seed, stream, pass_number))[index])


def crop(
    image: Float[Tensor, "1 x y z"],
    label: Int[Tensor, "x y z"] | None,
    patch: Sequence[int],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor | Any]:
    """Cut a patch at a random place, or from the centre without a generator; smaller volumes are padded with zeros."""
    missing = [max(p - s, 0) for p, s in zip(patch, image.shape[1:], strict=True)]
    if any(missing):
        padding = [n for amount in reversed(missing) for n in (amount // 2, amount - amount // 2)]
        image = F.pad(image, padding)
        label = None if label is None else F.pad(label, padding)
    room = [s - p for p, s in zip(patch, image.shape[1:], strict=True)]
    if generator is None:
        starts = [amount // 2 for amount in room]
    else:
        starts = [int(torch.randint(amount + 1, (1,), generator=generator)) for amount in room]
    x, y, z = (slice(start, start + side) for start, side in zip(starts, patch, strict=True))
    return image[:, x, y, z], None if label is None else label[x, y, z]


def foreground_crop(
    image: Float[Tensor, "1 x y z"], label: Int[Tensor, "x y z"], patch: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Cut the patch around the centre of all structures (the volume's centre if there is none)."""
    missing = [max(p - s, 0) for p, s in zip(patch, image.shape[1:], strict=True)]
    padding = [n for amount in reversed(missing) for n in (amount // 2, amount - amount // 2)]
    image, label = F.pad(image, padding), F.pad(label, padding)
    inside = (label > 0).nonzero()
    centre = inside.double().mean(0).tolist() if len(inside) else [side / 2 for side in label.shape]
    slices = []
    for middle, side, length in zip(centre, patch, label.shape, strict=True):
        start = min(max(round(middle - side / 2), 0), length - side)
        slices.append(slice(start, start + side))
    x, y, z = slices
    return image[:, x, y, z], label[x, y, z]


def augment(image: Tensor, label: Tensor, kind: Augment, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip each axis with probability one half; ``flip-rotate`` also turns by 90 degrees in the first two axes."""
    if kind == "none":
        return image, label
    axes = [axis for axis in range(3) if torch.rand((), generator=generator) < 0.5]
    image, label = image.flip([axis + 1 for axis in axes]), label.flip(axes)
    if kind == "flip-rotate":
        turns = int(torch.randint(4, (1,), generator=generator))
        image, label = torch.rot90(image, turns, (1, 2)), torch.rot90(label, turns, (0, 1))
    return image, label


def _triple(value: Any, option: str) -> tuple[int, int, int]:
    try:
        x, y, z = (int(side) for side in value)
    except (TypeError, ValueError) as error:
        raise InputError("three whole numbers are needed", where=option, why=f"got {value}") from error
    return x, y, z


def _found_classes(data: CaseSet, *, merge: bool) -> tuple[str, ...]:
    """Names for the values that occur, where the folder does not say."""
    labels = [case.label for case in data.cases.values() if case.label is not None]
    found = set().union(*(read_label(label).unique().tolist() for label in labels))
    return found_classes(found, data.folder, merge=merge)
