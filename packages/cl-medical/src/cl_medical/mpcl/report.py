"""The page of a training run: curves, tables, contours, prototypes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from contrastive_core.report import PALETTE, Report
from contrastive_core.training import RunFolder
from torch import Tensor

from cl_medical.mpcl.evaluation import Evaluation
from cl_medical.mpcl.ihpg import Prototypes, scale_intensity, spread
from cl_medical.mpcl.inference import Segmentation, Segmenter
from cl_medical.mpcl.plan import TrainingPlan
from cl_medical.mpcl.system import Settings
from cl_medical.volumes.patches import foreground_crop
from cl_medical.volumes.reading import spacing

_PLANES = ("sagittal", "coronal", "axial")
_MARKS = ("PA", "LR", "LR")
"""Left and right end of each picture."""
_LOSSES = {
    "loss": "total",
    "loss_sup": "supervised",
    "loss_pc_labelled": "prototypes, labelled",
    "loss_pc_unlabelled": "prototypes, unlabelled (weighted)",
    "loss_contrast": "contrast (weighted)",
    "loss_consistency": "consistency (weighted)",
}


def training_report(
    run: RunFolder, segmenter: Segmenter, plan: TrainingPlan, settings: Settings, evaluation: Evaluation
) -> Report:
    """The page of a run.

    Args:
        run: The run; its metrics are shown.
        segmenter: What was trained.
        plan: What it was trained on.
        settings: How.
        evaluation: Metrics of the validation cases, or of the labelled training cases where there are none.
    """
    classes, split = segmenter.plan.classes, plan.split
    objective = settings.objective
    report = Report(f"MPCL: {plan.cases.folder.name}, {objective.method} ({objective.preset})")
    kept = {
        "validation": "best on validation cases" if split.validation else "last (no validation cases)",
        "last": "last",
        "test": "BEST ON TEST CASES, as the published code does: test results are optimistic",
    }
    spreads = dict(zip(classes, spread(segmenter.prototypes.centers).tolist(), strict=True))
    report.facts(
        {
            "cases": ", ".join(f"{len(names)} {name}" for name, names in dataclasses.asdict(split).items()),
            "classes": ", ".join(classes),
            "patch": " x ".join(str(side) for side in segmenter.plan.patch),
            "batch": f"{plan.batch_size} labelled, {plan.batch_size * settings.ratio} unlabelled",
            "weights kept": kept[settings.select],
            "prototype spread": ", ".join(f"{name} {value:.3g}" for name, value in spreads.items()),
        }
    )
    report.metrics(run, "Loss", _LOSSES, "loss")
    report.metrics(run, "Weight of unlabelled terms", {"ramp": "weight"}, "weight")
    names = {f"spread_{index}": name for index, name in enumerate(classes)}
    report.metrics(run, "Prototype spread", names, "mean distance / mean norm")
    report.metrics(run, "Validation", {"val_dice": "mean Dice"}, "Dice")
    kind = "validation" if split.validation else "labelled training"
    note = (
        "HD95: 95th percentile of both directed distance sets pooled. An empty prediction has Dice 0 and the volume's "
        "diagonal as distance. Prototypes: the prototype classifier, cross-entropy with cosines times 10."
    )
    report.rows(f"Classes, mean over {kind} cases", evaluation.class_rows(), note=note)
    report.rows("Voxels by true and predicted class", evaluation.confusion_rows())
    report.rows(f"Results on {kind} cases", evaluation.case_rows())
    for name in (split.validation or split.labelled)[:3]:
        x, y = segmenter.plan.read(plan.cases.cases[name])
        image = segmenter.plan.preprocessing.image(x)
        label = segmenter.plan.preprocessing.label(y).as_tensor()[0]
        result = segmenter.segment_prepared(image.as_tensor(), prototypes=True)
        k = segmenter.prototypes.centers.shape[1]
        report.figure(
            name,
            slices_figure(image.as_tensor(), label, result, k, classes, spacing(image)),
            "Above: contours in slices through the structures' middle, reference dashed. Below: the prototype nearest "
            "to every voxel.",
        )
    scan, reference = segmenter.plan.load(plan.cases.cases[split.labelled[0]], labelled=True)
    if reference is not None:
        scan, reference = foreground_crop(scan, reference, segmenter.plan.patch)
        report.figure(
            f"Intensities of {split.labelled[0]}",
            histogram_figure(scan, reference, segmenter.prototypes, classes),
            "Lines: mean intensity of the voxels a prototype stands for, over all labelled cases.",
        )
    return report


def slices_figure(
    image: Tensor, label: Tensor | None, result: Segmentation, k: int, classes: Sequence[str], sides: Sequence[float]
) -> Any:
    """Middle slices in three planes: contours above, the winning prototypes below.

    Args:
        image: ``[1 x y z]`` on the network's grid.
        label: Reference, if there is one.
        result: Segmentation on the same grid, with maps of the prototype classifier.
        k: Prototypes of a class.
        classes: Names, background first.
        sides: Voxel sides in mm, so that thick slices are not shown flat.
    """
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    values = image[0].numpy()
    shown = label.numpy() if label is not None and bool((label > 0).any()) else result.labels
    inside = np.argwhere(shown > 0)
    middle = inside.mean(0).round().astype(int) if len(inside) else np.array(values.shape) // 2
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    axes = figure.subplots(2, 3)
    colours = _prototype_colours(len(classes), k)
    norm = BoundaryNorm(np.arange(len(colours) + 1) + 0.5, len(colours))
    picture = None
    for plane in range(3):
        top, bottom = axes[0, plane], axes[1, plane]
        low, high = np.percentile(values, (1, 99.5))
        top.imshow(_cut(values, plane, middle), cmap="gray", vmin=low, vmax=high, origin="lower")
        for number in range(1, len(classes)):
            colour = PALETTE[(number - 1) % len(PALETTE)]
            for mask, style in ((label, "--"), (result.labels, "-")):
                if mask is None:
                    continue
                section = _cut(np.asarray(mask) == number, plane, middle)
                if section.any():
                    top.contour(section, levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.6)
        top.set_title(_PLANES[plane], fontsize=10)
        for mark, place in zip(_MARKS[plane], (0.02, 0.98), strict=True):
            side = "left" if place < 0.5 else "right"
            top.text(place, 0.5, mark, transform=top.transAxes, color="white", ha=side, va="center", fontsize=9)
        if result.winners is not None:
            picture = bottom.imshow(
                _cut(result.winners, plane, middle),
                cmap=ListedColormap(colours),
                norm=norm,
                origin="lower",
                interpolation="nearest",
            )
        for each in (top, bottom):
            across, up = (side for axis, side in enumerate(sides) if axis != plane)
            each.set(xticks=[], yticks=[], aspect=up / across)
    handles = [Line2D([], [], color=PALETTE[(n - 1) % len(PALETTE)], label=classes[n]) for n in range(1, len(classes))]
    if label is not None:
        handles.append(Line2D([], [], color="gray", linestyle="--", label="reference"))
    handles.append(Line2D([], [], color="gray", label="predicted"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    if picture is not None:
        bar = figure.colorbar(picture, ax=axes[1, :], ticks=range(1, len(colours) + 1), location="bottom", aspect=50)
        bar.ax.set_xticklabels([f"{classes[c]} {j + 1}" for c in range(len(classes)) for j in range(k)], fontsize=8)
    return figure


def histogram_figure(image: Tensor, label: Tensor, prototypes: Prototypes, classes: Sequence[str]) -> Any:
    """Intensity histogram of every class in one case, with the centres of its prototypes.

    Args:
        image: ``[1 x y z]`` on the network's grid.
        label: Its reference.
        prototypes: Prototypes of the model.
        classes: Names, background first.
    """
    from matplotlib.figure import Figure

    scaled = scale_intensity(image[None])[0]
    figure = Figure(figsize=(8, 1.7 * len(classes) + 0.6), layout="constrained")
    rows = figure.subplots(len(classes), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, name) in enumerate(zip(rows, classes, strict=True)):
        values = scaled[label == number].numpy()
        axes.hist(values, bins=100, range=(0, 1), color="#9aa5ad")
        colours = _prototype_colours(len(classes), prototypes.centers.shape[1])
        k = prototypes.centers.shape[1]
        if bool(prototypes.present[number]):
            for index in range(k):
                centre = float(prototypes.intensity[number, index])
                share = float(prototypes.share[number, index])
                axes.axvline(
                    centre, color=colours[number * k + index], linewidth=2.5, label=f"{centre:.2f} ({share:.0%})"
                )
            axes.legend(
                frameon=False,
                fontsize=8,
                title="intensity (share)",
                title_fontsize=8,
                loc="upper left",
                bbox_to_anchor=(1, 1),
            )
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylabel("voxels", fontsize=8)
        axes.set_title(name, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel("intensity, scaled to [0, 1]")
    return figure


def _cut(values: np.ndarray, plane: int, middle: np.ndarray) -> np.ndarray:
    return np.take(values, int(middle[plane]), axis=plane).T


def _prototype_colours(classes: int, k: int) -> list[tuple[float, ...]]:
    """A hue for each class (greys for the background), a shade for each of its prototypes."""
    from matplotlib.colors import to_rgb

    colours = []
    for number in range(classes):
        base = torch.tensor(to_rgb("#888888" if number == 0 else PALETTE[(number - 1) % len(PALETTE)]))
        for index in range(k):
            # From dark to light around the class's own colour.
            place = 0.0 if k == 1 else 2 * index / (k - 1) - 1
            end = torch.zeros(3) if place < 0 else torch.ones(3)
            colours.append(tuple(((1 - 0.6 * abs(place)) * base + 0.6 * abs(place) * end).tolist()))
    return colours
