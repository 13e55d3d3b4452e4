"""APKH: attribute-prompted kernel hashing, binary codes that carry over to categories never seen in training."""

from cl_retrieval.apkh.attributes import ATTRIBUTES, Bank, read_bank
from cl_retrieval.apkh.inference import APKHEncoder
from cl_retrieval.apkh.model import APKH, APKHConfig
from cl_retrieval.apkh.objective import attribute_kernel, effective_number, gaussian_overlap, js_divergence, kernel_nce
from cl_retrieval.apkh.prompts import ContextCentres, PromptOptions, ResidualCentres
from cl_retrieval.apkh.system import APKHSystem, ObjectiveSettings, Settings
from cl_retrieval.apkh.training import train_apkh

__all__ = [
    "APKH",
    "ATTRIBUTES",
    "APKHConfig",
    "APKHEncoder",
    "APKHSystem",
    "Bank",
    "ContextCentres",
    "ObjectiveSettings",
    "PromptOptions",
    "ResidualCentres",
    "Settings",
    "attribute_kernel",
    "effective_number",
    "gaussian_overlap",
    "js_divergence",
    "kernel_nce",
    "read_bank",
    "train_apkh",
]
