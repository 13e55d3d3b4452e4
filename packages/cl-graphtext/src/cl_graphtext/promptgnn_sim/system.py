"""How batches, network and objective meet in one training step, through warm-up, selection and joint training."""

import dataclasses
import math
from typing import Annotated, Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from contrastive_core.cli import Flat
from contrastive_core.distributed import is_active, world_size
from contrastive_core.errors import InputError, require
from contrastive_core.losses import nt_xent
from contrastive_core.memory import FeatureQueue
from contrastive_core.training import TrainSettings, step_generator
from jaxtyping import Float, Int
from torch import Tensor

from cl_graphtext.graphs.graph import TextGraph, full_texts
from cl_graphtext.graphs.links import KnownLinks, LinkSplit, split_links
from cl_graphtext.graphs.sampling import Neighbourhoods
from cl_graphtext.graphs.splits import Split
from cl_graphtext.promptgnn_sim.data import GraphView, Pipeline, node_split
from cl_graphtext.promptgnn_sim.model import Fused, Inputs, Method, ModelConfig, Network, embed_nodes
from cl_graphtext.promptgnn_sim.objective import ObjectiveSettings, alignment, classification, link_loss
from cl_graphtext.promptgnn_sim.selection import SelectionSettings
from cl_graphtext.promptgnn_sim.views import GRACE_VIEWS, disturbed, further_nodes
from cl_graphtext.texts.encoders import TextSettings, TransformerEncoder
from cl_graphtext.texts.llm import LLMSettings

Task = Literal["nc", "lp"]

FULL_GRAPH = 20_000
"""Nodes below which a step sees the whole graph instead of a sampled neighbourhood."""

NOT_YET = 1e6
"""Validation loss reported to early stopping before the first stage is over."""


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
        require(0 <= self.warmup <= 10**12, "--stages.warmup", self.warmup, "a number of steps, or 0")
        require(0 <= self.reselect <= 10**12, "--stages.reselect", self.reselect, "a number of steps, or 0")
        require(1 <= self.fanout <= 10**6, "--stages.fanout", self.fanout, "a whole number from 1 to a million")
        require(0 < self.contrast < 1, "--stages.contrast", self.contrast, "a share in (0, 1)")


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """AdamW at a constant rate.

    Attributes:
        lr: Learning rate of graph encoder, fusion and heads.
        text_lr: Learning rate of the text model's LoRA.
        weight_decay: Weight decay.
    """

    lr: float = 1e-3
    text_lr: float = 1e-5
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        require(0 < self.lr <= 1e3, "--optim.lr", self.lr, "a positive number, at most 1000")
        require(0 < self.text_lr <= 1e3, "--optim.text-lr", self.text_lr, "a positive number, at most 1000")
        require(0 <= self.weight_decay <= 1e3, "--optim.weight-decay", self.weight_decay, "a number from 0 to 1000")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a training run is made of besides its data.

    Attributes:
        task: nc: classes of nodes; lp: links.
        method: promptgnn-sim, or one of the baselines text-mlp, gcn, sage, gat and grace.
        split: Shares such as 60/20/20, or 20-per-class; a split the data bring wins.
        split_seed: Seed of the split.
        inductive: See texts and links of test nodes only after training.
        batch_size: Labelled nodes, or links, in a batch.
        text: Text model.
        llm: Language model that turns prompts into summaries; none by default.
        selection: How neighbours are chosen.
        model: Architecture.
        objective: Objective.
        stages: Stages of training.
        optim: Optimiser.
        training: Length of the run and hardware.
    """

    task: Task = "nc"
    method: Method = "promptgnn-sim"
    split: str = "60/20/20"
    split_seed: int = 0
    inductive: bool = False
    batch_size: int = 128
    text: TextSettings = TextSettings()
    llm: LLMSettings = LLMSettings()
    selection: SelectionSettings = SelectionSettings()
    model: Annotated[ModelConfig, Flat] = ModelConfig()
    objective: Annotated[ObjectiveSettings, Flat] = ObjectiveSettings()
    stages: StageSettings = StageSettings()
    optim: OptimSettings = OptimSettings()
    training: Annotated[TrainSettings, Flat] = TrainSettings(steps=300, validate_every=10)

    def __post_init__(self) -> None:
        require(1 <= self.batch_size <= 1 << 30, "--batch-size", self.batch_size, "a whole number, at least 1")
        require(0 <= self.split_seed < 2**63, "--split-seed", self.split_seed, "a whole number that is not negative")
        if self.training.steps is not None:
            self.check_length(self.training.steps)
        if self.text.lora and not self.fused:
            raise InputError("LoRA trains the text model of promptgnn-sim", where="--text.lora, --method")

    @property
    def fused(self) -> bool:
        """Whether this is the method itself and no baseline."""
        return self.method == "promptgnn-sim"

    @property
    def prompting(self) -> bool:
        """Whether prompts are encoded."""
        return self.fused and self.model.prompt and self.model.fusion != "graph"

    def parts(self, graph: TextGraph) -> Split | LinkSplit:
        """What is trained on and held out: parts of the nodes, or of the links."""
        if self.task == "lp":
            return split_links(graph, seed=self.split_seed)
        return node_split(graph, self.split, self.split_seed)

    def first_stage(self, steps: int) -> int:
        """Steps before the network is what it will be used as, of a run of so many."""
        if self.method == "grace":
            return math.ceil(self.stages.contrast * steps)
        return self.stages.warmup if self.fused else 0

    def check_length(self, steps: int) -> None:
        """Refuse a run that ends before its warm-up does.

        Raises:
            InputError: It does.
        """
        if self.fused and steps <= self.stages.warmup:
            raise InputError(
                "the run ends before its warm-up",
                where="--steps, --epochs, --stages.warmup",
                why=f"{steps} steps, {self.stages.warmup} of warm-up",
                remedy="train longer, or warm up for less",
            )


class GraphSystem(L.LightningModule):
    """Training of PromptGNN-sim and of its baselines.

    PromptGNN-sim: the graph encoder alone on the graph as it is (warm-up); then neighbours are chosen and prompts
    written; then everything jointly on the chosen graph, ``L = L_task + μ_pt L_pt + μ_gt L_gt``. Baselines: the task on
    the graph as it is; grace first aligns two disturbed views of the graph, then trains its head on frozen embeddings.

    The graph stays on the CPU; what a step looks at goes to the device of the network.

    Args:
        network: The network.
        view: The graph it is trained on. For link prediction its links are the ones messages may pass along.
        pipeline: Chooses neighbours and writes prompts.
        settings: Method, objective, stages, optimiser.
        classes: Embeddings of the class descriptions ``[c d]``.
        known: All links ``[e 2]`` that must not be drawn as negatives.
        held_out: Validation nodes ``[m]``, or pairs ``[m 2]`` with ``truth``.
        truth: 1 for linked and 0 for unlinked validation pairs.
    """

    def __init__(
        self,
        network: Network,
        view: GraphView,
        pipeline: Pipeline,
        settings: Settings,
        *,
        classes: Float[Tensor, "c d"],
        known: Int[np.ndarray, "e 2"],
        held_out: Int[Tensor, "..."] | None = None,
        truth: Float[Tensor, " m"] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.view, self.pipeline, self.settings = network, view, pipeline, settings
        self.held_out, self.truth, self.class_texts = held_out, truth, classes
        self.labels = torch.from_numpy(view.graph.labels.astype(np.int64))
        n = len(view.graph)
        self._known = KnownLinks(known, n) if settings.task == "lp" else None
        self._fanout = -1 if n < FULL_GRAPH else settings.stages.fanout
        self._pieces = Neighbourhoods(view.message_graph(), self._fanout)
        self._chosen_at = -1
        self.text: TransformerEncoder | None = None
        if settings.fused and isinstance(encoder := pipeline.trained_encoder(), TransformerEncoder):
            self.text, self._own_texts = encoder, full_texts(view.graph)
        rows = min(settings.objective.queue, n // 2)
        self.uses_queue = settings.fused and settings.objective.prompt_weight > 0 and rows > 0
        if self.uses_queue:
            self.raw_queue, self.prompt_queue = (FeatureQueue(settings.model.width, rows) for _ in range(2))

    @property
    def first_stage(self) -> int:
        """Steps before the network is what it will be used as."""
        return self.settings.first_stage(int(self.trainer.max_steps))

    @property
    def joint(self) -> bool:
        """Whether the warm-up is over."""
        return self.settings.fused and self.global_step >= self.settings.stages.warmup

    def on_train_start(self) -> None:
        """A resumed run takes up the choice it had."""
        if self.settings.fused and self.global_step > self.settings.stages.warmup:
            self.choose()

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Choose neighbours when it is time, once a step however many micro-batches it has."""
        since, every = self.global_step - self.settings.stages.warmup, self.settings.stages.reselect
        again = every > 0 and since > 0 and since % every == 0 and self._chosen_at != self.global_step
        if not self.joint or not (self.view.selection is None or again):
            return
        self._chosen_at = self.global_step
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
        self.pipeline.choose(self.view, self.network.selector)
        self._pieces = Neighbourhoods(self.view.message_graph(), self._fanout)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Loss of one batch of labelled nodes ``[b]``, or of linked pairs ``[b 2]``."""
        draw, items = step_generator(self, index), batch[0].cpu()
        if self.settings.method == "grace" and self.global_step < self.first_stage:
            terms = {"contrast": self._grace(draw)}
        else:
            pairs = None if self._known is None else torch.cat([items, self._known.negatives(len(items), draw)])
            nodes = items if pairs is None else torch.unique(pairs)
            share = self.settings.objective.unlabelled if self.joint else 0.0
            everyone = torch.cat([nodes, further_nodes(nodes, share, len(self.labels), draw)])
            fused = self._encode(everyone, draw)
            terms = self._task(fused.z[: len(nodes)], nodes, pairs)
            if self.joint:
                terms |= self._alignments(fused, everyone)
        loss = torch.stack(list(terms.values())).sum()
        self.log("loss", loss, prog_bar=True)
        self.log_dict({name: value.detach() for name, value in terms.items()})
        return loss

    def _encode(self, nodes: Int[Tensor, " b"], draw: torch.Generator) -> Fused:
        """Embeddings of the nodes of a batch; in the warm-up, of the graph encoder alone."""
        if self.network.graph is None:
            return Fused.single(self.network.mlp(self.view.x[nodes].to(self.device)))
        prompts, near, scores = self.view.chosen(nodes)
        block, rows = self._pieces.around(torch.cat([nodes, near[near >= 0]]), draw)
        local = near.clone()
        local[near >= 0] = rows[len(nodes) :]
        inputs = Inputs(self.view.x[block.nodes], block, rows[: len(nodes)], prompts, local, scores).to(self.device)
        if not self.joint:
            return Fused.single(self.network.encode_graph(inputs.x, inputs.block)[inputs.rows])
        if self.text is not None:  # the batch is read anew, with gradient; its neighbours as they were last read
            own = self.text([self._own_texts[i] for i in nodes.tolist()])
            read = self.text([self.view.read[i] for i in nodes.tolist()])
            inputs = dataclasses.replace(inputs, x=inputs.x.index_copy(0, inputs.rows, own), prompts=read)
        return self.network(inputs)

    def _task(self, z: Float[Tensor, "b w"], nodes: Int[Tensor, " b"], pairs: Tensor | None) -> dict[str, Tensor]:
        """The task's loss; of classes in joint training also that of the zero-shot map."""
        network, warm = self.network, self.settings.fused and not self.joint
        z = z.detach() if self.settings.method == "grace" else z
        if pairs is not None:
            ends = torch.searchsorted(nodes, pairs).to(self.device)
            joined = (torch.arange(len(pairs), device=self.device) < len(pairs) // 2).to(z)
            return {
                "task": link_loss((network.warm_link if warm else network.link)(z[ends[:, 0]], z[ends[:, 1]]), joined)
            }
        labels, smoothing = self.labels[nodes].to(self.device), self.settings.objective.smoothing
        logits = (network.warm_head if warm else network.head)(z)
        terms = {"task": classification(logits, labels, smoothing=smoothing, gather=is_active())}
        if self.joint:  # trains the map of class texts alone: embeddings are as without it
            logits = network.zero_shot(z.detach(), self.class_texts.to(self.device)) / 0.1
            terms["zero_shot"] = classification(logits, labels, smoothing=0.0, gather=is_active())
        return terms

    def _alignments(self, fused: Fused, nodes: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """``μ_pt L_pt`` and ``μ_gt L_gt``, over the rows of all processes."""
        ids, settings, gather = self.view.groups[nodes].to(self.device), self.settings.objective, is_active()
        fusion, terms, tau = self.network.fusion, dict[str, Tensor](), settings.temperature
        if settings.prompt_weight:
            old = (self.raw_queue.entries(), self.prompt_queue.entries()) if self.uses_queue else (None, None)
            loss = alignment(
                fused.raw, fused.prompt, ids, temperature=tau, queue_a=old[0], queue_b=old[1], gather=gather
            )
            terms["prompt_text"] = settings.prompt_weight * loss
            if self.uses_queue:
                self.raw_queue.push(fused.raw, ids=ids)
                self.prompt_queue.push(fused.prompt, ids=ids)
        if settings.graph_weight and fusion is not None:
            views = fusion.align_graph(fused.graph), fusion.align_text(fused.text)
            terms["graph_text"] = settings.graph_weight * alignment(*views, ids, temperature=tau, gather=gather)
        return terms

    def _grace(self, draw: torch.Generator) -> Tensor:
        """Contrast of two disturbed views (Zhu et al., 2020); each process takes its share of the nodes."""
        nodes = torch.arange(len(self.labels))[self.global_rank :: world_size()]
        if self._fanout >= 0:
            nodes = torch.unique(torch.randint(len(self.labels), (1024 // world_size(),), generator=draw))
        block, rows = self._pieces.around(nodes, draw)
        views = []
        for edges, features in GRACE_VIEWS:
            piece, x = disturbed(block, self.view.x[block.nodes], edges, features, draw)
            z = self.network.encode_graph(x.to(self.device), piece.to(self.device))[rows.to(self.device)]
            views.append(self.network.project(F.elu(z)))
        return nt_xent(views[0], views[1], temperature=0.4, ids=nodes.to(self.device), gather=is_active())

    def validation_step(self, batch: Any, index: int) -> None:
        """Loss on the validation part; not before the first stage is over. Nothing is drawn."""
        if self.held_out is None or self.global_step <= self.first_stage:
            if self.trainer.early_stopping_callback is not None:  # it wants a number every time
                self.log("val_loss", NOT_YET, batch_size=1)
            return
        if self.truth is None:
            z = embed_nodes(self.network, self.view, self.held_out).to(self.device)
            loss = F.cross_entropy(self.network.head(z), self.labels[self.held_out].to(self.device))
        else:
            ends = embed_nodes(self.network, self.view)[self.held_out].to(self.device)
            loss = link_loss(self.network.link(ends[:, 0], ends[:, 1]), self.truth.to(self.device))
        self.log("val_loss", loss, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, with a rate of its own for the text model."""
        optim = self.settings.optim
        own = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": own, "lr": optim.lr}]
        if self.text is not None:
            groups.append({"params": list(self.text.trained().values()), "lr": optim.text_lr})
        return torch.optim.AdamW(groups, weight_decay=optim.weight_decay)
