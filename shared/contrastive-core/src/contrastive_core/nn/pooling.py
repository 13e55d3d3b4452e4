"""One vector for a bag of vectors."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class AttentionPooling(nn.Module):
    """Weighted mean with learned weights (Ilse et al., 2018, eq. 8; gated: eq. 9).

    ``a = softmax(w' tanh(V h))``, gated ``a = softmax(w' (tanh(V h) * sigmoid(U h)))``.

    Args:
        dim: Width of an instance.
        hidden: Width of the attention network.
        gated: Use the gate, which tells instances apart where tanh is almost linear.

    Example:
        >>> pooled, weight = AttentionPooling(4)(torch.randn(2, 5, 4))
        >>> pooled.shape, weight.shape
        (torch.Size([2, 4]), torch.Size([2, 5]))
    """

    def __init__(self, dim: int, *, hidden: int = 128, gated: bool = True) -> None:
        super().__init__()
        self.value = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if gated else None
        self.score = nn.Linear(hidden, 1)

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n"]]:
        """Pool bags.

        Args:
            x: Instances of each bag.
            mask: Which of them exist; all by default. An empty bag gives zeros.

        Returns:
            Pooled rows and the weights.
        """
        hidden = torch.tanh(self.value(x))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(x))
        scores = self.score(hidden).squeeze(2).float()
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weight = torch.softmax(scores, 1)
        if mask is not None:
            weight = weight * mask  # in an empty bag all scores are equal
        weight = weight.to(x.dtype)
        return torch.einsum("bn,bnd->bd", weight, x), weight
