"""Text-attributed graphs as others publish them in tables and JSON: PromptGFM, WikiCS, CS-TAG."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import read_json, reading
from jaxtyping import Int

from cl_graphtext.graphs.graph import TextGraph, build
from cl_graphtext.graphs.reading import ID, TEXT, TITLE, edge_indices
from cl_graphtext.graphs.splits import PARTS
from cl_graphtext.texts.reading import DESCRIPTION, LABEL, Table, class_indices, id_of, read_table

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
    data, links, info = (read_table(_needed(folder, f"{name}.csv")) for name in ("data", "graph", "node_info"))
    ids = data.ids(data.column(ID))
    raw = data.labels(data.find(LABEL))
    numbers, names, descriptions = class_indices(raw, _label_table(folder / "label_info.csv", raw))
    labels = np.array(numbers, np.int64)
    readings = {shift: _joined(info, ids, shift) for shift in (0, 1)}
    scores = {shift: _agreement(texts, labels) for shift, (_, texts) in readings.items()}
    shift = max(scores, key=lambda each: (scores[each], -each))
    _note_agreement(folder, labels, scores, shift)
    titles, texts = readings[shift]
    graph = build(
        ids=ids,
        texts=texts,
        titles=titles,
        labels=labels,
        classes=names,
        descriptions=descriptions,
        edges=edge_indices(links, {name: i for i, name in enumerate(ids)}),
        noun="paper",
        where=folder,
    )
    return graph, {"accuracy of texts as they are": scores[0], "shifted": scores[1], "shift": shift}


def _note_agreement(folder: Path, labels: Int[np.ndarray, " n"], scores: dict[int, float], shift: int) -> None:
    """Say so where texts predict labels no better than chance, and where they were shifted."""
    known = labels[labels >= 0]
    chance = float(np.bincount(known).max() / len(known)) if len(known) else 0.0
    if scores[shift] < min(0.99, _CHANCE * chance):
        _warn(
            f"{folder}: texts predict labels with an accuracy of {scores[shift]:.2f}, the largest class alone gives "
            f"{chance:.2f}: are texts and labels joined by the right ids?"
        )
    if shift:
        _warn(
            f"{folder}: text ids are those of the labels plus one; they were shifted back (accuracy {scores[0]:.2f} "
            f"before, {scores[1]:.2f} after)"
        )


def import_wikics(folder: Path, *, split: int = 0) -> tuple[TextGraph, dict[str, Any]]:
    """WikiCS: ``data.json`` with links, labels and splits, ``metadata.json`` with titles and tokens.

    Args:
        folder: Folder of both files.
        split: Which of its twenty training and validation masks; the test mask is one.

    Raises:
        InputError: A file is missing or does not fit the other.
    """
    data, about = read_json(_needed(folder, "data.json")), read_json(_needed(folder, "metadata.json"))
    with reading(
        folder,
        "the files are not those of WikiCS",
        "data.json has links and labels, metadata.json nodes with titles and tokens",
    ):
        labels = _whole_numbers(data["labels"])
        pairs = [(a, b) for a, others in enumerate(data["links"]) for b in _whole_numbers(others).tolist()]
        nodes = about["nodes"]
        texts = [" ".join(node["tokens"]) if "tokens" in node else _text(node.get("text")) for node in nodes]
        titles = [_text(node.get("title")).replace("_", " ") for node in nodes]
        names = about.get("labels") or {}
        classes = [_text(names.get(str(i), f"class {i}")) for i in range(int(labels.max(initial=-1)) + 1)]
        parts = {}
        if "train_masks" in data:
            masks = (data["train_masks"][split], data["val_masks"][split], data["test_mask"])
            parts = {p: np.flatnonzero(m) for p, m in zip(PARTS, masks, strict=True)}
        ids = [id_of(node.get("id", i), f"metadata.json, node {i}") for i, node in enumerate(nodes)]
    graph = build(
        ids=ids,
        texts=texts,
        titles=titles,
        labels=labels,
        classes=classes,
        edges=np.array(pairs, np.int64).reshape(-1, 2),
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
    table = read_table(files[0])
    near, id_column = table.column(("neighbour", "neighbor", "neighbors")), table.find(("node_id", "id"))
    edges: list[tuple[int, int]] = []
    for number, cell in enumerate(table.texts(near)):
        with reading(table.where(number), "a list of neighbours cannot be read", "write it as [1, 2, 3]"):
            edges += [(number, other) for other in _whole_numbers(json.loads(cell) if cell.strip() else []).tolist()]
    labels, names, _ = class_indices(table.labels(table.find(("label",))), None)
    named = table.find(("category",))
    if named is not None:  # names of the numbered classes
        called = dict(zip(labels, table.texts(named), strict=True))
        names = tuple(called.get(i) or name for i, name in enumerate(names))
    graph = build(
        ids=[str(i) for i in range(len(table))] if id_column is None else table.ids(id_column),
        texts=table.texts(table.column(("text", "content"))),
        titles=table.texts(table.find(TITLE)),
        labels=np.array(labels, np.int64),
        classes=names,
        edges=np.array(edges, np.int64).reshape(-1, 2),
        noun=noun,
        where=files[0],
    )
    return graph, {"rows": len(table)}


def _warn(note: str) -> None:
    warnings.warn(note, ContrastiveWarning, stacklevel=4)


def _needed(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise InputError("a file of the data set is missing", where=path)
    return path


def _label_table(path: Path, labels: list[str]) -> Table | None:
    """``label_info``, if it names the labels the nodes have."""
    if not path.is_file():
        return None
    table = read_table(path)
    key = table.find(("label", "label_id", "id"))
    if key is None or not {label for label in labels if label} <= set(table.texts(key)):
        _warn(f"{path}: not read, as it does not name the labels of the nodes")
        return None
    text = table.find(DESCRIPTION) or key
    rows = [{"label": row[key], "description": row[text]} for row in table.rows]
    return Table(path, ("label", "description"), rows, table.lines)


def _joined(info: Table, ids: list[str], shift: int) -> tuple[list[str], list[str]]:
    """Titles and texts of the nodes, by ids that are shifted."""
    known = info.ids(info.column(ID))
    if len(set(known)) != len(known):
        raise InputError("a node has two texts", where=info.path)
    place = {name: i for i, name in enumerate(known)}
    wanted = [place.get(str(int(name) + shift) if shift and name.isdecimal() else name) for name in ids]
    return tuple(  # type: ignore[return-value]
        ["" if i is None else column[i] for i in wanted]
        for column in (info.texts(info.find(TITLE)), info.texts(info.column(("abstract", "abs", *TEXT))))
    )


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


def _whole_numbers(values: Any) -> Int[np.ndarray, " n"]:
    """A list of whole numbers, and nothing else."""
    if not isinstance(values, list) or not all(isinstance(each, int) and not isinstance(each, bool) for each in values):
        raise ValueError("no list of whole numbers")
    return np.array(values, np.int64)


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is no text"[:200])
    return value or ""
