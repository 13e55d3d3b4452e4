"""Speed of APKH."""

from typing import Any

import torch
import torch.nn.functional as F
from cl_retrieval.apkh.commands import new_learner
from cl_retrieval.apkh.learner import APKHSettings
from cl_retrieval.apkh.model import APKHConfig
from cl_retrieval.apkh.prompts import ResidualCentres
from cl_retrieval.hashing.learning import step_generator
from cl_retrieval.hashing.objective import binarisation, pair_gaussian, pair_neighbourhood
from torch import Tensor

from cl_bench.measures import Speed, race
from cl_bench.speed.hashing import pairwise_contrast


def speed(rounds: int) -> list[Speed]:
    """A training step of 80 pairs of CLIP's width and 620 attributes against the equations taken pair by pair.

    Args:
        rounds: Timed rounds.
    """
    fx, fy = (F.normalize(torch.randn(80, 512, generator=torch.Generator().manual_seed(s)), dim=1) for s in (0, 1))
    first = F.normalize(torch.randn(620, 512, generator=torch.Generator().manual_seed(2)), dim=1)
    settings = APKHSettings(align="none", anchor_weight=0.0)
    learner = new_learner(fx, fy, ResidualCentres(first), APKHConfig(), settings, seed=0)

    def ours() -> None:
        learner.zero_grad()
        torch.autograd.backward(learner.step(fx, fy, epoch=0, generator=step_generator(0, 0)).loss)

    def theirs() -> None:
        learner.zero_grad()
        model, centres = learner.model, learner.prompts()
        sampled = pair_neighbourhood(*pair_gaussian(fx, fy), generator=step_generator(0, 0))[0]

        def codes(features: Tensor, modality: Any) -> Tensor:
            kernel = torch.stack([torch.exp(-(f - centres).square().sum(1) / (2 * model.variance)) for f in features])
            return model.hash(features, kernel / kernel.sum(1, keepdim=True), modality)

        hx, hy = codes(fx, "image"), codes(fy, "text")
        loss = pairwise_contrast(hx, hy, codes(sampled, "text"), codes(sampled, "image"), 0.5)
        torch.autograd.backward(loss + binarisation(hx) + binarisation(hy))

    notes = "80 pairs × 512, 620 attributes, 32 bits, hidden 1024, forward and backward"
    return [race("apkh: training step", ours, theirs, peer="the equations pair by pair", rounds=rounds, notes=notes)]
