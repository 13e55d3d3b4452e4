"""Image files with texts: tables, folders with captions, and COCO's captions."""

import csv
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from contrastive_core.errors import InputError
from jaxtyping import UInt8
from PIL import Image, ImageOps

from cl_retrieval.pairs.features import check_ids

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".txt")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
OnMissing = Literal["refuse", "skip"]


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


def read_table(path: Path, *, images: Path | None = None) -> RawPairs:
    """Read pairs from a table.

    Args:
        path: ``.jsonl`` of ``{"id", "image", "text", "labels"}``; ``.csv`` or ``.tsv`` with these columns (classes
            separated by ``|``); ``.txt`` of ``file<TAB>text``; or COCO's ``.json`` of ``images`` and ``annotations``.
            ``id`` may be absent: the file name serves. Rows of one image are its several sentences.
        images: Folder of the image files; that of the table by default.

    Raises:
        InputError: An unreadable table, a row without image or text, an image outside the folder or missing, an id
            that occurs for two images, or no pairs at all.
    """
    folder = (images or path.parent).resolve()
    readers = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".txt": _captions, ".json": _coco}
    if path.suffix not in readers:
        raise InputError("the table is of no known kind", where=path, remedy=f"one of {', '.join(TABLES)}")
    try:
        rows = list(readers[path.suffix](path))
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError("the pairs cannot be read", where=path, why=f"{type(error).__name__}: {error}") from error
    return _joined(rows, folder, path)


def read_folder(path: Path) -> RawPairs:
    """Read a folder: a table (``pairs.jsonl``, ``pairs.csv``, ``captions.*``) with images, or a published set.

    Raises:
        InputError: The folder holds neither.
    """
    for name in ("pairs.jsonl", "pairs.csv", "captions.jsonl", "captions.csv", "captions.txt", "captions.json"):
        if (path / name).is_file():
            inside = path / "images"
            return read_table(path / name, images=inside if inside.is_dir() and not _beside(path / name) else path)
    from cl_retrieval.pairs.published import read_published

    return read_published(path)


def read_pairs(path: Path) -> RawPairs:
    """Read pairs from a table or folder.

    Raises:
        InputError: It is neither, or cannot be used.
    """
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        return read_table(path)
    raise InputError("the pairs are missing", where=path, remedy="name a table or a folder of images with texts")


def open_image(path: Path) -> Image.Image:
    """An image as encoders take it: RGB, upright, on white where it is transparent, its first frame.

    Raises:
        InputError: The file is missing, no image, or truncated.
    """
    from cl_retrieval.pairs.emoji import on_white

    try:
        with Image.open(path) as image:
            image.load()
            return on_white(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            "an image cannot be read", where=path, why=str(error), remedy="replace the file, or leave out its pair"
        ) from error


def inside(folder: Path, name: str, where: object) -> Path:
    """A file below a folder.

    Raises:
        InputError: The name leads out of it.
    """
    found = (folder / name).resolve()
    if not found.is_relative_to(folder.resolve()) or "\0" in name:
        raise InputError(
            "an image lies outside the folder of the pairs",
            where=where,
            why=f"got {name!r}",
            remedy="name files relative to that folder, without '..'",
        )
    return found


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


_Row = tuple[str, str, str, tuple[str, ...]]


def _joined(rows: list[_Row], folder: Path, where: Path) -> RawPairs:
    """Rows of one id and one image are sentences of one pair."""
    places: dict[str, int] = {}
    images: list[str] = []
    texts: list[list[str]] = []
    labels: list[tuple[str, ...]] = []
    for number, (name, image, text, classes) in enumerate(rows, 1):
        if not image:
            raise InputError(
                "a text has no image", where=f"{where}, row {number}", remedy="name a file, or leave it out"
            )
        if name not in places:
            places[name] = len(places)
            images.append(image)
            texts.append([])
            labels.append(classes)
        place = places[name]
        if images[place] != image or text in texts[place]:
            raise InputError(
                "an id occurs twice",
                where=where,
                why=f"id {name!r}, again in row {number}",
                remedy="give every pair its own id",
            )
        texts[place].append(text)
    paths = [inside(folder, image, where) for image in images]
    return joined_pairs(list(places), paths, [tuple(each) for each in texts], labels, folder, where)


def _jsonl(path: Path) -> Iterator[_Row]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip():
            yield _row(json.loads(line))


def _csv(path: Path) -> Iterator[_Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        if reader.fieldnames is None or not {"image", "text"} <= set(reader.fieldnames):
            raise InputError(
                "the table lacks a column",
                where=path,
                why=f"its columns are {reader.fieldnames}",
                remedy="have the columns image and text, and id and labels if you like",
            )
        for row in reader:
            yield _row({**row, "labels": [each for each in (row.get("labels") or "").split("|") if each]})


def _captions(path: Path) -> Iterator[_Row]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip():
            image, tab, text = line.partition("\t")
            yield _row({"image": image, "text": text if tab else ""})


def _coco(path: Path) -> Iterator[_Row]:
    values = json.loads(path.read_text(encoding="utf-8-sig"))
    files = {each["id"]: each["file_name"] for each in values["images"]}
    for each in values["annotations"]:
        if each["image_id"] not in files:
            raise InputError("a text has no image", where=path, why=f"caption of image {each['image_id']}")
        yield str(each["image_id"]), files[each["image_id"]], " ".join(str(each["caption"]).split()), ()


def _row(values: dict[str, Any]) -> _Row:
    image, text = str(values.get("image") or ""), values.get("text")
    labels = values.get("labels") or ()
    names = (labels,) if isinstance(labels, str) else tuple(str(each) for each in labels)
    name = str(values.get("id") or image)
    return name, image, " ".join(str(text or "").split()), names


def _beside(table: Path) -> bool:
    """Whether the table names its images with their folder."""
    return "images/" in table.read_text(encoding="utf-8-sig", errors="replace")[:4096]
