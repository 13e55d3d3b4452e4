"""Numbers as text: one form for terminals, files and reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from contrastive_core.files import json_text


def show(value: Any) -> str:
    """A cell as text: three decimals for ordinary numbers, a dash for what is missing.

    Example:
        >>> [show(value) for value in (0.12345, 12345.6, 1e-5, 3, True, None, float("nan"))]
        ['0.123', '12,346', '1e-05', '3', 'yes', '-', '-']
    """
    if value is None or value != value:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.3g}"
    return f"{value:.3f}" if size == 0 or size >= 0.001 else f"{value:.2g}"


def is_number(value: Any) -> bool:
    """Whether a cell is a number, which stands at the right of its column."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def text_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as a table for a terminal.

    Args:
        rows: Cells by column; a missing one is shown as a dash.
        columns: Columns in their order; those of all rows if absent.

    Example:
        >>> print(text_table([{"class": "left", "Dice": 0.91234}, {"class": "right", "Dice": 0.8}]))
        class   Dice
        -----  -----
        left   0.912
        right  0.800
    """
    names = list(columns) if columns is not None else columns_of(rows)
    cells = [[show(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) if cells else len(name) for i, name in enumerate(names)]
    right = [any(is_number(row.get(name)) for row in rows) for name in names]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def print_rows(rows: Sequence[Mapping[str, Any]], *, json: bool = False, title: str = "") -> None:
    """Print rows as a table, or as JSON.

    Args:
        rows: Cells by column.
        json: Print JSON.
        title: A line above the table.
    """
    if json:
        print(json_text(list(rows)))
        return
    if title:
        print(title)
    print(text_table(rows))
