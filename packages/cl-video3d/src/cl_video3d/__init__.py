"""Contrastive learning for video and 3-D: clustering of videos by how hard they are to encode, with CECL."""

from importlib.metadata import version

__version__ = version("cl-video3d")
