"""Labels and parts of images given by a table beside them."""

import re
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from contrastive_core.errors import InputError
from contrastive_core.files import read_csv

from cl_foundations.images.files import FileSource, same_name
from cl_foundations.images.layout import Layout, as_parts, part_named
from cl_foundations.images.sets import Split

_COLUMNS = {
    "file": ("file", "filename", "filepath", "path", "image", "imagepath", "imagefile", "img", "imageid", "id", "name"),
    "label": ("label", "labels", "class", "classname", "category", "target", "y"),
    "part": ("split", "part", "subset", "set", "partition"),
}


def add_tables(source: FileSource, names: Sequence[str], layout: Layout) -> Layout:
    """The layout with what ``labels.csv`` or ``labels.tsv`` say: a label, a part, or both, for every image.

    A row names an image by its path from the table's folder; where that is unambiguous, its suffix may be missing. A
    label is the text that stands there, without spaces around it.

    Raises:
        InputError: A table lacks its columns, a row names no image, an image is named twice or not at all, a label is
            empty, a part unknown, or the folders say otherwise.
    """
    tables = source.tables()
    if not tables:
        return layout
    places = _places(names)
    labels: list[str | None] = [None] * len(names)
    parts: list[Split | None] = [None] * len(names)
    seen: dict[int, str] = {}
    for table in tables:
        for where, row in _rows(source, table):
            index = _index(row["file"], PurePosixPath(table).parent, places, where)
            if index in seen:
                raise InputError(
                    "an image is named twice", where=where, why=f"{row['file']} was already in {seen[index]}"
                )
            seen[index] = where
            labels[index], parts[index] = _label(row, where), _part(row, where)
    left = [name for index, name in enumerate(names) if index not in seen]
    if left:
        raise InputError(
            "images have no row in the table of labels",
            where=source.path / tables[0],
            why=f"{len(left)} of {len(names)}, for instance {left[0]}",
            remedy="add their rows, or remove the images",
        )
    # One folder around all images is no class.
    folders = layout.classes if len(set(layout.classes)) > 1 else [None] * len(names)
    return Layout(
        _agreed(as_parts(parts), layout.parts, names, source, "part"),
        _agreed(labels, folders, names, source, "class") if any(labels) else layout.classes,
    )


def _rows(source: FileSource, table: str) -> list[tuple[str, dict[str, str]]]:
    """Rows of a table as file, label and part, with where each stands."""
    delimiter = "\t" if table.lower().endswith(".tsv") else ","
    with tempfile.TemporaryDirectory() as folder:  # where an archive is no folder, the table has to become a file
        copy = Path(folder) / PurePosixPath(table).name
        copy.write_bytes(source.read(table))
        try:
            rows = list(read_csv(copy, delimiter=delimiter))
        except InputError as error:
            where = str(error.where).replace(str(copy), str(source.path / table))
            raise InputError(error.what, where=where, why=error.why, remedy=error.remedy) from error
    columns = _columns(list(rows[0][1]) if rows else [], source.path / table)
    return [
        (f"{source.path / table}, line {line}", {role: row[name] for role, name in columns.items()})
        for line, row in rows
    ]


def _columns(header: Sequence[str], where: Path) -> dict[str, str]:
    columns: dict[str, str] = {}
    for role, known in _COLUMNS.items():
        matching = [name for name in header if re.sub(r"[\W_]", "", name).lower() in known]
        if len(matching) > 1:
            raise InputError(
                f"two columns may be the {role}", where=where, why=", ".join(matching), remedy="rename one"
            )
        if matching:
            columns[role] = matching[0]
    if "file" not in columns or len(columns) < 2:
        raise InputError(
            "the table of labels lacks its columns",
            where=where,
            why=f"its header names {', '.join(header[:12]) or 'nothing'}",
            remedy="name the columns file and label, and split if it gives the parts",
        )
    return columns


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """Images by their names, and by their names without suffix."""
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(same_name(name).rpartition(".")[0], []).append(index)
    return places | {same_name(name): [index] for index, name in enumerate(names)}


def _index(cell: str, folder: PurePosixPath, places: dict[str, list[int]], where: str) -> int:
    matching = places.get(same_name((folder / cell.replace("\\", "/")).as_posix()), []) if cell else []
    if len(matching) != 1:
        raise InputError(
            "a row names no image" if not matching else "a row may name several images",
            where=where,
            why=f"got {cell!r}",
            remedy="write the image's path from the table's folder",
        )
    return matching[0]


def _label(row: dict[str, str], where: str) -> str | None:
    if "label" not in row:
        return None
    label = unicodedata.normalize("NFC", row["label"].strip())
    if not label:
        raise InputError("a label is empty", where=where, why=f"of {row['file']}", remedy="write the image's class")
    return label


def _part(row: dict[str, str], where: str) -> Split | None:
    part = part_named(row["part"]) if "part" in row else None
    if "part" in row and part is None:
        raise InputError("an unknown part", where=where, why=f"got {row['part']!r}", remedy="train, val or test")
    return part


def _agreed(
    given: Sequence[str | None], placed: Sequence[str | None], names: Sequence[str], source: FileSource, what: str
) -> list[Any]:
    """What the table says, or the folders where it says nothing.

    Raises:
        InputError: Both say something, and not the same.
    """
    if not any(given) or not any(placed):
        return list(given) if any(given) else list(placed)
    for name, one, other in zip(names, given, placed, strict=True):
        if one != other:
            raise InputError(
                f"table and folders give different {'parts' if what == 'part' else 'classes'}",
                where=source.path / name,
                why=f"the table says {one}, the folder {other}",
                remedy="remove the table, or move the images into one folder",
            )
    return list(given)
