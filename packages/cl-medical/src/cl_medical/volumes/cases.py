"""Which volumes a folder holds, which of them have labels, and which lists divide them."""

import dataclasses
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import read_lines

from cl_medical.volumes.description import FILE, Description, read_description
from cl_medical.volumes.hdf5 import has_label
from cl_medical.volumes.names import case_name, entries, is_nifti, is_series, volumes_below

LISTS = {
    "labelled": "train_lab.txt",
    "unlabelled": "train_unlab.txt",
    "validation": "val.txt",
    "test": "test.txt",
}
"""Text files that fix the splits, one case a line; as we write them."""

_SYNONYMS = {
    "labelled": ("train_lab", "train_labelled", "train_labeled", "labelled", "labeled"),
    "unlabelled": ("train_unlab", "train_unlabelled", "train_unlabeled", "unlabelled", "unlabeled"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_LIKE_A_LIST = re.compile(r"train|val|test|lab(el|$)|split|fold", re.IGNORECASE)
_IMAGES = ("images", "imagestr", "image")
_LABELS = ("labels", "labelstr", "label", "masks", "mask", "segmentations")


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
        list_files: The lists' files, by split.
        ignore: Value of voxels that do not count, if there is one.
    """

    folder: Path
    cases: Mapping[str, Case]
    classes: tuple[str, ...] | None
    settings: Mapping[str, Any]
    lists: Mapping[str, Sequence[str]]
    list_files: Mapping[str, Path]
    ignore: int | None = None


def read_cases(folder: Path | str) -> CaseSet:
    """Find the cases of a folder.

    Layouts: ``images/`` and ``labels/`` (also ``imagesTr/`` and ``labelsTr/``, with ``imagesTs/`` and ``labelsTs/`` as
    test cases) with equal file names, an image being a NIfTI file or a folder with a DICOM series;
    ``CASE/mri_norm2.h5``; ``CASE.h5``. An image without a label file is an unlabelled case. ``dataset.json`` may name
    the classes (``labels``), the patients and recommended settings; without it the intensities of HDF5 cases, which are
    published scaled, stay as they are.

    Raises:
        InputError: There is no such folder, it holds no cases, two files are one case, a label has no image,
            ``dataset.json`` is malformed, or a list has an unknown name or names an unknown case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("the data folder is missing", where=folder, remedy="check the path")
    about = read_description(folder)
    pairs = _pairs(folder)
    held_out = _held_out(folder, set(pairs))
    files = {**pairs, **held_out} or _hdf5(folder)
    if not files:
        raise InputError(
            "the folder holds no cases",
            where=folder,
            why="neither images/ beside labels/ nor .h5 files are in it",
            remedy="lay NIfTI files out as images/CASE.nii.gz and labels/CASE.nii.gz, or run `cl-medical mpcl prepare`",
        )
    patients = _patients(about, files, folder)
    cases = {name: Case(name, image, label, patients.get(name, name)) for name, (image, label) in sorted(files.items())}
    settings = about.settings if about.settings is not None else {} if pairs else {"scaling": "none"}
    lists, list_files = _lists(folder, cases)
    if held_out and "test" not in lists:
        lists["test"], list_files["test"] = sorted(held_out), _folder(folder, ("labelsts",)) or folder
    return CaseSet(folder, cases, about.classes, settings, lists, list_files, about.ignore)


def numbered_classes(values: Set[int], folder: Path, *, merge: bool) -> tuple[str, ...]:
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


def _folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The one folder inside that has one of the names, in any letter case."""
    known = [entry for entry in entries(folder) if entry.is_dir() and entry.name.lower() in names]
    if len(known) > 1:
        raise InputError(
            "two folders may be meant", where=folder, why=" and ".join(entry.name for entry in known), remedy="keep one"
        )
    return known[0] if known else None


def _pairs(
    folder: Path, image_names: Sequence[str] = _IMAGES, label_names: Sequence[str] = _LABELS
) -> dict[str, tuple[Path, Path | None]]:
    """Images and label maps by case."""
    images, labels = _folder(folder, image_names), _folder(folder, label_names)
    if images is None:
        return {}
    found = volumes_below(images)
    if is_series(images):
        raise InputError(
            "DICOM slices lie beside each other", where=images, remedy="give each series a folder of its own in it"
        )
    known = volumes_below(labels) if labels is not None else {}
    found = _one_channel(found, known)
    orphans = sorted(set(known) - set(found))
    if orphans:
        raise InputError(
            "a label map has no image",
            where=known[orphans[0]],
            why=f"{len(orphans)} of {len(known)} label maps have none in {images.name}/",
            remedy="add the image under the same name, or move the label map away",
        )
    return {name: (image, known.get(name)) for name, image in found.items()}


def _one_channel(images: dict[str, Path], labels: dict[str, Path]) -> dict[str, Path]:
    """Images by case where they are named as nnU-Net's channels: ``CASE_0000.nii.gz``."""
    if not all(name.endswith("_0000") for name in images) or any(name in labels for name in images):
        return images
    return {name.removesuffix("_0000"): path for name, path in images.items()}


def _held_out(folder: Path, training: Set[str]) -> dict[str, tuple[Path, Path | None]]:
    """Test cases that lie beside the training ones (``imagesTs`` with ``labelsTs``)."""
    cases = _pairs(folder, ("imagests",), ("labelsts",))
    labelled = {name: files for name, files in cases.items() if files[1] is not None}
    if len(labelled) < len(cases):
        text = f"{len(cases) - len(labelled)} images in imagesTs have no label map and are not used"
        warnings.warn(text, ContrastiveWarning, stacklevel=3)
    both = sorted(set(labelled) & set(training))
    if both:
        raise InputError("a case is both for training and for testing", where=folder, why=both[0])
    return labelled


def _hdf5(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    files = volumes_below(folder)
    others = [path for path in files.values() if path.is_dir() or is_nifti(path)]
    if others:
        raise InputError(
            "the folder has no images/ beside labels/",
            where=folder,
            why=f"but volumes such as {others[0].relative_to(folder)}",
            remedy="lay them out as images/CASE.nii.gz and labels/CASE.nii.gz; a DICOM series is a folder in images/",
        )
    return {name: (path, path if has_label(path) else None) for name, path in files.items()}


def _patients(about: Description, files: Mapping[str, Any], folder: Path) -> dict[str, str]:
    named = {unicodedata.normalize("NFC", case): patient for case, patient in about.patients.items()}
    unknown = sorted(set(named) - set(files))
    if unknown:
        raise InputError("`patients` names a case that is not there", where=folder / FILE, why=repr(unknown[0]))
    return named


def _lists(folder: Path, cases: Mapping[str, Case]) -> tuple[dict[str, list[str]], dict[str, Path]]:
    parts = {name: part for part, names in _SYNONYMS.items() for name in names}
    lists: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    for path in entries(folder):
        if not path.is_file() or path.suffix.lower() != ".txt":
            continue
        part = parts.get(path.stem.lower())
        if part is None:
            if _LIKE_A_LIST.search(path.stem):
                raise InputError(
                    "a list of cases has an unknown name",
                    where=path,
                    remedy=f"name it {', '.join(LISTS.values())}, or move it away",
                )
            continue
        if part in files:
            raise InputError("two lists name one part", where=path, why=f"{files[part].name} is there too")
        lists[part], files[part] = _list(path, folder, cases), path
    return lists, files


def _list(path: Path, folder: Path, cases: Mapping[str, Case]) -> list[str]:
    names = [case_name(folder / line.strip()) for line in read_lines(path) if line.strip()]
    unknown = [name for name in names if name not in cases]
    if unknown:
        raise InputError(
            "a split list names a case that is not there",
            where=path,
            why=f"{unknown[0]!r} ({len(unknown)} of {len(names)})",
            remedy="add the case, or take it off the list",
        )
    return names
