"""The sign, with a gradient."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def sign_ste(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Sign, with 1 at zero, and the gradient of the identity where ``|x| <= 1``.

    The straight-through estimator (Bengio et al., 2013) in its saturating form (Hubara et al., 2016).

    Example:
        >>> sign_ste(torch.tensor([-0.2, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """
    out: Tensor = _Sign.apply(x)
    return out


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)
