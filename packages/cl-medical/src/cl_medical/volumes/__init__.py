"""Volumes on disk and in memory: readers, cases and splits, plans, grids, patches, windows, metrics, sample data."""

from cl_medical.volumes.cases import Case, CaseSet, read_cases
from cl_medical.volumes.grid import Preprocessing
from cl_medical.volumes.metrics import (
    IGNORED,
    Distances,
    case_metrics,
    confusion,
    dice,
    jaccard,
    largest_component,
    surface_distances,
)
from cl_medical.volumes.names import case_name, find_volumes
from cl_medical.volumes.nifti import write_nifti
from cl_medical.volumes.plan import DataOptions, DataPlan
from cl_medical.volumes.reading import read_image, read_label, read_pair, spacing, volume_of
from cl_medical.volumes.sliding import slide
from cl_medical.volumes.splits import Split, SplitSettings, make_split

__all__ = [
    "IGNORED",
    "Case",
    "CaseSet",
    "DataOptions",
    "DataPlan",
    "Distances",
    "Preprocessing",
    "Split",
    "SplitSettings",
    "case_metrics",
    "case_name",
    "confusion",
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
    "volume_of",
    "write_nifti",
]
