"""Dividing a data set: over clients with skewed classes, into parts that share no patient, a share of every class."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Shaped

from contrastive_core.errors import InputError, require

_TURNS = 50


def partition_dirichlet(
    labels: Sequence[object] | Shaped[np.ndarray, " n"],
    clients: int,
    alpha: float | int,
    *,
    balanced: bool = True,
    min_size: int = 1,
    seed: int = 0,
) -> list[Int[np.ndarray, " p"]]:
    """Divide items over clients whose class shares are drawn from a Dirichlet distribution (Hsu et al., 2019).

    Args:
        labels: Class of every item.
        clients: Clients.
        alpha: Concentration, positive: small numbers give clients with few classes, large ones equal shares.
        balanced: Clients of equal size: each draws its class shares ``Dir(alpha p)``, p the shares in the whole, and
            fills up from what is left. Otherwise each class is divided by ``Dir(alpha)``, and sizes differ.
        min_size: Items each client has at least; unbalanced divisions are drawn again until it holds.
        seed: Seed.

    Returns:
        Indices of each client's items, ascending; every item is in one of them.

    Raises:
        InputError: Fewer items than the clients need, an alpha that is not positive, or no division with ``min_size``
            in 1,000 draws.

    Example:
        >>> parts = partition_dirichlet([0, 1] * 10, 4, 0.1)
        >>> [len(part) for part in parts]
        [5, 5, 5, 5]
    """
    classes = _classes(labels)
    if not alpha > 0 or clients < 1 or max(min_size, 1) * clients > len(classes):
        raise InputError(
            "the items cannot be divided like this",
            where="clients, alpha, min_size",
            why=f"{len(classes)} items, {clients} clients with {min_size} at least, alpha {alpha}",
            remedy="use a positive alpha, and fewer clients or a smaller min_size",
        )
    draw = np.random.default_rng(seed)
    if balanced:
        return _balanced(classes, clients, float(alpha), draw)
    for _ in range(1000):
        owner = np.empty(len(classes), dtype=np.int64)
        for label in range(classes.max() + 1):
            members = draw.permutation(np.flatnonzero(classes == label))
            ends = np.round(np.cumsum(draw.dirichlet(np.full(clients, alpha))) * len(members)).astype(np.int64)
            ends[-1] = len(members)
            owner[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
        if np.bincount(owner, minlength=clients).min() >= min_size:
            return [np.flatnonzero(owner == client) for client in range(clients)]
    raise InputError(
        "no division leaves every client enough items",
        where="min_size",
        why=f"1,000 draws with alpha {alpha}",
        remedy="raise alpha, lower min_size, or use balanced=True",
    )


def partition_shards(
    labels: Sequence[object] | Shaped[np.ndarray, " n"], clients: int, *, shards: int = 2, seed: int = 0
) -> list[Int[np.ndarray, " p"]]:
    """Sort items by class, cut them into equal shards and give each client some at random (McMahan et al., 2017).

    Args:
        labels: Class of every item.
        clients: Clients.
        shards: Shards of each client; about the most classes it can have.
        seed: Seed.

    Returns:
        Indices of each client's items, ascending; every item is in one of them.

    Raises:
        InputError: Fewer items than shards.
    """
    classes = _classes(labels)
    if clients < 1 or shards < 1 or clients * shards > len(classes):
        raise InputError(
            "the items cannot be divided into shards",
            where="clients, shards",
            why=f"{len(classes)} items, {clients} x {shards} shards",
            remedy="use fewer clients or shards",
        )
    draw = np.random.default_rng(seed)
    mixed = draw.permutation(len(classes))  # so that shards of one class differ between seeds
    pieces = np.array_split(mixed[np.argsort(classes[mixed], kind="stable")], clients * shards)
    given = draw.permutation(clients * shards).reshape(clients, shards)
    return [np.sort(np.concatenate([pieces[piece] for piece in mine])) for mine in given]


def group_split(
    labels: Sequence[object] | Shaped[np.ndarray, " n"],
    groups: Sequence[object] | Shaped[np.ndarray, " n"],
    *,
    folds: int = 5,
    seed: int = 0,
) -> list[tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]]:
    """Cross-validation in which no group (patient, donor, recording) is on both sides, with class shares kept alike.

    A checked :class:`sklearn.model_selection.StratifiedGroupKFold`.

    Args:
        labels: Class of every item.
        groups: Group of every item.
        folds: Parts; each is the held-out one once.
        seed: Seed of the shuffle.

    Returns:
        For each fold the indices of the training and of the held-out items.

    Raises:
        InputError: Fewer groups than folds, or labels and groups of different numbers.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    classes, members = _classes(labels), _classes(groups)
    if len(classes) != len(members) or not 2 <= folds <= members.max() + 1:
        raise InputError(
            "the groups cannot be divided into folds",
            where="groups, folds",
            why=f"{len(classes)} labels, {len(members)} items in {members.max() + 1} groups, {folds} folds",
            remedy="use at least 2 folds and at most as many as there are groups",
        )
    model = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [(train, held) for train, held in model.split(np.zeros(len(classes)), classes, members)]


def stratified_split(
    labels: Sequence[object] | Shaped[np.ndarray, " n"], share: float, *, seed: int = 0
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Hold out a share of every class; every class keeps at least one item.

    Args:
        labels: Class of every item.
        share: Share held out, in [0, 1).
        seed: Seed of the draw.

    Returns:
        Indices of the items kept and of those held out, ascending; the second is empty where the share rounds to none.

    Raises:
        InputError: A share out of range.

    Example:
        >>> kept, held_out = stratified_split(["a"] * 8 + ["b"] * 4, 0.25)
        >>> len(kept), len(held_out)
        (9, 3)
    """
    require(0 <= share < 1, "share", share, "a share in [0, 1)")
    classes, draw = _classes(labels), np.random.default_rng(seed)
    held = [
        members[: min(round(share * len(members)), len(members) - 1)]
        for members in (draw.permutation(np.flatnonzero(classes == label)) for label in range(classes.max() + 1))
    ]
    held_out = np.sort(np.concatenate(held)).astype(np.int64)
    return np.setdiff1d(np.arange(len(classes)), held_out), held_out


def _balanced(classes: np.ndarray, clients: int, alpha: float, draw: np.random.Generator) -> list[np.ndarray]:
    pools = [list(draw.permutation(np.flatnonzero(classes == label))) for label in range(classes.max() + 1)]
    whole = np.bincount(classes) / len(classes)
    sizes = [len(each) for each in np.array_split(classes, clients)]
    # A very small alpha underflows to zero shares, from which nothing can be drawn.
    shares = np.maximum(draw.dirichlet(np.maximum(alpha * whole, 1e-12), size=clients), 1e-300)
    parts: list[list[int]] = [[] for _ in range(clients)]
    # Clients take turns, so that no single one is left with what the others did not want.
    for turn in range(1, _TURNS + 1):
        for client in draw.permutation(clients):
            mine, goal = parts[client], sizes[client] * turn // _TURNS
            while len(mine) < goal:
                left = np.array([len(pool) for pool in pools])
                weight = np.where(left > 0, shares[client], 0)
                wanted = np.minimum(draw.multinomial(goal - len(mine), weight / weight.sum()), left)
                for pool, count in zip(pools, wanted, strict=True):
                    mine += [int(pool.pop()) for _ in range(count)]
    return [np.sort(np.array(mine, dtype=np.int64)) for mine in parts]


def _classes(labels: Sequence[object] | np.ndarray) -> np.ndarray:
    values = np.asarray(labels)
    if values.ndim != 1 or not len(values):
        raise InputError("labels and groups are one value an item", where="labels", why=f"got {values.shape}")
    return np.unique(values, return_inverse=True)[1]
