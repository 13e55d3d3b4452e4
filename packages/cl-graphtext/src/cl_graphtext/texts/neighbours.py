"""Nearest texts, and texts that are the same, without a matrix of all pairs."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

_CHUNK = 1024
_ALL_PAIRS = 50_000
"""Nodes up to which near-duplicates are looked for among all pairs."""


def unit_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of unit length; rows of zeros (nodes without text) stay zero, so that they are like nothing."""
    return F.normalize(x, dim=1, eps=1e-12)


@torch.no_grad()
def nearest(
    unit: Float[Tensor, "n d"],
    queries: Int[Tensor, " m"],
    k: int,
    *,
    chunk: int = _CHUNK,
) -> tuple[Int[Tensor, "m k"], Float[Tensor, "m k"]]:
    """The k nodes of the highest cosine with each query, without the query itself.

    Args:
        unit: Rows of unit length, or zeros.
        queries: Indices of the nodes asked for.
        k: Neighbours, at most all others.
        chunk: Queries compared at once; memory is ``chunk * n`` floats.

    Returns:
        Indices and cosines, best first; among equals the lower index first.
    """
    k = min(k, len(unit) - 1)
    if k < 1 or not len(queries):
        return torch.zeros(len(queries), 0, dtype=torch.long), torch.zeros(len(queries), 0)
    places, values = [], []
    chunk = max(1, min(chunk, 200_000_000 // max(1, len(unit))))
    for part in queries.split(chunk):
        cosine = unit[part] @ unit.T
        cosine[torch.arange(len(part)), part] = -2.0
        value, place = cosine.topk(k, dim=1)
        place, order = place.sort(dim=1)  # lower indices first,
        value, again = value.gather(1, order).sort(dim=1, descending=True, stable=True)  # then by cosine
        places.append(place.gather(1, again))
        values.append(value)
    return torch.cat(places), torch.cat(values)


@torch.no_grad()
def duplicate_groups(unit: Float[Tensor, "n d"], *, threshold: float = 0.99, chunk: int = _CHUNK) -> Int[Tensor, " n"]:
    """A number for every node that nodes of (nearly) the same text share.

    Two texts are the same if their cosine exceeds the threshold, directly or through others. Beyond 50,000 nodes only
    equal embeddings are found, as comparing all pairs would take longer than training.

    Args:
        unit: Rows of unit length; nodes without text (zero rows) are like nobody.
        threshold: Cosine above which two texts are the same.
        chunk: Rows compared at once.
    """
    n = len(unit)
    if n > _ALL_PAIRS:
        _, group = np.unique(unit.numpy().round(5), axis=0, return_inverse=True)
        groups = torch.from_numpy(group.reshape(-1).astype(np.int64))
        empty = unit.abs().sum(1) == 0
        groups[empty] = n + torch.arange(int(empty.sum()))
        return groups
    rows, columns = [], []
    for start in range(0, n, chunk):
        a, b = torch.where(unit[start : start + chunk] @ unit.T > threshold)
        rows.append((a + start).numpy())
        columns.append(b.numpy())
    pairs = np.concatenate(rows), np.concatenate(columns)
    same = coo_array((np.ones(len(pairs[0])), pairs), shape=(n, n))
    return torch.from_numpy(connected_components(same, directed=False)[1].astype(np.int64))


@torch.no_grad()
def noise_floor(unit: Float[Tensor, "n d"], *, percentile: float = 75.0, pairs: int = 20_000, seed: int = 0) -> float:
    """A percentile of the cosine between random pairs of different nodes: what texts have in common by chance."""
    n = len(unit)
    if n < 2:
        return 0.0
    rng = np.random.default_rng(seed)
    a = rng.integers(0, n, pairs)
    b = (a + rng.integers(1, n, pairs)) % n
    cosine = (unit[torch.from_numpy(a)] * unit[torch.from_numpy(b)]).sum(1)
    return float(np.percentile(cosine.numpy(), percentile))
