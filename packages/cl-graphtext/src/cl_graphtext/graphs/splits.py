"""Training, validation and test nodes: parts by the names they go by, drawn ones, and what can be trained on."""

import warnings
from collections.abc import Iterable, Mapping

import numpy as np
from contrastive_core.errors import ContrastiveWarning, InputError
from jaxtyping import Bool, Int

PARTS = ("train", "val", "test")

Split = Mapping[str, Int[np.ndarray, " m"]]

_PART_NAMES = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "tst", "te"),
}
_ENDINGS = ("_idx", "_index", "_indices", "_ids", "_id", "_mask", "_nodes", "_set")


def part_of(name: str) -> str | None:
    """The part a name means: ``Train``, ``valid``, ``test_idx``; None if it is none.

    Example:
        >>> [part_of(name) for name in ("Train", "valid_mask", "test_idx", "banana")]
        ['train', 'val', 'test', None]
    """
    plain = name.strip().casefold().replace("-", "_").replace(" ", "_")
    for ending in _ENDINGS:
        plain = plain.removesuffix(ending)
    return next((part for part, names in _PART_NAMES.items() if plain in names), None)


def parts_by_name(names: Iterable[str], where: object) -> dict[str, str]:
    """Part -> the name it goes by.

    Raises:
        InputError: A name is no part's, or two are one part's.
    """
    parts: dict[str, str] = {}
    for name in names:
        part = part_of(str(name))
        if part is None or part in parts:
            why = f"got {name}" if part is None else f"{parts[part]} and {name} both name {part}"
            raise InputError(
                "the split's parts cannot be told", where=where, why=why, remedy="name them train, val and test"
            )
        parts[part] = str(name)
    return parts


def checked_split(split: Split, count: int, where: object) -> dict[str, Int[np.ndarray, " m"]]:
    """Sorted, distinct indices of every part.

    Raises:
        InputError: An index is no node's, or stands in two parts.
    """
    parts = {part: np.unique(np.asarray(split[part], np.int64)) for part in PARTS if part in split}
    together = np.concatenate([np.zeros(0, np.int64), *parts.values()])
    if len(together) and (together.min() < 0 or together.max() >= count):
        raise InputError("a split names a node that is not there", where=where, why=f"nodes are 0 to {count - 1}")
    if len(np.unique(together)) != len(together):
        raise InputError("a node stands in two parts of the split", where=where)
    return parts


def random_split(
    labels: Int[np.ndarray, " n"], *, rate: str = "60/20/20", seed: int = 0
) -> dict[str, Int[np.ndarray, " m"]]:
    """Draw training, validation and test nodes among the labelled ones.

    Args:
        labels: Class of every node, -1 where unknown.
        rate: Shares such as ``60/20/20``, drawn over all nodes; or ``20-per-class``: so many training nodes a class,
            then up to 500 for validation and up to 1,000 for the test.
        seed: Seed of the draw.

    Raises:
        InputError: The rate cannot be read, or a class is too small for it.
    """
    known = np.flatnonzero(labels >= 0)
    rng = np.random.default_rng(seed)
    if rate.endswith("-per-class"):
        train = _per_class(labels, known, _whole(rate.removesuffix("-per-class"), rate), rng)
        rest = rng.permutation(np.setdiff1d(known, train))
        held = min(500, len(rest) // 3)
        parts = (train, rest[:held], rest[held : held + 1000])
    else:
        shares = [_whole(word, rate) for word in rate.split("/")]
        if len(shares) != 3 or sum(shares) != 100 or min(shares[0], shares[2]) < 1:
            raise _unknown_rate(rate)
        order = rng.permutation(known)
        ends = np.round(np.cumsum(shares[:2]) / 100 * len(order)).astype(int)
        parts = (order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :])
    return {part: np.sort(nodes) for part, nodes in zip(PARTS, parts, strict=True)}


def _per_class(
    labels: Int[np.ndarray, " n"], known: Int[np.ndarray, " m"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, " t"]:
    train = [np.zeros(0, np.int64)]
    for label in np.unique(labels[known]):
        members = rng.permutation(known[labels[known] == label])
        if len(members) <= count:
            raise InputError(
                "a class is too small for the split",
                where="--split",
                why=f"class {label} has {len(members)} nodes, {count} are to train",
                remedy="use fewer nodes per class, or shares such as 60/20/20",
            )
        train.append(members[:count])
    return np.concatenate(train)


def check_trainable(labels: Int[np.ndarray, " n"], classes: tuple[str, ...], split: Split) -> None:
    """Refuse to classify with training labels of one class; note classes that no training label names.

    Raises:
        InputError: Fewer than two classes have training labels.
    """
    present = np.unique(labels[split["train"]])
    present = present[present >= 0]
    if len(present) < 2:
        raise InputError(
            "node classification needs training labels of two classes",
            where="labels",
            why=f"found {classes[present[0]] if len(present) else 'none'}",
            remedy="label nodes of another class, or use --task lp",
        )
    missing = [name for i, name in enumerate(classes) if i not in present and (labels == i).any()]
    if missing:
        warnings.warn(
            f"no training label for {', '.join(missing)}: it will never be predicted", ContrastiveWarning, stacklevel=2
        )


def mask(nodes: Int[np.ndarray, " m"], count: int) -> Bool[np.ndarray, " n"]:
    """True at the nodes named."""
    marked = np.zeros(count, bool)
    marked[nodes] = True
    return marked


def _whole(word: str, rate: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 10):
        raise _unknown_rate(rate)
    return int(word)


def _unknown_rate(rate: str) -> InputError:
    return InputError(
        "the split cannot be read",
        where="--split",
        why=f"got {rate}",
        remedy="use shares that add up to 100, such as 60/20/20, or 20-per-class",
    )
