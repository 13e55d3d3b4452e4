"""Which volumes a folder holds, which of them have labels, and how they are split."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import read_json

from cl_medical.volumes.dicom import is_series
from cl_medical.volumes.reading import HDF5, NIFTI, case_name, is_volume

LISTS = {
    "labelled": "train_lab.txt",
    "unlabelled": "train_unlab.txt",
    "validation": "val.txt",
    "test": "test.txt",
}
"""Text files that fix the splits, one case a line."""

_PAIRS = (("images", "labels"), ("imagesTr", "labelsTr"))


@dataclasses.dataclass(frozen=True)
class Case:
    """One volume on disk.

    Attributes:
        name: Its id.
        image: File, or folder of a DICOM series.
        label: Label file; ``None`` where there is none. The same file as the image for HDF5.
        patient: Cases of one patient never stand in two splits.
    """

    name: str
    image: Path
    label: Path | None
    patient: str


@dataclasses.dataclass(frozen=True)
class CaseSet:
    """The cases of a folder.

    Attributes:
        folder: The folder.
        cases: By name.
        classes: Names of the classes, background first; ``None`` if the folder does not tell.
        settings: What ``dataset.json`` recommends: ``patch``, ``stride``, ``scaling``, ``augment``.
        lists: Cases named by the split lists that are there, by split.
    """

    folder: Path
    cases: Mapping[str, Case]
    classes: tuple[str, ...] | None
    settings: Mapping[str, Any]
    lists: Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Split:
    """Names of the cases of every part.

    Attributes:
        labelled: Training cases whose labels are used.
        unlabelled: Training cases whose labels, if any, are not looked at.
        validation: Cases that choose the checkpoint.
        test: Cases nothing is chosen on.
    """

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part, names in dataclasses.asdict(self).items():
            for name in names:
                if name in seen:
                    raise InputError(
                        "a case stands in two splits",
                        where=name,
                        why=f"in {seen[name]} and {part}" if seen[name] != part else f"twice in {part}",
                        remedy="name it in one list only",
                    )
                seen[name] = part


def read_cases(folder: Path | str) -> CaseSet:
    """Find the cases of a folder.

    Layouts: ``images/`` and ``labels/`` (or ``imagesTr/``, ``labelsTr/``) with equal file names, an image being a NIfTI
    file or a folder with a DICOM series; ``CASE/mri_norm2.h5``; ``CASE.h5``. An image without a label file is an
    unlabelled case. ``dataset.json`` may name the classes (``labels``), the patients and recommended settings.

    Raises:
        InputError: There is no such folder, it holds no cases, a label has no image, or a list names an unknown case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("the data folder is missing", where=folder, remedy="check the path")
    about = read_json(folder / "dataset.json") if (folder / "dataset.json").is_file() else {}
    if not isinstance(about, dict):
        raise InputError("the data set's description is no mapping", where=folder / "dataset.json")
    patients = about.get("patients", {})
    found = _pairs(folder) or _hdf5(folder)
    if not found:
        raise InputError(
            "the folder holds no cases",
            where=folder,
            why="neither images/ beside labels/ nor .h5 files are in it",
            remedy="lay NIfTI files out as images/CASE.nii.gz and labels/CASE.nii.gz, or run `cl-medical mpcl prepare`",
        )
    cases = {
        name: Case(name, image, label, str(patients.get(name, name))) for name, (image, label) in sorted(found.items())
    }
    return CaseSet(folder, cases, _classes(about, folder), about.get("settings", {}), _lists(folder, cases))


def make_split(
    data: CaseSet, *, labelled: int, validation: int | None = None, test: int | None = None, seed: int = 0
) -> Split:
    """Fix the parts: by the folder's lists where it has them, else by a seeded draw of whole patients.

    Args:
        data: The cases.
        labelled: Labelled cases to train with; further ones train as unlabelled.
        validation: Cases to choose the checkpoint on; a tenth of the labelled ones if absent.
        test: Cases held out; a fifth of the labelled ones if absent.
        seed: Seed of the draw.

    Raises:
        InputError: There are not as many labelled cases, or a patient stands in two lists.
    """
    if labelled < 1:
        raise InputError("training needs a labelled case", where="--labelled", why=f"got {labelled}")
    split = _listed(data, labelled) if data.lists else _drawn(data, labelled, validation, test, seed)
    _check_patients(data, split)
    return split


def _pairs(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    for images, labels in _PAIRS:
        if not (folder / images).is_dir():
            continue
        found = {
            case_name(entry): entry
            for entry in sorted((folder / images).iterdir())
            if is_volume(entry) or (entry.is_dir() and is_series(entry))
        }
        known = {
            case_name(entry): entry
            for entry in (sorted((folder / labels).iterdir()) if (folder / labels).is_dir() else [])
            if is_volume(entry)
        }
        orphans = sorted(set(known) - set(found))
        if orphans:
            raise InputError(
                "a label map has no image",
                where=known[orphans[0]],
                why=f"{len(orphans)} of {len(known)} label maps have none in {images}/",
                remedy="add the image under the same name, or move the label map away",
            )
        return {name: (image, known.get(name)) for name, image in found.items()}
    return {}


def _hdf5(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    flat = [entry for entry in sorted(folder.iterdir()) if entry.name.endswith(HDF5)]
    nested = sorted(folder.glob("*/mri_norm2.h5"))
    found = {case_name(path): path for path in flat} | {path.parent.name: path for path in nested}
    return {name: (path, path if _has_label(path) else None) for name, path in found.items()}


def _has_label(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return "label" in file
    except OSError as error:
        raise InputError("an HDF5 file cannot be read", where=path, why=str(error)[:200]) from error


def _classes(about: Mapping[str, Any], folder: Path) -> tuple[str, ...] | None:
    labels = about.get("labels", about.get("classes"))
    if labels is None:
        return None
    if isinstance(labels, dict):  # the Decathlon's {"0": "background", ...}, or nnU-Net's {"background": 0, ...}
        numbered = {int(k): str(v) for k, v in labels.items()} if all(str(k).isdigit() for k in labels) else None
        numbered = numbered or {int(v): str(k) for k, v in labels.items()}
        if sorted(numbered) != list(range(len(numbered))):
            raise InputError(
                "the classes of a data set are not numbered 0 to C - 1",
                where=folder / "dataset.json",
                why=f"found {sorted(numbered)}",
            )
        labels = [numbered[index] for index in range(len(numbered))]
    return tuple(str(name) for name in labels)


def _lists(folder: Path, cases: Mapping[str, Case]) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for part, file in LISTS.items():
        if not (folder / file).is_file():
            continue
        lines = (folder / file).read_text(encoding="utf-8").split()
        names = [case_name(Path(line)) for line in lines]
        unknown = [name for name in names if name not in cases]
        if unknown:
            raise InputError(
                "a split list names a case that is not there",
                where=folder / file,
                why=f"{unknown[0]} ({len(unknown)} of {len(names)})",
                remedy="add the case, or take it off the list",
            )
        lists[part] = names
    return lists


def _listed(data: CaseSet, labelled: int) -> Split:
    lists = {part: list(data.lists.get(part, ())) for part in LISTS}
    with_label = [name for name in lists["labelled"] if data.cases[name].label is not None]
    _enough(len(with_label), labelled, data.folder / LISTS["labelled"])
    for part in ("validation", "test"):
        for name in lists[part]:
            if data.cases[name].label is None:
                raise InputError("a case to be judged has no label", where=name, why=f"it is listed in {LISTS[part]}")
    rest = [name for name in lists["labelled"] if name not in with_label[:labelled]]
    return Split(
        tuple(with_label[:labelled]),
        (*rest, *lists["unlabelled"]),
        tuple(lists["validation"]),
        tuple(lists["test"]),
    )


def _drawn(data: CaseSet, labelled: int, validation: int | None, test: int | None, seed: int) -> Split:
    with_label = [case for case in data.cases.values() if case.label is not None]
    without = [case.name for case in data.cases.values() if case.label is None]
    wanted = {
        "test": len(with_label) // 5 if test is None else test,
        "validation": len(with_label) // 10 if validation is None else validation,
        "labelled": labelled,
    }
    for part, count in wanted.items():
        if count < 0:
            raise InputError("a split cannot be negative", where=f"--{part}", why=f"got {count}")
    blind = {data.cases[name].patient for name in without}
    groups: dict[str, list[str]] = {}
    for case in with_label:
        groups.setdefault(case.patient, []).append(case.name)
    order = [sorted(groups)[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    parts: dict[str, list[str]] = {part: [] for part in wanted}
    unlabelled = list(without)
    for patient in order:
        names = groups[patient]
        # A patient with an unlabelled scan trains: judging on the labelled one would leak.
        options = ("labelled",) if patient in blind else ("test", "validation", "labelled")
        free = [part for part in options if len(parts[part]) + len(names) <= wanted[part]]
        (parts[free[0]] if free else unlabelled).extend(names)
    _enough(len(parts["labelled"]), labelled, data.folder)
    return Split(tuple(parts["labelled"]), tuple(unlabelled), tuple(parts["validation"]), tuple(parts["test"]))


def _check_patients(data: CaseSet, split: Split) -> None:
    where: dict[str, str] = {}
    for part, names in (
        ("training", (*split.labelled, *split.unlabelled)),
        ("validation", split.validation),
        ("test", split.test),
    ):
        for name in names:
            patient = data.cases[name].patient
            if where.setdefault(patient, part) != part:
                raise InputError(
                    "a patient stands in two splits",
                    where=name,
                    why=f"patient {patient} is in {where[patient]} and {part}",
                    remedy="keep all scans of a patient in one list",
                )


def _enough(found: int, wanted: int, where: Path) -> None:
    if found < wanted:
        raise InputError(
            "there are fewer labelled cases than asked for" if found else "there is no labelled case to train on",
            where=where,
            why=f"{found} for training, {wanted} asked for",
            remedy="lower --labelled, --validation or --test, or add label maps",
        )


def find_volumes(paths: Sequence[Path]) -> list[Path]:
    """Volumes named one by one, or all those of a folder.

    Args:
        paths: Files, DICOM series, or folders with files and series.

    Raises:
        InputError: A path is missing, or a folder holds no volume.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError("a volume is missing", where=path, remedy="check the path")
        if path.is_file() or is_series(path):
            found.append(path)
            continue
        inside = [
            entry for entry in sorted(path.iterdir()) if is_volume(entry) or (entry.is_dir() and is_series(entry))
        ]
        if not inside:
            raise InputError(
                "a folder holds no volume",
                where=path,
                remedy=f"name a folder with {', '.join(NIFTI + HDF5)} files or DICOM series",
            )
        found += inside
    return found
