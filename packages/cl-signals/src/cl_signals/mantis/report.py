"""Pages of what was trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from contrastive_core.report import Report, scatter
from contrastive_core.training import RunFolder

from cl_signals.mantis.inference import Readout, embed_set
from cl_signals.mantis.model import Mantis
from cl_signals.series.sets import SeriesSet


def pretraining_report(run: RunFolder, facts: Mapping[str, Any]) -> Report:
    """Loss of a pre-training run."""
    report = Report("Mantis pre-training")
    report.facts(facts)
    report.metrics(run, "Loss", ["loss"], "InfoNCE")
    return report


def classifier_report(run: RunFolder, name: str, results: Mapping[str, Any]) -> Report:
    """Loss, scores by class and confusion matrix of a classifier.

    Args:
        run: The run.
        name: Name of the set.
        results: What :func:`cl_signals.mantis.evaluation.evaluate_classifier` gives, beside facts of the training.
    """
    report = Report(f"Mantis classifier of {name}")
    report.facts({key: value for key, value in results.items() if isinstance(value, str | int | float)})
    report.rows("Test part by class", results.get("classes", []))
    if confusion := results.get("confusion"):
        report.table(
            "Confusion matrix",
            ["class", *confusion["labels"]],
            [[label, *row] for label, row in zip(confusion["labels"], confusion["counts"], strict=True)],
            note="A row is a true class, a column a predicted one.",
        )
    report.metrics(run, "Loss", ["loss"], "cross-entropy")
    return report


def demo_report(
    run: RunFolder,
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    models: Mapping[str, Mantis],
    test: SeriesSet,
) -> Report:
    """What the demonstration shows.

    Args:
        run: The run.
        rows: Accuracies by set.
        facts: Settings and duration.
        models: Encoders to draw maps of.
        test: Series the maps show.
    """
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    report = Report("Mantis: synthetic pre-training, real series")
    report.facts(facts)
    report.rows(
        "Test accuracy",
        rows,
        best=[name for name in rows[0] if name != "set"],
        note="Official splits, one seed. RF: random forest of 200 trees on frozen embeddings; 1-NN: cosine on "
        "standardised embeddings; raw 1-NN: Euclidean on z-scored series. The highest of a row is marked.",
    )
    report.metrics(run, "Pre-training loss", {"loss": "InfoNCE"}, "InfoNCE")
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (name, model) in zip(figure.subplots(1, len(models)), models.items(), strict=True):
        z = StandardScaler().fit_transform(embed_set(model, test, Readout()))
        scatter(axes, PCA(2, random_state=0).fit_transform(z), test.labels, name)
    report.figure(f"{test.name}, test part", figure, "First two principal components of the embeddings, by class.")
    return report
