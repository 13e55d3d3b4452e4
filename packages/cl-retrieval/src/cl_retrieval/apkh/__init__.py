"""APKH: attribute-prompted kernel hashing, binary codes that carry over to categories never seen in training."""

from cl_retrieval.apkh.attributes import ATTRIBUTES, Bank, read_bank
from cl_retrieval.apkh.learner import APKHLearner, APKHSettings
from cl_retrieval.apkh.model import APKH, APKHConfig
from cl_retrieval.apkh.objective import attribute_kernel, effective_number, gaussian_overlap, js_divergence, kernel_nce
from cl_retrieval.apkh.prompts import ContextCentres, PromptOptions, ResidualCentres

__all__ = [
    "APKH",
    "ATTRIBUTES",
    "APKHConfig",
    "APKHLearner",
    "APKHSettings",
    "Bank",
    "ContextCentres",
    "PromptOptions",
    "ResidualCentres",
    "attribute_kernel",
    "effective_number",
    "gaussian_overlap",
    "js_divergence",
    "kernel_nce",
    "read_bank",
]
