"""Video and 3-D: representations from how content behaves."""

from importlib.metadata import version

__version__ = version("cl-video3d")
