"""Hash functions: small networks from features, or kernel activations, to relaxed codes on the unit sphere."""

import itertools

import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from jaxtyping import Float
from torch import Tensor, nn


class HashFunction(nn.Module):
    """``h = norm(tanh(W_2 ReLU(W_1 x)))``, Xavier-uniform with zero biases (GNAH, section 4; APKH, section 4.4).

    Args:
        dim: Width of the input.
        bits: Bits of a code.
        hidden: Width of the hidden layer; 0 for one linear layer, the classical kernel hash.
        dropout: Dropout after the hidden layer, in [0, 1).

    Raises:
        InputError: A width that is not positive, or a dropout out of range.

    Example:
        >>> lengths = HashFunction(8, 16)(torch.randn(3, 8)).norm(dim=1)
        >>> bool(torch.allclose(lengths, torch.ones(3)))
        True
    """

    def __init__(self, dim: int, bits: int, *, hidden: int = 1024, dropout: float = 0.0) -> None:
        super().__init__()
        if dim < 1 or bits < 1 or hidden < 0 or not 0 <= dropout < 1:
            raise InputError(
                "a hash function cannot be built",
                where="--bits, --hidden, --dropout",
                why=f"got width {dim}, {bits} bits, {hidden} hidden units, dropout {dropout}",
                remedy="use positive widths, and a dropout below 1",
            )
        widths = [dim, hidden, bits] if hidden else [dim, bits]
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            linear = nn.Linear(narrow, wide)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers[:-2])

    def activations(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b bits"]:
        """The tanh output before normalisation, for diagnostics."""
        return torch.tanh(self.layers(x))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b bits"]:
        """Relaxed codes of unit length."""
        return F.normalize(self.activations(x), dim=1, eps=1e-12)


def sign_codes(h: Float[Tensor, "n bits"]) -> Float[Tensor, "n bits"]:
    """Codes of -1 and +1, zero counting as +1 (``torch.sign`` would leave it 0).

    Raises:
        ValueError: A value is not finite.
    """
    if not bool(torch.isfinite(h).all()):
        raise ValueError("relaxed codes are not finite")
    return torch.where(h >= 0, 1.0, -1.0).to(h.dtype)
