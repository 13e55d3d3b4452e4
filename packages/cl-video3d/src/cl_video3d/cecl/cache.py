"""Measurements that are made once: rows by the hash of frames, settings and libraries, in one SQLite file."""

import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError

from cl_video3d.cecl.echo import Measurement

Row = tuple[dict[str, Any], "np.ndarray | None"]


class EchoCache:
    """Measurements on disk. Written by one process, read by its workers.

    A transaction is whole or not there, so a run that was killed continues with what it had stored.

    Args:
        path: The file; made when it is first written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, keys: Sequence[str]) -> dict[str, Row]:
        """Rows of the keys that are there.

        Raises:
            InputError: The file is damaged.
        """
        if not self.path.is_file() or not keys:
            return {}
        found: dict[str, Row] = {}
        with self._connection() as connection:
            for start in range(0, len(keys), 500):
                part = list(keys[start : start + 500])
                marks = ",".join("?" * len(part))
                for key, values, shape, blob in connection.execute(
                    f"SELECT key, row, shape, residual FROM echo WHERE key IN ({marks})", part
                ):
                    residual = None
                    if blob is not None:
                        residual = np.frombuffer(zlib.decompress(blob), np.float16).reshape(json.loads(shape))
                    found[key] = (json.loads(values), residual)
        return found

    def put(self, rows: Mapping[str, Row]) -> None:
        """Store rows, all or none.

        Raises:
            InputError: The disk is full, the folder is read-only, or the file is damaged.
        """
        if not rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = []
        for key, (row, residual) in rows.items():
            shape = None if residual is None else json.dumps(residual.shape)
            blob = None if residual is None else zlib.compress(residual.tobytes(), 1)
            values.append((key, json.dumps(row), shape, blob))
        with self._connection() as connection, connection:
            connection.execute(_TABLE)
            connection.executemany("INSERT OR REPLACE INTO echo VALUES (?, ?, ?, ?)", values)

    def __len__(self) -> int:
        if not self.path.is_file():
            return 0
        with self._connection() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM echo").fetchone()[0])

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = None
        try:
            connection = sqlite3.connect(self.path, timeout=60)
            yield connection
        except sqlite3.OperationalError as error:  # no space, no permission, no table of ours
            raise InputError(
                "the echo cache cannot be used",
                where=self.path,
                why=str(error),
                remedy="free space and permissions there; what was measured before is kept",
            ) from error
        except sqlite3.DatabaseError as error:
            raise InputError(
                "the echo cache is damaged",
                where=self.path,
                why=str(error),
                remedy="remove the file; everything is measured again",
            ) from error
        finally:
            if connection is not None:
                connection.close()


def to_row(found: Measurement) -> dict[str, Any]:
    """A measurement as plain values."""
    return {name: getattr(found, name) for name in found.__dataclass_fields__}


_TABLE = "CREATE TABLE IF NOT EXISTS echo (key TEXT PRIMARY KEY, row TEXT NOT NULL, shape TEXT, residual BLOB)"
