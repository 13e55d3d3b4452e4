"""``metrics.csv``: what a run logged, one row a step, every metric a column."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from contrastive_core.errors import InputError
from contrastive_core.files import reading, write_csv, writing
from contrastive_core.training.run_folder import is_follower


class MetricsCSV(Logger):
    """Lightning's logger into ``metrics.csv``; steps count from one.

    Args:
        path: The file.
        resume_at: Steps a resumed run has done; later rows of the interrupted run are dropped.
        step: Steps done when something is logged.

    Raises:
        InputError: The file of a resumed run is not one of ours.
    """

    def __init__(self, path: Path, resume_at: int | None, step: Callable[[], int]) -> None:
        super().__init__()
        self._path, self._step = path, step
        self._columns: list[str] = ["step"]
        self._rows: dict[int, dict[str, Any]] = {}
        if resume_at is not None and path.is_file():
            self._read(resume_at)
        if not is_follower():
            self._write()

    def _read(self, resume_at: int) -> None:
        with reading(self._path, "the run's metrics cannot be read", "remove the file, or start anew with --overwrite"):
            with self._path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or ["step"])
                rows = list(reader)
            if "step" not in self._columns:
                raise InputError("the run's metrics are not ours", where=self._path, why="there is no column step")
            # A kill can leave half a line at the end.
            whole = [row for row in rows if (row["step"] or "").isdigit() and None not in row.values()]
            self._rows = {int(row["step"]): row for row in whole if int(row["step"]) <= resume_at}

    @property
    def name(self) -> str:
        """Name shown by Lightning."""
        return "metrics"

    @property
    def version(self) -> str:
        """One per run folder."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one row, or more columns to the last."""
        at = self._step()
        values = {name: f"{value:.8g}" for name, value in metrics.items() if name != "epoch"}
        new = [name for name in values if name not in self._columns]
        self._columns += new
        known = at in self._rows
        row = self._rows.setdefault(at, {"step": at})
        row.update(values)
        if new or known:
            self._write()
        else:
            with writing(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerow(row)

    @rank_zero_only
    def log_last(self, metrics: Mapping[str, Any]) -> None:
        """Add the row of the last step unless it is there: a run's last loss is always known."""
        row = self._rows.get(self._step(), {})
        missing = {
            name: float(value) for name, value in metrics.items() if not name.startswith("val") and name not in row
        }
        if missing:
            self.log_metrics(missing)

    def _write(self) -> None:
        write_csv(self._path, list(self._rows.values()), self._columns)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a ``metrics.csv`` without their empty cells; none where there is no file.

    Raises:
        InputError: The file holds something else.
    """
    if not path.is_file():
        return []
    with reading(path, "the run's metrics cannot be read"), path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
