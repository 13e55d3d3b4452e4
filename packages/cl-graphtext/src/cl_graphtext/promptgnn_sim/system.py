"""How batches, network and objective meet in one training step, through warm-up, selection and joint training."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from contrastive_core.losses import nt_xent
from contrastive_core.memory import FeatureQueue
from contrastive_core.training import seeded_generator
from jaxtyping import Float, Int
from torch import Tensor

from cl_graphtext.graph import full_texts
from cl_graphtext.promptgnn_sim.model import Fused, Inputs, Network
from cl_graphtext.promptgnn_sim.objective import TEMPERATURE, alignment, classification, link_loss
from cl_graphtext.promptgnn_sim.pipeline import GraphView, Pipeline
from cl_graphtext.sampling import Block, Csr, sample_block, whole_block
from cl_graphtext.text import TransformerEncoder

Task = Literal["nc", "lp"]

FULL_GRAPH = 20_000
"""Nodes below which a step sees the whole graph instead of a sampled neighbourhood."""


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """Weights of the objective and what it is measured on.

    Attributes:
        prompt_weight: μ_pt, weight of prompt-text alignment; 0 leaves it out.
        graph_weight: μ_gt, weight of graph-text alignment; 0 leaves it out.
        temperature: τ of both.
        queue: Older rows kept as negatives of L_pt, at most half the nodes; 0 for none.
        smoothing: Label smoothing.
        unlabelled: Further nodes in a batch for each labelled one, which take part in the alignments alone.
    """

    prompt_weight: float = 0.1
    graph_weight: float = 0.1
    temperature: float = TEMPERATURE
    queue: int = 4096
    smoothing: float = 0.1
    unlabelled: float = 1.0

    def __post_init__(self) -> None:
        fine = {
            "--objective.prompt-weight": self.prompt_weight >= 0,
            "--objective.graph-weight": self.graph_weight >= 0,
            "--objective.temperature": self.temperature > 0,
            "--objective.queue": self.queue >= 0,
            "--objective.smoothing": 0 <= self.smoothing < 1,
            "--objective.unlabelled": self.unlabelled >= 0,
        }
        for option, good in fine.items():
            if not good:
                raise InputError("an option of the objective is out of range", where=option)


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """Stages of training, in steps.

    Attributes:
        warmup: Steps of the graph encoder alone, before neighbours are chosen; 0 chooses by an untrained encoder.
        reselect: Steps of joint training between two choices; 0 chooses once.
        fanout: In-neighbours sampled a node and hop, where the graph is too large to be seen whole.
        contrast: Share of all steps that grace trains without labels, before its head is fitted.
    """

    warmup: int = 30
    reselect: int = 0
    fanout: int = 10
    contrast: float = 0.7

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.reselect < 0 or self.fanout < 1 or not 0 < self.contrast < 1:
            raise InputError(
                "a stage is out of range",
                where="--stages.{warmup,reselect,fanout,contrast}",
                why=f"got {self.warmup}, {self.reselect}, {self.fanout}, {self.contrast}",
            )


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """AdamW.

    Attributes:
        lr: Learning rate of graph encoder, fusion and heads.
        text_lr: Learning rate of the text model's LoRA.
        weight_decay: Weight decay.
    """

    lr: float = 1e-3
    text_lr: float = 1e-5
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.text_lr > 0 and self.weight_decay >= 0):
            raise InputError("learning rates are positive", where="--optim.lr, --optim.text-lr, --optim.weight-decay")


NOT_YET = 1e6
"""Validation loss reported to early stopping before the first stage is over."""


class Neighbourhoods:
    """Pieces of one graph for the network: all of it, or samples.

    Args:
        csr: Whom messages come from.
        fanout: In-neighbours sampled a node and hop; -1 for the whole graph.
    """

    def __init__(self, csr: Csr, fanout: int) -> None:
        self.csr, self.fanout = csr, fanout
        self._whole: Block | None = None

    def around(self, nodes: Int[Tensor, " m"], seed: Sequence[int]) -> tuple[Block, Int[Tensor, " m"]]:
        """A piece that holds the neighbourhoods of some nodes, and their places in it."""
        if self.fanout < 0:
            return self.whole(), nodes
        distinct, place = torch.unique(nodes, return_inverse=True)
        rng = np.random.default_rng(list(seed))
        return sample_block(self.csr, distinct.numpy(), (self.fanout, self.fanout), rng), place

    def whole(self) -> Block:
        """All of the graph."""
        if self._whole is None:
            self._whole = whole_block(self.csr)
        return self._whole


class GraphSystem(L.LightningModule):
    """Training of PromptGNN-sim and of its baselines.

    PromptGNN-sim: the graph encoder alone on the graph as it is (warm-up); then neighbours are chosen and prompts
    written; then everything jointly on the chosen graph, ``L = L_task + μ_pt L_pt + μ_gt L_gt``. Baselines: the task on
    the graph as it is; grace first aligns two disturbed views of the graph, then trains its head on frozen embeddings.

    Args:
        network: The network.
        view: The graph it is trained on. For link prediction its links are the ones messages may pass along.
        pipeline: Chooses neighbours and writes prompts.
        task: Node classification or link prediction.
        classes: Embeddings of the class descriptions ``[c d]``.
        positives: Linked pairs ``[p 2]`` to learn, of link prediction.
        known: All links ``[e 2]`` that must not be drawn as negatives.
        judged: Validation nodes ``[m]``, or pairs ``[m 2]`` with ``truth``.
        truth: 1 for linked and 0 for unlinked validation pairs.
        objective: Objective.
        stages: Stages.
        optim: Optimiser.
        total_steps: Steps of the run.
        seed: Seed of samples and negatives, which depend on it and the step alone.
    """

    def __init__(
        self,
        network: Network,
        view: GraphView,
        pipeline: Pipeline,
        *,
        task: Task,
        classes: Float[Tensor, "c d"],
        objective: ObjectiveSettings,
        stages: StageSettings,
        optim: OptimSettings,
        total_steps: int,
        seed: int,
        known: Int[np.ndarray, "e 2"],
        judged: Int[Tensor, "..."] | None = None,
        truth: Float[Tensor, " m"] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.view, self.pipeline = network, view, pipeline
        self.task, self.objective, self.stages, self.optim = task, objective, stages, optim
        self.total_steps, self.seed = total_steps, seed
        self.labels = torch.from_numpy(view.graph.labels.astype(np.int64))
        self.judged, self.truth, self.class_texts = judged, truth, classes
        n = len(view.graph)
        self._known = np.sort(np.concatenate([known, known[:, ::-1]]) @ np.array([n, 1]))
        self.fanout = -1 if n < FULL_GRAPH else stages.fanout
        self.fused = network.method == "promptgnn-sim"
        self._pieces = Neighbourhoods(view.message_graph(), self.fanout)
        self.text: TransformerEncoder | None = None
        if self.fused and pipeline.text.lora:
            encoder = pipeline.encoders[0]
            assert isinstance(encoder, TransformerEncoder)
            self.text = encoder
            self._own_texts = full_texts(view.graph)
        rows = min(objective.queue, n // 2)
        self.uses_queue = self.fused and objective.prompt_weight > 0 and rows > 0
        if self.uses_queue:
            self.raw_queue, self.prompt_queue = (FeatureQueue(network.config.width, rows) for _ in range(2))

    @property
    def first_stage(self) -> int:
        """Steps before the network is what it will be used as."""
        if self.network.method == "grace":
            return math.ceil(self.stages.contrast * self.total_steps)
        return self.stages.warmup if self.fused else 0

    @property
    def joint(self) -> bool:
        """Whether the warm-up is over."""
        return self.fused and self.global_step >= self.stages.warmup

    def on_train_start(self) -> None:
        """A resumed run takes up the choice it had."""
        if self.fused and self.global_step > self.stages.warmup:
            self.choose()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Choose neighbours when it is time."""
        if not self.joint:
            return
        since = self.global_step - self.stages.warmup
        again = self.stages.reselect and since % self.stages.reselect == 0
        if self.view.selection is None or (again and since > 0):
            self.network.remember_attention()
            if self.text is not None and self.view.selection is not None:  # the text model has moved on
                self.view.x = self.pipeline.embed(self.view.graph)
            self.choose()
            if self.uses_queue:  # rows of older prompts
                for queue in (self.raw_queue, self.prompt_queue):
                    queue.count.zero_()
                    queue.pointer.zero_()

    def choose(self) -> None:
        """Choose neighbours by the attention remembered, and let messages pass along the chosen graph alone."""
        self.pipeline.choose(self.view, self.network)
        self._pieces = Neighbourhoods(self.view.message_graph(), self.fanout)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Loss of one batch of labelled nodes ``[b]``, or of linked pairs ``[b 2]``."""
        draw = seeded_generator(self.seed, 1, self.global_step, batch_index)
        if self.network.method == "grace" and self.global_step < self.first_stage:
            loss = self._grace(draw)
            self.log("loss", loss, prog_bar=True)
            return loss
        items = batch[0]
        pairs = torch.cat([items, self._negatives(len(items), draw)]) if self.task == "lp" else None
        nodes = torch.unique(pairs) if pairs is not None else torch.unique(items)
        parts: dict[str, Tensor] = {}
        if not self.joint:
            fused = self._encode(nodes, batch_index)
            task = self._task(fused.z, nodes, pairs, warm=self.fused)
        else:
            others = torch.randint(len(self.labels), (round(self.objective.unlabelled * len(nodes)),), generator=draw)
            everyone = torch.unique(torch.cat([nodes, others]))
            fused = self._encode(everyone, batch_index)
            row = torch.searchsorted(everyone, nodes)
            task = self._task(fused.z[row], nodes, pairs, warm=False)
            parts |= self._alignments(fused, everyone)
            if self.task == "nc":  # trains the map of class texts alone: embeddings are as without it
                logits = self.network.zero_shot(fused.z[row].detach(), self.class_texts) / 0.1
                parts["zero_shot"] = classification(logits, self.labels[nodes], smoothing=0.0)
        loss = task + sum(parts.values(), task.new_zeros(()))
        self.log("loss", loss, prog_bar=True)
        self.log("task", task.detach())
        self.log_dict({name: value.detach() for name, value in parts.items()})
        return loss

    def _alignments(self, fused: Fused, nodes: Tensor) -> dict[str, Tensor]:
        ids, settings, parts = self.view.groups[nodes], self.objective, {}
        if settings.prompt_weight:
            old = (self.raw_queue.entries(), self.prompt_queue.entries()) if self.uses_queue else (None, None)
            parts["prompt_text"] = settings.prompt_weight * alignment(
                fused.raw, fused.prompt, ids, temperature=settings.temperature, queue_a=old[0], queue_b=old[1]
            )
            if self.uses_queue:
                self.raw_queue.push(fused.raw.detach(), ids=ids)
                self.prompt_queue.push(fused.prompt.detach(), ids=ids)
        if settings.graph_weight:
            fusion = self.network.fusion
            assert fusion is not None
            parts["graph_text"] = settings.graph_weight * alignment(
                fusion.align_graph(fused.graph), fusion.align_text(fused.text), ids, temperature=settings.temperature
            )
        return parts

    def _encode(self, nodes: Int[Tensor, " b"], batch_index: int) -> Fused:
        if self.network.graph is None:
            z = self.network.mlp(self.view.x[nodes])
            return Fused(z, z, z, z, z)
        seed = (self.seed, 2, self.global_step, batch_index)
        if not self.joint:
            block, rows = self._pieces.around(nodes, seed)
            z = self.network.encode_graph(self.view.x[block.nodes], block)[rows]
            return Fused(z, z, z, z, z)
        assert self.view.selection is not None
        assert self.view.prompts is not None
        near = self.view.selection.neighbours[nodes]
        block, rows = self._pieces.around(torch.cat([nodes, near[near >= 0]]), seed)
        local = near.clone()
        local[near >= 0] = rows[len(nodes) :]
        x, prompts = self.view.x[block.nodes], self.view.prompts[nodes]
        if self.text is not None:  # the batch is read anew, with gradient; its neighbours as they were last read
            chosen = nodes.tolist()
            x = x.index_copy(0, rows[: len(nodes)], self.text([self._own_texts[i] for i in chosen]))
            prompts = self.text([self.view.read[i] for i in chosen])
        scores = self.view.selection.scores[nodes]
        return self.network(Inputs(x, block, rows[: len(nodes)], prompts, local, scores))

    def _task(self, z: Tensor, nodes: Tensor, pairs: Tensor | None, *, warm: bool) -> Tensor:
        if self.network.method == "grace":
            z = z.detach()
        if pairs is None:
            head = self.network.warm_head if warm else self.network.head
            return classification(head(z), self.labels[nodes], smoothing=self.objective.smoothing)
        link = self.network.warm_link if warm else self.network.link
        row = torch.searchsorted(nodes, pairs)
        joined = torch.arange(len(pairs)) < len(pairs) // 2
        return link_loss(link(z[row[:, 0]], z[row[:, 1]]), joined.to(z))

    def _negatives(self, count: int, draw: torch.Generator) -> Int[Tensor, "p 2"]:
        """Random pairs that are no known links."""
        n = len(self.labels)
        found = torch.zeros(0, 2, dtype=torch.long)
        while len(found) < count:
            pairs = torch.randint(n, (2 * count, 2), generator=draw)
            keys = (pairs @ torch.tensor([n, 1])).numpy()
            place = np.minimum(np.searchsorted(self._known, keys), max(0, len(self._known) - 1))
            linked = torch.from_numpy(self._known[place] == keys) if len(self._known) else torch.zeros(len(keys)).bool()
            found = torch.cat([found, pairs[(pairs[:, 0] != pairs[:, 1]) & ~linked]])
        return found[:count]

    def _grace(self, draw: torch.Generator) -> Tensor:
        """Contrast of two disturbed views (Zhu et al., 2020): edges dropped and features masked, 0.2 / 0.3 and 0.4."""
        nodes = torch.arange(len(self.labels))
        if self.fanout >= 0:
            nodes = torch.unique(torch.randint(len(self.labels), (1024,), generator=draw))
        block, rows = self._pieces.around(nodes, (self.seed, 3, self.global_step))
        x, views = self.view.x[block.nodes], []
        loop = block.edge_index[0] == block.edge_index[1]
        for edges, features in ((0.2, 0.3), (0.4, 0.4)):
            keep = loop | (torch.rand(block.edge_index.shape[1], generator=draw) >= edges)
            hidden = x * (torch.rand(x.shape[1], generator=draw) >= features)
            piece = dataclasses.replace(
                block, edge_index=block.edge_index[:, keep], edge_weight=block.edge_weight[keep]
            )
            views.append(self.network.project(F.elu(self.network.encode_graph(hidden, piece)[rows])))
        return nt_xent(views[0], views[1], temperature=0.4)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Loss on the validation part; not before the warm-up is over."""
        if self.global_step <= self.first_stage or (self.fused and self.view.selection is None):
            if self.trainer.early_stopping_callback is not None:  # it wants a number every time
                self.log("val_loss", NOT_YET, batch_size=1)
            return
        assert self.judged is not None
        if self.truth is None:
            z = embed_nodes(self.network, self.view, self.judged)
            self.log("val_loss", F.cross_entropy(self.network.head(z), self.labels[self.judged]), batch_size=1)
        else:
            z = embed_nodes(self.network, self.view)
            scores = self.network.link(z[self.judged[:, 0]], z[self.judged[:, 1]])
            self.log("val_loss", link_loss(scores, self.truth), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the layer that remembers attention does not learn."""
        own = [p for name, p in self.network.named_parameters() if not name.startswith("selector.")]
        groups: list[dict[str, Any]] = [{"params": own, "lr": self.optim.lr}]
        if self.text is not None:
            groups.append({"params": list(self.text.trained().values()), "lr": self.optim.text_lr})
        return torch.optim.AdamW(groups, weight_decay=self.optim.weight_decay)


@torch.no_grad()
def embed_nodes(
    network: Network, view: GraphView, nodes: Int[Tensor, " m"] | None = None, *, chunk: int = 8192
) -> Float[Tensor, "m w"]:
    """Final embeddings of nodes, every node seeing its whole neighbourhood.

    Args:
        network: In any mode; left in the mode it was in.
        view: The graph; of PromptGNN-sim, with neighbours chosen.
        nodes: Which; all if absent.
        chunk: Nodes fused at once.
    """
    training = network.training
    network.eval()
    nodes = torch.arange(len(view.graph)) if nodes is None else nodes
    block = whole_block(view.message_graph())
    graph = None if network.graph is None else network.encode_graph(view.x, block)
    out = []
    for part in nodes.split(chunk):
        if graph is None:
            out.append(network.mlp(view.x[part]))
            continue
        if network.fusion is None:
            out.append(graph[part])
            continue
        assert view.selection is not None
        assert view.prompts is not None
        inputs = Inputs(
            view.x, block, part, view.prompts[part], view.selection.neighbours[part], view.selection.scores[part]
        )
        out.append(network.fuse(graph, inputs).z)
    network.train(training)
    return torch.cat(out) if out else torch.zeros(0, network.config.width)
