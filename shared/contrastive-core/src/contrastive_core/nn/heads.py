"""Heads between an encoder and a loss."""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from contrastive_core.nn.activations import sign_ste

HiddenNorm = Literal["bn", "ln", "none"]
LastNorm = Literal["bn", "bn_noaffine", "l2"]
Activation = Literal["relu", "gelu"]


def mlp_head(
    dims: Sequence[int],
    *,
    hidden_norm: HiddenNorm = "bn",
    act: Activation = "relu",
    last_norm: LastNorm | None = None,
    bias_before_norm: bool = False,
) -> nn.Sequential:
    """Projection or prediction head: linear layers with a norm and an activation between them.

    - SimCLR: ``[2048, 2048, 128]``; on CIFAR ``[512, 2048, 256]`` with ``hidden_norm="none"``.
    - SimSiam: ``[2048, 2048, 2048, 2048]`` with ``last_norm="bn_noaffine"``; predictor ``[2048, 512, 2048]``.
    - BYOL: ``[2048, 4096, 256]``, the predictor ``[256, 4096, 256]``.
    - MoCo v3: ``[d, 4096, 4096, 256]`` with ``last_norm="bn_noaffine"``; predictor ``[256, 4096, 256]`` likewise.
    - Barlow Twins, VICReg: ``[2048, 8192, 8192, 8192]``.

    Args:
        dims: Widths from the input to the output; two for a single linear layer.
        hidden_norm: After each linear layer but the last: batch norm, layer norm, or none.
        act: After that.
        last_norm: After the last layer: batch norm, the same without scale and shift, rows of unit length, or nothing.
        bias_before_norm: Keep biases of linear layers that a batch norm follows, which cancels them.

    Raises:
        ValueError: Fewer than two widths, or an unknown option.

    Example:
        >>> head = mlp_head([8, 16, 4], last_norm="l2")
        >>> head(torch.randn(3, 8)).shape
        torch.Size([3, 4])
    """
    if len(dims) < 2 or min(dims) < 1:
        raise ValueError(f"a head has at least two widths, all positive, got {list(dims)}")
    activations: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
    if hidden_norm not in ("bn", "ln", "none") or last_norm not in ("bn", "bn_noaffine", "l2", None):
        raise ValueError(f"unknown norm {hidden_norm!r} or {last_norm!r}")
    if act not in activations:
        raise ValueError(f"act is relu or gelu, got {act!r}")
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise(dims[:-1]):
        layers.append(nn.Linear(narrow, wide, bias=bias_before_norm or hidden_norm != "bn"))
        if hidden_norm != "none":
            layers.append(nn.BatchNorm1d(wide) if hidden_norm == "bn" else nn.LayerNorm(wide))
        layers.append(activations[act]())
    batch_norm = last_norm in ("bn", "bn_noaffine")
    layers.append(nn.Linear(dims[-2], dims[-1], bias=bias_before_norm or not batch_norm))
    if batch_norm:
        layers.append(nn.BatchNorm1d(dims[-1], affine=last_norm == "bn"))
    elif last_norm == "l2":
        layers.append(UnitRows())
    return nn.Sequential(*layers)


class UnitRows(nn.Module):
    """Bring rows to unit length; zero rows stay zero."""

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Rows of unit length."""
        return F.normalize(x, dim=1, eps=1e-12)


class PrototypeHead(nn.Module):
    """Cosines with learnable prototypes (SwAV; Caron et al., 2020), whatever the length of their weights.

    Args:
        dim: Width of the embedding.
        prototypes: Prototypes; 3000 in SwAV.

    Example:
        >>> head = PrototypeHead(4, 10)
        >>> bool(head(torch.randn(2, 4)).abs().max() <= 1)
        True
    """

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Cosine with each prototype."""
        return F.normalize(x, dim=1, eps=1e-12) @ F.normalize(self.weight, dim=1, eps=1e-12).T


class HashHead(nn.Module):
    """A linear map to binary codes: relaxed for training, signs for retrieval.

    ``tanh``: ``tanh(beta x)``, beta rising from the first to the second value of ``beta`` as :meth:`set_progress` is
    called (HashNet; Cao et al., 2017). ``ste``: signs with the straight-through gradient.

    Args:
        dim: Width of the input.
        bits: Bits of a code.
        mode: What training sees.
        beta: First and last sharpness of ``tanh``, positive.

    Raises:
        ValueError: Unknown mode, or a sharpness that is not positive.

    Example:
        >>> head = HashHead(8, 16)
        >>> head.set_progress(1.0)
        >>> codes = head.codes(torch.randn(2, 8))
        >>> sorted(set(codes.flatten().tolist()))
        [-1.0, 1.0]
    """

    beta: Tensor

    def __init__(
        self,
        dim: int,
        bits: int,
        *,
        mode: Literal["tanh", "ste"] = "tanh",
        beta: tuple[float | int, float | int] = (1, 10),
    ) -> None:
        super().__init__()
        if mode not in ("tanh", "ste") or min(beta) <= 0:
            raise ValueError(f"mode is tanh or ste and beta positive, got {mode!r} and {beta}")
        self.mode, self._range = mode, (float(beta[0]), float(beta[1]))
        self.linear = nn.Linear(dim, bits)
        self.register_buffer("beta", torch.tensor(self._range[0]))

    def set_progress(self, progress: float | int) -> None:
        """Set beta for a share of the training, 0 to 1: ``first (last / first)^progress``."""
        first, last = self._range
        self.beta.fill_(first * (last / first) ** min(max(progress, 0.0), 1.0))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b bits"]:
        """Relaxed codes in [-1, 1], or signs with ``mode="ste"``."""
        values = self.linear(x)
        return torch.tanh(self.beta.to(values) * values) if self.mode == "tanh" else sign_ste(values)

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b bits"]:
        """Codes of -1 and 1, as :func:`contrastive_core.evaluation.pack_codes` takes them."""
        return sign_ste(self.linear(x))
