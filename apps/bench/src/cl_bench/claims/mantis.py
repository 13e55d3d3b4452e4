"""Claims of Mantis."""

import functools
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from cl_signals.mantis.evaluation import euclidean_1nn, frozen_probes, raw_forest
from cl_signals.mantis.inference import Readout
from cl_signals.mantis.model import Mantis, MantisConfig
from cl_signals.mantis.synthetic import generate, preset
from cl_signals.mantis.system import PretrainSettings
from cl_signals.mantis.training import pretrain_encoder
from cl_signals.series.samples import benchmark_sets
from contrastive_core.evaluation import ProbeKind
from contrastive_core.training import TrainSettings

from cl_bench.arms import Arm, Outcome, Result, Statement, compare, measure

_TRAINED = "cauker"
_LABELS: dict[ProbeKind, str] = {"rf": "random forest", "1nn": "1-NN", "logreg": "logistic regression"}
_TWO: tuple[ProbeKind, ...] = ("rf", "1nn")
STATEMENTS = [
    Statement("random forest, pre-trained beats untrained", "rf", _TRAINED, "untrained", gate=True),
    Statement("1-NN, pre-trained beats untrained", "1nn", _TRAINED, "untrained", gate=True),
    Statement("logistic regression, pre-trained beats untrained", "logreg", _TRAINED, "untrained"),
    Statement("random forest, CauKer beats KernelSynth", "rf", _TRAINED, "kernelsynth"),
    Statement(
        "random forest, layer 1 combined beats last cls", "rf", "cauker, layer 1, combined", "cauker, last layer, cls"
    ),
]


def claims(seeds: Sequence[int], data: Path | None, *, series: int = 3000, steps: int = 150) -> list[Outcome]:
    """CauKer pre-training against no training, zero-mean KernelSynth and raw series, on real sets.

    Args:
        seeds: Seeds of corpus, network and probes.
        data: Folder of further sets.
        series: Synthetic series a corpus.
        steps: Training steps of the tiny encoder, batch 128.
    """
    sets, skipped = benchmark_sets(data)
    jobs = os.cpu_count() or 1
    cauker = functools.lru_cache(maxsize=1)(lambda seed: _pretrained("cauker-3k", series, steps, seed))

    def frozen(
        encoder: Callable[[int], Mantis], kinds: Sequence[ProbeKind] = _TWO, readout: Readout = Readout()
    ) -> Arm:
        def score(seed: int) -> Result:
            model = encoder(seed)
            probes = {
                name: frozen_probes(model, *parts, readout=readout, kinds=kinds, seed=seed, jobs=jobs)
                for name, parts in sets.items()
            }
            return _mean({name: {str(kind): each[kind].accuracy for kind in kinds} for name, each in probes.items()})

        return score

    def raw(seed: int) -> Result:
        return _mean(
            {
                name: {"rf": raw_forest(*parts, seed=seed, jobs=jobs), "1nn": euclidean_1nn(*parts)}
                for name, parts in sets.items()
            }
        )

    table = measure(
        "mantis",
        {
            "untrained": frozen(_untrained, tuple(_LABELS)),
            _TRAINED: frozen(cauker, tuple(_LABELS)),
            "cauker, last layer, cls": frozen(cauker, readout=Readout(token="cls")),
            "cauker, layer 1, combined": frozen(cauker, readout=Readout(layer=1)),
            "kernelsynth": frozen(lambda seed: _pretrained("kernelsynth", series, steps, seed)),
            "raw values": raw,
        },
        seeds,
    )
    notes = [
        f"mean test accuracy over {len(sets)} sets, official splits; tiny V2 encoder, {series} synthetic series, "
        f"{steps} steps of 128; {', '.join(f'{name}: {text}' for name, text in _LABELS.items())}",
        *(f"left out: {name} ({why})" for name, why in skipped.items()),
    ]
    return compare("mantis", STATEMENTS, table, notes=notes)


def _mean(accuracies: Mapping[str, Mapping[str, float]]) -> Result:
    """Mean over sets of every probe's accuracy, and a row a set."""
    kinds = next(iter(accuracies.values()))
    means = {kind: statistics.fmean(each[kind] for each in accuracies.values()) for kind in kinds}
    return Result(means, details=[{"set": name, **each} for name, each in accuracies.items()])


def _untrained(seed: int) -> Mantis:
    torch.manual_seed(seed)
    return Mantis(MantisConfig.preset("tiny"))


def _pretrained(name: str, series: int, steps: int, seed: int) -> Mantis:
    """The encoder of the same seed, pre-trained on a corpus of that seed."""
    corpus = generate(series, settings=preset(name).settings, seed=seed, workers=os.cpu_count() or 1)
    training = TrainSettings(steps=steps, seed=seed, progress=False)
    return pretrain_encoder(corpus, PretrainSettings(preset="tiny", batch_size=128, training=training))
