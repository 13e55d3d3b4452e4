"""Mantis: embeddings of time series, their pre-training, and CauKer's synthetic corpora."""

from cl_signals.mantis.data import SeriesSet, read_series, read_split, to_batch
from cl_signals.mantis.embed import embed
from cl_signals.mantis.estimators import MantisClassifier, MantisTransformer
from cl_signals.mantis.model import Mantis, MantisConfig, load_model, save_model
from cl_signals.mantis.objective import mantis_contrastive
from cl_signals.mantis.synthetic import CauKerSettings, generate, read_corpus, write_corpus

__all__ = [
    "CauKerSettings",
    "Mantis",
    "MantisClassifier",
    "MantisConfig",
    "MantisTransformer",
    "SeriesSet",
    "embed",
    "generate",
    "load_model",
    "mantis_contrastive",
    "read_corpus",
    "read_series",
    "read_split",
    "save_model",
    "to_batch",
    "write_corpus",
]
