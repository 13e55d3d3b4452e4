"""Contrastive representation learning for time series."""

from importlib.metadata import version

__version__ = version("cl-medical")
