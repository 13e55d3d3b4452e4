"""From a scanner's grid to the network's and back: orientation, spacing, intensity scale."""

import dataclasses
import math
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from contrastive_core.errors import InputError, require
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import Orientation, ResampleToMatch, Spacing

Scaling = Literal["percentile", "z-score", "ct", "none"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the network sees it.

    Attributes:
        scaling: ``percentile``: the 0.5th to 99.5th percentile to [0, 1], clipped; ``z-score``: mean 0 and standard
            deviation 1 over voxels that are not zero; ``ct``: ``window`` to [0, 1], clipped; ``none``.
        window: Lowest and highest Hounsfield unit of ``ct``.
        spacing: Voxel sides in mm to resample to; the image's own if absent.
    """

    scaling: Scaling = "percentile"
    window: tuple[float, float] = (-125.0, 275.0)
    spacing: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        low, high = self.window
        require(-math.inf < low < high < math.inf, "--window", self.window, "a low and a higher number")
        sides = self.spacing
        require(sides is None or all(0 < side < 1e4 for side in sides), "--spacing", sides, "positive sides in mm")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Rebuild from plain values.

        Raises:
            InputError: A value is of the wrong kind or out of range.
        """
        sides, scaling = values.get("spacing"), values["scaling"]
        if scaling not in get_args(Scaling):
            raise InputError(
                "unknown intensity scale",
                where="--scaling",
                why=f"got {scaling}",
                remedy=f"one of {', '.join(get_args(Scaling))}",
            )
        try:
            low, high = (float(value) for value in values["window"])
            x, y, z = (1.0, 1.0, 1.0) if sides is None else (float(side) for side in sides)
        except (TypeError, ValueError) as error:
            raise InputError(
                "a window is two numbers, a spacing three", where="--window, --spacing", why=str(error)
            ) from error
        return cls(scaling, (low, high), None if sides is None else (x, y, z))

    def image(self, volume: MetaTensor) -> MetaTensor:
        """Bring an image to the network's orientation (RAS), spacing and scale."""
        volume = _reorient(volume, "RAS")
        if self.spacing is not None:
            volume = _meta(Spacing(self.spacing, mode="bilinear", padding_mode="border")(volume))
        return self._scaled(volume)

    def label(self, volume: MetaTensor) -> MetaTensor:
        """Bring a label map to the network's grid."""
        volume = _reorient(volume, "RAS")
        if self.spacing is not None:
            moved = Spacing(self.spacing, mode="nearest", padding_mode="border")(_meta(volume.to(torch.float32)))
            volume = _meta(moved.round().to(torch.int64))
        return volume

    def restore(
        self, values: torch.Tensor, prepared: MetaTensor, original: MetaTensor, *, smooth: bool = False
    ) -> torch.Tensor:
        """Bring a result from the network's grid back to the image's.

        Args:
            values: ``[c x y z]`` on the grid of ``prepared``.
            prepared: Result of :meth:`image`.
            original: The image as it was read.
            smooth: Interpolate linearly instead of taking the nearest voxel.
        """
        volume = MetaTensor(values, affine=prepared.affine)
        if self.spacing is not None:
            target = _reorient(original, "RAS")
            kind = volume.dtype
            moved = ResampleToMatch(mode="bilinear" if smooth else "nearest", padding_mode="border")(
                _meta(volume.to(torch.float32)), target
            )
            volume = _meta(moved if smooth else moved.round().to(kind))
        return _reorient(volume, axis_codes(original)).as_tensor().contiguous()

    def _scaled(self, volume: MetaTensor) -> MetaTensor:
        x = volume.as_tensor()
        if self.scaling == "percentile":
            low, high = (float(value) for value in np.percentile(x.numpy(), (0.5, 99.5)))
            if high <= low:  # nearly everything is one value: the percentiles say nothing
                low, high = float(x.min()), float(x.max())
            x = ((x - low) / (high - low)).clamp(0, 1)
        elif self.scaling == "z-score":
            inside = x[x != 0].double()  # squares of large values overflow in single precision
            x = (x - float(inside.mean())) / max(float(inside.std(correction=0)), 1e-8)
        elif self.scaling == "ct":
            low, high = self.window
            x = ((x - low) / (high - low)).clamp(0, 1)
        return MetaTensor(x.contiguous(), affine=volume.affine)


def axis_codes(volume: MetaTensor) -> str:
    """Directions of the axes, such as ``RAS``."""
    import nibabel as nib

    return "".join(nib.aff2axcodes(np.asarray(volume.affine)))


def _reorient(volume: MetaTensor, codes: str) -> MetaTensor:
    if axis_codes(volume) == codes:
        return volume
    pairs = (("L", "R"), ("P", "A"), ("I", "S"))
    return _meta(Orientation(axcodes=codes, labels=pairs)(volume))


def _meta(volume: torch.Tensor) -> MetaTensor:
    """MONAI's transforms say they return a tensor; of a MetaTensor it is one."""
    return cast(MetaTensor, volume)
