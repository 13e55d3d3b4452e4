"""The shape of a set of embeddings: alignment, uniformity, rank, diversity, and what single factors stand for."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrastive_core.distributed import all_reduce_with_grad, gather


@torch.no_grad()
def alignment(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], *, alpha: float | int = 2) -> float:
    """Mean distance of positive pairs on the unit sphere, ``E |x - y|^alpha`` (Wang & Isola, 2020).

    Args:
        x: One view of each item, any norm.
        y: The other view.
        alpha: Exponent, positive.

    Returns:
        A number from 0 to ``2^alpha``; smaller is closer.

    Raises:
        ValueError: No rows, or an exponent that is not positive.
    """
    if len(x) == 0 or not alpha > 0:
        raise ValueError(f"alignment needs pairs and a positive exponent, got {len(x)} and {alpha}")
    # The norm of the difference, not 2 - 2 cos: close pairs keep their digits.
    return float((_unit(x) - _unit(y)).norm(dim=1).double().pow(alpha).mean())


@torch.no_grad()
def uniformity(x: Float[Tensor, "n d"], *, t: float | int = 2, tile: int = 2048) -> float:
    """Logarithm of the mean potential of all pairs on the unit sphere, ``log E_{i<j} exp(-t |x_i - x_j|^2)``.

    A row is never paired with itself (Wang & Isola, 2020). Memory grows with ``tile``, not with the number of pairs.

    Args:
        x: Embeddings, any norm.
        t: Sharpness of the potential, positive.
        tile: Rows and columns worked on at once.

    Returns:
        A number from ``-4 t`` to 0; smaller is more uniform.

    Raises:
        ValueError: Fewer than two rows, or options that are not positive.

    Example:
        >>> round(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), 4)
        -8.0
    """
    if len(x) < 2 or not t > 0 or tile < 1:
        raise ValueError(f"uniformity needs two rows, a positive t and tile, got {len(x)}, {t} and {tile}")
    blocks = _unit(x).split(tile)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for i, rows in enumerate(blocks):
        for j, columns in enumerate(blocks[i:]):
            # exp(-t (2 - 2 cos)); the largest exponent is 0.
            potential = torch.exp(2 * t * (rows @ columns.T - 1).clamp(-2, 0))
            total += potential.triu(1).sum(dtype=torch.float64) if j == 0 else potential.sum(dtype=torch.float64)
    pairs = len(x) * (len(x) - 1) / 2
    return float((total / pairs).log())


class PairGeometry:
    """Alignment and uniformity of pairs that come in batches.

    Under ``torch.distributed`` :meth:`compute` takes the pairs of all processes.

    Args:
        alpha: Exponent of the alignment.
        t: Sharpness of the uniformity.

    Example:
        >>> geometry = PairGeometry()
        >>> geometry.update(torch.eye(2), torch.eye(2))
        >>> round(geometry.compute()["uniformity"], 4)  # |x - y|^2 = 2, t = 2
        -4.0
    """

    def __init__(self, *, alpha: float | int = 2, t: float | int = 2) -> None:
        self.alpha, self.t = alpha, t
        self._x: list[Tensor] = []
        self._y: list[Tensor] = []

    def update(self, x: Float[Tensor, "b d"], y: Float[Tensor, "b d"]) -> None:
        """Take a batch of pairs."""
        self._x.append(_unit(x.detach()))
        self._y.append(_unit(y.detach()))

    def compute(self) -> dict[str, float]:
        """``alignment`` of the pairs, and ``uniformity`` averaged over the two views.

        Raises:
            ValueError: Fewer than two pairs so far.
        """
        if not self._x:
            raise ValueError("there are no pairs yet")
        x, y = gather(torch.cat(self._x)), gather(torch.cat(self._y))
        spread = (uniformity(x, t=self.t) + uniformity(y, t=self.t)) / 2
        return {"alignment": alignment(x, y, alpha=self.alpha), "uniformity": spread}


class Spectrum:
    """Singular values of embeddings that come in batches, from their ``d x d`` moments in float64.

    Under ``torch.distributed`` the moments of all processes are added.

    Args:
        center: Take the singular values about the mean.

    Example:
        >>> spectrum = Spectrum()
        >>> spectrum.update(torch.eye(3))
        >>> spectrum.update(torch.eye(3))
        >>> round(spectrum.effective_rank(), 4)
        3.0
    """

    def __init__(self, *, center: bool = False) -> None:
        self.center = center
        self._moments: Tensor | None = None

    def update(self, x: Float[Tensor, "b d"]) -> None:
        """Take a batch of rows."""
        rows = F.pad(x.detach().double(), (0, 1), value=1.0)  # the last column sums and counts
        moments = rows.T @ rows
        self._moments = moments if self._moments is None else self._moments + moments

    def singular_values(self) -> Float[Tensor, " d"]:
        """All of them, the largest first.

        Raises:
            ValueError: No rows so far.
        """
        if self._moments is None or float(self._moments[-1, -1]) == 0:
            raise ValueError("there are no rows yet")
        moments = all_reduce_with_grad(self._moments)
        gram, sums, count = moments[:-1, :-1], moments[-1, :-1], moments[-1, -1]
        if self.center:
            gram = gram - torch.outer(sums, sums) / count
        return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)

    def effective_rank(self, *, eps: float | int = 1e-7) -> float:
        """Exponential of the entropy of the normalised singular values (Roy & Vetterli, 2007; RankMe, 2023).

        ``exp(-sum p log p)`` with ``p = s / sum(s) + eps``.

        Args:
            eps: Added to each share.
        """
        values = self.singular_values()
        shares = values / values.sum().clamp_min(1e-300) + eps
        return math.exp(float(-torch.xlogy(shares, shares).sum()))


def effective_rank(x: Float[Tensor, "n d"], *, center: bool = False, eps: float | int = 1e-7) -> float:
    """Effective rank (RankMe) of a matrix of embeddings: how many directions they use, from 1 to d.

    Args:
        x: Embeddings, not normalised.
        center: Subtract the mean first. RankMe does not.
        eps: Added to each share of the spectrum.

    Raises:
        ValueError: No rows.
    """
    spectrum = Spectrum(center=center)
    spectrum.update(x)
    return spectrum.effective_rank(eps=eps)


@torch.no_grad()
def vendi_score(x: Float[Tensor, "n d"]) -> float:
    """Effective number of different items, ``exp(-tr(K/n log K/n))`` with K their cosines (Friedman & Dieng, 2023).

    Args:
        x: Embeddings, any norm but zero.

    Returns:
        From 1 (all equal) to n (all orthogonal).

    Raises:
        ValueError: No rows.

    Example:
        >>> round(vendi_score(torch.eye(5)), 6)
        5.0
    """
    if len(x) == 0:
        raise ValueError("the Vendi score needs rows")
    unit = F.normalize(x.double(), dim=1)
    # Both Gram matrices have the same eigenvalues other than 0.
    gram = unit @ unit.T if len(x) <= x.shape[1] else unit.T @ unit
    shares = torch.linalg.eigvalsh(gram / len(x)).clamp_min(0)
    return math.exp(float(-torch.xlogy(shares, shares).sum()))


@torch.no_grad()
def class_consistency(z: Float[Tensor, "n k"], labels: Int[Tensor, " n"], *, eps: float | int = 1e-5) -> float:
    """Class consistency rate of factors (NCL, arXiv 2403.12459).

    For each factor, the share of the most frequent class among the rows in which it is active (above ``eps`` after
    the rows are normalised); the mean over factors that are active anywhere.

    Args:
        z: Embeddings whose columns are factors. Signed ones are judged by their magnitude.
        labels: Class of each row.
        eps: Smallest value that counts as active.

    Returns:
        A number in (0, 1]; NaN when no factor is active.
    """
    active = F.normalize(z, dim=1).abs() > eps
    counts = _one_hot(labels).T @ active.double()
    total = counts.sum(0)
    shares = counts.amax(0)[total > 0] / total[total > 0]
    return float(shares.mean())


@torch.no_grad()
def purity_at(z: Float[Tensor, "n k"], labels: Int[Tensor, " n"], *, n: int = 50) -> float:
    """Share of the most frequent class among the n rows in which a factor is largest; the mean over factors.

    Args:
        z: Embeddings whose columns are factors.
        labels: Class of each row.
        n: Rows looked at, at most all.

    Raises:
        ValueError: n is not between 1 and the number of rows.
    """
    if not 1 <= n <= len(z):
        raise ValueError(f"n lies between 1 and the number of rows, got {n} for {len(z)}")
    top = z.topk(n, dim=0).indices
    counts = _one_hot(labels)[top].sum(0)
    return float((counts.amax(1) / n).mean())


@torch.no_grad()
def sparsity(z: Float[Tensor, "n k"], *, threshold: float | int = 1e-2, normalize: bool = False) -> float:
    """Share of entries that are almost zero, ``|z| < threshold``.

    Args:
        z: Embeddings.
        threshold: What counts as zero.
        normalize: Bring rows to unit length first.
    """
    return float(((F.normalize(z, dim=1) if normalize else z).abs() < threshold).double().mean())


@torch.no_grad()
def orthogonality(z: Float[Tensor, "n k"]) -> float:
    """Mean absolute cosine between two different columns: 0 where factors are orthogonal. Zero columns count as 0.

    Raises:
        ValueError: Fewer than two columns.
    """
    if z.shape[1] < 2:
        raise ValueError(f"orthogonality needs two columns, got {z.shape[1]}")
    columns = F.normalize(z.double(), dim=0)
    cosine = (columns.T @ columns).abs()
    k = z.shape[1]
    return float((cosine.sum() - cosine.diagonal().sum()) / (k * (k - 1)))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1, eps=1e-12)


def _one_hot(labels: Tensor) -> Tensor:
    places = labels.unique(return_inverse=True)[1]
    return F.one_hot(places).double()
