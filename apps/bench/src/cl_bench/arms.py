"""What a claim is: arms with their scores, and whether one exceeds another."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Claim:
    """The outcome of one claim.

    Attributes:
        name: For instance ``mantis: random forest``.
        statement: What is claimed.
        scores: Score of every arm, one number a seed.
        better: Arm that should score higher.
        baseline: Arm it is compared with.
        gate: Whether the claim is one the method stands on, or only reported.
        details: Further tables, ``title -> rows``.
        notes: What a reader has to know.
        seconds: Wall time.
        curves: Line plots, ``title -> name -> (x, y)``, drawn in the report.
    """

    name: str
    statement: str
    scores: Mapping[str, Sequence[float]]
    better: str
    baseline: str
    gate: bool
    details: Mapping[str, list[dict[str, Any]]]
    notes: Sequence[str]
    seconds: float
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def difference(self) -> list[float]:
        """Paired difference, seed by seed."""
        return [a - b for a, b in zip(self.scores[self.better], self.scores[self.baseline], strict=True)]

    @property
    def holds(self) -> bool:
        """Whether the mean difference is positive."""
        return statistics.fmean(self.difference) > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        difference = self.difference
        return {
            "name": self.name,
            "statement": self.statement,
            "holds": self.holds,
            "gate": self.gate,
            "arms": {
                arm: {"mean": statistics.fmean(values), "sd": _spread(values), "values": list(values)}
                for arm, values in self.scores.items()
            },
            "paired_difference": {
                "mean": statistics.fmean(difference),
                "sd": _spread(difference),
                "values": difference,
            },
            "details": dict(self.details),
            "notes": list(self.notes),
            "curves": {title: dict(lines) for title, lines in self.curves.items()},
            "seconds": round(self.seconds, 1),
        }


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
