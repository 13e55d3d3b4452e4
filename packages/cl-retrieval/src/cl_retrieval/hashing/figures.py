"""Pictures of a report: what queries find, curves, and what the bits are like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.report import PALETTE, Report
from jaxtyping import Float

from cl_retrieval.hashing.codes import binary_codes, bit_correlation, unpack_codes
from cl_retrieval.hashing.evaluation import COLUMNS, table_rows
from cl_retrieval.hashing.learning import HashModel
from cl_retrieval.hashing.split import Split, places
from cl_retrieval.pairs.features import PairFeatures

SHOWN_QUERIES = 6
SHOWN_RESULTS = 8


def add_evaluation(
    report: Report, model: HashModel, features: PairFeatures, split: Split, results: dict[str, Any], *, where: object
) -> None:
    """Add tables, curves, bits and the picture grid of an evaluation."""
    report.table(
        "Mean average precision",
        list(COLUMNS),
        table_rows(results),
        note="features: mAP of the frozen features by cosine",
    )
    report.figure("Precision and recall over Hamming radii", pr_figure(results))
    report.figure("Precision of the first N", top_figure(results))
    codes = {m: unpack_codes(binary_codes(model, features.of(m), m), model.bits) for m in ("image", "text")}
    report.figure(
        "Bits", bits_figure(codes), "share of items with the bit on, and correlation of bits over both modalities"
    )
    name, group = next(iter(split.groups.items()))
    grid = result_grid(model, features, places(features, group.queries, where), places(features, group.database, where))
    if grid is not None:
        report.figure(
            "What queries find",
            grid,
            f"group {name}; text above its nearest images, then image before them; green frames share a class",
        )


def pr_figure(results: dict[str, Any]) -> Any:
    """Precision against recall, one line a group and direction."""
    figure, axes = _axes("recall", "precision")
    for index, (name, entry) in enumerate(_lines(results)):
        axes.plot(
            entry["pr"]["recall"], entry["pr"]["precision"], label=name, color=PALETTE[index], marker=".", linewidth=1.5
        )
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    return figure


def top_figure(results: dict[str, Any]) -> Any:
    """Precision of the first N against N."""
    figure, axes = _axes("N", "precision")
    for index, (name, entry) in enumerate(_lines(results)):
        axes.plot(
            [int(k) for k in entry["precision"]],
            list(entry["precision"].values()),
            label=name,
            color=PALETTE[index],
            marker=".",
        )
    axes.set_xscale("log")
    axes.legend(frameon=False)
    return figure


def bits_figure(codes: dict[str, Float[np.ndarray, "n bits"]]) -> Any:
    """How often each bit is on, and how bits correlate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, values) in enumerate(codes.items()):
        left.step(range(values.shape[1]), (values > 0).mean(0), where="mid", label=name, color=PALETTE[index])
    left.axhline(0.5, color="grey", linewidth=0.8)
    left.set(xlabel="bit", ylabel="share on", ylim=(0, 1), title="balance")
    left.legend(frameon=False)
    shown = right.imshow(bit_correlation(np.concatenate(list(codes.values()))), vmin=-1, vmax=1, cmap="RdBu_r")
    right.set(xlabel="bit", ylabel="bit", title="correlation")
    figure.colorbar(shown, ax=right)
    return figure


def result_grid(model: HashModel, features: PairFeatures, query: np.ndarray, database: np.ndarray) -> Any | None:
    """Queries and the nearest images; none where the image files are not known or no longer there."""
    from contrastive_core.evaluation import hamming_distances
    from matplotlib.figure import Figure

    if (
        not features.images
        or not features.labelled("the grid").any()
        or not Path(features.images[int(database[0])]).is_file()
    ):
        return None
    labels = features.labelled("the grid")
    image, text = (binary_codes(model, features.of(m), m) for m in ("image", "text"))
    chosen = query[np.linspace(0, len(query) - 1, min(SHOWN_QUERIES, len(query))).astype(int)]
    rows = [(place, kind) for place in chosen for kind in ("text", "image")]
    figure = Figure(figsize=(1.3 * (SHOWN_RESULTS + 1), 1.35 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), SHOWN_RESULTS + 1, squeeze=False)
    for line, (place, kind) in zip(axes, rows, strict=True):
        code = (text if kind == "text" else image)[place : place + 1]
        distance = hamming_distances(code, image[database])[0]
        nearest = np.argsort(distance, kind="stable")[:SHOWN_RESULTS]
        _query_cell(line[0], features, int(place), kind)
        for cell in line[1:]:
            cell.set_axis_off()
        for cell, found in zip(line[1:], nearest, strict=False):
            other = int(database[found])
            good = bool((labels[place] & labels[other]).any())
            _picture(cell, features.images[other], "#009E73" if good else "#BBBBBB")
            cell.set_title(f"{distance[found]} bits", fontsize=7)
    return figure


def _query_cell(cell: Any, features: PairFeatures, place: int, kind: str) -> None:
    if kind == "image":
        _picture(cell, features.images[place], "#0072B2")
        return
    cell.set_axis_off()
    text = features.texts[place] if features.texts else features.ids[place]
    cell.text(0.5, 0.5, _wrapped(text), ha="center", va="center", fontsize=7, parse_math=False)


def _picture(cell: Any, path: str, frame: str) -> None:
    from cl_retrieval.pairs.raw import open_image

    image = open_image(Path(path))
    image.thumbnail((128, 128))
    cell.set_axis_on()
    cell.imshow(np.asarray(image))
    cell.set(xticks=[], yticks=[])
    for spine in cell.spines.values():
        spine.set(color=frame, linewidth=2)


def _wrapped(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 18)[:5])


def _axes(xlabel: str, ylabel: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _lines(results: dict[str, Any]) -> Sequence[tuple[str, dict[str, Any]]]:
    return [
        (f"{group}, {'image → text' if direction == 'i2t' else 'text → image'}", entry[direction])
        for group, entry in results["groups"].items()
        for direction in ("i2t", "t2i")
    ]
