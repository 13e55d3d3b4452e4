"""``report.html``: one self-contained page of curves, tables and pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contrastive_core.files import write_text

# Okabe and Ito's palette, told apart with every kind of colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7A5C00", "#000000")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #0072B2; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 0 .6rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .92rem; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; }
th { background: var(--soft); } .number { text-align: right; } .best { font-weight: 700; color: var(--accent); }
figure { margin: 0; } img { max-width: 100%; height: auto; background: white; border-radius: 6px; }
figcaption, .note { font-size: .88rem; opacity: .8; }
</style></head><body>
<h1>{{ title }}</h1>
{% if facts %}<dl>{% for name, value in facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>{% endif %}
{% for part in parts %}
{% if part.title %}<h2>{{ part.title }}</h2>{% endif %}
{% if part.kind == "text" %}<p>{{ part.text }}</p>
{% elif part.kind == "table" %}<div class="scroll"><table><thead><tr>
{% for column in part.columns %}
<th{% if loop.index0 in part.numeric %} class="number"{% endif %}>{{ column }}</th>
{% endfor %}
</tr></thead><tbody>
{% for row in part.rows %}<tr>
{% for cell in row %}<td class="{{ cell.style }}">{{ cell.text }}</td>{% endfor %}
</tr>{% endfor %}</tbody></table></div>{% if part.note %}<p class="note">{{ part.note }}</p>{% endif %}
{% else %}<figure><img alt="{{ part.title }}" src="data:image/png;base64,{{ part.png }}">
{% if part.caption %}<figcaption>{{ part.caption }}</figcaption>{% endif %}</figure>{% endif %}
{% endfor %}
</body></html>
"""


class Report:
    """A page that grows from top to bottom.

    Args:
        title: Heading of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._facts: list[tuple[str, str]] = []
        self._parts: list[dict[str, Any]] = []

    def facts(self, values: Mapping[str, Any]) -> None:
        """Add short facts below the heading; floats are shown with four digits."""
        self._facts += [
            (name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in values.items()
        ]

    def text(self, text: str, title: str = "") -> None:
        """Add a paragraph."""
        self._parts.append({"kind": "text", "title": title, "text": text})

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        best: Sequence[int] = (),
        note: str = "",
    ) -> None:
        """Add a table.

        Args:
            title: Heading.
            columns: Names of the columns.
            rows: Cells; floats are shown with three decimals, ``None`` as a dash.
            best: Columns among which the highest number of each row is marked.
            note: A line below the table.

        Raises:
            ValueError: A row has another length than the columns.
        """
        numeric = {
            index for index in range(len(columns)) if any(_is_number(row[index]) for row in rows if index < len(row))
        }
        shown = []
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row has {len(row)} cells, the table {len(columns)} columns")
            numbers = [row[index] for index in best if _is_number(row[index])]
            cells = []
            for index, value in enumerate(row):
                marks = ["number"] if index in numeric else []
                if index in best and numbers and _is_number(value) and value == max(numbers):
                    marks.append("best")
                cells.append({"text": _show(value), "style": " ".join(marks)})
            shown.append(cells)
        self._parts.append(
            {"kind": "table", "title": title, "columns": columns, "rows": shown, "numeric": numeric, "note": note}
        )

    def curve(
        self,
        title: str,
        lines: Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]],
        xlabel: str,
        ylabel: str,
    ) -> None:
        """Add line plots in one picture.

        Args:
            title: Heading.
            lines: ``name -> (x, y)``.
            xlabel: Label of the horizontal axis.
            ylabel: Label of the vertical axis.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        for index, (name, (x, y)) in enumerate(lines.items()):
            # A single point makes no line.
            marker = "o" if len(x) == 1 else ""
            axes.plot(x, y, label=name, color=PALETTE[index % len(PALETTE)], linewidth=1.8, marker=marker)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False)
        self.figure(title, figure)

    def figure(self, title: str, figure: Any, caption: str = "") -> None:
        """Add a matplotlib figure as an embedded picture."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        png = base64.b64encode(buffer.getvalue()).decode()
        self._parts.append({"kind": "figure", "title": title, "png": png, "caption": caption})

    def html(self) -> str:
        """The page."""
        import jinja2

        page = jinja2.Environment(autoescape=True).from_string(_PAGE)
        return page.render(title=self.title, facts=self._facts, parts=self._parts)

    def write(self, path: Path | str) -> Path:
        """Write the page, atomically, and return its path."""
        write_text(path, self.html())
        return Path(path)


def scatter(axes: Any, points: Any, labels: Sequence[str], title: str) -> None:
    """Draw points in the plane, one colour a label.

    Args:
        axes: Matplotlib axes.
        points: ``[n 2]``.
        labels: ``[n]``.
        title: Title of the axes.
    """
    names = sorted(set(labels))
    for index, name in enumerate(names):
        mine = [place for place, label in enumerate(labels) if label == name]
        axes.scatter(
            points[mine, 0],
            points[mine, 1],
            s=16,
            alpha=0.8,
            label=name,
            color=PALETTE[index % len(PALETTE)],
            marker="os^vD*PX"[index // len(PALETTE) % 8],
        )
    axes.set(title=title, xticks=[], yticks=[])
    if len(names) <= 12:
        axes.legend(frameon=False, fontsize=8, title="class")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _show(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
