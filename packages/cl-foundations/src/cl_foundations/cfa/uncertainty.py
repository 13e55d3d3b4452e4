"""Scores of uncertainty, and how well they tell apart what they should."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from contrastive_core.evaluation import auroc_fpr95
from jaxtyping import Bool, Float
from torch import Tensor

from cl_foundations.cfa.model import ModelConfig
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

UNINFORMATIVE = (
    "under a spectral likelihood the best variance of a normal factor is the same for every image: the uncertainties "
    "say nothing about single images"
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


def refuse_uninformative(config: ModelConfig, where: object) -> None:
    """Refuse uncertainties of a model whose variances do not depend on the image.

    Raises:
        InputError: A normal posterior trained with a spectral likelihood.
    """
    if config.uninformative:
        raise InputError(
            "the uncertainties of this model say nothing about single images",
            where=where,
            why="under a spectral likelihood the best variance of a normal factor is the same for every image",
            remedy="train with --likelihood infonce, or pass --force",
        )


@dataclasses.dataclass(frozen=True)
class Detection:
    """How well one score tells outside images from inside ones.

    Attributes:
        auroc: Chance that an outside image is the more uncertain one, ties counting half.
        aupr: Average precision, outside images being the positives.
        fpr95: Share of inside images flagged where 95 % of the outside ones are.
        inside: Mean score inside.
        outside: Mean score outside.
    """

    auroc: float
    aupr: float
    fpr95: float
    inside: float
    outside: float


def detection(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> Detection:
    """Out-of-distribution detection by one score, higher meaning less certain.

    Raises:
        ValueError: A set is empty, or a score is NaN.

    Example:
        >>> detection(np.array([0.0, 1.0]), np.array([2.0, 3.0])).auroc
        1.0
    """
    scores = dataclasses.asdict(auroc_fpr95(inside, outside))
    return Detection(**scores, inside=float(inside.mean()), outside=float(outside.mean()))


def detections(
    inside: Mapping[str, Float[np.ndarray, " n"]], outside: Mapping[str, Mapping[str, Float[np.ndarray, " _"]]]
) -> list[dict[str, Any]]:
    """Every score on every outside set, a row each.

    Args:
        inside: Scores by name.
        outside: Scores by name, of each set.
    """
    return [
        {"set": name, "score": score, **dataclasses.asdict(detection(values, scores[score]))}
        for name, scores in outside.items()
        for score, values in inside.items()
    ]


def error_detection(
    scores: Mapping[str, Float[np.ndarray, " n"]], correct: Bool[np.ndarray, " n"]
) -> dict[str, dict[str, float | None]]:
    """How well uncertainties rank a classifier's errors before its hits.

    Returns:
        For every score ``auroc`` (``None`` where there are only hits or only errors) and ``aurc``, the area under the
        curve of risk over coverage (lower is better).
    """
    mixed = bool(correct.any() and not correct.all())
    return {
        name: {
            "auroc": auroc_fpr95(values[correct], values[~correct]).auroc if mixed else None,
            "aurc": aurc(values, correct),
        }
        for name, values in scores.items()
    }


def aurc(uncertainty: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]) -> float:
    """Area under the risk-coverage curve (Geifman & El-Yaniv, 2017): mean error rate of the most certain images.

    Example:
        >>> aurc(np.array([0.1, 0.2, 0.9]), np.array([True, True, False]))  # (0 + 0 + 1/3) / 3
        0.1111111111111111
    """
    errors = ~correct[np.argsort(uncertainty, kind="stable")]
    return float((errors.cumsum() / np.arange(1, len(errors) + 1)).mean())
