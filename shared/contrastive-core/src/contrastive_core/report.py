"""``report.html``: one self-contained page of curves, tables and pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contrastive_core.files import write_text
from contrastive_core.tables import columns_of, is_number, show

if TYPE_CHECKING:
    from contrastive_core.training.run_folder import RunFolder

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
        """Add short facts below the heading."""
        self._facts += [(name, show(value)) for name, value in values.items()]

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
            rows: Cells; numbers are shown as :func:`contrastive_core.tables.show` says, ``None`` as a dash.
            best: Columns among which the highest number of each row is marked.
            note: A line below the table.

        Raises:
            ValueError: A row has another length than the columns.
        """
        numeric = {
            index for index in range(len(columns)) if any(is_number(row[index]) for row in rows if index < len(row))
        }
        shown = []
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row has {len(row)} cells, the table {len(columns)} columns")
            numbers = [row[index] for index in best if is_number(row[index])]
            cells = []
            for index, value in enumerate(row):
                marks = ["number"] if index in numeric else []
                if index in best and numbers and is_number(value) and value == max(numbers):
                    marks.append("best")
                cells.append({"text": show(value), "style": " ".join(marks)})
            shown.append(cells)
        self._parts.append(
            {"kind": "table", "title": title, "columns": columns, "rows": shown, "numeric": numeric, "note": note}
        )

    def rows(self, title: str, rows: Sequence[Mapping[str, Any]], *, best: Sequence[str] = (), note: str = "") -> None:
        """Add a table of rows by column name; nothing where there are no rows.

        Args:
            title: Heading.
            rows: Cells by column; a missing one is shown as a dash.
            best: Columns among which the highest number of each row is marked.
            note: A line below the table.
        """
        if rows:
            names = columns_of(rows)
            marked = [names.index(name) for name in best]
            self.table(title, names, [[row.get(name) for name in names] for row in rows], best=marked, note=note)

    def metrics(self, run: "RunFolder", title: str, names: Mapping[str, str] | Sequence[str] | str, unit: str) -> None:
        """Add curves of what a run logged; nothing where it logged none of them.

        Args:
            run: The run.
            title: Heading.
            names: Logged names, or how each is called in the legend, or what they all start with.
            unit: Label of the vertical axis.
        """
        logged = run.metrics()
        if isinstance(names, str):
            names = [name for name in columns_of(logged) if name.startswith(names)]
        legend = names if isinstance(names, Mapping) else {name: name.replace("_", " ") for name in names}
        lines = {
            label: ([row["step"] for row in logged if name in row], [row[name] for row in logged if name in row])
            for name, label in legend.items()
        }
        lines = {label: line for label, line in lines.items() if line[0]}
        if lines:
            self.curve(title, lines, "step", unit)

    def embedding_map(self, title: str, z: Any, labels: Sequence[str] | None = None, *, caption: str = "") -> None:
        """Add a map of embeddings: their first two principal components, one colour a label.

        Args:
            title: Heading.
            z: ``[n d]``, at least two rows.
            labels: ``[n]``.
            caption: A line below the map.
        """
        from sklearn.decomposition import PCA

        figure, axes = new_axes(width=6.5, height=5)
        model = PCA(min(2, z.shape[1]), random_state=0)
        points = model.fit_transform(z)
        if points.shape[1] == 1:
            points = np.concatenate([points, np.zeros_like(points)], axis=1)
        scatter(axes, points, labels if labels is not None else [""] * len(points))
        share = float(np.nansum(model.explained_variance_ratio_))
        self.figure(title, figure, caption or f"First two principal components, {share:.0%} of the variance.")

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
        figure, axes = new_axes()
        for index, (name, (x, y)) in enumerate(lines.items()):
            # A single point makes no line.
            marker = "o" if len(x) == 1 else ""
            axes.plot(x, y, label=name, color=PALETTE[index % len(PALETTE)], linewidth=1.8, marker=marker)
        axes.set(xlabel=xlabel, ylabel=ylabel)
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


def new_axes(*, width: float = 8, height: float = 4) -> tuple[Any, Any]:
    """A matplotlib figure of the given size in inches, and its axes without the frame's upper and right side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def scatter(axes: Any, points: Any, labels: Sequence[str], title: str = "") -> None:
    """Draw points in the plane, one colour a label; more than twelve labels get no legend.

    Args:
        axes: Matplotlib axes.
        points: ``[n 2]``.
        labels: ``[n]``.
        title: Title of the axes.
    """
    names = sorted(set(labels))
    for index, name in enumerate(names):
        rows = [row for row, label in enumerate(labels) if label == name]
        axes.scatter(
            points[rows, 0],
            points[rows, 1],
            s=16,
            alpha=0.8,
            label=name,
            color=PALETTE[index % len(PALETTE)],
            marker="os^vD*PX"[index // len(PALETTE) % 8],
        )
    axes.set(title=title, xticks=[], yticks=[])
    if 1 < len(names) <= 12:
        axes.legend(frameon=False, fontsize=8, title="class")
