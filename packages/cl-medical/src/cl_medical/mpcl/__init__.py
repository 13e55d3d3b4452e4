"""MPCL: semi-supervised 3-D segmentation with several prototypes a class."""

from cl_medical.mpcl.data import TrainingData, in_memory, read_training
from cl_medical.mpcl.evaluation import Evaluation, compare_runs, evaluate_cases
from cl_medical.mpcl.ihpg import Prototypes, PrototypeSettings, histogram_seeds, ihpg, spread
from cl_medical.mpcl.inference import Segmentation, Segmenter, labelled_prototypes
from cl_medical.mpcl.model import NetworkConfig, VNet
from cl_medical.mpcl.objective import fuse, prototype_contrast, prototype_cross_entropy, prototype_maps, supervised_loss
from cl_medical.mpcl.plan import TrainingPlan, make_plan
from cl_medical.mpcl.presets import ObjectiveSettings
from cl_medical.mpcl.system import OptimSettings, SegmentationSystem, Settings
from cl_medical.mpcl.training import train_segmenter

__all__ = [
    "Evaluation",
    "NetworkConfig",
    "ObjectiveSettings",
    "OptimSettings",
    "PrototypeSettings",
    "Prototypes",
    "Segmentation",
    "SegmentationSystem",
    "Segmenter",
    "Settings",
    "TrainingData",
    "TrainingPlan",
    "VNet",
    "compare_runs",
    "evaluate_cases",
    "fuse",
    "histogram_seeds",
    "ihpg",
    "in_memory",
    "labelled_prototypes",
    "make_plan",
    "prototype_contrast",
    "prototype_cross_entropy",
    "prototype_maps",
    "read_training",
    "spread",
    "supervised_loss",
    "train_segmenter",
]
