"""Files that are either whole or not there, and texts that are read as they were written."""

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from contrastive_core.errors import InputError, reason


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` when the block succeeds.

    If the block fails, or the process is killed, ``path`` keeps its old content (or stays absent).

    Args:
        path: The final file. Missing parent folders are made.

    Raises:
        InputError: The folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The name does not hold that of the file: a name of 255 characters leaves no room for more.
            handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=f".tmp{path.suffix[:32]}", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())  # here, because some writers put a file of their own in its place
            temporary.replace(path)
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn failures to write, such as a full disk, into errors a user can act on; others keep their own type.

    Args:
        path: What is being written.

    Raises:
        InputError: The disk is full, the folder is read-only, a quota is reached, the name is too long.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITE_ERRNOS:
            raise
        raise InputError(
            "a file could not be written",
            where=path,
            why=error.strerror,
            remedy="choose another folder, or free space and permissions there",
        ) from error


@contextmanager
def reading(
    path: object, what: str = "a file cannot be read", remedy: str = "check that it is whole and of the named format"
) -> Iterator[None]:
    """Turn whatever a library raises on a foreign file into one block that names the file.

    Every reader of foreign files works inside this block; bugs of our own belong outside it.

    Args:
        path: The file.
        what: What could not be done.
        remedy: What the user can do.

    Raises:
        InputError: Anything was raised inside, out of memory and too deep nesting included; an ``InputError`` passes as
            it is.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError("a file is missing", where=error.filename or path, remedy="check the path") from error
    except Exception as error:  # truncated and foreign files fail in many ways inside the readers
        why = "it is nested too deeply" if isinstance(error, RecursionError) else reason(error)
        raise InputError(what, where=path, why=why, remedy=remedy) from error


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed inside :func:`atomic_write` left in a folder, and nothing else."""
    for path in folder.glob(f"{_PREFIX}*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file without ``--overwrite``.

    Raises:
        InputError: The file exists, or is a folder.
    """
    if path.is_dir():
        raise InputError("the output is a folder", where=path, remedy="name a file")
    if path.exists() and not overwrite:
        raise InputError("the output exists already", where=path, remedy="name another, or pass --overwrite")


def refuse_filled(folder: Path | None, overwrite: bool) -> None:
    """Refuse to write into a folder that holds files, without ``--overwrite``.

    Args:
        folder: Output folder; nothing is checked if there is none.
        overwrite: Whether old results may be replaced.

    Raises:
        InputError: The folder is a file, or holds something.
    """
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise InputError("the output is not a folder", where=folder, remedy="name another folder")
    if any(folder.iterdir()) and not overwrite:
        raise InputError("the output folder holds files", where=folder, remedy="name another, or pass --overwrite")


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def read_text(path: Path | str) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: The file is missing, or not UTF-8; the line is named.
    """
    path = Path(path)
    with reading(path, "a file cannot be read"):
        content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        why = f"byte {content[error.start]:#04x} in line {line} is not UTF-8"
        raise InputError("a text file is not UTF-8", where=path, why=why, remedy="save it as UTF-8") from error


def read_lines(path: Path | str) -> list[str]:
    r"""Lines of a text file, split at ``\n`` and ``\r\n`` only; other separators of Unicode belong to the text.

    Raises:
        InputError: As :func:`read_text`.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity become ``null``, as JSON has neither."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    """``value`` as indented JSON; NaN and infinity become ``null``, arrays lists, paths texts."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=_plain)


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is missing, unreadable or not JSON.
    """
    text = read_text(path)
    with reading(path, "a file could not be read as JSON", "restore the file, or run again"):
        return json.loads(text)


def read_json_lines(path: Path | str) -> Iterator[tuple[int, Any]]:
    """Values of a JSON-lines file with their line numbers from 1; empty lines are passed over.

    Raises:
        InputError: The file is missing, or a line is not JSON.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            with reading(f"{path}, line {number}", "a line is not JSON", "write one JSON value a line"):
                value = json.loads(line)
            yield number, value


def write_csv(path: Path | str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, atomically.

    Args:
        path: The file.
        rows: Rows by column name; a missing value is an empty cell.
        columns: Columns in their order; those of all rows in order of appearance if absent.
    """
    names = list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(
    path: Path | str, *, required: Sequence[str] = (), delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with their line numbers, every cell the text that stands there.

    Args:
        path: CSV in UTF-8 with a header.
        required: Columns that must be there.
        delimiter: Between cells.

    Yields:
        Line number of the row's end, counted from 1, and its cells by column.

    Raises:
        InputError: The file is missing or no table; a column is missing, unnamed or named twice; a row has more or
            fewer cells than the header; a quote does not close.
    """
    text = read_text(path)
    # As StringIO splits lines: separators of Unicode stay in their cells.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    raw = iter(reader)
    header: list[str] | None = None
    while True:
        with reading(f"{path}, line {reader.line_num + 1}", "a table cannot be read", "quote cells that hold quotes"):
            cells = next(raw, None)
        if cells is None:
            break
        if not cells:
            continue
        if header is None:
            header = [name.strip() for name in cells]
            _check_header(path, header, required)
        elif len(cells) != len(header):
            raise InputError(
                "a row has another number of cells than the header",
                where=f"{path}, line {reader.line_num}",
                why=f"{len(cells)} cells, {len(header)} columns",
                remedy=f"put cells that hold a {delimiter!r} into double quotes",
            )
        else:
            yield reader.line_num, dict(zip(header, cells, strict=True))
    if header is None:
        raise InputError("a table is empty", where=path, remedy="write a header and a line a row")


def _check_header(path: Path | str, header: list[str], required: Sequence[str]) -> None:
    twice = [name for index, name in enumerate(header) if name in header[:index] or not name]
    if twice:
        raise InputError("a column's name is missing or stands twice", where=f"{path}, line 1", why=repr(twice[0]))
    missing = [name for name in required if name not in header]
    if missing:
        raise InputError(
            "a table lacks a column",
            where=path,
            why=f"no {', '.join(missing)} among {', '.join(header[:12])}",
            remedy=f"the header names {', '.join(required)}",
        )


def finite(value: Any) -> Any:
    """The value with NaN and infinity replaced by None, in all lists and mappings."""
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_PREFIX = ".unfinished-"
_TEMPORARY = re.compile(re.escape(_PREFIX) + r"[a-z0-9_]{8}\.tmp(\..*)?")
_WRITE_ERRNOS = frozenset({1, 13, 17, 20, 21, 27, 28, 30, 36, 122})
"""EPERM, EACCES, EEXIST, ENOTDIR, EISDIR, EFBIG, ENOSPC, EROFS, ENAMETOOLONG, EDQUOT."""
