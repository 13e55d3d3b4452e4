"""What the reports of training and evaluation show."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.report import PALETTE, Report, new_axes
from contrastive_core.training import RunFolder
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from cl_foundations.cfa.evaluation import Evaluation
from cl_foundations.cfa.factors import FactorTable
from cl_foundations.cfa.inference import Embeddings
from cl_foundations.cfa.model import ModelConfig
from cl_foundations.cfa.uncertainty import SCORES, UNINFORMATIVE, detection
from cl_foundations.images.sets import ImageSet

Tables = dict[str, list[dict[str, Any]]]
"""Rows by the title of their table."""

_TITLES = {
    "classes": "Classes, linear probe on the features",
    "selection": "Factors with the largest activation",
    "robustness": "Accuracy on corrupted test images, probes fitted on clean ones",
    "ood": "In- against out-of-distribution",
    "spearman_with_severity": "Rank correlation with the severity of corruptions",
    "corruptions": "Corruptions against clean images",
}


def tables(scores: Mapping[str, Any]) -> Tables:
    """Scores of an evaluation, or of detection out of the distribution, as titled tables."""
    out: Tables = {}
    flat = {
        place: {**{name: value for name, value in scores[place].items() if name != "factors"}, **each}
        for place in ("features", "mean")
        if scores.get(place)
        for each in [scores[place].get("factors", {})]
    }
    if flat:
        names = list(next(iter(flat.values())))
        rows = [{"measure": name, **{place: each[name] for place, each in flat.items()}} for name in names]
        out["Test images"] = rows
    out |= {title: scores[key] for key, title in _TITLES.items() if scores.get(key)}
    if scores.get("uncertainty"):
        out["Finding the probe's errors"] = [{"score": name, **each} for name, each in scores["uncertainty"].items()]
    return out


def describe(config: ModelConfig) -> str:
    """A model in one line."""
    return f"{config.method}, {config.likelihood}, {config.backbone}, {config.factors} factors"


def training_report(run: RunFolder, config: ModelConfig, result: Evaluation) -> Report:
    """The page of a training run."""
    report = Report("Contrastive factor analysis")
    facts = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    report.facts(facts | {"evaluated on": f"{len(result.images)} {result.scores['evaluated_on']}"})
    report.metrics(run, "Loss", ["loss", "likelihood"], "nats")
    unit = "nats a factor" if config.likelihood == "infonce" else "nats an image"
    if config.method in ("cfa", "cnfa"):
        report.metrics(run, "KL from the prior", ["kl"], unit)
    report.metrics(run, "Factors whose mean varies over the batch", ["active"], "factors")
    add_factors(report, result.test, result.images)
    if "entropy" in result.test.scores:
        add_histograms(report, result.test, result.outside)
    if config.uninformative:
        report.text(f"{UNINFORMATIVE[0].upper()}{UNINFORMATIVE[1:]}.", "Uncertainty")
    add_reliability(report, result)
    return report


def evaluation_report(run: Path, data: Path, config: ModelConfig, result: Evaluation) -> Report:
    """The page of an evaluation."""
    report = Report(f"Evaluation of {run}")
    images = f"{len(result.train.ids)} train, {len(result.test.ids)} test"
    report.facts({"model": describe(config), "data": data, "images": images})
    for title, rows in tables(result.scores).items():
        report.rows(title, rows)
    add_factors(report, result.test, result.images)
    add_reliability(report, result)
    if result.outside:
        add_histograms(report, result.test, result.outside)
    return report


def factor_report(data: Path, config: ModelConfig, images: ImageSet, factors: FactorTable) -> Report:
    """The page of what factors stand for."""
    report = Report("Factors")
    report.facts({"model": describe(config), "images": f"{data} ({len(images)})", "factors": len(factors.rows)})
    report.figure(
        "Images with the largest value of each factor",
        shown_factors(images, factors),
        "Largest value on the left. With labels: most frequent class among them and its share.",
    )
    report.rows("Factors", factors.shown)
    if factors.between is not None:
        one, other = factors.between
        note = f"AUROC: chance that {one} has the larger value; near 0 the factor speaks for {other}."
        report.rows(f"Factors that separate {one} from {other}", factors.separation[:12], note=note)
        strips = [
            (f"{row['factor']}: {row['auroc']:.2f}", images.images(best.tolist()))
            for row, best in zip(factors.separation, factors.separating, strict=False)
        ]
        title = f"{one} or {other}: images with the largest value"
        report.figure(title, factor_grid(strips), "Factor, and its AUROC.")
    return report


def shown_factors(images: ImageSet, factors: FactorTable) -> Figure:
    """The images with the largest value of each shown factor."""
    rows = [(factor_title(row), images.images(factors.best[row["factor"]].tolist())) for row in factors.shown]
    return factor_grid(rows)


def outside_report(
    run: Path, data: Path, config: ModelConfig, inside: Embeddings, outside: Mapping[str, Embeddings], scores: Any
) -> Report:
    """The page of detection out of the distribution."""
    report = Report(f"In- and out-of-distribution: {run}")
    report.facts({"model": describe(config), "in distribution": f"{data} ({len(inside.ids)})"})
    report.rows("Scores", [{"score": name, "what it is": SCORES[name]} for name in SCORES if name in inside.scores])
    for title, rows in tables(scores).items():
        report.rows(title, rows)
    if outside:
        add_histograms(report, inside, outside)
    if scores.get("corruptions"):
        report.figure("Corruptions", severity_curves(scores["corruptions"], list(inside.scores)))
    return report


def add_factors(report: Report, embeddings: Embeddings, images: ImageSet, *, shown: int = 16, top: int = 12) -> None:
    """Add a grid of the images with the largest value of each factor: purest first, or most active without labels."""
    factors = FactorTable.of(embeddings, top=top, shown=shown)
    report.figure(
        "Factors",
        shown_factors(images, factors),
        "Images with the largest value of a factor, largest on the left; "
        + (
            "the most frequent class among them and its share."
            if embeddings.labels is not None
            else "most active first."
        ),
    )


def add_histograms(report: Report, inside: Embeddings, outside: Mapping[str, Embeddings]) -> None:
    """Add the scores in- against out-of-distribution: the entropy, and the scale-free ``var_dir``; else the norm."""
    shown = {"entropy": "entropy, nats", "var_dir": "1 - length of the mean direction"}
    if "entropy" not in inside.scores:
        shown = {"norm": "minus the length of the embedding"}
    for score, label in shown.items():
        groups = {"in distribution": inside.scores[score], **{n: each.scores[score] for n, each in outside.items()}}
        values = ", ".join(
            f"{name} {detection(inside.scores[score], each.scores[score]).auroc:.2f}" for name, each in outside.items()
        )
        report.figure(
            f"Uncertainty in- and out-of-distribution: {score}",
            histograms(groups, label),
            f"AUROC against the images in distribution: {values}. Below 0.5 the score is lower outside.",
        )


def add_reliability(report: Report, result: Evaluation) -> None:
    """Add a reliability diagram of a linear probe on the factors, where there are labels of two classes or more."""
    probe = result.probe
    if probe is None:
        report.text("The images have no labels of two classes, so no probe was fitted.", "Reliability")
        return
    place = {label: index for index, label in enumerate(probe.classes.tolist())}
    known = np.array([place.get(label, -1) for label in result.test.known.tolist()])
    report.figure(
        "Reliability",
        reliability(probe.probabilities, known),
        f"Linear probe on the factor means: accuracy {probe.accuracy:.3f}, expected calibration error {probe.ece:.3f}.",
    )


def factor_title(row: Mapping[str, Any]) -> str:
    """Number of a factor, and its class where it has one."""
    return f"{row['factor']}: {row['class']}, {row['purity']:.0%}" if "class" in row else f"factor {row['factor']}"


def factor_grid(rows: Sequence[tuple[str, UInt8[Tensor, "m 3 h w"]]]) -> Figure:
    """One row of images a factor, with a title on the left.

    Args:
        rows: Title and images of every factor.
    """
    columns = max(len(images) for _, images in rows)
    side, gap = rows[0][1].shape[-1], max(1, rows[0][1].shape[-1] // 16)
    figure = Figure(figsize=(1.9 + 0.62 * columns, 0.66 * len(rows) + 0.1), layout="constrained")
    for axes, (title, images) in zip(np.atleast_1d(figure.subplots(len(rows), 1)), rows, strict=True):
        strip = np.full((side, columns * (side + gap) - gap, 3), 255, np.uint8)
        for place, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            strip[:, place * (side + gap) : place * (side + gap) + side] = image
        axes.imshow(strip, interpolation="nearest")
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def histograms(groups: Mapping[str, Float[np.ndarray, " _"]], xlabel: str) -> Figure:
    """Densities of several groups over common bins, the first one filled.

    Args:
        groups: Values by name.
        xlabel: What the values are.
    """
    figure, axes = new_axes(height=3.6)
    low, high = np.quantile(np.concatenate(list(groups.values())), [0.002, 0.998])
    bins = np.linspace(low, high if high > low else low + 1, 41).tolist()
    for index, (name, values) in enumerate(groups.items()):
        colour = PALETTE[index % len(PALETTE)]
        shown, weights = np.clip(values, bins[0], bins[-1]), np.full(len(values), 1 / len(values))
        if index == 0:  # filled, so that the others stand out against it
            axes.hist(shown, bins, weights=weights, alpha=0.3, color=colour)
        axes.hist(shown, bins, weights=weights, histtype="step", color=colour, label=name, lw=1.5)
    axes.set(xlabel=xlabel, ylabel="share of images")
    axes.legend(frameon=False, fontsize=9)
    return figure


def reliability(probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], bins: int = 10) -> Figure:
    """Accuracy over confidence, above the number of images in each bin.

    Args:
        probabilities: Class probabilities.
        labels: Columns of the true classes; any other number counts as wrong.
        bins: Equal-width bins over (0, 1].
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    used = counts > 0
    accuracy = np.bincount(place, correct, bins)[used] / counts[used]
    mean_confidence = np.bincount(place, confidence, bins)[used] / counts[used]
    figure = Figure(figsize=(5, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    top.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    centres = (np.arange(bins)[used] + 0.5) / bins
    top.bar(centres, accuracy, 0.96 / bins, color=PALETTE[0], alpha=0.35)
    top.plot(mean_confidence, accuracy, "o-", color=PALETTE[0], ms=4, lw=1.6)
    top.set(ylabel="accuracy", ylim=(0, 1))
    bottom.bar((np.arange(bins) + 0.5) / bins, counts, 0.96 / bins, color="0.6")
    bottom.set(xlabel="confidence of the linear probe", ylabel="images", xlim=(0, 1))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def severity_curves(rows: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> Figure:
    """AUROC of every score over the severity of every corruption.

    Args:
        rows: Of :func:`corruption_table`.
        scores: The scores to draw, one panel each.
    """
    figure = Figure(figsize=(2.6 * len(scores) + 0.6, 3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(scores), sharey=True))
    kinds = list(dict.fromkeys(row["corruption"] for row in rows))
    for axes, score in zip(panels, scores, strict=True):
        for index, kind in enumerate(kinds):
            line = [row for row in rows if row["corruption"] == kind and row["score"] == score]
            axes.plot(
                [row["severity"] for row in line],
                [row["auroc"] for row in line],
                "o-",
                ms=3,
                lw=1.5,
                color=PALETTE[index % len(PALETTE)],
                label=kind,
            )
        axes.axhline(0.5, color="0.6", lw=1, ls="--")
        axes.set(title=score, xlabel="severity", ylim=(0, 1), xticks=[1, 2, 3, 4, 5])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("AUROC against clean images")
    panels[-1].legend(frameon=False, fontsize=8)
    return figure
