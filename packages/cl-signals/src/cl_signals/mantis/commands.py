"""The verbs of ``cl-signals mantis``; the same functions are the Python interface."""

import csv
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.evaluation import ProbeKind
from contrastive_core.files import atomic_write
from contrastive_core.report import Report, scatter
from contrastive_core.training import RunFolder, TrainSettings
from cyclopts import Parameter

from cl_signals.mantis import samples
from cl_signals.mantis.classifier import Classifier, FineTuneSettings, train_classifier
from cl_signals.mantis.data import class_names, encode_labels, find_sets, read_series, read_split, to_batch
from cl_signals.mantis.embed import resize
from cl_signals.mantis.frozen import Readout, embed_fused, embed_set, euclidean_1nn, frozen_probes, pretrain_encoder
from cl_signals.mantis.model import Mantis, MantisConfig, Preset, load_model, save_model
from cl_signals.mantis.synthetic import generate, read_corpus, write_corpus
from cl_signals.mantis.synthetic import preset as cauker_preset
from cl_signals.mantis.system import OptimSettings, ViewSettings
from cl_signals.mantis.weights import import_state, read_state

Flat = Parameter(name="*")


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
    preset: Preset = "v2",
    batch_size: int = 512,
    optim: OptimSettings = OptimSettings(),
    views: ViewSettings = ViewSettings(),
    train: Annotated[TrainSettings, Flat] = TrainSettings(),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Pre-train an encoder contrastively on unlabelled series.

    Args:
        corpus: Corpus of `synth` (.arrow, .npz, .npy, .parquet).
        out: Run folder.
        preset: Architecture: v1, v2 or tiny.
        batch_size: Series in a batch.
        optim: Optimiser.
        views: Augmentation and temperature.
        train: Length of the run and hardware.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    values = read_corpus(corpus)
    config = MantisConfig.preset(preset)
    if len(values) < 2:
        raise InputError("contrastive pre-training needs at least two series", where=corpus, why=f"found {len(values)}")
    if values.shape[1] != config.seq_len:
        values = resize(torch.from_numpy(values)[:, None], config.seq_len)[:, 0].numpy()
    settings: dict[str, Any] = {
        "command": "pretrain",
        "corpus": str(corpus),
        "preset": preset,
        "batch_size": batch_size,
        "optim": dataclasses.asdict(optim),
        "views": dataclasses.asdict(views),
        **dataclasses.asdict(train),
    }
    with RunFolder.create(out, settings, overwrite=overwrite, resume=resume) as run:
        torch.manual_seed(train.seed)
        model = pretrain_encoder(
            Mantis(config), values, run=run, batch_size=batch_size, optim=optim, views=views, train=train
        )
        run.save_model(model.state_dict(), {"kind": "mantis-encoder", "config": config.to_dict()})
        rows = [row for row in run.metrics() if "loss" in row]
        final = rows[-1]["loss"] if rows else None
        run.write_results({"loss": final, "series": len(values)})
        report = Report("Mantis pre-training")
        report.facts({"corpus": f"{corpus} ({len(values)} series)", "architecture": preset, "final loss": final})
        report.curve(
            "Loss", {"loss": ([row["step"] for row in rows], [row["loss"] for row in rows])}, "step", "InfoNCE"
        )
        report.write(run.path / "report.html")
    print(f"encoder in {out}, report in {out / 'report.html'}")


def embed_series(
    data: Path,
    model: Path,
    out: Path,
    *,
    readout: Annotated[Readout, Flat] = Readout(),
    fuse: tuple[Path, ...] = (),
    overwrite: bool = False,
) -> None:
    """Turn series into fixed-size vectors with a frozen encoder.

    Args:
        data: File of series.
        model: Folder of an encoder (from `pretrain` or `import-weights`).
        out: .npy file to write, one row a series, the channels side by side.
        readout: Layer, token, sizes.
        fuse: Folders of further encoders, whose embeddings are put beside the first's, each of unit norm.
        overwrite: Replace an existing file.
    """
    _refuse_existing(out, overwrite)
    if out.suffix != ".npy":
        raise InputError("embeddings are written as .npy", where=out, remedy="end the name in .npy")
    z = embed_fused([load_model(folder) for folder in (model, *fuse)], read_series(data), readout)
    with atomic_write(out) as temporary, temporary.open("wb") as file:
        np.save(file, z)
    print(f"{z.shape[0]} embeddings of {z.shape[1]} numbers in {out}")


def fit_classifier(
    data: Path,
    out: Path,
    *,
    model: Path | None = None,
    preset: Preset = "v2",
    settings: Annotated[FineTuneSettings, Flat] = FineTuneSettings(),
    optim: OptimSettings = OptimSettings(lr=2e-4),
    train: Annotated[TrainSettings, Flat] = TrainSettings(epochs=500),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a classifier of series: a head, an adapter with a head, the whole network, or one from scratch.

    Args:
        data: Labelled set: its folder, its _TRAIN file, or a single file without test part.
        out: Run folder.
        model: Folder of the encoder to start from; needed by every mode but scratch.
        preset: Architecture of mode scratch.
        settings: Mode, adapter, readout.
        optim: Optimiser.
        train: Length of the run and hardware.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    if model is None and settings.mode != "scratch":
        raise InputError(
            f"mode {settings.mode} starts from an encoder",
            where="--model",
            remedy="name the folder of an encoder, or use --mode scratch",
        )
    series, test = (read_series(data), None) if data.is_file() and "_TRAIN" not in data.name else read_split(data)
    classes = class_names(series)
    assert series.y is not None
    y = encode_labels(series.y, classes, series.name)
    encoder = Mantis(MantisConfig.preset(preset)) if model is None else load_model(model)
    config: dict[str, Any] = {
        "command": "fit",
        "data": str(data),
        "model": None if model is None else str(model),
        "preset": preset,
        "optim": dataclasses.asdict(optim),
        **dataclasses.asdict(settings),
        **dataclasses.asdict(train),
    }
    with RunFolder.create(out, config, overwrite=overwrite, resume=resume) as run:
        classifier = train_classifier(
            encoder, to_batch(series, settings.length), y, classes, run=run, settings=settings, optim=optim, train=train
        )
        results: dict[str, Any] = {"classes": classes, "train_series": len(series)}
        if test is not None and test.y is not None:
            predicted = classifier.predict_proba(to_batch(test, settings.length)).argmax(1)
            hits = [classes[index] == label for index, label in zip(predicted.tolist(), test.y, strict=True)]
            results["test_accuracy"] = float(np.mean(hits))
        classifier.save(run)
        run.write_results(results)
        rows = [row for row in run.metrics() if "loss" in row]
        report = Report(f"Mantis classifier of {series.name}")
        report.facts({**{name: value for name, value in results.items() if name != "classes"}, "classes": len(classes)})
        report.curve(
            "Loss", {"loss": ([row["step"] for row in rows], [row["loss"] for row in rows])}, "step", "cross-entropy"
        )
        report.write(run.path / "report.html")
    if "test_accuracy" in results:
        print(f"test accuracy {results['test_accuracy']:.3f}")
    print(f"classifier in {out}, report in {out / 'report.html'}")


def predict(model: Path, data: Path, out: Path, *, overwrite: bool = False) -> None:
    """Classify new series with a trained classifier.

    Args:
        model: Run folder of `fit`.
        data: File of series; labels in it are not looked at.
        out: CSV to write: id, label, and the probability of every class.
        overwrite: Replace an existing file.
    """
    _refuse_existing(out, overwrite)
    classifier, series = Classifier.load(model), read_series(data)
    probabilities = classifier.predict_proba(to_batch(series, classifier.settings.length))
    with atomic_write(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", *(f"prob_{name}" for name in classifier.classes)])
        for name, row in zip(series.ids, probabilities, strict=True):
            writer.writerow([name, classifier.classes[int(row.argmax())], *(f"{value:.6f}" for value in row)])
    print(f"{len(series)} predictions in {out}")


def evaluate(
    data: Path,
    model: Path,
    *,
    probes: tuple[ProbeKind, ...] = ("rf", "logreg", "1nn"),
    readout: Annotated[Readout, Flat] = Readout(),
    fuse: tuple[Path, ...] = (),
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Accuracy, F1 and calibration of simple classifiers on frozen embeddings, set by set.

    Args:
        data: Folder of a set, or of several.
        model: Folder of an encoder.
        probes: rf, logreg, knn, 1nn.
        readout: Layer, token, sizes.
        fuse: Folders of further encoders, whose embeddings are put beside the first's, each of unit norm.
        seed: Seed of the probes.
        out: CSV to write as well; a Markdown table goes beside it.
        json: Print JSON instead of a table.
    """
    encoders = [load_model(folder) for folder in (model, *fuse)]
    rows = []
    for folder in find_sets(data):
        train, test = read_split(folder)
        for kind, result in frozen_probes(encoders, train, test, readout=readout, kinds=probes, seed=seed).items():
            rows.append(
                {
                    "set": train.name,
                    "probe": kind,
                    "accuracy": result.accuracy,
                    "f1_macro": result.f1_macro,
                    "ece": result.ece,
                }
            )
    table = _markdown(rows)
    if out is not None:
        with atomic_write(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        with atomic_write(out.with_suffix(".md")) as temporary:
            temporary.write_text(table + "\n", encoding="utf-8")
    print(_json(rows) if json else table)


def import_weights(checkpoint: Path, out: Path, *, strict: bool = True, overwrite: bool = False) -> None:
    """Convert a checkpoint of the original implementation, from a local file.

    Args:
        checkpoint: .safetensors, or a torch file that holds tensors only.
        out: Folder to write the encoder to.
        strict: Refuse a file that lacks parameters or has others.
        overwrite: Replace an existing encoder.
    """
    _refuse_existing(out / "model.json", overwrite)
    model, report = import_state(read_state(checkpoint), strict=strict)
    save_model(model, out)
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
    sets = {name: samples.benchmark_sets()[0].get(name) for name in samples.SAMPLES}
    if None in sets.values():
        raise InputError("the sample data are not installed", remedy="pip install 'cl-signals[samples]'")
    config = {"command": "demo", "series": series, "steps": steps, "seed": seed}
    started = time.perf_counter()
    with RunFolder.create(out, config, overwrite=overwrite) as run:
        print(f"drawing {series} synthetic series ...")
        corpus = generate(series, seed=seed, workers=workers or os.cpu_count() or 1)
        print(f"pre-training a tiny encoder for {steps} steps ...")
        torch.manual_seed(seed)
        encoder = Mantis(MantisConfig.preset("tiny"))
        untrained = Mantis(encoder.config)
        untrained.load_state_dict(encoder.state_dict())
        pretrain_encoder(
            encoder,
            corpus,
            run=run,
            batch_size=128,
            optim=OptimSettings(),
            views=ViewSettings(),
            train=TrainSettings(steps=steps, seed=seed, log_every=5),
        )
        run.save_model(encoder.state_dict(), {"kind": "mantis-encoder", "config": encoder.config.to_dict()})
        print("embedding real series ...")
        columns = ("set", "pre-trained, RF", "untrained, RF", "pre-trained, 1-NN", "untrained, 1-NN", "raw 1-NN")
        kinds: tuple[ProbeKind, ...] = ("rf", "1nn")
        rows: list[list[Any]] = []
        for name, parts in sets.items():
            assert parts is not None
            ours, theirs = (
                frozen_probes(model, *parts, readout=Readout(), kinds=kinds, seed=seed)
                for model in (encoder, untrained)
            )
            accuracies = [each[kind].accuracy for kind in kinds for each in (ours, theirs)]
            rows.append([name, *accuracies, euclidean_1nn(*parts)])
        rows.append(["mean", *np.mean([row[1:] for row in rows], 0).tolist()])
        run.write_results({"columns": columns, "rows": rows})
        seconds = time.perf_counter() - started
        report = _demo_report(run, columns, rows, config | {"seconds": round(seconds)}, encoder, untrained, sets)
    print(_markdown([dict(zip(columns, row, strict=True)) for row in rows]))
    print(f"{seconds:.0f} s; report: {report}")


def _demo_report(
    run: RunFolder, columns: Any, rows: Any, facts: dict[str, Any], encoder: Mantis, untrained: Mantis, sets: Any
) -> Path:
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    report = Report("Mantis: synthetic pre-training, real series")
    report.facts(facts)
    report.table(
        "Test accuracy",
        columns,
        rows,
        best=[1, 2, 3, 4, 5],
        note="Official splits, one seed. RF: random forest of 200 trees on frozen embeddings; 1-NN: cosine on "
        "standardised embeddings; raw 1-NN: Euclidean on z-scored series. The highest of a row is marked.",
    )
    logged = [row for row in run.metrics() if "loss" in row]
    steps, losses = ([row[name] for row in logged] for name in ("step", "loss"))
    report.curve("Pre-training loss", {"InfoNCE": (steps, losses)}, "step", "InfoNCE")
    test = sets["JapaneseVowels"][1]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (name, model) in zip(
        figure.subplots(1, 2), {"pre-trained": encoder, "untrained": untrained}.items(), strict=True
    ):
        z = StandardScaler().fit_transform(embed_set(model, test, Readout()))
        scatter(axes, PCA(2, random_state=0).fit_transform(z), test.y, name)
    report.figure(
        "JapaneseVowels, test part", figure, "First two principal components of the embeddings, coloured by speaker."
    )
    return report.write(run.path / "report.html")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError("the output exists already", where=path, remedy="name another file, or pass --overwrite")


def _markdown(rows: list[dict[str, Any]]) -> str:
    columns = list(rows[0])
    cells = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    widths = [max(len(column), *(len(row[index]) for row in cells)) for index, column in enumerate(columns)]
    lines = [columns, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)
