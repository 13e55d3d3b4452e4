"""The canonical folder of a text-attributed graph: ``nodes``, ``edges``, ``labels`` and a split."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, read_json, write_json

from cl_graphtext.graph import TextGraph, build

_SUFFIXES = (".csv", ".csv.gz", ".parquet")
_ID = ("node_id", "id", "paper_id")
_TEXT = ("text", "abstract", "abs", "description")
_SOURCE = ("src", "source", "paper_id1")
_TARGET = ("dst", "target", "paper_id2")

Rows = list[dict[str, str]]


def read_graph(folder: Path, *, noun: str | None = None) -> TextGraph:
    """Read a TAG folder.

    - ``nodes.csv``, ``.csv.gz`` or ``.parquet``: ``node_id,text[,title][,label]``. ``paper_id`` and ``abstract`` serve
      as well. Text may be missing; an empty label is unknown.
    - ``edges``: ``src,dst``, node ids (``paper_id1,paper_id2`` serve as well).
    - ``labels`` (optional): ``label[,description]``, which also orders the classes.
    - ``splits.json`` (optional): ``{"train": [node ids], "val": [...], "test": [...]}``.
    - ``graph.json`` (optional): ``{"noun": "paper"}``.

    Args:
        folder: The folder.
        noun: What a node is, over what ``graph.json`` says.

    Raises:
        InputError: A file or column is missing, a file is damaged or no UTF-8, an edge names an unknown node.
    """
    if not folder.is_dir():
        raise InputError(
            "the graph folder is missing", where=folder, remedy="check the path; `import` makes such folders"
        )
    nodes, edges = read_table(folder, "nodes"), read_table(folder, "edges")
    classes = read_table(folder, "labels", required=False)
    if not nodes:
        raise InputError("the graph has no nodes", where=folder)
    name, text = column(nodes, _ID, folder / "nodes"), column(nodes, _TEXT, folder / "nodes")
    ids = [row[name] for row in nodes]
    labels, names, descriptions = class_indices([row.get("label") or "" for row in nodes], classes, folder / "labels")
    about = read_json(folder / "graph.json") if (folder / "graph.json").is_file() else {}
    place = {node: i for i, node in enumerate(ids)}
    split = {}
    if (folder / "splits.json").is_file():
        split = _split(read_json(folder / "splits.json"), place, folder / "splits.json")
    paper = name == "paper_id"
    return build(
        ids=ids,
        texts=[row[text] or "" for row in nodes],
        titles=[row.get("title") or "" for row in nodes],
        labels=labels,
        classes=names,
        descriptions=descriptions,
        edges=edge_indices(edges, place, folder / "edges"),
        split=split,
        noun=noun or str(about.get("noun") or ("paper" if paper else "item")),
        where=folder,
    )


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
    if folder.exists() and not folder.is_dir():
        raise InputError("the output is not a folder", where=folder, remedy="name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError("the folder holds files already", where=folder, remedy="name another, or pass --overwrite")
    if overwrite and folder.is_dir():  # files of another format or an old split would be read instead
        for table in ("nodes", "edges", "labels"):
            for suffix in _SUFFIXES:
                (folder / f"{table}{suffix}").unlink(missing_ok=True)
        (folder / "splits.json").unlink(missing_ok=True)
    named = ["" if label < 0 else graph.classes[label] for label in graph.labels]
    _write_table(
        folder / f"nodes.{format}",
        {"node_id": graph.ids, "title": graph.titles, "text": graph.texts, "label": named},
    )
    ends = graph.edges.tolist()
    _write_table(
        folder / f"edges.{format}",
        {"src": [graph.ids[a] for a, _ in ends], "dst": [graph.ids[b] for _, b in ends]},
    )
    _write_table(folder / f"labels.{format}", {"label": graph.classes, "description": graph.descriptions})
    write_json(folder / "graph.json", {"noun": graph.noun})
    if graph.split:
        write_json(folder / "splits.json", {part: [graph.ids[i] for i in nodes] for part, nodes in graph.split.items()})


def extend_graph(graph: TextGraph, folder: Path) -> tuple[TextGraph, np.ndarray]:
    """Add new nodes, and their edges among themselves and to known nodes.

    Args:
        graph: The known graph.
        folder: ``nodes`` and ``edges`` as in :func:`read_graph`; labels are not needed.

    Returns:
        The larger graph, and the indices of the new nodes in it.

    Raises:
        InputError: A new node has the id of a known one, or an edge names a node of neither.
    """
    nodes, edges = read_table(folder, "nodes"), read_table(folder, "edges", required=False)
    if not nodes:
        raise InputError("there are no new nodes", where=folder)
    name, text = column(nodes, _ID, folder / "nodes"), column(nodes, _TEXT, folder / "nodes")
    ids = [row[name] for row in nodes]
    known = graph.index()
    clash = next((node for node in ids if node in known), None)
    if clash is not None:
        raise InputError("a new node has the id of a known one", where=folder / "nodes", why=f"for instance {clash}")
    place = known | {node: len(graph) + i for i, node in enumerate(ids)}
    number = {label: i for i, label in enumerate(graph.classes)}
    labels = [number.get(row.get("label") or "", -1) for row in nodes]
    new = edge_indices(edges, place, folder / "edges") if edges else np.zeros((0, 2), np.int64)
    whole = build(
        ids=[*graph.ids, *ids],
        texts=[*graph.texts, *(row[text] or "" for row in nodes)],
        titles=[*graph.titles, *(row.get("title") or "" for row in nodes)],
        labels=np.concatenate([graph.labels, np.array(labels, np.int64)]),
        classes=graph.classes,
        descriptions=graph.descriptions,
        edges=np.concatenate([graph.edges, new]),
        noun=graph.noun,
        where=folder,
    )
    return whole, np.arange(len(graph), len(whole))


def read_table(folder: Path, name: str, *, required: bool = True) -> Rows:
    """Rows of ``name.csv``, ``name.csv.gz`` or ``name.parquet``, all values as text, missing ones empty.

    Raises:
        InputError: It is missing though required, or cannot be read.
    """
    path = next((folder / f"{name}{suffix}" for suffix in _SUFFIXES if (folder / f"{name}{suffix}").is_file()), None)
    if path is None:
        if not required:
            return []
        raise InputError(
            "a file of the graph is missing", where=folder / f"{name}.csv", remedy="a TAG folder has nodes and edges"
        )
    return read_parquet(path) if path.suffix == ".parquet" else read_csv(path)


def read_csv(path: Path) -> Rows:
    """A CSV file with a header, quoted fields over several lines allowed.

    Raises:
        InputError: It cannot be read, is no UTF-8, has a repeated column or a row of another length.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.name.endswith(".gz") else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            "a text is not UTF-8",
            where=f"{path}, line {line}",
            why=f"byte 0x{error.object[error.start]:02x}",
            remedy="save the file as UTF-8",
        ) from error
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise InputError("a file of the graph cannot be read", where=path, why=str(error)) from error
    csv.field_size_limit(1 << 27)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) != len(header):
            raise InputError("a column occurs twice", where=path, why=", ".join(header))
        rows = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(
                    "a row has another number of cells than the header",
                    where=f"{path}, line {reader.line_num}",
                    why=f"{len(cells)} and {len(header)}",
                    remedy="quote texts that hold commas or line breaks",
                )
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise InputError("a file of the graph cannot be read", where=path, why=str(error)) from error
    return rows


def read_parquet(path: Path) -> Rows:
    """A parquet file, all values as text.

    Raises:
        InputError: It cannot be read.
    """
    import pyarrow
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError("a file of the graph cannot be read", where=path, why=str(error).split("\n")[0]) from error
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return [{name: _cell(values[i]) for name, values in columns.items()} for i in range(table.num_rows)]


def column(rows: Rows, names: Sequence[str], where: object) -> str:
    """The first of some names that the rows have.

    Raises:
        InputError: None of them.
    """
    for name in names:
        if rows and name in rows[0]:
            return name
    raise InputError(
        "a column is missing",
        where=where,
        why=f"found {', '.join(rows[0]) if rows else 'no rows'}",
        remedy=f"name one {' or '.join(names)}",
    )


def class_indices(
    labels: Sequence[str], table: Rows, where: object
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Class of every node (-1 if empty), names of the classes and their descriptions.

    Without a table of labels the classes are those that occur, sorted, numbers by value.
    """
    if table:
        key = column(table, ("label", "name", "class"), where)
        names = [row[key] for row in table]
        texts = [row.get("description") or row[key].replace("_", " ") for row in table]
    else:
        names = sorted(
            {label for label in labels if label}, key=lambda name: (len(name), name) if name.isdigit() else (0, name)
        )
        texts = [name.replace("_", " ") for name in names]
    number = {name: i for i, name in enumerate(names)}
    unknown = next((label for label in labels if label and label not in number), None)
    if unknown is not None:
        raise InputError("a label is not in the table of labels", where=where, why=f"got {unknown}")
    return np.array([number.get(label, -1) for label in labels], np.int64), tuple(names), tuple(texts)


def edge_indices(rows: Rows, place: Mapping[str, int], where: object) -> np.ndarray:
    """Edges by node index.

    Raises:
        InputError: An edge names a node that is not there.
    """
    if not rows:
        return np.zeros((0, 2), np.int64)
    ends = column(rows, _SOURCE, where), column(rows, _TARGET, where)
    out = np.empty((len(rows), 2), np.int64)
    for number, row in enumerate(rows):
        for side, name in enumerate(ends):
            if row[name] not in place:
                raise InputError(
                    "an edge names a node that is not there",
                    where=f"{where}, edge {number + 1}",
                    why=f"{name} {row[name]!r}",
                    remedy="add the node, or remove the edge",
                )
            out[number, side] = place[row[name]]
    return out


def _split(value: Any, place: Mapping[str, int], where: Path) -> dict[str, np.ndarray]:
    if not isinstance(value, dict) or not all(isinstance(nodes, list) for nodes in value.values()):
        raise InputError(
            "the split cannot be read", where=where, remedy='write {"train": [ids], "val": [], "test": []}'
        )
    parts = {}
    for part, nodes in value.items():
        unknown = next((node for node in nodes if str(node) not in place), None)
        if unknown is not None:
            raise InputError("a split names a node that is not there", where=where, why=f"{part}: {unknown}")
        parts[part] = np.array([place[str(node)] for node in nodes], np.int64)
    return parts


def _write_table(path: Path, columns: Mapping[str, Iterable[str]]) -> None:
    with atomic_write(path) as temporary:
        if path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet as pq

            pq.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), temporary)
            return
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def dump_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, atomically."""
    with atomic_write(path) as temporary:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        temporary.write_text(text, encoding="utf-8")
