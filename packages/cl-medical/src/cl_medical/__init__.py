"""Contrastive learning for medical images."""

from importlib.metadata import version

__version__ = version("cl-medical")
