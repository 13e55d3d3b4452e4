"""Numbers of a segmenter on labelled cases, and of two runs against each other."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from contrastive_core.files import read_json
from contrastive_core.training import RunFolder
from jaxtyping import Integer
from torch import Tensor

from cl_medical.mpcl.ihpg import Prototypes
from cl_medical.mpcl.inference import Segmenter, tracked
from cl_medical.mpcl.model import VNet
from cl_medical.volumes.cases import Case, CaseSet
from cl_medical.volumes.metrics import IGNORED, case_metrics, confusion, dice, summarise, summarise_classes
from cl_medical.volumes.plan import DataPlan
from cl_medical.volumes.reading import spacing

Part = Literal["test", "validation", "all"]

CE_SCALE = 10.0
"""Factor on the cosines when the prototype classifier is measured by its cross-entropy."""

UNITS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95_vox": "HD95 (voxels)",
    "hd95_mm": "HD95 (mm)",
    "asd_directed_mm": "ASD directed (mm)",
    "assd_mm": "ASSD (mm)",
    "prototype_dice": "Dice of prototypes",
    "prototype_ce": "cross-entropy of prototypes (nats)",
}
"""What is shown of a row, and how it is called; files hold everything."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of cases.

    Attributes:
        rows: One a case and structure.
        confusion: Voxels by true class (rows) and predicted one (columns).
        classes: Names, background first.
    """

    rows: list[dict[str, Any]]
    confusion: Integer[np.ndarray, "c c"]
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values: summary, summary of every class, cases, confusion."""
        return {
            "summary": summarise(self.rows),
            "classes": summarise_classes(self.rows),
            "cases": self.rows,
            "confusion": {
                name: dict(zip(self.classes, row.tolist(), strict=True))
                for name, row in zip(self.classes, self.confusion, strict=True)
            },
        }

    def mean(self, metric: str) -> float:
        """Mean of a metric over cases and structures."""
        return float(np.mean([row[metric] for row in self.rows]))

    def case_rows(self) -> list[dict[str, Any]]:
        """A row a case and structure, named with units."""
        return [{"case": row["case"], "class": row["class"], **_named(row)} for row in self.rows]

    def class_rows(self) -> list[dict[str, Any]]:
        """A row a class with the means over cases, and one of the means over classes."""
        means = {name: {key: entry["mean"] for key, entry in values.items()} for name, values in self._by_class()}
        rows = [{"class": name, **_named(values)} for name, values in means.items()]
        if len(rows) > 1:
            rows.append(
                {"class": "mean", **_named({key: entry["mean"] for key, entry in summarise(self.rows).items()})}
            )
        return rows

    def confusion_rows(self) -> list[dict[str, Any]]:
        """Share of every true class's voxels that were given to each class, in percent, and how many there are."""
        rows = []
        for name, counts in zip(self.classes, self.confusion, strict=True):
            total = int(counts.sum())
            shares = {
                f"as {other} (%)": 100 * int(n) / max(total, 1) for other, n in zip(self.classes, counts, strict=True)
            }
            rows.append({"true class": name, "voxels": total, **shares})
        return rows

    def _by_class(self) -> Iterable[tuple[str, dict[str, dict[str, float]]]]:
        return summarise_classes(self.rows).items()


def evaluate_cases(
    segmenter: Segmenter, cases: Iterable[Case], *, prototypes: bool = True, progress: bool = False
) -> Evaluation:
    """Metrics of cases.

    Args:
        segmenter: The model.
        cases: Cases with label maps; voxels that do not count are left out.
        prototypes: Measure the prototype classifier as well: ``prototype_dice``, and ``prototype_ce``, the voxels' mean
            cross-entropy of the cosines times 10 (one number a case, the same in each of its rows).
        progress: Show a bar.

    Raises:
        InputError: A case has no label map or cannot be used.
    """
    rows: list[dict[str, Any]] = []
    classes = segmenter.plan.classes
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for case in tracked(list(cases), "evaluating", progress):
        image, label = segmenter.plan.read(case)
        result = segmenter.segment(image, prototypes=prototypes)
        reference = label.as_tensor()[0].numpy()
        counts += confusion(result.labels, reference, len(classes))
        extra: dict[str, Any] = {}
        if result.cosines is not None:
            target = segmenter.plan.preprocessing.label(label).as_tensor()
            extra["prototype_ce"] = float(
                F.cross_entropy(CE_SCALE * result.cosines[None], target, ignore_index=IGNORED)
            )
        for number, row in enumerate(case_metrics(result.labels, reference, classes, spacing(image)), start=1):
            if result.prototype_labels is not None:
                near = (result.prototype_labels == number) & (reference >= 0)
                extra["prototype_dice"] = dice(near, reference == number)
            rows.append({"case": case.name, **row, **extra})
    return Evaluation(rows, counts, classes)


@torch.no_grad()
def mean_dice(network: VNet, image: Tensor, label: Tensor, plan: DataPlan) -> float:
    """Dice of one prepared volume, averaged over structures; the network stays in the mode it is in."""
    device, training = next(network.parameters()).device, network.training
    c, d = network.classes, network.config.feature_width
    nothing = Prototypes(torch.zeros(c, 1, d), torch.zeros(c, 1), torch.zeros(c, 1), torch.zeros(c, dtype=torch.bool))
    whole = dataclasses.replace(plan, largest_component=False)
    labels = Segmenter(network, whole, nothing, str(device)).segment_prepared(image).labels
    network.train(training)
    reference = label.numpy()
    counted = reference >= 0
    return float(np.mean([dice((labels == c) & counted, reference == c) for c in range(1, len(plan.classes))]))


def cases_of(run: RunFolder, cases: CaseSet, part: Part) -> list[Case]:
    """Cases of one part of a run's split, or all labelled ones of a folder.

    Raises:
        InputError: A case is not in the folder, or there are none.
    """
    if part == "all":
        names = [case.name for case in cases.cases.values() if case.label is not None]
    else:
        names = list(read_json(run.path / "split.json").get(part, []))
    missing = [name for name in names if name not in cases.cases]
    if missing:
        raise InputError(
            "a case of the run's split is not in the folder",
            where=cases.folder,
            why=f"{missing[0]} ({len(missing)} of {len(names)})",
            remedy="name the folder the run was trained on, or use --split all",
        )
    if not names:
        raise InputError(
            f"there are no {part} cases" if part != "all" else "the folder holds no labelled case",
            where=cases.folder,
            remedy="use --split all, or train with --test and --validation above 0",
        )
    return [cases.cases[name] for name in names]


def compare_runs(results: Sequence[Path], metric: str = "dice") -> list[dict[str, Any]]:
    """Paired Wilcoxon signed-rank tests between evaluated runs, over the cases they share.

    Args:
        results: Run folders that were evaluated, or JSON files of evaluations; two or more.
        metric: Metric compared, averaged over the structures of a case.

    Returns:
        A row a pair: how many cases, both means, their difference, and p.

    Raises:
        InputError: Fewer than two, one named twice, an unknown metric, or no case in common.
    """
    from scipy.stats import wilcoxon

    if len(results) < 2:
        raise InputError("a comparison needs two results", where="RESULTS", why=f"got {len(results)}")
    scores = {str(path): _case_scores(path, metric) for path in results}
    if len(scores) < len(results):
        raise InputError("a result is compared with itself", where=results[0])
    rows = []
    for (a, left), (b, right) in itertools.combinations(scores.items(), 2):
        shared = sorted(set(left) & set(right))
        if not shared:
            raise InputError("two results share no case", where=b, why=f"none of its cases is in {a}")
        x, y = np.array([left[name] for name in shared]), np.array([right[name] for name in shared])
        p = float(wilcoxon(x, y).pvalue) if (x != y).any() else 1.0
        means = {"mean a": float(x.mean()), "mean b": float(y.mean()), "a - b": float((x - y).mean())}
        rows.append({"a": a, "b": b, "cases": len(shared), **means, "p": p})
    return rows


def prototype_rows(known: Prototypes, winners: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """What each prototype stands for in one volume, and which other is nearest to it.

    Args:
        known: Prototypes of a model.
        winners: Map of the nearest prototype, ``[x y z]``.
        classes: Names, background first.
    """
    c, k, d = known.centers.shape
    unit = F.normalize(known.centers.reshape(-1, d), dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    counts = np.bincount(winners.ravel(), minlength=c * k + 1)[1:]
    names = [f"{classes[i // k]} {i % k + 1}" for i in range(c * k)]
    return [
        {
            "prototype": names[i],
            "map value": i + 1,
            "intensity": float(known.intensity.reshape(-1)[i]),
            "training share": float(known.share.reshape(-1)[i]),
            "share here": float(counts[i] / winners.size),
            "nearest": names[int(cosines[i].argmax())] if c * k > 1 else "-",
            "cosine": float(cosines[i].max()),
        }
        for i in range(c * k)
    ]


def _named(row: dict[str, Any]) -> dict[str, float]:
    return {name: row[key] for key, name in UNITS.items() if key in row}


def _case_scores(path: Path, metric: str) -> dict[str, float]:
    content = RunFolder.open(path).results() if path.is_dir() else read_json(path)
    parts = content.get("evaluation", {}) if isinstance(content, dict) else {}
    rows = (
        content if isinstance(content, dict) and "cases" in content else parts.get("test", parts.get("all")) or {}
    ).get("cases")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and "case" in row for row in rows):
        raise InputError(
            "there is no evaluation to compare", where=path, remedy="run `cl-medical mpcl evaluate` on it first"
        )
    scores: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(metric)
        if isinstance(value, bool) or not isinstance(value, int | float):
            known = [name for name, entry in row.items() if isinstance(entry, float)]
            raise InputError(
                "unknown metric", where="--metric", why=f"got {metric}", remedy=f"one of {', '.join(known)}"
            )
        scores.setdefault(row["case"], []).append(float(value))
    return {name: float(np.mean(values)) for name, values in scores.items()}
