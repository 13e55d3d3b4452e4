"""Embeddings of image sets, and scores of uncertainty."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from contrastive_core.training import seeded_generator
from jaxtyping import Float, Int
from torch import Tensor

from cl_foundations.cfa.data import ImageSet
from cl_foundations.cfa.model import FactorModel
from cl_foundations.cfa.posterior import GAMMA_1_1, FactorPosterior, GammaPrior

Score = Literal["entropy", "cv", "var_dir", "kl", "norm"]
SCORES: Mapping[Score, str] = {
    "entropy": "sum of the factors' entropies, in nats",
    "cv": "standard deviation over mean: averaged over factors (Weibull), or of the whole vector (normal)",
    "var_dir": "1 - length of the mean direction of posterior draws",
    "kl": "minus the KL from the prior, a factor",
    "norm": "minus the length of the mean vector, which a deterministic embedding has too",
}
"""Uncertainty scores, each higher where a model is less certain, with what they are."""


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What a model says about a set of images.

    Attributes:
        features: Backbone features ``[n d]``.
        mean: Means of the factors ``[n k]``.
        variance: Their variances ``[n k]``.
        scores: Uncertainty scores by name, ``[n]`` each, higher where the model is less certain.
        labels: Class indices, or ``None``.
        ids: Names of the images.
        classes: Names of the classes.
    """

    features: Float[np.ndarray, "n d"]
    mean: Float[np.ndarray, "n k"]
    variance: Float[np.ndarray, "n k"]
    scores: Mapping[str, Float[np.ndarray, " n"]]
    labels: Int[np.ndarray, " n"] | None
    ids: tuple[str, ...]
    classes: tuple[str, ...]


@torch.no_grad()
def embed(
    model: FactorModel,
    images: ImageSet,
    *,
    prior: GammaPrior = GAMMA_1_1,
    draws: int = 8,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    change: Callable[[Float[Tensor, "b 3 h w"], torch.Generator], Float[Tensor, "b 3 h w"]] | None = None,
) -> Embeddings:
    """Features, factors and uncertainties of a set of images, without augmentation.

    Args:
        model: The model; left in eval mode, on the graphics processor if there is one.
        images: The images, of the model's input size.
        prior: Prior that the score ``kl`` is measured from.
        draws: Posterior draws of the score ``var_dir``.
        seed: Seed of the draws and of ``change``.
        batch_size: Images at once.
        workers: Loader processes.
        change: Applied to every batch first, for instance a corruption.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    features, means, variances = [], [], []
    scores: dict[str, list[Tensor]] = {}
    for number, (pixels, _) in enumerate(images.batches(batch_size, workers)):
        generator = seeded_generator(seed, number)
        x = pixels.to(device).float() / 255
        if change is not None:
            x = change(x, generator)
        h = model.features(x)
        posterior = model.posterior(h)
        features.append(h.float().cpu())
        means.append(posterior.mean().cpu())
        variances.append(posterior.variance().cpu())
        for name, value in uncertainty(posterior, prior=prior, draws=draws, generator=generator).items():
            scores.setdefault(name, []).append(value.cpu())
    return Embeddings(
        features=torch.cat(features).numpy(),
        mean=torch.cat(means).numpy(),
        variance=torch.cat(variances).numpy(),
        scores={name: torch.cat(parts).numpy() for name, parts in scores.items()},
        labels=images.labels,
        ids=images.ids,
        classes=images.classes,
    )


def uncertainty(
    posterior: FactorPosterior,
    *,
    prior: GammaPrior = GAMMA_1_1,
    draws: int = 8,
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, " b"]]:
    """Scores of :data:`SCORES`, each higher where the model is less certain; a point posterior has the norm only.

    The entropy of a Weibull follows its scale, so that weakly activated images look certain; ``cv`` and ``var_dir`` do
    not depend on the scale.

    Args:
        posterior: Posteriors of a batch.
        prior: Prior of ``kl``.
        draws: Draws of ``var_dir``.
        generator: Their source.
    """
    mean = posterior.mean()
    norm = -mean.norm(dim=1)
    if posterior.family == "point":
        return {"norm": norm}
    spread = posterior.variance().sqrt()
    if posterior.family == "weibull":
        cv = (spread / mean).mean(1)
    else:  # single means of normal factors lie around zero, so their ratio would be ruled by the smallest
        cv = spread.norm(dim=1) / mean.norm(dim=1).clamp_min(1e-12)
    direction = F.normalize(posterior.rsample(draws, generator), dim=2).mean(0)
    return {
        "entropy": posterior.entropy(),
        "cv": cv,
        "var_dir": 1 - direction.norm(dim=1),
        "kl": -posterior.kl(prior) / mean.shape[1],
        "norm": norm,
    }
