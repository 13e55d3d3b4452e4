"""Text-attributed graphs as others publish them: PromptGFM, Planetoid, WikiCS, CS-TAG."""

import io
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import read_json
from scipy.sparse import csr_array

from cl_graphtext.graph import TextGraph, build
from cl_graphtext.reading import Rows, class_indices, column, edge_indices, read_csv

_PLANETOID = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
_CHANCE = 1.5
"""Texts belong to their labels if they predict them this much better than chance, and better than shifted ones."""


def import_promptgfm(folder: Path) -> tuple[TextGraph, dict[str, Any]]:
    """The CSV files of PromptGFM: ``data``, ``graph``, ``node_info`` and perhaps ``label_info``.

    The text ids of its CiteSeer are those of the labels plus one. Whether they are is found from the texts themselves:
    a classifier of words is cross-validated with the ids as they are and with one taken off, and the better reading is
    kept.

    Args:
        folder: Folder of the files.

    Returns:
        The graph, and what was found: accuracies of both readings and the shift.

    Raises:
        InputError: A file is missing or damaged, or neither reading joins texts and labels.
    """
    tables = {name: read_csv(_needed(folder, f"{name}.csv")) for name in ("data", "graph", "node_info")}
    extra = folder / "label_info.csv"
    id_name = column(tables["data"], ("paper_id", "node_id", "id"), folder / "data.csv")
    text_id = column(tables["node_info"], ("paper_id", "node_id", "id"), folder / "node_info.csv")
    text_name = column(tables["node_info"], ("abstract", "abs", "text"), folder / "node_info.csv")
    ids = [row[id_name] for row in tables["data"]]
    raw = [row.get("label", "") for row in tables["data"]]
    labels, names, descriptions = class_indices(raw, _label_table(extra, raw), extra)
    info = {row[text_id]: row for row in tables["node_info"]}
    readings = {shift: _joined(info, ids, text_name, shift) for shift in (0, 1)}
    scores = {shift: _agreement(texts, labels) for shift, (_, texts) in readings.items()}
    shift = max(scores, key=lambda each: (scores[each], -each))
    chance = float(np.bincount(labels[labels >= 0]).max() / max(1, (labels >= 0).sum())) if (labels >= 0).any() else 0.0
    if scores[shift] < min(0.99, _CHANCE * chance):
        warnings.warn(
            f"{folder}: texts predict labels with an accuracy of {scores[shift]:.2f}, the largest class alone gives "
            f"{chance:.2f}: are texts and labels joined by the right ids?",
            ContrastiveWarning,
            stacklevel=2,
        )
    if shift:
        warnings.warn(
            f"{folder}: text ids are those of the labels plus one; they were shifted back (accuracy {scores[0]:.2f} "
            f"before, {scores[1]:.2f} after)",
            ContrastiveWarning,
            stacklevel=2,
        )
    titles, texts = readings[shift]
    place = {name: i for i, name in enumerate(ids)}
    graph = build(
        ids=ids,
        texts=texts,
        titles=titles,
        labels=labels,
        classes=names,
        descriptions=descriptions,
        edges=edge_indices(tables["graph"], place, folder / "graph.csv"),
        noun="paper",
        where=folder,
    )
    return graph, {"accuracy of texts as they are": scores[0], "shifted": scores[1], "shift": shift}


def import_planetoid(folder: Path, texts: Path | None = None) -> tuple[TextGraph, dict[str, Any]]:
    """Planetoid's ``ind.NAME.*`` files with its public split.

    They hold words of a bag and no text, and say nothing of which text a node has: raw texts are joined by a file that
    names them by node index. Without it nodes have empty texts and the graph is of use to graph-only methods.

    The files are pickles; an unpickler reads them that builds numbers, lists, dictionaries, numpy arrays and scipy
    matrices, and refuses everything else.

    Args:
        folder: Folder of the files of one data set.
        texts: CSV with ``node_id`` (the index in Planetoid's order) and ``text``, perhaps ``title``.

    Raises:
        InputError: A file is missing, damaged or asks for more, or the texts name other nodes.
    """
    found = sorted(folder.glob("ind.*.graph"))
    if len(found) != 1:
        raise InputError(
            "the folder holds not the files of one data set", where=folder, why=f"{len(found)} files ind.*.graph"
        )
    name = found[0].name.split(".")[1]
    parts = {part: _needed(folder, f"ind.{name}.{part}") for part in _PLANETOID}
    ally, ty, y = (np.asarray(_arrays(parts[part])) for part in ("ally", "ty", "y"))
    links = _arrays(parts["graph"])
    try:
        order = np.array([int(line) for line in parts["test.index"].read_text().split()], np.int64)
        n = max(len(ally) + len(ty), int(order.max()) + 1)
        one_hot = np.zeros((n, ally.shape[1]), ally.dtype)
        one_hot[: len(ally)] = ally
        one_hot[order] = ty  # nodes of CiteSeer that no file describes keep zeros
        pairs = np.array([(a, b) for a, others in links.items() for b in others], np.int64).reshape(-1, 2)
    except (ValueError, AttributeError, IndexError, TypeError) as error:
        raise InputError("the files do not fit together", where=folder, why=str(error)) from error
    labels = np.where(one_hot.any(1), one_hot.argmax(1), -1)
    rows = {} if texts is None else {row["node_id"]: row for row in read_csv(texts) if "node_id" in row}
    if texts is not None and set(rows) - {str(i) for i in range(n)}:
        bad = sorted(set(rows) - {str(i) for i in range(n)})[0]
        raise InputError("a text names a node that is not there", where=texts, why=f"node_id {bad}, {n} nodes")
    graph = build(
        ids=[str(i) for i in range(n)],
        texts=[rows.get(str(i), {}).get("text", "") for i in range(n)],
        titles=[rows.get(str(i), {}).get("title", "") for i in range(n)],
        labels=labels.astype(np.int64),
        classes=[f"class {i}" for i in range(one_hot.shape[1])],
        edges=pairs,
        split={
            "train": np.arange(len(y)),
            "val": np.arange(len(y), min(len(y) + 500, len(ally))),
            "test": np.sort(order),
        },
        noun="paper",
        where=folder,
    )
    return graph, {"data set": name, "nodes with text": len(rows)}


def import_wikics(folder: Path, *, split: int = 0) -> tuple[TextGraph, dict[str, Any]]:
    """WikiCS: ``data.json`` with links, labels and splits, ``metadata.json`` with titles and tokens.

    Args:
        folder: Folder of both files.
        split: Which of its twenty training and validation masks; the test mask is one.

    Raises:
        InputError: A file is missing or does not fit the other.
    """
    data, about = read_json(_needed(folder, "data.json")), read_json(_needed(folder, "metadata.json"))
    try:
        labels = np.array(data["labels"], np.int64)
        pairs = np.array([(a, b) for a, others in enumerate(data["links"]) for b in others], np.int64).reshape(-1, 2)
        nodes = about["nodes"]
        texts = [" ".join(node["tokens"]) if "tokens" in node else str(node.get("text", "")) for node in nodes]
        titles = [str(node.get("title", "")).replace("_", " ") for node in nodes]
        names = about.get("labels") or {}
        classes = [str(names.get(str(i), f"class {i}")) for i in range(int(labels.max()) + 1)]
        parts = {}
        if "train_masks" in data:
            masks = (data["train_masks"][split], data["val_masks"][split], data["test_mask"])
            parts = {p: np.flatnonzero(m) for p, m in zip(("train", "val", "test"), masks, strict=True)}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            "the files are not those of WikiCS",
            where=folder,
            why=f"{type(error).__name__}: {error}",
            remedy="data.json has links and labels, metadata.json nodes with titles and tokens",
        ) from error
    graph = build(
        ids=[str(node.get("id", i)) for i, node in enumerate(nodes)],
        texts=texts,
        titles=titles,
        labels=labels,
        classes=classes,
        edges=pairs,
        split=parts,
        noun="article",
        where=folder,
    )
    return graph, {"splits": len(data.get("train_masks", []))}


def import_cstag(path: Path, *, noun: str = "product") -> tuple[TextGraph, dict[str, Any]]:
    """A CSV of the CS-TAG release: ``text``, ``label``, ``neighbour`` (a list of row numbers), perhaps ``category``.

    Its ``.pt`` file holds the same links as a pickled DGL graph and is not needed.

    Args:
        path: The CSV, or a folder with one CSV.
        noun: What a node is.

    Raises:
        InputError: A column is missing, or a list of neighbours cannot be read.
    """
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise InputError("a CS-TAG graph is one CSV file", where=path, why=f"found {len(files)}")
    rows = read_csv(files[0])
    text = column(rows, ("text", "content"), files[0])
    near = column(rows, ("neighbour", "neighbor", "neighbors"), files[0])
    edges: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        edges += [(number, other) for other in _whole_numbers(row[near], f"{files[0]}, node {number}")]
    raw = [row.get("label", "") for row in rows]
    labels, names, _ = class_indices(raw, [], files[0])
    if "category" in rows[0]:  # names of the numbered classes
        named = {row["label"]: row["category"] for row in rows}
        names = tuple(named.get(name) or name for name in names)
    graph = build(
        ids=[row.get("node_id") or str(i) for i, row in enumerate(rows)],
        texts=[row[text] for row in rows],
        titles=[row.get("title", "") for row in rows],
        labels=labels,
        classes=names,
        edges=np.array(edges, np.int64).reshape(-1, 2),
        noun=noun,
        where=files[0],
    )
    return graph, {"rows": len(rows)}


def _needed(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise InputError("a file of the data set is missing", where=path)
    return path


def _label_table(path: Path, labels: list[str]) -> Rows:
    """``label_info``, if it names the labels the nodes have."""
    if not path.is_file():
        return []
    rows = read_csv(path)
    key = next((name for name in ("label", "label_id", "id") if rows and name in rows[0]), None)
    if key is None or not {label for label in labels if label} <= {row[key] for row in rows}:
        return []
    text = next((name for name in ("description", "label_name", "name", "text") if name in rows[0]), key)
    return [{"label": row[key], "description": row[text]} for row in rows]


def _joined(info: dict[str, dict[str, str]], ids: list[str], text: str, shift: int) -> tuple[list[str], list[str]]:
    found = [info.get(str(int(name) + shift) if name.isdigit() else name, {}) for name in ids]
    return [row.get("title", "") for row in found], [row.get(text, "") for row in found]


def _agreement(texts: list[str], labels: np.ndarray) -> float:
    """Cross-validated accuracy of a classifier of words; 0 where it cannot be measured."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    known = np.flatnonzero(np.array([bool(text) for text in texts]) & (labels >= 0))
    counts = np.bincount(labels[known]) if len(known) else np.zeros(1, int)
    usable = known[counts[labels[known]] >= 3]
    if len(np.unique(labels[usable])) < 2:
        return 0.0
    rng = np.random.default_rng(0)
    usable = np.sort(rng.permutation(usable)[:2000])
    usable = usable[np.bincount(labels[usable])[labels[usable]] >= 3]
    try:
        x = TfidfVectorizer(max_features=5000).fit_transform([texts[i] for i in usable])
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        return float(cross_val_score(LogisticRegression(max_iter=200), x, labels[usable], cv=folds).mean())
    except ValueError:  # no words at all
        return 0.0


def _whole_numbers(text: str, where: str) -> list[int]:
    try:
        value = json.loads(text) if text.strip() else []
        if not isinstance(value, list) or not all(isinstance(each, int) for each in value):
            raise ValueError("no list of whole numbers")
    except ValueError as error:
        raise InputError(
            "a list of neighbours cannot be read", where=where, why=str(error), remedy="write it as [1, 2, 3]"
        ) from error
    return value


_ALLOWED = re.compile(
    r"numpy(\.core\.multiarray|\._core\.multiarray) (_reconstruct|scalar)|numpy (dtype|ndarray)|_codecs encode"
    r"|collections (defaultdict|OrderedDict)|(__builtin__|builtins) (list|dict)"
)
"""What the published files ask for, besides scipy's compressed matrix, which is rebuilt by a class of our own."""


class _Matrix:
    """Stands in for scipy's pickled sparse matrix: its attributes, without its code."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state

    def to_array(self) -> csr_array:
        """The matrix."""
        shape = self.state.get("_shape", self.state.get("_CSR_shape"))
        return csr_array((self.state["data"], self.state["indices"], self.state["indptr"]), shape=shape)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in ("csr_matrix", "csr_array") and module.startswith("scipy.sparse"):
            return _Matrix
        if not _ALLOWED.fullmatch(f"{module} {name}"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which Planetoid does not need")
        return super().find_class(module, name)


def _arrays(file: Path) -> Any:
    try:
        value = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    except Exception as error:  # damaged pickles fail in many ways
        raise InputError(
            "a file of Planetoid is refused",
            where=file,
            why=" ".join(str(error).split()) or type(error).__name__,
            remedy="fetch the file again from its authors",
        ) from error
    return value.to_array() if isinstance(value, _Matrix) else value
