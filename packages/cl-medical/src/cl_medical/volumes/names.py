"""Which files and folders are volumes, and what a case may be called; every reader of folders goes through here."""

import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

from contrastive_core.errors import ContrastiveWarning, InputError

NIFTI = (".nii.gz", ".nii")
HDF5 = (".h5", ".hdf5")
LA_FILE = "mri_norm2.h5"
"""File of a case in the published left-atrium layout; the case is named by its folder."""

_NOT_DATA = (".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".pdf", ".html", ".log")
_LITTER = ("thumbs.db", "desktop.ini", "dicomdir", "license", "readme")
_DICOM = (".dcm", ".ima")


def ending(path: Path) -> str:
    """The ending of a volume's name as it stands there, in any letter case; empty for other files."""
    return next((path.name[-len(each) :] for each in NIFTI + HDF5 if path.name.lower().endswith(each)), "")


def is_volume(path: Path) -> bool:
    """Whether the name is one of a volume we read (a file; DICOM series are folders)."""
    return bool(ending(path)) and not path.name.startswith(".")


def is_nifti(path: Path) -> bool:
    """Whether the name is one of a NIfTI file."""
    return ending(path).lower() in NIFTI


def case_name(path: Path) -> str:
    """Name of a case: the file's or folder's name without its ending, in Unicode's composed form (NFC).

    Raises:
        InputError: Nothing is left, or the name could not stand in a list of cases.

    Example:
        >>> case_name(Path("scans/patient 1.NII.GZ")), case_name(Path("P7/mri_norm2.h5"))
        ('patient 1', 'P7')
    """
    name = path.absolute().parent.name if path.name == LA_FILE else path.name.removesuffix(ending(path))
    return checked_name(unicodedata.normalize("NFC", name), path)


def checked_name(name: str, where: object) -> str:
    """The name of a case, if a line of a text file can hold it and give it back.

    Raises:
        InputError: It is empty, begins or ends with a blank, or holds a control character, a line separator or bytes
            that are no text.
    """
    bad = [c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    if not name or bad or name != name.strip():
        why = f"it holds {bad[0]!a}" if bad else "it begins or ends with a blank" if name else "it is empty"
        raise InputError("a case cannot have this name", where=repr(str(where)), why=why, remedy="rename the file")
    return name


def entries(folder: Path) -> list[Path]:
    """What a folder holds, hidden entries left out, in the order of names.

    Raises:
        InputError: A link leads nowhere.
    """
    found = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    for entry in found:
        if not entry.exists():
            raise InputError("a link leads nowhere", where=entry, why=f"to {entry.readlink()}", remedy="mend the link")
    return found


def is_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files directly."""
    return folder.is_dir() and any(looks_dicom(entry) for entry in entries(folder))


def looks_dicom(path: Path) -> bool:
    """Whether a file is named or begins as a DICOM file."""
    if not path.is_file() or path.name.lower() == "dicomdir":
        return False
    if path.suffix.lower() in _DICOM:
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def volumes_below(folder: Path) -> dict[str, Path]:
    """All volumes of a folder and of the folders in it, by name.

    A volume in a folder of its own is named by the way to it: ``patient1/SE2`` is ``patient1_SE2``. Files that are
    neither volumes nor texts are named in a note.

    Raises:
        InputError: Two volumes have one name, DICOM slices lie beside other volumes, or a link leads nowhere.
    """
    found: dict[str, Path] = {}
    others: list[Path] = []
    for path in _walk(folder, others, frozenset()):
        parts = path.relative_to(folder).parts[: -2 if path.name == LA_FILE else -1]
        name = "_".join([*parts, case_name(path)])
        if name in found:
            raise InputError("two volumes have one name", where=path, why=f"{found[name]} is {name} too")
        found[name] = path
    if others:
        shown = ", ".join(str(path.relative_to(folder)) for path in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        warnings.warn(f"not volumes we read, passed over: {shown}{more}", ContrastiveWarning, stacklevel=2)
    return found


def find_volumes(path: Path) -> dict[str, Path]:
    """A file, a DICOM series, or all volumes of a folder, by name.

    Raises:
        InputError: The path is missing, or the folder holds no volume; otherwise as :func:`volumes_below`.
    """
    if not path.exists():
        raise InputError("a volume is missing", where=path, remedy="check the path")
    found = {case_name(path.absolute()): path} if path.is_file() else volumes_below(path)
    if not found:
        known = ", ".join(NIFTI + HDF5)
        raise InputError(
            "a folder holds no volume", where=path, remedy=f"name a folder with {known} files or DICOM series"
        )
    return found


def _walk(folder: Path, others: list[Path], above: frozenset[Path]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:
        raise InputError("a link leads back to a folder above it", where=folder, remedy="remove the link")
    inside, deeper = entries(folder), above | {here}
    if is_series(folder):
        for entry in inside:
            if is_volume(entry) or (entry.is_dir() and any(_walk(entry, [], deeper))):
                raise InputError(
                    "DICOM slices lie beside other volumes",
                    where=folder,
                    why=f"for instance {entry.name}",
                    remedy="give the series a folder of its own",
                )
        yield folder
        return
    for entry in inside:
        if entry.is_dir():
            yield from _walk(entry, others, deeper)
        elif is_volume(entry):
            yield entry
        elif not entry.name.lower().endswith(_NOT_DATA) and entry.name.lower() not in _LITTER:
            others.append(entry)
