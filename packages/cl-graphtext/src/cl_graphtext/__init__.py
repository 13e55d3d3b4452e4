"""Graphs whose nodes carry text."""

from importlib.metadata import version

__version__ = version("cl-graphtext")
