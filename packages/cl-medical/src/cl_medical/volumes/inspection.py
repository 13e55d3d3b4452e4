"""What a folder of cases holds, and what training would refuse."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError, reason

from cl_medical.volumes.cases import CaseSet, read_cases
from cl_medical.volumes.names import is_series
from cl_medical.volumes.reading import read_image, read_pair, spacing


def inspect_cases(folder: Path | str) -> dict[str, Any]:
    """Read every case once.

    Args:
        folder: Folder of cases.

    Returns:
        ``summary`` (counts, sizes, spacings, intensities), ``classes`` (a row a value of the label maps: its name,
        cases and share of voxels), ``refused`` (a row a case that cannot be used, and why).

    Raises:
        InputError: The folder as a whole cannot be used.
    """
    data = read_cases(folder)
    voxels: Counter[int] = Counter()
    cases: Counter[int] = Counter()
    measured: list[tuple[tuple[int, ...], tuple[float, ...], float, float]] = []
    refused: list[dict[str, Any]] = []
    for case in data.cases.values():
        try:
            if case.label is None:
                image, label = read_image(case.image), None
            else:
                image, label = read_pair(case.image, case.label, ignore=data.ignore)
        except InputError as error:
            refused.append({"case": case.name, "file": error.where, "why": reason(error)})
            continue
        measured.append((tuple(image.shape[1:]), spacing(image), float(image.min()), float(image.max())))
        if label is not None:
            values, counts = np.unique(label.numpy(), return_counts=True)
            voxels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            cases.update(values.tolist())
    return {"summary": _summary(data, measured, refused), "classes": _classes(data, voxels, cases), "refused": refused}


def _summary(data: CaseSet, measured: list[Any], refused: list[Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "cases": len(data.cases),
        "with label map": sum(case.label is not None for case in data.cases.values()),
        "DICOM series": sum(is_series(case.image) for case in data.cases.values()),
        "patients": len({case.patient for case in data.cases.values()}),
        "would be refused": len(refused),
    }
    for part, names in data.lists.items():
        summary[f"listed as {part}"] = len(names)
    if measured:
        for name, index, form in (("voxels", 0, "d"), ("voxel sides (mm)", 1, ".3g")):
            values = np.array([entry[index] for entry in measured])
            for what, row in zip(("least", "median", "most"), np.quantile(values, [0, 0.5, 1], axis=0), strict=True):
                cells = [format(int(v) if form == "d" else v, form) for v in row]
                summary[f"{name}, {what}"] = " x ".join(cells)
        summary["intensities"] = f"{min(e[2] for e in measured):g} to {max(e[3] for e in measured):g}"
    return summary


def _classes(data: CaseSet, voxels: Counter[int], cases: Counter[int]) -> list[dict[str, Any]]:
    total = sum(voxels.values())
    known = range(len(data.classes or ()))
    rows = []
    for value in sorted({*voxels, *known}):
        name = "(does not count)" if value < 0 else data.classes[value] if data.classes and value in known else None
        rows.append(
            {"value": value, "name": name, "cases": cases[value], "share (%)": 100 * voxels[value] / max(total, 1)}
        )
    return rows
