"""Claims of PromptGNN-sim."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cl_graphtext.graphs.graph import TextGraph, homophily
from cl_graphtext.graphs.perturb import graph_perturb
from cl_graphtext.graphs.reading import read_graph
from cl_graphtext.graphs.samples import sample_graph
from cl_graphtext.graphs.splits import random_split
from cl_graphtext.promptgnn_sim import (
    ModelConfig,
    ObjectiveSettings,
    OptimSettings,
    SelectionSettings,
    Settings,
    StageSettings,
    evaluate,
    train_graph,
)
from cl_graphtext.promptgnn_sim.model import Method
from cl_graphtext.texts.cache import TextCache
from cl_graphtext.texts.encoders import TextSettings, load_encoder
from contrastive_core.training import TrainSettings

from cl_bench.arms import Arm, Outcome, Result, Statement, Table, compare, measure

_TEXT = TextSettings(max_tokens=128, prompt_tokens=64)
_STRUCTURE = SelectionSettings(weight=1.0, percentile=-1.0, augment="none")
_GRAPH_ONLY = ModelConfig(fusion="graph")
_PLAIN = ObjectiveSettings(prompt_weight=0.0, graph_weight=0.0)
_FEW, _MANY = "20-per-class", "60/20/20"
_LR = 3e-3


@dataclasses.dataclass(frozen=True)
class _Variant:
    """What one arm differs in from the full method."""

    method: Method = "promptgnn-sim"
    selection: SelectionSettings = SelectionSettings()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveSettings = ObjectiveSettings()


_VARIANTS = {
    "T text": _Variant("text-mlp"),
    "G GAT": _Variant("gat"),
    "S structure-only": _Variant(selection=_STRUCTURE, model=_GRAPH_ONLY, objective=_PLAIN),
    "selection-only GAT": _Variant(model=_GRAPH_ONLY, objective=_PLAIN),
    "F PromptGNN-sim": _Variant(),
    "F, λ=1": _Variant(selection=_STRUCTURE),
    "F - prompt": _Variant(model=ModelConfig(prompt=False)),
    "F - cross-attention": _Variant(model=ModelConfig(cross_attention=False)),
    "F - contrast": _Variant(objective=_PLAIN),
    "GCN": _Variant("gcn"),
    "GraphSAGE": _Variant("sage"),
    "GRACE": _Variant("grace"),
}
_FULL = "F PromptGNN-sim"
_MAIN = ("T text", "G GAT", "S structure-only", "selection-only GAT", _FULL)
_RATES = {0.0: _MAIN, 0.3: _MAIN, 0.5: tuple(_VARIANTS), 0.7: _MAIN}
_MANY_ARMS = ("T text", "G GAT", "S structure-only", _FULL)


def _condition(labels: str, rate: float) -> str:
    return f"{labels} labels, {rate:.0%} of the edges rewired"


def _accuracy(
    statement: str, baseline: str, margin: float, *, labels: str = _FEW, rate: float = 0.5, gate: bool = False
) -> Statement:
    return Statement(statement, "accuracy", _FULL, baseline, margin, gate=gate, condition=_condition(labels, rate))


STATEMENTS = [
    _accuracy("half the edges rewired, against GAT", "G GAT", 0.05, gate=True),
    _accuracy("half the edges rewired, against text", "T text", 0.02, gate=True),
    _accuracy("half the edges rewired, against structure-only selection", "S structure-only", 0.03, gate=True),
    _accuracy("clean graph, against GAT", "G GAT", -0.03, rate=0.0, gate=True),
    _accuracy("the parts beyond selection cost at most .01, half rewired", "selection-only GAT", -0.01),
    _accuracy("half rewired, 60/20/20, against GAT", "G GAT", 0.05, labels=_MANY),
    _accuracy("half rewired, 60/20/20, against text", "T text", 0.02, labels=_MANY),
]


def claims(
    seeds: Sequence[int],
    data: Path | None,
    *,
    steps: int = 150,
    nodes: int = 1000,
    cache: Path | None = None,
) -> list[Outcome]:
    """PromptGNN-sim against text alone, graphs alone and its own parts, on a graph whose edges are rewired.

    Args:
        seeds: Seeds of split, noise, weights and batches; all arms share them.
        data: TAG folder, such as Cora with raw text; packages of Debian without it.
        steps: Training steps of every arm; PromptGNN-sim spends a third of them on its warm-up.
        nodes: Nodes of the sample data.
        cache: Folder of embeddings; a temporary one if absent.
    """
    graph = sample_graph(nodes=nodes) if data is None else read_graph(data)
    table = Table((), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        task = _Task(graph, steps, TextCache(cache or Path(folder) / "cache"))
        for labels, rates in ((_FEW, _RATES), (_MANY, {0.5: _MANY_ARMS})):
            for rate, names in rates.items():
                arms = {name: task.arm(name, rate, labels) for name in names}
                table += measure("promptgnn-sim", arms, seeds, condition=_condition(labels, rate))
    title = "Debian packages" if data is None else data.name
    notes = [
        f"{title}: {len(graph)} nodes, {len(graph.edges)} edges, {len(graph.classes)} classes, homophily "
        f"{homophily(graph.edges, graph.labels):.3f}; all-MiniLM-L6-v2, 128 tokens of text and 64 of prompt; "
        f"{steps} steps of AdamW at {_LR}, best of validations every 10 steps, seeds {', '.join(map(str, seeds))}",
        "test accuracy; every arm is trained and tested on the rewired graph; T does not see it",
        "S keeps the neighbours of the highest attention and is a GAT on them; F, λ=1 is the whole method on these",
    ]
    return compare("promptgnn-sim", STATEMENTS, table, notes=notes)


class _Task:
    """One graph on which arms are trained; text alone does not see the edges and is trained once a seed."""

    def __init__(self, graph: TextGraph, steps: int, cache: TextCache) -> None:
        self.graph, self.steps, self.cache = graph, steps, cache
        self.encoders = (load_encoder(_TEXT), load_encoder(_TEXT, prompts=True))
        self.text: dict[tuple[str, int], Result] = {}

    def arm(self, name: str, rate: float, labels: str) -> Arm:
        """An arm that is trained and tested on the graph with a share of its edges rewired."""

        def score(seed: int) -> Result:
            if name != "T text":
                return self._train(name, rate, labels, seed)
            if (labels, seed) not in self.text:
                self.text[labels, seed] = self._train(name, rate, labels, seed)
            return self.text[labels, seed]

        return score

    def _train(self, name: str, rate: float, labels: str, seed: int) -> Result:
        variant = _VARIANTS[name]
        noisy = graph_perturb(self.graph, "rewire", rate, seed=seed)
        split = random_split(self.graph.labels, rate=labels, seed=seed)
        settings = Settings(
            method=variant.method,
            batch_size=512,
            selection=variant.selection,
            text=_TEXT,
            model=variant.model,
            objective=variant.objective,
            stages=StageSettings(warmup=self.steps // 3),
            optim=OptimSettings(lr=_LR),
            training=TrainSettings(steps=self.steps, seed=seed, validate_every=10, progress=False, log_every=50),
        )
        model = train_graph(noisy, settings, split=split, cache=self.cache, encoders=self.encoders)
        view = model.view(noisy)
        metrics = {"accuracy": evaluate(model, noisy, split, view=view)["test"]["accuracy"]}
        if name == _FULL and labels == _FEW and view.selection is not None:
            metrics["homophily before"] = homophily(noisy.edges, self.graph.labels)
            metrics["homophily after"] = homophily(view.selection.edges(), self.graph.labels)
        return Result(metrics)
