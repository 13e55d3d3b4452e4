"""Speed of GNAH."""

import numpy as np
import torch
from cl_retrieval.gnah import GNAHConfig, ObjectiveSettings, Settings
from cl_retrieval.gnah.training import new_system
from cl_retrieval.hashing.objective import binarisation, pair_gaussian, pair_neighbourhood
from cl_retrieval.hashing.system import weighted_sum
from cl_retrieval.pairs import PairFeatures

from cl_bench.measures import Speed, race
from cl_bench.speed.hashing import pairwise_contrast


def speed(rounds: int) -> list[Speed]:
    """A training step of 80 pairs of CLIP's width against the equations taken pair by pair.

    Args:
        rounds: Timed rounds.
    """
    pairs = PairFeatures.from_arrays(*np.random.default_rng(0).normal(size=(2, 80, 512)))
    system = new_system(pairs, Settings(GNAHConfig(), ObjectiveSettings(variant="no_p")))
    fx, fy = system.fx, system.fy

    def ours() -> None:
        system.zero_grad()
        terms = system.terms(fx, fy, epoch=0, generator=torch.Generator().manual_seed(0))
        torch.autograd.backward(weighted_sum(terms))

    def theirs() -> None:
        system.zero_grad()
        model = system.model
        sampled = pair_neighbourhood(*pair_gaussian(fx, fy), generator=torch.Generator().manual_seed(0))[0]
        hx, hy = model.hash(fx, "image"), model.hash(fy, "text")
        loss = pairwise_contrast(hx, hy, model.hash(sampled, "text"), model.hash(sampled, "image"), 0.5)
        weight = system.settings.objective.binarisation_weight
        torch.autograd.backward(loss + weight * (binarisation(hx) + binarisation(hy)))

    ours()
    reference = [p.grad.clone() for p in system.parameters() if p.grad is not None]
    theirs()
    repeated = [p.grad for p in system.parameters() if p.grad is not None]
    gap = max(float((a - b).abs().max()) for a, b in zip(reference, repeated, strict=True))
    notes = f"80 pairs × 512, 32 bits, hidden 4096, forward and backward; largest difference of a gradient {gap:.1e}"
    return [race("gnah: training step", ours, theirs, peer="the equations pair by pair", rounds=rounds, notes=notes)]
