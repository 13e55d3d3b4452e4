"""Compression echo contrastive learning: embeddings of videos that tell how hard they are to encode.

Names are loaded when they are first used: the workers that encode import neither torch nor lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_video3d.cecl.clips import ClipSettings as ClipSettings
    from cl_video3d.cecl.clusters import RQClusters as RQClusters
    from cl_video3d.cecl.clusters import fit_clusters as fit_clusters
    from cl_video3d.cecl.echo import EchoSettings as EchoSettings
    from cl_video3d.cecl.echo import echo_vectors as echo_vectors
    from cl_video3d.cecl.echo import measure as measure
    from cl_video3d.cecl.extract import extract as extract
    from cl_video3d.cecl.ladders import fixed_ladder as fixed_ladder
    from cl_video3d.cecl.model import EchoModel as EchoModel
    from cl_video3d.cecl.model import ModelConfig as ModelConfig
    from cl_video3d.cecl.model import load_model as load_model
    from cl_video3d.cecl.objective import echo_loss as echo_loss
    from cl_video3d.cecl.store import EchoSet as EchoSet
    from cl_video3d.cecl.store import read_store as read_store
    from cl_video3d.cecl.training import train_echo as train_echo

_HOME = {
    "clips": ("ClipSettings",),
    "clusters": ("RQClusters", "fit_clusters"),
    "echo": ("EchoSettings", "echo_vectors", "measure"),
    "extract": ("extract",),
    "ladders": ("fixed_ladder",),
    "model": ("EchoModel", "ModelConfig", "load_model"),
    "objective": ("echo_loss",),
    "store": ("EchoSet", "read_store"),
    "training": ("train_echo",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
