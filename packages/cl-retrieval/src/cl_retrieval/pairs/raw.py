"""Image files with texts: tables, folders with captions, COCO's captions, published sets."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import read_csv, read_json, read_json_lines, read_lines, reading
from PIL import Image, ImageOps

from cl_retrieval.pairs.emoji import on_white
from cl_retrieval.pairs.published import read_published
from cl_retrieval.pairs.rows import RawPairs, Row, joined

TABLES = (".jsonl", ".csv", ".tsv", ".txt", ".json")
_NAMES = {
    "id": ("id", "pair_id"),
    "image": ("image", "file", "file_name", "filename", "filepath", "image_path", "path"),
    "text": ("text", "caption", "captions", "sentence", "sentences", "texts"),
    "labels": ("labels", "label", "classes", "class", "category", "categories"),
}
"""How each field is called, here and elsewhere."""


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


def read_folder(path: Path) -> RawPairs:
    """Read a folder: a table (``pairs.*`` or ``captions.*``) with images, or a published set.

    Raises:
        InputError: The folder holds neither, or several tables.
    """
    names = {f"{stem}{suffix}" for stem in ("pairs", "captions") for suffix in TABLES}
    tables = sorted(each for each in path.iterdir() if each.name.lower() in names and each.is_file())
    if len(tables) > 1:
        raise InputError(
            "the folder holds several tables",
            where=path,
            why=", ".join(each.name for each in tables),
            remedy="name the one that is meant",
        )
    return read_table(tables[0]) if tables else read_published(path)


def read_table(path: Path) -> RawPairs:
    """Read pairs from a table.

    Args:
        path: ``.jsonl`` of ``{"id", "image", "text", "labels"}``; ``.csv`` or ``.tsv`` with these columns (classes
            separated by ``|``); ``.txt`` of ``file<TAB>text``; or ``.json``, COCO's of ``images`` and ``annotations``
            or a list of rows. ``id`` may be absent: the file name serves. Rows of one image are its several sentences,
            as is a list of texts. Images are named relative to the table's folder, or to ``images`` in it.

    Raises:
        InputError: An unreadable table, an unknown field, a row without image or text, an image outside the folder or
            missing, an id that occurs for two images, or no pairs at all.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".txt": _captions, ".json": _json}
    if path.suffix.lower() not in readers:
        raise InputError("the table is of no known kind", where=path, remedy=f"one of {', '.join(TABLES)}")
    return joined(readers[path.suffix.lower()](path), path.parent.resolve(), path)


def open_image(path: Path) -> Image.Image:
    """An image as encoders take it: RGB, upright, on white where it is transparent, its first frame.

    Grey images of 16 bits are brought to 8 by their declared range.

    Raises:
        InputError: The file is missing, no image, truncated, or of a type without a range (32 bits, floats).
    """
    with reading(path, "an image cannot be read", "replace the file, or leave out its pair"), Image.open(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format in ("PNG", "PPM")):
            values = np.asarray(upright).astype(np.float64)
            return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
        if upright.mode in ("I", "F"):
            raise InputError(
                "the values of an image have no declared range",
                where=path,
                why=f"it holds {'whole numbers of 32 bits' if upright.mode == 'I' else 'floats'}",
                remedy="save it with 8 or 16 bits",
            )
        return on_white(upright)


def _jsonl(path: Path) -> Iterator[Row]:
    for number, value in read_json_lines(path):
        yield _row(value, f"{path}, line {number}")


def _csv(path: Path) -> Iterator[Row]:
    for number, cells in read_csv(path, delimiter="\t" if path.suffix.lower() == ".tsv" else ","):
        values: dict[str, Any] = _fields(cells, f"{path}, line {number}")
        if not {"image", "text"} <= set(values):
            raise InputError(
                "the table lacks a column",
                where=path,
                why=f"its columns are {', '.join(cells)}",
                remedy="have the columns image and text, and id and labels if you like",
            )
        if "labels" in values:
            values["labels"] = values["labels"].split("|") if values["labels"] else None
        yield _row(values, f"{path}, line {number}")


def _captions(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            cells = line.split("\t")
            if len(cells) != 2:
                raise InputError(
                    "a line is not file, tab, text",
                    where=f"{path}, line {number}",
                    why=f"{len(cells) - 1} tabs",
                    remedy="separate image file and text by one tab",
                )
            yield Row.of(None, cells[0].strip(), cells[1], None, f"{path}, line {number}")


def _json(path: Path) -> Iterator[Row]:
    values = read_json(path)
    if isinstance(values, list):
        yield from (_row(each, f"{path}, row {number}") for number, each in enumerate(values, 1))
        return
    with reading(path, "the captions cannot be read", "give COCO's images and annotations, or a list of rows"):
        files = {each["id"]: each["file_name"] for each in values["images"]}
        captions = [(each["image_id"], each["caption"]) for each in values["annotations"]]
        silent = len(set(files) - {image for image, _ in captions})
        if len(files) != len(values["images"]):
            raise ValueError("two images have one id")
    for number, (image, caption) in enumerate(captions, 1):
        where = f"{path}, annotation {number}"
        if image not in files:
            raise InputError("a text has no image", where=where, why=f"caption of image {image}")
        yield Row.of(image, files[image], caption, None, where)
    if silent:
        warnings.warn(f"{path}: {silent} of {len(files)} images have no caption", ContrastiveWarning, stacklevel=2)


def _row(values: Any, where: str) -> Row:
    if not isinstance(values, dict):
        raise InputError("a row is no set of fields", where=where, why=f"got {values!r}"[:200])
    fields = _fields(values, where)
    return Row.of(fields.get("id"), fields.get("image"), fields.get("text"), fields.get("labels"), where)


def _fields(values: dict[str, Any], where: str) -> dict[str, Any]:
    """A row's values by our names for them.

    Raises:
        InputError: A name is not known, or two names mean one field.
    """
    known = {name: field for field, names in _NAMES.items() for name in names}
    out: dict[str, Any] = {}
    for name, value in values.items():
        field = known.get(name.strip().lower())
        if field is None or field in out:
            raise InputError(
                "a field is not known" if field is None else "two fields mean the same",
                where=where,
                why=f"got {name!r} among {', '.join(values)}"[:200],
                remedy=f"known are {', '.join(_NAMES)}; remove or rename others",
            )
        out[field] = value
    return out
