"""A student that follows a teacher: on class logits, or on similarities with other rows."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive_core.losses.kernel import is_transformed, without_autocast
from contrastive_core.losses.products import TILE, similarities, transposed_weighted_sum, weighted_sum
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
from contrastive_core.losses.similarity import pair_logsumexp, self_logsumexp


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
    with without_autocast(student):
        log_q = (full_precision(student) * scale).log_softmax(1)
        log_p = (full_precision(teacher.detach()) * scale).log_softmax(1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(1) / scale**2
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
    scales = [inverse_temperature(each, student) for each in (student_temperature, teacher_temperature)]
    s, t = normalise(student), normalise(teacher.detach()).to(full_precision(student).dtype)
    counts = local_sizes(s, gather)
    if student_anchors is not None and teacher_anchors is not None:
        if len(student_anchors) != len(teacher_anchors) or len(student_anchors) == 0:
            raise ValueError(f"expected as many anchors of both, got {len(student_anchors)} and {len(teacher_anchors)}")
        s_keys, t_keys = normalise(student_anchors).to(s), normalise(teacher_anchors.detach()).to(t)
        ids = None
    else:
        if sum(counts) < 2:
            raise ValueError("relations need at least two rows, or anchors")
        s_keys, t_keys = gathered(s, counts, gather), gathered(t, counts, gather)
        ids = item_ids(s, None, counts, gather)
    with without_autocast(s):
        if len(s) * len(s_keys) <= TILE * TILE:
            logits = (s @ s_keys.T * scales[0], t @ t_keys.T * scales[1])
            return reduce(_divergence(*logits, ids), reduction, counts)
        s_lse, t_lse = (_logsumexp(*each, ids) for each in ((s, s_keys, scales[0]), (t, t_keys, scales[1])))
        average = _Teacher(t, t_keys, scales[1], t_lse, ids).average(torch.cat([s_keys, t_keys], 1))
        student_mean, teacher_mean = average.split([s.shape[1], t.shape[1]], 1)
        # The cross-entropy with the student less the entropy of the teacher.
        cross = s_lse - (s * student_mean).sum(1) * scales[0]
        entropy = t_lse - (t * teacher_mean).sum(1) * scales[1]
        divergence = cross - entropy
    return reduce(divergence, reduction, counts)


def _divergence(student: Tensor, teacher: Tensor, ids: tuple[Tensor, Tensor] | None) -> Tensor:
    """``KL`` of every row between the softmax of the teacher's and of the student's logits, but for equal ids."""
    if ids is None:
        log_q, log_p = student.log_softmax(1), teacher.log_softmax(1)
        return (log_p.exp() * (log_p - log_q)).sum(1)
    same = ids[0][:, None] == ids[1]
    log_q, log_p = (logits.masked_fill(same, float("-inf")).log_softmax(1) for logits in (student, teacher))
    return (log_p.exp() * (log_p - log_q).masked_fill(same, 0.0)).sum(1)


def _logsumexp(rows: Tensor, keys: Tensor, scale: float | Tensor, ids: tuple[Tensor, Tensor] | None) -> Tensor:
    """Over the keys of other ids; of one set, each tile serves two row blocks."""
    if ids is None:
        return pair_logsumexp(rows, keys, scale)[0]
    if rows is keys:
        return self_logsumexp(rows, scale)
    return pair_logsumexp(rows, keys, scale, query_ids=ids[0], key_ids=ids[1])[0]


class _Average(torch.autograd.Function):
    """``P @ rows``, or ``P.T @ rows``, with the teacher's softmax ``P`` of one tile at a time.

    Linear in the rows and constant otherwise, so that its gradient is the transposed average, to any order.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, teacher: "_Teacher", transposed: bool) -> Tensor:
        ctx.teacher, ctx.transposed = teacher, transposed
        out = rows.new_zeros(len(teacher.keys if transposed else teacher.rows), rows.shape[1])
        with without_autocast(rows):
            for a in range(0, len(teacher.rows), TILE):
                for b in range(0, len(teacher.keys), TILE):
                    p = teacher.softmax(a, b)
                    if transposed:
                        out[b : b + TILE] += transposed_weighted_sum(p, rows[a : a + TILE])
                    else:
                        out[a : a + TILE] += weighted_sum(p, rows[b : b + TILE])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Average.apply(grad, ctx.teacher, not ctx.transposed), None, None


class _Teacher(NamedTuple):
    """The teacher's softmax over similarities, without gradient."""

    rows: Tensor
    keys: Tensor
    scale: float | Tensor
    lse: Tensor
    ids: tuple[Tensor, Tensor] | None

    def softmax(self, a: int = 0, b: int = 0, tile: int = TILE) -> Tensor:
        """Probabilities of one tile; zero at the pair of a row with itself."""
        z = similarities(self.rows[a : a + tile] * self.scale, self.keys[b : b + tile])
        p = (z - self.lse[a : a + tile, None]).exp()
        if self.ids is None:
            return p
        return p.masked_fill(self.ids[0][a : a + tile, None] == self.ids[1][None, b : b + tile], 0.0)

    def average(self, rows: Tensor) -> Tensor:
        """``P @ rows``."""
        compiled = torch.compiler.is_compiling()
        size = len(self.rows) * len(self.keys)
        if is_transformed(rows) or (compiled and size <= TILE * TILE):
            return self.softmax(tile=max(len(self.rows), len(self.keys))) @ rows
        run = torch.compiler.disable(_Average.apply) if compiled else _Average.apply
        return run(rows, self, False)
