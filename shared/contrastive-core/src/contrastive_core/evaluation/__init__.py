"""How good frozen features, rankings, clusterings and probabilities are.

Names are loaded when they are first used: importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contrastive_core.evaluation.calibration import IsotonicScaler as IsotonicScaler
    from contrastive_core.evaluation.calibration import TemperatureScaler as TemperatureScaler
    from contrastive_core.evaluation.calibration import expected_calibration_error as expected_calibration_error
    from contrastive_core.evaluation.clustering import ClusteringScores as ClusteringScores
    from contrastive_core.evaluation.clustering import cluster_accuracy as cluster_accuracy
    from contrastive_core.evaluation.clustering import kmeans_scores as kmeans_scores
    from contrastive_core.evaluation.codes import hamming_distances as hamming_distances
    from contrastive_core.evaluation.codes import pack_codes as pack_codes
    from contrastive_core.evaluation.geometry import PairGeometry as PairGeometry
    from contrastive_core.evaluation.geometry import Spectrum as Spectrum
    from contrastive_core.evaluation.geometry import alignment as alignment
    from contrastive_core.evaluation.geometry import class_consistency as class_consistency
    from contrastive_core.evaluation.geometry import effective_rank as effective_rank
    from contrastive_core.evaluation.geometry import orthogonality as orthogonality
    from contrastive_core.evaluation.geometry import purity_at as purity_at
    from contrastive_core.evaluation.geometry import sparsity as sparsity
    from contrastive_core.evaluation.geometry import uniformity as uniformity
    from contrastive_core.evaluation.geometry import vendi_score as vendi_score
    from contrastive_core.evaluation.neighbours import knn_probabilities as knn_probabilities
    from contrastive_core.evaluation.outliers import OutlierScores as OutlierScores
    from contrastive_core.evaluation.outliers import auroc_fpr95 as auroc_fpr95
    from contrastive_core.evaluation.probes import ProbeKind as ProbeKind
    from contrastive_core.evaluation.probes import ProbeResult as ProbeResult
    from contrastive_core.evaluation.probes import fit_probe as fit_probe
    from contrastive_core.evaluation.probes import probe as probe
    from contrastive_core.evaluation.retrieval import RetrievalRanking as RetrievalRanking
    from contrastive_core.evaluation.retrieval import RetrievalScores as RetrievalScores
    from contrastive_core.evaluation.retrieval import retrieval_scores as retrieval_scores

_HOME = {
    "calibration": (
        "IsotonicScaler",
        "TemperatureScaler",
        "expected_calibration_error",
    ),
    "clustering": (
        "ClusteringScores",
        "cluster_accuracy",
        "kmeans_scores",
    ),
    "codes": (
        "hamming_distances",
        "pack_codes",
    ),
    "geometry": (
        "PairGeometry",
        "Spectrum",
        "alignment",
        "class_consistency",
        "effective_rank",
        "orthogonality",
        "purity_at",
        "sparsity",
        "uniformity",
        "vendi_score",
    ),
    "neighbours": ("knn_probabilities",),
    "outliers": (
        "OutlierScores",
        "auroc_fpr95",
    ),
    "probes": (
        "ProbeKind",
        "ProbeResult",
        "fit_probe",
        "probe",
    ),
    "retrieval": (
        "RetrievalRanking",
        "RetrievalScores",
        "retrieval_scores",
    ),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
