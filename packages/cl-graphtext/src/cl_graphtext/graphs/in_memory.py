"""Graphs that are already in memory: a ``torch_geometric`` ``Data`` object, or a mapping of the same fields."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from contrastive_core.errors import ContrastiveWarning, InputError
from jaxtyping import Int
from torch_geometric.data import Data

from cl_graphtext.graphs.graph import TextGraph, build
from cl_graphtext.graphs.splits import part_of, parts_by_name
from cl_graphtext.texts.reading import class_indices, id_of

_TEXT = ("text", "texts", "raw_text", "raw_texts")
_TITLE = ("title", "titles")
_ID = ("node_id", "node_ids", "ids")
_READ = frozenset({*_TEXT, *_TITLE, *_ID, "edge_index", "y", "num_nodes", "x"})
_MASKS = ("_mask", "_idx", "_indices")


Graph: TypeAlias = TextGraph | Data | Mapping[str, Any]


def as_graph(data: Graph) -> TextGraph:
    """The graph itself, or one made of what is in memory, see :func:`from_data`."""
    return data if isinstance(data, TextGraph) else from_data(data)


def from_data(data: Data | Mapping[str, Any], *, classes: Sequence[str] | None = None, noun: str = "item") -> TextGraph:
    """Any ``torch_geometric`` graph with texts, or a mapping of the same fields.

    Args:
        data: With ``text`` (or ``raw_texts``), one a node, None where there is none; and if known ``edge_index``
            ``[2 e]``, ``y`` (class numbers, -1 unknown, or names), ``title``, ``node_id``, and masks or indices such as
            ``train_mask`` and ``val_idx``.
        classes: Names of the classes; ``class 0`` and so on, or the names in ``y``, if absent.
        noun: What a node is.

    Raises:
        InputError: There is no text, the fields do not fit together, labels are no classes, several splits stand side
            by side, or an edge leads out of the graph.
    """
    fields: Mapping[str, Any] = data.to_dict() if isinstance(data, Data) else data
    texts = _texts(fields, _TEXT)
    if texts is None:
        raise InputError("the graph has no text", where="data.text", remedy="add a list of strings, one a node")
    n = len(texts)
    if fields.get("num_nodes") is not None and int(fields["num_nodes"]) != n:
        raise InputError(
            "texts and nodes differ in number", where="data.text", why=f"{n} texts, {fields['num_nodes']} nodes"
        )
    ids = next((list(fields[name]) for name in _ID if fields.get(name) is not None), range(n))
    titles = _texts(fields, _TITLE)
    labels, names = _labels(fields.get("y"), n, classes)
    return build(
        ids=[id_of(_plain(name), f"data, node {i}") for i, name in enumerate(ids)],
        texts=texts,
        titles=[""] * n if titles is None else titles,
        labels=labels,
        classes=names,
        edges=_edges(fields.get("edge_index")),
        split=_split(fields, n),
        noun=noun,
        where="data",
    )


def _texts(fields: Mapping[str, Any], names: Sequence[str]) -> list[str] | None:
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        return None
    if isinstance(fields[name], str):
        raise InputError("one text is given for all nodes", where=f"data.{name}", remedy="give a list, one a node")
    texts = [_plain(text) for text in fields[name]]
    for place, text in enumerate(texts):
        if not (text is None or isinstance(text, str) or text != text):
            raise InputError("a text is none", where=f"data.{name}, node {place}", why=f"it is a {type(text).__name__}")
    return [text if isinstance(text, str) else "" for text in texts]


def _labels(y: Any, n: int, classes: Sequence[str] | None) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    if y is None:
        return np.full(n, -1), tuple(classes or ())
    values = _array(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise InputError(
            "labels are one class a node", where="data.y", why=f"shape {values.shape}", remedy="use y.argmax(1)"
        )
    if values.dtype.kind in "OUS":
        texts = ["" if label is None else id_of(label, "data.y") for label in values.tolist()]
        numbers, names, _ = class_indices(texts, None)
        if classes is None:
            return np.array(numbers, np.int64), names
        place = {name: i for i, name in enumerate(classes)}
        unknown = sorted(set(names) - set(place))
        if unknown:
            raise InputError("a label is no class", where="data.y", why=f"got {unknown[0]}")
        return np.array([place.get(label, -1) for label in texts], np.int64), tuple(classes)
    if values.dtype.kind not in "iu":
        raise InputError(
            "labels are no classes",
            where="data.y",
            why=f"they are {values.dtype}",
            remedy="give whole numbers from 0, -1 where unknown, or names",
        )
    count = int(values.max(initial=-1)) + 1
    if count > n:
        raise InputError("labels are no classes", where="data.y", why=f"label {count - 1}, {n} nodes")
    return values.astype(np.int64), tuple(classes) if classes is not None else tuple(f"class {i}" for i in range(count))


def _edges(edge_index: Any) -> Int[np.ndarray, "e 2"]:
    if edge_index is None:
        return np.zeros((0, 2), np.int64)
    ends = _array(edge_index)
    if ends.ndim != 2 or ends.shape[0] != 2 or (ends.size and ends.dtype.kind not in "iu"):
        raise InputError(
            "edges are two rows of whole numbers", where="data.edge_index", why=f"shape {ends.shape} of {ends.dtype}"
        )
    return ends.T.astype(np.int64)


def _split(fields: Mapping[str, Any], n: int) -> dict[str, Int[np.ndarray, " m"]]:
    named = [name for name in fields if name.endswith(_MASKS) and fields[name] is not None]
    others = [name for name in fields if name not in _READ and part_of(name) is None]
    if others:
        warnings.warn(f"data: not read: {', '.join(sorted(others))}", ContrastiveWarning, stacklevel=3)
    parts = {}
    for part, name in parts_by_name([name for name in named if name not in others], "data").items():
        chosen = _array(fields[name])
        if chosen.ndim == 2 and chosen.shape[1] == 1:
            chosen = chosen[:, 0]
        if chosen.ndim != 1 or chosen.dtype.kind not in "biu":
            raise InputError(
                "a split is one column",
                where=f"data.{name}",
                why=f"shape {chosen.shape}",
                remedy=f"choose one of several: data.{name} = data.{name}[:, 0]",
            )
        if name.endswith("_mask"):
            if len(chosen) != n or not np.isin(chosen, (0, 1)).all():
                raise InputError(
                    "a mask says yes or no of every node", where=f"data.{name}", why=f"{len(chosen)} of {n} nodes"
                )
            chosen = np.flatnonzero(chosen)
        parts[part] = chosen.astype(np.int64)
    return parts


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _plain(value: Any) -> Any:
    """Numpy's and torch's scalars as Python's."""
    return value.item() if hasattr(value, "item") else value
