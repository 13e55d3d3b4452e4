"""Time series: reading them from the files they come in, resizing them, sample data."""

from cl_signals.series.reading import find_sets, read_labelled, read_series, read_split
from cl_signals.series.sets import SeriesSet, class_names, encode_labels, resize, to_batch

__all__ = [
    "SeriesSet",
    "class_names",
    "encode_labels",
    "find_sets",
    "read_labelled",
    "read_series",
    "read_split",
    "resize",
    "to_batch",
]
