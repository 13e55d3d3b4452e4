"""Claims of PromptGNN-sim."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cl_graphtext.graph import TextGraph, homophily, random_split
from cl_graphtext.perturb import graph_perturb
from cl_graphtext.promptgnn_sim.model import Method, NetworkConfig
from cl_graphtext.promptgnn_sim.pipeline import Pipeline
from cl_graphtext.promptgnn_sim.selection import SelectionSettings
from cl_graphtext.promptgnn_sim.system import ObjectiveSettings, OptimSettings, StageSettings
from cl_graphtext.promptgnn_sim.training import Recipe, judge_nodes, train_nodes
from cl_graphtext.reading import read_graph
from cl_graphtext.samples import sample_graph
from cl_graphtext.text import TextCache, TextSettings, load_encoder
from contrastive_core.training import RunFolder, TrainSettings

from cl_bench.arms import Claim

_TEXT = TextSettings(max_tokens=128, prompt_tokens=64)
_STRUCTURE = SelectionSettings(weight=1.0, percentile=-1.0, augment="none")
_GRAPH_ONLY = NetworkConfig(fusion="graph")
_PLAIN = ObjectiveSettings(prompt_weight=0.0, graph_weight=0.0)
_FEW, _MANY = "20-per-class", "60/20/20"


@dataclasses.dataclass(frozen=True)
class _Arm:
    """What one arm differs in from the full method."""

    method: Method = "promptgnn-sim"
    selection: SelectionSettings = SelectionSettings()  # noqa: RUF009 - frozen
    network: NetworkConfig = NetworkConfig()  # noqa: RUF009 - frozen
    objective: ObjectiveSettings = ObjectiveSettings()  # noqa: RUF009 - frozen


_ARMS = {
    "T text": _Arm("text-mlp"),
    "G GAT": _Arm("gat"),
    "S structure-only": _Arm(selection=_STRUCTURE, network=_GRAPH_ONLY, objective=_PLAIN),
    "selection-only GAT": _Arm(network=_GRAPH_ONLY, objective=_PLAIN),
    "F PromptGNN-sim": _Arm(),
    "F, λ=1": _Arm(selection=_STRUCTURE),
    "F - prompt": _Arm(network=NetworkConfig(prompt=False)),
    "F - cross-attention": _Arm(network=NetworkConfig(cross_attention=False)),
    "F - contrast": _Arm(objective=_PLAIN),
    "GCN": _Arm("gcn"),
    "GraphSAGE": _Arm("sage"),
    "GRACE": _Arm("grace"),
}
_MAIN = ("T text", "G GAT", "S structure-only", "selection-only GAT", "F PromptGNN-sim")
_RATES = {0.0: _MAIN, 0.3: _MAIN, 0.5: tuple(_ARMS), 0.7: _MAIN}
_MANY_ARMS = ("T text", "G GAT", "S structure-only", "F PromptGNN-sim")


def claims(
    seeds: Sequence[int],
    data: Path | None,
    *,
    steps: int = 150,
    nodes: int = 1000,
    cache: Path | None = None,
) -> list[Claim]:
    """PromptGNN-sim against text alone, graphs alone and its own parts, on a graph whose edges are rewired.

    Args:
        seeds: Seeds of split, noise, weights and batches; all arms share them.
        data: TAG folder, such as Cora with raw text; packages of Debian without it.
        steps: Training steps of every arm; PromptGNN-sim spends a third of them on its warm-up.
        nodes: Nodes of the sample data.
        cache: Folder of embeddings; a temporary one if absent.
    """
    started = time.perf_counter()
    graph = sample_graph(nodes=nodes) if data is None else read_graph(data)
    with tempfile.TemporaryDirectory() as folder:
        store = TextCache(cache or Path(folder) / "cache")
        task = _Task(graph, steps, store, Path(folder))
        few = {rate: {name: list[float]() for name in arms} for rate, arms in _RATES.items()}
        many = {0.5: {name: list[float]() for name in _MANY_ARMS}}
        for seed in seeds:
            for label_rate, table in ((_FEW, few), (_MANY, many)):
                for rate, scores in table.items():
                    for name in scores:
                        scores[name].append(task.accuracy(name, rate, label_rate, seed))
    return _outcome(
        few, many, task, graph, seeds, time.perf_counter() - started, "Debian packages" if data is None else data.name
    )


class _Task:
    """One graph on which arms are trained; what several of them share is kept."""

    def __init__(self, graph: TextGraph, steps: int, cache: TextCache, folder: Path) -> None:
        self.graph, self.steps, self.cache, self.folder = graph, steps, cache, folder
        self.encoders = (load_encoder(_TEXT), load_encoder(_TEXT, prompts=True))
        self.before: dict[float, list[float]] = {}
        self.after: dict[float, list[float]] = {}
        self._known: dict[tuple[str, float, str, int], float] = {}

    def accuracy(self, name: str, rate: float, label_rate: str, seed: int) -> float:
        """Test accuracy of one arm, trained and tested on the disturbed graph."""
        key = (name, 0.0 if name == "T text" else rate, label_rate, seed)  # text does not see the edges
        if key not in self._known:
            self._known[key] = self._train(_ARMS[name], rate, label_rate, seed, name == "F PromptGNN-sim")
        return self._known[key]

    def _train(self, arm: _Arm, rate: float, label_rate: str, seed: int, full: bool) -> float:
        noisy = graph_perturb(self.graph, "rewire", rate, seed=seed)
        split = random_split(self.graph.labels, rate=label_rate, seed=seed)
        recipe = Recipe(
            method=arm.method,
            batch_size=512,
            selection=arm.selection,
            text=_TEXT,
            network=arm.network,
            objective=arm.objective,
            stages=StageSettings(warmup=self.steps // 3),
            optim=OptimSettings(lr=_LR),
            train=TrainSettings(steps=self.steps, seed=seed, validate_every=10, progress=False, log_every=50),
        )
        prompting = arm.method == "promptgnn-sim" and arm.network.prompt and arm.network.fusion != "graph"
        pipeline = Pipeline(arm.selection, _TEXT, self.cache, encoders=self.encoders, prompting=prompting)
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as place,
            RunFolder.create(Path(place) / "run", recipe.to_dict()) as run,
        ):
            model = train_nodes(noisy, split, recipe, pipeline, run=run)
        view = model.view(noisy)
        if full and label_rate == _FEW and view.selection is not None:
            self.before.setdefault(rate, []).append(homophily(noisy.edges, self.graph.labels))
            self.after.setdefault(rate, []).append(homophily(view.selection.edges(), self.graph.labels))
        return judge_nodes(model, noisy, split, view=view)["test"]["accuracy"]


_LR = 3e-3


def _outcome(
    few: dict[float, dict[str, list[float]]],
    many: dict[float, dict[str, list[float]]],
    task: _Task,
    graph: TextGraph,
    seeds: Sequence[int],
    seconds: float,
    title: str,
) -> list[Claim]:
    rows = [
        {"labels": label, "rewired": rate, **{name: statistics.fmean(scores[name]) for name in scores}}
        for label, table in ((_FEW, few), (_MANY, many))
        for rate, scores in table.items()
    ]
    links = [
        {"rewired": r, "homophily before": statistics.fmean(task.before[r]), "after": statistics.fmean(task.after[r])}
        for r in task.before
    ]
    notes = [
        f"{title}: {len(graph)} nodes, {len(graph.edges)} edges, {len(graph.classes)} classes, homophily "
        f"{homophily(graph.edges, graph.labels):.3f}; all-MiniLM-L6-v2, 128 tokens of text and 64 of prompt; "
        f"{task.steps} steps of AdamW at {_LR}, best of validations every 10 steps, seeds {', '.join(map(str, seeds))}",
        "test accuracy; every arm is trained and tested on the rewired graph; T does not see it",
        "S keeps the neighbours of the highest attention and is a GAT on them; F, λ=1 is the whole method on these",
    ]
    full, half, clean = "F PromptGNN-sim", few[0.5], few[0.0]
    margins = [  # claim, scores, better, baseline, margin it must exceed, gate
        ("half the edges rewired, against GAT", half, full, "G GAT", 0.05, True),
        ("half the edges rewired, against text", half, full, "T text", 0.02, True),
        ("half the edges rewired, against structure-only selection", half, full, "S structure-only", 0.03, True),
        ("clean graph, against GAT", clean, full, "G GAT", -0.03, True),
        ("the parts beyond selection cost at most .01, half rewired", half, full, "selection-only GAT", -0.01, False),
        ("half rewired, 60/20/20, against GAT", many[0.5], full, "G GAT", 0.05, False),
        ("half rewired, 60/20/20, against text", many[0.5], full, "T text", 0.02, False),
    ]
    found = []
    for number, (name, scores, better, baseline, margin, gate) in enumerate(margins):
        # The margin is part of the claim: the baseline is lifted by it, and the difference must stay positive.
        lifted = f"{baseline} {margin:+.2f}"
        shown = {**scores, lifted: [value + margin for value in scores[baseline]]}
        found.append(
            Claim(
                name=f"promptgnn-sim: {name}",
                statement=f"{better} reaches {baseline} {margin:+.2f}",
                scores=shown,
                better=better,
                baseline=lifted,
                gate=gate,
                details={"Test accuracy": rows, "Links kept": links} if number == 0 else {},
                notes=notes,
                seconds=seconds,
            )
        )
    return found
