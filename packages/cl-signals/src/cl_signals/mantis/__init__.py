"""Mantis: embeddings of time series, their pre-training, and CauKer's synthetic corpora.

Names are loaded when they are first used: drawing a corpus needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_signals.mantis.estimators import MantisClassifier as MantisClassifier
    from cl_signals.mantis.estimators import MantisTransformer as MantisTransformer
    from cl_signals.mantis.inference import Readout as Readout
    from cl_signals.mantis.inference import SeriesClassifier as SeriesClassifier
    from cl_signals.mantis.inference import embed as embed
    from cl_signals.mantis.model import Mantis as Mantis
    from cl_signals.mantis.model import MantisConfig as MantisConfig
    from cl_signals.mantis.objective import mantis_contrastive as mantis_contrastive
    from cl_signals.mantis.synthetic import CauKerSettings as CauKerSettings
    from cl_signals.mantis.synthetic import generate as generate
    from cl_signals.mantis.synthetic import read_corpus as read_corpus
    from cl_signals.mantis.synthetic import write_corpus as write_corpus
    from cl_signals.mantis.system import ClassifierSettings as ClassifierSettings
    from cl_signals.mantis.system import PretrainSettings as PretrainSettings
    from cl_signals.mantis.training import pretrain_encoder as pretrain_encoder
    from cl_signals.mantis.training import train_classifier as train_classifier

_HOME = {
    "estimators": ("MantisClassifier", "MantisTransformer"),
    "inference": ("Readout", "SeriesClassifier", "embed"),
    "model": ("Mantis", "MantisConfig"),
    "objective": ("mantis_contrastive",),
    "synthetic": ("CauKerSettings", "generate", "read_corpus", "write_corpus"),
    "system": ("ClassifierSettings", "PretrainSettings"),
    "training": ("pretrain_encoder", "train_classifier"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
