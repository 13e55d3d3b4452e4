"""Figures and the pages of training, clusters, evaluation and recommended ladders."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contrastive_core.report import PALETTE, Report, new_axes
from contrastive_core.training import RunFolder
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from cl_video3d.cecl.clusters import RQClusters, fit_clusters
from cl_video3d.cecl.curves import log_rates, rate_at_quality
from cl_video3d.cecl.data import EchoSet
from cl_video3d.cecl.evaluation import Evaluation, spread_within
from cl_video3d.cecl.inference import EchoEncoder
from cl_video3d.cecl.recommendation import RATES, LadderPredictor, Recommendation
from cl_video3d.cecl.system import Settings
from cl_video3d.video.encoding import Codec
from cl_video3d.video.planes import to_rgb


def training_report(run: RunFolder, encoder: EchoEncoder, echoes: EchoSet, settings: Settings) -> Report:
    """The loss, and a map of the training clips.

    Args:
        run: The run.
        encoder: What it trained.
        echoes: The clips it was given.
        settings: How.
    """
    part = echoes.training_part(None if encoder.split == "all" else encoder.split)[0].at(encoder.codec)
    report = Report("Compression echo contrastive learning")
    about = {"method": settings.objective.method, "target": settings.objective.target, "echo": settings.objective.echo}
    counts = {"clips": len(part), "videos": len(set(part.videos)), "groups": len(set(part.groups))}
    report.facts({**counts, **about, "codec": encoder.codec, "split": encoder.split})
    names = {"loss": "loss", "loss_echo": "against echoes", "loss_views": "between views, weighted"}
    report.metrics(run, "Loss", names, "nats")
    report.figure(
        "Embeddings of the training clips",
        embedding_map(encoder.embed_echoes(part), log_rates(part.measured["bpp"])[:, part.middle], part.groups),
        "Principal components; on the left the colour is what an encoder measured.",
    )
    return report


def cluster_report(ladders: LadderPredictor, part: EchoSet, split: str) -> Report:
    """Curves, sizes and examples of the clusters.

    Args:
        ladders: The clusters.
        part: The clips they were fitted on.
        split: What that part is called.
    """
    clusters = ladders.clusters
    labels = clusters.assign(part)
    report = Report("Clusters of encoding complexity")
    facts = {"clips": len(part), "algorithm": clusters.algorithm, "clusters": len(clusters)}
    report.facts({**facts, "silhouette": clusters.silhouette, "fitted on": split})
    _curves_and_examples(report, part, labels)
    report.rows("Clusters", cluster_rows(clusters, part.middle))
    for number, steps in enumerate(ladders.rungs):
        rows = [{name: round(value, 3) for name, value in dataclasses.asdict(rung).items()} for rung in steps]
        report.rows(f"Ladder of cluster {number}", rows, note="Qualities in dB PSNR, rates in bits a pixel.")
    return report


def cluster_rows(clusters: RQClusters, middle: int) -> list[dict[str, Any]]:
    """Size and middle point of each cluster."""
    return [
        {
            "cluster": k,
            "clips": size,
            "log2 bpp, middle point": float(clusters.log_rate[k, middle]),
            "PSNR, middle point, dB": float(clusters.quality[k, middle]),
        }
        for k, size in enumerate(clusters.sizes)
    ]


def evaluation_report(
    evaluation: Evaluation,
    embeddings: Mapping[str, Float[np.ndarray, "n _"]],
    echoes: EchoSet,
    *,
    codec: Codec | None = None,
    clusters: int = 5,
    seed: int = 0,
) -> Report:
    """Tables, curves, maps and examples.

    Args:
        evaluation: The scores.
        embeddings: Embeddings to draw maps of, by name.
        echoes: The clips.
        codec: Codec of the curves.
        clusters: Clusters.
        seed: Seed of k-means.
    """
    part = echoes.at(codec)
    labels = fit_clusters(part, clusters=clusters, seed=seed).assign(part)
    report = Report("Evaluation of complexity embeddings")
    counts = {"clips": evaluation.clips, "groups": evaluation.groups, "folds": evaluation.folds}
    report.facts({**counts, "clusters": clusters})
    for title, rows in evaluation.tables().items():
        report.rows(title, rows)
    rate = log_rates(part.measured["bpp"])[:, part.middle]
    for name, z in embeddings.items():
        report.figure(f"Embeddings of {name}", embedding_map(z, rate, part.groups))
    _curves_and_examples(report, part, labels)
    for note in evaluation.notes:
        report.text(note)
    return report


def ladder_report(recommendations: Sequence[Recommendation], failures: Sequence[str]) -> Report:
    """Predicted curves and the steps on them."""
    report = Report("Recommended ladders")
    for each in recommendations:
        facts = f"cluster {each.cluster}, confidence {each.confidence:.2f}"
        report.figure(f"{each.name}: {facts}", predicted_curves(each), "; ".join(each.doubts))
        rows = [dataclasses.asdict(step) for step in each.steps]
        note = f"kbps at {each.fps:.3g} frames a second; quality in dB PSNR: expected, and what a tenth of held-out "
        report.rows("Ladder", rows, note=f"{note}training clips fell below and exceeded. {RATES}.")
    for failure in failures:
        report.text(failure, "Left out")
    return report


def spread_sentence(part: EchoSet, labels: Int[np.ndarray, " n"]) -> str:
    """How much tighter clusters are than sources, in variance of rate at equal quality."""
    rate, quality = log_rates(part.measured["bpp"]), part.measured["psnr"]
    levels = np.quantile(quality, [0.3, 0.5, 0.7])
    rates, beyond = rate_at_quality(rate, quality, levels)
    return (
        f"Variance of log2 rate at equal quality ({', '.join(f'{level:.0f}' for level in levels)} dB): "
        f"{spread_within(rates, labels):.2f} inside clusters, {spread_within(rates, part.groups):.2f} inside sources; "
        f"{beyond.mean():.0%} of the rates lie beyond the measured qualities."
    )


def _curves_and_examples(report: Report, part: EchoSet, labels: np.ndarray) -> None:
    rate, quality = log_rates(part.measured["bpp"]), part.measured["psnr"]
    report.figure("Rate and quality", rq_curves(rate, quality, labels, part.groups), spread_sentence(part, labels))
    report.figure("Examples", example_frames(part, labels), "Middle frames; cluster 0 is the easiest.")


def rq_curves(
    log_rate: Float[np.ndarray, "n c"],
    quality: Float[np.ndarray, "n c"],
    clusters: Int[np.ndarray, " n"],
    groups: Sequence[str],
) -> Figure:
    """Rate-quality curves of all clips, coloured by cluster on the left and by source group on the right.

    Args:
        log_rate: ``log2 bpp``.
        quality: PSNR, in dB.
        clusters: Cluster of each clip.
        groups: Source of each clip.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    names = sorted(set(groups))
    order = np.random.default_rng(0).permutation(len(log_rate))  # so that no colour lies on top of all others
    rate = 2.0**log_rate
    for index in order.tolist():
        left.plot(rate[index], quality[index], color=_colour(int(clusters[index])), alpha=0.35, lw=0.8)
        right.plot(
            rate[index],
            quality[index],
            color=_source_colour(names.index(groups[index]), len(names)),
            alpha=0.35,
            lw=0.8,
        )
    for cluster in range(int(clusters.max()) + 1):
        own = clusters == cluster
        if own.any():
            left.plot(
                2.0 ** log_rate[own].mean(0),
                quality[own].mean(0),
                "o-",
                color=_colour(cluster),
                lw=2.4,
                ms=4,
                label=f"cluster {cluster} ({int(own.sum())})",
            )
    left.legend(frameon=False, fontsize=9)
    left.set(xscale="log", xlabel="bits a pixel", ylabel="PSNR of luma, dB", title="by cluster")
    right.set(xlabel="bits a pixel", title=f"by source ({len(names)} groups)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def embedding_map(z: Float[np.ndarray, "n d"], log_rate: Float[np.ndarray, " n"], groups: Sequence[str]) -> Figure:
    """The first two principal components, coloured by measured complexity and by source group.

    Args:
        z: Embeddings.
        log_rate: ``log2 bpp`` at the middle operating point.
        groups: Source of each clip.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    points = PCA(2, random_state=0).fit_transform(StandardScaler().fit_transform(z))
    names = sorted(set(groups))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    drawn = left.scatter(*points.T, c=log_rate, s=14, cmap="viridis")
    figure.colorbar(drawn, ax=left, label="log2 bits a pixel, middle operating point")
    right.scatter(*points.T, c=[_source_colour(names.index(group), len(names)) for group in groups], s=14)
    left.set(title="by complexity")
    right.set(title=f"by source ({len(names)} groups)")
    for axes in (left, right):
        axes.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second")
    return figure


def example_frames(echoes: EchoSet, clusters: Int[np.ndarray, " n"], *, shown: int = 8) -> Figure:
    """Middle frames of clips of each cluster, one row a cluster, no source twice where that can be.

    Args:
        echoes: The clips.
        clusters: Their clusters.
        shown: Frames a row.
    """
    count = int(clusters.max()) + 1
    figure = Figure(figsize=(1.15 * shown + 1.2, 1.2 * count + 0.2))
    grid = np.atleast_2d(figure.subplots(count, shown))
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.02, top=0.92, wspace=0.05, hspace=0.25)
    for cluster, row in enumerate(grid):
        chosen = _spread_over_sources(np.flatnonzero(clusters == cluster).tolist(), echoes.groups, shown)
        for axes, index in zip(row, [*chosen, *[None] * (shown - len(chosen))], strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if index is None:
                continue
            frames = echoes.pixels([index])[0]
            axes.imshow(to_rgb(frames[len(frames) // 2]))
            axes.set_title(echoes.groups[index][:16], fontsize=6, pad=2)
        row[0].set_ylabel(f"cluster {cluster}", fontsize=9)
    return figure


def predicted_curves(each: Recommendation) -> Figure:
    """Predicted rate-quality curves of a video, one a resolution, with the steps that lie on them."""
    figure, axes = new_axes()
    for k, share in enumerate(each.shares):
        label = f"{max(2, 2 * round(each.height * share / 2))} lines"
        axes.plot(each.kbps[k], each.quality[k], "o-", color=_colour(k), ms=3, label=label)
    steps = [(step.kbps, step.expected_quality) for step in each.steps]
    axes.plot(*zip(*steps, strict=True), "s", color="black", mfc="none", ms=8, label="steps")
    axes.set(xscale="log", xlabel="predicted rate, kbps", ylabel="predicted PSNR, dB")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _spread_over_sources(rows: list[int], groups: Sequence[str], shown: int) -> list[int]:
    taken: dict[str, int] = {}
    ranked = []
    for row in rows:
        taken[groups[row]] = taken.get(groups[row], 0) + 1
        ranked.append((taken[groups[row]], row))
    return [row for _, row in sorted(ranked)[:shown]]


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _source_colour(index: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["hsv"](index / max(1, count))
