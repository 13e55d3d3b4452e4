"""Contrastive losses: functions of tensors, and thin modules that remember their settings."""

from contrastive_core.losses.clustering import (
    cluster_contrast,
    contrastive_clustering,
    dec,
    dec_target,
    student_t_assignment,
)
from contrastive_core.losses.cosine import byol, negative_cosine
from contrastive_core.losses.discrepancy import cka, mmd
from contrastive_core.losses.distillation import distillation, relational_distillation
from contrastive_core.losses.hard_negative import debiased, decoupled, hard_negative
from contrastive_core.losses.hashing import bit_balance, bit_decorrelation, quantization
from contrastive_core.losses.info_nce import CLIPLoss, InfoNCE, NTXent, clip_loss, info_nce, moco_v3, nt_xent
from contrastive_core.losses.prototype import proto_nce
from contrastive_core.losses.redundancy import barlow_twins, vicreg
from contrastive_core.losses.ring import ring_logsumexp
from contrastive_core.losses.siglip import SigLIP, siglip
from contrastive_core.losses.similarity import pair_logsumexp, self_logsumexp
from contrastive_core.losses.soft import rbf_targets, soft_info_nce
from contrastive_core.losses.sparse import flops, non_negative
from contrastive_core.losses.spectral import spectral_contrastive
from contrastive_core.losses.supervised import SupCon, sup_con
from contrastive_core.losses.transport import sinkhorn, swav

__all__ = [
    "CLIPLoss",
    "InfoNCE",
    "NTXent",
    "SigLIP",
    "SupCon",
    "barlow_twins",
    "bit_balance",
    "bit_decorrelation",
    "byol",
    "cka",
    "clip_loss",
    "cluster_contrast",
    "contrastive_clustering",
    "debiased",
    "dec",
    "dec_target",
    "decoupled",
    "distillation",
    "flops",
    "hard_negative",
    "info_nce",
    "mmd",
    "moco_v3",
    "negative_cosine",
    "non_negative",
    "nt_xent",
    "pair_logsumexp",
    "proto_nce",
    "quantization",
    "rbf_targets",
    "relational_distillation",
    "ring_logsumexp",
    "self_logsumexp",
    "siglip",
    "sinkhorn",
    "soft_info_nce",
    "spectral_contrastive",
    "student_t_assignment",
    "sup_con",
    "swav",
    "vicreg",
]
