"""Sets of images, in memory or read when asked for."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from contrastive_core.errors import InputError
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cl_foundations.images.files import FileSource
from cl_foundations.images.pixels import decode, square

Split = Literal["all", "train", "val", "test"]


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
    source: FileSource | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 side side"], int]:
        """One image and its class, -1 where it has none."""
        label = -1 if self.labels is None else int(self.labels[index])
        if self.pixels is not None:
            return self.pixels[index], label
        if self.source is None:
            raise ValueError("a set of images has pixels or a source")
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

    def resized(self, side: int) -> "ImageSet":
        """The same images with another side."""
        if side == self.side or self.pixels is None:
            return dataclasses.replace(self, side=side)
        images = [square(Image.fromarray(each), side) for each in self.pixels.permute(0, 2, 3, 1).numpy()]
        return dataclasses.replace(self, side=side, pixels=torch.stack(images))

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
                remedy="sort the images into one folder a class, add a labels.csv, or put y into the .npz",
            )
        if len(np.unique(self.labels)) < 2:
            raise InputError(
                f"{purpose} needs two classes",
                where=self.name,
                why=f"every image is of class {self.classes[int(self.labels[0])]}" if len(self) else "no images",
                remedy="add images of another class",
            )
        return self.labels
