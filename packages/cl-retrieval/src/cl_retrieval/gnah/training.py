"""Training of GNAH from pairs of features."""

from typing import Any

import torch
from contrastive_core.training import RunFolder

from cl_retrieval.gnah.inference import GNAHEncoder
from cl_retrieval.gnah.model import GNAH
from cl_retrieval.gnah.system import GNAHSystem, Settings
from cl_retrieval.hashing.training import first_weights, fit_pairs
from cl_retrieval.pairs.features import PairFeatures


def train_gnah(pairs: PairFeatures, settings: Settings = Settings(), run: RunFolder | None = None) -> GNAHEncoder:
    """Learn hash functions of images and texts; labels are not looked at.

    Args:
        pairs: Training pairs.
        settings: Everything the training is made of.
        run: Where logs and checkpoints go; nothing is written without.

    Raises:
        InputError: Too few different pairs for prototypes.
    """
    system = new_system(pairs, settings)
    fit_pairs(system, batch_size=settings.batch_size, settings=settings.training, run=run)
    return GNAHEncoder(system.model, pairs.origin, facts=_facts(system))


def new_system(pairs: PairFeatures, settings: Settings = Settings()) -> GNAHSystem:
    """Fresh hash functions, prototypes and anchors for some pairs."""
    with first_weights(settings.training.seed):
        model = GNAH(pairs.dim, settings.model)
    return GNAHSystem(model, torch.from_numpy(pairs.image), torch.from_numpy(pairs.text), settings)


def _facts(system: GNAHSystem) -> dict[str, Any]:
    return {
        "prototypes": len(system.prototypes),
        "purity of prototypes by modality": f"{system.purity:.2f}",
        "distinct anchors": system.distinct_anchors(),
        "variant": system.settings.objective.variant,
    }
