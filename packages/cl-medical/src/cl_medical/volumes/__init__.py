"""Volumes on disk and in memory: readers, cases and splits, grids, windows, metrics, sample data."""

from cl_medical.volumes.cases import Case, CaseSet, Split, find_volumes, make_split, read_cases
from cl_medical.volumes.grid import Preprocessing
from cl_medical.volumes.metrics import Distances, case_metrics, dice, jaccard, largest_component, surface_distances
from cl_medical.volumes.reading import read_image, read_label, read_pair, spacing, write_nifti
from cl_medical.volumes.sliding import slide

__all__ = [
    "Case",
    "CaseSet",
    "Distances",
    "Preprocessing",
    "Split",
    "case_metrics",
    "dice",
    "find_volumes",
    "jaccard",
    "largest_component",
    "make_split",
    "read_cases",
    "read_image",
    "read_label",
    "read_pair",
    "slide",
    "spacing",
    "surface_distances",
    "write_nifti",
]
