"""PromptGNN-sim: graph and language aligned on text-attributed graphs."""

from cl_graphtext.promptgnn_sim.model import CrossModalBlock, Fused, Fusion, Inputs, Network, NetworkConfig
from cl_graphtext.promptgnn_sim.objective import alignment, classification, directed_alignment, link_loss
from cl_graphtext.promptgnn_sim.pipeline import Fitted, GraphView, Pipeline
from cl_graphtext.promptgnn_sim.prompts import Bounds, Keywords, build_prompts, neighbourhood_keywords
from cl_graphtext.promptgnn_sim.selection import Selection, SelectionSettings, adaptive_weights, select
from cl_graphtext.promptgnn_sim.system import GraphSystem, ObjectiveSettings, OptimSettings, StageSettings, embed_nodes
from cl_graphtext.promptgnn_sim.training import LinkSplit, Model, Recipe, split_links, train_links, train_nodes

__all__ = [
    "Bounds",
    "CrossModalBlock",
    "Fitted",
    "Fused",
    "Fusion",
    "GraphSystem",
    "GraphView",
    "Inputs",
    "Keywords",
    "LinkSplit",
    "Model",
    "Network",
    "NetworkConfig",
    "ObjectiveSettings",
    "OptimSettings",
    "Pipeline",
    "Recipe",
    "Selection",
    "SelectionSettings",
    "StageSettings",
    "adaptive_weights",
    "alignment",
    "build_prompts",
    "classification",
    "directed_alignment",
    "embed_nodes",
    "link_loss",
    "neighbourhood_keywords",
    "select",
    "split_links",
    "train_links",
    "train_nodes",
]
