"""What the training commands of both methods have in common: their options, their report, their tuning."""

import dataclasses
import itertools
import json as json_format
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import write_json
from contrastive_core.report import Report
from contrastive_core.training.run_folder import RunFolder
from cyclopts import Parameter
from jaxtyping import Float

from cl_retrieval.hashing.evaluation import evaluate_split, pair_recall
from cl_retrieval.hashing.figures import add_evaluation
from cl_retrieval.hashing.learning import HashModel
from cl_retrieval.hashing.split import Protocol, Split, draw_split, places
from cl_retrieval.pairs.features import PairFeatures


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Where features come from.

    Attributes:
        encoder: open_clip:ARCHITECTURE/TAG-OR-PATH, local-dir:FOLDER, or the folder of a stand-in; by default what lies
            beside the pairs as ``encoder``, else CLIP ViT-B/16. Not needed for feature files.
        device: Device of the encoder.
        normalise: Bring every row of a feature file to unit length, also where normalised and raw rows are mixed.
    """

    encoder: str | None = None
    device: str = "cpu"
    normalise: bool = False


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """What trains and what is asked.

    Attributes:
        pairs: Training pairs; 80 by default, or all where there are fewer.
        queries: Pairs set apart as queries; a quarter of labelled pairs by default (at most 2,000), of others none.
        protocol: ``standard``, or ``seen-unseen``: training pairs of half of the classes, queries of both halves.
        split_seed: Seed of queries and training pairs.
        class_seed: Seed of the division of classes.
    """

    pairs: int | None = None
    queries: int | None = None
    protocol: Protocol = "standard"
    split_seed: int = 42
    class_seed: int = 0


def split_of(features: PairFeatures, options: SplitOptions) -> Split:
    """The division that options ask for."""
    return draw_split(
        features,
        protocol=options.protocol,
        pairs=options.pairs,
        queries=options.queries,
        seed=options.split_seed,
        class_seed=options.class_seed,
    )


def finish_training(
    run: RunFolder,
    model: HashModel,
    features: PairFeatures,
    split: Split,
    *,
    method: str,
    facts: Mapping[str, Any],
    where: object,
) -> None:
    """Write the split, evaluate it where there are labels, and write the report.

    Args:
        run: The run.
        model: The trained model.
        features: All pairs.
        split: Their division.
        method: Name of the method.
        facts: What else stands at the head of the report.
        where: The data, for messages.
    """
    write_json(run.path / "split.json", split.to_dict())
    report = Report(f"{method}: {run.path.name}")
    report.facts(
        {
            "data": f"{where} ({len(features)} pairs)",
            "encoder": features.encoder,
            "training pairs": len(split.train),
            "bits": model.bits,
            **facts,
        }
    )
    metrics = run.metrics()
    names = [name for name in dict.fromkeys(name for row in metrics for name in row) if name not in ("step", "epoch")]
    terms = [name for name in names if not name.startswith(("bit_", "distinct"))]
    for title, shown in (
        ("Loss", terms),
        ("Bits of the training pairs", [n for n in names if n not in terms and n != "distinct_anchors"]),
    ):
        lines = {n: ([r["step"] for r in metrics if n in r], [r[n] for r in metrics if n in r]) for n in shown}
        if any(len(x) > 1 for x, _ in lines.values()):
            report.curve(title, lines, "step", "value")
    results: dict[str, Any] = {"train": len(split.train)}
    if split.groups and features.labels is not None:
        results |= evaluate_split(model, features, split, where=where)
        add_evaluation(report, model, features, split, results, where=where)
    run.write_results(results)
    report.write(run.path / "report.html")


def tune(
    features: PairFeatures,
    split: Split,
    grid: Mapping[str, Sequence[float | int]],
    train: Callable[[dict[str, Any], Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]], HashModel],
    *,
    out: Path | None,
    json: bool,
    where: object,
) -> None:
    """Train every setting of a grid and rank them by how well held-out pairs find each other; labels are not looked at.

    Args:
        features: All pairs.
        split: Its training pairs train four fifths; the last fifth is held out, with up to 500 others that are not
            queries.
        grid: Option to values.
        train: Trains one setting on image and text features.
        out: Folder for tune.json.
        json: Print JSON.
        where: The data, for messages.
    """
    rows = places(features, split.train, where)
    held = max(2, len(rows) // 5)
    if len(rows) - held < 4:
        raise InputError(
            "too few pairs to hold some out", where="--pairs", why=f"got {len(rows)}", remedy="use at least 6"
        )
    taken = set(split.train) | {name for group in split.groups.values() for name in group.queries}
    others = [row for row, name in enumerate(features.ids) if name not in taken][
        : 500 if split.protocol == "standard" else 0
    ]
    inner, outer = rows[:-held], np.concatenate([rows[-held:], np.array(others, dtype=np.int64)])
    results = []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        model = train(setting, features.image[inner], features.text[inner])
        results.append({**setting, "pair_mrr": pair_recall(model, features.take(outer))})
    results.sort(key=lambda row: -row["pair_mrr"])
    if out is not None:
        write_json(out / "tune.json", {"held_out": len(outer), "trained_on": len(inner), "results": results})
    if json:
        print(json_format.dumps(results, indent=2))
    else:
        print(text_table([*grid, "pair MRR"], [list(row.values()) for row in results]))


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns of text; numbers with four digits, a dash where there is nothing."""
    shown = [
        list(columns),
        *([f"{v:.4g}" if isinstance(v, float) else "-" if v is None else str(v) for v in row] for row in rows),
    ]
    widths = [max(len(row[i]) for row in shown) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown
    )
