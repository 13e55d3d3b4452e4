"""Which pairs train, which are asked for, and which are searched in."""

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from contrastive_core.data.samplers import seeded_generator
from contrastive_core.errors import InputError, require
from contrastive_core.files import read_json, reading, write_json
from jaxtyping import Bool, UInt8

from cl_retrieval.pairs.features import PairFeatures

Protocol = Literal["standard", "seen-unseen"]
DEFAULT_PAIRS = 80
FEWEST_PAIRS = 4
MOST_QUERIES = 2000
NAME = "split.json"


@dataclasses.dataclass(frozen=True)
class Group:
    """Queries and what they search."""

    queries: tuple[str, ...]
    database: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """A division of pairs, by id.

    Attributes:
        protocol: ``standard``: training pairs are drawn from the database and stay in it. ``seen-unseen``: training
            pairs are of seen classes; the groups are ``unseen``, and ``seen`` without the training pairs.
        train: Training pairs.
        groups: What is evaluated; empty where no queries are set apart.
        seen: Seen classes.
        seed: Seed of the draws.
    """

    protocol: Protocol
    train: tuple[str, ...]
    groups: dict[str, Group]
    seen: tuple[str, ...]
    seed: int

    def training(self, features: PairFeatures, where: object) -> PairFeatures:
        """The training pairs.

        Raises:
            InputError: One is not among the pairs.
        """
        return features.take(places(features, self.train, where))

    def asked(self, features: PairFeatures, *, queries: int | None, protocol: Protocol | None) -> "Split":
        """This division, or one with new queries.

        Args:
            features: Labelled pairs.
            queries: Set so many queries apart anew; none of them has trained.
            protocol: Refuse another protocol than this.

        Raises:
            InputError: The division is of another protocol, or new queries are asked of unseen classes.
        """
        if protocol is not None and protocol != self.protocol:
            raise InputError(
                "the model was trained under another protocol",
                where="--protocol",
                why=f"asked {protocol}, trained {self.protocol}",
                remedy="unseen classes must be unseen in training: train with that --protocol",
            )
        if queries is None:
            return self
        if self.protocol != "standard":
            raise InputError("new queries are drawn under the protocol standard only", where="--queries")
        return draw_split(features, queries=queries, seed=self.seed, trained_on=self.train)

    def write(self, run: os.PathLike[str]) -> None:
        """Write ``split.json`` into a run folder."""
        write_json(Path(run) / NAME, dataclasses.asdict(self))

    @classmethod
    def read(cls, run: os.PathLike[str]) -> "Split":
        """Read ``split.json`` of a run folder.

        Raises:
            InputError: It is missing or damaged.
        """
        path = Path(run) / NAME
        with reading(path, "the run's division of the pairs cannot be read", "restore the file, or train again"):
            values = read_json(path)
            groups = {
                str(name): Group(_names(group["queries"]), _names(group["database"]))
                for name, group in values["groups"].items()
            }
            protocol = values["protocol"]
            if protocol not in ("standard", "seen-unseen"):
                raise ValueError(f"the protocol is {protocol!r}")
            return cls(protocol, _names(values["train"]), groups, _names(values["seen"]), int(values["seed"]))


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """What trains and what is asked.

    Attributes:
        pairs: Training pairs; 80 by default, or all where there are fewer.
        queries: Pairs set apart as queries; a quarter of labelled pairs by default (at most 2,000), of others none.
        protocol: ``standard``, or ``seen-unseen``: training pairs of half of the classes, queries of both halves.
        split_seed: Seed of queries and training pairs.
        class_seed: Seed of the division of classes.
    """

    pairs: int | None = None
    queries: int | None = None
    protocol: Protocol = "standard"
    split_seed: int = 0
    class_seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.split_seed < 2**32, "--split-seed", self.split_seed, "a whole number from 0 to 2^32 - 1")
        require(0 <= self.class_seed < 2**32, "--class-seed", self.class_seed, "a whole number from 0 to 2^32 - 1")

    def draw(self, features: PairFeatures) -> Split:
        """The division they ask for, see :func:`draw_split`."""
        return draw_split(
            features,
            protocol=self.protocol,
            pairs=self.pairs,
            queries=self.queries,
            seed=self.split_seed,
            class_seed=self.class_seed,
        )


def draw_split(
    features: PairFeatures,
    *,
    protocol: Protocol = "standard",
    pairs: int | None = None,
    queries: int | None = None,
    seed: int = 0,
    class_seed: int = 0,
    trained_on: Collection[str] = (),
) -> Split:
    """Draw a division, uniformly without replacement.

    Args:
        features: All pairs; the protocol seen-unseen and queries need labels.
        protocol: See :class:`Split`.
        pairs: Training pairs; 80 by default, or all where there are fewer.
        queries: Queries of each group; a quarter of the labelled pairs by default, at most 2,000; of pairs without
            labels none.
        seed: Seed of queries and training pairs.
        class_seed: Seed of the division into seen and unseen classes.
        trained_on: Ids that are no queries under the protocol standard, because a model has been trained on them.

    Raises:
        InputError: Fewer than four training pairs, more than there are, queries without labels, or a group in which no
            query has two relevant items.
    """
    if protocol == "seen-unseen":
        labels = features.labelled("the protocol seen-unseen")
        seen_classes, seen, unseen = divide_classes(labels, class_seed)
        train = _draw(np.flatnonzero(seen), pairs, seed, "--pairs")
        left = np.setdiff1d(np.flatnonzero(seen), train)
        groups = {
            name: _group(features, labels, rows, queries, seed, keep=None)
            for name, rows in (("unseen", np.flatnonzero(unseen)), ("seen", left))
        }
        names = tuple(features.classes[c] for c in np.flatnonzero(seen_classes)) if features.classes else ()
        return Split(protocol, tuple(features.ids[i] for i in train), groups, names, seed)
    everyone = np.arange(len(features))
    if features.labels is None:
        if queries:
            features.labelled("setting queries apart")
        train = _draw(everyone, pairs, seed, "--pairs")
        return Split(protocol, tuple(features.ids[i] for i in train), {}, (), seed)
    if queries == 0:
        return Split(protocol, tuple(features.ids[i] for i in _draw(everyone, pairs, seed, "--pairs")), {}, (), seed)
    group = _group(features, features.labels, everyone, queries, seed, keep=FEWEST_PAIRS, trained_on=trained_on)
    asked = set(group.queries)
    rest = np.array([i for i in everyone if features.ids[i] not in asked], dtype=np.int64)
    train = _draw(rest, pairs, seed, "--pairs")
    return Split(protocol, tuple(features.ids[i] for i in train), {"standard": group}, (), seed)


def divide_classes(
    labels: UInt8[np.ndarray, "n c"], seed: int
) -> tuple[Bool[np.ndarray, " c"], Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Divide classes at random into halves (the seen one smaller), and items by them; mixed items are in neither.

    Returns:
        Seen classes, seen items, unseen items.

    Raises:
        InputError: Fewer than two classes.
    """
    count = labels.shape[1]
    if count < 2:
        raise InputError(
            "seen and unseen classes need at least two classes", where="--protocol", why=f"there are {count}"
        )
    order = np.random.default_rng(seed).permutation(count)
    classes = np.zeros(count, bool)
    classes[order[: count // 2]] = True
    some, known, unknown = (np.asarray(part.any(1)) for part in (labels, labels[:, classes], labels[:, ~classes]))
    return classes, some & ~unknown, some & ~known


def places(features: PairFeatures, ids: tuple[str, ...], where: object) -> np.ndarray:
    """Rows of ids.

    Raises:
        InputError: One is not among the pairs.
    """
    row = {name: place for place, name in enumerate(features.ids)}
    missing = [name for name in ids if name not in row]
    if missing:
        raise InputError(
            "the pairs lack items of the run's split",
            where=where,
            why=f"{len(missing)} of {len(ids)}, such as {missing[0]!r}",
            remedy="evaluate on the data the model was trained on, or pass --queries for a new division",
        )
    return np.array([row[name] for name in ids], dtype=np.int64)


def _draw(rows: np.ndarray, count: int | None, seed: int, option: str) -> np.ndarray:
    wanted = min(DEFAULT_PAIRS, len(rows)) if count is None else count
    if wanted < FEWEST_PAIRS or wanted > len(rows):
        raise InputError(
            "the number of training pairs does not fit",
            where=option,
            why=f"{wanted} of {len(rows)} available pairs",
            remedy=f"train with at least {FEWEST_PAIRS}, and no more than there are",
        )
    return np.sort(rows[_permutation(len(rows), seed, 1)[:wanted]])


def _group(
    features: PairFeatures,
    labels: np.ndarray,
    rows: np.ndarray,
    queries: int | None,
    seed: int,
    *,
    keep: int | None,
    trained_on: Collection[str] = (),
) -> Group:
    if queries is None and len(rows) < 4:
        raise InputError(
            "there are too few labelled pairs to set queries apart",
            where="the pairs",
            why=f"there are {len(rows)}",
            remedy="give at least four, or leave the labels out",
        )
    count = min(MOST_QUERIES, len(rows) // 4) if queries is None else queries
    if not 0 < count < len(rows) - (keep or 0):
        raise InputError(
            "the number of queries does not fit",
            where="--queries",
            why=f"{count} of {len(rows)} pairs",
            remedy="set fewer queries apart",
        )
    order = rows[_permutation(len(rows), seed, 0)]
    known = set(trained_on)
    asked = np.sort([row for row in order if features.ids[row] not in known][:count]).astype(np.int64)
    searched = np.setdiff1d(order, asked)
    relevant = (labels[asked].astype(np.int32) @ labels[searched].T.astype(np.int32) > 0).sum(1)
    if (relevant >= 2).sum() == 0:
        raise InputError(
            "no query has two relevant items to find",
            where="the labels",
            why=f"{count} queries, {len(searched)} items, classes too small",
            remedy="use larger classes, or fewer queries",
        )
    return Group(tuple(features.ids[i] for i in asked), tuple(features.ids[i] for i in searched))


def _names(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise ValueError("a list of names is expected")
    return tuple(values)


def _permutation(count: int, seed: int, stream: int) -> np.ndarray:
    import torch

    return torch.randperm(count, generator=seeded_generator(seed, 0xD1F, stream)).numpy()
