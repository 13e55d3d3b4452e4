"""Speed of PromptGNN-sim."""

import dataclasses
import resource
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from cl_graphtext.graphs.encoders import GraphEncoder
from cl_graphtext.graphs.graph import TextGraph, undirected
from cl_graphtext.graphs.sampling import whole_block
from cl_graphtext.promptgnn_sim import (
    GraphSystem,
    ModelConfig,
    SelectionSettings,
    Settings,
    StageSettings,
    evaluate,
    train_graph,
)
from cl_graphtext.promptgnn_sim.data import link_csr
from cl_graphtext.promptgnn_sim.model import Method, Network
from cl_graphtext.promptgnn_sim.training import make_pipeline
from contrastive_core.training import TrainSettings
from torch import Tensor
from torch_geometric.nn import GAT

from cl_bench.measures import Speed, race


def speed(rounds: int) -> list[Speed]:
    """A training step and full-graph inference against plain GATs of torch-geometric, and a large graph.

    Args:
        rounds: Timed rounds of each contestant; one of the large graph.
    """
    return [_step(rounds), _inference(rounds), _large()]


def _random_graph(nodes: int, edges: int, dim: int, seed: int = 0) -> tuple[TextGraph, Tensor]:
    """Random links, and text embeddings around one centre a class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, nodes)
    ends = undirected(rng.integers(0, nodes, (round(edges * 1.001), 2)))[:edges]
    names = tuple(map(str, range(nodes)))
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, dim, generator=draw)
    x = torch.randn(nodes, dim, generator=draw).add_(centres[torch.from_numpy(labels)])
    classes = tuple(f"class {i}" for i in range(10))
    return TextGraph(names, ("",) * nodes, names, labels, classes, classes, ends), x


def _step(rounds: int) -> Speed:
    """One step of joint training of a graph of Cora's size, seen whole, against a step of the library's GAT."""
    graph, x = _random_graph(2700, 5300, 384)
    settings = Settings(
        model=ModelConfig(prompt=False),
        selection=SelectionSettings(percentile=-1.0),
        stages=StageSettings(warmup=0),
        training=TrainSettings(steps=1, accelerator="cpu"),
    )
    pipeline = make_pipeline(settings)
    pipeline.fit(graph, x)
    view = pipeline.view(graph, x)
    torch.manual_seed(0)
    network = Network(settings.method, 384, 10, settings.model)
    network.remember_attention()
    pipeline.choose(view, network.selector)
    system = GraphSystem(network, view, pipeline, settings, classes=torch.randn(10, 384), known=graph.edges)
    # What a step asks of its trainer.
    system.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=0, accumulate_grad_batches=1, seed=0, max_steps=1, global_rank=0
    )
    system.log = system.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    optimizer = system.configure_optimizers()
    nodes = torch.arange(128)
    plain = GAT(384, 256, 2, 10, v2=False, heads=8, dropout=0.5)
    other = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    edges, labels = graph.to_data().edge_index, torch.from_numpy(graph.labels)

    def ours() -> None:
        optimizer.zero_grad()
        system.training_step([nodes], 0).backward()
        optimizer.step()

    def theirs() -> None:
        other.zero_grad()
        F.cross_entropy(plain(x, edges)[nodes], labels[nodes]).backward()
        other.step()

    kept = int((view.selection.neighbours >= 0).sum()) if view.selection is not None else 0
    notes = (
        f"2,700 nodes, 5,300 edges, width 256; ours adds fusion, both alignments and {kept:,} chosen links, batch 256"
    )
    return race("promptgnn-sim: training step", ours, theirs, peer="torch-geometric's GAT", rounds=rounds, notes=notes)


def _inference(rounds: int) -> Speed:
    """The graph encoder over a whole graph, with attention as sparse matrices against messages on edges."""
    graph, x = _random_graph(20_000, 200_000, 384)
    torch.manual_seed(0)
    encoder = GraphEncoder("gat", 384, 256).eval()
    block = whole_block(link_csr(graph))

    @torch.no_grad()
    def theirs() -> Tensor:
        return encoder(x, block.edge_index, block.edge_weight)

    gap = float((encoder.infer(x, block) - theirs()).abs().max())
    notes = f"20,000 nodes, 400,000 directed links, 384 to 256; results differ by at most {gap:.0e}"
    return race(
        "promptgnn-sim: full-graph inference",
        lambda: encoder.infer(x, block),
        theirs,
        peer="torch-geometric's GATConv",
        rounds=rounds,
        notes=notes,
    )


def _large(steps: int = 60) -> Speed:
    """Training on 200,000 nodes and 2,000,000 edges from sampled neighbourhoods, selection and inference included."""
    graph, x = _random_graph(200_000, 2_000_000, 128)
    order = np.random.default_rng(0).permutation(len(graph))
    split = {"train": order[:120_000], "val": order[:0], "test": order[120_000:]}
    accuracy: dict[str, float] = {}

    def task(method: Method) -> Callable[[], None]:
        def train_and_score() -> None:
            settings = Settings(
                method=method,
                batch_size=256,
                model=ModelConfig(prompt=False),
                stages=StageSettings(warmup=steps // 3),
                training=TrainSettings(steps=steps, progress=False, accelerator="cpu"),
            )
            model = train_graph(graph, settings, split=split, x=x)
            accuracy[method] = evaluate(model, graph, split, x=x)["test"]["accuracy"]

        return train_and_score

    measured = race(
        "promptgnn-sim: 200,000 nodes, 2,000,000 edges",
        task("promptgnn-sim"),
        task("gat"),
        peer="GAT on the same samples",
        rounds=1,
        notes="",
    )
    notes = (
        f"{steps} steps of 256 labelled nodes, then inference over all; random links, 128 numbers a text, no prompts; "
        f"test accuracy {accuracy['promptgnn-sim']:.2f} against {accuracy['gat']:.2f}; "
        f"largest resident memory of the process {resident_mib():,.0f} MiB"
    )
    return dataclasses.replace(measured, notes=notes)


def resident_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
