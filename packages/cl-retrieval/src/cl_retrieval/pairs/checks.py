"""What ids, features and labels have to be, whichever file they come from."""

import hashlib
from collections.abc import Sequence

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.index.checks import unusable
from jaxtyping import Bool, Float, UInt8

from cl_retrieval.pairs.arrays import texts_of


def check_shapes(
    ids: Sequence[str], image: np.ndarray, text: np.ndarray, labels: np.ndarray | None, where: object
) -> None:
    """Refuse rows that do not pair.

    Raises:
        InputError: No pairs, different numbers of rows, or different widths.
    """
    n = len(ids)
    if n == 0 or len(image) == 0:
        raise InputError("there are no pairs", where=where, remedy="give at least one image with a text")
    if len(image) != len(text) or len(image) != n:
        raise InputError(
            "images and texts do not pair",
            where=where,
            why=f"{n} ids, {len(image)} images, {len(text)} texts",
            remedy="give one row of each a pair",
        )
    if image.shape[1] != text.shape[1]:
        raise InputError(
            "image and text features have different widths",
            where=where,
            why=f"{image.shape[1]} and {text.shape[1]}",
            remedy="use features of one encoder with a joint space, such as CLIP",
        )
    if labels is not None and len(labels) != n:
        raise InputError("labels do not fit the pairs", where=where, why=f"{len(labels)} rows for {n} pairs")


def check_ids(ids: Sequence[str], where: object) -> None:
    """Refuse ids that occur twice or could name a file outside a folder.

    Raises:
        InputError: Such an id.
    """
    seen: set[str] = set()
    for each in ids:
        if (why := unusable(each)) is not None:
            raise InputError(
                "an id is not usable as a name",
                where=where,
                why=f"id {each!r}: {why}",
                remedy="use relative names without '..' and backslashes",
            )
        if each in seen:
            raise InputError("an id occurs twice", where=where, why=f"id {each!r}", remedy="give every pair its own id")
        seen.add(each)


def check_width(features: Float[np.ndarray, "n d"], dim: int, where: object) -> None:
    """Refuse features of another width than a model's.

    Raises:
        InputError: They are.
    """
    if features.shape[1] != dim:
        raise InputError(
            "the features have another width than the model's",
            where=where,
            why=f"{features.shape[1]} values a row, the model takes {dim}",
            remedy="use features of the encoder the model was trained with",
        )


def one_hot(labels: np.ndarray, where: object = "labels") -> tuple[UInt8[np.ndarray, "n c"], tuple[str, ...]]:
    """Labels as zeros and ones, one column a class.

    Args:
        labels: ``[n]`` or ``[n 1]`` of names or whole numbers, one class each; or ``[n c]`` of zeros and ones.
        where: File they came from, for messages.

    Raises:
        InputError: Columns hold other values than 0 and 1, or a class is neither a name nor a whole number.
    """
    if labels.ndim == 2 and labels.shape[1] > 1:
        if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
            raise InputError(
                "labels are neither zeros and ones nor one class a pair",
                where=where,
                why=f"{labels.dtype} of shape {labels.shape}",
                remedy="give one column a class with 1 where a pair is of it and 0 elsewhere",
            )
        return labels.astype(np.uint8), tuple(str(i) for i in range(labels.shape[1]))
    names = texts_of(labels, "labels", where)
    if "" in names:
        raise InputError("a label is empty", where=where, why=f"that of row {names.index('')}")
    numbers = labels.dtype.kind in "iuf"
    classes = tuple(sorted(set(names), key=int)) if numbers else tuple(sorted(set(names)))
    column = {name: place for place, name in enumerate(classes)}
    out = np.zeros((len(names), len(classes)), np.uint8)
    out[np.arange(len(names)), [column[name] for name in names]] = 1
    return out, classes


def unit_rows(rows: Float[np.ndarray, "n d"], name: str = "features", where: object = None) -> Bool[np.ndarray, " n"]:
    """Which rows have unit length.

    Raises:
        InputError: A row is not finite, or zero.
    """
    finite = np.isfinite(rows).all(1)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    for fine, what in ((finite, "not finite"), (norms > 0, "zero")):
        if not fine.all():
            raise InputError(
                f"{name} features are {what}",
                where=where,
                why=f"for instance row {int(np.argmin(fine))}",
                remedy="leave out the pair, or compute its features again",
            )
    return np.abs(norms - 1) < 1e-2


def digest_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays, their types and shapes."""
    digest = hashlib.sha256()
    for each in arrays:
        digest.update(f"{each.dtype}{each.shape}".encode() + np.ascontiguousarray(each).tobytes())
    return digest.hexdigest()
