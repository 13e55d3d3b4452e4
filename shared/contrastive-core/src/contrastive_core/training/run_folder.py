"""The folder of one run: settings, logs, checkpoints, weights, results."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from contrastive_core.errors import InputError
from contrastive_core.files import read_json, read_text, reading, remove_unfinished, write_json, write_text
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
    "plan.json",
}
_PACKAGES = ("contrastive-core", "cl-")
_PREVIOUS = ".previous-run"
"""Where an overwritten run waits until the new one has something to show."""


class RunFolder:
    """One run on disk. Made by :meth:`create`, read by :meth:`open`.

    Attributes:
        path: The folder.
        resuming: Whether training continues from ``checkpoints/last.ckpt``.
    """

    def __init__(self, path: Path | str, *, resuming: bool = False) -> None:
        self.path = Path(path)
        self.resuming = resuming
        self._lock: FileLock | None = None
        self._made: list[Path] = []
        self._fresh = False

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    def create(
        cls, path: Path | str, options: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False
    ) -> "RunFolder":
        """Make the folder of a new run, or take up an old one.

        Use it as a context: a run that fails before it has trained leaves the place as it was, a run it was to
        overwrite included.

        Args:
            path: The folder.
            options: Every resolved setting of the run (:func:`contrastive_core.cli.options_of`), plain values.
            overwrite: Replace an old run.
            resume: Continue an old run; its settings must be the same. Starts a new one if there is none.

        Raises:
            InputError: The folder holds a run and neither option is given, holds something else, is in use by another
                process, or was made with other settings than those to be resumed.
        """
        run = cls(path)
        path = run.path
        if overwrite and resume:
            raise InputError("a run is either resumed or overwritten", where="--resume, --overwrite")
        if is_follower():  # the first process of the run has checked, locked and written the folder
            run.resuming = resume and run.checkpoint("last").is_file()
            return run
        run._make()
        try:
            run._acquire()
            run._restore_previous()  # of a process that was killed before it had trained
            for folder in (path, path / "checkpoints"):
                remove_unfinished(folder)
            plain = yaml.safe_load(yaml.safe_dump(dict(options)))
            old = run._content(allowed=overwrite or resume)
            run._fresh = not old
            if old and resume and (path / "config.yaml").is_file():
                run._check_same(plain)
                run.resuming = run.checkpoint("last").is_file()
            elif old and overwrite:
                run._put_aside(old)
            write_text(path / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
            write_json(path / "environment.json", environment(plain.get("seed")))
        except BaseException:
            run._undo()
            raise
        return run

    def _make(self) -> None:
        """Make the folder and the missing ones above it."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError("the output is not a folder", where=self.path, remedy="name another folder")
        try:
            for folder in [*reversed(self.path.parents), self.path]:
                if not folder.exists():
                    folder.mkdir()
                    self._made.append(folder)
        except OSError as error:
            self._undo()
            raise InputError("the output folder cannot be made", where=self.path, why=error.strerror) from error

    def _content(self, *, allowed: bool) -> set[str]:
        """Entries of an old run.

        Raises:
            InputError: There are others, or an old run that is not ``allowed``.
        """
        names = {entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")}
        if names - _OURS:
            raise InputError(
                "the output folder holds files of something else",
                where=self.path,
                why=f"for instance {sorted(names - _OURS)[0]}",
                remedy="name a new or empty folder",
            )
        if names and not allowed:
            raise InputError(
                "the output folder already holds a run",
                where=self.path,
                remedy="name another folder, continue it with --resume, or replace it with --overwrite",
            )
        return names

    def _put_aside(self, names: set[str]) -> None:
        aside = self.path / _PREVIOUS
        aside.mkdir()
        for name in names:
            (self.path / name).rename(aside / name)

    def _restore_previous(self) -> None:
        aside = self.path / _PREVIOUS
        if not aside.is_dir() or aside.is_symlink():
            return
        if not self._has_trained():
            for name in _OURS:
                _remove(self.path / name)
            for entry in aside.iterdir():
                entry.rename(self.path / entry.name)
        _remove(aside)

    def _has_trained(self) -> bool:
        return any((self.path / name).exists() for name in ("checkpoints", "model.safetensors"))

    def _undo(self) -> None:
        """Leave the place of a run that has not trained as it was."""
        if self._lock is not None and not self.resuming and not self._has_trained():
            if (self.path / _PREVIOUS).is_dir():
                self._restore_previous()
            elif self._fresh:
                for name in _OURS:
                    _remove(self.path / name)
        self.close()
        for folder in reversed(self._made):
            (folder / ".lock").unlink(missing_ok=True)
            try:
                folder.rmdir()
            except OSError:  # it holds something by now
                return

    @classmethod
    def open(cls, path: Path | str | os.PathLike[str]) -> "RunFolder":
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

    @property
    def report(self) -> Path:
        """Path of ``report.html``."""
        return self.path / "report.html"

    def config(self) -> dict[str, Any]:
        """The run's settings.

        Raises:
            InputError: ``config.yaml`` is missing or unreadable.
        """
        path = self.path / "config.yaml"
        with reading(path, "the run's settings cannot be read"):
            values = yaml.safe_load(read_text(path))
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
        from contrastive_core.training.metrics import read_metrics

        return read_metrics(self.path / "metrics.csv")

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not self.resuming and not self._has_trained():
            self._undo()
            return
        _remove(self.path / _PREVIOUS)
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
    """Versions, seed, revision, hardware and command, to tell later where numbers came from."""
    import torch

    names = {"torch", "lightning", "numpy", "scikit-learn", "safetensors"}
    packages = {
        each.name: each.version for each in distributions() if each.name in names or each.name.startswith(_PACKAGES)
    }
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": dict(sorted(packages.items())),
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


def _remove(path: Path) -> None:
    """Remove a file, a folder, or a link without what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
