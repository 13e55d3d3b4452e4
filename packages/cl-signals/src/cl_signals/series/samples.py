"""Real series that come with packages: the UCR/UEA sets in the wheels of aeon and tslearn."""

import shutil
from pathlib import Path

import numpy as np
from contrastive_core.data import packaged
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write

from cl_signals.series.reading import read_split
from cl_signals.series.sets import SeriesSet

SAMPLES = ("GunPoint", "ItalyPowerDemand", "ArrowHead", "BasicMotions", "JapaneseVowels")
"""Small univariate and multivariate sets written by :func:`write_samples`."""

BENCHMARK = (
    "GunPoint",
    "ArrowHead",
    "ACSF1",
    "OSULeaf",
    "ItalyPowerDemand",
    "Trace",
    "GestureMidAirD1",
    "PickupGestureWiimoteZ",
    "BasicMotions",
    "JapaneseVowels",
    "EyesOpenShut",
)
"""The sets of the benchmark; some only with a folder of one's own."""


def write_samples(out: Path | str, *, overwrite: bool = False) -> list[Path]:
    """Copy a few real sets, in their original ``.ts`` form, one folder each.

    Args:
        out: Folder to write to.
        overwrite: Replace sets that are already there.

    Returns:
        The folders.

    Raises:
        InputError: aeon is not installed, or a set is already there.
    """
    source, out = packaged("aeon", "datasets/data"), Path(out)
    if source is None:
        raise InputError(
            "the sample data are not installed",
            why="they come with the package aeon",
            remedy="pip install 'cl-signals[samples]'",
        )
    if not overwrite:
        for name in SAMPLES:
            if (out / name).exists():
                raise InputError(
                    "a set is already there", where=out / name, remedy="pass --overwrite, or another folder"
                )
    for name in SAMPLES:
        for part in ("TRAIN", "TEST"):
            with atomic_write(out / name / f"{name}_{part}.ts") as temporary:
                shutil.copyfile(_file(source, name, part), temporary)
    return [out / name for name in SAMPLES]


def benchmark_sets(folder: Path | str | None = None) -> tuple[dict[str, tuple[SeriesSet, SeriesSet]], dict[str, str]]:
    """The sets of :data:`BENCHMARK` that can be had here.

    Args:
        folder: Further sets, one folder each; names are compared without case and underscores.

    Returns:
        ``name -> (train, test)``, and ``name -> why it is left out``.

    Raises:
        InputError: The folder does not exist.
    """
    own: dict[str, Path] = {}
    if folder is not None:
        if not Path(folder).is_dir():
            raise InputError("the data folder is missing", where=folder, remedy="check the path")
        own = {_plain(entry.name): entry for entry in Path(folder).iterdir() if entry.is_dir()}
    aeon = packaged("aeon", "datasets/data")
    sets, skipped = {}, {}
    for name in BENCHMARK:
        if _plain(name) in own:
            sets[name] = read_split(own[_plain(name)])
        elif aeon is not None and _file(aeon, name, "TRAIN").is_file():
            sets[name] = read_split(_file(aeon, name, "TRAIN"))
        elif name == "Trace" and (trace := _trace()) is not None:
            sets[name] = trace
        else:
            skipped[name] = "not in an installed package, and not in the data folder"
    return sets, skipped


def _file(folder: Path, name: str, part: str) -> Path:
    """A part of a set, laid flat or in a folder of its own."""
    nested = folder / name / f"{name}_{part}.ts"
    return nested if nested.is_file() else folder / f"{name}_{part}.ts"


def _trace() -> tuple[SeriesSet, SeriesSet] | None:
    folder = packaged("tslearn", ".cached_datasets")
    if folder is None or not (folder / "Trace.npz").is_file():
        return None
    with np.load(folder / "Trace.npz", allow_pickle=False) as bundle:
        parts = [
            (bundle[f"X_{part}"].reshape(len(bundle[f"y_{part}"]), 1, -1), bundle[f"y_{part}"])
            for part in ("train", "test")
        ]
    train, test = (
        SeriesSet(
            "Trace",
            list(x.astype(np.float32)),
            [str(label) for label in y.tolist()],
            [str(i) for i in range(len(x))],
            [],
        )
        for x, y in parts
    )
    return train, test


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
