"""The pages of a training and of an evaluation: scores, curves, what the bits are like, what queries find."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.evaluation import hamming_distances
from contrastive_core.index.interface import Modality
from contrastive_core.report import PALETTE, Report, new_axes
from contrastive_core.training import RunFolder
from jaxtyping import Float

from cl_retrieval.hashing.codes import Hashes, bit_correlation, both_codes, unpack_codes
from cl_retrieval.hashing.evaluation import table_rows
from cl_retrieval.hashing.inference import HashEncoder
from cl_retrieval.hashing.split import Split, places
from cl_retrieval.pairs.features import PairFeatures
from cl_retrieval.pairs.raw import open_image

SHOWN_QUERIES = 6
SHOWN_RESULTS = 8
TERMS = ("loss", "contrast", "alignment", "binarisation", "anchor")


def training_report(
    run: RunFolder,
    hashes: HashEncoder,
    features: PairFeatures,
    split: Split,
    results: Mapping[str, Any],
    *,
    where: object,
) -> Report:
    """The page of a training.

    Args:
        run: The run.
        hashes: The trained functions.
        features: All pairs.
        split: Their division.
        results: What :func:`cl_retrieval.hashing.evaluation.evaluate_if_labelled` gave.
        where: The data.
    """
    report = Report(f"{hashes.kind.upper()}: {run.path.name}")
    report.facts(
        {
            "data": f"{where} ({len(features)} pairs)",
            "encoder": features.encoder,
            "training pairs": len(split.train),
            "bits": hashes.bits,
            **hashes.facts,
        }
    )
    report.metrics(run, "Loss: its terms, weighted", TERMS, "weighted loss")
    report.metrics(run, "Weights of the terms", [f"{name}_weight" for name in TERMS], "weight")
    report.metrics(run, "Bits of the training pairs", "bit_", "")
    if "groups" in results:
        _add_scores(report, hashes, features, split, results, where)
    return report


def evaluation_report(
    run: Path, hashes: HashEncoder, features: PairFeatures, split: Split, results: Mapping[str, Any], *, where: object
) -> Report:
    """The page of an evaluation."""
    report = Report(f"Evaluation of {run}")
    report.facts(
        {"model": hashes.identity.name, "data": f"{where} ({len(features)} pairs)", "protocol": split.protocol}
    )
    _add_scores(report, hashes, features, split, results, where)
    return report


def _add_scores(
    report: Report, hashes: Hashes, features: PairFeatures, split: Split, results: Mapping[str, Any], where: object
) -> None:
    report.rows("Mean average precision", table_rows(results), note="features: mAP of the frozen features by cosine")
    report.figure("Precision and recall over Hamming radii", pr_figure(results))
    report.figure("Precision of the first N", top_figure(results))
    codes = {m: unpack_codes(packed, hashes.bits) for m, packed in both_codes(hashes, features).items()}
    report.figure(
        "Bits", bits_figure(codes), "share of items with the bit on, and correlation of bits over both modalities"
    )
    name, group = next(iter(split.groups.items()))
    query, database = (places(features, ids, where) for ids in (group.queries, group.database))
    grid = result_grid(hashes, features, query, database)
    if grid is not None:
        report.figure(
            "What queries find",
            grid,
            f"group {name}; text above its nearest images, then image before them; green frames share a class",
        )


def pr_figure(results: Mapping[str, Any]) -> Any:
    """Precision against recall, one line a group and direction."""
    figure, axes = new_axes(width=7)
    axes.set(xlabel="recall", ylabel="precision")
    for index, (name, entry) in enumerate(_lines(results)):
        axes.plot(
            entry["pr"]["recall"],
            entry["pr"]["precision"],
            label=name,
            color=PALETTE[index % len(PALETTE)],
            marker=".",
            linewidth=1.5,
        )
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    return figure


def top_figure(results: Mapping[str, Any]) -> Any:
    """Precision of the first N against N."""
    figure, axes = new_axes(width=7)
    axes.set(xlabel="N", ylabel="precision")
    for index, (name, entry) in enumerate(_lines(results)):
        axes.plot(
            [int(k) for k in entry["precision"]],
            list(entry["precision"].values()),
            label=name,
            color=PALETTE[index % len(PALETTE)],
            marker=".",
        )
    axes.set_xscale("log")
    axes.legend(frameon=False)
    return figure


def bits_figure(codes: Mapping[Any, Float[np.ndarray, "n bits"]]) -> Any:
    """How often each bit is on, and how bits correlate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, values) in enumerate(codes.items()):
        left.step(
            range(values.shape[1]), (values > 0).mean(0), where="mid", label=name, color=PALETTE[index % len(PALETTE)]
        )
    left.axhline(0.5, color="grey", linewidth=0.8)
    left.set(xlabel="bit", ylabel="share on", ylim=(0, 1), title="balance")
    left.legend(frameon=False)
    shown = right.imshow(bit_correlation(np.concatenate(list(codes.values()))), vmin=-1, vmax=1, cmap="RdBu_r")
    right.set(xlabel="bit", ylabel="bit", title="correlation")
    figure.colorbar(shown, ax=right)
    return figure


def result_grid(hashes: Hashes, features: PairFeatures, query: np.ndarray, database: np.ndarray) -> Any | None:
    """Queries and the nearest images; none where the image files are not known or no longer there."""
    from matplotlib.figure import Figure

    labels = features.labelled("the grid")
    rows = np.concatenate([query, database])
    if not features.images or not all(Path(features.images[row]).is_file() for row in rows):
        return None
    codes = both_codes(hashes, features)
    chosen = query[np.linspace(0, len(query) - 1, min(SHOWN_QUERIES, len(query))).astype(int)]
    kinds: tuple[Modality, ...] = ("text", "image")
    lines = [(place, kind) for place in chosen for kind in kinds]
    figure = Figure(figsize=(1.3 * (SHOWN_RESULTS + 1), 1.35 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), SHOWN_RESULTS + 1, squeeze=False)
    for line, (place, kind) in zip(axes, lines, strict=True):
        distance = hamming_distances(codes[kind][place : place + 1], codes["image"][database])[0]
        nearest = np.argsort(distance, kind="stable")[:SHOWN_RESULTS]
        _query_cell(line[0], features, int(place), kind)
        for cell in line[1:]:
            cell.set_axis_off()
        for cell, hit in zip(line[1:], nearest, strict=False):
            other = int(database[hit])
            good = bool((labels[place] & labels[other]).any())
            _picture(cell, features.images[other], "#009E73" if good else "#BBBBBB")
            cell.set_title(f"{distance[hit]} bits", fontsize=7)
    return figure


def _query_cell(cell: Any, features: PairFeatures, place: int, kind: str) -> None:
    if kind == "image":
        _picture(cell, features.images[place], "#0072B2")
        return
    cell.set_axis_off()
    text = features.texts[place] if features.texts else features.ids[place]
    cell.text(0.5, 0.5, _wrapped(text), ha="center", va="center", fontsize=7, parse_math=False)


def _picture(cell: Any, path: str, frame: str) -> None:
    image = open_image(Path(path))
    image.thumbnail((128, 128))
    cell.set_axis_on()
    cell.imshow(np.asarray(image))
    cell.set(xticks=[], yticks=[])
    for spine in cell.spines.values():
        spine.set(color=frame, linewidth=2)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 18)[:5])


def _lines(results: Mapping[str, Any]) -> Sequence[tuple[str, dict[str, Any]]]:
    return [
        (f"{group}, {'image → text' if direction == 'i2t' else 'text → image'}", entry[direction])
        for group, entry in results["groups"].items()
        for direction in ("i2t", "t2i")
    ]
