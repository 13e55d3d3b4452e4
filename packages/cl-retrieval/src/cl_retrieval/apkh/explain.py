"""Why an item has its code: the attributes it excites, and those that two items share."""

import itertools
import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from jaxtyping import Float

from cl_retrieval.apkh.model import APKH
from cl_retrieval.hasher import Hasher, query_features


def top_attributes(phi: Float[np.ndarray, " m"], phrases: Sequence[str], k: int) -> list[tuple[str, float]]:
    """The most excited attributes, strongest first."""
    order = np.argsort(-phi, kind="stable")[:k]
    return [(phrases[i], float(phi[i])) for i in order]


def shared_attributes(
    first: Float[np.ndarray, " m"], second: Float[np.ndarray, " m"], phrases: Sequence[str], k: int
) -> list[tuple[str, float]]:
    """What two items have in common: the attributes with the largest ``min(phi_1, phi_2)``."""
    return top_attributes(np.minimum(first, second), phrases, k)


def explain_items(
    hasher: Hasher,
    *,
    text: Sequence[str],
    image: Sequence[Path],
    k: int,
    encoder: str | None,
    device: str,
    json: bool,
) -> None:
    """Print the attributes of texts and images, and of each two of them; see the command."""
    if k < 1:
        raise InputError("the option is at least 1", where="-k", why=f"got {k}")
    model = hasher.model
    assert isinstance(model, APKH)
    phrases = [str(each) for each in hasher.description["attributes"]]
    rows = query_features(hasher, text=text, image=image, encoder=encoder, device=device)
    with torch.no_grad():
        phi = {name: model.kernel(torch.from_numpy(row))[0].numpy() for name, _, row in rows}
    found: dict[str, Any] = {
        "items": {name: top_attributes(values, phrases, k) for name, values in phi.items()},
        "shared": [
            {"items": [a, b], "attributes": shared_attributes(phi[a], phi[b], phrases, k)}
            for a, b in itertools.combinations(phi, 2)
        ],
    }
    if json:
        print(json_format.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, top in found["items"].items():
        print(f"{name}: {', '.join(f'{phrase} {value:.3f}' for phrase, value in top)}")
    for each in found["shared"]:
        print(
            f"{' + '.join(each['items'])}: {', '.join(f'{phrase} {value:.3f}' for phrase, value in each['attributes'])}"
        )
