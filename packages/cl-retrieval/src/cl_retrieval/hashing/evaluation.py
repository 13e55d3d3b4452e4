"""How well codes find: mean average precision under stated conventions, precision, curves."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from contrastive_core.errors import InputError, require
from contrastive_core.evaluation import RetrievalRanking, hamming_distances
from contrastive_core.index.interface import Modality
from jaxtyping import Float, UInt8

from cl_retrieval.hashing.codes import Hashes, bit_statistics, both_codes, unpack_codes
from cl_retrieval.hashing.split import Split, places
from cl_retrieval.pairs.features import PairFeatures

Denominator = Literal["min", "R", "retrieved"]
DIRECTIONS: tuple[tuple[str, Modality, Modality], ...] = (("i2t", "image", "text"), ("t2i", "text", "image"))
TOP = (1, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What the literature does not agree on.

    Attributes:
        map_at: Rankings are cut there; whole when absent.
        denominator: What map@K divides by: ``min`` of K and the relevant items, ``R`` all relevant items, or those
            ``retrieved`` (as much code for hashing does).
        count_empty: Queries without any relevant item count as zero; otherwise they are left out of the means.
        radius: Hamming radius of the lookup precision.
    """

    map_at: int | None = None
    denominator: Denominator = "min"
    count_empty: bool = False
    radius: int = 2

    def __post_init__(self) -> None:
        require(self.map_at is None or self.map_at >= 1, "--map-at", self.map_at, "at least 1")
        require(self.radius >= 0, "--radius", self.radius, "at least 0")


def direction_scores(
    queries: UInt8[np.ndarray, "q w"],
    query_labels: UInt8[np.ndarray, "q c"],
    database: UInt8[np.ndarray, "n w"],
    database_labels: UInt8[np.ndarray, "n c"],
    *,
    bits: int,
    conventions: Conventions = Conventions(),
) -> dict[str, Any]:
    """All measures of one direction.

    ``map`` orders ties by place in the database; ``map_expected`` is the mean over all orders of ties, of which short
    codes have many (whole rankings only). ``lookup`` is the precision within the radius, zero for queries that find
    nothing. The PR curve is over growing radii, all queries together.

    Args:
        queries: Packed codes.
        query_labels: Zeros and ones; sharing a class is being relevant.
        database: Packed codes.
        database_labels: Zeros and ones.
        bits: Bits of a code.
        conventions: See there.
    """
    cut = "map" if conventions.map_at is None else f"map@{conventions.map_at}"
    tops = [k for k in TOP if k <= len(database)]
    stable = RetrievalRanking(
        database,
        database_labels,
        measures=[cut, *(f"precision@{k}" for k in tops)],
        denominator=conventions.denominator,
    )
    stable.update(queries, query_labels)
    scores = stable.compute()
    share = scores.queries / (scores.queries + scores.excluded) if conventions.count_empty else 1.0
    out: dict[str, Any] = {"map": scores[cut] * share, "queries": scores.queries, "without_relevant": scores.excluded}
    if conventions.map_at is None:
        expected = RetrievalRanking(database, database_labels, measures=["map"], ties="average")
        expected.update(queries, query_labels)
        out["map_expected"] = expected.compute()["map"] * share
    out["precision"] = {str(k): scores[f"precision@{k}"] * share for k in tops}
    return out | _curves(queries, query_labels, database, database_labels, bits, conventions.radius)


def continuous_map(
    queries: Float[np.ndarray, "q d"],
    query_labels: UInt8[np.ndarray, "q c"],
    database: Float[np.ndarray, "n d"],
    database_labels: UInt8[np.ndarray, "n c"],
) -> float:
    """Mean average precision of the features themselves, by cosine."""
    ranking = RetrievalRanking(database, database_labels, measures=["map"])
    ranking.update(queries, query_labels)
    return ranking.compute()["map"]


def map_both(hashes: Hashes, features: PairFeatures, query: np.ndarray, database: np.ndarray) -> dict[str, float]:
    """Mean average precision (whole ranking, ties by place) of both directions, for claims and sweeps.

    Args:
        hashes: Hash functions.
        features: Labelled pairs.
        query: Rows of the queries.
        database: Rows searched.
    """
    labels = features.labelled("evaluation")
    codes = both_codes(hashes, features)
    out = {}
    for name, asking, asked in DIRECTIONS:
        ranking = RetrievalRanking(codes[asked][database], labels[database], measures=["map"])
        ranking.update(codes[asking][query], labels[query])
        out[name] = ranking.compute()["map"]
    return out


def evaluate_split(
    hashes: Hashes,
    features: PairFeatures,
    split: Split,
    *,
    where: object,
    conventions: Conventions = Conventions(),
) -> dict[str, Any]:
    """All measures of all groups of a split, both directions.

    Args:
        hashes: Hash functions.
        features: Labelled pairs that hold the split's.
        split: What is asked and searched.
        where: The data, for messages.
        conventions: See there.

    Returns:
        ``groups -> name -> direction -> measures``, each with ``continuous`` (mAP of the features) and ``ratio``
        (mAP of the codes over it), and statistics of the bits.

    Raises:
        InputError: There are no labels, no groups, or no query with a relevant item.
    """
    labels = features.labelled("evaluation")
    if not split.groups:
        raise InputError("the run set no queries apart", where=where, remedy="pass --queries for a new division")
    codes = both_codes(hashes, features)
    out: dict[str, Any] = {"protocol": split.protocol, "bits": hashes.bits, "groups": {}}
    for name, group in split.groups.items():
        query, database = places(features, group.queries, where), places(features, group.database, where)
        both: dict[str, Any] = {}
        for direction, asking, asked in DIRECTIONS:
            scores = direction_scores(
                codes[asking][query],
                labels[query],
                codes[asked][database],
                labels[database],
                bits=hashes.bits,
                conventions=conventions,
            )
            if not scores["queries"]:
                raise InputError("no query has a relevant item", where=where, why=f"group {name}")
            reference = continuous_map(
                features.of(asking)[query], labels[query], features.of(asked)[database], labels[database]
            )
            both[direction] = {**scores, "continuous": reference, "ratio": scores["map"] / reference}
        out["groups"][name] = {"database": len(database), **both}
    out["bits_of"] = {m: bit_statistics(unpack_codes(codes[m], hashes.bits)) for m in ("image", "text")}
    return out


def evaluate_if_labelled(hashes: Hashes, features: PairFeatures, split: Split, *, where: object) -> dict[str, Any]:
    """What a training ends with: the number of training pairs, and all measures where there are labels."""
    results: dict[str, Any] = {"train": len(split.train)}
    if split.groups and features.labels is not None:
        results |= evaluate_split(hashes, features, split, where=where)
    return results


def pair_recall(hashes: Hashes, features: PairFeatures) -> float:
    """Chance that a text's own image is the nearest (ties in random order), averaged with the reverse; needs no labels.

    Args:
        hashes: Hash functions.
        features: Held-out pairs.
    """
    own = np.arange(len(features))
    codes = both_codes(hashes, features)
    total = 0.0
    for _, asking, asked in DIRECTIONS:
        ranking = RetrievalRanking(codes[asked], own, measures=["hit@1", "mrr"], ties="average")
        ranking.update(codes[asking], own)
        total += ranking.compute()["mrr"] / 2
    return total


def _curves(
    queries: np.ndarray,
    query_labels: np.ndarray,
    database: np.ndarray,
    database_labels: np.ndarray,
    bits: int,
    radius: int,
) -> dict[str, Any]:
    retrieved, hits = np.zeros(bits + 1), np.zeros(bits + 1)
    lookups: list[float] = []
    block = max(1, 2**24 // max(1, len(database)))
    for start in range(0, len(queries), block):
        distance = hamming_distances(queries[start : start + block], database)
        relevant = query_labels[start : start + block].astype(np.int32) @ database_labels.T.astype(np.int32) > 0
        retrieved += np.bincount(distance.ravel(), minlength=bits + 1)[: bits + 1]
        hits += np.bincount(distance[relevant].ravel(), minlength=bits + 1)[: bits + 1]
        near = distance <= radius
        lookups += ((near & relevant).sum(1) / np.maximum(near.sum(1), 1)).tolist()
    retrieved, hits = np.cumsum(retrieved), np.cumsum(hits)
    some = retrieved > 0
    return {
        "lookup": float(np.mean(lookups)) if lookups else float("nan"),
        "pr": {
            "radius": np.flatnonzero(some).tolist(),
            "precision": (hits[some] / retrieved[some]).tolist(),
            "recall": (hits[some] / max(hits[-1], 1)).tolist(),
        },
    }


def table_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the main table, one a group and direction; ``features`` is the mAP of the features by cosine."""
    return [
        {
            "group": group,
            "direction": direction,
            "mAP": entry[direction]["map"],
            "mAP, expected": entry[direction].get("map_expected"),
            "P@10": entry[direction]["precision"].get("10"),
            "P in radius": entry[direction]["lookup"],
            "features": entry[direction]["continuous"],
            "ratio": entry[direction]["ratio"],
        }
        for group, entry in results["groups"].items()
        for direction in ("i2t", "t2i")
    ]
