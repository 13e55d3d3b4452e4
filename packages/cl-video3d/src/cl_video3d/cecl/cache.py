"""Measurements that are made once: rows by the hash of frames, settings and libraries, in one SQLite file."""

import dataclasses
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError, reason
from contrastive_core.files import atomic_write

from cl_video3d.cecl.echo import Measurement

Row = tuple[dict[str, Any], "np.ndarray | None"]
_TABLE = "CREATE TABLE IF NOT EXISTS echo (key TEXT PRIMARY KEY, row TEXT NOT NULL, shape TEXT, residual BLOB)"
_FIELDS = tuple(field.name for field in dataclasses.fields(Measurement))


class StoreError(InputError):
    """The folder of results cannot be used, whatever video is measured."""


class EchoCache:
    """Measurements on disk. Written by one process, read by its workers.

    The file is there with its table or not at all, and a transaction is whole or not there, so a run that was killed
    continues with what it had stored.

    Args:
        path: The file; made when it is first written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, keys: Sequence[str]) -> dict[str, Row]:
        """Rows of the keys that are there.

        Raises:
            InputError: The file is damaged, or a row is none of ours.
        """
        rows: dict[str, Row] = {}
        if not self.path.is_file() or not keys:
            return rows
        with self._connection() as connection:
            for start in range(0, len(keys), 500):
                part = list(keys[start : start + 500])
                marks = ",".join("?" * len(part))
                query = f"SELECT key, row, shape, residual FROM echo WHERE key IN ({marks})"
                for key, *values in connection.execute(query, part):
                    rows[key] = self._parsed(key, *values)
        return rows

    def put(self, rows: Mapping[str, Row]) -> None:
        """Store rows, all or none.

        Raises:
            InputError: The disk is full, the folder is read-only, or the file is damaged.
        """
        if not rows:
            return
        if not self.path.is_file():
            with atomic_write(self.path) as temporary, closing(sqlite3.connect(temporary)) as connection:
                connection.execute(_TABLE)
        values = []
        for key, (row, residual) in rows.items():
            shape = None if residual is None else json.dumps(residual.shape)
            blob = None if residual is None else zlib.compress(residual.tobytes(), 1)
            values.append((key, json.dumps(row), shape, blob))
        with self._connection() as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO echo VALUES (?, ?, ?, ?)", values)

    def __len__(self) -> int:
        if not self.path.is_file():
            return 0
        with self._connection() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM echo").fetchone()[0])

    def _parsed(self, key: object, row: str, shape: str | None, blob: bytes | None) -> Row:
        try:
            values = json.loads(row)
            if set(values) != set(_FIELDS) or not all(
                isinstance(v, int | float) or (v is None and name in ("ssim", "vmaf")) for name, v in values.items()
            ):
                raise ValueError("its values are none of a measurement")
            if blob is None:
                return values, None
            return values, np.frombuffer(zlib.decompress(blob), np.float16).reshape(json.loads(str(shape)))
        except (ValueError, TypeError, RecursionError, zlib.error) as error:
            raise self._damaged(f"row {str(key)[:12]}: {reason(error)}") from error

    def _damaged(self, why: str) -> StoreError:
        remedy = "remove the file; everything is measured again"
        return StoreError("the echo cache is damaged", where=self.path, why=why, remedy=remedy)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection:
                if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'echo'").fetchone():
                    connection.execute(_TABLE)  # a file that was emptied
                yield connection
        except sqlite3.OperationalError as error:  # no space, no permission, another table
            raise StoreError(
                "the echo cache cannot be used",
                where=self.path,
                why=str(error),
                remedy="free space and permissions there; what was measured before is kept",
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error
