"""The verbs of ``cl-foundations cfa``; the same functions are the Python interface."""

import dataclasses
import json as json_format
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.evaluation import fit_probe
from contrastive_core.files import atomic_write, write_json
from contrastive_core.report import Report
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
from cyclopts import Parameter

from cl_foundations.cfa import samples as sample_images
from cl_foundations.cfa.data import ImageSet, OnCorrupt, Split, has_parts, read_images, read_parts
from cl_foundations.cfa.evaluate import PROTOCOLS, Protocol, corruption_table, evaluate_embeddings, robustness
from cl_foundations.cfa.figures import factor_grid, severity_curves
from cl_foundations.cfa.inference import SCORES, embed
from cl_foundations.cfa.interpret import top_images
from cl_foundations.cfa.model import FactorModel, ModelConfig, load_model, save_model
from cl_foundations.cfa.posterior import GammaPrior
from cl_foundations.cfa.reports import (
    add_factors,
    add_histograms,
    add_reliability,
    add_separation,
    detections,
    factor_rows,
    factor_title,
    training_report,
)
from cl_foundations.cfa.system import FactorSystem, ObjectiveSettings, OptimSettings
from cl_foundations.cfa.tables import as_tables, as_text, finite, write_csv
from cl_foundations.cfa.views import ViewSettings

Flat = Parameter(name="*")


def sample_data(out: Path, *, overwrite: bool = False) -> None:
    """Write real digits, sorted into classes and parts, and crops of photographs, unsorted.

    Args:
        out: Folder to write to; each set gets a folder of its own.
        overwrite: Replace sets that are already there.
    """
    for folder in sample_images.write_samples(out, overwrite=overwrite):
        print(folder)


def train_model(
    data: Path,
    out: Path,
    *,
    model: Annotated[ModelConfig, Flat] = ModelConfig(),
    weights: str | None = None,
    batch_size: int = 256,
    objective: Annotated[ObjectiveSettings, Flat] = ObjectiveSettings(),
    optim: OptimSettings = OptimSettings(),
    views: ViewSettings = ViewSettings(),
    train: Annotated[TrainSettings, Flat] = TrainSettings(),
    on_corrupt: OnCorrupt = "refuse",
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train CFA, CNFA, SimCLR or NCL on images; labels are not looked at, but for --supervised and the report.

    Args:
        data: Folder, .zip, .npz or CIFAR folder of images; its training part, if it has parts.
        out: Run folder.
        model: Network and kind of embedding.
        weights: Weights the backbone starts from: a local file, or `hub` for those timm or torchvision would download.
        batch_size: Images in a batch; the others of a batch are an image's negatives.
        objective: Objective.
        optim: Optimiser.
        views: Augmentation.
        train: Length of the run and hardware.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        workers: Processes that read images, for sets too large for memory.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    if batch_size < 2:
        raise InputError("a batch holds at least two images", where="--batch-size", why=f"got {batch_size}")
    if objective.supervised and model.likelihood != "infonce":
        raise InputError(
            "classes as positives need the likelihood infonce",
            where="--supervised, --likelihood",
            why=f"got {model.likelihood}",
        )
    parts = has_parts(data)
    # Views are cut from images somewhat larger than the network's input, where that is not tiny.
    side = model.image_size if model.image_size <= 64 else round(model.image_size * 8 / 7)
    images = read_images(data, side, split="train" if parts else "all", on_corrupt=on_corrupt)
    if len(images) < 2:
        raise InputError("contrastive training needs at least two images", where=data, why=f"found {len(images)}")
    if objective.supervised:
        images.labelled("training with classes as positives")
    # Read before training, so that a test image that cannot be read is not found out after it.
    test = read_images(data, model.image_size, split="test", on_corrupt=on_corrupt) if parts else None
    config: dict[str, Any] = {
        "command": "train",
        "data": str(data),
        **dataclasses.asdict(model),
        "weights": weights,
        "batch_size": batch_size,
        **dataclasses.asdict(objective),
        "optim": dataclasses.asdict(optim),
        "views": dataclasses.asdict(views),
        **dataclasses.asdict(train),
    }
    torch.manual_seed(train.seed)
    network = FactorModel(model, weights=weights)
    with RunFolder.create(out, config, overwrite=overwrite, resume=resume) as run:
        network = train_factors(
            network,
            images,
            run=run,
            batch_size=batch_size,
            objective=objective,
            optim=optim,
            views=views,
            train=train,
            workers=workers,
        )
        save_model(network, run)
        if side != model.image_size:
            images = read_images(data, model.image_size, split="train" if parts else "all", on_corrupt=on_corrupt)
        results = training_report(run, network, images, test, prior=objective.prior, seed=train.seed)
        run.write_results(results)
    print(f"model in {out}, report in {out / 'report.html'}")


def train_factors(
    model: FactorModel,
    images: ImageSet,
    *,
    run: RunFolder,
    batch_size: int,
    objective: ObjectiveSettings,
    optim: OptimSettings,
    views: ViewSettings,
    train: TrainSettings,
    workers: int = 0,
) -> FactorModel:
    """Train a model in place.

    Args:
        model: The model.
        images: At least two images.
        run: Where logs and checkpoints go.
        batch_size: Images in a batch, at most all.
        objective: Objective.
        optim: Optimiser.
        views: Augmentation.
        train: Length of the run, seed, hardware.
        workers: Loader processes.

    Returns:
        The model on the CPU, in eval mode.
    """
    size = min(batch_size, len(images))
    loader = batches(images.training_set(), size, seed=train.seed, workers=workers)
    total = train.total_steps(max(1, len(images) // size))
    system = FactorSystem(
        model, objective=objective, optim=optim, views=views, batch_size=size, total_steps=total, seed=train.seed
    )
    fit(system, loader, run=run, settings=train)
    return model.cpu().eval()


def embed_images(
    run: Path,
    data: Path,
    out: Path,
    *,
    split: Split = "all",
    draws: int = 8,
    seed: int = 0,
    on_corrupt: OnCorrupt = "refuse",
    overwrite: bool = False,
) -> None:
    """Backbone features, means and variances of the factors, and uncertainties of images.

    Args:
        run: Run folder of `train`.
        data: Images.
        out: .npz to write: feats, mean, var, one array an uncertainty score (entropy, cv, var_dir, kl, norm), paths,
            and labels and classes where the images have any.
        split: Part of the images: all, train or test.
        draws: Posterior draws of the score var_dir.
        seed: Seed of the draws.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        overwrite: Replace an existing file.
    """
    _refuse_existing(out, overwrite)
    if out.suffix != ".npz":
        raise InputError("embeddings are written as .npz", where=out, remedy="end the name in .npz")
    _at_least(1, draws, "--draws")
    _at_least(0, seed, "--seed")
    model = load_model(run)
    images = read_images(data, model.config.image_size, split=split, on_corrupt=on_corrupt)
    found = embed(model, images, prior=_prior(run), draws=draws, seed=seed)
    arrays: dict[str, Any] = {"feats": found.features, "mean": found.mean, "var": found.variance, **found.scores}
    arrays["paths"] = np.array(found.ids)
    if found.labels is not None:
        arrays |= {"labels": found.labels, "classes": np.array(found.classes)}
    _note_uninformative(model)
    with atomic_write(out) as temporary:
        np.savez(temporary, **arrays)
    print(f"{len(images)} embeddings of {found.mean.shape[1]} factors in {out}")


def evaluate(
    run: Path,
    data: Path,
    *,
    protocols: tuple[Protocol, ...] = PROTOCOLS,
    ood: tuple[Path, ...] = (),
    corruptions: bool = False,
    seed: int = 0,
    on_corrupt: OnCorrupt = "refuse",
    out: Path | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> None:
    """Probes, retrieval, factor metrics, calibration and uncertainty on labelled images.

    Results are given for the features before the head and for the factors behind it.

    Args:
        run: Run folder of `train`.
        data: Labelled images; without train and test folders, a fifth of every class is drawn for the test.
        protocols: knn, linear, retrieval, factors, selection, uncertainty.
        ood: Images out of the distribution, for AUROC and FPR95 of the uncertainties; may be given several times.
        corruptions: Also judge the probes, fitted on clean images, on the test images under noise, blur, contrast,
            pixelate and jpeg in five severities each.
        seed: Seed of probes and draws.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        out: Folder for evaluation.json and report.html.
        json: Print JSON instead of tables.
        overwrite: Replace old results in that folder.
    """
    _at_least(0, seed, "--seed")
    _refuse_filled(out, overwrite)
    model, prior = load_model(run), _prior(run)
    side = model.config.image_size
    train, test = read_parts(data, side, seed=seed, on_corrupt=on_corrupt)
    train.labelled("evaluation")
    test.labelled("evaluation")
    others = {name: read_images(path, side, on_corrupt=on_corrupt) for name, path in _named(ood).items()}
    fitted, judged = (embed(model, part, prior=prior, seed=seed) for part in (train, test))
    results: dict[str, Any] = {"train_images": len(train), "test_images": len(test)}
    results |= evaluate_embeddings(fitted, judged, protocols=protocols, seed=seed)
    outside = {name: embed(model, images, prior=prior, seed=seed) for name, images in others.items()}
    if outside:
        results["ood"] = detections(judged, outside)
    if corruptions:
        results["robustness"] = robustness(model, fitted, judged, test, seed=seed)
    _note_uninformative(model, of_interest="uncertainty" in protocols or bool(outside))
    if out is not None:
        report = Report(f"Evaluation of {run}")
        report.facts({"model": _describe(model), "data": data, "images": f"{len(train)} train, {len(test)} test"})
        for title, rows in as_tables(results):
            report.table(title, list(rows[0]), [list(row.values()) for row in rows])
        add_factors(report, judged, test)
        add_reliability(report, fitted, judged)
        if outside and "entropy" in judged.scores:
            add_histograms(report, judged, outside)
        write_json(out / "evaluation.json", results)
        report.write(out / "report.html")
    print(json_format.dumps(finite(results), indent=2) if json else as_text(as_tables(results)))


def factors(
    run: Path,
    data: Path,
    out: Path,
    *,
    top: int = 16,
    shown: int = 24,
    between: tuple[str, str] | None = None,
    split: Split = "all",
    on_corrupt: OnCorrupt = "refuse",
    overwrite: bool = False,
) -> None:
    """What the factors stand for: the images with the largest value of each, and which factors separate two classes.

    Args:
        run: Run folder of `train`.
        data: Images; with labels, factors are also given their most frequent class and its share.
        out: Folder to write to: report.html, factors.png, factors.csv, and separation.csv with --between.
        top: Images shown a factor.
        shown: Factors shown, those of the largest purity (or activation, without labels) first.
        between: Two classes by name; ranks the factors by how well each alone separates them.
        split: Part of the images: all, train or test.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        overwrite: Replace old results.
    """
    _at_least(1, top, "--top")
    _at_least(1, shown, "--shown")
    _refuse_filled(out, overwrite)
    model = load_model(run)
    images = read_images(data, model.config.image_size, split=split, on_corrupt=on_corrupt)
    pair = None if between is None else _class_indices(images, between)
    found = embed(model, images, prior=_prior(run))
    rows = factor_rows(found, top)
    order = sorted(rows, key=lambda row: (-row.get("purity", 0.0), row["rank"]))[:shown]
    best = top_images(found.mean, top)
    figure = factor_grid([(factor_title(row), images.images(best[row["factor"]].tolist())) for row in order])
    report = Report("Factors")
    report.facts({"model": _describe(model), "images": f"{data} ({len(images)})", "factors": found.mean.shape[1]})
    report.figure(
        "Images with the largest value of each factor",
        figure,
        "Largest value on the left. With labels: most frequent class among them and its share.",
    )
    report.table("Factors", list(order[0]), [list(row.values()) for row in order])
    if pair is not None:
        assert between is not None
        separation = add_separation(report, found, images, pair, between)
        write_csv(out / "separation.csv", separation)
    write_csv(out / "factors.csv", rows)
    with atomic_write(out / "factors.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    report.write(out / "report.html")
    print(f"{len(rows)} factors in {out / 'factors.csv'}, pictures in {out / 'report.html'}")


def ood(
    run: Path,
    data: Path,
    *others: Path,
    corruptions: bool = False,
    split: Split | None = None,
    draws: int = 8,
    seed: int = 0,
    force: bool = False,
    on_corrupt: OnCorrupt = "refuse",
    out: Path | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> None:
    """Uncertainty scores in- against out-of-distribution, side by side: AUROC, average precision and FPR95.

    Args:
        run: Run folder of `train`.
        data: Images of the distribution that was trained on; their test part, if they have parts.
        others: Sets of other images.
        corruptions: Also corrupt the images themselves: noise, blur, contrast, pixelate and jpeg, five severities each.
        split: Part of the images of the distribution: all, train or test.
        draws: Posterior draws of the score var_dir.
        seed: Seed of draws and noise.
        force: Score a spectral Gaussian model all the same; its variances do not depend on the image.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        out: Folder for ood.json and report.html.
        json: Print JSON instead of tables.
        overwrite: Replace old results in that folder.
    """
    if not others and not corruptions:
        raise InputError("there is nothing to compare with", remedy="name other images, or pass --corruptions")
    _at_least(1, draws, "--draws")
    _at_least(0, seed, "--seed")
    _refuse_filled(out, overwrite)
    model, prior = load_model(run), _prior(run)
    refuse_uninformative(model, run, force=force)
    side = model.config.image_size
    chosen: Split = split or ("test" if has_parts(data) else "all")
    inside = read_images(data, side, split=chosen, on_corrupt=on_corrupt)
    sets = {name: read_images(path, side, on_corrupt=on_corrupt) for name, path in _named(others).items()}
    known = embed(model, inside, prior=prior, draws=draws, seed=seed)
    outside = {name: embed(model, each, prior=prior, draws=draws, seed=seed) for name, each in sets.items()}
    results: dict[str, Any] = {"images": len(inside), "ood": detections(known, outside)}
    if corruptions:
        rows, trends = corruption_table(model, inside, prior=prior, draws=draws, seed=seed)
        results |= {"corruptions": rows, "spearman_with_severity": trends}
    if out is not None:
        report = Report(f"In- and out-of-distribution: {run}")
        report.facts({"model": _describe(model), "in distribution": f"{data} ({len(inside)})"})
        report.table(
            "Scores", ["score", "what it is"], [[name, SCORES[name]] for name in SCORES if name in known.scores]
        )
        for title, table in as_tables(results):
            report.table(title, list(table[0]), [list(row.values()) for row in table])
        if outside:
            add_histograms(report, known, outside)
        if corruptions:
            report.figure("Corruptions", severity_curves(results["corruptions"], list(known.scores)))
        write_json(out / "ood.json", results)
        report.write(out / "report.html")
    print(json_format.dumps(finite(results), indent=2) if json else as_text(as_tables(results)))


def predict(
    run: Path,
    images: Path,
    out: Path,
    *,
    labelled: Path,
    split: Split = "all",
    seed: int = 0,
    on_corrupt: OnCorrupt = "refuse",
    overwrite: bool = False,
) -> None:
    """Classify images by a linear probe on the features, with the uncertainties of their factors.

    Args:
        run: Run folder of `train`.
        images: Images to classify; labels are not looked at.
        out: CSV to write: path, class, probability, and one column an uncertainty score.
        labelled: Labelled images the probe is fitted on; their training part, if they have parts.
        split: Part of the images to classify: all, train or test.
        seed: Seed of probe and draws.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        overwrite: Replace an existing file.
    """
    _at_least(0, seed, "--seed")
    _refuse_existing(out, overwrite)
    model, prior = load_model(run), _prior(run)
    side = model.config.image_size
    known = read_images(labelled, side, split="train" if has_parts(labelled) else "all", on_corrupt=on_corrupt)
    y = known.labelled("fitting a probe")
    found = embed(model, read_images(images, side, split=split, on_corrupt=on_corrupt), prior=prior, seed=seed)
    probe = fit_probe(embed(model, known, prior=prior, seed=seed).features, y, kind="logreg", seed=seed)
    probabilities = probe.predict_proba(found.features)
    best = probabilities.argmax(1)
    _note_uninformative(model)
    write_csv(
        out,
        [
            {
                "path": name,
                "class": known.classes[int(probe.classes_[best[i]])],
                "probability": f"{probabilities[i, best[i]]:.6f}",
                **{score: f"{values[i]:.6g}" for score, values in found.scores.items()},
            }
            for i, name in enumerate(found.ids)
        ],
    )
    print(f"{len(found.ids)} predictions in {out}")


def info() -> None:
    """The paper, the claim and how to cite."""
    print(
        "CFA and CNFA: contrastive learning as Bayesian (non-negative) factor analysis.\n"
        "  Z. Duan, T. Wen, Y. Wang, C. Zhu, B. Chen, M. Zhou, Beyond Spectral Decomposition: Bayesian Contrastive\n"
        "  Learning and its Non-negative Formulation via Factor Analysis, arXiv 2407.21740\n"
        "Claim: an embedding that is a distribution keeps the accuracy of SimCLR, tells how certain it is, and in its\n"
        "non-negative form has factors that can be read. Measure it with `cl-bench claims cfa`.\n"
        "Note: the objective is a reconstruction from the paper's abstract and the works it builds on; see the README."
    )


def refuse_uninformative(model: FactorModel, where: object, *, force: bool) -> None:
    """Refuse uncertainties of a model whose variances do not depend on the image.

    Raises:
        InputError: A normal posterior trained with a spectral likelihood, and not ``force``.
    """
    if model.config.uninformative and not force:
        raise InputError(
            "the uncertainties of this model say nothing about single images",
            where=where,
            why="under a spectral likelihood the best variance of a normal factor is the same for every image",
            remedy="train with --likelihood infonce, or pass --force",
        )


def _note_uninformative(model: FactorModel, *, of_interest: bool = True) -> None:
    if model.config.uninformative and of_interest:
        warnings.warn(
            "under a spectral likelihood the best variance of a normal factor is the same for every image: the "
            "uncertainties say nothing about single images",
            ContrastiveWarning,
            stacklevel=3,
        )


def _prior(run: Path) -> GammaPrior:
    config = RunFolder.open(run).config()
    return GammaPrior(float(config.get("prior_shape", 1.0)), float(config.get("prior_rate", 1.0)))


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Sets by the last part of their path, or by the whole path where several sets end alike."""
    names = [path.resolve().name for path in paths]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, paths, strict=True)}


def _describe(model: FactorModel) -> str:
    config = model.config
    return f"{config.method}, {config.likelihood}, {config.backbone}, {config.factors} factors"


def _class_indices(images: ImageSet, names: tuple[str, str]) -> tuple[int, int]:
    images.labelled("separating two classes")
    for name in names:
        if name not in images.classes:
            raise InputError(
                "there is no such class",
                where="--between",
                why=f"got {name}",
                remedy=f"two of {', '.join(images.classes[:20])}",
            )
    if names[0] == names[1]:
        raise InputError("two different classes are needed", where="--between", why=f"got {names[0]} twice")
    first, second = (images.classes.index(name) for name in names)
    assert images.labels is not None
    for name, index in zip(names, (first, second), strict=True):
        if not (images.labels == index).any():
            raise InputError("the class has no image in this part", where="--between", why=f"got {name}")
    return first, second


def _at_least(least: int, value: int, option: str) -> None:
    if value < least:
        raise InputError(f"the option is at least {least}", where=option, why=f"got {value}")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError("the output exists already", where=path, remedy="name another file, or pass --overwrite")


def _refuse_filled(folder: Path | None, overwrite: bool) -> None:
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise InputError("the output is not a folder", where=folder, remedy="name another folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise InputError("the folder holds files already", where=folder, remedy="name another, or pass --overwrite")
