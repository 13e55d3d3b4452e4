"""PromptGNN-sim: graph and language aligned on text-attributed graphs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_graphtext.graphs.graph import TextGraph
    from cl_graphtext.graphs.in_memory import from_data
    from cl_graphtext.promptgnn_sim.evaluation import evaluate, robustness
    from cl_graphtext.promptgnn_sim.inference import GraphModel
    from cl_graphtext.promptgnn_sim.model import ModelConfig
    from cl_graphtext.promptgnn_sim.objective import ObjectiveSettings, alignment
    from cl_graphtext.promptgnn_sim.selection import SelectionSettings, select
    from cl_graphtext.promptgnn_sim.system import GraphSystem, OptimSettings, Settings, StageSettings
    from cl_graphtext.promptgnn_sim.training import train_graph

_ROOMS = {
    "TextGraph": "graphs.graph",
    "from_data": "graphs.in_memory",
    "evaluate": "promptgnn_sim.evaluation",
    "robustness": "promptgnn_sim.evaluation",
    "GraphModel": "promptgnn_sim.inference",
    "ModelConfig": "promptgnn_sim.model",
    "ObjectiveSettings": "promptgnn_sim.objective",
    "alignment": "promptgnn_sim.objective",
    "SelectionSettings": "promptgnn_sim.selection",
    "select": "promptgnn_sim.selection",
    "GraphSystem": "promptgnn_sim.system",
    "OptimSettings": "promptgnn_sim.system",
    "Settings": "promptgnn_sim.system",
    "StageSettings": "promptgnn_sim.system",
    "train_graph": "promptgnn_sim.training",
}

__all__ = [
    "GraphModel",
    "GraphSystem",
    "ModelConfig",
    "ObjectiveSettings",
    "OptimSettings",
    "SelectionSettings",
    "Settings",
    "StageSettings",
    "TextGraph",
    "alignment",
    "evaluate",
    "from_data",
    "robustness",
    "select",
    "train_graph",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: help needs no torch."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"cl_graphtext.{_ROOMS[name]}"), name)
