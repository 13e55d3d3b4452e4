"""A student that follows a teacher: on class logits, or on similarities with other rows."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastive_core.losses.products import similarities, transposed_weighted_sum, weighted_sum
from contrastive_core.losses.rows import (
    Reduction,
    Temperature,
    check_pair,
    full_precision,
    gathered,
    inverse_temperature,
    item_ids,
    local_sizes,
    normalise,
    reduce,
)
from contrastive_core.losses.similarity import TILE, pair_logsumexp, self_logsumexp


def distillation(
    student: Float[Tensor, "n k"],
    teacher: Float[Tensor, "n k"],
    *,
    temperature: float = 4.0,
    gather: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` (Hinton et al., 2015, section 2).

    Args:
        student: Logits.
        teacher: Logits of the teacher; get no gradient.
        temperature: ``T``, positive.
        gather: Weigh this process's rows by its share of the rows of all processes.
        reduction: ``mean`` over rows, or ``none``.

    Raises:
        ValueError: The shapes do not agree, or the temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import distillation
        >>> round(float(distillation(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), temperature=1.0)), 4)
        0.3278
    """
    check_pair(student, teacher)
    scale = inverse_temperature(temperature, student)
    with torch.autocast(student.device.type, enabled=False):
        log_q = (full_precision(student) * scale).log_softmax(1)
        log_p = (full_precision(teacher.detach()) * scale).log_softmax(1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(1) / scale.square()
    return reduce(divergence, reduction, local_sizes(student, gather))


def relational_distillation(
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "n e"],
    *,
    student_temperature: Temperature = 0.04,
    teacher_temperature: float = 0.04,
    student_anchors: Float[Tensor, "m d"] | None = None,
    teacher_anchors: Float[Tensor, "m e"] | None = None,
    gather: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """``KL`` between the teacher's and the student's softmax over similarities (CompRess, 2020; SEED, 2021).

    ``L_i = sum_j p_ij log(p_ij / q_ij)`` with ``p_i = softmax_j(t_i . t_j / T_t)`` and ``q_i = softmax_j(s_i . s_j /
    T_s)``, over the other rows of the batch, or over anchors. The widths of student and teacher may differ. Tiles are
    streamed: the student's part is ``s_i . sum_j p_ij s_j``.

    Args:
        student: Embeddings of the student, any norm.
        teacher: Embeddings of the teacher, row by row the same items; get no gradient.
        student_temperature: ``T_s``, or a tensor that learns.
        teacher_temperature: ``T_t``.
        student_anchors: The anchors in the student's space (SEED: the teacher's queue); absent: the batch itself.
        teacher_anchors: The same anchors in the teacher's space.
        gather: Compare with the rows of all processes of ``torch.distributed``, with exact gradients.
        reduction: ``mean`` over rows, or ``none``.

    Raises:
        ValueError: The numbers of rows do not agree, only one kind of anchors is given, there is nothing to compare
            with, or a temperature is not positive.

    Example:
        >>> import torch
        >>> from contrastive_core.losses import relational_distillation
        >>> x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        >>> turned = x @ torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
        >>> abs(float(relational_distillation(x, turned))) < 1e-4  # the same relations
        True
    """
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher) or len(student) == 0:
        raise ValueError(f"expected [n d] and [n e], got {tuple(student.shape)} and {tuple(teacher.shape)}")
    if (student_anchors is None) != (teacher_anchors is None):
        raise ValueError("anchors are given for both the student and the teacher, or for neither")
    scales = [inverse_temperature(t, student) for t in (student_temperature, teacher_temperature)]
    s, t = normalise(student), normalise(teacher.detach()).to(full_precision(student).dtype)
    counts = local_sizes(s, gather)
    if student_anchors is not None and teacher_anchors is not None:
        if len(student_anchors) != len(teacher_anchors) or len(student_anchors) == 0:
            raise ValueError(f"expected as many anchors of both, got {len(student_anchors)} and {len(teacher_anchors)}")
        s_keys, t_keys = normalise(student_anchors).to(s), normalise(teacher_anchors.detach()).to(t)
        own, everyone = None, None
        s_lse, _ = pair_logsumexp(s, s_keys, scales[0])
        t_lse, _ = pair_logsumexp(t, t_keys, scales[1])
    else:
        if sum(counts) < 2:
            raise ValueError("relations need at least two rows, or anchors")
        s_keys, t_keys = gathered(s, counts, gather), gathered(t, counts, gather)
        own, everyone = item_ids(s, None, counts, gather)
        if gather:
            s_lse, _ = pair_logsumexp(s, s_keys, scales[0], query_ids=own, key_ids=everyone)
            t_lse, _ = pair_logsumexp(t, t_keys, scales[1], query_ids=own, key_ids=everyone)
        else:
            s_lse, t_lse = self_logsumexp(s, scales[0]), self_logsumexp(t, scales[1])
    with torch.autocast(s.device.type, enabled=False):
        q_part, p_part = _Expectation.apply(s, s_keys, t, t_keys, scales[1], t_lse, own, everyone)
    divergence = p_part - t_lse - q_part * scales[0] + s_lse
    return reduce(divergence, reduction, counts)


class _Expectation(torch.autograd.Function):
    """``sum_j p_ij s_i . s_j`` and ``sum_j p_ij t_i . t_j / T_t`` under the teacher's softmax ``p``.

    Only ``s`` has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        student_keys: Tensor,
        teacher: Tensor,
        teacher_keys: Tensor,
        scale: Tensor,
        lse: Tensor,
        own: Tensor | None,
        everyone: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        mean, logits = torch.zeros_like(student), torch.zeros_like(lse)
        for a in range(0, len(student), TILE):
            for b in range(0, len(student_keys), TILE):
                z, p = _softmax_tile(teacher, teacher_keys, scale, lse, own, everyone, a, b)
                mean[a : a + TILE] += weighted_sum(p, student_keys[b : b + TILE])
                logits[a : a + TILE] += z.mul_(p).sum(1)
        ctx.save_for_backward(student, student_keys, teacher, teacher_keys, scale, lse, own, everyone, mean)
        ctx.mark_non_differentiable(logits)
        return (student * mean).sum(1), logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        student, student_keys, teacher, teacher_keys, scale, lse, own, everyone, mean = ctx.saved_tensors
        weighted = student * grad[:, None]
        grad_keys = torch.zeros_like(student_keys)
        with torch.autocast(student.device.type, enabled=False):
            for a in range(0, len(student), TILE):
                for b in range(0, len(student_keys), TILE):
                    _, p = _softmax_tile(teacher, teacher_keys, scale, lse, own, everyone, a, b)
                    grad_keys[b : b + TILE] += transposed_weighted_sum(p, weighted[a : a + TILE])
        return mean * grad[:, None], grad_keys, None, None, None, None, None, None


def _softmax_tile(
    x: Tensor,
    keys: Tensor,
    scale: Tensor,
    lse: Tensor,
    own: Tensor | None,
    everyone: Tensor | None,
    a: int,
    b: int,
) -> tuple[Tensor, Tensor]:
    """Logits and probabilities of one tile; zero at the pair of a row with itself."""
    z = similarities(x[a : a + TILE] * scale, keys[b : b + TILE])
    p = (z - lse[a : a + TILE, None]).exp_()
    if own is not None and everyone is not None:
        p.masked_fill_(own[a : a + TILE, None] == everyone[None, b : b + TILE], 0.0)
    return z, p
