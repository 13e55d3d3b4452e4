"""Reading images: folders, archives, arrays and CIFAR, in whatever form the files have, into one kind of set."""

import dataclasses
import functools
import io
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from contrastive_core.errors import ContrastiveWarning, InputError
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cl_foundations.cfa.cifar import find_cifar, read_cifar

Split = Literal["all", "train", "test"]
OnCorrupt = Literal["refuse", "skip"]
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
_SPLITS: dict[str, Split] = {"train": "train", "test": "test", "val": "test", "validation": "test"}
_IN_MEMORY = 2 << 30  # bytes of pixels up to which a set is decoded once and kept


@dataclasses.dataclass(frozen=True)
class ImageSet(Dataset[tuple[Tensor, int]]):
    """Images of one size, in memory or read when asked for.

    Attributes:
        name: Where they come from, for messages.
        side: Side in pixels.
        ids: A name for every image: its path below the folder, or its index.
        labels: Class indices, or ``None``.
        classes: Names of the classes, sorted.
        pixels: All pixels, where the set is small enough.
        source: Where files are read from, where it is not.
    """

    name: str
    side: int
    ids: tuple[str, ...]
    labels: Int[np.ndarray, " n"] | None
    classes: tuple[str, ...]
    pixels: UInt8[Tensor, "n 3 side side"] | None = None
    source: "Source | None" = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 side side"], int]:
        """One image and its class, -1 where it has none."""
        label = -1 if self.labels is None else int(self.labels[index])
        if self.pixels is not None:
            return self.pixels[index], label
        assert self.source is not None
        return decode(self.source.read(self.ids[index]), self.side, f"{self.name}/{self.ids[index]}"), label

    def take(self, indices: Sequence[int] | Int[np.ndarray, " m"]) -> "ImageSet":
        """Some of the images, in the given order."""
        index = np.asarray(indices, dtype=np.int64)
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[i] for i in index.tolist()),
            labels=None if self.labels is None else self.labels[index],
            pixels=None if self.pixels is None else self.pixels[torch.from_numpy(index)],
        )

    def images(self, indices: Sequence[int]) -> UInt8[Tensor, "m 3 side side"]:
        """Pixels of some of the images."""
        return torch.stack([self[index][0] for index in indices])

    def training_set(self) -> Dataset[Any]:
        """Pairs of image and class, in the form that is quickest to take batches from."""
        if self.pixels is None:
            return self
        labels = torch.full((len(self),), -1) if self.labels is None else torch.from_numpy(self.labels)
        return TensorDataset(self.pixels, labels)

    def batches(self, size: int = 256, workers: int = 0) -> DataLoader[Any]:
        """Batches in order, for inference."""
        return DataLoader(self, batch_size=size, num_workers=workers)

    def labelled(self, purpose: str) -> Int[np.ndarray, " n"]:
        """The labels, for something that cannot do without.

        Raises:
            InputError: There are none, or all are of one class.
        """
        if self.labels is None:
            raise InputError(
                f"{purpose} needs labels",
                where=self.name,
                why="the images are in no class folders, and no file gives their classes",
                remedy="sort the images into one folder a class, or put y into the .npz",
            )
        if len(np.unique(self.labels)) < 2:
            raise InputError(
                f"{purpose} needs two classes",
                where=self.name,
                why=f"every image is of class {self.classes[int(self.labels[0])]}" if len(self) else "no images",
                remedy="add images of another class",
            )
        return self.labels


class Source:
    """Image files below a folder or in a .zip archive, which is read without being unpacked.

    Args:
        path: The folder or archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile | None:
        if self.path.is_dir():
            return None
        try:
            return zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError("the archive cannot be read", where=self.path, why=str(error)) from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the open archive, for loader processes."""
        return {"path": self.path}

    def names(self) -> list[str]:
        """Relative paths of the image files, sorted; hidden ones are left out."""
        if self._archive is not None:
            found = self._archive.namelist()
        else:
            found = [entry.relative_to(self.path).as_posix() for entry in self.path.rglob("*") if entry.is_file()]
        return sorted(
            name
            for name in found
            if PurePosixPath(name).suffix.lower() in SUFFIXES
            and not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
        )

    def read(self, name: str) -> bytes:
        """Bytes of one file.

        Raises:
            InputError: It is gone or cannot be read.
        """
        try:
            return (self.path / name).read_bytes() if self._archive is None else self._archive.read(name)
        except (OSError, KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise InputError("an image cannot be read", where=self.path / name, why=str(error)) from error


def read_images(
    path: Path | str, side: int, *, split: Split = "all", on_corrupt: OnCorrupt = "refuse", in_memory: int = _IN_MEMORY
) -> ImageSet:
    """Read a set of images.

    Understood are: a folder (or .zip) of images; one with a folder a class; either below ``train``, ``test``, ``val``
    or ``validation``; CIFAR-10 and CIFAR-100 as torchvision lays them out, and CIFAR-10's binary version; and ``.npz``
    files with ``x`` (uint8 ``[n h w 3]``) and, if they have labels, ``y``.

    Every image is made RGB and square: grey is repeated, transparency laid over white, 16 bits scaled to 8, the shorter
    side resized to ``side`` and the centre kept.

    Args:
        path: Folder or file.
        side: Side of the images, in pixels.
        split: The part to read; ``all`` takes both.
        on_corrupt: ``refuse`` an unreadable image, or ``skip`` it with a note.
        in_memory: Bytes of pixels up to which the set is decoded at once; a larger one is read while it is used, after
            a look at every file's header.

    Raises:
        InputError: Nothing is there, the part asked for is not, or an image cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("the images are missing", where=path, remedy="check the path")
    if find_cifar(path) is not None:
        x, y, classes, is_test = read_cifar(path)
        keep = np.ones(len(x), bool) if split == "all" else is_test == (split == "test")
        return _from_arrays(path, x[keep], y[keep], classes, side, np.flatnonzero(keep))
    if path.is_file() and path.suffix == ".npz":
        if split != "all":
            raise InputError("an .npz file holds one part", where=path, remedy=f"name a file of the {split} part")
        return _read_npz(path, side)
    if path.is_file() and path.suffix != ".zip":
        raise InputError(
            "not a set of images",
            where=path,
            why=f"a {path.suffix or 'nameless'} file",
            remedy="name a folder, a .zip of images or an .npz",
        )
    return _read_files(Source(path), side, split, on_corrupt, in_memory)


def has_parts(path: Path | str) -> bool:
    """Whether a set comes with a training and a test part."""
    path = Path(path)
    if not path.exists() or (path.is_file() and path.suffix != ".zip"):
        return False
    if find_cifar(path) is not None:
        return True
    parts = {_SPLITS.get(PurePosixPath(name).parts[0]) for name in Source(path).names()}
    return {"train", "test"} <= parts


def read_parts(
    path: Path | str, side: int, *, seed: int = 0, on_corrupt: OnCorrupt = "refuse"
) -> tuple[ImageSet, ImageSet]:
    """Training and test part of a set; where it has none, every fifth image is drawn for the test, class by class.

    Args:
        path: Folder or file.
        side: Side of the images.
        seed: Seed of the draw.
        on_corrupt: As :func:`read_images`.

    Raises:
        InputError: As :func:`read_images`, or there are fewer than two images.
    """
    if has_parts(path):
        train, test = (read_images(path, side, split=part, on_corrupt=on_corrupt) for part in ("train", "test"))
        return train, test
    whole = read_images(path, side, on_corrupt=on_corrupt)
    if len(whole) < 2:
        raise InputError("a training and a test part need two images", where=path, why=f"found {len(whole)}")
    rng = np.random.default_rng(seed)
    groups = np.zeros(len(whole), int) if whole.labels is None else whole.labels
    test_index = []
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        # A class of one image stays in the training part.
        test_index.append(members[: max(1, len(members) // 5) if len(members) > 1 else 0])
    held = np.sort(np.concatenate(test_index))
    return whole.take(np.setdiff1d(np.arange(len(whole)), held)), whole.take(held)


def decode(data: bytes, side: int, where: object) -> UInt8[Tensor, "3 side side"]:
    """Bytes of an image file as RGB pixels of one size.

    Raises:
        InputError: The bytes are no whole image, or its values have no defined range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data))
            opened.load()
        image = ImageOps.exif_transpose(opened)
    except Exception as error:  # decoders fail on damaged files in many ways
        raise InputError(
            "an image cannot be read",
            where=where,
            why=_reason(error),
            remedy="restore or remove the file, or leave such files out with --on-corrupt skip",
        ) from error
    return _square(_rgb(image, where), side)


def _rgb(image: Image.Image, where: object) -> Image.Image:
    if image.mode == "F":
        raise InputError(
            "an image holds floating-point values of no defined range",
            where=where,
            remedy="save it with 8 or 16 bits a channel",
        )
    if image.mode.startswith("I"):
        # 16 bits: PIL itself would cut the values off at 255.
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise InputError("an image holds values outside 16 bits", where=where, why=f"up to {values.max()}")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, side: int) -> UInt8[Tensor, "3 side side"]:
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _read_files(source: Source, side: int, split: Split, on_corrupt: OnCorrupt, in_memory: int) -> ImageSet:
    names = source.names()
    if not names:
        archives = [] if source.path.is_file() else sorted(source.path.rglob("*.zip"))
        raise InputError(
            "there are no images",
            where=source.path,
            why=f"no file ends in {', '.join(sorted(SUFFIXES))}",
            remedy=f"name the archive {archives[0]}" if archives else "check the path",
        )
    places = [PurePosixPath(name).parts for name in names]
    parts = [_SPLITS.get(place[0]) if len(place) > 1 else None for place in places]
    if any(parts) and not all(parts):
        odd = names[parts.index(None)]
        raise InputError(
            "some images stand beside the folders of the parts",
            where=source.path / odd,
            why="with a train, test or val folder, every image belongs below one",
            remedy="move or remove it",
        )
    inner = [place[1:] if part else place for place, part in zip(places, parts, strict=True)]
    depths = {len(place) > 1 for place in inner}
    if len(depths) > 1:
        odd = names[[len(place) > 1 for place in inner].index(False)]
        raise InputError(
            "some images are in class folders and some are not",
            where=source.path / odd,
            remedy="move it into the folder of its class",
        )
    folders = [place[0] for place in inner] if depths == {True} else None
    classes = tuple(sorted(set(folders))) if folders else ()
    chosen = [i for i, part in enumerate(parts) if split == "all" or part == split]
    if not chosen:
        raise InputError(
            f"there is no {split} part",
            where=source.path,
            remedy="put its images below a folder of that name, or name another folder",
        )
    labels = None if folders is None else np.array([classes.index(folders[i]) for i in chosen], dtype=np.int64)
    whole = ImageSet(str(source.path), side, tuple(names[i] for i in chosen), labels, classes, source=source)
    return _load(whole, on_corrupt, keep=len(chosen) * 3 * side * side <= in_memory)


def _load(images: ImageSet, on_corrupt: OnCorrupt, *, keep: bool) -> ImageSet:
    """Decode every image, or look at every header, and deal with those that cannot be read."""
    assert images.source is not None
    pixels, good, bad = [], [], []
    for index, name in enumerate(images.ids):
        where = images.source.path / name
        try:
            data = images.source.read(name)
            if keep:
                pixels.append(decode(data, images.side, where))
            else:
                _check_header(data, where)
            good.append(index)
        except InputError as error:
            if on_corrupt == "refuse":
                raise
            bad.append((name, error))
    if bad:
        name, first = bad[0]
        message = f"{len(bad)} of {len(images)} images were left out, for instance {name} ({first.why or first.what})"
        if not good:
            raise InputError("no image can be read", where=images.name, why=message)
        warnings.warn(message, ContrastiveWarning, stacklevel=2)
        images = images.take(good)
    return dataclasses.replace(images, pixels=torch.stack(pixels), source=None) if keep else images


def _check_header(data: bytes, where: object) -> None:
    try:
        Image.open(io.BytesIO(data)).verify()
    except Exception as error:  # as in decode
        raise InputError(
            "an image cannot be read",
            where=where,
            why=_reason(error),
            remedy="restore or remove the file, or leave such files out with --on-corrupt skip",
        ) from error


def _reason(error: Exception) -> str:
    """Why an image cannot be read; Pillow's own words name the address of a buffer where no format is known."""
    if isinstance(error, UnidentifiedImageError):
        return "it is in no image format that is known"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _read_npz(path: Path, side: int) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x", "y") if name in file}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError("the arrays cannot be read", where=path, why=str(error).splitlines()[0]) from error
    if "x" not in arrays:
        raise InputError("the file holds no images", where=path, why="there is no array x", remedy="name it x")
    x, y = arrays["x"], arrays.get("y")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3, 4) or not x.size:
        raise InputError(
            "the images have no known layout",
            where=f"{path}: x",
            why=f"expected [n h w 3] (or 1 or 4 channels), got {arrays['x'].shape}",
        )
    if x.dtype == np.uint16:
        x = ((x.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if x.dtype != np.uint8:
        raise InputError(
            "the images are not of 8 or 16 bits",
            where=f"{path}: x",
            why=f"got {x.dtype}",
            remedy="scale the values to 0..255, without NaN, and store them as uint8",
        )
    if y is None:
        return _from_arrays(path, x, None, (), side, np.arange(len(x)))
    if y.shape != x.shape[:1] or y.dtype.kind not in "iuUS":
        raise InputError(
            "labels are one integer or name an image",
            where=f"{path}: y",
            why=f"got {y.dtype} {y.shape} for {len(x)} images",
        )
    names, labels = np.unique(y, return_inverse=True)
    return _from_arrays(path, x, labels.astype(np.int64), tuple(map(str, names.tolist())), side, np.arange(len(x)))


def _from_arrays(
    path: Path, x: np.ndarray, y: np.ndarray | None, classes: tuple[str, ...], side: int, numbers: np.ndarray
) -> ImageSet:
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if x.shape[-1] == 3 and x.shape[1:3] == (side, side):
        pixels = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    else:
        mode = modes[x.shape[-1]]
        arrays = (image[..., 0] if mode == "L" else image for image in x)
        pixels = torch.stack([_square(_rgb(Image.fromarray(a), path), side) for a in arrays])
    return ImageSet(str(path), side, tuple(map(str, numbers.tolist())), y, classes, pixels=pixels)
