"""CauKer: synthetic series from Gaussian processes and random causal graphs (arXiv 2508.02879)."""

from cl_signals.mantis.synthetic.corpus import read_corpus, write_corpus
from cl_signals.mantis.synthetic.generator import PRESETS, CauKerSettings, Preset, generate, preset

__all__ = ["PRESETS", "CauKerSettings", "Preset", "generate", "preset", "read_corpus", "write_corpus"]
