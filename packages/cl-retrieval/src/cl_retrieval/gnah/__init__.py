"""GNAH: global-neighbourhood alignment hashing, binary codes from few unlabelled image-text pairs."""

from cl_retrieval.gnah.inference import GNAHEncoder
from cl_retrieval.gnah.model import GNAH, GNAHConfig
from cl_retrieval.gnah.objective import binary_anchors, cluster_means, global_weight, prototype_alignment
from cl_retrieval.gnah.system import GNAHSystem, ObjectiveSettings, Settings
from cl_retrieval.gnah.training import train_gnah

__all__ = [
    "GNAH",
    "GNAHConfig",
    "GNAHEncoder",
    "GNAHSystem",
    "ObjectiveSettings",
    "Settings",
    "binary_anchors",
    "cluster_means",
    "global_weight",
    "prototype_alignment",
    "train_gnah",
]
