"""Pictures of the reports."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from contrastive_core.report import PALETTE
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from cl_video3d.cecl.store import EchoSet
from cl_video3d.video.reading import to_rgb


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
        mine = clusters == cluster
        if mine.any():
            left.plot(
                2.0 ** log_rate[mine].mean(0),
                quality[mine].mean(0),
                "o-",
                color=_colour(cluster),
                lw=2.4,
                ms=4,
                label=f"cluster {cluster} ({int(mine.sum())})",
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
    figure = Figure(figsize=(1.15 * shown + 1.2, 1.2 * count + 0.2), layout="constrained")
    grid = np.atleast_2d(figure.subplots(count, shown))
    for cluster, row in enumerate(grid):
        mine = _spread_over_sources(np.flatnonzero(clusters == cluster).tolist(), echoes.groups, shown)
        for axes, index in zip(row, [*mine, *[None] * (shown - len(mine))], strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if index is None:
                continue
            frames = echoes.pixels([index])[0]
            axes.imshow(to_rgb(frames[len(frames) // 2]))
            axes.set_title(echoes.groups[index][:16], fontsize=6, pad=2)
        row[0].set_ylabel(f"cluster {cluster}", fontsize=9)
    return figure


def predicted_curves(rows: Sequence[dict[str, Any]]) -> Figure:
    """Predicted rate-quality curves of new videos.

    Args:
        rows: With ``name``, ``cluster``, ``log_rate`` and ``quality``.
    """
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(rows):
        axes.plot(
            2.0 ** row["log_rate"],
            row["quality"],
            "o-",
            color=_colour(index),
            ms=4,
            label=f"{row['name']} (cluster {row['cluster']})",
        )
    axes.set(xscale="log", xlabel="predicted bits a pixel", ylabel="predicted PSNR, dB")
    axes.spines[["top", "right"]].set_visible(False)
    if len(rows) <= 12:
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
