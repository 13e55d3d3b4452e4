"""The three banks a CauKer graph draws from: kernels and means for its roots, activations for its other nodes.

Version "v1" is the bank of the first CauKer release (33 kernels, activations of a classical causal model), version "v2" the one
behind MantisV2 (34 kernels: Matérn in place of the constant, and bounded or smooth activations).

Source: "CauKer: Classification Time Series Foundation Models Can Be Pretrained on Synthetic Data (Only)", arXiv 2508.02879.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import expit

BankVersion = Literal["v1", "v2"]
Family = Literal["periodic", "dot-product", "rbf", "rational-quadratic", "white", "constant", "matern12", "matern32"]
Series = Float[np.ndarray, " length"]
Mean = Callable[[Series, np.random.Generator], Series]
Activation = Callable[[Series, np.random.Generator], Series]

FAMILIES: tuple[Family, ...] = (
    "periodic",
    "dot-product",
    "rbf",
    "rational-quadratic",
    "white",
    "constant",
    "matern12",
    "matern32",
)

PERIODS = (24, 48, 96, 168, 336, 672, 7, 14, 30, 60, 365, 730, 4, 26, 52, 4, 6, 12, 4, 40, 10)
"""Periods in samples: hours, days, weeks, months and quarters of a calendar. 4 stands three times, so it is drawn more often."""


@dataclass(frozen=True)
class Kernel:
    """One entry of a kernel bank, a unit-amplitude covariance on the grid x in [0, 1].

    ``family`` and ``parameter`` together are the kernel:

    | family | k(x, x') with d = x - x' | parameter |
    |---|---|---|
    | periodic | exp(-2 sin²(π d / p)) | period in samples, p = parameter / length |
    | dot-product | σ0² + x x' | σ0 |
    | rbf | exp(-d² / 2ℓ²) | ℓ |
    | rational-quadratic | (1 + d² / 2α)^-α | α |
    | white | σ² if x = x', else 0 | σ² |
    | constant | c | c |
    | matern12 | exp(-abs(d) / ℓ) | ℓ in samples, ℓ = parameter / length |
    | matern32 | (1 + √3 abs(d) / ℓ) exp(-√3 abs(d) / ℓ) | ℓ in samples |
    """

    family: Family
    parameter: float

    @property
    def name(self) -> str:
        """Family and parameter, as in ``periodic-24``."""
        return f"{self.family}-{self.parameter:g}"

    @property
    def short_range(self) -> bool:
        """Whether the covariance vanishes within a few dozen samples, at every series length."""
        return self.family in ("matern12", "matern32")

    def covariance(self, lag: Float[np.ndarray, " lags"], length: int) -> Float[np.ndarray, " lags"]:
        """Covariance at each lag, for the families that depend on nothing but the lag.

        Args:
            lag: Distances |x - x'| on the unit grid.
            length: Samples in a series, which sets the scale of periods and Matérn lengths.

        Raises:
            ValueError: The kernel is a dot product, which is not stationary.
        """
        value = self.parameter
        match self.family:
            case "periodic":
                return np.exp(-2.0 * np.sin(np.pi * lag * length / value) ** 2)
            case "rbf":
                return np.exp(-0.5 * (lag / value) ** 2)
            case "rational-quadratic":
                return (1.0 + lag**2 / (2.0 * value)) ** -value
            case "white":
                return np.where(lag == 0.0, value, 0.0)
            case "constant":
                return np.full_like(lag, value)
            case "matern12":
                return np.exp(-lag * length / value)
            case "matern32":
                scaled = np.sqrt(3.0) * lag * length / value
                return (1.0 + scaled) * np.exp(-scaled)
            case "dot-product":
                raise ValueError("a dot-product kernel is not a function of the lag")


def kernel_bank(version: BankVersion) -> tuple[Kernel, ...]:
    """The kernels of a bank, in a fixed order: 33 entries for ``"v1"``, 34 for ``"v2"``."""
    shared: tuple[Kernel, ...] = (
        *(Kernel("periodic", period) for period in PERIODS),
        *(Kernel("dot-product", sigma) for sigma in (0.0, 1.0, 10.0)),
        *(Kernel("rbf", scale) for scale in (0.1, 1.0, 10.0)),
        *(Kernel("rational-quadratic", alpha) for alpha in (0.1, 1.0, 10.0)),
        *(Kernel("white", level) for level in (0.1, 1.0)),
    )
    if version == "v1":
        return (*shared, Kernel("constant", 1.0))
    return (*shared, Kernel("matern12", 1.0), Kernel("matern32", 5.0))


def zero_mean(x: Series, rng: np.random.Generator) -> Series:  # noqa: ARG001 - one signature for the whole bank
    """0 everywhere."""
    return np.zeros_like(x)


def linear_mean(x: Series, rng: np.random.Generator) -> Series:
    """``a x + b`` with a, b ~ U(-1, 1)."""
    a, b = rng.uniform(-1.0, 1.0, size=2)
    return a * x + b


def exponential_mean(x: Series, rng: np.random.Generator) -> Series:
    """``a exp(b x)`` with a, b ~ U(0.5, 1.5)."""
    a, b = rng.uniform(0.5, 1.5, size=2)
    return a * np.exp(b * x)


def anomaly_mean(x: Series, rng: np.random.Generator) -> Series:
    """0 but for 1 to 5 spikes of height U(-5, 5) at random samples; spikes that meet add up."""
    spikes = int(rng.integers(1, 6))
    mean = np.zeros_like(x)
    np.add.at(mean, rng.integers(len(x), size=spikes), rng.uniform(-5.0, 5.0, size=spikes))
    return mean


MEAN_BANK: tuple[Mean, ...] = (zero_mean, linear_mean, exponential_mean, anomaly_mean)


def affine(u: Series, rng: np.random.Generator) -> Series:
    """``a u + b`` with a ~ U(0.5, 2), b ~ U(-1, 1)."""
    return rng.uniform(0.5, 2.0) * u + rng.uniform(-1.0, 1.0)


def modulo(u: Series, rng: np.random.Generator) -> Series:
    """``u mod c`` with c ~ U(1, 5); the result lies in [0, c)."""
    return np.mod(u, rng.uniform(1.0, 5.0))


def leaky_relu(u: Series, rng: np.random.Generator) -> Series:
    """``max(u, α u)`` with α ~ U(0.01, 0.3)."""
    return np.maximum(u, rng.uniform(0.01, 0.3) * u)


def _relu(u: Series, rng: np.random.Generator) -> Series:  # noqa: ARG001
    return np.maximum(u, 0.0)


def _sigmoid(u: Series, rng: np.random.Generator) -> Series:  # noqa: ARG001
    return expit(u)


def _sine(u: Series, rng: np.random.Generator) -> Series:  # noqa: ARG001
    return np.sin(u)


def _tanh(u: Series, rng: np.random.Generator) -> Series:  # noqa: ARG001
    return np.tanh(u)


def _softplus(u: Series, rng: np.random.Generator) -> Series:  # noqa: ARG001
    return np.logaddexp(0.0, u)


def _swish(u: Series, rng: np.random.Generator) -> Series:  # noqa: ARG001
    return u * expit(u)


def _bell(u: Series, rng: np.random.Generator) -> Series:  # noqa: ARG001
    return np.exp(-np.square(u))


ACTIVATION_BANKS: dict[BankVersion, dict[str, Activation]] = {
    "v1": {
        "affine": affine,
        "relu": _relu,
        "sigmoid": _sigmoid,
        "sine": _sine,
        "modulo": modulo,
        "leaky-relu": leaky_relu,
    },
    "v2": {
        "sigmoid": _sigmoid,
        "sine": _sine,
        "modulo": modulo,
        "tanh": _tanh,
        "softplus": _softplus,
        "swish": _swish,
        "bell": _bell,
    },
}
"""Name to activation, by bank version; parameters an activation has are drawn anew at each use."""
