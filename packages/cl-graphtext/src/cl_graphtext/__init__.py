"""Contrastive learning for graphs whose nodes carry text: structure and language aligned with PromptGNN-sim."""

from importlib.metadata import version

__version__ = version("cl-graphtext")
