"""How good frozen features, rankings, clusterings and probabilities are.

Names are loaded when they are first used: importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contrastive_core.evaluation.calibration import IsotonicScaler as IsotonicScaler
    from contrastive_core.evaluation.calibration import TemperatureScaler as TemperatureScaler
    from contrastive_core.evaluation.calibration import expected_calibration_error as expected_calibration_error
    from contrastive_core.evaluation.codes import hamming_distances as hamming_distances
    from contrastive_core.evaluation.codes import pack_codes as pack_codes
    from contrastive_core.evaluation.probes import ProbeKind as ProbeKind
    from contrastive_core.evaluation.probes import ProbeResult as ProbeResult
    from contrastive_core.evaluation.probes import fit_probe as fit_probe
    from contrastive_core.evaluation.probes import probe as probe
    from contrastive_core.evaluation.retrieval import RetrievalRanking as RetrievalRanking
    from contrastive_core.evaluation.retrieval import RetrievalScores as RetrievalScores
    from contrastive_core.evaluation.retrieval import retrieval_scores as retrieval_scores

_HOME = {
    "calibration": ("IsotonicScaler", "TemperatureScaler", "expected_calibration_error"),
    "codes": ("hamming_distances", "pack_codes"),
    "probes": ("ProbeKind", "ProbeResult", "fit_probe", "probe"),
    "retrieval": ("RetrievalRanking", "RetrievalScores", "retrieval_scores"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
