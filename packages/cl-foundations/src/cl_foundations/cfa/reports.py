"""What the reports of training and evaluation show."""

import dataclasses
from typing import Any

import numpy as np
from contrastive_core.evaluation import ProbeResult, probe
from contrastive_core.report import Report
from contrastive_core.training import RunFolder

from cl_foundations.cfa.corruptions import Corruption, corruption, uniform_noise
from cl_foundations.cfa.data import ImageSet
from cl_foundations.cfa.evaluate import detection
from cl_foundations.cfa.figures import factor_grid, histograms, reliability
from cl_foundations.cfa.inference import Embeddings, embed
from cl_foundations.cfa.interpret import (
    factor_metrics,
    majority_class,
    rank_factors,
    separating_factors,
    top_images,
    unit_rows,
)
from cl_foundations.cfa.model import FactorModel
from cl_foundations.cfa.posterior import GammaPrior

_MOST = 2000  # images of each part that a training report looks at
_SEVEREST: tuple[Corruption, ...] = ("noise", "blur", "contrast", "pixelate")


def training_report(
    run: RunFolder,
    model: FactorModel,
    images: ImageSet,
    test: ImageSet | None,
    *,
    prior: GammaPrior,
    seed: int,
) -> dict[str, Any]:
    """Write ``report.html`` of a training run and return its numbers.

    Args:
        run: The run.
        model: The trained model.
        images: Training images, of the model's input size.
        test: Test images; a fifth of the training images stands in where there are none.
        prior: Prior of non-negative factors.
        seed: Seed of draws.
    """
    rng = np.random.default_rng(seed)
    images = images.take(np.sort(rng.permutation(len(images))[:_MOST]))
    if test is None:
        order = rng.permutation(len(images))
        held = max(1, len(images) // 5)
        images, test = images.take(np.sort(order[held:])), images.take(np.sort(order[:held]))
        part = "training images held out from the probe"
    else:
        test = test.take(np.sort(rng.permutation(len(test))[:_MOST]))
        part = "test images"
    fitted, judged = (embed(model, each, prior=prior, seed=seed) for each in (images, test))
    rows = [row for row in run.metrics() if "loss" in row]
    results: dict[str, Any] = {"loss": rows[-1]["loss"] if rows else None, "judged_on": part, "images": len(test)}
    report = Report("Contrastive factor analysis")
    config = dataclasses.asdict(model.config)
    report.facts({name: value for name, value in config.items() if value is not None} | {"judged on": part})
    steps = [row["step"] for row in rows]
    report.curve(
        "Loss", {name: (steps, [row[name] for row in rows]) for name in ("loss", "likelihood")}, "step", "nats"
    )
    unit = "nats a factor" if model.config.likelihood == "infonce" else "nats an image"
    for name, title, label in (
        ("kl", "KL from the prior", unit),
        ("active", "Factors whose mean varies over the batch", "factors"),
    ):
        if any(row.get(name) for row in rows):
            report.curve(title, {name: (steps, [row[name] for row in rows])}, "step", label)
    add_factors(report, judged, test)
    outside = _outside(model, test, prior, seed)
    if "entropy" in judged.scores:
        add_histograms(report, judged, outside)
        if model.config.uninformative:
            report.text(
                "Under a spectral likelihood the best variance of a normal factor is the same for every image: these "
                "uncertainties say nothing about single images.",
                "Uncertainty",
            )
        results["auroc_entropy"] = {
            name: detection(judged.scores["entropy"], each.scores["entropy"]).auroc for name, each in outside.items()
        }
    found = add_reliability(report, fitted, judged)
    if found is not None:
        assert judged.labels is not None
        results |= {"linear_accuracy": found.accuracy, "linear_ece": found.ece}
        if len(judged.ids) >= judged.mean.shape[1]:
            results["factors"] = dataclasses.asdict(factor_metrics(judged.mean, judged.labels))
    report.write(run.path / "report.html")
    return results


def add_factors(report: Report, found: Embeddings, images: ImageSet, *, shown: int = 16, top: int = 12) -> None:
    """Add a grid of the images with the largest value of each factor: purest first, or most active without labels."""
    best = top_images(found.mean, top)
    order = rank_factors(found.mean)
    titles = [f"factor {k}" for k in range(len(best))]
    if found.labels is not None:
        classes = majority_class(found.labels[best], np.array(found.classes))
        order = order[np.argsort([-classes[k][1] for k in order], kind="stable")]
        titles = [f"{k}: {name}, {share:.0%}" for k, (name, share) in enumerate(classes)]
    rows = [(titles[k], images.images(best[k].tolist())) for k in order[:shown].tolist()]
    report.figure(
        "Factors",
        factor_grid(rows),
        "Images with the largest value of a factor, largest on the left; "
        + ("the most frequent class among them and its share." if found.labels is not None else "most active first."),
    )


def add_histograms(report: Report, inside: Embeddings, outside: dict[str, Embeddings]) -> None:
    """Add the scores in- against out-of-distribution: the entropy, and the scale-free ``var_dir``; else the norm."""
    wanted = {"entropy": "entropy, nats", "var_dir": "1 - length of the mean direction"}
    if "entropy" not in inside.scores:
        wanted = {"norm": "minus the length of the embedding"}
    for score, label in wanted.items():
        groups = {"in distribution": inside.scores[score], **{n: each.scores[score] for n, each in outside.items()}}
        values = ", ".join(
            f"{name} {detection(inside.scores[score], each.scores[score]).auroc:.2f}" for name, each in outside.items()
        )
        report.figure(
            f"Uncertainty in- and out-of-distribution: {score}",
            histograms(groups, label),
            f"AUROC against the images in distribution: {values}. Below 0.5 the score is lower outside.",
        )


def add_reliability(report: Report, fitted: Embeddings, judged: Embeddings) -> ProbeResult | None:
    """Add a reliability diagram of a linear probe on the factors, where there are labels of two classes or more."""
    if fitted.labels is None or judged.labels is None or len(np.unique(fitted.labels)) < 2:
        report.text("The images have no labels of two classes, so no probe was fitted.", "Reliability")
        return None
    found = probe(fitted.mean, fitted.labels, judged.mean, judged.labels, kind="logreg")
    place = {label: index for index, label in enumerate(found.classes.tolist())}
    known = np.array([place.get(label, -1) for label in judged.labels.tolist()])
    report.figure(
        "Reliability",
        reliability(found.probabilities, known),
        f"Linear probe on the factor means: accuracy {found.accuracy:.3f}, expected calibration error {found.ece:.3f}.",
    )
    return found


def add_separation(
    report: Report, found: Embeddings, images: ImageSet, pair: tuple[int, int], names: tuple[str, str]
) -> list[dict[str, Any]]:
    """Add the factors that separate two classes best, and return a row for every factor."""
    assert found.labels is not None
    ranked = separating_factors(found.mean, found.labels, *pair)
    rows = [
        {"factor": each.factor, "auroc": each.auroc, f"mean {names[0]}": each.first, f"mean {names[1]}": each.second}
        for each in ranked
    ]
    report.table(
        f"Factors that separate {names[0]} from {names[1]}",
        list(rows[0]),
        [list(row.values()) for row in rows[:12]],
        note=f"AUROC: chance that {names[0]} has the larger value; near 0 the factor speaks for {names[1]}.",
    )
    either = np.flatnonzero(np.isin(found.labels, pair))
    strips = []
    for each in ranked[:8]:
        order = either[np.argsort(-found.mean[either, each.factor], kind="stable")[:16]]
        strips.append((f"{each.factor}: {each.auroc:.2f}", images.images(order.tolist())))
    report.figure(
        f"{names[0]} or {names[1]}: images with the largest value", factor_grid(strips), "Factor, and its AUROC."
    )
    return rows


def factor_rows(found: Embeddings, top: int) -> list[dict[str, Any]]:
    """One row a factor: rank by activation, mean, share of images it is active on; class and purity with labels."""
    mean = found.mean
    place = {int(k): rank for rank, k in enumerate(rank_factors(mean), 1)}
    rows: list[dict[str, Any]] = [
        {
            "factor": k,
            "rank": place[k],
            "mean": float(mean[:, k].mean()),
            "active_share": float((np.abs(unit_rows(mean)[:, k]) > 0.05).mean()),
        }
        for k in range(mean.shape[1])
    ]
    if found.labels is not None:
        best = majority_class(found.labels[top_images(mean, top)], np.array(found.classes))
        for row, (name, share) in zip(rows, best, strict=True):
            row |= {"class": name, "purity": share}
    return rows


def factor_title(row: dict[str, Any]) -> str:
    """Number of a factor, and its class where it has one."""
    return f"{row['factor']}: {row['class']}, {row['purity']:.0%}" if "class" in row else f"factor {row['factor']}"


def detections(inside: Embeddings, outside: dict[str, Embeddings]) -> list[dict[str, Any]]:
    """Every score on every outside set, a row each."""
    return [
        {"set": name, "score": score, **dataclasses.asdict(detection(values, found.scores[score]))}
        for name, found in outside.items()
        for score, values in inside.scores.items()
    ]


def _outside(model: FactorModel, images: ImageSet, prior: GammaPrior, seed: int) -> dict[str, Embeddings]:
    """The images at the highest severity of four corruptions, and uniform noise."""
    out = {}
    for kind in _SEVEREST:
        out[f"{kind}, severity 5"] = embed(model, images, prior=prior, seed=seed, change=corruption(kind, 5))
    out["uniform noise"] = embed(model, images, prior=prior, seed=seed, change=uniform_noise)
    return out
