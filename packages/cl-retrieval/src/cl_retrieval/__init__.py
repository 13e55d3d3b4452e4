"""Contrastive learning for search: binary codes for images and text, and the index they are searched with."""

from importlib.metadata import version

__version__ = version("cl-retrieval")
