"""Several random views of one item."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Views(Generic[T]):
    """Views of one item.

    Attributes:
        views: One result a transform.
        seeds: What each was drawn with; :meth:`TwoView.replay` makes the same draws again.
    """

    views: tuple[T, ...]
    seeds: tuple[int, ...]


class TwoView(Generic[T]):
    """Apply random transforms to one item, each with draws of its own.

    Give it single items, not batches: transforms such as torchvision's draw once a call. Draws come from torch's global
    generator, seeded for the call and put back after it.

    Args:
        transform: Makes the first view, and all of them if there are no others.
        others: Transforms of the further views; by default ``transform`` again, for two views.
        seed: Seed of all draws.

    Example:
        >>> two = TwoView(lambda x: x + torch.rand(1))
        >>> first, second = two(torch.zeros(1), index=3).views
        >>> bool(first == second), bool(first == two(torch.zeros(1), index=3).views[0])
        (False, True)
    """

    def __init__(self, transform: Callable[[Any], T], *others: Callable[[Any], T], seed: int = 0) -> None:
        self.transforms = (transform, *(others or (transform,)))
        self.seed = seed

    def __call__(self, item: Any, *, index: int, draw: int = 0) -> Views[T]:
        """Views of one item; the draws depend on the seed, the item's index and ``draw`` alone.

        Args:
            item: For instance an image.
            index: Its place in the data set.
            draw: Number of the draw, such as the batch of the run.
        """
        words = np.random.SeedSequence([self.seed, draw, index]).generate_state(len(self.transforms), np.uint32)
        seeds = tuple(int(word) for word in words)
        return Views(self.replay(item, seeds), seeds)

    def replay(self, item: Any, seeds: Sequence[int]) -> tuple[T, ...]:
        """Apply the transforms with the draws of an earlier call, for instance to a mask or a grid of coordinates.

        Args:
            item: What to transform.
            seeds: Seeds of the earlier call.
        """
        out = []
        for transform, seed in zip(self.transforms, seeds, strict=True):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                out.append(transform(item))
        return tuple(out)


class ViewDataset(Dataset[tuple[Any, ...]]):
    """A map-style data set whose items are views of the items of another.

    In a loader of :func:`contrastive_core.training.batches` an item has other views whenever it comes again.

    Args:
        items: Data set, or sequence, of items.
        views: Makes the views.

    Example:
        >>> data = ViewDataset([torch.zeros(1), torch.ones(1)], TwoView(lambda x: x + torch.rand(1)))
        >>> len(data), len(data[1]), bool(data.at(1, draw=0)[0] == data.at(1, draw=1)[0])
        (2, 2, False)
    """

    def __init__(self, items: Any, views: TwoView[Any]) -> None:
        self.items, self.views = items, views

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.at(index, draw=0)

    def at(self, index: int, *, draw: int) -> tuple[Any, ...]:
        """Views of an item, drawn for one batch of the run."""
        return self.views(self.items[index], index=index, draw=draw).views
