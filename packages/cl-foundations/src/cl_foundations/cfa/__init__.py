"""Contrastive factor analysis: embeddings of images that are distributions over (readable) factors."""

from cl_foundations.cfa.data import read_training
from cl_foundations.cfa.evaluation import evaluate, evaluate_embeddings
from cl_foundations.cfa.factors import FactorMetrics, factor_metrics, separating_factors
from cl_foundations.cfa.inference import Embeddings, EmbedSettings, FactorClassifier, FactorEncoder
from cl_foundations.cfa.model import FactorModel, ModelConfig
from cl_foundations.cfa.objective import ELBO, ObjectiveSettings, contrastive_likelihood, negative_elbo
from cl_foundations.cfa.posterior import (
    FactorPosterior,
    GammaPrior,
    NormalPosterior,
    PointPosterior,
    WeibullPosterior,
    kl_diag_normal,
    kl_weibull_gamma,
)
from cl_foundations.cfa.system import FactorOptim, Settings
from cl_foundations.cfa.training import ContrastiveFactorAnalysis, train_factors
from cl_foundations.cfa.uncertainty import uncertainty

__all__ = [
    "ELBO",
    "ContrastiveFactorAnalysis",
    "EmbedSettings",
    "Embeddings",
    "FactorClassifier",
    "FactorEncoder",
    "FactorMetrics",
    "FactorModel",
    "FactorOptim",
    "FactorPosterior",
    "GammaPrior",
    "ModelConfig",
    "NormalPosterior",
    "ObjectiveSettings",
    "PointPosterior",
    "Settings",
    "WeibullPosterior",
    "contrastive_likelihood",
    "evaluate",
    "evaluate_embeddings",
    "factor_metrics",
    "kl_diag_normal",
    "kl_weibull_gamma",
    "negative_elbo",
    "read_training",
    "separating_factors",
    "train_factors",
    "uncertainty",
]
