"""Mantis: embeddings of time series, their pre-training, and CauKer's synthetic corpora."""

from cl_signals.mantis.estimators import MantisClassifier, MantisTransformer
from cl_signals.mantis.inference import Readout, SeriesClassifier, embed
from cl_signals.mantis.model import Mantis, MantisConfig
from cl_signals.mantis.objective import mantis_contrastive
from cl_signals.mantis.synthetic import CauKerSettings, generate, read_corpus, write_corpus
from cl_signals.mantis.system import ClassifierSettings, PretrainSettings
from cl_signals.mantis.training import pretrain_encoder, train_classifier

__all__ = [
    "CauKerSettings",
    "ClassifierSettings",
    "Mantis",
    "MantisClassifier",
    "MantisConfig",
    "MantisTransformer",
    "PretrainSettings",
    "Readout",
    "SeriesClassifier",
    "embed",
    "generate",
    "mantis_contrastive",
    "pretrain_encoder",
    "read_corpus",
    "train_classifier",
    "write_corpus",
]
