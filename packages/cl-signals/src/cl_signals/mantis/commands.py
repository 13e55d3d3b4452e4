"""The verbs of ``cl-signals mantis``."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import numpy as np
from contrastive_core.cli import Flat, options_of
from contrastive_core.errors import InputError
from contrastive_core.evaluation import ProbeKind
from contrastive_core.files import atomic_write, refuse_existing, write_csv
from contrastive_core.tables import print_rows
from contrastive_core.training import RunFolder

from cl_signals.mantis.demo import run_demo
from cl_signals.mantis.evaluation import classifier_rows, evaluate_classifier, evaluate_sets
from cl_signals.mantis.inference import Readout, SeriesClassifier, embed_parts, is_classifier, load_encoders
from cl_signals.mantis.model import Mantis
from cl_signals.mantis.report import classifier_report, pretraining_report
from cl_signals.mantis.synthetic import preset as cauker_preset
from cl_signals.mantis.synthetic import read_corpus, write_corpus
from cl_signals.mantis.system import ClassifierSettings, PretrainSettings
from cl_signals.mantis.training import pretrain_encoder, train_classifier
from cl_signals.mantis.weights import import_state, read_state
from cl_signals.series import samples
from cl_signals.series.reading import read_labelled, read_series, read_test
from cl_signals.series.sets import class_names, encode_labels, to_batch


def sample_data(out: Path, *, overwrite: bool = False) -> None:
    """Write a few real UCR/UEA sets in their original .ts format.

    Args:
        out: Folder to write to; each set gets a folder of its own.
        overwrite: Replace sets that are already there.
    """
    for folder in samples.write_samples(out, overwrite=overwrite):
        print(folder)


def synth(
    out: Path,
    *,
    preset: str = "cauker-100k",
    series: int | None = None,
    length: int = 512,
    seed: int = 0,
    workers: int = 0,
    overwrite: bool = False,
) -> None:
    """Draw a reproducible synthetic corpus with CauKer; the result does not depend on the number of workers.

    Args:
        out: Corpus to write, ending in .arrow, .npz or .npy.
        preset: cauker-3k, cauker-100k, cauker-1m, cauker-2m, kernelsynth, mean-kernelsynth or scm-only.
        series: Number of series, instead of the preset's.
        length: Points of a series.
        seed: Seed of the corpus.
        workers: Processes, 0 for one a core.
        overwrite: Replace an existing corpus.
    """
    chosen = cauker_preset(preset)
    manifest = write_corpus(
        out,
        chosen.series if series is None else series,
        settings=dataclasses.replace(chosen.settings, length=length),
        seed=seed,
        workers=workers or os.cpu_count() or 1,
        overwrite=overwrite,
        progress=True,
    )
    print(f"{manifest['series']} series of {length} points in {out}")


def pretrain(
    corpus: Path,
    out: Path,
    *,
    settings: Annotated[PretrainSettings, Flat] = PretrainSettings(),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Pre-train an encoder contrastively on unlabelled series.

    Args:
        corpus: Corpus of `synth` (.arrow, .npz, .npy, .parquet).
        out: Run folder.
        settings: Settings.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    with RunFolder.create(out, options_of(pretrain, locals()), resume=resume, overwrite=overwrite) as run:
        values = read_corpus(corpus)
        pretrain_encoder(values, settings, run=run).save(run)
        final = run.metrics()[-1]["loss"]
        run.write_results({"loss": final, "series": len(values)})
        facts = {"corpus": f"{corpus} ({len(values)} series)", "architecture": settings.preset, "final loss": final}
        pretraining_report(run, facts).write(run.report)
    print(f"final loss {final:.3f}; encoder in {out}, report in {run.report}")
    print(f"next: cl-signals mantis evaluate {out} FOLDER-OF-SETS")


def train(
    data: Path,
    out: Path,
    *,
    encoder: Path | None = None,
    settings: Annotated[ClassifierSettings, Flat] = ClassifierSettings(),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a classifier of series: a head, an adapter with a head, the whole network, or one from scratch.

    Args:
        data: Labelled set: its folder, its _TRAIN file, or a single file without test part.
        out: Run folder.
        encoder: Folder of the encoder to start from; needed by every mode but scratch.
        settings: Settings.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    with RunFolder.create(out, options_of(train, locals()), resume=resume, overwrite=overwrite) as run:
        series, test = read_labelled(data)
        classes = class_names(series)
        x, y = to_batch(series, settings.length), encode_labels(series.labels, classes, series.name)
        start = None if encoder is None else Mantis.load(encoder)
        classifier = train_classifier(x, y, classes, settings, encoder=start, run=run)
        classifier.save(run)
        results = {"train_series": len(series), "temperature": classifier.temperature}
        if test is not None and test.y is not None:
            results |= evaluate_classifier(classifier, test)
            print(f"test accuracy {results['accuracy']:.3f}, macro-F1 {results['f1_macro']:.3f}")
        run.write_results(results)
        classifier_report(run, series.name, results).write(run.report)
    print(f"classifier in {out}, report in {run.report}")
    print(f"next: cl-signals mantis predict {out} NEW-SERIES predictions.csv")


def predict(run: Path, data: Path, out: Path, *, device: str = "auto", overwrite: bool = False) -> None:
    """Classify new series with a trained classifier.

    Args:
        run: Run folder of `train`.
        data: File of series; labels in it are not looked at.
        out: CSV to write: id, label, and the probability of every class.
        device: auto, cpu or cuda.
        overwrite: Replace an existing file.
    """
    refuse_existing(out, overwrite)
    rows = SeriesClassifier.load(run, device).predict_rows(read_series(data))
    write_csv(out, rows)
    print(f"{len(rows)} predictions in {out}")


def embed(
    run: Path,
    data: Path,
    out: Path,
    *,
    readout: Annotated[Readout, Flat] = Readout(),
    fuse: tuple[Path, ...] = (),
    device: str = "auto",
    workers: int = 1,
    cluster: str | None = None,
    overwrite: bool = False,
) -> None:
    """Turn series into fixed-size vectors with a frozen encoder.

    Args:
        run: Folder of an encoder (from `pretrain` or `import-weights`).
        data: File of series.
        out: .npy file to write, one row a series, the channels side by side.
        readout: Layer, token, sizes.
        fuse: Folders of further encoders, whose embeddings are put beside the first's, each of unit norm.
        device: auto, cpu or cuda.
        workers: Processes.
        cluster: Ray cluster to work on instead, ray://HOST:PORT, or auto inside a Ray job.
        overwrite: Replace an existing file.
    """
    refuse_existing(out, overwrite)
    if out.suffix != ".npy":
        raise InputError("embeddings are written as .npy", where=out, remedy="end the name in .npy")
    z = embed_parts((run, *fuse), read_series(data), readout, device=device, workers=workers, cluster=cluster)
    with atomic_write(out) as temporary, temporary.open("wb") as file:
        np.save(file, z)
    print(f"{z.shape[0]} embeddings of {z.shape[1]} numbers in {out}")


def evaluate(
    run: Path,
    data: Path,
    *,
    probes: tuple[ProbeKind, ...] = ("rf", "logreg", "1nn"),
    readout: Annotated[Readout, Flat] = Readout(),
    fuse: tuple[Path, ...] = (),
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Scores on labelled series: of a classifier class by class, of an encoder by simple classifiers set by set.

    Args:
        run: Run folder of `train`, or folder of an encoder.
        data: For a classifier a set (its test part) or a file; for an encoder the folder of a set, or of several.
        probes: rf, logreg, knn, 1nn; these and the following belong to encoders.
        readout: Layer, token, sizes.
        fuse: Folders of further encoders, whose embeddings are put beside the first's, each of unit norm.
        seed: Seed of the probes.
        device: auto, cpu or cuda.
        out: CSV to write as well.
        overwrite: Replace an existing CSV.
        json: Print JSON instead of a table.
    """
    if out is not None:
        refuse_existing(out, overwrite)
    if is_classifier(run):
        rows = classifier_rows(evaluate_classifier(SeriesClassifier.load(run, device), read_test(data)))
    else:
        rows = evaluate_sets(load_encoders((run, *fuse), device), data, readout=readout, kinds=probes, seed=seed)
    if out is not None:
        write_csv(out, rows)
    print_rows(rows, json=json)


def import_weights(checkpoint: Path, out: Path, *, strict: bool = True, overwrite: bool = False) -> None:
    """Convert a checkpoint of the original implementation, from a local file.

    Args:
        checkpoint: .safetensors, or a torch file that holds tensors only.
        out: Folder to write the encoder to.
        strict: Refuse a file that lacks parameters or has others.
        overwrite: Replace an existing encoder.
    """
    refuse_existing(out / "model.json", overwrite)
    model, report = import_state(read_state(checkpoint), strict=strict)
    model.save(out)
    print(
        f"{report.version} encoder in {out}; "
        f"missing {report.missing or 'none'}, unexpected {report.unexpected or 'none'}"
    )


def info() -> None:
    """The papers, the claim and how to cite."""
    print(
        "Mantis: contrastively pre-trained encoders of time series for classification.\n"
        "  Mantis (V1)  V. Feofanov et al., arXiv 2502.15637, ICML 2026\n"
        "  MantisV2     V. Feofanov et al., arXiv 2602.17868\n"
        "  CauKer       S. Xie et al., arXiv 2508.02879, ICLR 2026\n"
        "Claim: an encoder pre-trained on synthetic series alone gives better frozen features than the same network\n"
        "untrained; measure it with `cl-bench claims mantis`.\n"
        "Note: the original V1 corpus holds UCR training parts, so only encoders pre-trained on synthetic series are\n"
        "strictly out of distribution on UCR. Upstream weights are not shipped; see `import-weights`."
    )


def demo(
    out: Path, *, series: int = 3000, steps: int = 150, seed: int = 0, workers: int = 0, overwrite: bool = False
) -> None:
    """Synthetic pre-training to real series in minutes, with a report.

    Draws synthetic series, pre-trains a tiny encoder on them, embeds real sets, and compares with the same network
    untrained and with the nearest neighbour on the raw series.

    Args:
        out: Run folder.
        series: Synthetic series to draw.
        steps: Training steps.
        seed: Seed of everything.
        workers: Processes that draw series, 0 for one a core.
        overwrite: Replace an old run.
    """
    with RunFolder.create(out, options_of(demo, locals()), overwrite=overwrite) as run:
        rows = run_demo(run, series=series, steps=steps, seed=seed, workers=workers)
    print_rows(rows)
    print(f"report: {run.report}")
