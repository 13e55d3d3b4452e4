"""What an index takes: items, ids, queries, models."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float16, Shaped

from contrastive_core.errors import InputError
from contrastive_core.index.interface import MODALITIES, CodeModel, Items, Modality

ID_BYTES = 1024
PAYLOAD_BYTES = 65_535  # the longest string Milvus keeps
SHOWN = 5

_PLAIN = re.compile(r"[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_-]+)*")
"""Most ids: a million of them are checked in a second."""


def check_model(stored: CodeModel, given: CodeModel, where: object) -> None:
    """Refuse codes of a model the index was not made with.

    Raises:
        InputError: Code length or fingerprint differ; both models are named.
    """
    if stored.bits != given.bits or stored.fingerprint != given.fingerprint:
        raise InputError(
            "the index was made with another model",
            where=where,
            why=f"it holds codes of {_named(stored)}; these come from {_named(given)}",
            remedy="use the model of the index, or build an index with this one",
        )


def check_new_model(model: CodeModel) -> None:
    """Refuse a model no index can be made for.

    Raises:
        InputError: No bits, or no name or fingerprint.
    """
    if model.bits < 1 or not model.name or not model.fingerprint:
        raise InputError("a model of codes has bits, a name and a fingerprint", why=f"got {model}")


def item_table(items: Items, model: CodeModel, features: int | None, where: object) -> pa.Table:
    """Items as a table, checked and sorted by id and modality.

    Args:
        items: What a user gives.
        model: The model of the index.
        features: Length of its features, 0 for none; None while it is not yet fixed.
        where: The index, for messages.

    Returns:
        Columns ``id``, ``modality`` (place in :data:`MODALITIES`), ``code``, ``payload`` (JSON), and ``features``
        (unit vectors in half precision) where the items have some.

    Raises:
        InputError: See :meth:`CodeIndex.add`.
    """
    n = len(items.ids)
    for unusable in ((each, why) for each in items.ids if (why := _unusable(each))):
        raise InputError(
            "an id cannot be used",
            where=where,
            why=f"{_short(unusable[0])}: {unusable[1]}",
            remedy="ids are relative names such as cats/17.jpg",
        )
    modality = _modalities(items.modality, n)
    repeated = [each for each, count in Counter(zip(items.ids, modality)).items() if count > 1]
    if repeated:
        raise InputError("ids occur twice among the new items", where=where, why=name_items(repeated))
    check_codes(items.codes, n, model, where)
    columns = {
        "id": pa.array(list(items.ids), pa.string()),
        "modality": pa.array([MODALITIES.index(each) for each in modality], pa.uint8()),
        "code": _vectors(items.codes),
        "payload": pa.array(_payloads(items.payloads, items.ids), pa.string()),
    }
    length = 0 if items.features is None else np.shape(items.features)[-1]
    if features is not None and length != features:
        raise InputError(
            "the features do not fit the index",
            where=where,
            why=f"it keeps {_length(features)} an item; these have {_length(length)}",
        )
    if items.features is not None:
        columns["features"] = _vectors(unit_features(items.features, n).astype(np.float16))
    return pa.table(columns).sort_by([("id", "ascending"), ("modality", "ascending")])


def check_search(
    codes: Shaped[np.ndarray, "q w"],
    model: CodeModel,
    *,
    stored: int,
    k: int | None,
    radius: int | None,
    modality: Modality | None,
    features: Shaped[np.ndarray, "q d"] | None,
    rerank: int | None,
    where: object,
) -> None:
    """Refuse a search that cannot be answered.

    Args:
        codes: Queries.
        model: The model of the index.
        stored: Length of the features the index keeps; 0 for none.
        k: See :meth:`CodeIndex.search`, like the others.
        radius: See there.
        modality: See there.
        features: See there.
        rerank: See there.
        where: The index, for messages.

    Raises:
        InputError: See there.
    """
    check_codes(codes, len(codes), model, where)
    if k is None and radius is None:
        raise InputError("a search needs a number of hits or a radius", where="-k, --radius")
    if k is not None and k < 1:
        raise InputError("the number of hits is at least 1", where="-k", why=f"got {k}")
    if radius is not None and not 0 <= radius <= model.bits:
        raise InputError("a radius lies between 0 and the code length", where="--radius", why=f"got {radius}")
    if modality is not None and modality not in MODALITIES:
        raise InputError("a modality is image or text", why=f"got {modality!r}")
    if (features is None) != (rerank is None):
        raise InputError(
            "re-ranking needs features of the queries and a number of items", where="--rerank", why="one is missing"
        )
    if rerank is None or features is None:
        return
    if stored == 0:
        raise InputError(
            "the index keeps no features to re-rank by", where=where, remedy="build it with features, or do not re-rank"
        )
    if rerank < max(k or 1, 1):
        raise InputError("at least k items are re-ranked", where="--rerank", why=f"got {rerank} for k = {k}")
    if np.shape(features) != (len(codes), stored):
        raise InputError(
            "the features of the queries do not fit the index",
            where=where,
            why=f"expected {(len(codes), stored)}, got {np.shape(features)}",
        )


def check_codes(codes: Shaped[np.ndarray, "..."], n: int, model: CodeModel, where: object) -> None:
    """Refuse what cannot be packed codes of the model.

    Raises:
        InputError: Another type or width, or bits set beyond the code length.
    """
    if codes.dtype != np.uint8 or codes.shape != (n, model.bytes):
        raise InputError(
            "the codes do not fit the index",
            where=where,
            why=f"{n} codes of {_named(model)} are uint8 {(n, model.bytes)}, got {codes.dtype} {codes.shape}",
        )
    spare = 8 * model.bytes - model.bits
    if np.any(codes[:, -1] & np.uint8((1 << spare) - 1)):
        raise InputError(
            "the codes do not fit the index",
            where=where,
            why=f"bits beyond the {model.bits} of {model.name} are set",
            remedy="pack them with contrastive_core.evaluation.pack_codes, from the model of the index",
        )


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


def cosines(stored: Float16[np.ndarray, "n d"], query: Float[np.ndarray, " d"]) -> Float[np.ndarray, " n"]:
    """Cosine similarity of stored unit features to a unit query; a row's value does not depend on the others."""
    return (stored.astype(np.float64) * query.astype(np.float64)).sum(1)


def no_index(where: object) -> InputError:
    """There is no index at a location."""
    return InputError("there is no index", where=where, remedy="build one with index build")


def index_exists(where: object) -> InputError:
    """A build would replace an index."""
    return InputError("there is an index already", where=where, remedy="add to it, or replace it with --overwrite")


def check_absent(present: Iterable[tuple[str, Modality]], where: object) -> None:
    """Refuse to add what is there.

    Raises:
        InputError: Some of the new items are present.
    """
    names = name_items(present)
    if names:
        raise InputError(
            "ids are in the index already", where=where, why=names, remedy="delete them first, or leave them out"
        )


def check_none_missing(ids: Iterable[str], modality: Modality | None, where: object) -> None:
    """Refuse to delete what is not there.

    Raises:
        InputError: Some ids are missing.
    """
    names = name_items((each, modality or "item") for each in ids)
    if names:
        raise InputError("ids are not in the index", where=where, why=names, remedy="leave them out")


def name_items(items: Iterable[tuple[str, str]]) -> str:
    """The first few of some items, for messages."""
    named = [f"{modality} {_short(each)}" for each, modality in items]
    return ", ".join(named[:SHOWN]) + (f" and {len(named) - SHOWN} more" if len(named) > SHOWN else "")


def _unusable(name: object) -> str | None:
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


def _modalities(given: Modality | Sequence[Modality], n: int) -> list[Modality]:
    modality: list[Modality] = [given] * n if isinstance(given, str) else list(given)  # type: ignore[list-item]
    if len(modality) != n or not set(modality) <= set(MODALITIES):
        raise InputError(
            "every item is an image or a text",
            why=f"got {len(modality)} modalities for {n} items: {', '.join(map(str, sorted(set(modality))))}",
        )
    return modality


def _payloads(given: Sequence[Mapping[str, Any]] | None, ids: Sequence[str]) -> list[str]:
    if given is None:
        return ["{}"] * len(ids)
    if len(given) != len(ids):
        raise InputError("every item has one payload", why=f"got {len(given)} for {len(ids)} items")
    return [_payload(value, name) for value, name in zip(given, ids, strict=True)]


def _payload(value: Mapping[str, Any], name: str) -> str:
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise InputError("a payload is a mapping that JSON can hold", where=_short(name), why=str(error)) from error
    if size > PAYLOAD_BYTES:
        raise InputError(
            "a payload is too long", where=_short(name), why=f"{size} bytes of JSON, at most {PAYLOAD_BYTES}"
        )
    return text


def _vectors(rows: Shaped[np.ndarray, "n w"]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _named(model: CodeModel) -> str:
    return f"{model.name} ({model.bits} bits, fingerprint {model.fingerprint[:12]})"


def _length(features: int) -> str:
    return f"features of length {features}" if features else "no features"


def _short(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:76]}...{shown[-1]}"
