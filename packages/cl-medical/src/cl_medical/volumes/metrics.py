"""Overlap and surface distances of one structure, in voxels and in millimetres."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage

IGNORED = -1
"""Class of voxels that neither losses nor metrics count."""


@dataclasses.dataclass(frozen=True)
class Distances:
    """Surface distances between a prediction and its reference, in one unit.

    Attributes:
        hd95: 95th percentile of both directed distance sets pooled (the published form, medpy's ``hd95``).
        hd95_max: The larger of the two directed 95th percentiles (MONAI's ``HausdorffDistanceMetric``).
        asd_directed: Mean distance from the prediction's surface to the reference's; what the official code calls ASSD.
        assd: Mean over both directed sets together.
    """

    hd95: float
    hd95_max: float
    asd_directed: float
    assd: float


def dice(prediction: Bool[np.ndarray, "x y z"], reference: Bool[np.ndarray, "x y z"]) -> float:
    """``2 |P and G| / (|P| + |G|)``; 1 if both are empty.

    Example:
        >>> a = np.zeros((4, 4, 4), bool); a[:2] = True
        >>> dice(a, ~a), dice(a, a)
        (0.0, 1.0)
    """
    both = prediction.sum() + reference.sum()
    return 1.0 if both == 0 else float(2 * (prediction & reference).sum() / both)


def jaccard(prediction: Bool[np.ndarray, "x y z"], reference: Bool[np.ndarray, "x y z"]) -> float:
    """``|P and G| / |P or G|``; 1 if both are empty."""
    union = (prediction | reference).sum()
    return 1.0 if union == 0 else float((prediction & reference).sum() / union)


def surface_distances(
    prediction: Bool[np.ndarray, "x y z"],
    reference: Bool[np.ndarray, "x y z"],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Distances:
    """Surface distances between two masks.

    Args:
        prediction: Predicted voxels.
        reference: True voxels.
        spacing: Voxel sides, in the unit wanted.

    Returns:
        The distances. If one of the masks is empty, all are the volume's diagonal; if both are, 0.
    """
    if not prediction.any() or not reference.any():
        empty = prediction.any() == reference.any()
        worst = 0.0 if empty else math.dist((0, 0, 0), [n * s for n, s in zip(prediction.shape, spacing, strict=True)])
        return Distances(worst, worst, worst, worst)
    # Outside both structures nothing is measured.
    box = ndimage.find_objects((prediction | reference).astype(np.int8))[0]
    box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in box)
    masks = prediction[box], reference[box]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    forward, backward = (
        ndimage.distance_transform_edt(~there, sampling=tuple(spacing))[here]
        for here, there in (surfaces, surfaces[::-1])
    )
    pooled = np.concatenate([forward, backward])
    return Distances(
        float(np.percentile(pooled, 95)),
        float(max(np.percentile(forward, 95), np.percentile(backward, 95))),
        float(forward.mean()),
        float(pooled.mean()),
    )


def largest_component(labels: Integer[np.ndarray, "x y z"], classes: int) -> Integer[np.ndarray, "x y z"]:
    """Keep the largest piece of every structure (touching corners connect); the rest becomes background."""
    kept = labels.copy()
    for label in range(1, classes):
        pieces, count = ndimage.label(labels == label, structure=np.ones((3, 3, 3)))
        if count > 1:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            kept[(pieces != sizes.argmax()) & (pieces > 0)] = 0
    return kept


def case_metrics(
    prediction: Integer[np.ndarray, "x y z"],
    reference: Integer[np.ndarray, "x y z"],
    classes: Sequence[str],
    spacing: Sequence[float],
) -> list[dict[str, Any]]:
    """All metrics of one case, one row a structure.

    Args:
        prediction: Predicted classes.
        reference: True classes; voxels below 0 do not count, neither here nor there.
        classes: Names, background first.
        spacing: Voxel sides in mm.

    Returns:
        ``class``, ``dice``, ``jaccard``, each distance in ``_vox`` and ``_mm``, and ``empty``: whether prediction or
        reference hold nothing, which makes distances the volume's diagonal.
    """
    counted = reference >= 0
    rows = []
    for label, name in enumerate(classes[1:], start=1):
        p, g = (prediction == label) & counted, reference == label
        row: dict[str, Any] = {"class": name, "dice": dice(p, g), "jaccard": jaccard(p, g)}
        for unit, sides in (("vox", (1.0, 1.0, 1.0)), ("mm", spacing)):
            row |= {f"{key}_{unit}": value for key, value in dataclasses.asdict(surface_distances(p, g, sides)).items()}
        rows.append(row | {"empty": not p.any() or not g.any()})
    return rows


def confusion(
    prediction: Integer[np.ndarray, "x y z"], reference: Integer[np.ndarray, "x y z"], classes: int
) -> Integer[np.ndarray, "c c"]:
    """Voxels by their true class (rows) and their predicted one (columns); references below 0 do not count.

    Example:
        >>> reference = np.array([[[0, 1, 1, -1]]])
        >>> confusion(np.array([[[0, 1, 0, 1]]]), reference, 2).tolist()
        [[1, 0], [1, 1]]
    """
    counted = reference >= 0
    pairs = reference[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of every metric over all rows."""
    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    table: dict[str, Float[np.ndarray, " n"]] = {name: np.array([row[name] for row in rows]) for name in names}
    return {name: {"mean": float(values.mean()), "sd": float(values.std())} for name, values in table.items()}


def summarise_classes(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """:func:`summarise` of each class by itself, so that one that is never found does not hide in the mean."""
    names = dict.fromkeys(row["class"] for row in rows)
    return {name: summarise([row for row in rows if row["class"] == name]) for name in names}
