"""Compression echo contrastive learning: embeddings of videos that tell how hard they are to encode.

Names are loaded when they are first used: the workers that encode import neither torch nor lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_video3d.cecl.clips import ClipSettings as ClipSettings
    from cl_video3d.cecl.clusters import RQClusters as RQClusters
    from cl_video3d.cecl.clusters import fit_clusters as fit_clusters
    from cl_video3d.cecl.data import EchoSet as EchoSet
    from cl_video3d.cecl.data import measure_clips as measure_clips
    from cl_video3d.cecl.echo import EchoSettings as EchoSettings
    from cl_video3d.cecl.echo import echo_vectors as echo_vectors
    from cl_video3d.cecl.echo import measure as measure
    from cl_video3d.cecl.evaluation import evaluate_features as evaluate_features
    from cl_video3d.cecl.extraction import measure_videos as measure_videos
    from cl_video3d.cecl.folder import read_echoes as read_echoes
    from cl_video3d.cecl.inference import EchoEncoder as EchoEncoder
    from cl_video3d.cecl.objective import echo_loss as echo_loss
    from cl_video3d.cecl.recommendation import LadderPredictor as LadderPredictor
    from cl_video3d.cecl.recommendation import Recommendation as Recommendation
    from cl_video3d.cecl.recommendation import fit_ladders as fit_ladders
    from cl_video3d.cecl.resolutions import fixed_ladder as fixed_ladder
    from cl_video3d.cecl.system import Settings as Settings
    from cl_video3d.cecl.training import train_echo as train_echo

_HOME = {
    "clips": ("ClipSettings",),
    "clusters": ("RQClusters", "fit_clusters"),
    "data": ("EchoSet", "measure_clips"),
    "echo": ("EchoSettings", "echo_vectors", "measure"),
    "evaluation": ("evaluate_features",),
    "extraction": ("measure_videos",),
    "folder": ("read_echoes",),
    "inference": ("EchoEncoder",),
    "objective": ("echo_loss",),
    "recommendation": ("LadderPredictor", "Recommendation", "fit_ladders"),
    "resolutions": ("fixed_ladder",),
    "system": ("Settings",),
    "training": ("train_echo",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
