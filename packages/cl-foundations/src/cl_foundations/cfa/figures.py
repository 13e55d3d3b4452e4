"""Pictures of the reports."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contrastive_core.report import PALETTE
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor


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
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    low, high = np.quantile(np.concatenate(list(groups.values())), [0.002, 0.998])
    bins = np.linspace(low, high if high > low else low + 1, 41).tolist()
    for index, (name, values) in enumerate(groups.items()):
        colour = PALETTE[index % len(PALETTE)]
        shown, weights = np.clip(values, bins[0], bins[-1]), np.full(len(values), 1 / len(values))
        if index == 0:  # filled, so that the others stand out against it
            axes.hist(shown, bins, weights=weights, alpha=0.3, color=colour)
        axes.hist(shown, bins, weights=weights, histtype="step", color=colour, label=name, lw=1.5)
    axes.set(xlabel=xlabel, ylabel="share of images")
    axes.spines[["top", "right"]].set_visible(False)
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
            mine = [row for row in rows if row["corruption"] == kind and row["score"] == score]
            axes.plot(
                [row["severity"] for row in mine],
                [row["auroc"] for row in mine],
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
