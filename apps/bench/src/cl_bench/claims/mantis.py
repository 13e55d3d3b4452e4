"""Claims of Mantis."""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cl_signals.mantis.frozen import Readout, euclidean_1nn, frozen_probes, pretrain_encoder, raw_forest
from cl_signals.mantis.model import Mantis, MantisConfig
from cl_signals.mantis.samples import benchmark_sets
from cl_signals.mantis.synthetic import generate, preset
from cl_signals.mantis.system import OptimSettings, ViewSettings
from contrastive_core.training import RunFolder, TrainSettings

from cl_bench.arms import Claim

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


def _pretrained(start: Mantis, name: str, series: int, steps: int, seed: int) -> Mantis:
    corpus = generate(series, settings=preset(name).settings, seed=seed, workers=os.cpu_count() or 1)
    model = Mantis(start.config)
    model.load_state_dict(start.state_dict())
    settings = TrainSettings(steps=steps, seed=seed, progress=False, checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, {}) as run:
        return pretrain_encoder(
            model, corpus, run=run, batch_size=128, optim=OptimSettings(), views=ViewSettings(), train=settings
        )
