"""Which volumes a folder holds, which of them have labels, and how they are split."""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import read_json

from cl_medical.volumes.dicom import is_series
from cl_medical.volumes.reading import HDF5, LA_FILE, NIFTI, case_name, is_volume

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
    unlabelled case. ``dataset.json`` may name the classes (``labels``), the patients and recommended settings; without
    it the intensities of HDF5 cases, which are published scaled, stay as they are.

    Raises:
        InputError: There is no such folder, it holds no cases, a label has no image, ``dataset.json`` is malformed, or
            a list names an unknown case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("the data folder is missing", where=folder, remedy="check the path")
    about = read_json(folder / "dataset.json") if (folder / "dataset.json").is_file() else {}
    parts = (about, *(about.get(key, {}) for key in ("patients", "settings"))) if isinstance(about, dict) else (about,)
    if not all(isinstance(part, dict) for part in parts):
        raise InputError(
            "the data set's description is malformed",
            where=folder / "dataset.json",
            why="it, its `patients` and its `settings` are mappings",
        )
    patients = about.get("patients", {})
    pairs = _pairs(folder)
    found = pairs or _hdf5(folder)
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
    settings = about.get("settings", {} if pairs else {"scaling": "none"})
    return CaseSet(folder, cases, _classes(about, folder), settings, _lists(folder, cases))


def make_split(
    data: CaseSet, *, labelled: int, validation: int | None = None, test: int | None = None, seed: int = 0
) -> Split:
    """Fix the parts: by the folder's lists where it has them, else by a seeded draw of whole patients.

    With a list of labelled training cases its first ones train with their labels, and what no list names is left out;
    parts without a list are empty, except that ``validation`` takes the last cases of the labelled list. With lists of
    other parts only, the rest is drawn.

    Args:
        data: The cases.
        labelled: Labelled cases to train with; further ones train as unlabelled.
        validation: Cases to choose the checkpoint on; when drawn, a tenth of the labelled ones if absent.
        test: Cases held out; when drawn, a fifth of the labelled ones if absent.
        seed: Seed of the draw.

    Raises:
        InputError: There are not as many labelled cases, a patient stands in two lists, or a size is given for a part
            that a list fixes.
    """
    for part, count in (("labelled", labelled), ("validation", validation), ("test", test)):
        if count is None:
            continue
        if count < (1 if part == "labelled" else 0):
            least = "training needs a labelled case" if part == "labelled" else "a split cannot be negative"
            raise InputError(least, where=f"--{part}", why=f"got {count}")
        if part != "labelled" and (part in data.lists or ("labelled" in data.lists and part == "test" and count > 0)):
            raise InputError(
                "the folder's lists fix this part",
                where=f"--{part}",
                why=f"{data.folder / LISTS[part if part in data.lists else 'labelled']} is there",
                remedy="leave the option out, or remove the list",
            )
    listed = "labelled" in data.lists
    split = _listed(data, labelled, validation or 0) if listed else _drawn(data, labelled, validation, test, seed)
    _check_patients(data, split)
    return split


def found_classes(values: Set[int], folder: Path, *, merge: bool) -> tuple[str, ...]:
    """Names for the values that a folder's label maps hold, where nothing says what they stand for.

    Args:
        values: All values that occur.
        folder: Where.
        merge: Whether all structures count as one: their values do not matter then.

    Raises:
        InputError: The values are not numbered without gaps, so that some would be classes that never occur.
    """
    structures = sorted(set(values) - {0})
    if merge:
        return ("background", "structure") if structures else ("background",)
    if structures != list(range(1, len(structures) + 1)):
        raise InputError(
            "the label maps' values are not numbered without gaps",
            where=folder,
            why=f"found {', '.join(map(str, [0, *structures][:12]))}",
            remedy="take all structures as one (--merge-labels), or renumber them",
        )
    return ("background", *(f"class {index}" for index in structures))


def _pairs(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    for images, labels in _PAIRS:
        if not (folder / images).is_dir():
            continue
        found = {
            case_name(entry): entry
            for entry in sorted((folder / images).iterdir())
            if is_volume(entry) or is_series(entry)
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
    nested = sorted(folder.glob(f"*/{LA_FILE}"))
    found = {case_name(path): path for path in (*flat, *nested)}
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
        pairs = labels.items() if all(str(k).isdigit() for k in labels) else [(v, k) for k, v in labels.items()]
        numbered = {int(k) if str(k).isdigit() else str(k): str(v) for k, v in pairs}
        if set(numbered) != set(range(len(numbered))):
            raise InputError(
                "the classes of a data set are not numbered 0 to C - 1",
                where=folder / "dataset.json",
                why=f"found {', '.join(map(str, numbered))}",
            )
        labels = [numbered[index] for index in range(len(numbered))]
    if not isinstance(labels, list):
        raise InputError(
            "the classes of a data set are malformed",
            where=folder / "dataset.json",
            why=f"`labels` is {labels!r}",
            remedy='use {"0": "background", "1": "structure"}',
        )
    return tuple(str(name) for name in labels)


def _lists(folder: Path, cases: Mapping[str, Case]) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for part, file in LISTS.items():
        if not (folder / file).is_file():
            continue
        lines = (folder / file).read_text(encoding="utf-8").split()
        names = [case_name(folder / line) for line in lines]
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


def _listed(data: CaseSet, labelled: int, validation: int) -> Split:
    lists = {part: list(data.lists.get(part, ())) for part in LISTS}
    _check_judged(data)
    with_label = [name for name in lists["labelled"] if data.cases[name].label is not None]
    _enough(len(with_label) - validation, labelled, data.folder / LISTS["labelled"])
    held = with_label[len(with_label) - validation :]
    rest = [name for name in lists["labelled"] if name not in {*with_label[:labelled], *held}]
    return Split(
        tuple(with_label[:labelled]),
        (*rest, *lists["unlabelled"]),
        (*lists["validation"], *held),
        tuple(lists["test"]),
    )


def _check_judged(data: CaseSet) -> None:
    for part in ("validation", "test"):
        for name in data.lists.get(part, ()):
            if data.cases[name].label is None:
                raise InputError("a case to be judged has no label", where=name, why=f"it is listed in {LISTS[part]}")


def _drawn(data: CaseSet, labelled: int, validation: int | None, test: int | None, seed: int) -> Split:
    _check_judged(data)
    listed = {part: tuple(data.lists.get(part, ())) for part in LISTS}
    free = [case for case in data.cases.values() if not any(case.name in names for names in listed.values())]
    with_label = [case for case in free if case.label is not None]
    without = [*(case.name for case in free if case.label is None), *listed["unlabelled"]]
    wanted = {
        "test": 0 if "test" in data.lists else len(with_label) // 5 if test is None else test,
        "validation": 0 if "validation" in data.lists else len(with_label) // 10 if validation is None else validation,
        "labelled": labelled,
    }
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
        room = [part for part in options if len(parts[part]) + len(names) <= wanted[part]]
        (parts[room[0]] if room else unlabelled).extend(names)
    _enough(len(parts["labelled"]), labelled, data.folder)
    return Split(
        tuple(parts["labelled"]),
        tuple(unlabelled),
        (*listed["validation"], *parts["validation"]),
        (*listed["test"], *parts["test"]),
    )


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
        inside = [entry for entry in sorted(path.iterdir()) if is_volume(entry) or is_series(entry)]
        inside += sorted(path.glob(f"*/{LA_FILE}"))
        if not inside:
            raise InputError(
                "a folder holds no volume",
                where=path,
                remedy=f"name a folder with {', '.join(NIFTI + HDF5)} files or DICOM series",
            )
        found += inside
    return found
