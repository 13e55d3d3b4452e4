"""The negative evidence lower bound of contrastive factor analysis."""

import dataclasses
from typing import Literal, NamedTuple

import torch
from contrastive_core.errors import require
from contrastive_core.losses import nt_xent, spectral_contrastive, sup_con
from jaxtyping import Float, Int
from torch import Tensor

from cl_foundations.cfa.posterior import GAMMA_1_1, FactorPosterior, GammaPrior

Likelihood = Literal["infonce", "spectral_exact", "spectral_mc"]
DEFAULT_ETA: dict[Likelihood, float] = {"infonce": 0.1, "spectral_exact": 0.01, "spectral_mc": 0.01}
"""Weight η of the KL: per factor with ``infonce``, per image with the spectral likelihoods."""


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """Weights of the negative evidence lower bound.

    Attributes:
        eta: Weight η of the KL; 0.1 a factor with infonce and 0.01 an image with the spectral likelihoods if not given.
        kl_warmup: Share of all steps over which η grows from zero, in [0, 1).
        temperature: Temperature of infonce, positive.
        samples: Posterior draws per view, for the sampled likelihoods.
        prior_shape: Shape α of the Gamma prior of cnfa; below 1 favours sparse factors.
        prior_rate: Rate β of the Gamma prior of cnfa.
        supervised: Images of one class are each other's positives (infonce only; needs labels).
    """

    eta: float | None = None
    kl_warmup: float = 0.1
    temperature: float = 0.2
    samples: int = 1
    prior_shape: float = 1.0
    prior_rate: float = 1.0
    supervised: bool = False

    def __post_init__(self) -> None:
        require(self.eta is None or 0 <= self.eta <= 1e6, "--eta", self.eta, "a number from 0 to a million")
        require(0 <= self.kl_warmup < 1, "--kl-warmup", self.kl_warmup, "a share of all steps in [0, 1)")
        require(1e-4 <= self.temperature <= 1e4, "--temperature", self.temperature, "a number from 0.0001 to 10,000")
        require(1 <= self.samples <= 1000, "--samples", self.samples, "a whole number from 1 to 1,000")
        for name in ("prior_shape", "prior_rate"):
            option, value = "--" + name.replace("_", "-"), getattr(self, name)
            require(1e-6 <= value <= 1e6, option, value, "a positive number, from a millionth to a million")

    @property
    def prior(self) -> GammaPrior:
        """Prior of non-negative factors."""
        return GammaPrior(concentration=self.prior_shape, rate=self.prior_rate)

    def weight(self, likelihood: Likelihood, step: int, total: int) -> float:
        """Weight η of the KL at one of all steps."""
        eta = DEFAULT_ETA[likelihood] if self.eta is None else self.eta
        return kl_weight(step, total, eta, self.kl_warmup)


class ELBO(NamedTuple):
    """The negative evidence lower bound and its parts.

    Attributes:
        loss: ``likelihood + η kl``; the likelihood alone where η is 0.
        likelihood: Contrastive term.
        kl: KL of the posteriors from the prior, averaged over views and images; per factor or summed over factors.
    """

    loss: Float[Tensor, ""]
    likelihood: Float[Tensor, ""]
    kl: Float[Tensor, ""]


def negative_elbo(
    first: FactorPosterior,
    second: FactorPosterior,
    *,
    likelihood: Likelihood = "infonce",
    eta: float = 0.1,
    temperature: float = 0.2,
    prior: GammaPrior = GAMMA_1_1,
    samples: int = 1,
    labels: Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    gather: bool = False,
) -> ELBO:
    """``L = L_lik + η ½ [KL(q(z|x) ‖ p) + KL(q(z|x⁺) ‖ p)]``, averaged over the batch.

    The KL is divided by the number of factors with ``infonce``, so that η carries over between widths; the spectral
    likelihoods grow with the number of factors themselves, and take the sum.

    Args:
        first: Posteriors of the first views.
        second: Posteriors of the second views, row by row the same images.
        likelihood: ``infonce``: NT-Xent of sampled directions; ``spectral_exact``: the expected spectral contrastive
            loss in closed form; ``spectral_mc``: the same with samples.
        eta: Weight η of the KL.
        temperature: Temperature of ``infonce``.
        prior: Gamma prior of non-negative factors.
        samples: Draws of each posterior, for the sampled likelihoods.
        labels: Class of every image; images of one class become positives (``infonce`` only).
        generator: Source of the draws.
        gather: Use the images of all processes of ``torch.distributed``.

    Raises:
        ValueError: One image, so nothing to contrast with; labels with a spectral likelihood; unknown likelihood.
    """
    value = contrastive_likelihood(
        first,
        second,
        likelihood=likelihood,
        temperature=temperature,
        samples=samples,
        labels=labels,
        generator=generator,
        gather=gather,
    )
    kl = 0.5 * (first.kl(prior) + second.kl(prior)).mean()
    if likelihood == "infonce":
        kl = kl / first.mean().shape[1]
    # The KL of a point is infinite; without weight it must not turn the loss into NaN.
    return ELBO(value + eta * kl if eta else value, value, kl)


def contrastive_likelihood(
    first: FactorPosterior,
    second: FactorPosterior,
    *,
    likelihood: Likelihood = "infonce",
    temperature: float = 0.2,
    samples: int = 1,
    labels: Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Likelihood term of :func:`negative_elbo`; arguments and errors as there."""
    if first.mean().shape[0] < 2 and not gather:
        raise ValueError("one image has nothing to be contrasted with; a batch holds at least two")
    if likelihood == "spectral_exact":
        _no_labels(labels)
        variances = (None, None) if first.family == "point" else (first.variance(), second.variance())
        return spectral_contrastive(first.mean(), variances[0], second.mean(), variances[1], gather=gather)
    if likelihood not in ("spectral_mc", "infonce"):
        raise ValueError(f"expected infonce, spectral_exact or spectral_mc, got {likelihood}")
    draws = zip(first.rsample(samples, generator), second.rsample(samples, generator), strict=True)
    if likelihood == "spectral_mc":
        _no_labels(labels)
        return torch.stack([spectral_contrastive(a, m2=b, gather=gather) for a, b in draws]).mean()
    if labels is not None:
        twice = torch.cat([labels, labels])
        losses = [sup_con(torch.cat([a, b]), twice, temperature=temperature, gather=gather) for a, b in draws]
    else:
        losses = [nt_xent(a, b, temperature=temperature, gather=gather) for a, b in draws]
    return torch.stack(losses).mean()


def kl_weight(step: int, total: int, eta: float, warmup: float = 0.1) -> float:
    """Weight of the KL at a step: linear from 0 to η over the first ``warmup`` share of all steps.

    Example:
        >>> [kl_weight(step, 100, 0.5, 0.1) for step in (0, 5, 10, 100)]
        [0.0, 0.25, 0.5, 0.5]
    """
    length = warmup * total
    return eta if length <= 0 else eta * min(1.0, step / length)


def optimal_normal_variance(
    mean: Float[Tensor, "n k"], variance: Float[Tensor, "n k"], eta: float
) -> Float[Tensor, " k"]:
    """The variance that is optimal under ``spectral_exact`` for normal factors, the same for every image.

    The loss is linear in each variance with the coefficient ``c_k = E_j m_jk² + E_j v_jk`` over the other view, so the
    optimum ``η / (η + 4 c_k)`` does not depend on the image: its entropy says nothing about the image.

    Args:
        mean: Means of the other view.
        variance: Variances of the other view.
        eta: Weight η.
    """
    return eta / (eta + 4 * (mean.square() + variance).mean(0))


def _no_labels(labels: Tensor | None) -> None:
    if labels is not None:
        raise ValueError("class labels as positives are defined for the likelihood infonce only")
