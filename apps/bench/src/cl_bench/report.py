"""Outcomes of claims and races as text for a terminal, and of claims as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from contrastive_core.report import Report
from contrastive_core.tables import columns_of, text_table

Outcomes = Sequence[Mapping[str, Any]]
"""What :meth:`cl_bench.arms.Outcome.to_dict` gives."""


def statement_rows(outcomes: Outcomes) -> list[dict[str, Any]]:
    """A row for every statement: its inequality, the verdict, and by how much it is exceeded."""
    rows = []
    for each in outcomes:
        gap = each["paired_difference"]
        low, high = gap["interval"] or (None, None)
        rows.append(
            {
                "claim": each["name"],
                "statement": each["statement"],
                "verdict": each["verdict"],
                "gate": "gate" if each["gate"] else "reported",
                "difference": gap["mean"],
                "95 % from": low,
                "to": high,
                "n": gap["n"],
                "test": gap["test"],
            }
        )
    return rows


def arm_rows(outcomes: Outcomes) -> list[dict[str, Any]]:
    """A row for every arm in every metric and condition that a statement is about."""
    rows = {}
    for each in outcomes:
        for arm, score in each["arms"].items():
            key = (each["condition"], each["metric"], arm)
            labels = {"condition": each["condition"] or None, "metric": each["metric"], "arm": arm}
            rows[key] = labels | {"mean": score["mean"], "sd": score["sd"], "n": len(score["values"])}
    return list(rows.values())


def claim_text(outcomes: Outcomes) -> str:
    """The outcomes of one method, for a terminal: two lines a statement, a table of the arms, and the notes."""
    rows = arm_rows(outcomes)
    columns = [name for name in columns_of(rows) if any(row[name] is not None for row in rows)]
    notes = dict.fromkeys(note for each in outcomes for note in each["notes"])
    return "\n".join(
        [*(_statement(row) for row in statement_rows(outcomes)), "", text_table(rows, columns), "", *notes]
    )


def _statement(row: Mapping[str, Any]) -> str:
    interval = "" if row["95 % from"] is None else f", 95 % interval {row['95 % from']:+.4f} to {row['to']:+.4f}"
    return (
        f"{row['claim']}: {row['verdict']}\n"
        f"  {row['statement']}: exceeded by {row['difference']:+.4f}{interval} ({row['test']}), {row['gate']}"
    )


def claims_report(outcomes: Outcomes) -> Report:
    """All outcomes as a page."""
    report = Report("Claims")
    report.rows("Outcome", statement_rows(outcomes))
    report.rows("Arms", arm_rows(outcomes))
    for each in outcomes:
        for title, rows in each["details"].items():
            report.rows(title, rows)
        for title, lines in each["curves"].items():
            report.curve(title, lines, "training size", "score")
    for note in dict.fromkeys(note for each in outcomes for note in each["notes"]):
        report.text(note)
    return report


def speed_text(entry: Mapping[str, Any]) -> str:
    """One race in one line; every ratio with its threads and rounds."""
    low, high = entry["ratios"]
    rounds, threads = entry["rounds"], entry["threads"]
    parts = [
        f"{threads} thread{'' if threads == 1 else 's'}",
        "1 round" if rounds == 1 else f"{rounds} rounds from {low:.2f}x to {high:.2f}x",
        f"{entry['ours_seconds']:.4g} s against {entry['theirs_seconds']:.4g} s",
        f"peak {entry['ours_peak_mib']:.0f} against {entry['theirs_peak_mib']:.0f} MiB",
        *([entry["notes"]] if entry["notes"] else []),
    ]
    return f"{entry['name']}: {entry['ratio']:.2f}x {entry['peer']} ({'; '.join(parts)})"
