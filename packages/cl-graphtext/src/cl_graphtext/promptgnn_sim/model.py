"""Networks: graph encoder, cross-modal attention in both directions, gated fusion, heads; and the baselines'."""

import dataclasses
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from contrastive_core.errors import require
from contrastive_core.nn import mlp_head
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.nn import GATConv

from cl_graphtext.graphs.encoders import GraphEncoder
from cl_graphtext.graphs.sampling import Block, whole_block
from cl_graphtext.promptgnn_sim.data import GraphView

Method = Literal["promptgnn-sim", "text-mlp", "gcn", "sage", "gat", "grace"]
METHODS: tuple[Method, ...] = get_args(Method)

_EPSILON = 1e-6
"""Added to a score before its logarithm: a neighbour of score 0 gets a millionth of the weight of a self token."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture.

    Attributes:
        width: Width of embeddings, a multiple of the heads.
        heads: Attention heads of the graph encoder's first layer.
        fusion_heads: Heads of the cross-modal attention.
        dropout: Of inputs, hidden rows and graph attention.
        fusion: ``gate``: a learned mixture of both branches; ``concat``: a linear map of both; ``graph``: the graph
            branch alone, which leaves of the method the selection of neighbours.
        prompt: Encode prompts; without, the raw text stands in for them.
        cross_attention: Let graph and text attend to each other; without, each branch stays as it is.
    """

    width: int = 256
    heads: int = 8
    fusion_heads: int = 4
    dropout: float = 0.5
    fusion: Literal["gate", "concat", "graph"] = "gate"
    prompt: bool = True
    cross_attention: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "heads", "fusion_heads"):
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            require(1 <= value <= 1 << 16, option, value, "a whole number from 1 to 65,536")
            require(self.width % value == 0, option, value, f"a divisor of --width {self.width}, a multiple of heads")
        require(0 <= self.dropout < 1, "--dropout", self.dropout, "a share in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a network sees of some target nodes.

    Attributes:
        x: Text embeddings ``[m d]`` of all nodes of the piece.
        block: The piece; its nodes are numbered locally.
        rows: Local numbers of the targets.
        prompts: Prompt embeddings of the targets ``[b d]``.
        neighbours: Their kept neighbours ``[b k]``, local, -1 where there is none.
        scores: Their scores ``[b k]``.
    """

    x: Float[Tensor, "m d"]
    block: Block
    rows: Int[Tensor, " b"]
    prompts: Float[Tensor, "b d"]
    neighbours: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]

    def to(self, device: torch.device) -> "Inputs":
        """The same on another device."""
        return Inputs(
            self.x.to(device),
            self.block.to(device),
            self.rows.to(device),
            self.prompts.to(device),
            self.neighbours.to(device),
            self.scores.to(device),
        )


@dataclasses.dataclass(frozen=True)
class Fused:
    """Embeddings of a batch.

    Attributes:
        z: Final embedding ``[b w]``.
        graph: Output of the graph encoder ``[b w]``.
        text: Text branch after attention ``[b w]``.
        raw: Projected raw text r ``[b w]``.
        prompt: Projected prompt q ``[b w]``.
    """

    z: Float[Tensor, "b w"]
    graph: Float[Tensor, "b w"]
    text: Float[Tensor, "b w"]
    raw: Float[Tensor, "b w"]
    prompt: Float[Tensor, "b w"]

    @classmethod
    def single(cls, z: Float[Tensor, "b w"]) -> "Fused":
        """Of a network with one embedding, every field is that."""
        return cls(z, z, z, z, z)


class CrossModalBlock(nn.Module):
    """Multi-head attention of one query a node over its own short list of tokens, then residual, norm and FFN.

    The same as ``nn.MultiheadAttention`` with an additive bias; but keys and values are projected once a node, not once
    a token, as the lists of a batch name the same nodes again and again.

    Args:
        dim: Width.
        heads: Attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value, self.out = (nn.Linear(dim, dim) for _ in range(3))
        self.key = nn.Linear(dim, dim, bias=False)  # a bias of the keys changes no softmax
        self.norm, self.last_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(
        self,
        query: Float[Tensor, "b d"],
        own: Float[Tensor, "b d"],
        table: Float[Tensor, "m d"],
        index: Int[Tensor, "b t"],
        log_bias: Float[Tensor, "b t"],
    ) -> Float[Tensor, "b d"]:
        """Attend.

        Args:
            query: What asks.
            own: What the result is added to: the node's own token of the modality attended to.
            table: Rows that tokens are taken from.
            index: Tokens of every query, rows of ``table``.
            log_bias: Added to the attention logits; minus infinity for tokens that are not there.
        """
        attended = self.attend(query, table, index, log_bias)
        hidden = self.norm(own + attended)
        return self.last_norm(hidden + self.feed(hidden))

    def attend(self, query: Tensor, table: Tensor, index: Tensor, log_bias: Tensor) -> Tensor:
        """The attention alone."""
        b, t = index.shape
        heads, size = self.heads, query.shape[1] // self.heads
        q = self.query(query).view(b, heads, 1, size)
        # index_select has a fast backward; plain indexing sorts.
        k, v = (
            layer(table).index_select(0, index.reshape(-1)).view(b, t, heads, size).transpose(1, 2)
            for layer in (self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=log_bias[:, None, None])
        return self.out(mixed.reshape(b, -1))


class Fusion(nn.Module):
    """Text-guided graph attention, graph-guided text attention, and the mixture of both.

    Args:
        dim: Width of text embeddings.
        config: Architecture.
    """

    def __init__(self, dim: int, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.raw, self.prompt = (
            nn.Sequential(nn.Dropout(config.dropout), nn.Linear(dim, width), nn.GELU(), nn.LayerNorm(width))
            for _ in range(2)
        )
        self.graph_norm = nn.LayerNorm(width)
        if config.cross_attention:
            self.to_graph = CrossModalBlock(width, config.fusion_heads)
            self.to_text = CrossModalBlock(width, config.fusion_heads)
        self.gate = nn.Linear(2 * width, 1)
        if config.fusion == "concat":
            self.mix = nn.Sequential(nn.Linear(2 * width, width), nn.LayerNorm(width))
        self.align_graph = mlp_head([width, width, width // 2], hidden_norm="none", act="gelu")
        self.align_text = mlp_head([width, width, width // 2], hidden_norm="none", act="gelu")

    def forward(
        self,
        graph: Float[Tensor, "m w"],
        x: Float[Tensor, "m d"],
        rows: Int[Tensor, " b"],
        prompts: Float[Tensor, "b d"],
        neighbours: Int[Tensor, "b k"],
        scores: Float[Tensor, "b k"],
    ) -> Fused:
        """Fuse.

        Args:
            graph: Output of the graph encoder for all nodes of the piece.
            x: Their text embeddings.
            rows: Targets.
            prompts: Prompt embeddings of the targets.
            neighbours: Their kept neighbours, -1 where there is none.
            scores: Scores of these.
        """
        g = self.graph_norm(graph)
        used, place = torch.unique(torch.cat([rows, neighbours.clamp_min(0).reshape(-1)]), return_inverse=True)
        raw_used = self.raw(x[used])
        own_place = place[: len(rows)]
        r, own = raw_used[own_place], g[rows]
        q = self.prompt(prompts if self.config.prompt else x[rows])
        if not self.config.cross_attention:
            text = (r + q) / 2
            return Fused(self.fuse(own, text), own, text, r, q)
        bias = torch.where(neighbours >= 0, (scores + _EPSILON).log(), -torch.inf)
        zero = bias.new_zeros(len(rows), 1)
        near = place[len(rows) :].view(neighbours.shape)
        local = g[used]
        graph_side = self.to_graph(q, own, local, torch.cat([own_place[:, None], near], 1), torch.cat([zero, bias], 1))
        # Tokens of the text side: the node's prompt, its raw text, the raw texts of its neighbours.
        b = len(rows)
        index = torch.cat([torch.arange(b, device=rows.device)[:, None], b + own_place[:, None], b + near], 1)
        text_side = self.to_text(own, q, torch.cat([q, raw_used]), index, torch.cat([zero, zero, bias], 1))
        return Fused(self.fuse(graph_side, text_side), own, text_side, r, q)

    def fuse(self, graph: Float[Tensor, "b w"], text: Float[Tensor, "b w"]) -> Float[Tensor, "b w"]:
        """``β g + (1 - β) t`` with ``β = σ(w [g; t])``; or ``LN(W [g; t])``; or g."""
        if self.config.fusion == "graph":
            return graph
        both = torch.cat([graph, text], 1)
        if self.config.fusion == "concat":
            return self.mix(both)
        beta = torch.sigmoid(self.gate(both))
        return beta * graph + (1 - beta) * text


class LinkHead(nn.Module):
    """Score of a pair, ``MLP([z_u ⊙ z_v ; |z_u - z_v|])``, a logit; the same for both orders.

    Args:
        width: Width of embeddings.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = mlp_head([2 * width, width, 1], hidden_norm="none", act="gelu")

    def forward(self, a: Float[Tensor, "p w"], b: Float[Tensor, "p w"]) -> Float[Tensor, " p"]:
        """One logit a pair."""
        return self.layers(torch.cat([a * b, (a - b).abs()], 1))[:, 0]


class Network(nn.Module):
    """A method's encoder with the heads of all tasks.

    Args:
        method: Which.
        dim: Width of text embeddings.
        classes: Classes; 0 for link prediction alone.
        config: Architecture.
    """

    def __init__(self, method: Method, dim: int, classes: int, config: ModelConfig) -> None:
        super().__init__()
        self.method, self.dim, self.classes, self.config = method, dim, classes, config
        width = config.width
        self.graph: GraphEncoder | None = None
        self.fusion: Fusion | None = None
        if method == "text-mlp":
            drop = nn.Dropout(config.dropout)
            self.mlp = nn.Sequential(drop, nn.Linear(dim, width), nn.ReLU(), drop, nn.Linear(width, width))
        else:
            kind = {"promptgnn-sim": "gat", "grace": "gcn"}.get(method, method)
            self.graph = GraphEncoder(kind, dim, width, heads=config.heads, dropout=config.dropout)  # type: ignore[arg-type]
        if method == "promptgnn-sim":
            self.fusion = Fusion(dim, config)
            # A copy of the first layer as it was when neighbours were chosen; it does not learn.
            self.selector = GATConv(dim, width // config.heads, heads=config.heads, edge_dim=1, add_self_loops=False)
            self.selector.requires_grad_(False)
            self.label_map = nn.Linear(dim, width, bias=False)
            # The warm-up classifies graph embeddings before there is anything to fuse.
            self.warm_head = nn.Linear(width, max(classes, 1))
            self.warm_link = LinkHead(width)
        if method == "grace":
            self.project = mlp_head([width, width, width], hidden_norm="none", act="gelu")
        self.head = nn.Linear(width, max(classes, 1))
        self.link = LinkHead(width)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def encode_graph(self, x: Float[Tensor, "m d"], block: Block) -> Float[Tensor, "m w"]:
        """Graph encoder on a piece, without messages in eval mode; of text-mlp, its rows."""
        if self.graph is None:
            return self.mlp(x)
        if not self.training:
            return self.graph.infer(x, block)
        return self.graph(x, block.edge_index, block.edge_weight)

    def forward(self, inputs: Inputs) -> Fused:
        """Embeddings of the targets. Of a baseline, every field is its one embedding."""
        return self.fuse(self.encode_graph(inputs.x, inputs.block), inputs)

    def fuse(self, graph: Float[Tensor, "m w"], inputs: Inputs) -> Fused:
        """Embeddings of the targets from the graph encoder's output."""
        if self.fusion is None:
            return Fused.single(graph[inputs.rows])
        return self.fusion(graph, inputs.x, inputs.rows, inputs.prompts, inputs.neighbours, inputs.scores)

    def zero_shot(self, z: Float[Tensor, "b w"], descriptions: Float[Tensor, "c d"]) -> Float[Tensor, "b c"]:
        """Cosine of an embedding with the mapped text of every class."""
        return F.normalize(z, dim=1) @ F.normalize(self.label_map(descriptions), dim=1).T

    def remember_attention(self) -> None:
        """Keep the first layer as it is now: neighbours are chosen by it until the next call, also of new graphs."""
        if self.graph is not None:
            self.selector.load_state_dict(self.graph.first.state_dict())


@torch.no_grad()
def embed_nodes(
    network: Network, view: GraphView, nodes: Int[Tensor, " m"] | None = None, *, chunk: int = 8192
) -> Float[Tensor, "m w"]:
    """Final embeddings of nodes on the CPU, every node seeing its whole neighbourhood.

    Args:
        network: In any mode; left in the mode it was in.
        view: The graph; of PromptGNN-sim, with neighbours chosen.
        nodes: Which; all if absent.
        chunk: Nodes fused at once.
    """
    training, device = network.training, network.device
    network.eval()
    block, x = whole_block(view.message_graph()).to(device), view.x.to(device)
    graph = network.encode_graph(x, block)
    nodes = torch.arange(len(view.graph)) if nodes is None else nodes
    out = [
        network.fuse(graph, Inputs(x, block, part.to(device), *(each.to(device) for each in view.chosen(part)))).z.cpu()
        for part in nodes.split(chunk)
    ]
    network.train(training)
    return torch.cat(out)
