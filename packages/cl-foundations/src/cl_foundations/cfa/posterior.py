"""Embeddings as distributions: what a network says about the factors of an image."""

import dataclasses
import math
from typing import ClassVar, Literal

import torch
from contrastive_core.nn.posterior import weibull_variance
from jaxtyping import Float
from torch import Tensor

EULER_GAMMA = 0.5772156649015329
_EDGE = 1e-6  # uniform draws stay this far from 0 and 1, where the inverse distribution function is infinite

Family = Literal["point", "normal", "weibull"]


@dataclasses.dataclass(frozen=True)
class GammaPrior:
    """Gamma(α, β) on each non-negative factor.

    Attributes:
        concentration: Shape α, positive; below 1 the density is highest at zero, which favours sparse codes.
        rate: Rate β, positive.
    """

    concentration: float | int = 1.0
    rate: float | int = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.concentration < math.inf and 0 < self.rate < math.inf):
            raise ValueError(f"a Gamma prior has a positive shape and rate, got {self.concentration} and {self.rate}")


GAMMA_1_1 = GammaPrior()


@dataclasses.dataclass(frozen=True)
class PointPosterior:
    """A deterministic embedding, the limit of zero variance: SimCLR and NCL.

    Attributes:
        loc: Embeddings ``[b k]``.
    """

    family: ClassVar[Family] = "point"
    loc: Float[Tensor, "b k"]

    def mean(self) -> Float[Tensor, "b k"]:
        """The embeddings."""
        return self.loc

    def variance(self) -> Float[Tensor, "b k"]:
        """Zero."""
        return torch.zeros_like(self.loc)

    def rsample(self, draws: int = 1, generator: torch.Generator | None = None) -> Float[Tensor, "s b k"]:
        """The embeddings, ``draws`` times."""
        return self.loc.expand(draws, *self.loc.shape)

    def entropy(self) -> Float[Tensor, " b"]:
        """Refused: the entropy of a point is minus infinity for every image.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a deterministic embedding has no entropy; use method cfa or cnfa")

    def kl(self, prior: GammaPrior = GAMMA_1_1) -> Float[Tensor, " b"]:
        """Zero: a deterministic embedding has no prior."""
        return self.loc.new_zeros(len(self.loc))

    def halves(self) -> tuple["PointPosterior", "PointPosterior"]:
        """First and second half of the batch: the two views."""
        a, b = self.loc.chunk(2)
        return PointPosterior(a), PointPosterior(b)


@dataclasses.dataclass(frozen=True)
class NormalPosterior:
    """Independent normal factors N(μ, σ²) with the prior N(0, 1): CFA.

    Attributes:
        loc: Means μ ``[b k]``.
        log_var: log σ² ``[b k]``; minus infinity is a point.
    """

    family: ClassVar[Family] = "normal"
    loc: Float[Tensor, "b k"]
    log_var: Float[Tensor, "b k"]

    def mean(self) -> Float[Tensor, "b k"]:
        """μ."""
        return self.loc

    def variance(self) -> Float[Tensor, "b k"]:
        """σ²."""
        return self.log_var.exp()

    def rsample(self, draws: int = 1, generator: torch.Generator | None = None) -> Float[Tensor, "s b k"]:
        """``μ + σ ε``, differentiable in both.

        Args:
            draws: Samples of each factor.
            generator: Source of ε on the CPU; the global generator of the device when absent.
        """
        noise = _draw(torch.randn, (draws, *self.loc.shape), self.loc, generator)
        return self.loc + (0.5 * self.log_var).exp() * noise

    def entropy(self) -> Float[Tensor, " b"]:
        """``sum_k 1/2 log(2 pi e σ²)``, in nats; may be negative."""
        return normal_entropy(self.log_var).sum(1)

    def kl(self, prior: GammaPrior = GAMMA_1_1) -> Float[Tensor, " b"]:
        """KL from N(0, 1), summed over factors; ``prior`` is for non-negative factors and not looked at."""
        return kl_diag_normal(self.loc, self.log_var).sum(1)

    def halves(self) -> tuple["NormalPosterior", "NormalPosterior"]:
        """First and second half of the batch: the two views."""
        (a, b), (c, d) = self.loc.chunk(2), self.log_var.chunk(2)
        return NormalPosterior(a, c), NormalPosterior(b, d)


@dataclasses.dataclass(frozen=True)
class WeibullPosterior:
    """Independent Weibull factors with a Gamma prior: CNFA.

    Attributes:
        shape: Shapes k ``[b k]``, positive.
        scale: Scales λ ``[b k]``, positive.
    """

    family: ClassVar[Family] = "weibull"
    shape: Float[Tensor, "b k"]
    scale: Float[Tensor, "b k"]

    def mean(self) -> Float[Tensor, "b k"]:
        """λ Γ(1 + 1/k)."""
        return self.scale * torch.lgamma(1 + 1 / self.shape).exp()

    def variance(self) -> Float[Tensor, "b k"]:
        """λ² [Γ(1 + 2/k) − Γ(1 + 1/k)²], in a form that does not cancel where k is large."""
        return weibull_variance(self.shape, self.scale)

    def rsample(self, draws: int = 1, generator: torch.Generator | None = None) -> Float[Tensor, "s b k"]:
        """``λ (−log(1 − u))^(1/k)``, differentiable in both; strictly positive.

        Args:
            draws: Samples of each factor.
            generator: Source of u on the CPU; the global generator of the device when absent.
        """
        u = _draw(torch.rand, (draws, *self.scale.shape), self.scale, generator)
        return weibull_icdf(u, self.shape, self.scale)

    def entropy(self) -> Float[Tensor, " b"]:
        """``sum_k γ(1 − 1/k) + log(λ/k) + 1``, in nats.

        It contains log λ: a weakly activated image has a low entropy although little is known about it.
        """
        return weibull_entropy(self.shape, self.scale).sum(1)

    def kl(self, prior: GammaPrior = GAMMA_1_1) -> Float[Tensor, " b"]:
        """KL from the Gamma prior, summed over factors."""
        return kl_weibull_gamma(self.shape, self.scale, prior.concentration, prior.rate).sum(1)

    def halves(self) -> tuple["WeibullPosterior", "WeibullPosterior"]:
        """First and second half of the batch: the two views."""
        (a, b), (c, d) = self.shape.chunk(2), self.scale.chunk(2)
        return WeibullPosterior(a, c), WeibullPosterior(b, d)


FactorPosterior = PointPosterior | NormalPosterior | WeibullPosterior
"""What a model says about a batch: ``mean``, ``variance``, ``rsample``, ``entropy``, ``kl``."""


def kl_diag_normal(loc: Float[Tensor, "*s"], log_var: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² − 1 − log σ²), element by element.

    Example:
        >>> kl_diag_normal(torch.tensor([1.0]), torch.tensor([0.0]))
        tensor([0.5000])
    """
    return 0.5 * (loc.square() + torch.expm1(log_var) - log_var)


def kl_weibull_gamma(
    shape: Float[Tensor, "*s"], scale: Float[Tensor, "*s"], concentration: float | int = 1.0, rate: float | int = 1.0
) -> Float[Tensor, "*s"]:
    """KL(Weibull(k, λ) ‖ Gamma(α, β)), element by element (Zhang et al., WHAI, ICLR 2018, eq. 6).

    ``γ α/k − α log λ + log k + β λ Γ(1 + 1/k) − γ − 1 − α log β + log Γ(α)``

    Args:
        shape: k, positive.
        scale: λ, positive.
        concentration: Shape α of the prior.
        rate: Rate β of the prior.

    Example:
        >>> kl_weibull_gamma(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.5]))
        tensor([0.0000, 0.5408])
    """
    inverse = 1 / shape
    expected = scale * torch.lgamma(1 + inverse).exp()
    constant = math.lgamma(concentration) - concentration * math.log(rate) - EULER_GAMMA - 1
    return (
        EULER_GAMMA * concentration * inverse - concentration * scale.log() + shape.log() + rate * expected + constant
    )


def normal_entropy(log_var: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """½ log(2πe σ²), element by element, in nats."""
    return 0.5 * (log_var + math.log(2 * math.pi) + 1)


def weibull_entropy(shape: Float[Tensor, "*s"], scale: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """γ (1 − 1/k) + log(λ/k) + 1, element by element, in nats."""
    return EULER_GAMMA * (1 - 1 / shape) + scale.log() - shape.log() + 1


def weibull_icdf(u: Float[Tensor, "*d"], shape: Float[Tensor, "*s"], scale: Float[Tensor, "*s"]) -> Float[Tensor, "*d"]:
    """Quantiles ``λ (−log(1 − u))^(1/k)``, through logarithms so that neither factor overflows.

    Args:
        u: Probabilities, brought into [1e-6, 1 − 1e-6].
        shape: k.
        scale: λ.
    """
    u = u.clamp(_EDGE, 1 - _EDGE)
    return (scale.log() + (-torch.log1p(-u)).log() / shape).exp()


def _draw(kind: object, size: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    draw = torch.randn if kind is torch.randn else torch.rand
    if generator is None:
        return draw(size, dtype=like.dtype, device=like.device)
    return draw(size, dtype=like.dtype, generator=generator).to(like.device)
