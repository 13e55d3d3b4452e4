"""Raw scans into the layout that training reads: NIfTI cases, split lists, ``dataset.json``."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from contrastive_core.errors import ContrastiveWarning
from contrastive_core.files import refuse_filled, write_json, write_text
from monai.data.meta_tensor import MetaTensor

from cl_medical.volumes.cases import LISTS, Case, CaseSet, numbered_classes, read_cases
from cl_medical.volumes.description import FILE
from cl_medical.volumes.grid import Preprocessing, Scaling
from cl_medical.volumes.metrics import IGNORED
from cl_medical.volumes.nifti import write_nifti
from cl_medical.volumes.reading import read_image, read_pair
from cl_medical.volumes.splits import Split, SplitSettings, make_split

Task = Literal["general", "la", "pancreas", "brats"]


@dataclasses.dataclass(frozen=True)
class TaskPreset:
    """What the paper's data sets ask for.

    Attributes:
        settings: Written to ``dataset.json``.
        merge: Take all structures as one.
        spacing: Voxel sides in mm to resample to.
        margin: Voxels kept around the structures; ``None`` for no cropping.
        classes: Names, if the task fixes them.
    """

    settings: dict[str, Any]
    merge: bool = False
    spacing: tuple[float, float, float] | None = None
    margin: int | None = None
    classes: tuple[str, ...] | None = None


def _settings(patch: Sequence[int], stride: Sequence[int], scaling: Scaling, augment: str) -> dict[str, Any]:
    return {"patch": list(patch), "stride": list(stride), "scaling": scaling, "augment": augment}


TASKS: dict[Task, TaskPreset] = {
    "general": TaskPreset({}),
    "la": TaskPreset(
        _settings((112, 112, 80), (18, 18, 4), "z-score", "none"), True, None, 25, ("background", "left atrium")
    ),
    "pancreas": TaskPreset(
        _settings((96, 96, 96), (16, 16, 4), "ct", "none"), True, (1.0, 1.0, 1.0), 25, ("background", "pancreas")
    ),
    "brats": TaskPreset(
        _settings((96, 96, 96), (64, 64, 64), "z-score", "flip-rotate"),
        True,
        None,
        None,
        ("background", "whole tumour"),
    ),
}
"""Patches, strides and scales of the published runs; the pancreas is clipped to -125 to 275 HU."""


def prepare_cases(
    raw: Path | str,
    out: Path | str,
    *,
    task: Task = "general",
    merge: bool = False,
    split: SplitSettings = SplitSettings(),
) -> tuple[CaseSet, Split]:
    """Write the cases of a raw folder in the layout training reads.

    Images are reordered to RAS, resampled with the spacing of each axis where the task asks for it, and cropped around
    their structures (unlabelled images to what is not zero). Intensities stay as they are: scaling is part of training.

    Args:
        raw: Folder with ``images/`` and ``labels/``; images are NIfTI files or DICOM series.
        out: New or empty folder.
        task: Preset.
        merge: Take all structures as one, whatever the preset says.
        split: Sizes of the parts.

    Returns:
        The cases as written, and their split.

    Raises:
        InputError: A case cannot be used, ``out`` is not empty, or there are too few labelled cases.
    """
    data, out, preset = read_cases(raw), Path(out), TASKS[task]
    preset = dataclasses.replace(preset, merge=preset.merge or merge)
    refuse_filled(out, overwrite=False)
    patients: dict[str, str] = {}
    values: set[int] = set()
    # Everything is read once before anything is written: a bad case leaves no half-made folder.
    for case in data.cases.values():
        image, label = _prepared(case, preset, data)
        patients[case.name] = str(image.meta["patient"]) if case.patient == case.name else case.patient
        if label is not None:
            values |= set(label.unique().tolist()) - {IGNORED}
    patients = _told_apart(patients)
    cases = {name: dataclasses.replace(case, patient=patients[name]) for name, case in data.cases.items()}
    data = dataclasses.replace(data, cases=cases)
    known = None if preset.merge and len(data.classes or ()) > 2 else data.classes
    classes = preset.classes or known or numbered_classes(values, data.folder, merge=preset.merge)
    parts = make_split(data, split)
    ignore = None if data.ignore is None else len(classes)
    for case in data.cases.values():
        image, label = _prepared(case, preset, data)
        write_nifti(out / "images" / f"{case.name}.nii.gz", image.numpy()[0], image)
        if label is not None:
            stored = np.where(label.numpy()[0] == IGNORED, ignore or 0, label.numpy()[0])
            write_nifti(out / "labels" / f"{case.name}.nii.gz", stored.astype(np.min_scalar_type(stored.max())), label)
    for part, names in dataclasses.asdict(parts).items():
        write_text(out / LISTS[part], "".join(f"{name}\n" for name in names))
    names = [*classes, *(["ignore"] if ignore is not None else [])]
    about = {
        "name": data.folder.name,
        "task": task,
        "labels": {str(index): name for index, name in enumerate(names)},
        "patients": {name: patient for name, patient in patients.items() if patient != name},
        "settings": preset.settings,
    }
    write_json(out / FILE, about)
    return read_cases(out), parts


def _told_apart(patients: dict[str, str]) -> dict[str, str]:
    """Patients by case; ids that say nothing are replaced by the case's name.

    Where all series name one patient, as anonymised ones do, each case is taken as a patient of its own, with a note.
    """
    series = {name: patient for name, patient in patients.items() if patient}
    if len(patients) > 1 and len(series) == len(patients) and len(set(series.values())) == 1:
        patient = next(iter(series.values()))
        warnings.warn(
            f"all {len(patients)} cases name the patient {patient!r}, as anonymised ones do: each is taken as a "
            "patient of its own; name the patients in dataset.json if that is wrong",
            ContrastiveWarning,
            stacklevel=2,
        )
        return {name: name for name in patients}
    return {name: patient or name for name, patient in patients.items()}


def _prepared(case: Case, preset: TaskPreset, data: CaseSet) -> tuple[MetaTensor, MetaTensor | None]:
    plan = Preprocessing(scaling="none", spacing=preset.spacing)
    if case.label is None:
        image, label = read_image(case.image), None
    else:
        classes = None if preset.merge or data.classes is None else len(data.classes)
        image, label = read_pair(case.image, case.label, classes, data.ignore)
    patient = str(image.meta.get("patient", ""))
    image = plan.image(image)
    if label is not None:
        label = plan.label(label)
        if preset.merge:
            label = MetaTensor(torch.where(label > 0, 1, label.as_tensor()), affine=label.affine)
    if preset.margin is not None:
        around = image.as_tensor()[0] != 0 if label is None else label.as_tensor()[0] > 0
        box = _box(around, preset.margin if label is not None else 0)
        image = _cut(image, box)
        label = None if label is None else _cut(label, box)
    image.meta["patient"] = patient
    return image, label


def _box(mask: torch.Tensor, margin: int) -> list[slice]:
    places = mask.nonzero()
    if not len(places):
        return [slice(0, side) for side in mask.shape]
    low, high = places.min(0).values.tolist(), places.max(0).values.tolist()
    return [slice(max(a - margin, 0), b + margin + 1) for a, b in zip(low, high, strict=True)]


def _cut(volume: MetaTensor, box: list[slice]) -> MetaTensor:
    affine = volume.affine.clone()
    start = torch.tensor([float(part.start) for part in box], dtype=affine.dtype)
    affine[:3, 3] += affine[:3, :3] @ start
    return MetaTensor(volume.as_tensor()[:, box[0], box[1], box[2]].contiguous(), affine=affine)
