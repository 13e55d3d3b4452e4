"""What a set of series is once it has been read: checked values, labels as written, names."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class SeriesSet:
    """Series of one set, free of NaN; lengths may differ, channels do not.

    Attributes:
        name: Name of the set.
        x: Series, each ``float32 [channels, time]``.
        y: Class names as written, or ``None`` without labels.
        ids: Name of each series.
        notes: Repairs made while reading.
    """

    name: str
    x: list[np.ndarray]
    y: list[str] | None
    ids: list[str]
    notes: list[str]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.x[0].shape[0])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> "SeriesSet":
        return SeriesSet(self.name, self.x[rows], None if self.y is None else self.y[rows], self.ids[rows], self.notes)

    @property
    def labels(self) -> list[str]:
        """Classes of the series.

        Raises:
            InputError: There are none.
        """
        if self.y is None:
            raise InputError("the series carry no labels", where=self.name, remedy="use a labelled file")
        return self.y


def resize(x: Float[Tensor, "n c t"], length: int) -> Float[Tensor, "n c length"]:
    """Linear interpolation at sample centres (``align_corners=False``)."""
    return x if x.shape[-1] == length else F.interpolate(x, size=length, mode="linear", align_corners=False)


def to_batch(series: SeriesSet, length: int = 512) -> Float[np.ndarray, "n c length"]:
    """All series of a set, each resized to one length by linear interpolation."""
    by_length: dict[int, list[int]] = {}
    for index, each in enumerate(series.x):
        by_length.setdefault(each.shape[1], []).append(index)
    out = np.empty((len(series), series.channels, length), dtype=np.float32)
    for rows in by_length.values():
        out[rows] = resize(torch.from_numpy(np.stack([series.x[row] for row in rows])), length).numpy()
    return out


def class_names(series: SeriesSet) -> list[str]:
    """Classes of a labelled set in sorted order.

    Raises:
        InputError: There are no labels, or fewer than two classes.
    """
    classes = sorted(set(series.labels))
    if len(classes) < 2:
        raise InputError(
            "a classifier needs at least two classes",
            where=series.name,
            why=f"every series is of class {classes[0]}",
            remedy="add series of another class",
        )
    return classes


def encode_labels(labels: Sequence[str], classes: Sequence[str], where: str) -> Int[np.ndarray, " n"]:
    """Class numbers 0..K-1.

    Raises:
        InputError: A label is not among the classes.
    """
    place = {name: index for index, name in enumerate(classes)}
    for index, label in enumerate(labels):
        if label not in place:
            raise InputError(
                "a label is unknown",
                where=where,
                why=f"series {index} has label {label}; known: {', '.join(classes[:10])}",
                remedy="correct the label, or train with series of that class",
            )
    return np.array([place[label] for label in labels])
