"""Results as tables: for the terminal, for files, and as JSON."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.files import atomic_write

Table = tuple[str, list[dict[str, Any]]]
"""A title and rows of the same columns."""


def as_tables(results: dict[str, Any]) -> list[Table]:
    """Results of evaluation or out-of-distribution detection as titled tables."""
    tables: list[Table] = []
    places = {name: results[name] for name in ("features", "mean") if results.get(name)}
    flat = {
        name: {**{k: v for k, v in each.items() if k != "factors"}, **each.get("factors", {})}
        for name, each in places.items()
    }
    if flat:
        names = list(next(iter(flat.values())))
        tables.append(
            ("Test images", [{"measure": m, **{place: each[m] for place, each in flat.items()}} for m in names])
        )
    if results.get("selection"):
        tables.append(("Factors with the largest activation", results["selection"]))
    if results.get("uncertainty"):
        tables.append(
            ("Finding the probe's errors", [{"score": name, **each} for name, each in results["uncertainty"].items()])
        )
    for key, title in (
        ("robustness", "Accuracy on corrupted test images, probes fitted on clean ones"),
        ("ood", "In- against out-of-distribution"),
        ("spearman_with_severity", "Rank correlation with the severity of corruptions"),
        ("corruptions", "Corruptions against clean images"),
    ):
        if results.get(key):
            tables.append((title, results[key]))
    return tables


def as_text(tables: Sequence[Table]) -> str:
    """Tables with aligned columns, for a terminal."""
    blocks = []
    for title, rows in tables:
        columns = list(rows[0])
        lines = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
        blocks.append("\n".join([title, *("  " + line.rstrip() for line in shown)]))
    return "\n\n".join(blocks)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows, atomically."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def finite(value: Any) -> Any:
    """NaN as null, which JSON has."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
