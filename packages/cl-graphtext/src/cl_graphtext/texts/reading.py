"""The one way tables, ids and labels are read here.

Ids and labels are the strings that were written: nothing is stripped, cased or made a number of. A value of another
type is converted by its type or refused by file and row, never by ``str()``; a missing label is unknown, a missing id
refused. Columns go by the names a role is usually called by; a table that has none of them is refused with what it has.
"""

import csv
import dataclasses
import gzip
import tempfile
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, read_csv, read_lines, reading, write_csv

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
"""What a table may be."""

_NO_LABEL = frozenset({"nan", "NaN", "<NA>"})
"""What libraries write for a missing value, and nobody calls a class."""

_PLAIN_BYTES, _MOST_GROWTH = 1 << 28, 200
"""A compressed text that grows beyond both is no table."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of texts.

    Attributes:
        path: The file.
        columns: Names of its columns.
        rows: Cells by column, each the text that stands there, empty where it is missing.
        lines: Where each row ends, for errors: the line of a text file, the row of a parquet file.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[Mapping[str, str]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, names: Sequence[str]) -> str | None:
        """The first of some names that is a column; letter case does not matter."""
        known = {column.casefold(): column for column in reversed(self.columns)}
        return next((known[name] for name in names if name in known), None)

    def column(self, names: Sequence[str]) -> str:
        """The same.

        Raises:
            InputError: None of them is.
        """
        column = self.find(names)
        if column is None:
            raise InputError(
                "a column is missing",
                where=self.path,
                why=f"found {', '.join(self.columns[:12])}",
                remedy=f"name one {' or '.join(names)}, in the first line",
            )
        return column

    def where(self, row: int) -> str:
        """File and line of a row."""
        return f"{self.path}, {'row' if self.path.suffix == '.parquet' else 'line'} {self.lines[row]}"

    def texts(self, column: str | None) -> list[str]:
        """Cells of a column; empty texts where there is none."""
        return [""] * len(self) if column is None else [row[column] for row in self.rows]

    def ids(self, column: str) -> list[str]:
        """Cells of a column as ids, see :func:`check_id`."""
        for number, row in enumerate(self.rows):
            check_id(row[column], self.where(number))
        return [row[column] for row in self.rows]

    def labels(self, column: str | None) -> list[str]:
        """Cells of a column as labels, empty where unknown.

        Raises:
            InputError: A label has spaces around it, or stands for a missing value.
        """
        labels = self.texts(column)
        whole = {label for label in labels if label} - {"-1"}
        for number, label in enumerate(labels):
            if label:
                check_id(label, self.where(number), "a label")
            if label in _NO_LABEL or (label == "-1" and all(each.isdecimal() for each in whole)):
                raise InputError(
                    "a missing label is written as a class",
                    where=self.where(number),
                    why=f"got {label}",
                    remedy="leave the cell empty where the class is unknown",
                )
        return labels


def check_id(value: str, where: object, what: str = "an id") -> str:
    """The one rule for what an id or a label may be: a text that is not empty, without spaces around it or line breaks.

    Raises:
        InputError: It is not.
    """
    why = None
    if not value:
        why = "it is empty"
    elif value != value.strip():
        why = f"{value!r} has spaces around it"
    elif any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in value):
        why = f"{value!r} holds control characters, line breaks or half a character"
    if why is not None:
        raise InputError(f"{what} cannot be used", where=where, why=why, remedy="correct it in the file")
    return value


def id_of(value: Any, where: object) -> str:
    """An id from JSON: a text, or a whole number as it is written.

    Raises:
        InputError: It is neither, or breaks the rule of :func:`check_id`.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError("an id is neither a text nor a whole number", where=where, why=f"got {value!r}"[:200])
    return check_id(value, where)


def find_table(folder: Path, name: str) -> Path | None:
    """The one table of a name in a folder, whatever its format and letter case.

    Raises:
        InputError: There are several.
    """
    with reading(folder, "a folder cannot be read"):
        wanted = {f"{name}{suffix}" for suffix in SUFFIXES}
        paths = sorted(entry for entry in folder.iterdir() if entry.name.casefold() in wanted)
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise InputError("a table stands there twice", where=folder, why=f"found {names}", remedy="keep one of them")
    return paths[0] if paths else None


def read_table(path: Path) -> Table:
    """A table in CSV or TSV (UTF-8, also compressed by gzip) or parquet.

    Raises:
        InputError: It cannot be read, has a repeated column, a row of another length, or values that are no texts.
    """
    name = path.name.casefold()
    if not name.endswith(SUFFIXES):
        raise InputError("a table has another ending", where=path, remedy=f"use {', '.join(SUFFIXES)}")
    if name.endswith(".parquet"):
        return _read_parquet(path)
    delimiter = "\t" if ".tsv" in name else ","
    if not name.endswith(".gz"):
        return _read_text(path, delimiter)
    with tempfile.TemporaryDirectory() as place:
        plain = Path(place) / "table"
        plain.write_bytes(_unpacked(path))
        try:
            return dataclasses.replace(_read_text(plain, delimiter), path=path)
        except InputError as error:
            where = str(error.where).replace(str(plain), str(path))
            raise InputError(error.what, where=where, why=error.why, remedy=error.remedy) from error


def _read_text(path: Path, delimiter: str) -> Table:
    numbered = list(read_csv(path, delimiter=delimiter))
    if numbered:
        return Table(path, tuple(numbered[0][1]), [row for _, row in numbered], [line for line, _ in numbered])
    with reading(path, "a table cannot be read"):
        header = next(csv.reader([next(line for line in read_lines(path) if line)], delimiter=delimiter, strict=True))
    return Table(path, tuple(column.strip() for column in header), [], [])


def _unpacked(path: Path) -> bytes:
    with reading(path, "a compressed table cannot be read"):
        most = max(_PLAIN_BYTES, _MOST_GROWTH * path.stat().st_size)
        try:
            with gzip.open(path) as file:
                content = file.read(most + 1)
        except zlib.error as error:
            raise InputError("a compressed table is damaged", where=path, why=str(error)) from error
        if len(content) > most:
            raise InputError("a compressed table is larger than a table can be", where=path, why=f"above {most} bytes")
    return content


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet as pq

    with reading(path, "a table cannot be read"):
        file = pq.ParquetFile(path)
        rows, size = file.metadata.num_rows, path.stat().st_size
        if rows > 1000 * size:
            raise InputError("a table is damaged", where=path, why=f"it claims {rows} rows in {size} bytes")
        table = file.read()
        columns = tuple(table.column_names)
        if len(set(columns)) != len(columns):
            raise InputError("a column's name stands twice", where=path, why=", ".join(columns[:12]))
        values = {name: table[name].to_pylist() for name in columns}
    cells = {
        name: [_cell(value, f"{path}, row {row + 1}, column {name}") for row, value in enumerate(column)]
        for name, column in values.items()
    }
    return Table(path, columns, [{name: cells[name][i] for name in columns} for i in range(rows)], range(1, rows + 1))


def _cell(value: Any, where: str) -> str:
    """A value of a typed table as the text that stands for it."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, int):  # also a boolean
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # whole numbers beside missing ones
        return str(int(value))
    if isinstance(value, bytes):
        with reading(where, "a value is no text", "store texts as strings"):
            return value.decode()
    raise InputError(
        "a value is no text",
        where=where,
        why=f"it is a {type(value).__name__}, {value!r}"[:200],
        remedy="store ids, labels and texts as strings or whole numbers",
    )


def write_table(path: Path, columns: Mapping[str, Iterable[str]]) -> None:
    """Write columns of texts as CSV or parquet, atomically."""
    values = {name: list(column) for name, column in columns.items()}
    if path.suffix != ".parquet":
        write_csv(
            path, [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)], list(values)
        )
        return
    import pyarrow
    import pyarrow.parquet as pq

    with atomic_write(path) as temporary:
        pq.write_table(pyarrow.table(values), temporary)


def mended(text: str) -> str:
    """The text with half characters (lone surrogates, as of a cut emoji) replaced, so that it can be written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def class_indices(labels: Sequence[str], table: Table | None) -> tuple[list[int], tuple[str, ...], tuple[str, ...]]:
    """Class of every item, -1 where the label is empty, with names and descriptions of the classes.

    Args:
        labels: Labels as :meth:`Table.labels` gives them.
        table: ``label[,description]``, which orders the classes; without one they are those that occur, sorted,
            numbers by value.

    Raises:
        InputError: The table names a class twice, or not at all.
    """
    if table is None:
        names = sorted(
            {label for label in labels if label}, key=lambda name: (len(name), name) if name.isdecimal() else (0, name)
        )
        texts = [""] * len(names)
    else:
        names = table.ids(table.column(LABEL))
        texts = table.texts(table.find(DESCRIPTION))
    number = {name: i for i, name in enumerate(names)}
    if table is not None and len(number) < len(names):
        twice = next(i for i, name in enumerate(names) if name in names[:i])
        raise InputError("a class is listed twice", where=table.where(twice), why=f"got {names[twice]}")
    unknown = next((label for label in labels if label and label not in number), None)
    if unknown is not None:
        known = ", ".join(names[:12])
        where = None if table is None else table.path
        raise InputError("a label is not in the table of labels", where=where, why=f"got {unknown}, known are {known}")
    described = tuple(text or name.replace("_", " ") for name, text in zip(names, texts, strict=True))
    return [number.get(label, -1) for label in labels], tuple(names), described


LABEL = ("label", "class", "category", "y", "name")
DESCRIPTION = ("description", "label_name", "text", "name")
