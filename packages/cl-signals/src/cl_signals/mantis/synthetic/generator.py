"""Drawing series: Gaussian-process roots, a random graph, and as many workers as there are cores.

Every graph has a random stream of its own, derived from the seed and its index, and its numbers are computed with one
BLAS thread; so a corpus is the same, byte for byte, for any number of workers.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.scale import spread
from jaxtyping import Float
from scipy.linalg import blas, lapack
from threadpoolctl import threadpool_limits

from cl_signals.mantis.synthetic.banks import ACTIVATIONS, MEANS, BankVersion, Kernel, grid, kernel_bank, toeplitz


@dataclasses.dataclass(frozen=True)
class CauKerSettings:
    """What a graph looks like.

    Attributes:
        length: Points of a series.
        nodes: Nodes of a graph.
        parents: Most parents of a node.
        kernels: Most kernels composed at a root.
        observed: Nodes of a graph that become series.
        bank: Kernel and activation bank, ``v1`` or ``v2``.
        mean: ``full`` composes two mean functions at a root, ``zero`` uses none.
        roots: ``gp`` draws roots from Gaussian processes, ``white`` from white noise.
        graph: Mix roots in a graph; else every series is a root.
        only: Names of the kernels to draw from; all of the bank when empty.
    """

    length: int = 512
    nodes: int = 18
    parents: int = 6
    kernels: int = 7
    observed: int = 4
    bank: BankVersion = "v2"
    mean: Literal["full", "zero"] = "full"
    roots: Literal["gp", "white"] = "gp"
    graph: bool = True
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("length", 8), ("nodes", 1), ("parents", 1), ("kernels", 1), ("observed", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    "a generator option is out of range",
                    where=f"--{name}",
                    why=f"got {getattr(self, name)}",
                    remedy=f"use at least {least}",
                )
        if self.observed > self.nodes:
            raise InputError(
                "a graph cannot show more nodes than it has",
                where="--observed",
                why=f"{self.observed} of {self.nodes}",
            )
        unknown = set(self.only) - {kernel.name for kernel in kernel_bank(self.bank)}
        if unknown:
            raise InputError("unknown kernel", where="--only", why=f"{sorted(unknown)[0]} is not in bank {self.bank}")


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named corpus.

    Attributes:
        series: Number of series.
        settings: How they are drawn.
    """

    series: int
    settings: CauKerSettings


PRESETS: dict[str, Preset] = {
    "cauker-3k": Preset(3_000, CauKerSettings()),
    "cauker-100k": Preset(100_000, CauKerSettings()),
    "cauker-1m": Preset(1_000_000, CauKerSettings()),
    "cauker-2m": Preset(2_000_000, CauKerSettings()),
    "kernelsynth": Preset(100_000, CauKerSettings(mean="zero", graph=False, kernels=5)),
    "mean-kernelsynth": Preset(100_000, CauKerSettings(graph=False, kernels=5)),
    "scm-only": Preset(100_000, CauKerSettings(roots="white", mean="zero")),
}


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        InputError: There is none of that name.
    """
    if name not in PRESETS:
        raise InputError("unknown preset", where="--preset", why=f"got {name}", remedy=f"one of {', '.join(PRESETS)}")
    return PRESETS[name]


def random_graph(settings: CauKerSettings, rng: np.random.Generator) -> list[np.ndarray]:
    """Parents of every node; they come earlier in the order, so the graph has no cycle.

    Args:
        settings: Number of nodes and most parents.
        rng: Source of the draws.
    """
    counts = [int(rng.integers(0, min(node, settings.parents) + 1)) for node in range(settings.nodes)]
    return [
        rng.choice(node, size=count, replace=False) if count else np.empty(0, int) for node, count in enumerate(counts)
    ]


def compose(kernels: list[Kernel], products: list[bool], length: int) -> Float[np.ndarray, "l l"]:
    """Covariance of kernels joined from left to right by sums and products.

    Args:
        kernels: At least one.
        products: For each further kernel, whether it multiplies.
        length: Points of the grid.
    """
    # Sums and products of stationary kernels stay stationary: one row says it all until a dot product comes in.
    row: np.ndarray | None = None
    dense: np.ndarray | None = None
    for index, kernel in enumerate(kernels):
        multiply = index > 0 and products[index - 1]
        if dense is None and kernel.sigma0 is None:
            new = _row(kernel, length)
            row = new.copy() if row is None else (row * new if multiply else row + new)
            continue
        new = kernel.matrix(length) if kernel.sigma0 is not None else toeplitz(_row(kernel, length))
        if dense is None:
            dense = None if row is None else toeplitz(row)
        dense = new if dense is None else (dense * new if multiply else dense + new)
    if dense is None:
        assert row is not None
        dense = toeplitz(row)
    scale = float(np.mean(np.diag(dense)))
    # Products of large dot products reach 1e12; only the scale is brought down, the shape is kept.
    return dense / scale if scale > 1e6 else dense


def sample(covariance: Float[np.ndarray, "l l"], rng: np.random.Generator) -> Float[np.ndarray, " l"]:
    """One draw of a zero-mean Gaussian process.

    The covariance gets a jitter of 1e-6 of its mean diagonal, ten times more as long as it cannot be factorised, up to
    1e-2; then negative eigenvalues are clipped instead.

    Args:
        covariance: Symmetric, positive semi-definite up to rounding.
        rng: Source of the draws.
    """
    noise = rng.standard_normal(len(covariance))
    level = float(np.mean(np.diag(covariance)))
    for jitter in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
        work = np.array(covariance, order="F")
        work.flat[:: len(work) + 1] += jitter * level
        factor, info = lapack.dpotrf(work, lower=1, clean=0, overwrite_a=1)
        if info == 0:
            return np.asarray(blas.dtrmv(factor, noise, lower=1))
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors @ (np.sqrt(values.clip(min=0)) * noise))


def draw_graph(settings: CauKerSettings, seed: int, index: int) -> tuple[Float[np.ndarray, "s l"], int]:
    """The series of one graph, and how many were dropped.

    Args:
        settings: How the graph is drawn.
        seed: Seed of the corpus.
        index: Number of the graph.

    Returns:
        ``float32`` series, those that are constant or not finite left out, and their number.
    """
    rng = np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(index,)))
    with np.errstate(over="ignore", invalid="ignore"):
        series = _causal(settings, rng) if settings.graph else _root(settings, rng)[None]
        series = series.astype(np.float32)
    good = np.isfinite(series).all(1)
    good[good] = np.ptp(series[good], axis=1) > 0
    return series[good], int((~good).sum())


def batches_of_series(
    settings: CauKerSettings, count: int, *, seed: int, workers: int = 1
) -> Iterator[tuple[Float[np.ndarray, "s l"], int]]:
    """Series graph by graph, ``count`` in all, with the number dropped on the way.

    Args:
        settings: How graphs are drawn.
        count: Series wanted.
        seed: Seed of the corpus.
        workers: Processes.

    Raises:
        InputError: A number is out of range, or the settings yield no usable series.
    """
    if count < 1 or workers < 1 or seed < 0:
        raise InputError(
            "a generator option is out of range",
            where="--series, --workers, --seed",
            why=f"got {count}, {workers}, {seed}",
        )
    left, failures = count, 0
    graphs = spread(_draw, itertools.count(), setup=functools.partial(_plan, settings, seed), workers=workers)
    with contextlib.closing(graphs):
        for graph in graphs:
            series, dropped = graph.get()
            failures = 0 if len(series) else failures + 1
            if failures > 1000:
                raise InputError("the generator settings yield only constant or infinite series")
            yield series[:left], dropped
            left -= len(series[:left])
            if not left:
                return


def generate(
    count: int,
    *,
    settings: CauKerSettings | None = None,
    seed: int = 0,
    workers: int = 1,
) -> Float[np.ndarray, "n l"]:
    """Draw series into memory.

    Args:
        count: Number of series.
        settings: How they are drawn; CauKer's defaults when absent.
        seed: Seed of the corpus.
        workers: Processes; the result does not depend on it.
    """
    settings = settings or CauKerSettings()
    return np.concatenate([series for series, _ in batches_of_series(settings, count, seed=seed, workers=workers)])


def _plan(settings: CauKerSettings, seed: int) -> tuple[CauKerSettings, int]:
    return settings, seed


def _draw(plan: tuple[CauKerSettings, int], index: int) -> tuple[np.ndarray, int]:
    with threadpool_limits(1, user_api="blas"):
        return draw_graph(*plan, index)


def _root(settings: CauKerSettings, rng: np.random.Generator) -> np.ndarray:
    x = grid(settings.length)
    if settings.roots == "white":
        return rng.standard_normal(settings.length)
    bank = _bank(settings.bank, settings.only)
    count = int(rng.integers(1, settings.kernels + 1))
    chosen = [bank[place] for place in rng.integers(0, len(bank), count)]
    products = (rng.random(count - 1) < 0.5).tolist()
    y = sample(compose(chosen, products, settings.length), rng)
    if settings.mean == "zero":
        return y
    first, second = (MEANS[place](x, rng) for place in rng.integers(0, len(MEANS), 2))
    return y + (first * second if rng.random() < 0.5 else first + second)


def _causal(settings: CauKerSettings, rng: np.random.Generator) -> np.ndarray:
    parents = random_graph(settings, rng)
    observed = rng.choice(settings.nodes, size=settings.observed, replace=False)
    needed = set(observed.tolist())
    for node in reversed(range(settings.nodes)):  # what no observed node descends from is never drawn
        if node in needed:
            needed.update(parents[node].tolist())
    values = np.zeros((settings.nodes, settings.length))
    activations = ACTIVATIONS[settings.bank]
    for node in sorted(needed):
        if not len(parents[node]):
            values[node] = _root(settings, rng)
            continue
        u = rng.standard_normal(len(parents[node])) @ values[parents[node]] + rng.standard_normal()
        values[node] = activations[int(rng.integers(len(activations)))](u, rng)
    return values[observed]


@functools.lru_cache(maxsize=8)
def _bank(version: BankVersion, only: tuple[str, ...]) -> list[Kernel]:
    return [kernel for kernel in kernel_bank(version) if not only or kernel.name in only]


_ROWS: dict[tuple[str, int], np.ndarray] = {}


def _row(kernel: Kernel, length: int) -> np.ndarray:
    """First row of a stationary kernel, computed once a process."""
    row = _ROWS.get((kernel.name, length))
    if row is None:
        row = _ROWS[kernel.name, length] = kernel.row(length)
    return row
