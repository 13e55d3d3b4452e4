"""Names of :mod:`cl_bench.measures`."""

from cl_bench.measures import Speed, race

__all__ = ["Speed", "race"]
