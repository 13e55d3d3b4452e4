"""What raw pairs are, and what every row of a table or a published set has to be."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from jaxtyping import UInt8

from cl_retrieval.pairs.checks import check_ids

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


@dataclasses.dataclass(frozen=True)
class RawPairs:
    """Images with texts, row by row.

    Attributes:
        ids: One a pair, all different.
        images: Image files.
        texts: Sentences of each image; features of several are averaged.
        labels: Names of each pair's classes; empty where there are none.
        folder: What the image files lie in.
    """

    ids: tuple[str, ...]
    images: tuple[Path, ...]
    texts: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[str, ...], ...]
    folder: Path

    def __len__(self) -> int:
        return len(self.ids)

    def one_hot(self) -> tuple[UInt8[np.ndarray, "n c"] | None, tuple[str, ...]]:
        """Labels as zeros and ones, and the names of the columns."""
        classes = tuple(sorted({name for names in self.labels for name in names}))
        if not classes:
            return None, ()
        place = {name: column for column, name in enumerate(classes)}
        out = np.zeros((len(self), len(classes)), np.uint8)
        for row, names in enumerate(self.labels):
            out[row, [place[name] for name in names]] = 1
        return out, classes


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        id: Of the pair; rows of one id and one image are sentences of one pair.
        image: Name of the image file.
        texts: Its sentences, at least one.
        labels: Its classes.
        where: File and line, for messages.
    """

    id: str
    image: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    where: str

    @classmethod
    def of(cls, id: Any, image: Any, text: Any, labels: Any, where: str) -> "Row":
        """A row of values of a foreign file, each converted by its type.

        Args:
            id: Text or whole number; the image's name where it is None.
            image: Text.
            text: A text or a list of texts.
            labels: A class or a list of classes, each a text or a whole number; none where it is None.
            where: File and line.

        Raises:
            InputError: A value of another type, nothing where there must be something, text that is not Unicode.
        """
        name = written(image, "image", where)
        sentences = [written(each, "text", where) for each in (text if isinstance(text, list) else [text])]
        sentences = list(dict.fromkeys(" ".join(each.split()) for each in sentences))
        if not name:
            raise InputError("a text has no image", where=where, remedy="name a file, or leave the row out")
        if not sentences or "" in sentences:
            raise InputError("an image has no text", where=where, remedy="give it one, or leave the row out")
        several = labels if isinstance(labels, list) else [] if labels is None else [labels]
        classes = tuple(dict.fromkeys(named(each, "label", where) for each in several))
        return cls(name if id is None else named(id, "id", where), name, tuple(sentences), classes, where)


def written(value: Any, what: str, where: str) -> str:
    """A text as it is written.

    Raises:
        InputError: It is none, or half of a character.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"the {what} is no text", where=where, why=f"got {value!r}", remedy="write it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the {what} is not valid Unicode",
            where=where,
            why=f"half of a character at place {error.start}",
            remedy="repair or leave out the row",
        ) from error
    return value


def named(value: Any, what: str, where: str) -> str:
    """An identifier or a class: a text as it is written, or a whole number.

    Raises:
        InputError: It is neither, or empty.
    """
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else written(value, what, where)
    if not name.strip():
        raise InputError(f"the {what} is empty", where=where, remedy="fill it in, or leave it out")
    return name


def joined(rows: Iterable[Row], folder: Path, where: Path) -> RawPairs:
    """Rows of one id and one image are sentences of one pair.

    Raises:
        InputError: An id with two images, labels that differ among the rows of a pair, or as :func:`joined_pairs`.
    """
    first: dict[str, Row] = {}
    texts: dict[str, list[str]] = {}
    for row in rows:
        known = first.setdefault(row.id, row)
        if known.image != row.image:
            raise InputError(
                "an id occurs twice",
                where=row.where,
                why=f"id {row.id!r} has the images {known.image!r} and {row.image!r}",
                remedy="give every pair its own id",
            )
        if set(known.labels) != set(row.labels):
            raise InputError(
                "rows of one pair have different labels",
                where=row.where,
                why=f"{', '.join(row.labels) or 'none'}; before {', '.join(known.labels) or 'none'}",
                remedy="give all of them the same",
            )
        texts.setdefault(row.id, []).extend(row.texts)
    root = folder
    if first and (folder / "images").is_dir():  # images are named with that folder, or without
        name = next(iter(first.values())).image
        root = folder if inside(folder, name, where).is_file() else folder / "images"
    paths = [inside(root, row.image, row.where) for row in first.values()]
    sentences = [tuple(dict.fromkeys(each)) for each in texts.values()]
    return joined_pairs(list(first), paths, sentences, [row.labels for row in first.values()], root, where)


def inside(folder: Path, name: str, where: object) -> Path:
    """A file below a folder.

    Raises:
        InputError: The name leads out of it.
    """
    path = None if "\0" in name else (folder / name).resolve()
    if path is None or not path.is_relative_to(folder.resolve()):
        raise InputError(
            "an image lies outside the folder of the pairs",
            where=where,
            why=f"got {name!r}",
            remedy="name files relative to that folder, without '..'",
        )
    return path


def joined_pairs(
    ids: Sequence[str],
    images: Sequence[Path],
    texts: Sequence[tuple[str, ...]],
    labels: Sequence[tuple[str, ...]],
    folder: Path,
    where: object,
) -> RawPairs:
    """Pairs, checked.

    Raises:
        InputError: None at all, ids that occur twice or are unusable, a pair without text, a missing image.
    """
    if not ids:
        raise InputError("there are no pairs", where=where, remedy="give at least one image with a text")
    check_ids(ids, where)
    for name, image, sentences in zip(ids, images, texts, strict=True):
        if not any(sentence.strip() for sentence in sentences):
            raise InputError(
                "an image has no text", where=where, why=f"pair {name!r}", remedy="give it one, or leave it out"
            )
        if not image.is_file():
            raise InputError(
                "a text has no image",
                where=where,
                why=f"the image {image.name!r} of pair {name!r} is missing",
                remedy=f"put it into {folder}, or leave the pair out",
            )
    return RawPairs(tuple(ids), tuple(images), tuple(texts), tuple(labels), folder)
