"""The losses of PromptGNN-sim on tensors: prompt-text and graph-text alignment, and the tasks."""

import torch
import torch.nn.functional as F
from contrastive_core.losses import pair_logsumexp
from contrastive_core.memory.queue import QueueEntries
from jaxtyping import Float, Int
from torch import Tensor

TEMPERATURE = 0.07


def directed_alignment(
    a: Float[Tensor, "b d"],
    b: Float[Tensor, "b d"],
    ids: Int[Tensor, " b"],
    *,
    temperature: float = TEMPERATURE,
    queue: QueueEntries | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE of row i of ``a`` with row i of ``b`` against the other rows of ``b`` and the queue.

    ``ℓ(a→b) = -1/B Σ_i log( e^{a_i·b_i/τ} / (Σ_j e^{a_i·b_j/τ} + Σ_m e^{a_i·m/τ}) )`` over unit rows.

    Args:
        a: Queries, any norm.
        b: Their positives, row by row.
        ids: Rows (and queue entries) with the id of a query are no negatives of it: the same node, or the same text.
        temperature: τ.
        queue: Further negatives, unit rows without gradient.
    """
    scale = a.new_tensor(1 / temperature)
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    keys, key_ids = b, ids
    if queue is not None and len(queue.ids):
        keys, key_ids = torch.cat([b, queue.features.to(b)]), torch.cat([ids, queue.ids.to(ids)])
    negatives, _ = pair_logsumexp(a, keys, scale, query_ids=ids, key_ids=key_ids)
    positive = (a * b).sum(1) * scale
    return (torch.logaddexp(negatives, positive) - positive).mean()


def alignment(
    a: Float[Tensor, "b d"],
    b: Float[Tensor, "b d"],
    ids: Int[Tensor, " b"],
    *,
    temperature: float = TEMPERATURE,
    queue_a: QueueEntries | None = None,
    queue_b: QueueEntries | None = None,
) -> Float[Tensor, ""]:
    """``½ [ℓ(a→b) + ℓ(b→a)]``: L_pt of raw text and prompt, L_gt of graph and text.

    Args:
        a: One view, any norm.
        b: The other, row by row.
        ids: Ids of the rows, see :func:`directed_alignment`.
        temperature: τ.
        queue_a: Older rows of the first view, negatives of the second.
        queue_b: Older rows of the second view, negatives of the first.
    """
    return (
        directed_alignment(a, b, ids, temperature=temperature, queue=queue_b)
        + directed_alignment(b, a, ids, temperature=temperature, queue=queue_a)
    ) / 2


def classification(
    logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"], *, smoothing: float = 0.1
) -> Float[Tensor, ""]:
    """Cross-entropy with label smoothing over the rows that have a label; -1 marks the others. 0 if none has."""
    known = labels >= 0
    if not bool(known.any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits[known], labels[known], label_smoothing=smoothing)


def link_loss(scores: Float[Tensor, " p"], joined: Float[Tensor, " p"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of pair scores (logits) against 1 for linked and 0 for unlinked pairs."""
    return F.binary_cross_entropy_with_logits(scores, joined)
