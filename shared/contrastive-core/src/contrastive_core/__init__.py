"""Contrastive learning shared by the domain packages: losses, training, evaluation, run folders, reports."""

from importlib.metadata import version

__version__ = version("contrastive-core")
