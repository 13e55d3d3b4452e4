"""Claims of contrastive factor analysis."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cl_foundations.cfa import (
    Embeddings,
    EmbedSettings,
    FactorEncoder,
    FactorOptim,
    ModelConfig,
    ObjectiveSettings,
    Settings,
    factor_metrics,
    train_factors,
)
from cl_foundations.cfa.model import Method
from cl_foundations.cfa.uncertainty import detection, error_detection
from cl_foundations.images import ImageSet, ViewSettings, read_images, read_parts, write_samples
from cl_foundations.images.corruptions import Corruption, corruption, uniform_noise
from contrastive_core.errors import InputError
from contrastive_core.evaluation import fit_probe
from contrastive_core.training import TrainSettings

from cl_bench.arms import Arm, Outcome, Result, Statement, compare, measure
from cl_bench.claims.simulated_factors import simulated_arms

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
_ENTROPY = "CFA, η = 1"
SIMULATED = [
    Statement(
        "simulated, CNFA finds the axes, plain spectral does not (MCC)", "mcc", "CNFA", "plain spectral", 0.1, gate=True
    ),
    Statement("simulated, CNFA finds the axes, CFA does not (MCC)", "mcc", "CNFA", "CFA", 0.1, gate=True),
    Statement("simulated, CNFA finds the axes as NCL does (MCC)", "mcc", "CNFA", "NCL", -0.05, gate=True),
    Statement(
        "simulated, CNFA keeps information under noise as NCL does (R²)", "noisy", "CNFA", "NCL", -0.03, gate=True
    ),
    Statement("simulated, CFA keeps more information (R²)", "clean", "CFA", "plain spectral"),
    Statement(
        "simulated, η from 0.003 to 0.03 matters little (MCC)",
        "largest change of MCC",
        "CNFA, η from 0.003 to 0.03",
        0.02,
        gate=True,
        lower=True,
    ),
]
IMAGES = [
    Statement("expressiveness, linear probe, CFA against SimCLR", "linear", "CFA", "SimCLR"),
    Statement("expressiveness, linear probe, CNFA against NCL", "linear", "CNFA", "NCL"),
    Statement("robustness, corrupted k-NN, CFA against SimCLR", "knn_corrupted", "CFA", "SimCLR", -0.01, gate=True),
    Statement("robustness, corrupted linear probe, CFA against SimCLR", "linear_corrupted", "CFA", "SimCLR"),
    Statement("robustness, corrupted linear probe, CNFA against NCL", "linear_corrupted", "CNFA", "NCL"),
    Statement("interpretability, class consistency, CNFA against SimCLR", "ccr_05", "CNFA", "SimCLR", 0.03, gate=True),
    Statement("interpretability, purity, CNFA against SimCLR", "purity", "CNFA", "SimCLR", 0.03, gate=True),
    Statement("interpretability, class consistency, CNFA against NCL", "ccr_05", "CNFA", "NCL"),
    Statement("interpretability, purity, CNFA against NCL", "purity", "CNFA", "NCL"),
    *(
        Statement(
            f"uncertainty, entropy rises with {kind}, smallest step",
            f"step_{kind}",
            _ENTROPY,
            0.0,
            gate=kind != "noise",
        )
        for kind in ("blur", "contrast", "pixelate", "noise")
    ),
    *(
        Statement(f"uncertainty, AUROC of {score}, {what}, {arm}", f"{score}_{key}", arm, 0.5)
        for arm in (_ENTROPY, "CNFA")
        for score in ("entropy", "cv", "var_dir")
        for key, what in (("outside", "other images"), ("noise", "uniform noise"), ("errors", "errors of the probe"))
    ),
]


def claims(seeds: Sequence[int], data: Path | None, *, simulated_steps: int = 3000, steps: int = 300) -> list[Outcome]:
    """Recovery of simulated factors, and the paper's four directions on real images.

    Args:
        seeds: Seeds of simulation, networks and views.
        data: Folder (or a folder with one .zip) of images with classes and a train and a test part; scikit-learn's
            digits when absent.
        simulated_steps: Training steps on simulated factors, batch 256.
        steps: Training steps on images, batch 256.
    """
    return [*_simulated(seeds, simulated_steps), *_images(seeds, data, steps)]


def _simulated(seeds: Sequence[int], steps: int) -> list[Outcome]:
    table = measure("cfa", simulated_arms(steps), seeds)
    notes = [
        f"simulated: 8 sparse factors in 32 dimensions, 8,000 training samples, spectral_exact, {steps} steps of 256; "
        "MCC: mean absolute correlation of matched factors; R²: ridge regression of the factors from the means"
    ]
    return compare("cfa", SIMULATED, table, notes=notes)


def _images(seeds: Sequence[int], data: Path | None, steps: int) -> list[Outcome]:
    train, test, outside, views = _data(data)

    def arm(method: Method, eta: float) -> Arm:
        def score(seed: int) -> Result:
            model = _trained(method, eta, train, views, steps, seed)
            return Result(_measure(model, train, test, outside, seed))

        return score

    table = measure("cfa", {name: arm(*options) for name, options in _ARMS.items()}, seeds)
    name = train.name.split("/")[-1] if data else "scikit-learn digits"
    notes = [
        f"images: {name}, {len(train)} training and {len(test)} test images of {train.side} pixels, tiny backbone, 64 "
        f"factors, infonce, {steps} steps of 256; corrupted: mean over {', '.join(_CORRUPTIONS)} at severities 1, 3, "
        f"5, probes fitted on clean images; outside: {'photographs' if data is None else 'scikit-learn digits'}"
    ]
    return compare("cfa", IMAGES, table, notes=notes)


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


def _trained(method: Method, eta: float, images: ImageSet, views: ViewSettings, steps: int, seed: int) -> FactorEncoder:
    settings = Settings(
        model=ModelConfig(method=method, backbone="tiny", image_size=images.side, hidden=256, factors=64),
        objective=ObjectiveSettings(eta=eta),
        optim=FactorOptim(lr=4e-3),
        views=views,
        training=TrainSettings(steps=steps, seed=seed, progress=False),
    )
    return train_factors(images, settings)


def _measure(model: FactorEncoder, train: ImageSet, test: ImageSet, outside: ImageSet, seed: int) -> dict[str, float]:
    settings = EmbedSettings(seed=seed)
    known, clean, other = (model.embed(images, settings) for images in (train, test, outside))
    nothing = model.embed(test, settings, change=uniform_noise)
    truth = clean.known
    linear = fit_probe(known.features, known.known, kind="logreg", strength=1.0)
    nearest = fit_probe(known.mean, known.known, kind="knn", scale=False)

    def accuracies(embeddings: Embeddings) -> tuple[np.ndarray, np.ndarray]:
        guesses = (linear.predict_proba(embeddings.features), nearest.predict_proba(embeddings.mean))
        return (guesses[0].argmax(1) == truth, guesses[1].argmax(1) == truth)

    correct, hits = accuracies(clean)
    corrupted: list[tuple[float, float]] = []
    entropies: dict[Corruption, list[float]] = {}
    for kind in _CORRUPTIONS:
        for severity in _SEVERITIES:
            changed = model.embed(test, settings, change=corruption(kind, severity))
            a, b = accuracies(changed)
            corrupted.append((float(a.mean()), float(b.mean())))
            if "entropy" in changed.scores:
                entropies.setdefault(kind, [float(clean.scores["entropy"].mean())])
                entropies[kind].append(float(changed.scores["entropy"].mean()))
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
        auroc = errors[score]["auroc"]
        out[f"{score}_errors"] = float("nan") if auroc is None else auroc
    return out
