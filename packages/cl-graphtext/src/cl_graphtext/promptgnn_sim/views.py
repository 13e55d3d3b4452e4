"""Random draws of a training step: further nodes, and the disturbed views of GRACE."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cl_graphtext.graphs.sampling import Block

GRACE_VIEWS = ((0.2, 0.3), (0.4, 0.4))
"""Shares of edges dropped and of features masked, in each of the two views (Zhu et al., 2020)."""


def further_nodes(nodes: Int[Tensor, " b"], share: float, total: int, draw: torch.Generator) -> Int[Tensor, " m"]:
    """Random nodes beside those of a batch, each once: ``share`` a node of the batch, less those already in it."""
    drawn = torch.randint(total, (round(share * len(nodes)),), generator=draw).unique()
    return drawn[~torch.isin(drawn, nodes)]


def disturbed(
    block: Block, x: Float[Tensor, "m d"], edges: float, features: float, draw: torch.Generator
) -> tuple[Block, Float[Tensor, "m d"]]:
    """A view of a piece of a graph: a share of its edges dropped (not those to itself), a share of features zero.

    Args:
        block: The piece.
        x: Features of its nodes.
        edges: Share of edges dropped.
        features: Share of features that are masked, the same of all nodes.
        draw: Source of randomness.
    """
    loop = block.edge_index[0] == block.edge_index[1]
    keep = loop | (torch.rand(block.edge_index.shape[1], generator=draw) >= edges)
    seen = torch.rand(x.shape[1], generator=draw) >= features
    piece = dataclasses.replace(block, edge_index=block.edge_index[:, keep], edge_weight=block.edge_weight[keep])
    return piece, x * seen
