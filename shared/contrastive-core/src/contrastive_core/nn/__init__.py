"""Parts of networks that methods share: heads, teachers, prototypes, ramps."""

from contrastive_core.nn.activations import sign_ste
from contrastive_core.nn.ema import EMATeacher
from contrastive_core.nn.posterior import GaussianHead, GaussianParameters, WeibullHead, WeibullParameters
from contrastive_core.nn.prototypes import (
    entropy_reliability,
    fuse_prototypes,
    match_prototypes,
    multi_prototype_logits,
    soft_kmeans,
)
from contrastive_core.nn.ramp import sigmoid_rampup

__all__ = [
    "EMATeacher",
    "GaussianHead",
    "GaussianParameters",
    "WeibullHead",
    "WeibullParameters",
    "entropy_reliability",
    "fuse_prototypes",
    "match_prototypes",
    "multi_prototype_logits",
    "sigmoid_rampup",
    "sign_ste",
    "soft_kmeans",
]
