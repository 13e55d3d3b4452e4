"""The contrastive objective of pre-training."""

from contrastive_core.losses import info_nce
from jaxtyping import Float
from torch import Tensor


def mantis_contrastive(
    query: Float[Tensor, "b d"], key: Float[Tensor, "b d"], *, temperature: float = 0.1, gather: bool = False
) -> Float[Tensor, ""]:
    """``L = -(1/B) sum_i log( exp(q_i k_i / tau) / sum_j exp(q_i k_j / tau) )`` (Mantis, eq. 1).

    One direction, the negatives are the other series of the batch, both views carry gradient. The cosine similarity
    makes the norm of the projections irrelevant.

    Args:
        query: Projections of the first view.
        key: Projections of the second view.
        temperature: Temperature tau, positive.
        gather: Take the keys of all processes.
    """
    return info_nce(query, key, temperature=temperature, gather=gather)
