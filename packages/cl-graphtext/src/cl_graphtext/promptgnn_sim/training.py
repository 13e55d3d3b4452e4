"""Training a method on a graph, judging it, and keeping what is needed to use it again."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cl_graphtext.graph import PARTS, TextGraph, check_trainable, mask, note_unlabelled_classes
from cl_graphtext.metrics import classification_metrics, link_metrics
from cl_graphtext.perturb import new_edges
from cl_graphtext.promptgnn_sim.model import Method, Network, NetworkConfig, network_from
from cl_graphtext.promptgnn_sim.pipeline import Fitted, GraphView, Pipeline
from cl_graphtext.promptgnn_sim.selection import SelectionSettings
from cl_graphtext.promptgnn_sim.system import (
    GraphSystem,
    ObjectiveSettings,
    OptimSettings,
    StageSettings,
    Task,
    embed_nodes,
)
from cl_graphtext.text import TextCache, TextSettings, TransformerEncoder

Split = Mapping[str, Int[np.ndarray, " m"]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything a training run is made of besides its data.

    Attributes:
        method: PromptGNN-sim or a baseline.
        task: Node classification or link prediction.
        inductive: See nodes outside the training part only after training.
        batch_size: Labelled nodes, or linked pairs, in a batch.
        selection: How neighbours are chosen.
        text: Text model.
        network: Architecture.
        objective: Objective.
        stages: Stages.
        optim: Optimiser.
        train: Length of the run, seed, hardware.
    """

    method: Method = "promptgnn-sim"
    task: Task = "nc"
    inductive: bool = False
    batch_size: int = 128
    selection: SelectionSettings = SelectionSettings()  # noqa: RUF009 - frozen
    text: TextSettings = TextSettings()  # noqa: RUF009 - frozen
    network: NetworkConfig = NetworkConfig()  # noqa: RUF009 - frozen
    objective: ObjectiveSettings = ObjectiveSettings()  # noqa: RUF009 - frozen
    stages: StageSettings = StageSettings()  # noqa: RUF009 - frozen
    optim: OptimSettings = OptimSettings()  # noqa: RUF009 - frozen
    train: TrainSettings = TrainSettings()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError("a batch holds at least one item", where="--batch-size", why=f"got {self.batch_size}")
        if self.train.steps is not None:
            self._check_warmup(self.train.steps)
        if self.train.accelerator not in ("auto", "cpu") or self.train.devices != 1:
            raise InputError(
                "networks of this size train in one process on the CPU; the text model may use a GPU",
                where="--accelerator, --devices",
                why=f"got {self.train.accelerator}, {self.train.devices}",
                remedy="leave them out; --text.device cuda encodes on a GPU",
            )

    def length(self, items: int) -> int:
        """Optimiser steps of a run over so many training items.

        Raises:
            InputError: They end before the warm-up does.
        """
        steps = self.train.total_steps(max(1, items // min(self.batch_size, items)))
        self._check_warmup(steps)
        return steps

    def _check_warmup(self, steps: int) -> None:
        if self.method == "promptgnn-sim" and steps <= self.stages.warmup:
            raise InputError(
                "the run ends before its warm-up",
                where="--steps, --epochs, --stages.warmup",
                why=f"{steps} steps, {self.stages.warmup} of warm-up",
                remedy="train longer, or warm up for less",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``config.yaml``."""
        parts = {name: dataclasses.asdict(getattr(self, name)) for name in ("selection", "text", "network")}
        parts |= {name: dataclasses.asdict(getattr(self, name)) for name in ("objective", "stages", "optim")}
        return {
            "method": self.method,
            "task": self.task,
            "inductive": self.inductive,
            "batch_size": self.batch_size,
            **parts,
            **dataclasses.asdict(self.train),
        }


@dataclasses.dataclass(frozen=True)
class LinkSplit:
    """Links held out, each undirected one once.

    Attributes:
        messages: Links that messages, selection and prompts may use in training and in testing ``[m 2]``.
        positives: Links learnt in training, disjoint from the messages ``[p 2]``.
        val: Validation pairs ``[2v 2]``, linked ones first.
        test: Test pairs ``[2t 2]``, linked ones first.
    """

    messages: Int[np.ndarray, "m 2"]
    positives: Int[np.ndarray, "p 2"]
    val: Int[np.ndarray, "v 2"]
    test: Int[np.ndarray, "t 2"]

    @staticmethod
    def truth(pairs: Int[np.ndarray, "v 2"]) -> Float[Tensor, " v"]:
        """1 for the first half, 0 for the second."""
        return (torch.arange(len(pairs)) < len(pairs) // 2).float()


def split_links(
    graph: TextGraph, *, val: float = 0.1, test: float = 0.2, disjoint: float = 0.3, seed: int = 0
) -> LinkSplit:
    """Hold links out, as ``torch_geometric.transforms.RandomLinkSplit`` does with ``disjoint_train_ratio``.

    Args:
        graph: The graph.
        val: Share of the links for validation.
        test: Share for the test.
        disjoint: Share of the training links that is learnt and not passed along.
        seed: Seed of the draw, and of one negative a held-out link.

    Raises:
        InputError: There are too few links.
    """
    rng = np.random.default_rng(seed)
    edges = graph.edges[rng.permutation(len(graph.edges))]
    counts = [round(val * len(edges)), round(test * len(edges))]
    rest = len(edges) - sum(counts)
    learnt = round(disjoint * rest)
    if min(*counts, learnt, rest - learnt) < 1:
        raise InputError(
            "there are too few links to predict",
            where="edges",
            why=f"the graph has {len(edges)}",
            remedy="use --task nc",
        )
    negatives = new_edges(graph, sum(counts), rng)
    if len(negatives) < sum(counts):
        raise InputError("the graph is too dense to draw pairs without a link", where="edges")
    parts = np.split(edges, np.cumsum([*counts, learnt]))
    pairs = [
        np.concatenate([part, none]) for part, none in zip(parts[:2], np.split(negatives, [counts[0]]), strict=True)
    ]
    return LinkSplit(messages=parts[3][np.lexsort(parts[3].T[::-1])], positives=parts[2], val=pairs[0], test=pairs[1])


@dataclasses.dataclass
class Model:
    """A trained network with everything around it.

    Attributes:
        network: The network, in eval mode.
        pipeline: Text model, selection and prompts as in training.
        method: PromptGNN-sim or a baseline.
        task: Node classification or link prediction.
        classes: Names of the classes.
        text_settings: Text model the texts were read with.
    """

    network: Network
    pipeline: Pipeline
    method: Method
    task: Task
    classes: tuple[str, ...]
    text_settings: TextSettings

    def view(self, graph: TextGraph, x: Float[Tensor, "n d"] | None = None) -> GraphView:
        """A graph with its texts embedded and, for PromptGNN-sim, its neighbours chosen and prompts encoded.

        Raises:
            InputError: The embeddings are not of the width the network was trained on.
        """
        x = self.pipeline.embed(graph) if x is None else x
        if x.shape[1] != self.network.dim:
            raise InputError(
                "the text embeddings have another width than those the model was trained on",
                where="--text.model, --features",
                why=f"{x.shape[1]} numbers a text, the model takes {self.network.dim}",
                remedy="use the text model of the training run",
            )
        fused = self.method == "promptgnn-sim"
        # Prompts ask for the classes the model knows, whatever the graph calls its own.
        asked = dataclasses.replace(
            graph, classes=self.classes, descriptions=self.classes, labels=np.full(len(graph), -1)
        )
        view = self.pipeline.view(asked, x, select=fused)
        if fused:
            self.pipeline.choose(view, self.network)
        view.graph = graph
        return view

    @torch.no_grad()
    def probabilities(self, z: Float[Tensor, "n w"]) -> Float[Tensor, "n c"]:
        """Class probabilities from embeddings."""
        return self.network.head(z).softmax(1)

    @torch.no_grad()
    def link_probability(self, z: Float[Tensor, "n w"], pairs: Int[np.ndarray, "p 2"]) -> Float[Tensor, " p"]:
        """Probability of a link of every pair."""
        index = torch.from_numpy(np.asarray(pairs, np.int64))
        return self.network.link(z[index[:, 0]], z[index[:, 1]]).sigmoid()

    def save(self, run: RunFolder) -> None:
        """Write weights and description."""
        assert self.pipeline.fitted is not None
        description = {
            "method": self.method,
            "task": self.task,
            "dim": self.network.dim,
            "classes": list(self.classes),
            "network": dataclasses.asdict(self.network.config),
            "selection": dataclasses.asdict(self.pipeline.settings),
            "text": dataclasses.asdict(self.text_settings),
            "fitted": self.pipeline.fitted.to_dict(),
        }
        state = dict(self.network.state_dict())
        if self.text_settings.lora and self.method == "promptgnn-sim":
            encoder = self.pipeline.encoders[0]
            assert isinstance(encoder, TransformerEncoder)
            state |= {f"text.{name}": weight for name, weight in encoder.trained().items()}
        run.save_model(state, description)

    @classmethod
    def load(cls, path: Path | str, *, cache: TextCache | None = None, text: TextSettings | None = None) -> "Model":
        """What :meth:`save` wrote.

        Args:
            path: Run folder.
            cache: Embeddings already known.
            text: Another place of the same text model.
        """
        state, about = RunFolder.open(path).load_model()
        try:
            lora = {name.removeprefix("text."): state.pop(name) for name in list(state) if name.startswith("text.")}
            network = network_from(state, about)
            settings = text or TextSettings(**about["text"])
            pipeline = Pipeline(
                SelectionSettings(**about["selection"]),
                settings,
                cache or TextCache(),
                fitted=Fitted.from_dict(about["fitted"]),
                prompting=network.config.prompt and about["method"] == "promptgnn-sim",
            )
        except (KeyError, TypeError, RuntimeError) as error:
            raise InputError(
                "the run is none of promptgnn-sim", where=path, why=" ".join(str(error).split())[:200]
            ) from error
        if lora:
            encoder = pipeline.encoders[0]
            assert isinstance(encoder, TransformerEncoder)
            encoder.load_trained(lora)
        return cls(network, pipeline, about["method"], about["task"], tuple(about["classes"]), settings)


def train_nodes(
    graph: TextGraph,
    split: Split,
    recipe: Recipe,
    pipeline: Pipeline,
    *,
    run: RunFolder,
    x: Float[Tensor, "n d"] | None = None,
) -> Model:
    """Train node classification.

    Labels outside the training and validation parts are taken off before anything else happens.

    Args:
        graph: The graph; links between all nodes are seen, unless ``recipe.inductive``.
        split: Training, validation and test nodes.
        recipe: Method and settings.
        pipeline: Text model; fitted here.
        run: Where logs and checkpoints go.
        x: Embeddings of the texts, if known.
    """
    check_trainable(graph, split)
    note_unlabelled_classes(graph, split)
    given = x is not None
    x = pipeline.embed(graph) if x is None else x
    seen = mask(np.concatenate([split["train"], split["val"]]), len(graph))
    graph = dataclasses.replace(graph, labels=np.where(seen, graph.labels, -1))
    train, val = split["train"], split["val"]
    if recipe.inductive:
        nodes = np.flatnonzero(seen)
        place = np.full(len(graph), -1)
        place[nodes] = np.arange(len(nodes))
        graph, x, train, val = graph.subgraph(nodes), x[torch.from_numpy(nodes)], place[train], place[val]
    pipeline.fit(graph, x)
    view = pipeline.view(graph, x, select=recipe.method == "promptgnn-sim")
    items = TensorDataset(torch.from_numpy(train.astype(np.int64)))
    judged = torch.from_numpy(val.astype(np.int64)) if len(val) else None
    return _train(view, items, recipe, pipeline, run=run, given=given, known=graph.edges, judged=judged, truth=None)


def train_links(
    graph: TextGraph,
    links: LinkSplit,
    recipe: Recipe,
    pipeline: Pipeline,
    *,
    run: RunFolder,
    x: Float[Tensor, "n d"] | None = None,
) -> Model:
    """Train link prediction. Selection, words, prompts and messages know the message links alone.

    Args:
        graph: The graph; its links are replaced by ``links.messages``.
        links: Links to pass along, to learn and to judge.
        recipe: Method and settings.
        pipeline: Text model; fitted here.
        run: Where logs and checkpoints go.
        x: Embeddings of the texts, if known.
    """
    given = x is not None
    x = pipeline.embed(graph) if x is None else x
    visible = dataclasses.replace(graph.with_edges(links.messages), labels=np.full(len(graph), -1))
    pipeline.fit(visible, x)
    view = pipeline.view(visible, x, select=recipe.method == "promptgnn-sim")
    items = TensorDataset(torch.from_numpy(links.positives.astype(np.int64)))
    known = np.concatenate([links.messages, links.positives])
    return _train(
        view,
        items,
        recipe,
        pipeline,
        run=run,
        given=given,
        known=known,
        judged=torch.from_numpy(links.val.astype(np.int64)),
        truth=LinkSplit.truth(links.val),
    )


def _train(
    view: GraphView,
    items: TensorDataset,
    recipe: Recipe,
    pipeline: Pipeline,
    *,
    run: RunFolder,
    given: bool,
    known: Int[np.ndarray, "e 2"],
    judged: Tensor | None,
    truth: Tensor | None,
) -> Model:
    graph = view.graph
    torch.manual_seed(recipe.train.seed)
    network = Network(recipe.method, view.x.shape[1], len(graph.classes), recipe.network)
    size = min(recipe.batch_size, len(items))
    total = recipe.length(len(items))
    # Embeddings made elsewhere may be of a text model that is not at hand: then there is no zero-shot map to learn.
    described = recipe.method == "promptgnn-sim" and len(graph.classes) > 0 and (pipeline.prompting or not given)
    classes = view.x.new_zeros(len(graph.classes), view.x.shape[1])
    if described:
        classes = pipeline.describe_classes(graph)
    system = GraphSystem(
        network,
        view,
        pipeline,
        task=recipe.task,
        classes=classes,
        objective=recipe.objective,
        stages=recipe.stages,
        optim=recipe.optim,
        total_steps=total,
        seed=recipe.train.seed,
        known=known,
        judged=judged,
        truth=truth,
    )
    every = min(recipe.train.validate_every, total)
    # Validations of the first stage do not count against patience.
    patience = recipe.train.patience + system.first_stage // every if recipe.train.patience else 0
    settings = dataclasses.replace(
        recipe.train, steps=total, validate_every=every, patience=patience, accelerator="cpu"
    )
    fit(
        system,
        batches(items, size, seed=recipe.train.seed),
        run=run,
        settings=settings,
        validation_data=None if judged is None else DataLoader(TensorDataset(torch.zeros(1))),
    )
    best = run.checkpoint("best")
    if best.is_file():
        state = torch.load(best, map_location="cpu", weights_only=True)
        if state["global_step"] > system.first_stage:
            system.load_state_dict(state["state_dict"])
    network.eval()
    return Model(network, pipeline, recipe.method, recipe.task, graph.classes, recipe.text)


def judge_nodes(
    model: Model,
    graph: TextGraph,
    split: Split,
    *,
    x: Float[Tensor, "n d"] | None = None,
    view: GraphView | None = None,
) -> dict[str, dict[str, float]]:
    """Accuracy and macro-F1 of every part of a split."""
    view = model.view(graph, x) if view is None else view
    predicted = model.probabilities(embed_nodes(model.network, view)).argmax(1).numpy()
    return {
        part: classification_metrics(graph.labels[split[part]], predicted[split[part]])
        for part in PARTS
        if len(split.get(part, ()))
    }


def judge_links(
    model: Model, graph: TextGraph, links: LinkSplit, *, x: Float[Tensor, "n d"] | None = None
) -> dict[str, dict[str, float]]:
    """AUC, average precision, accuracy and F1 on held-out pairs; messages pass along the message links alone."""
    z = embed_nodes(model.network, model.view(graph.with_edges(links.messages), x))
    return {
        part: link_metrics(LinkSplit.truth(pairs).numpy(), model.link_probability(z, pairs).numpy())
        for part, pairs in (("val", links.val), ("test", links.test))
    }
