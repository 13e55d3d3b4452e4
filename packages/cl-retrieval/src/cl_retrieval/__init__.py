"""Search across images and texts with binary codes."""

from importlib.metadata import version

__version__ = version("cl-retrieval")
