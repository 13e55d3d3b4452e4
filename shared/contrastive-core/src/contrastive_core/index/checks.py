"""What an index takes: ids, vectors, queries, models."""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from contrastive_core.errors import InputError
from contrastive_core.index.interface import CodeModel, Items, Model, Search, VectorModel

ID_BYTES = 1024
SHOWN = 5
PART = 8192
"""Vectors checked together."""
SMALLEST, LARGEST = 1e-30, 1e18
"""Lengths of vectors between which single precision holds their products."""

_PLAIN = re.compile(r"[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_-]+)*")
"""Most ids: a million of them are checked in a second."""


def check_model(stored: Model, given: Model, where: object) -> None:
    """Refuse codes or vectors of a model the index was not made with.

    Raises:
        InputError: Length, metric or fingerprint differ; both models are named.
    """
    if dataclasses.replace(stored, name="") != dataclasses.replace(given, name=""):
        raise InputError(
            "the index was made with another model",
            where=where,
            why=f"it holds those of {named(stored)}; these come from {named(given)}",
            remedy="use the model of the index, or build an index with this one",
        )


def check_new_model(model: Model) -> None:
    """Refuse a model no index can be made for.

    Raises:
        InputError: No bits or length, no name or fingerprint, an unknown metric.
    """
    usable = model.bits >= 1 if isinstance(model, CodeModel) else model.dim >= 1
    if isinstance(model, VectorModel) and model.metric not in ("cosine", "inner"):
        usable = False
    if not usable or not model.name or not model.fingerprint:
        raise InputError(
            "a model has a name, a fingerprint, and bits, or a length and a metric (cosine, inner)", why=f"got {model}"
        )


def check_search(
    queries: Shaped[np.ndarray, "..."],
    asked: Search,
    model: Model,
    *,
    stored: int,
    features: Shaped[np.ndarray, "..."] | None,
    where: object,
) -> None:
    """Refuse a search that cannot be answered.

    Args:
        queries: Queries.
        asked: What is asked for.
        model: The model of the index.
        stored: Length of the features the index keeps; 0 for none.
        features: Features of the queries.
        where: The index, for messages.

    Raises:
        InputError: See :meth:`VectorIndex.search`.
    """
    check_vectors(queries, len(queries), model, where)
    k, radius = asked.k, asked.radius
    if isinstance(model, VectorModel) and (radius is not None or features is not None):
        raise InputError(
            "a radius and features belong to an index of codes",
            where=where,
            why=f"it holds float vectors of {named(model)}",
        )
    if k is None and radius is None:
        raise InputError("a search needs a number of hits or a radius", where="-k, --radius")
    if k is not None and k < 1:
        raise InputError("the number of hits is at least 1", where="-k", why=f"got {k}")
    if radius is not None and isinstance(model, CodeModel) and not 0 <= radius <= model.bits:
        raise InputError("a radius lies between 0 and the code length", where="--radius", why=f"got {radius}")
    if radius is not None and asked.exact is False:
        raise InputError("all items within a radius are searched exactly", where="--radius, --no-exact")
    if asked.rerank is not None and asked.rerank < max(k or 1, 1):
        raise InputError("at least k items are re-ranked", where="--rerank", why=f"got {asked.rerank} for k = {k}")
    if isinstance(model, CodeModel):
        _check_rerank(len(queries), asked.rerank, stored, features, where)


def _check_rerank(
    n: int, rerank: int | None, stored: int, features: Shaped[np.ndarray, "..."] | None, where: object
) -> None:
    if (features is None) != (rerank is None):
        raise InputError(
            "re-ranking needs features of the queries and a number of items", where="--rerank", why="one is missing"
        )
    if features is None:
        return
    if stored == 0:
        raise InputError(
            "the index keeps no features to re-rank by", where=where, remedy="build it with features, or do not re-rank"
        )
    if np.shape(features) != (n, stored):
        raise InputError(
            "the features of the queries do not fit the index",
            where=where,
            why=f"expected {(n, stored)}, got {np.shape(features)}",
        )


def check_vectors(vectors: Shaped[np.ndarray, "..."], n: int, model: Model, where: object) -> None:
    """Refuse what cannot be packed codes, or float vectors, of the model.

    Raises:
        InputError: Another type or width, bits set beyond the code length, floats that are not finite, or zero where
            the metric is the cosine.
    """
    codes = isinstance(model, CodeModel)
    width = model.bytes if isinstance(model, CodeModel) else model.dim
    fits = vectors.dtype == np.uint8 if codes else vectors.dtype in (np.float16, np.float32, np.float64)
    if not fits or vectors.shape != (n, width):
        raise InputError(
            f"the {'codes' if codes else 'vectors'} do not fit the index",
            where=where,
            why=f"{n} of {named(model)} are {'uint8' if codes else 'floats'} {(n, width)}, "
            f"got {vectors.dtype} {vectors.shape}",
        )
    for start in range(0, n, PART):
        part = np.asarray(vectors[start : start + PART])
        if isinstance(model, CodeModel):
            _check_spare(part, model, where)
        else:
            _check_floats(part, model, start, where)


def _check_spare(codes: UInt8[np.ndarray, "n w"], model: CodeModel, where: object) -> None:
    spare = 8 * model.bytes - model.bits
    if np.any(codes[:, -1] & np.uint8((1 << spare) - 1)):
        raise InputError(
            "the codes do not fit the index",
            where=where,
            why=f"bits beyond the {model.bits} of {model.name} are set",
            remedy="pack them with contrastive_core.evaluation.pack_codes, from the model of the index",
        )


def _check_floats(vectors: Float[np.ndarray, "n d"], model: VectorModel, start: int, where: object) -> None:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    bad = np.flatnonzero(~((lengths < LARGEST) & ((lengths > SMALLEST) | (model.metric == "inner"))))
    if len(bad):
        raise InputError(
            "vectors are zero, too large or not finite",
            where=where,
            why=f"the one in row {start + bad[0]}",
            remedy="leave the row out, or encode it again",
        )


def stored_vectors(vectors: Shaped[np.ndarray, "n w"], model: Model) -> Shaped[np.ndarray, "n w"]:
    """Vectors as an index keeps them, and queries as they are compared.

    Codes as they are; floats in single precision, at unit length where the metric is the cosine.
    """
    if isinstance(model, CodeModel):
        return vectors
    if model.metric == "inner":
        return vectors.astype(np.float32)
    values = vectors.astype(np.float64)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def feature_length(items: Items, stored: int | None, where: object) -> int:
    """Length of the features of some items, 0 for none.

    Args:
        items: Items.
        stored: What the index keeps; None while that is not yet fixed.
        where: The index, for messages.

    Raises:
        InputError: The index keeps others, or they are not one row an item, finite and not zero.
    """
    length = 0 if items.features is None else int(np.shape(items.features)[-1])
    if stored is not None and length != stored:
        raise InputError(
            "the features do not fit the index",
            where=where,
            why=f"it keeps {_length(stored)} an item; these have {_length(length)}",
        )
    if items.features is not None:
        unit_features(items.features, len(items.ids))
    return length


def unit_features(features: Shaped[np.ndarray, "n d"], n: int) -> Float[np.ndarray, "n d"]:
    """Features as unit vectors.

    Raises:
        InputError: Not one row an item, not finite, or zero.
    """
    values = np.asarray(features, dtype=np.float32)
    if values.ndim != 2 or len(values) != n or values.shape[1] == 0:
        raise InputError("features have one row an item", why=f"expected [{n} d], got {list(values.shape)}")
    lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if len(bad):
        raise InputError("features are zero or not finite", why=f"in row {bad[0]} and {len(bad) - 1} further ones")
    return (values / lengths).astype(np.float32)


def products(stored: Float[np.ndarray, "n d"], query: Float[np.ndarray, " d"]) -> Float[np.ndarray, " n"]:
    """Inner products of stored vectors with a query, in double precision; a row's value does not depend on others."""
    return (stored.astype(np.float64) * query.astype(np.float64)).sum(1)


def no_index(where: object) -> InputError:
    """There is no index at a location."""
    return InputError("there is no index", where=where, remedy="build one with index build, or correct the location")


def index_exists(where: object) -> InputError:
    """A build would replace an index."""
    return InputError("there is an index already", where=where, remedy="add to it, or replace it with --overwrite")


def no_approximation(where: object) -> InputError:
    """An approximate search is asked of an index that has none."""
    return InputError(
        "there is no approximate search", where=where, remedy="build one with index optimise, or search exactly"
    )


def check_recall(recall: float) -> None:
    """Refuse what is no share.

    Raises:
        InputError: The recall is not above 0 and at most 1.
    """
    if not 0 < recall <= 1:
        raise InputError("a recall lies above 0 and is at most 1", where="--recall", why=f"got {recall}")


def check_absent(present: Iterable[tuple[str, str]], where: object) -> None:
    """Refuse to add what is there.

    Raises:
        InputError: Some of the new items are present.
    """
    names = name_items(present)
    if names:
        raise InputError(
            "ids are in the index already", where=where, why=names, remedy="delete them first, or leave them out"
        )


def check_none_missing(ids: Iterable[str], modality: str | None, where: object) -> None:
    """Refuse to delete what is not there.

    Raises:
        InputError: Some ids are missing.
    """
    names = name_items((each, modality or "item") for each in ids)
    if names:
        raise InputError("ids are not in the index", where=where, why=names, remedy="leave them out")


def name_items(items: Iterable[tuple[str, str]]) -> str:
    """The first few of some items, for messages."""
    named = [f"{modality} {short(each)}" for each, modality in items]
    return ", ".join(named[:SHOWN]) + (f" and {len(named) - SHOWN} more" if len(named) > SHOWN else "")


def unusable(name: object) -> str | None:
    """Why an id cannot be used; it may become a file name, so it stays below its folder."""
    if isinstance(name, str) and len(name) <= ID_BYTES and _PLAIN.fullmatch(name):
        return None
    if not isinstance(name, str) or not name:
        return "an id is a text that is not empty"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if size > ID_BYTES:
        return f"it is longer than {ID_BYTES} bytes"
    if name != name.strip() or not name.isprintable():
        return "it begins or ends with a space, or holds control characters"
    if "\\" in name or re.match(r"[A-Za-z]:", name):
        return "it holds a backslash or a drive letter"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "it leaves its folder, or holds an empty part"
    return None


def named(model: Model) -> str:
    """A model, for messages."""
    size = f"{model.bits} bits" if isinstance(model, CodeModel) else f"{model.dim} floats, {model.metric}"
    return f"{model.name} ({size}, fingerprint {model.fingerprint[:12]})"


def _length(features: int) -> str:
    return f"features of length {features}" if features else "no features"


def short(text: object) -> str:
    """Something a user gave, for messages."""
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:76]}...{shown[-1]}"
