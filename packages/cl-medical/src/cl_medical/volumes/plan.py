"""The plan of a data set: patch, windows, grid and classes, given or derived from the volumes themselves."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import nibabel as nib
import numpy as np
import torch
from contrastive_core.errors import InputError, require
from jaxtyping import Float, Int
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from cl_medical.volumes.cases import Case, CaseSet, numbered_classes
from cl_medical.volumes.description import FILE
from cl_medical.volumes.grid import Preprocessing, Scaling
from cl_medical.volumes.metrics import IGNORED
from cl_medical.volumes.patches import Augment
from cl_medical.volumes.reading import read_grid, read_image, read_label, read_pair

PATCH_VOXELS = 96**3
"""Most voxels of a derived patch: the published patches have about as many."""

_DEEPEST = 4
_SMALLEST = 4
"""Sides of the feature map at the last scale, at least."""


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """How volumes are read; what is absent comes from the folder's ``dataset.json``, then from the volumes.

    Attributes:
        patch: Sides of the training patches and prediction windows, in voxels (as large as the median volume, at most
            the voxels of 96 96 96, about equally long in mm).
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
        ignore: Value in label files of voxels that do not count.
    """

    patch: tuple[int, int, int]
    stride: tuple[int, int, int]
    preprocessing: Preprocessing
    augment: Augment
    classes: tuple[str, ...]
    merge_labels: bool = False
    largest_component: bool = True
    ignore: int | None = None

    @classmethod
    def resolve(cls, options: DataOptions, data: CaseSet, divisor: int | None = None) -> "DataPlan":
        """Fill in what the options leave open, and check it.

        Args:
            options: From the command line.
            data: The folder; its ``dataset.json`` may recommend values.
            divisor: What the network's patches divide by; absent where the network's depth follows the patch.

        Raises:
            InputError: A value is out of range, or the classes are not known.
        """
        given = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
        try:
            return cls._resolved({**data.settings, **given}, data, divisor)
        except InputError as error:
            named = {word.strip(", ").lstrip("-").replace("-", "_") for word in (error.where or "").split()}
            if not named & (set(data.settings) - set(given)):
                raise
            where = f"{data.folder / FILE}, settings ({error.where})"
            raise InputError(error.what, where=where, why=error.why, remedy=error.remedy) from error

    @classmethod
    def _resolved(cls, values: Mapping[str, Any], data: CaseSet, divisor: int | None) -> "DataPlan":
        preprocessing = Preprocessing.from_dict(
            {"scaling": "percentile", "window": Preprocessing.window, "spacing": None}
            | {name: values[name] for name in ("scaling", "window", "spacing") if name in values}
        )
        patch = (
            _triple(values["patch"], "--patch")
            if "patch" in values
            else plan_patch(*median_grid(data, preprocessing), divisor)
        )
        _check_patch(patch, divisor)
        stride = _triple(values.get("stride", [max(side // 2, 1) for side in patch]), "--stride")
        if any(not 1 <= step <= side for step, side in zip(stride, patch, strict=True)):
            raise InputError("a stride lies between 1 and the patch", where="--stride", why=f"got {stride} for {patch}")
        augment = values.get("augment", "none")
        if augment not in get_args(Augment) or (augment == "flip-rotate" and patch[0] != patch[1]):
            raise InputError(
                "the augmentation cannot be used",
                where="--augment",
                why=f"got {augment} for patches of {patch}",
                remedy=f"one of {', '.join(get_args(Augment))}; rotation needs equal first and second sides",
            )
        largest = values.get("largest_component", True)
        require(isinstance(largest, bool), "--largest-component", largest, "true or false")
        merge = bool(values["merge_labels"])
        classes = _classes(tuple(values.get("classes") or data.classes or ()), data, merge=merge)
        return cls(patch, stride, preprocessing, augment, classes, merge, largest, data.ignore)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataPlan":
        """Inverse of :meth:`to_dict`.

        Raises:
            InputError: A value is missing or of the wrong kind.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        missing = known - {"ignore"} - set(values)
        if missing:
            raise InputError("the model's description lacks a value", why=min(missing))
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        plan = cls(**(plain | {"preprocessing": Preprocessing.from_dict(plain["preprocessing"])}))
        _triple(plan.patch, "patch"), _triple(plan.stride, "stride")
        return plan

    def read(self, case: Case) -> tuple[MetaTensor, MetaTensor]:
        """Image and label map of a case as they are on disk, ``[1 x y z]``, structures merged if the plan says so.

        Raises:
            InputError: A file cannot be used, there is no label map, or the two do not belong together.
        """
        if case.label is None:
            raise InputError("a case that needs one has no label map", where=case.image)
        x, y = read_pair(case.image, case.label, None if self.merge_labels else len(self.classes), self.ignore)
        return x, MetaTensor(self.merged(y.as_tensor()), affine=y.affine)

    def load(self, case: Case, *, labelled: bool) -> tuple[Float[Tensor, "1 x y z"], Int[Tensor, "x y z"] | None]:
        """A case on the network's grid: image and label map.

        Raises:
            InputError: A file cannot be used.
        """
        if not labelled:
            return self.preprocessing.image(read_image(case.image)).as_tensor(), None
        x, y = self.read(case)
        return self.preprocessing.image(x).as_tensor(), self.preprocessing.label(y).as_tensor()[0]

    def merged(self, label: Tensor) -> Tensor:
        """All structures as one, if the plan says so; voxels that do not count stay so."""
        return torch.where(label > 0, 1, label) if self.merge_labels else label


def plan_patch(shape: Sequence[float], sides: Sequence[float], divisor: int | None = None) -> tuple[int, int, int]:
    """A patch for volumes of a typical size: all of it, or as many mm on every axis as the voxels allow.

    Args:
        shape: Typical sides in voxels.
        sides: Voxel sides in mm.
        divisor: What the patch divides by; by default as deep a network as the smallest side bears.

    Example:
        >>> plan_patch((35, 51, 35), (1.0, 1.0, 1.0)), plan_patch((512, 512, 120), (0.7, 0.7, 2.5))
        ((32, 48, 32), (144, 144, 40))
    """
    low, high = 0.0, max(n * s for n, s in zip(shape, sides, strict=True))
    target = [float(n) for n in shape]
    if math.prod(target) > PATCH_VOXELS:
        for _ in range(50):  # the longest edge in mm whose patch has few enough voxels
            middle = (low + high) / 2
            target = [min(n, middle / s) for n, s in zip(shape, sides, strict=True)]
            low, high = (middle, high) if math.prod(target) <= PATCH_VOXELS else (low, middle)
    step = divisor or 2 ** plan_depth(target)
    x, y, z = (max(round(side / step), 1) * step for side in target)
    return (x, y, z) if (x, y, z) != (step, step, step) else (2 * step, 2 * step, 2 * step)


def plan_depth(patch: Sequence[float]) -> int:
    """Downsamplings a patch bears: each side keeps four voxels at the last scale, and whole sides divide.

    Example:
        >>> plan_depth((96, 96, 96)), plan_depth((32, 48, 32)), plan_depth((16, 12, 16))
        (4, 3, 1)
    """
    return next(
        (
            depth
            for depth in range(_DEEPEST, 1, -1)
            if min(patch) >= _SMALLEST * 2**depth
            and all(side % 2**depth == 0 for side in patch if isinstance(side, int))
        ),
        1,
    )


def median_grid(data: CaseSet, preprocessing: Preprocessing) -> tuple[list[float], list[float]]:
    """Median sides in voxels, and median voxel sides in mm, of a folder's images on the network's grid.

    Raises:
        InputError: An image cannot be read.
    """
    grids = [_network_grid(*read_grid(case.image), preprocessing) for case in data.cases.values()]
    shapes, sides = (np.median([grid[i] for grid in grids], axis=0).tolist() for i in (0, 1))
    return shapes, sides


def _network_grid(
    shape: tuple[int, int, int], affine: np.ndarray, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(nib.orientations.io_orientation(affine)[:, 0])
    voxels, sides = np.array(shape, dtype=float)[order], np.linalg.norm(affine[:3, :3], axis=0)[order]
    if preprocessing.spacing is None:
        return voxels, sides
    return voxels * sides / preprocessing.spacing, np.array(preprocessing.spacing)


def _check_patch(patch: tuple[int, int, int], divisor: int | None) -> None:
    step = divisor or 2
    if any(side < step or side % step for side in patch) or math.prod(patch) == step**3:
        raise InputError(
            "the patch does not fit the network",
            where="--patch",
            why=f"got {patch}; sides are multiples of {step}, at least one of them larger",
            remedy="change --patch, or use fewer --network.downsamplings",
        )
    if max(patch) > 4096:
        raise InputError("the patch is larger than any volume", where="--patch", why=f"got {patch}")


def _triple(value: Any, option: str) -> tuple[int, int, int]:
    whole = isinstance(value, list | tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not whole or len(value) != 3:
        raise InputError("three whole numbers are needed", where=option, why=f"got {value}")
    x, y, z = value
    return x, y, z


def _classes(names: tuple[str, ...], data: CaseSet, *, merge: bool) -> tuple[str, ...]:
    """Names of the classes: given, or those of the values that occur."""
    if not names:
        labels = [case.label for case in data.cases.values() if case.label is not None]
        values = set().union(*(read_label(label).unique().tolist() for label in labels)) - {data.ignore, IGNORED}
        names = numbered_classes(values, data.folder, merge=merge)
    if merge:
        names = (names[0], "structure" if len(names) > 2 else names[-1])
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise InputError("a class has no name, or two have one", where="--classes", why=f"got {', '.join(names)}")
    if not 2 <= len(names) <= 255:
        raise InputError(
            "there is nothing to segment" if len(names) < 2 else "there are more than 255 classes",
            where=data.folder,
            why=f"the classes are {', '.join(names[:3])}",
        )
    return names
