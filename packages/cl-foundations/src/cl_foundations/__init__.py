"""Foundations of contrastive learning: embeddings as distributions over readable factors."""

from importlib.metadata import version

__version__ = version("cl-foundations")
