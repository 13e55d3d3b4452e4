"""Patches of volumes: cut at random, from the centre or around structures, and augmented by seeded draws."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Augment = Literal["none", "flip", "flip-rotate"]
Crop = Literal["random", "centre"]


def crop(
    image: Float[Tensor, "1 x y z"],
    label: Int[Tensor, "x y z"] | None,
    patch: Sequence[int],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor | Any]:
    """Cut a patch at a random place, or from the centre without a generator; smaller volumes are padded with zeros."""
    image, label = padded(image, patch), None if label is None else padded(label, patch)
    room = [side - p for p, side in zip(patch, image.shape[1:], strict=True)]
    if generator is None:
        starts = [amount // 2 for amount in room]
    else:
        starts = [int(torch.randint(amount + 1, (1,), generator=generator)) for amount in room]
    return _cut(image, label, starts, patch)


def foreground_crop(
    image: Float[Tensor, "1 x y z"], label: Int[Tensor, "x y z"], patch: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Cut the patch around the centre of all structures (the volume's centre if there is none)."""
    image, label = padded(image, patch), padded(label, patch)
    inside = (label > 0).nonzero()
    centre = inside.double().mean(0).tolist() if len(inside) else [side / 2 for side in label.shape]
    starts = [
        min(max(round(middle - side / 2), 0), length - side)
        for middle, side, length in zip(centre, patch, label.shape, strict=True)
    ]
    return _cut(image, label, starts, patch)


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


def padded(volume: Tensor, patch: Sequence[int]) -> Tensor:
    """A volume with zeros on both sides of every axis that is shorter than the patch, the odd one at the end."""
    missing = [max(p - side, 0) for p, side in zip(patch, volume.shape[-3:], strict=True)]
    padding = [n for amount in reversed(missing) for n in (amount // 2, amount - amount // 2)]
    return F.pad(volume, padding) if any(missing) else volume


def _cut(image: Tensor, label: Tensor | None, starts: Sequence[int], patch: Sequence[int]) -> tuple[Tensor, Any]:
    x, y, z = (slice(start, start + side) for start, side in zip(starts, patch, strict=True))
    return image[:, x, y, z], None if label is None else label[x, y, z]
