"""Contrastive factor analysis: embeddings of images that are distributions over (readable) factors."""

from cl_foundations.cfa.corruptions import corrupt
from cl_foundations.cfa.data import ImageSet, read_images, read_parts
from cl_foundations.cfa.inference import Embeddings, embed, uncertainty
from cl_foundations.cfa.interpret import FactorMetrics, factor_metrics, separating_factors
from cl_foundations.cfa.model import FactorModel, ModelConfig, load_model
from cl_foundations.cfa.objective import ELBO, contrastive_likelihood, negative_elbo
from cl_foundations.cfa.posterior import (
    FactorPosterior,
    GammaPrior,
    NormalPosterior,
    PointPosterior,
    WeibullPosterior,
    kl_diag_normal,
    kl_weibull_gamma,
)

__all__ = [
    "ELBO",
    "Embeddings",
    "FactorMetrics",
    "FactorModel",
    "FactorPosterior",
    "GammaPrior",
    "ImageSet",
    "ModelConfig",
    "NormalPosterior",
    "PointPosterior",
    "WeibullPosterior",
    "contrastive_likelihood",
    "corrupt",
    "embed",
    "factor_metrics",
    "kl_diag_normal",
    "kl_weibull_gamma",
    "load_model",
    "negative_elbo",
    "read_images",
    "read_parts",
    "separating_factors",
    "uncertainty",
]
