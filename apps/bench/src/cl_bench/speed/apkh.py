"""Speed of APKH."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cl_retrieval.apkh import ObjectiveSettings, ResidualCentres, Settings
from cl_retrieval.apkh.training import new_system
from cl_retrieval.hashing.objective import binarisation, pair_gaussian, pair_neighbourhood
from cl_retrieval.hashing.system import weighted_sum
from cl_retrieval.pairs import PairFeatures
from torch import Tensor

from cl_bench.measures import Speed, race
from cl_bench.speed.hashing import pairwise_contrast


def speed(rounds: int) -> list[Speed]:
    """A training step of 80 pairs of CLIP's width and 620 attributes against the equations taken pair by pair.

    Args:
        rounds: Timed rounds.
    """
    pairs = PairFeatures.from_arrays(*np.random.default_rng(0).normal(size=(2, 80, 512)))
    first = F.normalize(torch.randn(620, 512, generator=torch.Generator().manual_seed(2)), dim=1)
    settings = Settings(objective=ObjectiveSettings(align="none", anchor_weight=0.0))
    system = new_system(pairs, ResidualCentres(first), settings)
    fx, fy = system.fx, system.fy

    def ours() -> None:
        system.zero_grad()
        terms = system.terms(fx, fy, epoch=0, generator=torch.Generator().manual_seed(0))
        torch.autograd.backward(weighted_sum(terms))

    def theirs() -> None:
        system.zero_grad()
        model, centres = system.model, system.prompts()
        sampled = pair_neighbourhood(*pair_gaussian(fx, fy), generator=torch.Generator().manual_seed(0))[0]

        def codes(features: Tensor, modality: Any) -> Tensor:
            kernel = torch.stack([torch.exp(-(f - centres).square().sum(1) / (2 * model.variance)) for f in features])
            return model.hash(features, kernel / kernel.sum(1, keepdim=True), modality)

        hx, hy = codes(fx, "image"), codes(fy, "text")
        loss = pairwise_contrast(hx, hy, codes(sampled, "text"), codes(sampled, "image"), 0.5)
        torch.autograd.backward(loss + binarisation(hx) + binarisation(hy))

    notes = "80 pairs × 512, 620 attributes, 32 bits, hidden 1024, forward and backward"
    return [race("apkh: training step", ours, theirs, peer="the equations pair by pair", rounds=rounds, notes=notes)]
