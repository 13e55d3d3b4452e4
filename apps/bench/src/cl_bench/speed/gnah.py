"""Speed of GNAH."""

import torch
import torch.nn.functional as F
from cl_retrieval.gnah.commands import new_learner
from cl_retrieval.gnah.learner import GNAHSettings
from cl_retrieval.gnah.model import GNAHConfig
from cl_retrieval.hashing.learning import step_generator
from cl_retrieval.hashing.objective import binarisation, pair_gaussian, pair_neighbourhood

from cl_bench.measures import Speed, race
from cl_bench.speed.hashing import pairwise_contrast


def speed(rounds: int) -> list[Speed]:
    """A training step of 80 pairs of CLIP's width against the equations taken pair by pair.

    Args:
        rounds: Timed rounds.
    """
    fx, fy = (F.normalize(torch.randn(80, 512, generator=torch.Generator().manual_seed(s)), dim=1) for s in (0, 1))
    learner = new_learner(fx, fy, GNAHConfig(), GNAHSettings(variant="no_p"), seed=0)

    def ours() -> None:
        learner.zero_grad()
        torch.autograd.backward(learner.step(fx, fy, epoch=0, generator=step_generator(0, 0)).loss)

    def theirs() -> None:
        learner.zero_grad()
        model = learner.model
        sampled = pair_neighbourhood(*pair_gaussian(fx, fy), generator=step_generator(0, 0))[0]
        hx, hy = model.hash(fx, "image"), model.hash(fy, "text")
        loss = pairwise_contrast(hx, hy, model.hash(sampled, "text"), model.hash(sampled, "image"), 0.5)
        torch.autograd.backward(loss + learner.settings.binarisation_weight * (binarisation(hx) + binarisation(hy)))

    ours()
    reference = [p.grad.clone() for p in learner.parameters() if p.grad is not None]
    theirs()
    repeated = [p.grad for p in learner.parameters() if p.grad is not None]
    gap = max(float((a - b).abs().max()) for a, b in zip(reference, repeated, strict=True))
    notes = f"80 pairs × 512, 32 bits, hidden 4096, forward and backward; largest difference of a gradient {gap:.1e}"
    return [race("gnah: training step", ours, theirs, peer="the equations pair by pair", rounds=rounds, notes=notes)]
