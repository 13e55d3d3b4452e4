"""Claims of contrastive factor analysis."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cl_foundations.cfa.commands import train_factors
from cl_foundations.cfa.corruptions import Corruption, corruption, uniform_noise
from cl_foundations.cfa.data import ImageSet, read_images, read_parts
from cl_foundations.cfa.evaluate import detection, error_detection
from cl_foundations.cfa.inference import Embeddings, embed
from cl_foundations.cfa.interpret import factor_metrics
from cl_foundations.cfa.model import FactorModel, Method, ModelConfig
from cl_foundations.cfa.objective import kl_weight, negative_elbo
from cl_foundations.cfa.posterior import (
    FactorPosterior,
    GammaPrior,
    NormalPosterior,
    PointPosterior,
    WeibullPosterior,
)
from cl_foundations.cfa.samples import write_samples
from cl_foundations.cfa.system import ObjectiveSettings, OptimSettings
from cl_foundations.cfa.views import ViewSettings
from contrastive_core.errors import InputError
from contrastive_core.evaluation import fit_probe
from contrastive_core.losses import non_negative
from contrastive_core.nn import GaussianHead, WeibullHead
from contrastive_core.training import RunFolder, TrainSettings
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from cl_bench.arms import Claim

Scores = dict[str, list[float]]
_SPARSE = GammaPrior(0.3, 1.0)
_CORRUPTIONS: tuple[Corruption, ...] = ("noise", "blur", "contrast", "pixelate")
_SEVERITIES = (1, 3, 5)
# name -> method, weight of the KL
_ARMS: dict[str, tuple[Method, float]] = {
    "SimCLR": ("simclr", 0.0),
    "NCL": ("ncl", 0.0),
    "CFA": ("cfa", 0.1),
    "CFA, η = 1": ("cfa", 1.0),
    "CNFA": ("cnfa", 0.1),
}


def claims(seeds: Sequence[int], data: Path | None, *, simulated_steps: int = 3000, steps: int = 300) -> list[Claim]:
    """Recovery of simulated factors, and the paper's four directions on real images.

    Args:
        seeds: Seeds of simulation, networks and views.
        data: Folder (or a folder with one .zip) of images with classes and a train and a test part; scikit-learn's
            digits when absent.
        simulated_steps: Training steps on simulated factors, batch 256.
        steps: Training steps on images, batch 256.
    """
    return [*_simulated(seeds, simulated_steps), *_images(seeds, data, steps)]


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


def _simulated(seeds: Sequence[int], steps: int) -> list[Claim]:
    started = time.perf_counter()
    etas = {
        "plain spectral": 0.0,
        "NCL": 0.0,
        "CFA": 0.01,
        "CNFA": 0.01,
        "CNFA, η = 0.003": 0.003,
        "CNFA, η = 0.03": 0.03,
    }
    scores: dict[str, Scores] = {name: {arm: [] for arm in etas} for name in ("mcc", "clean", "noisy", "active")}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        loading = rng.normal(0, (4 / 32) ** 0.5, (8, 32))
        train, test = (_Simulation.draw(count, loading, rng) for count in (8000, 2000))
        for arm, eta in etas.items():
            for name, value in _recover(arm, eta, train, test, steps, seed).items():
                scores[name][arm].append(value)
    change = [
        max(abs(scores["mcc"][arm][i] - scores["mcc"]["CNFA"][i]) for arm in etas if "η" in arm)
        for i in range(len(seeds))
    ]
    seconds = time.perf_counter() - started
    notes = [
        f"simulated: 8 sparse factors in 32 dimensions, 8,000 training samples, spectral_exact, {steps} steps of 256; "
        "MCC: mean absolute correlation of matched factors; R²: ridge regression of the factors from the means"
    ]
    table = [{"arm": arm, **{name: statistics.fmean(each[arm]) for name, each in scores.items()}} for arm in etas]

    def claim(statement: str, name: str, baseline: str, margin: float, *, gate: bool, better: str = "CNFA") -> Claim:
        return _with_margin(
            f"cfa: simulated, {statement}",
            statement,
            scores[name],
            better,
            baseline,
            margin,
            gate,
            {"simulated factors": table} if name == "mcc" and baseline == "NCL" else {},
            notes,
            seconds,
        )

    sensitivity = {"limit": [0.02] * len(change), "largest change of MCC": change}
    return [
        claim("CNFA finds the axes, plain spectral does not (MCC)", "mcc", "plain spectral", 0.1, gate=True),
        claim("CNFA finds the axes, CFA does not (MCC)", "mcc", "CFA", 0.1, gate=True),
        claim("CNFA finds the axes as NCL does (MCC)", "mcc", "NCL", -0.05, gate=True),
        claim("CNFA keeps information under noise as NCL does (R²)", "noisy", "NCL", -0.03, gate=True),
        claim("CFA keeps more information (R²)", "clean", "plain spectral", 0.0, gate=False, better="CFA"),
        Claim(
            "cfa: simulated, η from 0.003 to 0.03 matters little (MCC)",
            "η matters little",
            sensitivity,
            "limit",
            "largest change of MCC",
            True,
            {},
            notes,
            seconds,
        ),
    ]


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


def _images(seeds: Sequence[int], data: Path | None, steps: int) -> list[Claim]:
    started = time.perf_counter()
    train, test, outside, views = _data(data)
    measured: dict[str, Scores] = {}
    table = []
    for seed in seeds:
        for arm, (method, eta) in _ARMS.items():
            model = _trained(method, eta, train, views, steps, seed)
            row = _measure(model, train, test, outside, seed)
            table.append({"arm": arm, "seed": seed, **row})
            for name, value in row.items():
                measured.setdefault(name, {}).setdefault(arm, []).append(value)
    seconds = time.perf_counter() - started
    name = train.name.split("/")[-1] if data else "scikit-learn digits"
    notes = [
        f"images: {name}, {len(train)} training and {len(test)} test images of {train.side} pixels, tiny backbone, 64 "
        f"factors, infonce, {steps} steps of 256; corrupted: mean over {', '.join(_CORRUPTIONS)} at severities 1, 3, "
        f"5, probes fitted on clean images; outside: {'photographs' if data is None else 'scikit-learn digits'}"
    ]

    def claim(
        direction: str,
        statement: str,
        key: str,
        better: str,
        baseline: str,
        margin: float = 0.0,
        gate: bool = False,
    ) -> Claim:
        details = {"images, every run": table} if gate and direction == "robustness" else {}
        return _with_margin(
            f"cfa: {direction}, {statement}",
            statement,
            measured[key],
            better,
            baseline,
            margin,
            gate,
            details,
            notes,
            seconds,
        )

    def against(direction: str, statement: str, name: str, arm: str, level: float, *, gate: bool = False) -> Claim:
        values = measured[name][arm]
        scores = {arm: values, f"level {level:g}": [level] * len(values)}
        title = f"cfa: {direction}, {statement}"
        return Claim(title, statement, scores, arm, f"level {level:g}", gate, {}, notes, seconds)

    entropy = "CFA, η = 1"
    return [
        claim("expressiveness", "linear probe, CFA against SimCLR", "linear", "CFA", "SimCLR"),
        claim("expressiveness", "linear probe, CNFA against NCL", "linear", "CNFA", "NCL"),
        claim("robustness", "corrupted k-NN, CFA against SimCLR", "knn_corrupted", "CFA", "SimCLR", -0.01, True),
        claim("robustness", "corrupted linear probe, CFA against SimCLR", "linear_corrupted", "CFA", "SimCLR"),
        claim("robustness", "corrupted linear probe, CNFA against NCL", "linear_corrupted", "CNFA", "NCL"),
        claim("interpretability", "class consistency, CNFA against SimCLR", "ccr_05", "CNFA", "SimCLR", 0.03, True),
        claim("interpretability", "purity, CNFA against SimCLR", "purity", "CNFA", "SimCLR", 0.03, True),
        claim("interpretability", "class consistency, CNFA against NCL", "ccr_05", "CNFA", "NCL"),
        claim("interpretability", "purity, CNFA against NCL", "purity", "CNFA", "NCL"),
        *(
            against(
                "uncertainty",
                f"entropy rises with {kind}, smallest step",
                f"step_{kind}",
                entropy,
                0.0,
                gate=kind != "noise",
            )
            for kind in ("blur", "contrast", "pixelate", "noise")
        ),
        *(
            against("uncertainty", f"AUROC of {score}, {what}", f"{score}_{key}", arm, 0.5)
            for arm in (entropy, "CNFA")
            for score in ("entropy", "cv", "var_dir")
            for key, what in (
                ("outside", f"other images, {arm}"),
                ("noise", f"uniform noise, {arm}"),
                ("errors", f"errors of the probe, {arm}"),
            )
        ),
    ]


def _data(data: Path | None) -> tuple[ImageSet, ImageSet, ImageSet, ViewSettings]:
    """Training and test images, images of something else, and views that suit them."""
    with tempfile.TemporaryDirectory() as folder:
        digits, photographs = write_samples(folder)
        if data is None:
            # Eight pixels hold no more than sixteen can show; mirrored digits are none.
            views = ViewSettings(crop_min=0.4, flip=0.0, jitter=0.4, gray=0.0, blur=0.2)
            return *read_parts(digits, 16), read_images(photographs, 16), views
        archives = sorted(data.glob("*.zip"))
        train, test = read_parts(archives[0] if archives else data, 32)
        if train.labels is None or len(train) < 256:
            raise InputError("the claim needs at least 256 labelled training images", where=data)
        return train, test, read_images(digits, 32, split="test"), ViewSettings()


def _trained(method: Method, eta: float, images: ImageSet, views: ViewSettings, steps: int, seed: int) -> FactorModel:
    torch.manual_seed(seed)
    config = ModelConfig(method=method, backbone="tiny", image_size=images.side, hidden=256, factors=64)
    settings = TrainSettings(steps=steps, seed=seed, progress=False, checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, {}) as run:
        return train_factors(
            FactorModel(config),
            images,
            run=run,
            batch_size=256,
            objective=ObjectiveSettings(eta=eta),
            optim=OptimSettings(lr=4e-3),
            views=views,
            train=settings,
        )


def _measure(model: FactorModel, train: ImageSet, test: ImageSet, outside: ImageSet, seed: int) -> dict[str, float]:
    known, clean, other = (embed(model, images, seed=seed) for images in (train, test, outside))
    nothing = embed(model, test, seed=seed, change=uniform_noise)
    assert known.labels is not None
    assert clean.labels is not None
    truth = clean.labels
    linear = fit_probe(known.features, known.labels, kind="logreg", strength=1.0)
    nearest = fit_probe(known.mean, known.labels, kind="knn", scale=False)

    def accuracies(found: Embeddings) -> tuple[np.ndarray, np.ndarray]:
        guesses = (linear.predict_proba(found.features), nearest.predict_proba(found.mean))
        return (guesses[0].argmax(1) == truth, guesses[1].argmax(1) == truth)

    correct, hits = accuracies(clean)
    corrupted: list[tuple[float, float]] = []
    entropies: dict[Corruption, list[float]] = {}
    for kind in _CORRUPTIONS:
        for severity in _SEVERITIES:
            found = embed(model, test, seed=seed, change=corruption(kind, severity))
            a, b = accuracies(found)
            corrupted.append((float(a.mean()), float(b.mean())))
            if "entropy" in found.scores:
                entropies.setdefault(kind, [float(clean.scores["entropy"].mean())])
                entropies[kind].append(float(found.scores["entropy"].mean()))
    metrics = factor_metrics(clean.mean, truth)
    out = {
        "linear": float(correct.mean()),
        "linear_corrupted": statistics.fmean(a for a, _ in corrupted),
        "knn": float(hits.mean()),
        "knn_corrupted": statistics.fmean(b for _, b in corrupted),
        "ccr_05": metrics.ccr_05,
        "purity": metrics.purity,
        "sparsity": metrics.sparsity,
    }
    out |= {f"step_{kind}": float(np.diff(values).min()) for kind, values in entropies.items()}
    errors = error_detection(clean.scores, correct)
    for score, values in clean.scores.items():
        out[f"{score}_outside"] = detection(values, other.scores[score]).auroc
        out[f"{score}_noise"] = detection(values, nothing.scores[score]).auroc
        found_errors = errors[score]["auroc"]
        out[f"{score}_errors"] = float("nan") if found_errors is None else found_errors
    return out


def _with_margin(
    name: str,
    statement: str,
    scores: Scores,
    better: str,
    baseline: str,
    margin: float,
    gate: bool,
    details: dict[str, list[dict[str, Any]]],
    notes: list[str],
    seconds: float,
) -> Claim:
    """A claim whose baseline is shifted by a margin; the shifted baseline becomes an arm of its own."""
    if margin:
        shifted = f"{baseline} {'+' if margin > 0 else '-'} {abs(margin):g}"
        scores = {**scores, shifted: [value + margin for value in scores[baseline]]}
        baseline = shifted
    return Claim(name, statement, scores, better, baseline, gate, details, notes, seconds)
