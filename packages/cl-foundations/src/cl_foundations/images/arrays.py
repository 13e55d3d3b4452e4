"""Sets of images from arrays in memory or in ``.npz`` files."""

import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.files import reading
from jaxtyping import Shaped
from PIL import Image

from cl_foundations.images.files import check_size
from cl_foundations.images.layout import PARTS, as_parts
from cl_foundations.images.pixels import as_rgb, square
from cl_foundations.images.sets import ImageSet, Split

_ROLES = {
    **dict.fromkeys(("x", "image", "images", "img", "imgs", "data", "pixels", "arr0"), "images"),
    **dict.fromkeys(("y", "label", "labels", "target", "targets", "arr1"), "labels"),
    **dict.fromkeys(("classes", "classnames", "labelnames"), "classes"),
    **dict.fromkeys(("id", "ids", "path", "paths", "file", "files", "filenames"), "ids"),
}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class _Key(NamedTuple):
    part: Split | None
    role: str


def image_set(
    images: Shaped[np.ndarray, "..."],
    labels: Shaped[np.ndarray, "..."] | Sequence[object] | None = None,
    *,
    side: int | None = None,
    ids: Sequence[str] | None = None,
    name: str = "images",
) -> ImageSet:
    """Images in memory as a set.

    Args:
        images: ``[n h w]``, or ``[n h w c]`` with 1, 3 or 4 channels; of 8 or 16 bits.
        labels: Class of every image: whole numbers or texts.
        side: Side of the set's images; the shorter one of these if absent. The shorter side is resized to it and the
            centre kept.
        ids: A name for every image; its number if absent.
        name: Where they come from, for messages.

    Raises:
        InputError: The array has another layout or type, or there is not one label an image.

    Example:
        >>> image_set(np.zeros((4, 8, 8, 3), np.uint8), ["b", "a", "a", "b"]).labels
        array([1, 0, 0, 1])
    """
    pixels = _pixels(np.asarray(images), name)
    side = side if side is not None else min(pixels.shape[1:3])
    texts, classes = (None, ()) if labels is None else _texts(np.asarray(labels), len(pixels), name)
    return ImageSet(
        name,
        side,
        tuple(map(str, range(len(pixels)))) if ids is None else tuple(ids),
        None if texts is None else _numbers(texts, classes),
        classes,
        pixels=_squares(pixels, side, name),
    )


def npz_parts(path: Path) -> set[Split]:
    """Parts the arrays of a file are named by, such as ``x_train`` and ``x_test``; none where they name none."""
    parts = {key.part for key in _keys(path).values() if key.role == "images" and key.part}
    return set(filter(None, as_parts(sorted(parts))))


def read_npz(path: Path, side: int, split: Split) -> ImageSet:
    """Images of a ``.npz`` file.

    Args:
        path: A file with an array of images (``x``, ``images``, ``data``, ... in any spelling) and, if they have them,
            of labels (``y``, ``labels``, ``targets``, ...), of the classes' names and of the images' ids. Arrays of
            parts are named by them: ``x_train``, ``test_images``.
        side: Side of the images.
        split: The part to read.

    Raises:
        InputError: The file is damaged or grows beyond what pictures do; an array has an unknown name, layout or type;
            the part is not there.
    """
    keys = _keys(path)
    _check_keys(keys, path)
    names: dict[_Key, str] = {key: name for name, key in keys.items()}
    parts = [key.part for key in names if key.role == "images"]
    meaning = dict(zip(parts, as_parts(parts), strict=True))
    chosen = [part for part in parts if split == "all" or meaning[part] == split]
    if not chosen:
        known = f"it has {', '.join(sorted(filter(None, meaning.values())))}" if any(parts) else "it holds one part"
        raise InputError(f"an .npz file has no {split} part", where=path, why=known, remedy="name another file or part")
    sets = [_read_part(path, part, names, side) for part in chosen]
    return sets[0] if len(sets) == 1 else _joined(sets)


def from_cifar(
    path: Path, x: np.ndarray, y: np.ndarray, classes: tuple[str, ...], side: int, numbers: np.ndarray
) -> ImageSet:
    """Images of CIFAR, ``x`` ``[n 32 32 3]``, as a set; their ids are their numbers."""
    return ImageSet(str(path), side, tuple(map(str, numbers.tolist())), y, classes, pixels=_squares(x, side, str(path)))


def _read_part(path: Path, part: Split | None, names: dict[_Key, str], side: int) -> ImageSet:
    with reading(path, "the arrays cannot be read"), np.load(path, allow_pickle=False) as file:
        arrays = {key.role: np.asarray(file[name]) for key, name in names.items() if key.part == part}
        classes = names.get(_Key(None, "classes"))
        arrays |= {} if classes is None else {"classes": np.asarray(file[classes])}
    labels = arrays.get("labels")
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels is not None and "classes" in arrays:
        labels = _named(labels, arrays["classes"], path)
    ids = None
    if "ids" in arrays:
        ids, _ = _texts(arrays["ids"], len(arrays["images"]), f"{path}: {names[_Key(part, 'ids')]}")
    elif part is not None:
        ids = [f"{part}/{index}" for index in range(len(arrays["images"]))]
    return image_set(arrays["images"], labels, side=side, ids=ids, name=str(path))


def _joined(sets: list[ImageSet]) -> ImageSet:
    """Sets of one file as one; labels by name, or none where a part has none."""
    ids = tuple(name for each in sets for name in each.ids)
    pixels = torch.cat([each.pixels for each in sets if each.pixels is not None])
    labelled = [each.labels is not None for each in sets]
    if any(labelled) and not all(labelled):
        raise InputError("some parts have labels and some have not", where=sets[0].name, remedy="choose one by --split")
    texts = [each.classes[i] for each in sets if each.labels is not None for i in each.labels.tolist()]
    classes = _sorted(set(texts))
    labels = _numbers(texts, classes) if texts else None
    return ImageSet(sets[0].name, sets[0].side, ids, labels, classes, pixels=pixels)


def _keys(path: Path) -> dict[str, _Key]:
    """Arrays of a file by what they are, after a look at their sizes."""
    keys: dict[str, _Key] = {}
    with reading(path, "the arrays cannot be read"), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        check_size(path, sum(entry.file_size for entry in entries), path.stat().st_size)
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            key = _key(name)
            if key is None:
                raise InputError(
                    "the file holds an array of an unknown name",
                    where=path,
                    why=f"got {name}",
                    remedy="name the images x (or x_train, x_test), the labels y, their names classes, and no others",
                )
            _check_array(archive, entry, f"{path}: {name}")
            keys[name] = key
    return keys


def _key(name: str) -> _Key | None:
    plain = re.sub(r"[\W_]", "", name).lower()
    if plain in _ROLES:
        return _Key(None, _ROLES[plain])
    for word, part in sorted(PARTS.items(), key=lambda pair: -len(pair[0])):
        for rest in (plain.removeprefix(word), plain.removesuffix(word)):
            if rest != plain and _ROLES.get(rest, "classes") != "classes":
                return _Key(part, _ROLES[rest])
    return None


def _check_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> None:
    """Whether the file is as long as the array's header says, before the array is made."""
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    if dtype.hasobject:
        raise InputError("the arrays cannot be read", where=where, why="it holds Python objects, not numbers or texts")
    if math.prod(shape) * dtype.itemsize > entry.file_size:
        raise InputError("the arrays cannot be read", where=where, why=f"it is too short for its shape {shape}")


def _check_keys(keys: dict[str, _Key], path: Path) -> None:
    images = [key.part for key in keys.values() if key.role == "images"]
    why = None
    for key in dict.fromkeys(keys.values()):
        alike = [name for name, each in keys.items() if each == key]
        if len(alike) > 1:
            why = f"{' and '.join(alike)} are both {key.role}"
        elif key.role == "classes" and not any(each.role == "labels" for each in keys.values()):
            why = f"{alike[0]} names classes, but there is no array y"
        elif key.role != "classes" and key.part not in images:
            why = f"{alike[0]} has no images beside it" if images else "there is no array x"
    if not images:
        why = "there is no array x"
    elif None in images and any(images):
        why = "some images are of a part and some of none"
    if why is not None:
        raise InputError(
            "the file holds no set of images", where=path, why=why, remedy="name the images x, the labels y"
        )


def _pixels(x: np.ndarray, where: str) -> np.ndarray:
    shape = x.shape
    # A single colour image would pass for as many grey ones as it has rows.
    if x.ndim == 3 and shape[-1] not in (3, 4):
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in _MODES or not x.size:
        raise InputError(
            "the images have no known layout", where=where, why=f"expected [n h w 3] (or 1 or 4 channels), got {shape}"
        )
    if x.dtype == np.uint16:
        return ((x.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if x.dtype != np.uint8:
        raise InputError(
            "the images are not of 8 or 16 bits",
            where=where,
            why=f"got {x.dtype}",
            remedy="scale the values to 0..255, without NaN, and store them as uint8",
        )
    return x


def _squares(x: np.ndarray, side: int, where: str) -> torch.Tensor:
    if x.shape[-1] == 3 and x.shape[1:3] == (side, side):
        return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    arrays = (image[..., 0] if x.shape[-1] == 1 else image for image in x)
    return torch.stack([square(as_rgb(Image.fromarray(image), where), side) for image in arrays])


def _texts(labels: np.ndarray, count: int, where: str) -> tuple[list[str], tuple[str, ...]]:
    """Labels as texts, and their classes in order: numbers by value, texts by letter."""
    if labels.shape != (count,) or labels.dtype.kind not in "biuUSO":
        raise InputError(
            "labels are one integer or name an image", where=where, why=f"got {labels.dtype} {labels.shape} for {count}"
        )
    values = labels.tolist()
    if labels.dtype.kind == "O" and not all(isinstance(value, str | int) for value in values):
        raise InputError("labels are one integer or name an image", where=where, why="some are neither")
    with reading(where, "labels are no text", "store them as texts in UTF-8"):
        texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    if not all(text.strip() for text in texts):
        raise InputError(
            "a label is empty", where=where, why=f"that of image {texts.index('')}" if "" in texts else None
        )
    return texts, _sorted(set(texts))


def _sorted(texts: set[str]) -> tuple[str, ...]:
    whole = all(re.fullmatch(r"-?\d+", text) for text in texts)
    return tuple(sorted(texts, key=(lambda text: (int(text), text)) if whole else None))


def _numbers(texts: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    place = {name: index for index, name in enumerate(classes)}
    return np.array([place[text] for text in texts], dtype=np.int64)


def _named(labels: np.ndarray, classes: np.ndarray, path: Path) -> np.ndarray:
    """Numbered labels by the names of their classes."""
    names, _ = _texts(classes, len(classes), f"{path}: classes")
    if labels.dtype.kind not in "iu" or (labels.size and not 0 <= labels.min() <= labels.max() < len(names)):
        raise InputError("labels and names of classes do not fit together", where=path, why=f"{len(names)} names")
    return np.array(names)[labels]
