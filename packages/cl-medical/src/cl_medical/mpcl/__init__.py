"""MPCL: semi-supervised 3-D segmentation with several prototypes a class."""

from cl_medical.mpcl.ihpg import Prototypes, PrototypeSettings, histogram_seeds, ihpg, spread
from cl_medical.mpcl.model import NetworkConfig, VNet
from cl_medical.mpcl.objective import fuse, prototype_contrast, prototype_cross_entropy, prototype_maps, supervised_loss
from cl_medical.mpcl.predict import Segmentation, Segmenter, labelled_prototypes
from cl_medical.mpcl.system import MethodSettings, SegmentationSystem, resolve_method
from cl_medical.mpcl.training import evaluate_cases, load_split, train_volumes

__all__ = [
    "MethodSettings",
    "NetworkConfig",
    "PrototypeSettings",
    "Prototypes",
    "Segmentation",
    "SegmentationSystem",
    "Segmenter",
    "VNet",
    "evaluate_cases",
    "fuse",
    "histogram_seeds",
    "ihpg",
    "labelled_prototypes",
    "load_split",
    "prototype_contrast",
    "prototype_cross_entropy",
    "prototype_maps",
    "resolve_method",
    "spread",
    "supervised_loss",
    "train_volumes",
]
