"""``dataset.json``: classes, patients and recommended settings, in the Decathlon's form or nnU-Net's."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrastive_core.errors import InputError
from contrastive_core.files import read_json

FILE = "dataset.json"
SETTINGS = ("patch", "stride", "scaling", "window", "spacing", "augment", "largest_component")
"""What ``settings`` may recommend; the plan checks the values."""

_IGNORE = "ignore"


@dataclasses.dataclass(frozen=True)
class Description:
    """What a folder's ``dataset.json`` says.

    Attributes:
        classes: Names of the classes, background first; ``None`` if it does not tell.
        ignore: Value of voxels that do not count (nnU-Net's class ``ignore``), if there is one.
        patients: Patient of a case, by the case's name.
        settings: Recommended settings; ``None`` if it recommends none.
    """

    classes: tuple[str, ...] | None = None
    ignore: int | None = None
    patients: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] | None = None


def read_description(folder: Path) -> Description:
    """Read ``dataset.json``; what it does not say stays open, and so does everything where there is none.

    Raises:
        InputError: It is no JSON, malformed, or names an unknown setting.
    """
    path = folder / FILE
    if not path.is_file():
        return Description()
    about = read_json(path)
    parts = [about, *(about.get(key, {}) for key in ("patients", "settings"))] if isinstance(about, dict) else [about]
    if not all(isinstance(part, dict) for part in parts):
        raise InputError(
            "the data set's description is malformed",
            where=path,
            why="it, its `patients` and its `settings` are mappings",
        )
    unknown = sorted(set(about.get("settings", {})) - set(SETTINGS))
    if unknown:
        raise InputError(
            "the data set's description recommends an unknown setting",
            where=path,
            why=f"`{unknown[0]}`",
            remedy=f"known are {', '.join(SETTINGS)}",
        )
    channels = about.get("channel_names", about.get("modality"))
    if isinstance(channels, dict | list) and len(channels) > 1:
        raise InputError(
            "the images have several channels, one is read",
            where=path,
            why=f"{len(channels)} channels",
            remedy="make a data set of one channel",
        )
    classes, ignore = _classes(about.get("labels", about.get("classes")), path)
    patients = {case: _identifier(patient, path) for case, patient in about.get("patients", {}).items()}
    return Description(classes, ignore, patients, about.get("settings"))


def _identifier(value: Any, path: Path) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError("a patient's id is a text or a whole number", where=path, why=f"got {value!r}")
    return str(value)


def _classes(labels: Any, path: Path) -> tuple[tuple[str, ...] | None, int | None]:
    """Names by value, and the value of the class ``ignore``."""
    if labels is None:
        return None, None
    if isinstance(labels, dict):
        # The Decathlon's {"0": "background", ...}, or nnU-Net's {"background": 0, ...}.
        by_value = all(_number(key) is not None for key in labels)
        pairs = [(key, name) if by_value else (name, key) for key, name in labels.items()]
    elif isinstance(labels, list):
        pairs = list(enumerate(labels))
    else:
        pairs = []
    numbered = {_number(value): name for value, name in pairs}
    fine = pairs and None not in numbered and all(isinstance(name, str) and name.strip() for name in numbered.values())
    if not fine or len(numbered) < len(pairs) or len(set(numbered.values())) < len(pairs):
        raise InputError(
            "the classes of a data set are malformed",
            where=path,
            why=f"`labels` is {str(labels)[:300]}",
            remedy='give every value one name, and every name one value: {"0": "background", "1": "structure"}',
        )
    ignore = next((value for value, name in numbered.items() if name.lower() == _IGNORE), None)
    names = {value: name for value, name in numbered.items() if value != ignore}
    if set(names) != set(range(len(names))):
        raise InputError(
            "the classes of a data set are not numbered 0 to C - 1",
            where=path,
            why=f"found {', '.join(map(str, list(numbered)[:12]))}",
            remedy="renumber them; only `ignore` may have any other number",
        )
    return tuple(names[value] for value in range(len(names))), ignore


def _number(value: Any) -> int | None:
    """A whole number from 0, or a text of digits, as a number."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
