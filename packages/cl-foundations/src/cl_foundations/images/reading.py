"""Reading images: folders, archives, arrays and CIFAR, in whatever form the files have, into one kind of set."""

import dataclasses
import warnings
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from contrastive_core.data import stratified_split
from contrastive_core.errors import ContrastiveWarning, InputError

from cl_foundations.images.arrays import from_cifar, npz_parts, read_npz
from cl_foundations.images.cifar import find_cifar, read_cifar
from cl_foundations.images.files import READ, FileSource
from cl_foundations.images.layout import layout_of, same_depth
from cl_foundations.images.listing import add_tables
from cl_foundations.images.pixels import check_header, read_image, square
from cl_foundations.images.sets import ImageSet, Split

OnCorrupt = Literal["refuse", "skip"]
_IN_MEMORY = 2 << 30  # bytes of pixels up to which a set is decoded once and kept


def read_images(
    path: Path | str, side: int, *, split: Split = "all", on_corrupt: OnCorrupt = "refuse", in_memory: int = _IN_MEMORY
) -> ImageSet:
    """Read a set of images.

    Understood are: a folder (or .zip) of images; one with a folder a class; either below folders of the parts
    (``train``, ``val``, ``test`` and their usual synonyms, in upper or lower case), and within one more folder; a
    ``labels.csv`` or ``labels.tsv`` with the columns file and label, or split; ``.npz`` files of arrays such as ``x``
    and ``y``, or ``x_train`` and ``x_test``; CIFAR-10 and CIFAR-100 as torchvision lays them out, and CIFAR-10's binary
    version. Where there is no test part, the validation part stands in for it.

    Every image is made RGB and square: grey is repeated, transparency laid over white, 16 bits scaled to 8, the shorter
    side resized to ``side`` and the centre kept. Links are followed, hidden files left out; what is neither an image
    nor a text is named.

    Args:
        path: Folder or file.
        side: Side of the images, in pixels.
        split: The part to read; ``all`` takes every part.
        on_corrupt: ``refuse`` an unreadable image, or ``skip`` it with a note.
        in_memory: Bytes of pixels up to which the set is decoded at once; a larger one is read while it is used, after
            a look at every file's header.

    Raises:
        InputError: Nothing is there, the part asked for is not, the images lie in no known way, or one cannot be used.
    """
    path = Path(path)
    if split not in get_args(Split):
        raise InputError(
            "unknown part", where="split", why=f"got {split}", remedy=f"one of {', '.join(get_args(Split))}"
        )
    kind = _kind(path)
    if kind == "cifar":
        x, y, classes, is_test = read_cifar(path)
        keep = np.ones(len(x), bool) if split == "all" else is_test == (split == "test")
        if split == "val":
            raise InputError("CIFAR has no validation part", where=path, remedy="choose train or test")
        return from_cifar(path, x[keep], y[keep], classes, side, np.flatnonzero(keep))
    if kind == "npz":
        return read_npz(path, side, split)
    return _read_files(FileSource(path), side, split, on_corrupt, in_memory)


def has_parts(path: Path | str) -> bool:
    """Whether a set comes with a training and a test part; errors as :func:`read_images`."""
    return {"train", "test"} <= _parts(Path(path))


def read_parts(
    path: Path | str, side: int, *, seed: int = 0, on_corrupt: OnCorrupt = "refuse"
) -> tuple[ImageSet, ImageSet]:
    """Training and test part of a set; where it has none, a fifth of every class is drawn for the test.

    Args:
        path: Folder or file.
        side: Side of the images.
        seed: Seed of the draw.
        on_corrupt: As :func:`read_images`.

    Raises:
        InputError: As :func:`read_images`, or there are fewer than two images.
    """
    if has_parts(path):
        if "val" in _parts(Path(path)):
            warnings.warn(f"the validation part of {path} is not looked at", ContrastiveWarning, stacklevel=2)
        train, test = (read_images(path, side, split=part, on_corrupt=on_corrupt) for part in ("train", "test"))
        return train, test
    whole = read_images(path, side, on_corrupt=on_corrupt)
    if len(whole) < 2:
        raise InputError("a training and a test part need two images", where=path, why=f"there is {len(whole)}")
    return held_out(whole, seed)


def held_out(images: ImageSet, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """The images without, and with, a fifth of every class.

    Args:
        images: At least two.
        seed: Seed of the draw.
    """
    kept, held = stratified_split(np.zeros(len(images)) if images.labels is None else images.labels, 0.2, seed=seed)
    if not len(held):  # classes of two images or fewer
        kept, held = kept[:-1], kept[-1:]
    return images.take(kept), images.take(held)


def _kind(path: Path) -> Literal["cifar", "npz", "files"]:
    if not path.exists():
        raise InputError("the images are missing", where=path, remedy="check the path")
    if path.is_dir():
        return "files" if find_cifar(path) is None else "cifar"
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".npz", ".zip"):
        raise InputError(
            "not a set of images",
            where=path,
            why=f"a {suffix or 'nameless'} file",
            remedy="name a folder, a .zip of images or an .npz",
        )
    return "npz" if suffix == ".npz" else "files"


def _parts(path: Path) -> set[Split]:
    kind = _kind(path)
    if kind == "cifar":
        return {"train", "test"}
    if kind == "npz":
        return npz_parts(path)
    source = FileSource(path)
    names = _names(source)
    return {part for part in add_tables(source, names, layout_of(names, path)).parts if part is not None}


def _names(source: FileSource) -> list[str]:
    names = source.images()
    if not names:
        archives = [name for name in source.files if name.lower().endswith(".zip")]
        raise InputError(
            "there are no images",
            where=source.path,
            why=f"no file ends in {READ.replace(' ', ', ')}",
            remedy=f"name the archive {source.path / archives[0]}" if archives else "check the path",
        )
    return names


def _read_files(source: FileSource, side: int, split: Split, on_corrupt: OnCorrupt, in_memory: int) -> ImageSet:
    names = _names(source)
    if split in ("all", "train") and (others := source.others()):
        text = f"{source.path}: {len(others)} files that are no images were left out, for instance {others[0]}"
        warnings.warn(text, ContrastiveWarning, stacklevel=3)
    parts, folders = add_tables(source, names, layout_of(names, source.path))
    chosen = [i for i, part in enumerate(parts) if split in ("all", part)]
    if not chosen:
        known = sorted({part for part in parts if part})
        raise InputError(
            f"there is no {split} part",
            where=source.path,
            why=f"there are {', '.join(known)}" if known else "the images are in no folders of parts",
            remedy="put its images below a folder of that name, or name another folder",
        )
    same_depth([names[i] for i in chosen], [folders[i] for i in chosen], source.path)
    classes = tuple(sorted({name for name in folders if name is not None}))
    labels = None
    if folders[chosen[0]] is not None:
        place = {name: index for index, name in enumerate(classes)}
        labels = np.array([place[str(folders[i])] for i in chosen], dtype=np.int64)
    whole = ImageSet(str(source.path), side, tuple(names[i] for i in chosen), labels, classes, source=source)
    return _load(whole, source, on_corrupt, keep=len(chosen) * 3 * side * side <= in_memory)


def _load(images: ImageSet, source: FileSource, on_corrupt: OnCorrupt, *, keep: bool) -> ImageSet:
    """Decode every image, or look at every header, and deal with those that cannot be read."""
    pixels, good = [], []
    bad: list[tuple[str, InputError]] = []
    framed: list[str] = []
    for index, name in enumerate(images.ids):
        where = source.path / name
        try:
            data = source.read(name)
            if keep:
                image, several = read_image(data, where)
                pixels.append(square(image, images.side))
            else:
                several = check_header(data, where)
            good.append(index)
            framed += [name] if several else []
        except InputError as error:
            if on_corrupt == "refuse":
                raise
            bad.append((name, error))
    if framed:
        text = f"of {len(framed)} images with several frames the first is taken, for instance of {framed[0]}"
        warnings.warn(text, ContrastiveWarning, stacklevel=2)
    if bad:
        name, first = bad[0]
        message = f"{len(bad)} of {len(images)} images were left out, for instance {name} ({first.why or first.what})"
        if not good:
            raise InputError("no image can be read", where=images.name, why=message)
        warnings.warn(message, ContrastiveWarning, stacklevel=2)
        images = images.take(good)
    return dataclasses.replace(images, pixels=torch.stack(pixels), source=None) if keep else images
