"""Factors that are known because they are simulated, and how well encoders recover them; for the claims of CFA."""

import dataclasses
import functools

import numpy as np
import torch
from cl_foundations.cfa.objective import kl_weight, negative_elbo
from cl_foundations.cfa.posterior import (
    FactorPosterior,
    GammaPrior,
    NormalPosterior,
    PointPosterior,
    WeibullPosterior,
)
from contrastive_core.losses import non_negative
from contrastive_core.nn import GaussianHead, WeibullHead
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from cl_bench.arms import Arm, Result

_ETAS = {
    "plain spectral": 0.0,
    "NCL": 0.0,
    "CFA": 0.01,
    "CNFA": 0.01,
    "CNFA, η = 0.003": 0.003,
    "CNFA, η = 0.03": 0.03,
}
_SPARSE = GammaPrior(0.3, 1.0)


@dataclasses.dataclass(frozen=True)
class _Simulation:
    """Sparse non-negative factors, a random loading, and noise of a strength of its own for every sample."""

    factors: np.ndarray
    signal: Tensor
    noise: Tensor

    @classmethod
    def draw(cls, count: int, loading: np.ndarray, rng: np.random.Generator) -> "_Simulation":
        k = len(loading)
        active = np.argsort(rng.random((count, k)), axis=1) < rng.integers(1, 4, (count, 1))
        factors = active * rng.gamma(3.0, 1 / 3, (count, k))
        signal = torch.from_numpy(factors @ loading).float()
        return cls(factors, signal, torch.from_numpy(rng.uniform(0.05, 0.6, (count, 1))).float())

    def view(self, rows: Tensor, generator: torch.Generator, scale: float = 1.0) -> Tensor:
        """The samples under fresh noise."""
        fresh = torch.randn(len(rows), self.signal.shape[1], generator=generator)
        return self.signal[rows] + scale * self.noise[rows] * fresh


class _Encoder(nn.Module):
    def __init__(self, arm: str, factors: int) -> None:
        super().__init__()
        self.arm = arm
        self.trunk = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.head: nn.Module = nn.Linear(128, factors)
        if arm == "CFA":
            self.head = GaussianHead(128, factors)
        elif arm.startswith("CNFA"):
            self.head = WeibullHead(128, factors)

    def forward(self, x: Tensor) -> FactorPosterior:
        h = self.head(self.trunk(x))
        if self.arm == "CFA":
            return NormalPosterior(*h)
        if self.arm.startswith("CNFA"):
            return WeibullPosterior(*h)
        return PointPosterior(non_negative(h, "rep_relu") if self.arm == "NCL" else h)


def simulated_arms(steps: int) -> dict[str, Arm]:
    """Encoders of simulated factors, and how much the weight of the KL matters to them.

    Args:
        steps: Training steps of each, batch 256.
    """

    @functools.lru_cache(maxsize=1)
    def parts(seed: int) -> tuple[_Simulation, _Simulation]:
        rng = np.random.default_rng(seed)
        loading = rng.normal(0, (4 / 32) ** 0.5, (8, 32))
        return _Simulation.draw(8000, loading, rng), _Simulation.draw(2000, loading, rng)

    @functools.lru_cache(maxsize=len(_ETAS))
    def recovered(arm: str, seed: int) -> dict[str, float]:
        return _recover(arm, _ETAS[arm], *parts(seed), steps, seed)

    def change(seed: int) -> Result:
        mcc = {arm: recovered(arm, seed)["mcc"] for arm in _ETAS if "CNFA" in arm}
        return Result({"largest change of MCC": max(abs(value - mcc["CNFA"]) for value in mcc.values())})

    def score(arm: str, seed: int) -> Result:
        return Result(recovered(arm, seed))

    return {**{arm: functools.partial(score, arm) for arm in _ETAS}, "CNFA, η from 0.003 to 0.03": change}


def _recover(arm: str, eta: float, train: _Simulation, test: _Simulation, steps: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    model, generator = _Encoder(arm, train.factors.shape[1]), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        rows = torch.randint(len(train.signal), (256,), generator=generator)
        first, second = (model(train.view(rows, generator)) for _ in range(2))
        weight = kl_weight(step, steps, eta, warmup=0.2)
        loss = negative_elbo(first, second, likelihood="spectral_exact", eta=weight, prior=_SPARSE).loss
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        known, *seen = (
            model(part.view(torch.arange(len(part.signal)), generator, scale)).mean().numpy()
            for part, scale in ((train, 1.0), (test, 1.0), (test, 2.5))
        )
    unit = seen[0] / np.maximum(np.linalg.norm(seen[0], axis=1, keepdims=True), 1e-12)
    return {
        "mcc": _matched_correlation(seen[0], test.factors),
        "clean": _ridge_r2(known, train.factors, seen[0], test.factors),
        "noisy": _ridge_r2(known, train.factors, seen[1], test.factors),
        "active": float((np.abs(unit) > 0.05).mean()),
    }


def _matched_correlation(found: np.ndarray, true: np.ndarray) -> float:
    k = true.shape[1]
    noise = 1e-12 * np.arange(len(found))[:, None]  # a constant factor correlates with nothing
    correlation = np.abs(np.corrcoef((found + noise).T, true.T)[:k, k:])
    return float(correlation[linear_sum_assignment(-correlation)].mean())


def _ridge_r2(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    from sklearn.linear_model import Ridge

    return float(Ridge(1.0).fit(x, y).score(x_test, y_test))
