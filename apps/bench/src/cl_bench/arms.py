"""The form of a claim: arms that are trained and scored by seed, statements about them, and verdicts with intervals.

A claim module measures its arms (:func:`measure`) and compares them (:func:`compare`):

    arms = {"trained": train_and_score, "untrained": score_untrained}
    table = measure("method", arms, seeds)
    statements = [Statement("trained beats untrained", "accuracy", "trained", "untrained", margin=0.01, gate=True)]
    return compare("method", statements, table, notes=["what was trained on what"])
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from contrastive_core.tables import show
from jaxtyping import Float

from cl_bench.verdicts import Interval, paired_interval, spread

Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Line plots, ``name -> (x, y)``."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one arm scores with one seed.

    Attributes:
        metrics: Score by metric.
        items: Scores of the single test items by metric, for those metrics that are a mean over items; the same items
            in the same order for all arms and seeds.
        details: Rows of a further table, such as one for each data set.
    """

    metrics: Mapping[str, float]
    items: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    details: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        for metric, scores in self.items.items():
            if not np.isclose(np.mean(scores), self.metrics[metric], rtol=1e-4, atol=1e-6, equal_nan=True):
                raise ValueError(f"{metric} is {self.metrics[metric]}, the mean over its items {np.mean(scores)}")


Arm = Callable[[int], Result]
"""Trains and scores one seed."""


@dataclasses.dataclass(frozen=True)
class Statement:
    """``better > factor x baseline + margin`` in a metric.

    Attributes:
        statement: What is claimed, in words.
        metric: Metric of both arms.
        better: Arm that should be the better one.
        baseline: Arm it is compared with, or a fixed level.
        margin: By how much it should be better; negative where it may be worse.
        factor: Multiple of the baseline that counts.
        gate: Whether the method stands on it; others are reported whatever comes out.
        condition: Under which both arms were measured, such as ``80 pairs, 32 bits``.
        lower: Whether lower values are better: ``better < factor x baseline - margin``.
        deterministic: Whether nothing in it is drawn, so that one measurement decides.
    """

    statement: str
    metric: str
    better: str
    baseline: str | float
    margin: float = 0.0
    factor: float = 1.0
    gate: bool = False
    condition: str = ""
    lower: bool = False
    deterministic: bool = False

    @property
    def formula(self) -> str:
        """The claim as an inequality.

        Example:
            >>> Statement("twice as good", "mAP", "ours", "theirs", margin=-0.01, factor=2).formula
            'ours > 2 x theirs - 0.01'
        """
        baseline = self.baseline if isinstance(self.baseline, str) else f"{self.baseline:g}"
        times = "" if self.factor == 1 else f"{self.factor:g} x "
        sign = "-" if (self.margin < 0) != self.lower else "+"
        margin = f" {sign} {abs(self.margin):g}" if self.margin else ""
        return f"{self.better} {'<' if self.lower else '>'} {times}{baseline}{margin}"

    def surplus(self, better: Any, baseline: Any) -> Any:
        """How far a score, or an array of them, is on the right side of what the statement asks for."""
        return (-1 if self.lower else 1) * (better - self.factor * baseline) - self.margin


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of one arm under one condition with one seed."""

    condition: str
    arm: str
    seed: int
    result: Result


@dataclasses.dataclass(frozen=True)
class Table:
    """Results of all arms, in the order they were measured, and the seconds that took."""

    rows: tuple[Row, ...]
    seconds: float

    def __add__(self, other: "Table") -> "Table":
        return Table(self.rows + other.rows, self.seconds + other.seconds)

    def conditions(self) -> list[str]:
        """Conditions in the order they were measured."""
        return list(dict.fromkeys(row.condition for row in self.rows))

    def arms(self, condition: str = "") -> list[str]:
        """Arms measured under a condition."""
        return list(dict.fromkeys(row.arm for row in self.rows if row.condition == condition))

    def of(self, arm: str, condition: str = "") -> list[Row]:
        """Results of an arm under a condition, one a seed.

        Raises:
            KeyError: There are none.
        """
        rows = [row for row in self.rows if (row.arm, row.condition) == (arm, condition)]
        if not rows:
            raise KeyError(f"no arm {arm!r} was measured under the condition {condition!r}")
        return rows

    def values(self, metric: str, arm: str, condition: str = "") -> list[float]:
        """Values of a metric, one a seed.

        Raises:
            KeyError: The arm was not measured, or not in this metric.
        """
        rows = self.of(arm, condition)
        if metric not in rows[0].result.metrics:
            raise KeyError(f"the arm {arm!r} has no metric {metric!r}")
        return [row.result.metrics[metric] for row in rows]

    def items(self, metric: str, arm: str, condition: str = "") -> Float[np.ndarray, "n m"] | None:
        """Scores of the single test items, a row a seed, where the arm has them for this metric."""
        rows = [row.result.items.get(metric) for row in self.of(arm, condition)]
        if any(row is None for row in rows):
            return None
        return np.stack([np.asarray(row, dtype=float) for row in rows])

    def curves(self, metrics: Sequence[str], conditions: Mapping[float, str]) -> Lines:
        """Mean over seeds and metrics against a number, for arms that were measured more than once.

        Args:
            metrics: Metrics whose mean is drawn.
            conditions: Condition at every number of the horizontal axis.
        """
        lines = {}
        for arm in dict.fromkeys(row.arm for row in self.rows):
            x = [number for number, condition in conditions.items() if arm in self.arms(condition)]
            if len(x) > 1:
                means = [
                    statistics.fmean(value for metric in metrics for value in self.values(metric, arm, conditions[at]))
                    for at in x
                ]
                lines[arm] = (x, means)
        return lines

    def summary(self) -> list[dict[str, Any]]:
        """A row for every arm and condition: mean and standard deviation over seeds of every metric."""
        rows = []
        for condition in self.conditions():
            for arm in self.arms(condition):
                row: dict[str, Any] = {"condition": condition} if condition else {}
                row["arm"] = arm
                for metric in self.of(arm, condition)[0].result.metrics:
                    values = self.values(metric, arm, condition)
                    row |= {metric: statistics.fmean(values), f"{metric} ±": spread(values)}
                rows.append(row)
        return rows

    def runs(self) -> list[dict[str, Any]]:
        """A row for every arm, condition and seed."""
        return [_labels(row) | dict(row.result.metrics) for row in self.rows]

    def details(self) -> list[dict[str, Any]]:
        """The further rows that arms gave, with arm, condition and seed."""
        return [_labels(row) | dict(each) for row in self.rows for each in row.result.details]


def measure(method: str, arms: Mapping[str, Arm], seeds: Sequence[int], *, condition: str = "") -> Table:
    """Train and score all arms with all seeds, with a line on standard error for each.

    A seed is finished with all arms before the next one begins, so that arms can share what is made once a seed
    (``functools.lru_cache(maxsize=1)``).

    Args:
        method: Method, as it is called in the lines.
        arms: Function of each arm.
        seeds: Seeds, the same for all arms.
        condition: What is the same for these arms and differs from others of the claim.
    """
    started, rows = time.perf_counter(), []
    for seed in seeds:
        for arm, score in arms.items():
            before = time.perf_counter()
            result = score(seed)
            rows.append(Row(condition, arm, seed, result))
            where = ", ".join([*([condition] if condition else []), f"seed {seed}"])
            scores = ", ".join(f"{metric} {show(float(value))}" for metric, value in result.metrics.items())
            seconds = time.perf_counter() - before
            print(f"{method}: {arm}, {where}: {scores} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    return Table(tuple(rows), time.perf_counter() - started)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out of one statement.

    Attributes:
        name: Method and statement.
        claim: The statement.
        scores: Values of every arm that was measured in its metric and condition, one a seed.
        difference: By how much the statement is exceeded, one a seed: ``better - factor x baseline - margin``, or
            ``factor x baseline - margin - better`` where lower is better.
        interval: Its mean, its interval, and how that was computed.
        notes: What a reader has to know.
        seconds: Wall time of the whole table.
        details: Further tables, ``title -> rows``.
        curves: Line plots, ``title -> lines``.
    """

    name: str
    claim: Statement
    scores: Mapping[str, Sequence[float]]
    difference: Sequence[float]
    interval: Interval
    notes: Sequence[str]
    seconds: float
    details: Mapping[str, Sequence[Mapping[str, Any]]]
    curves: Mapping[str, Lines]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        known = self.interval.low == self.interval.low
        return {
            "name": self.name,
            "statement": self.claim.formula,
            "verdict": self.interval.verdict,
            "holds": self.interval.verdict == "holds",
            "gate": self.claim.gate,
            "metric": self.claim.metric,
            "condition": self.claim.condition,
            "arms": {
                arm: {"mean": statistics.fmean(values), "sd": spread(values), "values": list(values)}
                for arm, values in self.scores.items()
            },
            "paired_difference": {
                "mean": self.interval.mean,
                "sd": spread(self.difference),
                "values": list(self.difference),
                "n": len(self.difference),
                "interval": [self.interval.low, self.interval.high] if known else None,
                "test": self.interval.test,
            },
            "details": {title: list(rows) for title, rows in self.details.items()},
            "notes": list(self.notes),
            "curves": {title: dict(lines) for title, lines in self.curves.items()},
            "seconds": round(self.seconds, 1),
        }


def compare(
    method: str,
    statements: Sequence[Statement],
    table: Table,
    *,
    notes: Sequence[str],
    curves: Mapping[str, Lines] | None = None,
) -> list[Outcome]:
    """The verdict of every statement; the first one carries all numbers of the table.

    Args:
        method: Method, the beginning of every name.
        statements: What is claimed.
        table: Results of the arms.
        notes: What a reader has to know about data, sizes and budget.
        curves: Line plots, ``title -> lines``.

    Raises:
        KeyError: A statement names an arm, a metric or a condition that was not measured.
    """
    details = {
        f"{method}: means over seeds": table.summary(),
        f"{method}: every arm and seed": table.runs(),
        f"{method}: details": table.details(),
    }
    outcomes = [_outcome(method, claim, table, notes) for claim in statements]
    filled = {title: rows for title, rows in details.items() if rows}
    return [dataclasses.replace(outcomes[0], details=filled, curves=curves or {}), *outcomes[1:]]


def _outcome(method: str, claim: Statement, table: Table, notes: Sequence[str]) -> Outcome:
    scores = {
        arm: table.values(claim.metric, arm, claim.condition)
        for arm in table.arms(claim.condition)
        if claim.metric in table.of(arm, claim.condition)[0].result.metrics
    }
    better = table.values(claim.metric, claim.better, claim.condition)
    items = table.items(claim.metric, claim.better, claim.condition)
    if isinstance(claim.baseline, str):
        baseline = table.values(claim.metric, claim.baseline, claim.condition)
        others = table.items(claim.metric, claim.baseline, claim.condition)
    else:
        baseline, others = [claim.baseline] * len(better), np.asarray(claim.baseline)
    difference = [claim.surplus(a, b) for a, b in zip(better, baseline, strict=True)]
    pairs = None if items is None or others is None else claim.surplus(items, others)
    interval = paired_interval(difference, pairs, deterministic=claim.deterministic)
    return Outcome(f"{method}: {claim.statement}", claim, scores, difference, interval, notes, table.seconds, {}, {})


def _labels(row: Row) -> dict[str, Any]:
    return {**({"condition": row.condition} if row.condition else {}), "arm": row.arm, "seed": row.seed}
