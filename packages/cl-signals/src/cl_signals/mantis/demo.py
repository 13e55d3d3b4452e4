"""The whole path in minutes: synthetic series, a tiny encoder, real sets, a report."""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.evaluation import ProbeKind
from contrastive_core.training import RunFolder, TrainSettings

from cl_signals.mantis.evaluation import euclidean_1nn, frozen_probes
from cl_signals.mantis.report import demo_report
from cl_signals.mantis.synthetic import generate
from cl_signals.mantis.system import PretrainSettings
from cl_signals.mantis.training import new_encoder, pretrain_encoder
from cl_signals.series import samples
from cl_signals.series.sets import SeriesSet

_KINDS: tuple[ProbeKind, ...] = ("rf", "1nn")


def run_demo(run: RunFolder, *, series: int, steps: int, seed: int, workers: int) -> list[dict[str, Any]]:
    """Pre-train a tiny encoder on synthetic series and compare it on real ones.

    Args:
        run: Where the encoder, its log and the report go.
        series: Synthetic series to draw.
        steps: Training steps.
        seed: Seed of everything.
        workers: Processes that draw series, 0 for one a core.

    Returns:
        Test accuracies, one row a set and their mean.

    Raises:
        InputError: The sample data are not installed.
    """
    started = time.perf_counter()
    sets = _sets()
    print(f"drawing {series} synthetic series ...")
    corpus = generate(series, seed=seed, workers=workers or os.cpu_count() or 1)
    print(f"pre-training a tiny encoder for {steps} steps ...")
    training = TrainSettings(steps=steps, seed=seed, log_every=5)
    settings = PretrainSettings(preset="tiny", batch_size=128, training=training)
    encoder, untrained = pretrain_encoder(corpus, settings, run=run), new_encoder(settings)
    encoder.save(run)
    print("embedding real series ...")
    rows: list[dict[str, Any]] = []
    for name, (train, test) in sets.items():
        scores = {
            label: frozen_probes(model, train, test, kinds=_KINDS, seed=seed)
            for label, model in (("pre-trained", encoder), ("untrained", untrained))
        }
        row = {f"{label}, {t}": s[k].accuracy for k, t in zip(_KINDS, ("RF", "1-NN")) for label, s in scores.items()}
        rows.append({"set": name, **row, "raw 1-NN": euclidean_1nn(train, test)})
    rows.append({"set": "mean", **{key: float(np.mean([r[key] for r in rows])) for key in rows[0] if key != "set"}})
    run.write_results({"rows": rows})
    facts = {"series": series, "steps": steps, "seed": seed, "seconds": round(time.perf_counter() - started)}
    demo_report(run, rows, facts, {"pre-trained": encoder, "untrained": untrained}, sets["JapaneseVowels"][1]).write(
        run.report
    )
    return rows


def _sets() -> Mapping[str, tuple[SeriesSet, SeriesSet]]:
    available, _ = samples.benchmark_sets()
    if any(name not in available for name in samples.SAMPLES):
        raise InputError("the sample data are not installed", remedy="pip install 'cl-signals[samples]'")
    return {name: available[name] for name in samples.SAMPLES}
