"""Composite kernels on a regular grid, and exact samples of their Gaussian processes, fast.

A sampler that writes down the L × L covariance and factorises it spends milliseconds a series. Here the structure of the bank is kept:

* All kernels but the dot product depend on the lag alone, and sums and products of such kernels do too. A dot product multiplies
  by ``σ0² + x x'``. So every composition has the form ``κ(x, x') = Σ_j (x x')^j s_j(x - x')`` with stationary ``s_j``, and
  ``f(x) = Σ_j x^j g_j(x)`` with independent ``g_j ~ GP(0, s_j)`` is distributed as GP(0, κ): it is enough to sample stationary parts.
* White noise times anything is a diagonal, sampled point by point.
* A part that holds a Matérn factor dies out within a few dozen samples, so its circulant embedding is non-negative definite and two FFTs sample it.
* Any other part is a symmetric Toeplitz matrix, which splits exactly into two independent halves of size L/2 (the even and odd part of the
  series about its middle). Each half is factorised by Cholesky with pivoting, which stops at the numerical rank; smooth and periodic
  kernels have ranks of a few dozen.

**Jitter.** A plain Cholesky needs a growing multiple of the identity to get through these singular matrices, and even 1e-6 of the variance is a
visible roughness on a series whose steps are 1e-4. Pivoted Cholesky needs none: it stops when the variance still unexplained is below
``TOLERANCE`` of the part's variance at every point, so no matrix fails, no noise is added and each entry of the covariance is met to 1e-12.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import irfft, next_fast_len, rfft
from scipy.linalg.lapack import dpstrf

from cl_signals.mantis.cauker.banks import MEAN_BANK, Kernel, Mean

Operation = Literal["add", "multiply"]

TOLERANCE = 1e-12
"""Variance, relative to the part's own, at which the pivoted Cholesky stops."""

SHORT_RANGE = 256
"""Samples after which every Matérn kernel of the banks is below 1e-36 of its variance."""

MAX_MEAN_VARIANCE = 1e6
"""Mean of diag κ above which κ is divided by it; products of dot products with σ0 = 10 reach 1e12 and more."""


class Grid:
    """The points x_t = t / (L - 1), and what every kernel looks like there.

    Args:
        length: Samples L in a series, at least 2.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.x: Float[np.ndarray, " length"] = np.arange(length) / (length - 1)
        # Lags beyond the series feed the circulant embedding, which must reach to where short-range kernels have vanished.
        self.half = next_fast_len(max(length, SHORT_RANGE), real=True)
        self.lag: Float[np.ndarray, " lags"] = np.arange(self.half + 1) / (length - 1)
        self._rows: dict[Kernel, Float[np.ndarray, " lags"]] = {}

    def row(self, kernel: Kernel) -> Float[np.ndarray, " lags"]:
        """Covariance of a stationary kernel at lags 0, 1, ..., computed once; do not write to it."""
        if kernel not in self._rows:
            self._rows[kernel] = kernel.covariance(self.lag, self.length)
        return self._rows[kernel]


class CompositeKernel:
    """A kernel built left to right from a first one by adding and multiplying others.

    Held as coefficients of the powers ``(x x')^j``: stationary rows for the long-range and the short-range parts, and
    a variance for the diagonal part.

    Args:
        grid: Where the kernel is evaluated.
        kernels: k_1, ..., k_K; at least one.
        operations: K - 1 entries; ``operations[m]`` joins ``kernels[m + 1]`` to what stands so far.
    """

    def __init__(self, grid: Grid, kernels: Sequence[Kernel], operations: Sequence[Operation]) -> None:
        if not kernels or len(operations) != len(kernels) - 1:
            raise ValueError(f"{len(kernels)} kernels cannot be joined by {len(operations)} operations")
        self.grid = grid
        dots = sum(kernel.family == "dot-product" for kernel in kernels)
        self._long = np.zeros((dots + 1, len(grid.lag)))
        self._short = np.zeros_like(self._long)
        self._diagonal = np.zeros(dots + 1)
        self._add(kernels[0])
        for kernel, operation in zip(kernels[1:], operations, strict=True):
            if operation == "add":
                self._add(kernel)
            else:
                self._multiply(kernel)

    def _add(self, kernel: Kernel) -> None:
        if kernel.family == "dot-product":
            self._long[0] += kernel.parameter**2
            self._long[1] += 1.0
        elif kernel.family == "white":
            self._diagonal[0] += kernel.parameter
        elif kernel.short_range:
            self._short[0] += self.grid.row(kernel)
        else:
            self._long[0] += self.grid.row(kernel)

    def _multiply(self, kernel: Kernel) -> None:
        if kernel.family == "dot-product":
            for coefficients in (self._long, self._short, self._diagonal):
                shifted = np.roll(
                    coefficients, 1, axis=0
                )  # the highest power is still zero: one row for each dot product
                coefficients *= kernel.parameter**2
                coefficients += shifted
        elif kernel.family == "white":
            self._diagonal += self._long[:, 0] + self._short[:, 0]
            self._diagonal *= kernel.parameter
            self._long[:] = self._short[:] = 0.0
        else:
            row = self.grid.row(kernel)
            if kernel.short_range:
                self._short += self._long
                self._long[:] = 0.0
            else:
                self._long *= row
            self._short *= row
            self._diagonal *= row[0]

    def variance(self) -> Float[np.ndarray, " length"]:
        """Diag κ(x, x)."""
        return _polynomial(self._long[:, 0] + self._short[:, 0] + self._diagonal, self.grid.x**2)

    def matrix(self) -> Float[np.ndarray, "length length"]:
        """κ(x, x), dense; for inspection and tests, as sampling never needs it."""
        length = self.grid.length
        steps = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
        products = np.multiply.outer(self.grid.x, self.grid.x)
        rows = self._long + self._short
        matrix = sum((products**power * row[steps] for power, row in enumerate(rows)), np.zeros((length, length)))
        return matrix + np.diag(_polynomial(self._diagonal, self.grid.x**2))

    def sample(self, rng: np.random.Generator) -> Float[np.ndarray, " length"]:
        """One draw of N(0, κ(x, x)).

        Where the mean of diag κ exceeds ``MAX_MEAN_VARIANCE``, the draw is of κ divided by that mean.
        """
        x, length = self.grid.x, self.grid.length
        value = np.zeros(length)
        for power in range(len(self._long)):
            part = np.zeros(length)
            if self._long[power, 0] > 0.0:
                part += _sample_long_range(self._long[power, :length], rng)
            if self._short[power, 0] > 0.0:
                part += _sample_short_range(self._short[power], length, rng)
            value += part * x**power if power else part
        if np.any(self._diagonal > 0.0):
            value += np.sqrt(_polynomial(self._diagonal, x**2)) * rng.standard_normal(length)
        mean_variance = float(self.variance().mean())
        return value / np.sqrt(mean_variance) if mean_variance > MAX_MEAN_VARIANCE else value


def draw_kernel(bank: Sequence[Kernel], most: int, grid: Grid, rng: np.random.Generator) -> CompositeKernel:
    """Join K ~ U{1..most} kernels, drawn with replacement, by fair coins between ``+`` and ``·``."""
    count = int(rng.integers(1, most + 1))
    kernels = [bank[index] for index in rng.integers(len(bank), size=count)]
    operations: list[Operation] = ["multiply" if coin else "add" for coin in rng.integers(2, size=count - 1)]
    return CompositeKernel(grid, kernels, operations)


def draw_mean(grid: Grid, rng: np.random.Generator, bank: Sequence[Mean] = MEAN_BANK) -> Float[np.ndarray, " length"]:
    """The sum or the product, by a fair coin, of two mean functions drawn with replacement."""
    first, second = (bank[index](grid.x, rng) for index in rng.integers(len(bank), size=2))
    return first * second if rng.integers(2) else first + second


@lru_cache(maxsize=8)
def grid_of(length: int) -> Grid:
    """The grid of a length, shared within a process so that kernels are evaluated once."""
    return Grid(length)


def _sample_long_range(row: Float[np.ndarray, " length"], rng: np.random.Generator) -> Float[np.ndarray, " length"]:
    """One draw with the symmetric Toeplitz covariance whose first row is ``row``."""
    length = len(row)
    if row.min() == row.max():
        return np.full(length, np.sqrt(row[0]) * rng.standard_normal())
    half = (length + 1) // 2
    # T[i, j] = row[|i - j|] and H[i, j] = T[i, L-1-j] = row[L-1-i-j], as views of the row.
    toeplitz = sliding_window_view(np.concatenate([row[half - 1 : 0 : -1], row[:half]]), half)[::-1]
    mirrored = sliding_window_view(row[::-1][: 2 * half - 1], half)
    even = _sample_pivoted((toeplitz + mirrored) * 0.5, TOLERANCE * row[0], rng)
    odd = _sample_pivoted((toeplitz - mirrored) * 0.5, TOLERANCE * row[0], rng)
    value = np.empty(length)
    value[length - half :] = (even - odd)[::-1]
    value[:half] = even + odd
    return value


def _sample_pivoted(
    covariance: Float[np.ndarray, "n n"], tolerance: float, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """One draw of N(0, covariance) by pivoted Cholesky; overwrites ``covariance``, which may be singular."""
    # The transpose of a symmetric C-ordered matrix is itself in LAPACK's order, so nothing is copied.
    factor, pivots, rank, _ = dpstrf(covariance.T, tol=tolerance, lower=1, overwrite_a=1)
    value = np.empty(len(covariance))
    value[pivots - 1] = np.tril(factor[:, :rank]) @ rng.standard_normal(rank)
    return value


def _sample_short_range(
    row: Float[np.ndarray, " lags"], length: int, rng: np.random.Generator
) -> Float[np.ndarray, " length"]:
    """One draw of ``length`` samples whose covariance ``row`` has vanished before its end, by circulant embedding."""
    period = 2 * (len(row) - 1)
    # A covariance that has vanished wraps around without error, so negative eigenvalues are rounding and nothing else.
    spectrum = rfft(np.concatenate([row, row[-2:0:-1]])).real.clip(min=0.0)
    return irfft(np.sqrt(spectrum) * rfft(rng.standard_normal(period)), n=period)[:length]


def _polynomial(coefficients: Float[np.ndarray, " powers"], x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Σ_j coefficients[j] x^j."""
    return np.polynomial.polynomial.polyval(x, coefficients)
