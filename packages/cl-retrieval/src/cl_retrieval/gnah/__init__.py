"""GNAH: global-neighbourhood alignment hashing, binary codes from few unlabelled image-text pairs."""

from cl_retrieval.gnah.learner import GNAHLearner, GNAHSettings
from cl_retrieval.gnah.model import GNAH, GNAHConfig
from cl_retrieval.gnah.objective import binary_anchors, cluster_means, global_weight, prototype_alignment

__all__ = [
    "GNAH",
    "GNAHConfig",
    "GNAHLearner",
    "GNAHSettings",
    "binary_anchors",
    "cluster_means",
    "global_weight",
    "prototype_alignment",
]
