"""The losses of PromptGNN-sim on tensors: prompt-text and graph-text alignment, and the tasks."""

import dataclasses

import torch.nn.functional as F
from contrastive_core.errors import require
from contrastive_core.losses import info_nce
from contrastive_core.losses.rows import reduce_valid
from contrastive_core.memory.queue import QueueEntries
from jaxtyping import Float, Int
from torch import Tensor

TEMPERATURE = 0.07


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """Weights of the objective and what it is measured on.

    Attributes:
        prompt_weight: μ_pt, weight of prompt-text alignment; 0 leaves it out.
        graph_weight: μ_gt, weight of graph-text alignment; 0 leaves it out.
        temperature: τ of both.
        queue: Older rows kept as negatives of L_pt, at most half the nodes; 0 for none.
        smoothing: Label smoothing.
        unlabelled: Further nodes in a batch for each labelled one, which take part in the alignments alone.
    """

    prompt_weight: float = 0.1
    graph_weight: float = 0.1
    temperature: float = TEMPERATURE
    queue: int = 4096
    smoothing: float = 0.1
    unlabelled: float = 1.0

    def __post_init__(self) -> None:
        for name in ("prompt_weight", "graph_weight", "unlabelled"):
            value = getattr(self, name)
            require(0 <= value <= 1e6, f"--{name.replace('_', '-')}", value, "a number from 0 to a million")
        require(0 < self.temperature <= 1e6, "--temperature", self.temperature, "a positive number")
        require(0 <= self.queue <= 1 << 24, "--queue", self.queue, "a number of rows from 0 to 16 million")
        require(0 <= self.smoothing < 1, "--smoothing", self.smoothing, "a share in [0, 1)")


def directed_alignment(
    a: Float[Tensor, "b d"],
    b: Float[Tensor, "b d"],
    ids: Int[Tensor, " b"],
    *,
    temperature: float = TEMPERATURE,
    queue: QueueEntries | None = None,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """InfoNCE of row i of ``a`` with row i of ``b`` against the other rows of ``b`` and the queue.

    ``ℓ(a→b) = -1/B Σ_i log( e^{a_i·b_i/τ} / (Σ_j e^{a_i·b_j/τ} + Σ_m e^{a_i·m/τ}) )`` over unit rows.

    Args:
        a: Queries, any norm.
        b: Their positives, row by row.
        ids: Rows (and queue entries) with the id of a query are no negatives of it: the same node, or the same text.
        temperature: τ.
        queue: Further negatives, unit rows without gradient.
        gather: The rows of all processes are negatives of each other, with exact gradients.
    """
    features, queue_ids = (None, None) if queue is None else (queue.features, queue.ids)
    return info_nce(a, b, temperature=temperature, ids=ids, queue=features, queue_ids=queue_ids, gather=gather)


def alignment(
    a: Float[Tensor, "b d"],
    b: Float[Tensor, "b d"],
    ids: Int[Tensor, " b"],
    *,
    temperature: float = TEMPERATURE,
    queue_a: QueueEntries | None = None,
    queue_b: QueueEntries | None = None,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """``½ [ℓ(a→b) + ℓ(b→a)]``: L_pt of raw text and prompt, L_gt of graph and text.

    Args:
        a: One view, any norm.
        b: The other, row by row.
        ids: Ids of the rows, see :func:`directed_alignment`.
        temperature: τ.
        queue_a: Older rows of the first view, negatives of the second.
        queue_b: Older rows of the second view, negatives of the first.
        gather: The rows of all processes take part.
    """
    if queue_a is None and queue_b is None:  # both directions out of one pass
        return info_nce(a, b, temperature=temperature, symmetric=True, ids=ids, gather=gather)
    return (
        directed_alignment(a, b, ids, temperature=temperature, queue=queue_b, gather=gather)
        + directed_alignment(b, a, ids, temperature=temperature, queue=queue_a, gather=gather)
    ) / 2


def classification(
    logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"], *, smoothing: float = 0.1, gather: bool = False
) -> Float[Tensor, ""]:
    """Cross-entropy with label smoothing over the rows that have a label; -1 marks the others. 0 if none has.

    Args:
        logits: One row an item.
        labels: Classes.
        smoothing: Label smoothing.
        gather: The mean over processes is the one over all their labelled rows.
    """
    losses = F.cross_entropy(logits, labels.clamp_min(0), label_smoothing=smoothing, reduction="none")
    return reduce_valid(losses, labels >= 0, "mean", gather)


def link_loss(scores: Float[Tensor, " p"], joined: Float[Tensor, " p"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of pair scores (logits) against 1 for linked and 0 for unlinked pairs."""
    return F.binary_cross_entropy_with_logits(scores, joined)
