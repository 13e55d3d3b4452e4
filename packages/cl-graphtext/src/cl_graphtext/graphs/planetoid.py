"""Planetoid's pickled files, read without running anything in them."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import read_text, reading
from scipy.sparse import csr_array

from cl_graphtext.graphs.graph import TextGraph, build
from cl_graphtext.graphs.reading import ID, TEXT, TITLE
from cl_graphtext.texts.reading import read_table

_PLANETOID = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


def import_planetoid(folder: Path, texts: Path | None = None) -> tuple[TextGraph, dict[str, Any]]:
    """Planetoid's ``ind.NAME.*`` files with its public split.

    They hold words of a bag and no text, and say nothing of which text a node has: raw texts are joined by a file that
    names them by node index. Without it nodes have empty texts and the graph is of use to graph-only methods.

    The files are pickles; an unpickler reads them that builds numbers, lists, dictionaries, numpy arrays and scipy
    matrices, and refuses everything else.

    Args:
        folder: Folder of the files of one data set.
        texts: Table with ``node_id`` (the index in Planetoid's order) and ``text``, perhaps ``title``.

    Raises:
        InputError: A file is missing, damaged or asks for more, or the texts name other nodes.
    """
    graphs = sorted(folder.glob("ind.*.graph"))
    if len(graphs) != 1:
        raise InputError(
            "the folder holds not the files of one data set", where=folder, why=f"{len(graphs)} files ind.*.graph"
        )
    name = graphs[0].name.split(".")[1]
    parts = {part: folder / f"ind.{name}.{part}" for part in _PLANETOID}
    missing = next((path for path in parts.values() if not path.is_file()), None)
    if missing is not None:
        raise InputError("a file of the data set is missing", where=missing)
    ally, ty, y = (np.asarray(_arrays(parts[part])) for part in ("ally", "ty", "y"))
    links = _arrays(parts["graph"])
    with reading(folder, "the files do not fit together"):
        order = np.array([int(line) for line in read_text(parts["test.index"]).split()], np.int64)
        n = max(len(ally) + len(ty), int(order.max()) + 1)
        if n > 10 * (len(ally) + len(ty)):
            raise ValueError(f"the test index names node {n - 1}, the files describe {len(ally) + len(ty)}")
        one_hot = np.zeros((n, ally.shape[1]), ally.dtype)
        one_hot[: len(ally)] = ally
        one_hot[order] = ty  # nodes of CiteSeer that no file describes keep zeros
        pairs = np.array([(a, b) for a, others in links.items() for b in others], np.int64).reshape(-1, 2)
    rows = _texts(texts, n)
    graph = build(
        ids=[str(i) for i in range(n)],
        texts=[rows.get(str(i), ("", ""))[0] for i in range(n)],
        titles=[rows.get(str(i), ("", ""))[1] for i in range(n)],
        labels=np.where(one_hot.any(1), one_hot.argmax(1), -1).astype(np.int64),
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


def _texts(path: Path | None, n: int) -> dict[str, tuple[str, str]]:
    """Text and title by node index."""
    if path is None:
        return {}
    table = read_table(path)
    ids = table.ids(table.column(ID))
    known = {str(i) for i in range(n)}
    for number, name in enumerate(ids):
        if name not in known:
            raise InputError(
                "a text names a node that is not there", where=table.where(number), why=f"node_id {name}, {n} nodes"
            )
    if len(set(ids)) != len(ids):
        raise InputError("a node has two texts", where=path)
    texts, titles = table.texts(table.column(TEXT)), table.texts(table.find(TITLE))
    return dict(zip(ids, zip(texts, titles, strict=True), strict=True))


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
    with reading(file, "a file of Planetoid is refused", "fetch the file again from its authors"):
        value = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="latin1").load()
        return value.to_array() if isinstance(value, _Matrix) else value
