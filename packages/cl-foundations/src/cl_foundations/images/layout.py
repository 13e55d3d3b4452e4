"""What the places of image files say: which part of a set they belong to, and which class they are of."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from contrastive_core.errors import InputError

from cl_foundations.images.sets import Split

PARTS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_SETS = ("", "set", "data", "dataset", "images", "imgs", "split", "part")


class Layout(NamedTuple):
    """Part and class of every image.

    Attributes:
        parts: ``train``, ``val`` or ``test``, or ``None`` throughout.
        classes: Name of the class, ``None`` where an image is in no class folder.
    """

    parts: list[Split | None]
    classes: list[str | None]


def part_named(name: str) -> Split | None:
    """The part a folder, or a value of a table, names, in any spelling.

    Example:
        >>> [part_named(name) for name in ("Train", "test_set", "validation", "banana")]
        ['train', 'test', 'val', None]
    """
    plain = re.sub(r"[\W_]", "", name).lower()
    return next((PARTS[plain.removesuffix(end)] for end in _SETS if plain.removesuffix(end) in PARTS), None)


def as_parts(parts: Sequence[Split | None]) -> list[Split | None]:
    """Parts of a set in which the validation part stands in for a test part that is not there."""
    return list(parts) if "test" in parts else ["test" if part == "val" else part for part in parts]


def layout_of(names: Sequence[str], where: object) -> Layout:
    """Read the parts and classes off the paths of image files.

    Images lie in one folder, or in a folder a class (its sub-folders belong to it), or either below folders of the
    parts. One more folder around all of that is passed over.

    Args:
        names: Paths below the set's folder, with forward slashes.
        where: The set, for errors.

    Raises:
        InputError: Some images lie as in one of these layouts, and some do not.
    """
    places = [PurePosixPath(name).parts for name in names]
    while _wrapped(places):
        places = [place[1:] for place in places]
    parts = _parts(names, places, where)
    if any(parts):
        places = [place[1:] for place in places]
    else:
        _no_parts_inside(names, places, where)
    classes = [unicodedata.normalize("NFC", place[0]) if len(place) > 1 else None for place in places]
    return Layout(as_parts(parts), classes)


def same_depth(names: Sequence[str], classes: Sequence[str | None], where: object) -> None:
    """Refuse images of which some are in class folders and some are not.

    Raises:
        InputError: So it is.
    """
    if len({name is None for name in classes}) > 1:
        odd = names[list(classes).index(None)]
        raise InputError(
            "some images are in class folders and some are not",
            where=f"{where}/{odd}",
            remedy="move it into the folder of its class, or choose one part with --split",
        )


def _wrapped(places: list[tuple[str, ...]]) -> bool:
    outer = {place[0] for place in places}
    return len(outer) == 1 and all(len(place) > 2 for place in places) and part_named(outer.pop()) is None


def _parts(names: Sequence[str], places: list[tuple[str, ...]], where: object) -> list[Split | None]:
    parts = [part_named(place[0]) if len(place) > 1 else None for place in places]
    folders = {place[0]: part for place, part in zip(places, parts, strict=True) if part}
    if not folders:
        return parts
    for part in set(folders.values()):
        alike = sorted(name for name, each in folders.items() if each == part)
        if len(alike) > 1:
            raise InputError(f"two folders hold the {part} part", where=where, why=", ".join(alike), remedy="join them")
    if all(parts):
        return parts
    if len(folders) == 1 and all(len(place) == 2 for place in places):
        return [None] * len(parts)  # class folders, one of which is called train, as the vehicle is
    raise InputError(
        "some images stand beside the folders of the parts",
        where=f"{where}/{names[parts.index(None)]}",
        why=f"beside {', '.join(sorted(folders))}, every image belongs below one of these",
        remedy="move or remove it",
    )


def _no_parts_inside(names: Sequence[str], places: list[tuple[str, ...]], where: object) -> None:
    inside = [len(place) > 2 and part_named(place[1]) is not None for place in places]
    if any(inside):
        raise InputError(
            "folders of parts lie inside other folders",
            where=f"{where}/{names[inside.index(True)]}",
            remedy="put train and test on top and the classes below them, or name one of the sets",
        )
