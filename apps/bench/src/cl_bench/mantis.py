"""Claims and speed of Mantis."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cl_signals.mantis.frozen import Readout, euclidean_1nn, frozen_probes, pretrain_encoder, raw_forest
from cl_signals.mantis.model import Mantis, MantisConfig
from cl_signals.mantis.samples import benchmark_sets
from cl_signals.mantis.synthetic import generate, preset
from cl_signals.mantis.system import OptimSettings, ViewSettings
from contrastive_core.training import RunFolder, TrainSettings

from cl_bench.results import Claim, Speed, race

_KINDS = ("rf", "1nn", "logreg")


def claims(seeds: Sequence[int], data: Path | None, *, series: int = 3000, steps: int = 150) -> list[Claim]:
    """CauKer pre-training against no training, zero-mean KernelSynth and raw series, on real sets.

    Args:
        seeds: Seeds of corpus, network and probes.
        data: Folder of further sets.
        series: Synthetic series a corpus.
        steps: Training steps of the tiny encoder, batch 128.
    """
    started, jobs = time.perf_counter(), os.cpu_count() or 1
    sets, skipped = benchmark_sets(data)
    arms: dict[str, dict[str, list[float]]] = {kind: {} for kind in _KINDS}
    table: list[dict[str, Any]] = []

    def record(arm: str, model: Mantis, readout: Readout, seed: int, kinds: Sequence[Any]) -> None:
        results = {
            name: frozen_probes(model, *parts, readout=readout, kinds=kinds, seed=seed, jobs=jobs)
            for name, parts in sets.items()
        }
        for kind in kinds:
            arms[kind].setdefault(arm, []).append(statistics.fmean(each[kind].accuracy for each in results.values()))
        for name, each in results.items():
            table.append({"set": name, "arm": arm, "seed": seed, **{kind: each[kind].accuracy for kind in kinds}})

    for seed in seeds:
        torch.manual_seed(seed)
        untrained = Mantis(MantisConfig.preset("tiny"))
        record("untrained", untrained, Readout(), seed, _KINDS)
        cauker = _pretrained(untrained, "cauker-3k", series, steps, seed)
        record("cauker", cauker, Readout(), seed, _KINDS)
        record("cauker, last layer, cls", cauker, Readout(token="cls"), seed, ("rf", "1nn"))
        record("cauker, layer 1, combined", cauker, Readout(layer=1), seed, ("rf", "1nn"))
        record(
            "kernelsynth", _pretrained(untrained, "kernelsynth", series, steps, seed), Readout(), seed, ("rf", "1nn")
        )
        for kind in _KINDS:
            if kind == "rf":
                scores = [raw_forest(*parts, seed=seed, jobs=jobs) for parts in sets.values()]
                arms[kind].setdefault("raw values", []).append(statistics.fmean(scores))
            if kind == "1nn":
                scores = [euclidean_1nn(*parts) for parts in sets.values()]
                arms[kind].setdefault("raw values", []).append(statistics.fmean(scores))
    seconds = time.perf_counter() - started
    notes = [
        f"mean test accuracy over {len(sets)} sets, official splits; tiny V2 encoder, {series} synthetic series, "
        f"{steps} steps of 128",
        *(f"left out: {name} ({why})" for name, why in skipped.items()),
    ]

    def claim(kind: str, statement: str, better: str, baseline: str, *, gate: bool) -> Claim:
        label = {"rf": "random forest", "1nn": "1-NN", "logreg": "logistic regression"}[kind]
        scores = arms[kind]
        details = {"per set": table} if kind == "rf" and gate else {}
        return Claim(
            f"mantis: {label}, {statement}", statement, scores, better, baseline, gate, details, notes, seconds
        )

    return [
        claim("rf", "pre-trained beats untrained", "cauker", "untrained", gate=True),
        claim("1nn", "pre-trained beats untrained", "cauker", "untrained", gate=True),
        claim("logreg", "pre-trained beats untrained", "cauker", "untrained", gate=False),
        claim("rf", "CauKer beats KernelSynth", "cauker", "kernelsynth", gate=False),
        claim(
            "rf", "layer 1 combined beats last cls", "cauker, layer 1, combined", "cauker, last layer, cls", gate=False
        ),
    ]


def speed(rounds: int) -> list[Speed]:
    """Embedding against ``mantis-tsfm`` with the same weights, and CauKer's roots against scikit-learn.

    Args:
        rounds: Timed rounds of each contestant.
    """
    return [*_embedding(rounds), _drawing(rounds)]


def _pretrained(start: Mantis, name: str, series: int, steps: int, seed: int) -> Mantis:
    corpus = generate(series, settings=preset(name).settings, seed=seed, workers=os.cpu_count() or 1)
    model = Mantis(start.config)
    model.load_state_dict(start.state_dict())
    settings = TrainSettings(steps=steps, seed=seed, progress=False, checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, {}) as run:
        return pretrain_encoder(
            model, corpus, run=run, batch_size=128, optim=OptimSettings(), views=ViewSettings(), train=settings
        )


def _embedding(rounds: int) -> list[Speed]:
    from cl_signals.mantis.weights import import_state
    from mantis.architecture import MantisV1, MantisV2

    entries = []
    x = torch.randn(256, 1, 512, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    for version, peer in (("V1", MantisV1), ("V2", MantisV2)):
        torch.manual_seed(0)
        theirs = peer(device="cpu").eval()
        with_projector = peer(device="cpu", pre_training=True).state_dict()
        ours, _ = import_state({**with_projector, **theirs.state_dict()})
        with torch.inference_mode():
            reference = ours(x)
            gap = float((reference - theirs(x)).abs().max())
            with torch.autocast("cpu", dtype=torch.bfloat16):
                half = ours(x).float()
        similarity = torch.nn.functional.cosine_similarity(half, reference).min()

        def run(model: Callable[[torch.Tensor], object]) -> Callable[[], None]:
            def task() -> None:
                with torch.inference_mode():
                    model(x)

            return task

        def run_half(model: Mantis = ours) -> None:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                model(x)

        size = "256 series of 512 points, CPU"
        entries.append(
            race(
                f"mantis: embedding {version}",
                run(ours),
                run(theirs),
                peer="mantis-tsfm",
                rounds=rounds,
                notes=f"{size}; outputs differ by at most {gap:.1e}",
            )
        )
        entries.append(
            race(
                f"mantis: embedding {version}, bf16",
                run_half,
                run(theirs),
                peer="mantis-tsfm in float32",
                rounds=rounds,
                notes=f"{size}; smallest cosine to float32 {float(similarity):.5f}",
            )
        )
    return entries


def _drawing(rounds: int) -> Speed:
    """The same random kernel compositions, drawn one by one on one thread."""
    from functools import reduce

    from cl_signals.mantis.synthetic.banks import kernel_bank
    from cl_signals.mantis.synthetic.generator import compose, sample
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process import kernels as sk
    from threadpoolctl import threadpool_limits

    makers: dict[str, Callable[[float], Any]] = {
        "periodic": lambda value: sk.ExpSineSquared(1.0, value / 512),
        "dot": lambda value: sk.DotProduct(value),
        "rbf": lambda value: sk.RBF(value),
        "rational": lambda value: sk.RationalQuadratic(1.0, value),
        "white": lambda value: sk.WhiteKernel(value),
        "matern": lambda value: sk.Matern(1 / 512 if value == 0.5 else 5 / 512, nu=value),
    }
    rng, bank = np.random.default_rng(0), kernel_bank("v2")
    picks = [[bank[i] for i in rng.integers(0, len(bank), rng.integers(1, 8))] for _ in range(20)]
    products = [(rng.random(len(pick) - 1) < 0.5).tolist() for pick in picks]
    x = np.linspace(0, 1, 512)[:, None]

    def ours() -> None:
        generator = np.random.default_rng(1)
        with threadpool_limits(1):
            for pick, product in zip(picks, products, strict=True):
                sample(compose(pick, product, 512), generator)

    def theirs() -> None:
        with threadpool_limits(1):
            for seed, (pick, product) in enumerate(zip(picks, products, strict=True)):
                parts = [makers[kernel.name.partition("-")[0]](float(kernel.name.partition("-")[2])) for kernel in pick]
                kernel = reduce(
                    lambda left, right: left * right[0] if right[1] else left + right[0],
                    zip(parts[1:], product, strict=True),
                    parts[0],
                )
                GaussianProcessRegressor(kernel).sample_y(x, random_state=seed)

    notes = "20 series of 512 points from the same kernel compositions, one thread"
    return race(
        "mantis: drawing Gaussian processes", ours, theirs, peer="scikit-learn sample_y", rounds=rounds, notes=notes
    )
