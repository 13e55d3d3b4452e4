"""The verbs of ``cl-graphtext promptgnn-sim``."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from contrastive_core.cli import Flat, options_of
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, json_text, refuse_existing, refuse_filled, write_csv, write_json
from contrastive_core.tables import print_rows, show
from contrastive_core.training import RunFolder, TrainSettings
from cyclopts import Parameter
from jaxtyping import Float, Int
from torch import Tensor

from cl_graphtext.graphs.graph import TextGraph, describe
from cl_graphtext.graphs.importers import import_cstag, import_promptgfm, import_wikics
from cl_graphtext.graphs.links import LinkSplit
from cl_graphtext.graphs.perturb import Kind, parse_perturbation
from cl_graphtext.graphs.planetoid import import_planetoid
from cl_graphtext.graphs.reading import dump_jsonl, edge_indices, extend_graph, read_graph, write_graph
from cl_graphtext.graphs.samples import Source, sample_graph
from cl_graphtext.promptgnn_sim.data import Pipeline
from cl_graphtext.promptgnn_sim.evaluation import evaluate as score
from cl_graphtext.promptgnn_sim.evaluation import (
    evaluate_noise,
    evaluate_transferred_links,
    evaluate_zero_shot,
    link_facts,
    means,
)
from cl_graphtext.promptgnn_sim.evaluation import robustness as compare
from cl_graphtext.promptgnn_sim.inference import GraphModel, class_table, link_table
from cl_graphtext.promptgnn_sim.model import METHODS, Method
from cl_graphtext.promptgnn_sim.report import class_name, neighbour_rows, robustness_report, training_report
from cl_graphtext.promptgnn_sim.selection import SelectionSettings
from cl_graphtext.promptgnn_sim.system import OptimSettings, Settings, StageSettings, Task
from cl_graphtext.promptgnn_sim.training import train_graph, warm_up
from cl_graphtext.texts.answers import load_summarizer
from cl_graphtext.texts.cache import TextCache, read_features
from cl_graphtext.texts.encoders import TextSettings
from cl_graphtext.texts.llm import LLMSettings
from cl_graphtext.texts.reading import read_table

Format = Literal["promptgfm", "planetoid", "wikics", "cstag", "debian", "python"]
DEFAULT_CACHE = Path("text-cache")
_NOISY = Settings(
    split="20-per-class",
    batch_size=512,
    text=TextSettings(max_tokens=128, prompt_tokens=64),
    optim=OptimSettings(lr=3e-3),
    training=TrainSettings(steps=100, validate_every=10, log_every=50, progress=False),
)


@dataclasses.dataclass(frozen=True)
class Use:
    """What a verb that uses a trained run needs besides it.

    Attributes:
        features: .npy with embeddings of all texts, for runs trained with --features.
        text_model: Where the run's text model is, if it has moved.
        cache: Folder of embeddings and answers.
        device: auto, cpu or cuda.
    """

    features: Path | None = None
    text_model: str | None = None
    cache: Path = DEFAULT_CACHE
    device: str = "auto"


def sample_data(
    out: Path,
    *,
    source: Source = "auto",
    nodes: int = 1500,
    packages: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write a real graph of text: Debian's packages with their dependencies, or the installed Python distributions.

    Args:
        out: Folder to write to.
        source: debian, python, or whichever is there.
        nodes: Most nodes, 0 for all.
        packages: Packages or dpkg status file, instead of the index of this machine.
        overwrite: Replace a graph that is there.
        json: Print JSON.
    """
    refuse_filled(out, overwrite)
    graph = sample_graph(source, nodes=nodes, packages=packages)
    write_graph(graph, out, overwrite=overwrite)
    _print_facts(describe(graph), json=json, last=f"graph in {out}")


def import_graph(
    source: Path,
    out: Path,
    *,
    format: Format,
    texts: Path | None = None,
    table: Literal["csv", "parquet"] = "csv",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Bring a published graph into the canonical folder, and say what was found in it.

    Args:
        source: Folder (or CSV of CS-TAG, Packages file of debian; not looked at for python).
        out: Folder to write to.
        format: promptgfm, planetoid, wikics, cstag, debian or python.
        texts: Table with node_id and text, for planetoid, whose files hold none.
        table: csv or parquet.
        overwrite: Replace a graph that is there.
        json: Print JSON.
    """
    if texts is not None and format != "planetoid":
        raise InputError("texts are joined to planetoid's files only", where="--texts", why=f"--format is {format}")
    refuse_filled(out, overwrite)
    readers: dict[str, Callable[[], tuple[TextGraph, dict[str, Any]]]] = {
        "promptgfm": lambda: import_promptgfm(source),
        "planetoid": lambda: import_planetoid(source, texts),
        "wikics": lambda: import_wikics(source),
        "cstag": lambda: import_cstag(source),
        "debian": lambda: (sample_graph("debian", nodes=0, packages=source), {}),
        "python": lambda: (sample_graph("python", nodes=0), {}),
    }
    graph, more = readers[format]()
    write_graph(graph, out, format=table, overwrite=overwrite)
    _print_facts({**describe(graph), **more}, json=json, last=f"graph in {out}")


def inspect(data: Path, *, json: bool = False) -> None:
    """Say what is in a graph: counts, classes, missing texts and labels, the split, homophily.

    Args:
        data: TAG folder.
        json: Print JSON.
    """
    graph = read_graph(data)
    split = {part: len(nodes) for part, nodes in graph.split.items()}
    _print_facts({**describe(graph), "split": split or "none, one is drawn"}, json=json)


def cache_text(
    data: Path,
    out: Path,
    *,
    text: TextSettings = TextSettings(),
    cache: Path = DEFAULT_CACHE,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Encode the texts of a graph once, into the cache and as an array.

    Args:
        data: TAG folder.
        out: .npy to write, one row a node in the order of the nodes.
        text: Text model.
        cache: Folder of embeddings; other verbs find them there.
        device: auto, cpu or cuda.
        overwrite: Replace an existing file.
    """
    _refuse_output(out, overwrite, ".npy")
    pipeline = Pipeline(SelectionSettings(), text, TextCache(cache), device=device)
    x = pipeline.embed(read_graph(data))
    with atomic_write(out) as temporary:
        np.save(temporary, x.numpy())
    print(f"{len(x)} embeddings of {x.shape[1]} numbers in {out}, {pipeline.cache.encoded} of them encoded now")


def prompts(
    data: Path,
    out: Path,
    *,
    run: Path | None = None,
    selection: SelectionSettings = SelectionSettings(),
    text: TextSettings = TextSettings(),
    llm: LLMSettings = LLMSettings(),
    warmup: int = 30,
    split: str = "60/20/20",
    split_seed: int = 0,
    seed: int = 0,
    cache: Path = DEFAULT_CACHE,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Write the prompt of every node, with the neighbours it is made from.

    Args:
        data: TAG folder.
        out: .jsonl to write: node_id, neighbours, scores, cosines, linked, keywords, prompt; answer with --llm.
        run: Run folder whose attention and settings are used; without, a graph encoder is warmed up first.
        selection: How neighbours are chosen, without a run.
        text: Text model, without a run.
        llm: Language model that answers the prompts.
        warmup: Steps of that warm-up.
        split: Split of that warm-up.
        split_seed: Seed of that split.
        seed: Seed of that warm-up.
        cache: Folder of embeddings and answers.
        device: auto, cpu or cuda.
        overwrite: Replace an existing file.
    """
    _refuse_output(out, overwrite, ".jsonl")
    graph, store = read_graph(data), TextCache(cache)
    summarizer = load_summarizer(llm, labels=graph.classes, cache=cache / "answers", device=device)
    if run is None:
        accelerator = {"cuda": "gpu"}.get(device.partition(":")[0], device)
        training, stages = TrainSettings(seed=seed, accelerator=accelerator), StageSettings(warmup=warmup)
        settings = Settings(
            split=split, split_seed=split_seed, text=text, selection=selection, stages=stages, training=training
        )
        rows = warm_up(graph, settings, cache=store).prompts(graph)
    else:
        rows = GraphModel.load(run, device=device, cache=store).prompts(graph)
    if summarizer is not None:
        answers = summarizer.summarise(graph.ids, [row["prompt"] for row in rows])
        rows = [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]
    dump_jsonl(out, rows)
    print(f"{len(rows)} prompts in {out}")


def train(
    data: Path,
    out: Path,
    *,
    settings: Annotated[Settings, Flat] = Settings(),
    features: Path | None = None,
    cache: Path = DEFAULT_CACHE,
    resume: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Train PromptGNN-sim or a baseline.

    Args:
        data: TAG folder.
        out: Run folder.
        settings: Method, model, objective, length of the run.
        features: .npy with embeddings of the nodes' texts, instead of the text model.
        cache: Folder of embeddings and answers.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
        json: Print JSON.
    """
    with RunFolder.create(out, options_of(train, locals()), resume=resume, overwrite=overwrite) as run:
        graph = read_graph(data)
        x, split = None if features is None else read_features(features, len(graph)), settings.parts(graph)
        model = train_graph(graph, settings, split=split, x=x, cache=TextCache(cache), run=run)
        model.save(run)
        view = model.view(graph.with_edges(split.messages) if isinstance(split, LinkSplit) else graph, x)
        scores, facts = score(model, graph, split, view=view), describe(graph)
        results = {"method": settings.method, "task": settings.task, "scores": scores, "graph": facts}
        run.write_results({**results, "links": link_facts(view)})
        training_report(run, model, view, scores, facts, split).write(run.report)
    if json:
        print(json_text(results))
        return
    print_rows([{"part": part, **values} for part, values in scores.items()])
    print(f"model in {out}, report in {run.report}; next: cl-graphtext promptgnn-sim evaluate {out} {data}")


def evaluate(
    run: Path,
    data: Path,
    *,
    perturb: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    seeds: int = 3,
    split: str | None = None,
    split_seed: int | None = None,
    use: Annotated[Use, Flat] = Use(),
    json: bool = False,
) -> None:
    """Score a trained model, on the graph as it is and under noise it was not trained with.

    Args:
        run: Run folder of `train`.
        data: TAG folder.
        perturb: Noise as KIND:RATE, of drop, add, rewire, node-drop, text-drop; may be given several times.
        seeds: Draws of each noise.
        split: Split; that of the run if absent.
        split_seed: Its seed; that of the run if absent.
        use: Where texts, embeddings and hardware are.
        json: Print JSON instead of a table.
    """
    noises = [parse_perturbation(word) for word in perturb]
    model, graph, x, _ = _opened(run, data, use)
    own = model.settings
    model.settings = dataclasses.replace(
        own,
        split=own.split if split is None else split,
        split_seed=own.split_seed if split_seed is None else split_seed,
    )
    rows = []
    for row in evaluate_noise(model, graph, noises, seeds=seeds, x=x):
        rows.append(row)
        _tell(f"{row['noise']}, draw {row['draw']}: accuracy {row['accuracy']:.3f}")
    _add_results(run, rows)
    if json:
        print(json_text({"run": run, "rows": rows}))
    else:
        print_rows(means(rows, "noise", leave_out=("draw",)))


def robustness(
    data: Path,
    out: Path,
    *,
    methods: Annotated[tuple[Method, ...], Parameter(negative=(), consume_multiple=True)] = METHODS,
    kind: Kind = "rewire",
    rates: Annotated[tuple[float, ...], Parameter(negative=(), consume_multiple=True)] = (0.0, 0.3, 0.5, 0.7),
    seeds: int = 3,
    settings: Annotated[Settings, Flat] = _NOISY,
    features: Path | None = None,
    cache: Path = DEFAULT_CACHE,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Accuracy against noise: every method trained and tested on the disturbed graph, over rates and seeds.

    Args:
        data: TAG folder with labels.
        out: Folder for robustness.json and report.html with the curves.
        methods: Methods to compare.
        kind: Noise: drop, add, rewire, node-drop or text-drop.
        rates: Rates in [0, 1].
        seeds: How many seeds of split, noise and weights, counted from --seed and --split-seed.
        settings: Settings of every method.
        features: .npy with embeddings of the texts; not with text-drop.
        cache: Folder of embeddings.
        overwrite: Replace old results.
        json: Print JSON instead of a table.
    """
    refuse_filled(out, overwrite)
    graph = read_graph(data)
    x = None if features is None else read_features(features, len(graph))

    def tell(row: Mapping[str, Any]) -> None:
        _tell(f"{kind}:{row['rate']:g}, seed {row['seed']}, {row['method']}: accuracy {row['accuracy']:.3f}")

    rows = compare(
        graph, settings, methods=methods, kind=kind, rates=rates, seeds=seeds, x=x, cache=TextCache(cache), tell=tell
    )
    facts = {"nodes": len(graph), "edges": len(graph.edges), "split": settings.split, "seeds": seeds}
    report, table = robustness_report(data, rows, kind, facts | {"steps": settings.training.steps})
    write_json(out / "robustness.json", {"kind": kind, **facts, "rows": rows})
    report.write(out / "report.html")
    print_rows(rows if json else table, json=json)
    if not json:
        print(f"report in {out / 'report.html'}")


def transfer(
    run: Path,
    data: Path,
    *,
    task: Task = "nc",
    split_seed: int = 0,
    use: Annotated[Use, Flat] = Use(),
    json: bool = False,
) -> None:
    """Use a trained model on another graph without training it further.

    nc: zero-shot accuracy by the cosine between an embedding and the mapped text of each class of the other graph; lp:
    links of the other graph from frozen embeddings and a logistic regression on its own training links.

    Args:
        run: Run folder of `train --task nc --method promptgnn-sim`.
        data: TAG folder of the other graph.
        task: nc or lp.
        split_seed: Seed of the links held out.
        use: Where texts, embeddings and hardware are.
        json: Print JSON.
    """
    model, graph, x, _ = _opened(run, data, use)
    model.check_fused()
    if task == "nc":
        scores = evaluate_zero_shot(model, graph, x)
    else:
        scores = evaluate_transferred_links(model, graph, x, seed=split_seed)
    if json:
        print(json_text({"task": task, **scores}))
    else:
        print_rows([scores])


def predict(
    run: Path,
    data: Path,
    out: Path,
    *,
    new: Path | None = None,
    pairs: Path | None = None,
    use: Annotated[Use, Flat] = Use(),
    overwrite: bool = False,
) -> None:
    """Classes of nodes, or probabilities of links; of new nodes too.

    Args:
        run: Run folder of `train`.
        data: TAG folder of the known graph.
        out: .csv to write: node_id, class and a probability a class; or src, dst, probability.
        new: Folder with nodes and edges that join the graph now; only these are predicted.
        pairs: .csv with src and dst, for runs of --task lp.
        use: Where texts, embeddings and hardware are.
        overwrite: Replace an existing file.
    """
    _refuse_output(out, overwrite, ".csv")
    model, graph, x, nodes = _opened(run, data, use, new)
    if pairs is None:
        rows = class_table(graph.ids, nodes, model.predict(graph, x).numpy(), model.classes)
    else:
        ends = edge_indices(read_table(pairs), graph.index())
        rows = link_table(graph.ids, ends, model.predict_links(graph, ends, x).numpy())
    write_csv(out, rows)
    print(f"{len(rows)} predictions in {out}")


def embed(
    run: Path,
    data: Path,
    out: Path,
    *,
    use: Annotated[Use, Flat] = Use(),
    overwrite: bool = False,
) -> None:
    """Embeddings of all nodes.

    Args:
        run: Run folder of `train`.
        data: TAG folder.
        out: .npy, one row a node in the order of the nodes; or .npz with z, ids, labels and classes.
        use: Where texts, embeddings and hardware are.
        overwrite: Replace an existing file.
    """
    _refuse_output(out, overwrite, ".npy", ".npz")
    model, graph, x, _ = _opened(run, data, use)
    z = model.embed(graph, x).numpy()
    with atomic_write(out) as temporary:
        if out.suffix == ".npy":
            np.save(temporary, z)
        else:
            np.savez(temporary, z=z, ids=np.array(graph.ids), labels=graph.labels, classes=np.array(graph.classes))
    print(f"{len(z)} embeddings of {z.shape[1]} numbers in {out}")


def explain(
    run: Path,
    data: Path,
    *,
    node: str,
    use: Annotated[Use, Flat] = Use(),
    json: bool = False,
) -> None:
    """What a node's embedding rests on: its chosen neighbours with scores, its keywords and its prompt.

    Args:
        run: Run folder of `train --method promptgnn-sim`.
        data: TAG folder.
        node: Its id.
        use: Where texts, embeddings and hardware are.
        json: Print JSON.
    """
    model, graph, x, _ = _opened(run, data, use)
    place = graph.index()
    if node not in place:
        raise InputError("the graph has no such node", where="--node", why=f"got {node}")
    row = {**model.explain(graph, [place[node]], x)[0], "class": class_name(graph, place[node])}
    if json:
        print(json_text(row))
        return
    predicted = f", predicted {row['predicted']} ({row['probability']:.2f})" if "predicted" in row else ""
    title = f"{graph.titles[place[node]]} ({row['class']}){predicted}"
    print_rows(neighbour_rows(graph, row, place), title=title)
    print(f"keywords: {', '.join(row['keywords'])}\nprompt: {row['prompt']}")


def info() -> None:
    """The paper, the claim and how to cite."""
    print(
        "PromptGNN-sim: deep fusion and alignment of graph networks and language models on text-attributed graphs.\n\n"
        "Claim: neighbours chosen by attention and text similarity, prompts that tell the language model about\n"
        "them, and attention in both directions keep node classification accurate when links are wrong or missing.\n\n"
        "Z. Hu, A. I. Cristea. PromptGNN-sim: Deep Fusion and Alignment of GNN and LLMs for Text-Attributed Graph\n"
        "Learning. arXiv:2606.30291, 2026.\n\n"
        "The paper's equations were not at hand: selection, attention and losses are rebuilt from its descriptions."
    )


def _opened(
    run: Path, data: Path, use: Use, new: Path | None = None
) -> tuple[GraphModel, TextGraph, Float[Tensor, "n d"] | None, Int[np.ndarray, " m"]]:
    """A model, the graph to use it on, embeddings of its texts where they are given, and the nodes asked about."""
    model = GraphModel.load(run, device=use.device, cache=TextCache(use.cache), text_model=use.text_model)
    graph = read_graph(data)
    graph, nodes = (graph, np.arange(len(graph))) if new is None else extend_graph(graph, new)
    return model, graph, None if use.features is None else read_features(use.features, len(graph)), nodes


def _add_results(run: Path, rows: list[dict[str, Any]]) -> None:
    """Put the rows of an evaluation beside the results of the run."""
    folder = RunFolder.open(run)
    folder.write_results({**folder.results(), "evaluation": rows})


def _print_facts(facts: Mapping[str, Any], *, json: bool, last: str = "") -> None:
    if json:
        print(json_text(facts))
        return
    for name, value in facts.items():
        text = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else show(value)
        print(f"{name}: {text}")
    if last:
        print(last)


def _tell(line: str) -> None:
    """A result as soon as it is there: prompts are encoded anew for every noise, which takes minutes."""
    print(line, file=sys.stderr, flush=True)


def _refuse_output(path: Path, overwrite: bool, *suffixes: str) -> None:
    if path.suffix not in suffixes:
        raise InputError("the output has another ending", where=path, remedy=f"end the name in {' or '.join(suffixes)}")
    refuse_existing(path, overwrite)
