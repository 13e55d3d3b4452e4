"""The canonical folder of a text-attributed graph: ``nodes``, ``edges``, ``labels`` and a split.

Every entry of the folder is used, refused or named in a note; how cells become ids, labels and texts is the rule of
:mod:`cl_graphtext.texts.reading`.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import read_json, refuse_filled, write_json, write_text
from jaxtyping import Int

from cl_graphtext.graphs.graph import TextGraph, build
from cl_graphtext.graphs.splits import parts_by_name
from cl_graphtext.texts.reading import (
    DESCRIPTION,
    LABEL,
    Table,
    class_indices,
    find_table,
    id_of,
    mended,
    read_table,
    write_table,
)

ID = ("node_id", "id", "paper_id", "node")
TEXT = ("text", "abstract", "abs", "description", "content")
TITLE = ("title", "name")
SOURCE = ("src", "source", "from", "u", "paper_id1", "source_id", "node1", "citing")
TARGET = ("dst", "target", "to", "v", "paper_id2", "target_id", "node2", "cited")

_NODE_LABEL = tuple(name for name in LABEL if name != "name")
_JSON = ("splits.json", "graph.json")


def read_graph(folder: Path, *, noun: str | None = None) -> TextGraph:
    """Read a TAG folder.

    - ``nodes.csv``, ``.tsv``, ``.csv.gz`` or ``.parquet``: ``node_id,text[,title][,label]``. ``paper_id`` and
      ``abstract`` serve as well. Text may be missing; an empty label is unknown.
    - ``edges``: ``src,dst``, node ids (``source,target`` and ``paper_id1,paper_id2`` serve as well).
    - ``labels`` (optional): ``label[,description]``, which also orders the classes.
    - ``splits.json`` (optional): ``{"train": [node ids], "val": [...], "test": [...]}``.
    - ``graph.json`` (optional): ``{"noun": "paper"}``.

    Args:
        folder: The folder.
        noun: What a node is, over what ``graph.json`` says.

    Raises:
        InputError: A file or column is missing, a file is damaged or no UTF-8, an id is empty or untidy, an edge or a
            split names an unknown node, a part of the split is no part's name.
    """
    nodes, edges = _needed(folder, "nodes"), _needed(folder, "edges")
    labels_path = find_table(folder, "labels")
    classes = None if labels_path is None else read_table(labels_path)
    if not len(nodes):
        raise InputError("the graph has no nodes", where=nodes.path)
    name, text, title, label = nodes.column(ID), nodes.column(TEXT), nodes.find(TITLE), nodes.find(_NODE_LABEL)
    ids = nodes.ids(name)
    labels, names, descriptions = class_indices(nodes.labels(label), classes)
    place = {node: i for i, node in enumerate(ids)}
    links = edge_indices(edges, place)
    _name_unread(folder, nodes, edges, classes, {name, text, title, label})
    return build(
        ids=ids,
        texts=nodes.texts(text),
        titles=nodes.texts(title),
        labels=np.array(labels, np.int64),
        classes=names,
        descriptions=descriptions,
        edges=links,
        split=_read_split(folder / "splits.json", place),
        noun=noun or _noun(folder / "graph.json") or ("paper" if name == "paper_id" else "item"),
        where=folder,
    )


def _needed(folder: Path, name: str) -> Table:
    if not folder.is_dir():
        raise InputError(
            "the graph folder is missing", where=folder, remedy="check the path; `import` makes such folders"
        )
    path = find_table(folder, name)
    if path is None:
        others = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8])
        raise InputError(
            "a file of the graph is missing",
            where=folder / f"{name}.csv",
            why=f"the folder holds {others}" if others else "the folder is empty",
            remedy="a TAG folder has nodes and edges, as .csv, .tsv, .csv.gz or .parquet",
        )
    return read_table(path)


def _name_unread(folder: Path, nodes: Table, edges: Table, classes: Table | None, used: set[str | None]) -> None:
    """Name columns and files that are not looked at."""
    read = [(nodes, used), (edges, {edges.find(SOURCE), edges.find(TARGET)})]
    if classes is not None:
        read.append((classes, {classes.find(LABEL), classes.find(DESCRIPTION)}))
    unread = [f"{table.path.name}: {name}" for table, own in read for name in table.columns if name not in own]
    known = {*_JSON, *(table.path.name for table, _ in read)}
    unread += sorted(e.name for e in folder.iterdir() if e.name not in known and not e.name.startswith("."))
    if unread:
        shown = ", ".join(unread[:8]) + (f" and {len(unread) - 8} more" if len(unread) > 8 else "")
        warnings.warn(f"{folder}: not read: {shown}", ContrastiveWarning, stacklevel=3)


def _noun(path: Path) -> str | None:
    if not path.is_file():
        return None
    about = read_json(path)
    if not isinstance(about, dict) or not isinstance(about.get("noun", ""), str):
        raise InputError("what the graph is of cannot be read", where=path, remedy='write {"noun": "paper"}')
    return about.get("noun") or None


def _read_split(path: Path, place: Mapping[str, int]) -> dict[str, Int[np.ndarray, " m"]]:
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict) or not all(isinstance(nodes, list) for nodes in value.values()):
        raise InputError("the split cannot be read", where=path, remedy='write {"train": [ids], "val": [], "test": []}')
    parts = {}
    for part, name in parts_by_name(value, path).items():
        nodes = [id_of(node, f"{path}, {name}") for node in value[name]]
        unknown = next((node for node in nodes if node not in place), None)
        if unknown is not None:
            raise InputError("a split names a node that is not there", where=path, why=f"{name}: {unknown}")
        parts[part] = np.array([place[node] for node in nodes], np.int64)
    return parts


def edge_indices(table: Table, place: Mapping[str, int]) -> Int[np.ndarray, "e 2"]:
    """Edges by node index.

    Raises:
        InputError: A column is missing, or an edge names a node that is not there.
    """
    ends = table.column(SOURCE), table.column(TARGET)
    out = np.empty((len(table), 2), np.int64)
    for number, row in enumerate(table.rows):
        for side, name in enumerate(ends):
            if row[name] not in place:
                raise InputError(
                    "an edge names a node that is not there",
                    where=table.where(number),
                    why=f"{name} {row[name]!r}",
                    remedy="add the node, or remove the edge",
                )
            out[number, side] = place[row[name]]
    return out


def write_graph(
    graph: TextGraph, folder: Path, *, format: Literal["csv", "parquet"] = "csv", overwrite: bool = False
) -> None:
    """Write a TAG folder that :func:`read_graph` reads back.

    Args:
        graph: The graph.
        folder: Where to; made if missing.
        format: Of the tables.
        overwrite: Replace files that are there.

    Raises:
        InputError: The folder holds files already.
    """
    refuse_filled(folder, overwrite)
    if overwrite and folder.is_dir():  # files of another format or an old split would be read instead
        for path in [find_table(folder, name) for name in ("nodes", "edges", "labels")]:
            if path is not None:
                path.unlink()
        (folder / "splits.json").unlink(missing_ok=True)
    named = ["" if label < 0 else graph.classes[label] for label in graph.labels]
    write_table(
        folder / f"nodes.{format}",
        {"node_id": graph.ids, "title": graph.titles, "text": graph.texts, "label": named},
    )
    ends = graph.edges.tolist()
    write_table(
        folder / f"edges.{format}", {"src": [graph.ids[a] for a, _ in ends], "dst": [graph.ids[b] for _, b in ends]}
    )
    write_table(folder / f"labels.{format}", {"label": graph.classes, "description": graph.descriptions})
    write_json(folder / "graph.json", {"noun": graph.noun})
    if graph.split:
        write_json(folder / "splits.json", {part: [graph.ids[i] for i in nodes] for part, nodes in graph.split.items()})


def extend_graph(graph: TextGraph, folder: Path) -> tuple[TextGraph, Int[np.ndarray, " m"]]:
    """Add new nodes, and their edges among themselves and to known nodes.

    Args:
        graph: The known graph.
        folder: ``nodes`` and perhaps ``edges`` as in :func:`read_graph`; labels are not looked at.

    Returns:
        The larger graph, and the indices of the new nodes in it.

    Raises:
        InputError: A new node has the id of a known one, or an edge names a node of neither.
    """
    nodes = _needed(folder, "nodes")
    if not len(nodes):
        raise InputError("there are no new nodes", where=nodes.path)
    ids, known = nodes.ids(nodes.column(ID)), graph.index()
    clash = next((node for node in ids if node in known), None)
    if clash is not None:
        raise InputError("a new node has the id of a known one", where=nodes.path, why=f"for instance {clash}")
    place = known | {node: len(graph) + i for i, node in enumerate(ids)}
    edges = find_table(folder, "edges")
    new = np.zeros((0, 2), np.int64) if edges is None else edge_indices(read_table(edges), place)
    whole = build(
        ids=[*graph.ids, *ids],
        texts=[*graph.texts, *nodes.texts(nodes.column(TEXT))],
        titles=[*graph.titles, *nodes.texts(nodes.find(TITLE))],
        labels=np.concatenate([graph.labels, np.full(len(ids), -1)]),
        classes=graph.classes,
        descriptions=graph.descriptions,
        edges=np.concatenate([graph.edges, new]),
        noun=graph.noun,
        where=folder,
    )
    return whole, np.arange(len(graph), len(whole))


def dump_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, atomically."""
    write_text(path, mended("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)))
