"""The folder of one run: settings, logs, checkpoints, weights, results."""

import csv
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from contrastive_core.errors import InputError
from contrastive_core.files import read_json, remove_unfinished, write_json, write_text
from contrastive_core.weights import load_weights, save_weights

_OURS = {
    "config.yaml",
    "metrics.csv",
    "tensorboard",
    "checkpoints",
    "model.safetensors",
    "model.json",
    "results.json",
    "report.html",
    "environment.json",
    "split.json",
}


class RunFolder:
    """One run on disk. Made by :meth:`create`, read by :meth:`open`.

    Attributes:
        path: The folder.
        resuming: Whether training continues from ``checkpoints/last.ckpt``.
    """

    def __init__(self, path: Path, *, resuming: bool = False) -> None:
        self.path = path
        self.resuming = resuming
        self._lock: FileLock | None = None

    @classmethod
    def create(
        cls, path: Path | str, config: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False
    ) -> "RunFolder":
        """Make the folder of a new run, or take up an old one.

        Args:
            path: The folder.
            config: Every resolved setting of the run, plain values.
            overwrite: Remove an old run first.
            resume: Continue an old run; its settings must be the same. Starts a new one if there is none.

        Raises:
            InputError: The folder holds a run and neither option is given, holds something else, is in use by another
                process, or was made with other settings than those to be resumed.
        """
        path = Path(path)
        if overwrite and resume:
            raise InputError("a run is either resumed or overwritten", where="--resume, --overwrite")
        if is_follower():  # the first process of the run has checked, locked and written the folder
            run = cls(path)
            run.resuming = resume and run.checkpoint("last").is_file()
            return run
        if path.exists() and not path.is_dir():
            raise InputError("the output is not a folder", where=path, remedy="name another folder")
        content = {entry.name for entry in path.iterdir()} if path.exists() else set()
        visible = {name for name in content if not name.startswith(".")}
        run = cls(path)
        if visible and not visible <= _OURS:
            raise InputError(
                "the output folder holds files of something else",
                where=path,
                why=f"for instance {sorted(visible - _OURS)[0]}",
                remedy="name a new or empty folder",
            )
        if visible and not (overwrite or resume):
            raise InputError(
                "the output folder already holds a run",
                where=path,
                remedy="name another folder, continue it with --resume, or replace it with --overwrite",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("the output folder cannot be made", where=path, why=error.strerror) from error
        run._acquire()
        for folder in (path, path / "checkpoints"):
            remove_unfinished(folder)
        plain = yaml.safe_load(yaml.safe_dump(_plain(config)))
        if visible and resume:
            run._check_same(plain)
            run.resuming = run.checkpoint("last").is_file()
        elif visible:
            for name in visible:
                entry = path / name
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_text(path / "config.yaml", yaml.safe_dump(plain, sort_keys=False))
        write_json(path / "environment.json", environment(plain.get("seed")))
        return run

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """Open a finished run for reading.

        Raises:
            InputError: There is no such folder, or it holds no run.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError("the run folder is missing", where=path, remedy="check the path")
        if not (path / "model.json").is_file():
            raise InputError(
                "the folder holds no finished run",
                where=path,
                why="model.json is missing",
                remedy="name the OUT of a training command that has ended, or continue it with --resume",
            )
        return cls(path)

    def checkpoint(self, name: str) -> Path:
        """Path of the checkpoint ``last`` or ``best``."""
        return self.path / "checkpoints" / f"{name}.ckpt"

    def save_model(self, state: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Write the weights for inference and what they are."""
        save_weights(self.path, state, description)

    def load_model(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read weights and description.

        Raises:
            InputError: A file is missing or corrupt.
        """
        return load_weights(self.path)

    def config(self) -> dict[str, Any]:
        """The run's settings.

        Raises:
            InputError: ``config.yaml`` is missing or unreadable.
        """
        path = self.path / "config.yaml"
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError("the run's settings cannot be read", where=path, why=str(error)) from error
        if not isinstance(values, dict):
            raise InputError("the run's settings cannot be read", where=path, why="no mapping")
        return values

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``."""
        write_json(self.path / "results.json", results)

    def results(self) -> dict[str, Any]:
        """Read ``results.json``."""
        return dict(read_json(self.path / "results.json"))

    def metrics(self) -> list[dict[str, float]]:
        """Rows of ``metrics.csv``, without empty cells."""
        path = self.path / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _acquire(self) -> None:
        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                "the run folder is in use by another process", where=self.path, remedy="wait for it, or name another"
            ) from error
        except OSError as error:
            raise InputError(
                "the output folder cannot be written", where=self.path, why=error.strerror, remedy="name another folder"
            ) from error

    def _check_same(self, config: dict[str, Any]) -> None:
        old, config = _flat(self.config()), _flat(config)
        differing = sorted(name for name in {*old, *config} if old.get(name) != config.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                "a run is resumed with the settings it was started with",
                where=self.path / "config.yaml",
                why=f"differing: {', '.join(differing)} ({name} was {old.get(name)}, is {config.get(name)})",
                remedy="repeat the first command with --resume, or start anew in another folder",
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, so that an error names the one that differs."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def is_follower() -> bool:
    """Whether this is a process that Lightning or torchrun started beside the first one of a run."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) > 0


def environment(seed: int | None) -> dict[str, Any]:
    """Versions, seed, revision and hardware, to tell later where numbers came from."""
    import torch

    packages: dict[str, str | None] = {}
    for name in ("contrastive-core", "torch", "lightning", "numpy", "scikit-learn", "safetensors"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": packages,
        "seed": seed,
        "git": _revision(),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": gpus,
    }


def _revision() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
