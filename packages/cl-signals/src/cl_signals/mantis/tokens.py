"""From a raw series to one token a patch (Mantis, section 3.1; the scalar encoder is NuTime's, arXiv 2310.07402)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SCALES = tuple(10.0**power for power in range(-4, 5))
_SCALE_EPSILON = 1.1
_TINY = 1e-15


class ScalarEncoder(nn.Module):
    """Multi-scaled encoding of one number: nine affine encodings, mixed by how close the number is to each scale.

    Args:
        width: Length of the code.
    """

    scales: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        count = len(SCALES)
        self.register_buffer("scales", torch.tensor(SCALES), persistent=False)
        self.weight = nn.Parameter(torch.rand(count, width))
        self.bias = nn.Parameter(torch.rand(count, width))
        self.gain = nn.Parameter(torch.ones(count, width))
        self.shift = nn.Parameter(torch.zeros(count, width))

    def mixture(self, x: Float[Tensor, "..."]) -> Float[Tensor, "... s"]:
        """Weight of every scale, summing to one; finite for every finite x."""
        closeness = (1 / (x.abs().unsqueeze(-1) / self.scales + _SCALE_EPSILON).log()).abs()
        return closeness / closeness.sum(-1, keepdim=True)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "... h"]:
        """Code of every number."""
        y = x[..., None, None] * self.weight + self.scales[:, None] * self.bias
        y = F.layer_norm(y, y.shape[-1:], eps=_TINY)
        mixture = self.mixture(x)
        # Gain and shift of a scale do not depend on x, so they join the mixture: two products instead of two tensors.
        return torch.einsum("...s,...sh,sh->...h", mixture, y, self.gain) + mixture @ self.shift


class ConvPatches(nn.Module):
    """Convolution, layer normalisation over channels, mean over each patch; without ever forming the convolution.

    Write ``A = [W c]`` for the kernels and biases centred over channels, and ``u_t`` for the window at t with a 1
    appended. The normalised convolution is ``A u_t / sigma_t`` with ``sigma_t^2 = |A u_t|^2 / d + eps``, which equals
    ``|R u_t|^2 + eps`` for the triangular factor R of ``A / sqrt(d)``. The patch mean is linear, so windows are
    averaged first and multiplied by A once a patch instead of once a time step. In exact arithmetic this is the
    literal form, gradients included.

    Args:
        width: Number of channels d.
        kernel: Odd kernel size k.
        patches: Number of patches.
    """

    def __init__(self, width: int, kernel: int, patches: int) -> None:
        super().__init__()
        conv = nn.Conv1d(1, width, kernel)
        self.weight = nn.Parameter(conv.weight.detach()[:, 0].clone())
        assert conv.bias is not None
        self.bias = nn.Parameter(conv.bias.detach().clone())
        self.norm = nn.LayerNorm(width)
        self.patches = patches

    def forward(self, x: Float[Tensor, "b t"]) -> Float[Tensor, "b p d"]:
        """Patch tokens of z-scored series."""
        kernel = self.weight.shape[1]
        affine = torch.cat([self.weight, self.bias[:, None]], 1)
        affine = affine - affine.mean(0)
        windows = F.pad(x, (kernel // 2, kernel // 2)).unfold(1, kernel, 1)
        windows = torch.cat([windows, windows.new_ones(*windows.shape[:2], 1)], 2)
        spread = (windows @ self._factor(affine).T).square().sum(-1, keepdim=True)
        windows = windows * (spread + self.norm.eps).rsqrt()
        means = windows.unflatten(1, (self.patches, -1)).mean(2)
        return F.linear(means, affine * self.norm.weight[:, None], self.norm.bias)

    def _factor(self, affine: Float[Tensor, "d k1"]) -> Float[Tensor, "k1 k1"]:
        """Triangular R with ``R^T R = A^T A / d``, from a QR factorisation so that nothing cancels."""
        width, columns = affine.shape
        # A trace of the identity keeps R invertible, which its gradient needs; it is far below the norm's own epsilon.
        ridge = 1e-7 * torch.eye(columns, dtype=torch.float64, device=affine.device)
        return torch.linalg.qr(torch.cat([affine.double() / width**0.5, ridge])).R.to(affine.dtype)


class TokenGenerator(nn.Module):
    """Tokens of raw series: shape from the z-scored series and its differences, level and spread from each patch.

    Args:
        hidden: Token width d.
        patches: Number of patches P; the series length is a multiple of it, at least 2 P.
        kernel: Kernel size of the two convolutions, odd.
        scalar_width: Width of each scalar code.
    """

    def __init__(self, hidden: int, patches: int, kernel: int, scalar_width: int = 32) -> None:
        super().__init__()
        self.patches = patches
        self.differences = ConvPatches(hidden, kernel, patches)
        self.values = ConvPatches(hidden, kernel, patches)
        self.mean = ScalarEncoder(scalar_width)
        self.std = ScalarEncoder(scalar_width)
        self.mix = nn.Linear(2 * hidden + 2 * scalar_width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=_TINY)

    def forward(self, x: Float[Tensor, "b 1 t"]) -> Float[Tensor, "b p d"]:
        """Tokens, always computed in float32: the epsilons of this part vanish in half precision."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.squeeze(1).float()
            difference = F.pad(x.diff(dim=1), (0, 1))
            patches = x.unflatten(1, (self.patches, -1))
            parts = [
                self.differences(_standardise(difference)),
                self.values(_standardise(x)),
                self.mean(patches.mean(-1)),
                self.std(patches.std(-1)),
            ]
            return self.norm(self.mix(torch.cat(parts, -1)))


def _standardise(x: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
