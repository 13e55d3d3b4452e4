"""Sliding-window prediction whose memory does not grow with the number of classes times the volume.

Windows are visited slab by slab along the first axis; as soon as no later window reaches a slab it is averaged, handed
on and forgotten. Every window passes through the network once, whatever is read out of it.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from contrastive_core.errors import InputError
from jaxtyping import Float
from torch import Tensor

from cl_medical.volumes.patches import padded

Predict = Callable[[Float[Tensor, "b i x y z"]], Float[Tensor, "b m x y z"]]


def window_starts(side: int, patch: int, stride: int) -> list[int]:
    """Where windows begin on one axis; the last ends with the volume.

    Example:
        >>> window_starts(10, 4, 3)
        [0, 3, 6]
        >>> window_starts(11, 4, 3)
        [0, 3, 6, 7]
    """
    last = max(side - patch, 0)
    starts = list(range(0, last + 1, stride))
    return starts if starts[-1] == last else [*starts, last]


def slide(
    volume: Float[Tensor, "i x y z"],
    predict: Predict,
    *,
    patch: Sequence[int],
    stride: Sequence[int],
    batch: int = 1,
) -> Iterator[tuple[int, Float[Tensor, "m s y z"]]]:
    """Average overlapping predictions, yielding finished slabs.

    Args:
        volume: Input; padded with zeros on both sides where it is smaller than the patch, and the result cropped.
        predict: Network on a batch of patches; its output has the patches' sides. Outputs are averaged as they are.
        patch: Sides of the windows.
        stride: Steps between windows, 1 to ``patch``.
        batch: Most windows a call; a slab's windows are divided evenly among its calls.

    Yields:
        First index on the first axis, and the finished part of the result from there on.

    Raises:
        InputError: A stride is not in 1 to ``patch``.
    """
    if any(not 1 <= step <= side for step, side in zip(stride, patch, strict=True)):
        raise InputError(
            "a stride lies between 1 and the patch", where="--stride", why=f"got {tuple(stride)} for {tuple(patch)}"
        )
    sides = tuple(volume.shape[1:])
    before = [max(p - s, 0) // 2 for p, s in zip(patch, sides, strict=True)]
    volume = padded(volume, patch)
    for start, slab in _slabs(volume, predict, tuple(patch), tuple(stride), batch):
        low, high = max(start, before[0]), min(start + slab.shape[1], before[0] + sides[0])
        if low < high:
            inner = slab[
                :, low - start : high - start, before[1] : before[1] + sides[1], before[2] : before[2] + sides[2]
            ]
            yield low - before[0], inner


def _slabs(
    volume: Tensor, predict: Predict, patch: tuple[int, ...], stride: tuple[int, ...], batch: int
) -> Iterator[tuple[int, Tensor]]:
    starts = [window_starts(side, p, s) for side, p, s in zip(volume.shape[1:], patch, stride, strict=True)]
    places = [(y, z) for y in starts[1] for z in starts[2]]
    covered = volume.new_zeros(volume.shape[2:])
    for y, z in places:
        covered[y : y + patch[1], z : z + patch[2]] += 1
    # Even calls: torch convolves a single small window at half the speed of two.
    calls = math.ceil(len(places) / batch)
    cuts = [len(places) * call // calls for call in range(calls + 1)]
    total = volume.new_zeros(0)
    depth = volume.new_zeros(patch[0])
    for index, x in enumerate(starts[0]):
        for first, last in itertools.pairwise(cuts):
            chosen = places[first:last]
            windows = torch.stack([volume[:, x : x + patch[0], y : y + patch[1], z : z + patch[2]] for y, z in chosen])
            outputs = predict(windows)
            if not total.numel():
                total = outputs.new_zeros((outputs.shape[1], patch[0], *volume.shape[2:]))
            for (y, z), output in zip(chosen, outputs, strict=True):
                total[:, :, y : y + patch[1], z : z + patch[2]] += output
        depth += 1
        following = starts[0][index + 1] if index + 1 < len(starts[0]) else x + patch[0]
        done = following - x
        yield x, total[:, :done] / (depth[:done, None, None] * covered)
        if done < patch[0]:
            total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], 1)
            depth = torch.cat([depth[done:], torch.zeros_like(depth[:done])])
