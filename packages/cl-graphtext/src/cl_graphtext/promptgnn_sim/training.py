"""Training a method on a graph: classes of nodes, or links."""

import dataclasses

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cl_graphtext.graphs.graph import TextGraph
from cl_graphtext.graphs.in_memory import Graph, as_graph
from cl_graphtext.graphs.links import LinkSplit
from cl_graphtext.graphs.splits import Split, check_trainable, mask
from cl_graphtext.promptgnn_sim.data import GraphView, Pipeline
from cl_graphtext.promptgnn_sim.inference import GraphModel
from cl_graphtext.promptgnn_sim.model import Network
from cl_graphtext.promptgnn_sim.system import GraphSystem, Settings
from cl_graphtext.texts.answers import load_summarizer
from cl_graphtext.texts.cache import TextCache
from cl_graphtext.texts.encoders import TextEncoder

_DEVICES = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}


@dataclasses.dataclass(frozen=True)
class _Task:
    """What a run learns and is validated on.

    Attributes:
        view: The graph as the network sees it.
        items: Training nodes ``[m]``, or linked pairs ``[m 2]``.
        known: Links that are no negatives.
        held_out: Validation nodes or pairs.
        truth: 1 for linked and 0 for unlinked validation pairs.
    """

    view: GraphView
    items: Int[Tensor, "..."]
    known: Int[np.ndarray, "e 2"]
    held_out: Int[Tensor, "..."] | None
    truth: Float[Tensor, " v"] | None = None


def make_pipeline(
    settings: Settings,
    classes: tuple[str, ...] = (),
    *,
    cache: TextCache | None = None,
    encoders: tuple[TextEncoder, TextEncoder] | None = None,
) -> Pipeline:
    """What stands between texts and network, as the settings say.

    Args:
        settings: Text model, language model, selection, hardware.
        classes: Classes an answer of the language model may name.
        cache: Embeddings already known; answers are kept beside them.
        encoders: Encoders of texts and of prompts, instead of the text model.
    """
    cache = TextCache() if cache is None else cache
    device = _DEVICES.get(settings.training.accelerator, "auto")
    answers = None if cache.folder is None else cache.folder / "answers"
    return Pipeline(
        settings.selection,
        settings.text,
        cache,
        summarizer=load_summarizer(settings.llm, labels=classes, cache=answers, device=device),
        encoders=encoders,
        prompting=settings.prompting,
        device=device,
    )


def train_graph(
    graph: Graph,
    settings: Settings,
    *,
    split: Split | LinkSplit | None = None,
    x: Float[Tensor, "n d"] | None = None,
    cache: TextCache | None = None,
    encoders: tuple[TextEncoder, TextEncoder] | None = None,
    run: RunFolder | None = None,
) -> GraphModel:
    """Train PromptGNN-sim or a baseline on one graph.

    Classes of nodes: labels outside the training and validation parts are taken off before anything else happens.
    Links: selection, words, prompts and messages know the message links alone.

    Args:
        graph: The graph, or a ``torch_geometric`` ``Data`` with texts.
        settings: Task, method, and everything else.
        split: Parts of the nodes or the links; the graph's own, or those the settings draw, if absent.
        x: Embeddings of the texts, if known; using the model then takes them too.
        cache: Embeddings already known.
        encoders: Encoders of texts and of prompts, instead of the text model.
        run: Where logs and checkpoints go; in memory if absent.

    Raises:
        InputError: There is too little to train on, the run ends before its warm-up, or the embeddings do not fit.
    """
    graph, given = as_graph(graph), x is not None
    if settings.text.lora and (given or (run is not None and run.resuming)):
        raise InputError(
            "LoRA trains the text model, in one go",
            where="--text.lora",
            why="it goes with neither --features nor --resume",
        )
    split = settings.parts(graph) if split is None else split
    pipeline = make_pipeline(settings, graph.classes, cache=cache, encoders=encoders)
    if isinstance(split, LinkSplit):
        steps = _length(len(split.positives), settings)
        task = _link_task(graph, split, _embedded(graph, x, pipeline), settings, pipeline)
    else:
        check_trainable(graph.labels, graph.classes, split)
        steps = _length(len(split["train"]), settings)
        task = _node_task(graph, split, _embedded(graph, x, pipeline), settings, pipeline)
    network = _optimise(task, settings, pipeline, steps, run=run, given=given)
    return GraphModel(network, pipeline, settings, graph.classes, own_features=given)


def _length(items: int, settings: Settings) -> int:
    """Steps of a run over so many training items, checked before minutes go into encoding."""
    steps = settings.training.total_steps(items // min(settings.batch_size, items))
    settings.check_length(steps)
    return steps


def _embedded(graph: TextGraph, x: Float[Tensor, "n d"] | None, pipeline: Pipeline) -> Float[Tensor, "n d"]:
    """Embeddings of the texts, of the width prompts are encoded in."""
    x = pipeline.embed(graph) if x is None else x
    if pipeline.prompting and x.shape[1] != pipeline.encoders[1].dim:
        raise InputError(
            "prompts and texts are encoded in different widths",
            where="--features, --text.model",
            why=f"features have {x.shape[1]} numbers, the text model {pipeline.encoders[1].dim}",
            remedy="name the text model the features were made with, or use --no-prompt",
        )
    return x


def _node_task(
    graph: TextGraph, split: Split, x: Float[Tensor, "n d"], settings: Settings, pipeline: Pipeline
) -> _Task:
    seen = mask(np.concatenate([split["train"], split["val"]]), len(graph))
    graph = dataclasses.replace(graph, labels=np.where(seen, graph.labels, -1))
    train, val = (torch.from_numpy(np.asarray(split[part], np.int64)) for part in ("train", "val"))
    if settings.inductive:
        nodes = np.flatnonzero(seen)
        place = torch.from_numpy(np.cumsum(seen) - 1)
        graph, x, train, val = graph.subgraph(nodes), x[torch.from_numpy(nodes)], place[train], place[val]
    pipeline.fit(graph, x)
    view = pipeline.view(graph, x, select=settings.fused)
    return _Task(view, train, graph.edges, val if len(val) else None)


def _link_task(
    graph: TextGraph, links: LinkSplit, x: Float[Tensor, "n d"], settings: Settings, pipeline: Pipeline
) -> _Task:
    visible = dataclasses.replace(graph.with_edges(links.messages), labels=np.full(len(graph), -1))
    pipeline.fit(visible, x)
    view = pipeline.view(visible, x, select=settings.fused)
    known = np.concatenate([links.messages, links.positives])
    items, held_out = (torch.from_numpy(np.asarray(pairs, np.int64)) for pairs in (links.positives, links.val))
    return _Task(view, items, known, held_out, LinkSplit.truth(links.val))


def _optimise(
    task: _Task, settings: Settings, pipeline: Pipeline, steps: int, *, run: RunFolder | None, given: bool
) -> Network:
    view, training = task.view, settings.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = Network(settings.method, view.x.shape[1], len(view.graph.classes), settings.model)
    classes = view.x.new_zeros(len(view.graph.classes), view.x.shape[1])
    # Embeddings made elsewhere may be of a text model that is not at hand: then there is no zero-shot map to learn.
    if settings.fused and len(classes) and (pipeline.prompting or not given):
        classes = pipeline.describe_classes(view.graph)
    system = GraphSystem(
        network,
        view,
        pipeline,
        settings,
        classes=classes,
        known=task.known,
        held_out=task.held_out,
        truth=task.truth,
    )
    first, every = settings.first_stage(steps), min(training.validate_every, steps)
    fit(
        system,
        batches(TensorDataset(task.items), settings.batch_size, seed=training.seed),
        settings=_loop(training, steps, every, first),
        run=run,
        # Its own generator: a validation moves no draw of the training on.
        validation_data=None
        if task.held_out is None
        else DataLoader(TensorDataset(torch.zeros(1)), generator=torch.Generator()),
        keep="best" if steps - steps % every > first else "last",  # of validations after the first stage
    )
    return network


def _loop(training: TrainSettings, steps: int, every: int, first: int) -> TrainSettings:
    """Settings of the loop.

    Validations of the first stage do not count against patience; and parts of the network rest in it, which the
    processes of one run have to be told.
    """
    several = training.devices > 1 and training.strategy in ("auto", "ddp")
    return dataclasses.replace(
        training,
        steps=steps,
        validate_every=every,
        patience=training.patience + first // every if training.patience else 0,
        strategy="ddp_find_unused_parameters_true" if several else training.strategy,
    )


def warm_up(
    graph: TextGraph, settings: Settings, *, cache: TextCache, x: Float[Tensor, "n d"] | None = None
) -> GraphModel:
    """A model that has only warmed up, whose attention chooses neighbours for prompts."""
    short = dataclasses.replace(settings.training, steps=settings.stages.warmup + 1, progress=False)
    plain = dataclasses.replace(settings.model, prompt=False, fusion="graph")
    model = train_graph(
        graph, dataclasses.replace(settings, model=plain, batch_size=1024, training=short), x=x, cache=cache
    )
    model.pipeline.prompting = True
    model.pipeline.fit(graph, model.pipeline.embed(graph) if x is None else x)
    return model
