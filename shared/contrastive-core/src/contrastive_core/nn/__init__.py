"""Parts of networks that methods share: heads, pooling, teachers, prototypes, kernels, ramps."""

from contrastive_core.nn.activations import sign_ste
from contrastive_core.nn.ema import EMATeacher
from contrastive_core.nn.heads import HashHead, PrototypeHead, UnitRows, mlp_head
from contrastive_core.nn.kernels import rbf_kernel, squared_distances
from contrastive_core.nn.pooling import AttentionPooling
from contrastive_core.nn.posterior import GaussianHead, GaussianParameters, WeibullHead, WeibullParameters
from contrastive_core.nn.prototypes import (
    entropy_reliability,
    fuse_prototypes,
    match_prototypes,
    multi_prototype_logits,
    soft_kmeans,
)
from contrastive_core.nn.ramp import sigmoid_rampup
from contrastive_core.nn.temperature import Temperature

__all__ = [
    "AttentionPooling",
    "EMATeacher",
    "GaussianHead",
    "GaussianParameters",
    "HashHead",
    "PrototypeHead",
    "Temperature",
    "UnitRows",
    "WeibullHead",
    "WeibullParameters",
    "entropy_reliability",
    "fuse_prototypes",
    "match_prototypes",
    "mlp_head",
    "multi_prototype_logits",
    "rbf_kernel",
    "sigmoid_rampup",
    "sign_ste",
    "soft_kmeans",
    "squared_distances",
]
