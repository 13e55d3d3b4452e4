"""Why an item has its code: the attributes it excites, and those that two items share."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contrastive_core.errors import require
from jaxtyping import Float

from cl_retrieval.apkh.inference import APKHEncoder
from cl_retrieval.hashing.data import Query


def top_attributes(phi: Float[np.ndarray, " m"], phrases: Sequence[str], k: int) -> list[tuple[str, float]]:
    """The most excited attributes, strongest first."""
    order = np.argsort(-phi, kind="stable")[:k]
    return [(phrases[i], float(phi[i])) for i in order]


def shared_attributes(
    first: Float[np.ndarray, " m"], second: Float[np.ndarray, " m"], phrases: Sequence[str], k: int
) -> list[tuple[str, float]]:
    """What two items have in common: the attributes with the largest ``min(phi_1, phi_2)``."""
    return top_attributes(np.minimum(first, second), phrases, k)


def explain_items(encoder: APKHEncoder, items: Sequence[Query], k: int) -> dict[str, Any]:
    """The attributes of items, and of each two of them.

    Returns:
        ``items``: name to attributes with their activations; ``shared``: two names and the attributes of both.

    Raises:
        InputError: ``k`` is not positive.
    """
    require(k >= 1, "-k", k, "at least 1")
    phi = {name: encoder.activations(row)[0] for name, _, row in items}
    phrases = encoder.bank.phrases
    return {
        "items": {name: top_attributes(values, phrases, k) for name, values in phi.items()},
        "shared": [
            {"items": [a, b], "attributes": shared_attributes(phi[a], phi[b], phrases, k)}
            for a, b in itertools.combinations(phi, 2)
        ],
    }


def explanation_lines(explanation: Mapping[str, Any]) -> list[str]:
    """An explanation as lines of text."""
    named = [*explanation["items"].items(), *((" + ".join(e["items"]), e["attributes"]) for e in explanation["shared"])]
    return [f"{name}: {', '.join(f'{phrase} {value:.3f}' for phrase, value in top)}" for name, top in named]
