"""The verbs of an index, for every package with embeddings: ``index build|add|delete|info|optimise|search``.

They work on files, so they know nothing of encoders; a package that searches by a text or a picture encodes it first
and calls :func:`contrastive_core.index.open_index` itself.
"""

import dataclasses
import json as json_format
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter

from contrastive_core.cli import Command
from contrastive_core.errors import InputError
from contrastive_core.files import json_text, read_lines, refuse_existing, write_text
from contrastive_core.index import CodeModel, Hit, Model, VectorModel, build_index, open_index
from contrastive_core.index.files import read_items, read_vectors
from contrastive_core.index.interface import Progress
from contrastive_core.tables import print_rows

_HELP = {
    "build": "Build an index of vectors or codes.",
    "add": "Add vectors or codes to an index.",
    "delete": "Delete items from an index.",
    "info": "Show what an index holds and how it is searched.",
    "optimise": "Compact an index and build its approximate search.",
    "search": "Search an index by vectors or codes.",
}


def index_commands(prefix: str = "") -> list[Command]:
    """The verbs of an index, for :meth:`contrastive_core.cli.App.method`.

    Args:
        prefix: Word before each verb: ``index`` below a method that has other verbs, none for a command ``index``.

    Example:
        >>> [command.name for command in index_commands("index")][:2]
        ['index build', 'index add']
    """
    return [Command(f"{prefix} {verb}".strip(), f"{__name__}:{verb}", text) for verb, text in _HELP.items()]


def build(
    vectors: Path,
    items: Path,
    index: str,
    *,
    model: str,
    metric: Literal["cosine", "inner", "hamming"] = "cosine",
    bits: int | None = None,
    features: Path | None = None,
    modality: str = "item",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Build an index of vectors or codes.

    Args:
        vectors: Matrix of floats, or of packed codes as uint8 (.npy).
        items: One item a row: ids (.txt), a table with a column id (.csv), or objects with an id (.jsonl). Whatever
            else stands there is the payload; texts, numbers and booleans can be filtered by.
        index: Folder, http://host:19530#collection of a Milvus server, or NAME.db of Milvus embedded.
        model: Name of what made the vectors, with its version; vectors of another one are refused later.
        metric: How vectors are compared; packed codes by hamming.
        bits: Length of the codes; all bits of their bytes by default.
        features: Floats beside codes, for re-ranking (.npy).
        modality: Of the items that do not name their own.
        overwrite: Replace an index that is there.
        json: Print JSON.
    """
    rows = read_items(vectors, items, features=features, modality=modality, fields={})
    made = _model(model, metric, rows.vectors.shape[1], bits)
    with (
        progress_bar() as progress,
        build_index(index, made, rows, overwrite=overwrite, progress=progress) as built,
    ):
        info = built.info().to_dict()
    _report(info, f"{info['size']:,} items in {index}", json=json)


def add(
    vectors: Path,
    items: Path,
    index: str,
    *,
    model: str,
    features: Path | None = None,
    modality: str = "item",
    json: bool = False,
) -> None:
    """Add vectors or codes to an index, all or none.

    Args:
        vectors: Matrix of floats, or of packed codes as uint8 (.npy).
        items: One item a row: .txt, .csv or .jsonl, as for build.
        index: Folder or URI.
        model: Name of what made the vectors, as given to build.
        features: Floats beside codes, for re-ranking (.npy).
        modality: Of the items that do not name their own.
        json: Print JSON.
    """
    with open_index(index) as opened:
        before = opened.info()
        _check_name(before.model, model, index)
        rows = read_items(vectors, items, features=features, modality=modality, fields=before.fields)
        opened.add(rows)
        info = opened.info().to_dict()
    _report(info, f"{len(rows.ids):,} items added, {info['size']:,} in {index}", json=json)


def delete(
    index: str,
    *,
    id: tuple[str, ...] = (),
    ids: Path | None = None,
    modality: str | None = None,
    json: bool = False,
) -> None:
    """Delete items from an index, all or none.

    Args:
        index: Folder or URI.
        id: What to delete; may be given several times.
        ids: File of ids, one a line.
        modality: Delete only this modality of the ids.
        json: Print JSON.
    """
    names = [*id, *([] if ids is None else read_lines(ids))]
    if not names:
        raise InputError("there is nothing to delete", where="--id, --ids", remedy="name at least one id")
    with open_index(index) as opened:
        count = opened.delete(names, modality=modality)
        info = opened.info().to_dict()
    _report({"deleted": count, **info}, f"{count:,} items deleted, {info['size']:,} left in {index}", json=json)


def info(index: str, *, json: bool = False) -> None:
    """Show what an index holds and how it is searched.

    Args:
        index: Folder or URI.
        json: Print JSON.
    """
    with open_index(index) as opened:
        values = opened.info().to_dict()
    if json:
        print(json_text(values))
        return
    values["approximation"] = values["approximation"] or "none, every search is exact"
    for name, value in values.items():
        shown = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else value
        print(f"{name:<15}{shown}")


def optimise(index: str, *, recall: float = 0.99, json: bool = False) -> None:
    """Compact an index and build its approximate search, whose recall is measured and kept.

    Args:
        index: Folder or URI.
        recall: Share of the true ten nearest that it must return.
        json: Print JSON.
    """
    with progress_bar() as progress, open_index(index) as opened:
        made = opened.optimise(recall=recall, progress=progress)
    text = "every search is exact: the index is small, or nothing quicker reaches that recall"
    if made is not None:
        text = f"{made.method}: recall {made.recall:.3f} of {made.sample} items"
    _report({"approximation": None if made is None else dataclasses.asdict(made)}, text, json=json)


def search(
    index: str,
    queries: Path,
    *,
    model: str,
    k: Annotated[int | None, Parameter(name=["-k", "--k"])] = 10,
    radius: int | None = None,
    modality: str | None = None,
    where: str | None = None,
    features: Path | None = None,
    rerank: int | None = None,
    exact: bool | None = None,
    out: Path | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> None:
    """Search an index by vectors or codes.

    Args:
        index: Folder or URI.
        queries: Matrix of floats, or of packed codes (.npy), one query a row.
        model: Name of what made the queries, as given to build.
        k: Most hits a query.
        radius: Largest Hamming distance of a hit, in bits.
        modality: Return only items of this modality.
        where: Condition on the payload, for instance 'language = "rust" and stars >= 10'.
        features: Features of the queries, for re-ranking codes (.npy).
        rerank: Order so many nearest items by the exact similarity of the stored floats.
        exact: Look at everything, or use what optimise built; by default exact where a scan takes up to some 50 ms.
        out: File for the hits, one JSON object a line.
        json: Print JSON instead of a table.
        overwrite: Replace an existing file.
    """
    if out is not None:
        refuse_existing(out, overwrite)
    asked = np.asarray(read_vectors(queries))
    beside = None if features is None else np.asarray(read_vectors(features))
    with open_index(index) as opened:
        _check_name(opened.info().model, model, index)
        answer = opened.search(
            asked, k=k, radius=radius, modality=modality, where=where, features=beside, rerank=rerank, exact=exact
        )
    hits = [{"query": row, **_hit(hit)} for row, each in enumerate(answer) for hit in each]
    if out is None:
        print_rows(hits, json=json)
        return
    write_text(out, "".join(f"{json_format.dumps(hit, ensure_ascii=False)}\n" for hit in hits))
    print(f"{len(hits):,} hits of {len(answer):,} queries in {out}")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on the terminal for :func:`build_index` and :meth:`VectorIndex.optimise`, with the time that is left."""
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    tasks: dict[str, TaskID] = {}
    with Bar(console=Console(file=sys.stderr), transient=True) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield progress


def _model(name: str, metric: Literal["cosine", "inner", "hamming"], width: int, bits: int | None) -> Model:
    if metric == "hamming":
        return CodeModel(name, name, 8 * width if bits is None else bits)
    if bits is not None:
        raise InputError("a number of bits belongs to codes", where="--bits", remedy="pass --metric hamming as well")
    return VectorModel(name, name, width, metric)


def _check_name(stored: Model, name: str, where: str) -> None:
    if name not in (stored.name, stored.fingerprint):
        raise InputError(
            "the index was made with another model",
            where=where,
            why=f"it holds those of {stored.name}, --model names {name}",
            remedy="encode with the model of the index, or build an index of this one",
        )


def _hit(hit: Hit) -> dict[str, Any]:
    """A hit as a row; numbers that are not there are left out."""
    numbers = {"distance": hit.distance, "score": hit.score}
    return {
        "id": hit.id,
        "modality": hit.modality,
        **{name: value for name, value in numbers.items() if value is not None},
        "payload": hit.payload,
    }


def _report(values: dict[str, Any], text: str, *, json: bool) -> None:
    print(json_text(values) if json else text)
