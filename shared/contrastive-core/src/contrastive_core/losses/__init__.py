"""Contrastive losses: functions of tensors, and thin modules that remember their settings."""

from contrastive_core.losses.info_nce import (
    CLIPLoss,
    InfoNCE,
    NTXent,
    SupCon,
    clip_loss,
    info_nce,
    nt_xent,
    sup_con,
)
from contrastive_core.losses.similarity import pair_logsumexp, self_logsumexp

__all__ = [
    "CLIPLoss",
    "InfoNCE",
    "NTXent",
    "SupCon",
    "clip_loss",
    "info_nce",
    "nt_xent",
    "pair_logsumexp",
    "self_logsumexp",
    "sup_con",
]
