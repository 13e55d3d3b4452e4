"""Claims and speed of every method, measured beside their baselines."""

from importlib.metadata import version

__version__ = version("cl-bench")
