"""The mathematics of MPCL (arXiv 2607.02051): supervised losses, prototype fusion and contrast, alignment, schedule.

Symbols: student θ, teacher θ', C classes with K prototypes each in d dimensions, voxel features F, prototypes P.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from contrastive_core.losses import self_logsumexp, sup_con
from contrastive_core.nn import entropy_reliability, fuse_prototypes
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cl_medical.mpcl.features import cosine_maps
from cl_medical.mpcl.ihpg import Prototypes
from cl_medical.volumes.metrics import IGNORED

Positives = Literal["class", "same-index"]
Reliability = Literal["log-c", "sum"]


def supervised_loss(heads: Float[Tensor, "h b c x y z"], target: Int[Tensor, "b x y z"]) -> Float[Tensor, ""]:
    """Mean over heads of cross-entropy, Dice, focal and soft IoU, one loss a head (L_sup).

    Args:
        heads: Logits; a head beyond the fourth starts again with cross-entropy.
        target: Classes; voxels below 0 do not count, here and in all losses below.
    """
    losses = (cross_entropy, dice_loss, focal_loss, soft_iou_loss)
    return torch.stack([losses[index % 4](logits, target) for index, logits in enumerate(heads)]).mean()


def cross_entropy(logits: Float[Tensor, "b c x y z"], target: Int[Tensor, "b x y z"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the voxels that count; 0 if there are none."""
    total = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
    return total / (target >= 0).sum().clamp_min(1)


def dice_loss(
    logits: Float[Tensor, "b c x y z"], target: Int[Tensor, "b x y z"], eps: float = 1e-5
) -> Float[Tensor, ""]:
    """One minus the soft Dice overlap, averaged over images and classes."""
    overlap, predicted, true = _overlap(logits, target)
    return 1 - ((2 * overlap + eps) / (predicted + true + eps)).mean()


def soft_iou_loss(
    logits: Float[Tensor, "b c x y z"], target: Int[Tensor, "b x y z"], eps: float = 1e-5
) -> Float[Tensor, ""]:
    """One minus the soft intersection over union, averaged over images and classes."""
    overlap, predicted, true = _overlap(logits, target)
    return 1 - ((overlap + eps) / (predicted + true - overlap + eps)).mean()


def focal_loss(
    logits: Float[Tensor, "b c x y z"], target: Int[Tensor, "b x y z"], gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Focal loss whose factor ``(1 - p)^gamma`` carries no gradient, as in the official code."""
    log_p = -F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")  # 0 where nothing counts
    return -((1 - log_p.detach().exp()).pow(gamma) * log_p).sum() / (target >= 0).sum().clamp_min(1)


def fuse(
    labelled: Prototypes,
    unlabelled: Prototypes,
    weight: float,
    running: Prototypes | None = None,
    *,
    masked: bool = True,
) -> tuple[Float[Tensor, "c k d"], Bool[Tensor, " c"]]:
    """Prototypes of both sources in one (PSO): ``(P_l + w P_u) / (1 + w)``.

    Args:
        labelled: Prototypes of the labelled images, with gradient.
        unlabelled: Prototypes of the unlabelled images.
        weight: Ramp-up weight w.
        running: Used for classes that neither source holds.
        masked: Take a class from the source that holds it; otherwise absent classes enter as zeros, as published.

    Returns:
        Fused prototypes, and the classes that have any.
    """
    if not masked:
        return fuse_prototypes(labelled.centers, unlabelled.centers, weight), torch.ones_like(labelled.present)
    fused = fuse_prototypes(
        labelled.centers,
        unlabelled.centers,
        weight,
        present_a=labelled.present,
        present_b=unlabelled.present,
    )
    present = labelled.present | unlabelled.present
    if running is not None:
        fused = torch.where((~present & running.present)[:, None, None], running.centers, fused)
        present = present | running.present
    return fused, present


def prototype_contrast(
    labelled: Prototypes,
    unlabelled: Prototypes,
    *,
    temperature: float = 0.1,
    positives: Positives = "class",
    self_negative: bool = False,
    masked: bool = True,
) -> Float[Tensor, ""]:
    """Contrast between all prototypes of both sources (PSO, L_con).

    ``l_i = -log( sum over positives of exp(S_ij) / sum over j != i of exp(S_ij) )``, S the cosines over τ.

    Args:
        labelled: Prototypes of the labelled images.
        unlabelled: Prototypes of the unlabelled images.
        temperature: τ, positive.
        positives: All others of the class, or only the one of the same index in the other source (the class's other
            prototypes are negatives then).
        self_negative: Keep exp(1/τ) of a prototype with itself in the denominator, as the official code does; the
            loss is then at least log(2K / (2K - 1)).
        masked: Leave out classes a source does not hold.

    Returns:
        Mean over prototypes that have a positive, 0 if none has.
    """
    classes, k, d = labelled.centers.shape
    z = torch.cat([labelled.centers.reshape(-1, d), unlabelled.centers.reshape(-1, d)])
    group = torch.arange(classes, device=z.device)[:, None].expand(classes, k)
    if positives == "same-index":
        group = group * k + torch.arange(k, device=z.device)
    groups = group.reshape(-1).repeat(2)
    if masked:
        present = torch.cat([part.present[:, None].expand(classes, k).reshape(-1) for part in (labelled, unlabelled)])
        z, groups = z[present], groups[present]
    if len(z) < 2:
        return z.sum() * 0.0
    others = (groups[:, None] == groups).sum(1) - 1
    # sup_con's inner mean over positives becomes the sum of the equation.
    losses = sup_con(z, groups, temperature=temperature, positives="in", reduction="none")
    losses = losses - others.clamp_min(1).log()
    if self_negative:
        unit = F.normalize(z, dim=1)
        rest = self_logsumexp(unit, z.new_tensor(1 / temperature))
        losses = losses + torch.logaddexp(rest, unit.square().sum(1) / temperature) - rest
    has = others > 0
    return torch.where(has, losses, 0.0).sum() / has.sum().clamp_min(1)


def prototype_maps(
    x6: Float[Tensor, "b d u v w"],
    prototypes: Float[Tensor, "c k d"],
    size: tuple[int, ...],
    present: Bool[Tensor, " c"] | None = None,
) -> tuple[Float[Tensor, "b c x y z"], Int[Tensor, "b x y z"]]:
    """The prototype classifier at every voxel (DKA): ``g_c = max_k cos(F, P_ck)``.

    Args:
        x6: Feature maps.
        prototypes: Prototypes of all classes.
        size: Sides of the patch.
        present: Classes without prototypes get -1, the smallest cosine, and never win.

    Returns:
        Cosine of every class, and the index ``c K + k`` of the winning prototype.
    """
    classes, k, d = prototypes.shape
    cosines = cosine_maps(x6, prototypes.reshape(-1, d), size).unflatten(1, (classes, k))
    if present is not None:
        cosines = torch.where(present[:, None, None, None, None], cosines, -1.0)
    best, index = cosines.max(2)
    winner = best.argmax(1)
    return best, winner * k + index.gather(1, winner[:, None])[:, 0]


def prototype_cross_entropy(
    x6: Float[Tensor, "b d u v w"],
    prototypes: Float[Tensor, "c k d"],
    present: Bool[Tensor, " c"],
    target: Int[Tensor, "b x y z"],
    *,
    scale: float = 1.0,
    weight: Float[Tensor, "b x y z"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the prototype classifier (DKA, L_pc).

    Args:
        x6: Feature maps.
        prototypes: Fused prototypes.
        present: Classes without prototypes lose their logit, and their voxels add nothing.
        target: Classes, or pseudo-labels; voxels below 0 do not count.
        scale: Factor on the cosines; 1 as published, which keeps the loss above log(1 + (C - 1) / e).
        weight: Reliability of every voxel.

    Returns:
        Mean of the weighted cross-entropy over the voxels that count.
    """
    classes, k, d = prototypes.shape
    cosines = cosine_maps(x6, prototypes.reshape(-1, d), target.shape[1:]).unflatten(1, (classes, k))
    logits = scale * cosines.amax(2)
    logits = logits.masked_fill(~present[:, None, None, None], float("-inf"))
    counted = target >= 0
    known = counted & present[target.clamp_min(0)]
    losses = F.cross_entropy(logits, torch.where(known, target, IGNORED), ignore_index=IGNORED, reduction="none")
    losses = losses if weight is None else losses * weight
    return losses.sum() / counted.sum().clamp_min(1)


def pseudo_labels(
    logits: Float[Tensor, "b c x y z"], *, reliability: Reliability = "log-c"
) -> tuple[Int[Tensor, "b x y z"], Float[Tensor, "b x y z"]]:
    """The teacher's labels and how far each is trusted (r of the paper's teacher branch).

    Args:
        logits: Mean logits of the teacher's heads.
        reliability: ``log-c``: ``1 - H / ln C``, in [0, 1]. ``sum``: ``1 - H / sum of H over the image``, the published
            form, which is 1 almost everywhere.
    """
    probability = torch.softmax(logits, 1)
    mode: Literal["sum", "log_c"] = "sum" if reliability == "sum" else "log_c"
    return probability.argmax(1), entropy_reliability(probability, mode)


def masked_mse(
    student: Float[Tensor, "b c x y z"],
    teacher: Float[Tensor, "b c x y z"],
    mask: Bool[Tensor, "b x y z"] | None = None,
) -> Float[Tensor, ""]:
    """Squared difference of two softmax outputs (Mean Teacher), over trusted voxels only (UA-MT).

    Args:
        student: Logits.
        teacher: Probabilities.
        mask: Voxels that count; all if absent.
    """
    error = (student.softmax(1) - teacher).square().mean(1)
    if mask is None:
        return error.mean()
    return (error * mask).sum() / mask.sum().clamp_min(1)


def _overlap(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counted = (target >= 0).flatten(1)[:, None]
    probability = logits.softmax(1).flatten(2) * counted
    truth = F.one_hot(target.clamp_min(0), logits.shape[1]).flatten(1, -2).transpose(1, 2).to(probability) * counted
    return (probability * truth).sum(2), probability.sum(2), truth.sum(2)
