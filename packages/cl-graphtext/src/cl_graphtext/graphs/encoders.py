"""Graph encoders of two ``torch_geometric`` layers, the attention of the first, and inference without messages."""

import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, SAGEConv
from torch_geometric.utils import softmax

from cl_graphtext.graphs.sampling import Block, Csr

Kind = Literal["gat", "gcn", "sage"]


class GraphEncoder(nn.Module):
    """Two layers: ``d -> heads x 32 -> ELU -> width`` with attention, or ``d -> width -> ELU -> width`` without.

    Edges come with a weight each: an edge feature of the attention, a factor of a GCN's messages, nothing to GraphSAGE.

    Args:
        kind: Layer.
        dim: Width of the input.
        width: Width of the output.
        heads: Attention heads of the first layer, of ``width / heads`` each.
        dropout: Of inputs, hidden rows and attention.
    """

    def __init__(self, kind: Kind, dim: int, width: int, *, heads: int = 8, dropout: float = 0.5) -> None:
        super().__init__()
        self.kind, self.dropout = kind, dropout
        if kind == "gat":
            options = {"dropout": dropout, "edge_dim": 1, "add_self_loops": False}
            self.first: nn.Module = GATConv(dim, width // heads, heads=heads, **options)
            self.second: nn.Module = GATConv(width, width, heads=1, **options)
        elif kind == "gcn":
            self.first, self.second = (GCNConv(d, width, add_self_loops=False) for d in (dim, width))
        else:
            self.first, self.second = SAGEConv(dim, width), SAGEConv(width, width)

    def forward(
        self, x: Float[Tensor, "n d"], edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, "e 1"]
    ) -> Float[Tensor, "n w"]:
        """One row a node of the piece."""
        x = F.dropout(x, self.dropout, self.training)
        hidden = F.elu(self._layer(self.first, x, edge_index, edge_weight))
        hidden = F.dropout(hidden, self.dropout, self.training)
        return self._layer(self.second, hidden, edge_index, edge_weight)

    @torch.no_grad()
    def infer(self, x: Float[Tensor, "n d"], block: Block) -> Float[Tensor, "n w"]:
        """The same in eval mode for a whole graph.

        Attention is applied as a sparse matrix a head, so that no message of any edge is ever held: memory grows with
        nodes times width, not with edges times width.
        """
        if self.kind != "gat":
            return self(x, block.edge_index, block.edge_weight)
        order = torch.argsort(block.edge_index[1], stable=True)
        edges, weight = block.edge_index[:, order], block.edge_weight[order]
        hidden = F.elu(attend(self.first, x, edges, weight))
        return attend(self.second, hidden, edges, weight)

    def _layer(self, layer: nn.Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        if self.kind == "gat":
            return layer(x, edge_index, edge_weight)
        if self.kind == "gcn":
            return layer(x, edge_index, edge_weight[:, 0])
        return layer(x, edge_index)


def attention_weights(
    layer: GATConv, hidden: Float[Tensor, "n h c"], edges: Int[Tensor, "2 e"], weight: Float[Tensor, "e 1"]
) -> Float[Tensor, "e h"]:
    """Softmax attention of a GAT layer over the in-edges of every node, from its projected rows."""
    source = (hidden * layer.att_src).sum(-1)
    target = (hidden * layer.att_dst).sum(-1)
    # The edge feature is one number: its projection onto the attention vector is one number a head.
    slope = (layer.lin_edge.weight.view(1, layer.heads, layer.out_channels) * layer.att_edge).sum(-1)
    logits = F.leaky_relu(source[edges[0]] + target[edges[1]] + weight * slope, layer.negative_slope)
    return softmax(logits, edges[1], num_nodes=len(hidden))


def attend(
    layer: GATConv, x: Float[Tensor, "n d"], edges: Int[Tensor, "2 e"], weight: Float[Tensor, "e 1"]
) -> Float[Tensor, "n w"]:
    """A GAT layer in eval mode, over edges sorted by target."""
    n = len(x)
    hidden = layer.lin(x).view(n, layer.heads, layer.out_channels)
    alpha = attention_weights(layer, hidden, edges, weight)
    rows = torch.cat([edges.new_zeros(1), torch.bincount(edges[1], minlength=n).cumsum(0)])
    out = torch.empty_like(hidden)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Sparse CSR tensor support is in beta.*")
        for head in range(layer.heads):
            mix = torch.sparse_csr_tensor(rows, edges[0], alpha[:, head].contiguous(), (n, n), check_invariants=False)
            out[:, head] = mix @ hidden[:, head].contiguous()
    return out.flatten(1) + layer.bias


@torch.no_grad()
def first_attention(layer: GATConv, x: Float[Tensor, "n d"], csr: Csr) -> Float[Tensor, " e"]:
    """Attention of a node to each of its neighbours, mean over heads; that to itself is left out and made up for.

    Args:
        layer: First layer of a GAT.
        x: Its input.
        csr: The graph, without self-loops; edges count as weight 1.

    Returns:
        One number an edge in the order of ``csr.sources``, the in-edges of a node adding up to 1.
    """
    n, links = len(x), len(csr.sources)
    home, x = x.device, x.to(layer.att_src.device)
    hidden = layer.lin(x).view(n, layer.heads, layer.out_channels)
    ends = [torch.from_numpy(side.astype("int64")) for side in (csr.sources, csr.targets())]
    pairs = torch.stack(ends).to(x.device)
    edges = torch.cat([pairs, torch.arange(n, device=x.device).expand(2, n)], 1)
    weights = attention_weights(layer, hidden, edges, x.new_ones(edges.shape[1], 1))[:links].mean(1)
    total = x.new_zeros(n).index_add(0, pairs[1], weights)
    return (weights / total[pairs[1]].clamp_min(1e-12)).to(home)
