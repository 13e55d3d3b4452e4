"""The banks CauKer draws from: covariance kernels, mean functions, activations."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float

BankVersion = Literal["v1", "v2"]

_PERIODS = (24, 48, 96, 168, 336, 672, 7, 14, 30, 60, 365, 730, 4, 26, 52, 4, 6, 12, 4, 40, 10)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A covariance kernel on a regular grid over [0, 1].

    Attributes:
        name: For instance ``periodic-24``.
        lags: Covariance as a function of the distance, for a stationary kernel; it may use the number of points.
        sigma0: Bias of a dot-product kernel ``sigma0^2 + x x'``, else ``None``.
    """

    name: str
    lags: Callable[[np.ndarray, int], np.ndarray] | None = None
    sigma0: float | None = None

    def row(self, length: int) -> Float[np.ndarray, " l"]:
        """First row of the covariance matrix of a stationary kernel."""
        assert self.lags is not None
        return self.lags(grid(length), length)

    def matrix(self, length: int) -> Float[np.ndarray, "l l"]:
        """Covariance matrix on the grid."""
        if self.sigma0 is not None:
            x = grid(length)
            return self.sigma0**2 + np.outer(x, x)
        return toeplitz(self.row(length))


def grid(length: int) -> Float[np.ndarray, " l"]:
    """Points ``t / (L-1)``."""
    return np.arange(length) / (length - 1)


def toeplitz(row: Float[np.ndarray, " l"]) -> Float[np.ndarray, "l l"]:
    """Symmetric Toeplitz matrix of its first row."""
    length = len(row)
    both = np.concatenate([row[:0:-1], row])
    stride = both.strides[0]
    return np.lib.stride_tricks.as_strided(both[length - 1 :], (length, length), (-stride, stride)).copy()


def kernel_bank(version: BankVersion) -> list[Kernel]:
    """The released kernel banks: 33 kernels in ``v1``, 34 in ``v2``.

    Args:
        version: ``v1`` ends with a constant, ``v2`` with two Matern kernels instead.
    """

    def periodic(period: int) -> Kernel:
        return Kernel(f"periodic-{period}", lambda d, n: np.exp(-2 * np.sin(np.pi * d * n / period) ** 2))

    def rbf(scale: float) -> Kernel:
        return Kernel(f"rbf-{scale:g}", lambda d, n: np.exp(-0.5 * (d / scale) ** 2))

    def rational(alpha: float) -> Kernel:
        return Kernel(f"rational-{alpha:g}", lambda d, n: (1 + d**2 / (2 * alpha)) ** -alpha)

    def white(noise: float) -> Kernel:
        return Kernel(f"white-{noise:g}", lambda d, n: noise * (d == 0))

    bank = [periodic(period) for period in _PERIODS]
    bank += [Kernel(f"dot-{sigma0:g}", sigma0=sigma0) for sigma0 in (0.0, 1.0, 10.0)]
    bank += [rbf(scale) for scale in (0.1, 1.0, 10.0)]
    bank += [rational(alpha) for alpha in (0.1, 1.0, 10.0)]
    bank += [white(noise) for noise in (0.1, 1.0)]
    if version == "v1":
        return [*bank, Kernel("constant", lambda d, n: np.ones_like(d))]
    root3 = np.sqrt(3.0)
    return [
        *bank,
        Kernel("matern-0.5", lambda d, n: np.exp(-d * n)),
        Kernel("matern-1.5", lambda d, n: (1 + root3 * d * n / 5) * np.exp(-root3 * d * n / 5)),
    ]


def _zero(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.zeros_like(x)


def _line(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a, b = rng.uniform(-1, 1, 2)
    return np.asarray(a * x + b)


def _exponential(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a, b = rng.uniform(0.5, 1.5, 2)
    return np.asarray(a * np.exp(b * x))


def _spikes(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y = np.zeros_like(x)
    count = rng.integers(1, 6)
    np.add.at(y, rng.integers(0, len(x), count), rng.uniform(-5, 5, count))
    return y


MEANS = (_zero, _line, _exponential, _spikes)
"""Mean functions: zero, a line, an exponential, a few spikes."""

Activation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _affine(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(rng.uniform(0.5, 2) * u + rng.uniform(-1, 1))


def _sigmoid(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * u))


def _modulo(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.mod(u, rng.uniform(1, 5))


def _leaky(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(u > 0, u, rng.uniform(0.01, 0.3) * u)


ACTIVATIONS: dict[BankVersion, tuple[Activation, ...]] = {
    "v1": (_affine, lambda u, _: np.maximum(u, 0), _sigmoid, lambda u, _: np.sin(u), _modulo, _leaky),
    "v2": (
        _sigmoid,
        lambda u, _: np.sin(u),
        _modulo,
        lambda u, _: np.tanh(u),
        lambda u, _: np.logaddexp(0, u),
        lambda u, _: u * _sigmoid(u, _),
        lambda u, _: np.exp(-np.minimum(u**2, 700)),
    ),
}
"""Activations of inner nodes; each may draw its own parameters."""
