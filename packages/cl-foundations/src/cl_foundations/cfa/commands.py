"""The verbs of ``cl-foundations cfa``."""

import warnings
from pathlib import Path
from typing import Annotated, Any

from contrastive_core.cli import Flat, options_of
from contrastive_core.errors import ContrastiveWarning, InputError, require
from contrastive_core.files import atomic_write, json_text, refuse_existing, refuse_filled, write_csv, write_json
from contrastive_core.tables import text_table
from contrastive_core.training import RunFolder

from cl_foundations.cfa.data import class_pair, read_others, read_training, training_part
from cl_foundations.cfa.evaluation import PROTOCOLS, Protocol, evaluate_training
from cl_foundations.cfa.evaluation import evaluate as evaluate_encoder
from cl_foundations.cfa.factors import FactorTable
from cl_foundations.cfa.inference import EmbedSettings, FactorEncoder
from cl_foundations.cfa.model import ModelConfig
from cl_foundations.cfa.report import (
    evaluation_report,
    factor_report,
    outside_report,
    shown_factors,
    tables,
    training_report,
)
from cl_foundations.cfa.robustness import corruption_table
from cl_foundations.cfa.system import Settings
from cl_foundations.cfa.training import train_factors
from cl_foundations.cfa.uncertainty import UNINFORMATIVE, detections, refuse_uninformative
from cl_foundations.images.reading import OnCorrupt, has_parts, read_images, read_parts
from cl_foundations.images.samples import write_samples
from cl_foundations.images.sets import Split


def sample_data(out: Path, *, overwrite: bool = False) -> None:
    """Write real digits, sorted into classes and parts, and crops of photographs, unsorted.

    Args:
        out: Folder to write to; each set gets a folder of its own.
        overwrite: Replace sets that are already there.
    """
    for folder in write_samples(out, overwrite=overwrite):
        print(folder)


def train(
    data: Path,
    out: Path,
    *,
    settings: Annotated[Settings, Flat] = Settings(),
    on_corrupt: OnCorrupt = "refuse",
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train CFA, CNFA, SimCLR or NCL on images; labels are not looked at, but for --supervised and the report.

    Args:
        data: Folder, .zip, .npz or CIFAR folder of images; its training part, if it has parts.
        out: Run folder.
        settings: Settings.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    with RunFolder.create(out, options_of(train, locals()), resume=resume, overwrite=overwrite) as run:
        images, test = read_training(data, settings, on_corrupt=on_corrupt)
        encoder = train_factors(images, settings, run=run)
        encoder.save(run)
        result = evaluate_training(encoder, images, test, seed=settings.training.seed)
        run.write_results(result.scores)
        training_report(run, settings.model, result).write(run.report)
    print(f"model in {out}, report in {run.report}")


def embed(
    run: Path,
    data: Path,
    out: Path,
    *,
    split: Split = "all",
    settings: Annotated[EmbedSettings, Flat] = EmbedSettings(),
    device: str = "auto",
    on_corrupt: OnCorrupt = "refuse",
    overwrite: bool = False,
) -> None:
    """Backbone features, means and variances of the factors, and uncertainties of images.

    Args:
        run: Run folder of `train`.
        data: Images.
        out: .npz to write: feats, mean, var, one array an uncertainty score (entropy, cv, var_dir, kl, norm), paths,
            and labels and classes where the images have any.
        split: Part of the images: all, train, val or test.
        settings: How images are embedded.
        device: Where the network runs: auto, cpu, cuda.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        overwrite: Replace an existing file.
    """
    refuse_existing(out, overwrite)
    if out.suffix != ".npz":
        raise InputError("embeddings are written as .npz", where=out, remedy="end the name in .npz")
    encoder = FactorEncoder.load(run, device=device)
    images = read_images(data, encoder.config.image_size, split=split, on_corrupt=on_corrupt)
    embeddings = encoder.embed(images, settings)
    _note_uninformative(encoder.config)
    with atomic_write(out) as temporary:
        embeddings.save(temporary)
    print(f"{len(images)} embeddings of {embeddings.mean.shape[1]} factors in {out}")


def evaluate(
    run: Path,
    data: Path,
    *,
    protocols: tuple[Protocol, ...] = PROTOCOLS,
    ood: tuple[Path, ...] = (),
    corruptions: bool = False,
    split_seed: int = 0,
    settings: Annotated[EmbedSettings, Flat] = EmbedSettings(),
    device: str = "auto",
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
        corruptions: Also apply the probes, fitted on clean images, to the test images under noise, blur, contrast,
            pixelate and jpeg in five severities each.
        split_seed: Seed of the draw of the test images, where they are no part.
        settings: How images are embedded.
        device: Where the network runs: auto, cpu, cuda.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        out: Folder for evaluation.json and report.html.
        json: Print JSON instead of tables.
        overwrite: Replace old results in that folder.
    """
    require(0 <= split_seed < 2**32, "--split-seed", split_seed, f"a whole number from 0 to {2**32 - 1}")
    refuse_filled(out, overwrite)
    encoder = FactorEncoder.load(run, device=device)
    side = encoder.config.image_size
    known, test = read_parts(data, side, seed=split_seed, on_corrupt=on_corrupt)
    outside = read_others(ood, side, on_corrupt=on_corrupt)
    result = evaluate_encoder(
        encoder, known, test, settings, protocols=protocols, outside=outside, corruptions=corruptions
    )
    if "uncertainty" in protocols or outside:
        _note_uninformative(encoder.config)
    if out is not None:
        write_json(out / "evaluation.json", result.scores)
        evaluation_report(run, data, encoder.config, result).write(out / "report.html")
    _print(result.scores, json)


def factors(
    run: Path,
    data: Path,
    out: Path,
    *,
    top: int = 16,
    shown: int = 24,
    between: tuple[str, str] | None = None,
    split: Split = "all",
    settings: Annotated[EmbedSettings, Flat] = EmbedSettings(),
    device: str = "auto",
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
        split: Part of the images: all, train, val or test.
        settings: How images are embedded.
        device: Where the network runs: auto, cpu, cuda.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        overwrite: Replace old results.
    """
    for option, value in (("--top", top), ("--shown", shown)):
        require(1 <= value <= 1000, option, value, "a whole number from 1 to 1,000")
    refuse_filled(out, overwrite)
    encoder = FactorEncoder.load(run, device=device)
    images = read_images(data, encoder.config.image_size, split=split, on_corrupt=on_corrupt)
    pair = None if between is None else class_pair(images, between)
    table = FactorTable.of(encoder.embed(images, settings), top=top, shown=shown, pair=pair)
    write_csv(out / "factors.csv", table.rows)
    if pair is not None:
        write_csv(out / "separation.csv", table.separation)
    with atomic_write(out / "factors.png") as temporary:
        shown_factors(images, table).savefig(temporary, format="png", dpi=150)
    factor_report(data, encoder.config, images, table).write(out / "report.html")
    print(f"{len(table.rows)} factors in {out / 'factors.csv'}, pictures in {out / 'report.html'}")


def ood(
    run: Path,
    data: Path,
    *others: Path,
    corruptions: bool = False,
    split: Split | None = None,
    settings: Annotated[EmbedSettings, Flat] = EmbedSettings(),
    device: str = "auto",
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
        split: Part of the images of the distribution: all, train, val or test.
        settings: How images are embedded.
        device: Where the network runs: auto, cpu, cuda.
        force: Score a spectral Gaussian model all the same; its variances do not depend on the image.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        out: Folder for ood.json and report.html.
        json: Print JSON instead of tables.
        overwrite: Replace old results in that folder.
    """
    if not others and not corruptions:
        raise InputError("there is nothing to compare with", remedy="name other images, or pass --corruptions")
    refuse_filled(out, overwrite)
    encoder = FactorEncoder.load(run, device=device)
    if not force:
        refuse_uninformative(encoder.config, run)
    chosen: Split = split or ("test" if has_parts(data) else "all")
    images = read_images(data, encoder.config.image_size, split=chosen, on_corrupt=on_corrupt)
    sets = read_others(others, encoder.config.image_size, on_corrupt=on_corrupt)
    inside = encoder.embed(images, settings)
    outside = {name: encoder.embed(each, settings) for name, each in sets.items()}
    scores: dict[str, Any] = {"images": len(images)}
    scores["ood"] = detections(inside.scores, {name: each.scores for name, each in outside.items()})
    if corruptions:
        scores["corruptions"], scores["spearman_with_severity"] = corruption_table(encoder, images, settings)
    if out is not None:
        write_json(out / "ood.json", scores)
        outside_report(run, data, encoder.config, inside, outside, scores).write(out / "report.html")
    _print(scores, json)


def predict(
    run: Path,
    data: Path,
    out: Path,
    *,
    labels: Path,
    split: Split = "all",
    settings: Annotated[EmbedSettings, Flat] = EmbedSettings(),
    device: str = "auto",
    on_corrupt: OnCorrupt = "refuse",
    overwrite: bool = False,
) -> None:
    """Classify images by a linear probe on the features, with the uncertainties of their factors.

    Args:
        run: Run folder of `train`.
        data: Images to classify; their own labels are not looked at.
        out: CSV to write: path, class, probability, and one column an uncertainty score.
        labels: Labelled images the probe is fitted on; their training part, if they have parts.
        split: Part of the images to classify: all, train, val or test.
        settings: How images are embedded.
        device: Where the network runs: auto, cpu, cuda.
        on_corrupt: Refuse unreadable images, or skip them with a note.
        overwrite: Replace an existing file.
    """
    refuse_existing(out, overwrite)
    encoder = FactorEncoder.load(run, device=device)
    side = encoder.config.image_size
    known = read_images(labels, side, split=training_part(labels), on_corrupt=on_corrupt)
    known.labelled("fitting a probe")  # before the images to classify are read
    images = read_images(data, side, split=split, on_corrupt=on_corrupt)
    rows = encoder.classifier(known, settings).predict(images, settings)
    _note_uninformative(encoder.config)
    write_csv(out, rows)
    print(f"{len(rows)} predictions in {out}")


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


def _print(scores: dict[str, Any], json: bool) -> None:
    shown = (f"{title}\n{text_table(rows)}" for title, rows in tables(scores).items())
    print(json_text(scores) if json else "\n\n".join(shown))


def _note_uninformative(config: ModelConfig) -> None:
    if config.uninformative:
        warnings.warn(UNINFORMATIVE, ContrastiveWarning, stacklevel=3)
