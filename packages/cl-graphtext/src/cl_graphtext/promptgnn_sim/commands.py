"""The verbs of ``cl-graphtext promptgnn-sim``; the same functions are the Python interface."""

import csv
import dataclasses
import json as json_format
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.evaluation import fit_probe
from contrastive_core.files import atomic_write, write_json
from contrastive_core.report import Report
from contrastive_core.training import RunFolder, TrainSettings
from cyclopts import Parameter

from cl_graphtext.graph import PARTS, TextGraph, check_trainable, describe, random_split
from cl_graphtext.importers import import_cstag, import_planetoid, import_promptgfm, import_wikics
from cl_graphtext.llm import LLMSettings, load_summarizer
from cl_graphtext.metrics import classification_metrics, link_metrics
from cl_graphtext.perturb import Kind, graph_perturb, new_edges, parse_perturbation
from cl_graphtext.promptgnn_sim.figures import (
    add_examples,
    add_homophily,
    class_name,
    map_figure,
    robustness_figure,
    score_rows,
)
from cl_graphtext.promptgnn_sim.model import METHODS, Method, NetworkConfig
from cl_graphtext.promptgnn_sim.pipeline import Pipeline, prompt_rows
from cl_graphtext.promptgnn_sim.selection import SelectionSettings
from cl_graphtext.promptgnn_sim.system import ObjectiveSettings, OptimSettings, StageSettings, Task, embed_nodes
from cl_graphtext.promptgnn_sim.training import (
    LinkSplit,
    Model,
    Recipe,
    Split,
    judge_links,
    judge_nodes,
    split_links,
    train_links,
    train_nodes,
)
from cl_graphtext.reading import dump_jsonl, edge_indices, extend_graph, read_csv, read_graph, write_graph
from cl_graphtext.samples import Source, sample_graph
from cl_graphtext.text import TextCache, TextSettings, read_features

Flat = Parameter(name="*")
Format = Literal["promptgfm", "planetoid", "wikics", "cstag", "debian", "python"]
Table = Literal["csv", "parquet"]
DEFAULT_CACHE = Path("text-cache")


def sample_data(
    out: Path, *, source: Source = "auto", nodes: int = 1500, packages: Path | None = None, overwrite: bool = False
) -> None:
    """Write a real graph of text: Debian's packages with their dependencies, or the installed Python distributions.

    Args:
        out: Folder to write to.
        source: debian, python, or whichever is there.
        nodes: Most nodes, 0 for all.
        packages: Packages or dpkg status file, instead of the index of this machine.
        overwrite: Replace a graph that is there.
    """
    graph = sample_graph(source, nodes=nodes, packages=packages)
    write_graph(graph, out, overwrite=overwrite)
    _print_facts(describe(graph), out)


def import_graph(
    source: Path,
    out: Path,
    *,
    format: Format,
    texts: Path | None = None,
    table: Table = "csv",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Bring a published graph into the canonical folder, and say what was found in it.

    Args:
        source: Folder (or CSV of CS-TAG, Packages file of debian; not looked at for python).
        out: Folder to write to.
        format: promptgfm, planetoid, wikics, cstag, debian or python.
        texts: CSV with node_id and text, for planetoid, whose files hold none.
        table: csv or parquet.
        overwrite: Replace a graph that is there.
        json: Print JSON.
    """
    if texts is not None and format != "planetoid":
        raise InputError("texts are joined to planetoid's files only", where="--texts", why=f"--format is {format}")
    readers: dict[str, Callable[[], tuple[TextGraph, dict[str, Any]]]] = {
        "promptgfm": lambda: import_promptgfm(source),
        "planetoid": lambda: import_planetoid(source, texts),
        "wikics": lambda: import_wikics(source),
        "cstag": lambda: import_cstag(source),
        "debian": lambda: (sample_graph("debian", nodes=0, packages=source), {}),
        "python": lambda: (sample_graph("python", nodes=0), {}),
    }
    graph, found = readers[format]()
    write_graph(graph, out, format=table, overwrite=overwrite)
    facts = {**describe(graph), **found}
    if json:
        print(json_format.dumps(facts, indent=2))
    else:
        _print_facts(facts, out)


def cache_text(
    data: Path,
    out: Path,
    *,
    text: TextSettings = TextSettings(),
    cache: Path = DEFAULT_CACHE,
    overwrite: bool = False,
) -> None:
    """Encode the texts of a graph once, into the cache and as an array.

    Args:
        data: TAG folder.
        out: .npy to write, one row a node in the order of the nodes.
        text: Text model.
        cache: Folder of embeddings; other verbs find them there.
        overwrite: Replace an existing file.
    """
    _refuse_existing(out, overwrite, ".npy")
    graph = read_graph(data)
    pipeline = Pipeline(SelectionSettings(), text, TextCache(cache))
    x = pipeline.embed(graph)
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
    seed: int = 0,
    cache: Path = DEFAULT_CACHE,
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
        seed: Its seed.
        cache: Folder of embeddings and answers.
        overwrite: Replace an existing file.
    """
    _refuse_existing(out, overwrite, ".jsonl")
    graph = read_graph(data)
    store = TextCache(cache)
    if run is not None:
        model = Model.load(run, cache=store)
        _fused(model, run)
    else:
        recipe = Recipe(
            selection=selection,
            text=text,
            network=NetworkConfig(prompt=False, fusion="graph"),
            stages=StageSettings(warmup=warmup),
            batch_size=1024,
            train=TrainSettings(steps=warmup + 1, seed=seed, progress=False),
        )
        pipeline = Pipeline(selection, text, store, prompting=False)
        with tempfile.TemporaryDirectory() as place, RunFolder.create(Path(place) / "run", recipe.to_dict()) as folder:
            model = train_nodes(graph, _split(graph, split, seed), recipe, pipeline, run=folder)
        model.pipeline.prompting = True
        model.pipeline.fit(graph, model.pipeline.embed(graph))
    summarizer = load_summarizer(llm, labels=graph.classes, cache=cache / "answers")
    model.pipeline.prompting = False  # prompts are written here, not encoded
    view = model.view(graph)
    rows = prompt_rows(model.pipeline, view, range(len(graph)))
    if summarizer is not None:
        answers = summarizer.summarise(graph.ids, [row["prompt"] for row in rows])
        rows = [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]
    dump_jsonl(out, rows)
    print(f"{len(rows)} prompts in {out}")


def train(
    data: Path,
    out: Path,
    *,
    task: Task = "nc",
    method: Method = "promptgnn-sim",
    split: str = "60/20/20",
    split_seed: int = 0,
    inductive: bool = False,
    features: Path | None = None,
    batch_size: int = 128,
    text: TextSettings = TextSettings(),
    llm: LLMSettings = LLMSettings(),
    selection: SelectionSettings = SelectionSettings(),
    network: NetworkConfig = NetworkConfig(),
    objective: ObjectiveSettings = ObjectiveSettings(),
    stages: StageSettings = StageSettings(),
    optim: OptimSettings = OptimSettings(),
    train: Annotated[TrainSettings, Flat] = TrainSettings(steps=300, patience=0, validate_every=10),
    cache: Path = DEFAULT_CACHE,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train PromptGNN-sim or a baseline.

    Args:
        data: TAG folder.
        out: Run folder.
        task: nc: classes of nodes; lp: links.
        method: promptgnn-sim, text-mlp, gcn, sage, gat or grace.
        split: Shares such as 60/20/20, or 20-per-class; splits.json of the folder wins.
        split_seed: Seed of the split.
        inductive: See texts and links of test nodes only after training.
        features: .npy with embeddings of the nodes' texts, instead of the text model.
        batch_size: Labelled nodes, or links, in a batch.
        text: Text model.
        llm: Language model that turns prompts into summaries; none by default.
        selection: How neighbours are chosen.
        network: Architecture.
        objective: Objective.
        stages: Stages of training.
        optim: Optimiser.
        train: Length of the run and hardware.
        cache: Folder of embeddings and answers.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    recipe = Recipe(
        method=method,
        task=task,
        inductive=inductive,
        batch_size=batch_size,
        selection=selection,
        text=text,
        network=network,
        objective=objective,
        stages=stages,
        optim=optim,
        train=train,
    )
    config = {
        "command": "train",
        "data": str(data),
        "split": split,
        "split_seed": split_seed,
        "features": None if features is None else str(features),
        "cache": str(cache),
        "llm": {**dataclasses.asdict(llm), "answers": None if llm.answers is None else str(llm.answers)},
        **recipe.to_dict(),
    }
    if text.lora and (resume or features is not None or method != "promptgnn-sim"):
        raise InputError(
            "LoRA trains the text model of promptgnn-sim, in one go",
            where="--text.lora",
            why="it goes with none of --resume, --features and the baselines",
        )
    if (out / "config.yaml").is_file() and not (resume or overwrite):
        RunFolder.create(out, config)  # refuses, before minutes go into encoding
    graph = read_graph(data)
    pipeline = _pipeline(recipe, cache, llm, graph.classes)
    x = None if features is None else read_features(features, len(graph))
    # What the data refuse is refused before a folder is made.
    parts = _split(graph, split, split_seed) if task == "nc" else {}
    if task == "nc":
        check_trainable(graph, parts)
    links = split_links(graph, seed=split_seed) if task == "lp" else None
    recipe.length(len(parts["train"]) if links is None else len(links.positives))
    x = pipeline.embed(graph) if x is None else x
    if x.shape[1] != pipeline_width(pipeline, x, recipe):
        raise InputError(
            "prompts and texts are encoded in different widths",
            where="--features, --text.model",
            why=f"features have {x.shape[1]} numbers, the text model {pipeline.encoders[1].dim}",
            remedy="name the text model the features were made with, or use --no-network.prompt",
        )
    with RunFolder.create(out, config, overwrite=overwrite, resume=resume) as run:
        if links is None:
            model = train_nodes(graph, parts, recipe, pipeline, run=run, x=x)
            x = model.pipeline.embed(graph) if text.lora else x  # read by the model as it is now
            scores = judge_nodes(model, graph, parts, x=x)
        else:
            model = train_links(graph, links, recipe, pipeline, run=run, x=x)
            x = model.pipeline.embed(graph) if text.lora else x
            scores = judge_links(model, graph, links, x=x)
        model.save(run)
        results: dict[str, Any] = {"method": method, "task": task, "scores": scores, "graph": describe(graph)}
        shown = graph if links is None else graph.with_edges(links.messages)
        _training_report(run, model, shown, x, results).write(run.path / "report.html")
        run.write_results(results)
    for part, values in scores.items():
        print(
            f"{part}: "
            + ", ".join(f"{name} {value:.3f}" for name, value in values.items() if name not in ("nodes", "pairs"))
        )
    print(f"model in {out}, report in {out / 'report.html'}")


def evaluate(
    run: Path,
    data: Path,
    *,
    perturb: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    seeds: int = 3,
    split: str | None = None,
    split_seed: int | None = None,
    features: Path | None = None,
    text_model: str | None = None,
    cache: Path = DEFAULT_CACHE,
    json: bool = False,
) -> None:
    """Judge a trained model, on the graph as it is and under noise it was not trained with.

    Args:
        run: Run folder of `train`.
        data: TAG folder.
        perturb: Noise as KIND:RATE, of drop, add, rewire, node-drop, text-drop; may be given several times.
        seeds: Draws of each noise.
        split: Split; that of the run if absent.
        split_seed: Its seed; that of the run if absent.
        features: .npy with embeddings, for runs trained with --features.
        text_model: Where the run's text model is, if it has moved.
        cache: Folder of embeddings.
        json: Print JSON instead of a table.
    """
    noises = [parse_perturbation(word) for word in perturb]
    _positive(seeds, "--seeds")
    model, graph, x = _opened(run, data, features, text_model, cache)
    config = RunFolder.open(run).config()
    chosen = split or str(config.get("split", "60/20/20"))
    draw = int(config.get("split_seed", 0)) if split_seed is None else split_seed
    rows: list[dict[str, Any]] = []
    for kind, rate in [("drop", 0.0), *noises]:
        for seed in range(seeds if rate else 1):
            if model.task == "nc":
                noisy = graph_perturb(graph, kind, rate, seed=seed)  # type: ignore[arg-type]
                known = None if kind == "text-drop" and rate else x
                found = judge_nodes(model, noisy, _split(graph, chosen, draw), x=known)["test"]
            else:
                links = split_links(graph, seed=draw)
                noisy = graph_perturb(graph.with_edges(links.messages), kind, rate, seed=seed)  # type: ignore[arg-type]
                known = None if kind == "text-drop" and rate else x
                found = judge_links(model, noisy, dataclasses.replace(links, messages=noisy.edges), x=known)["test"]
            rows.append({"noise": f"{kind}:{rate:g}" if rate else "none", "seed": seed, **found})
            _tell(f"{rows[-1]['noise']}, draw {seed}: accuracy {found['accuracy']:.3f}")
    folder = RunFolder.open(run)
    results = folder.results()
    results["evaluation"] = rows
    folder.write_results(results)
    if json:
        print(json_format.dumps({"run": str(run), "rows": rows}, indent=2))
        return
    names = [name for name in rows[0] if name not in ("noise", "seed", "nodes", "pairs")]
    for noise in dict.fromkeys(row["noise"] for row in rows):
        mine = [row for row in rows if row["noise"] == noise]
        values = ", ".join(f"{name} {statistics.fmean(row[name] for row in mine):.3f}" for name in names)
        print(f"{noise:<14} {values}  ({len(mine)} draws)")


def robustness(
    data: Path,
    out: Path,
    *,
    methods: Annotated[tuple[Method, ...], Parameter(negative=(), consume_multiple=True)] = METHODS,
    kind: Kind = "rewire",
    rates: Annotated[tuple[float, ...], Parameter(negative=(), consume_multiple=True)] = (0.0, 0.3, 0.5, 0.7),
    seeds: int = 3,
    split: str = "20-per-class",
    features: Path | None = None,
    batch_size: int = 512,
    text: TextSettings = TextSettings(max_tokens=128, prompt_tokens=64),
    selection: SelectionSettings = SelectionSettings(),
    network: NetworkConfig = NetworkConfig(),
    objective: ObjectiveSettings = ObjectiveSettings(),
    stages: StageSettings = StageSettings(),
    optim: OptimSettings = OptimSettings(lr=3e-3),
    steps: int = 100,
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
        seeds: Seeds of split, noise and weights.
        split: Split; splits.json of the folder wins.
        features: .npy with embeddings of the texts; not with text-drop.
        batch_size: Labelled nodes in a batch.
        text: Text model.
        selection: How neighbours are chosen.
        network: Architecture.
        objective: Objective.
        stages: Stages of training.
        optim: Optimiser.
        steps: Training steps of every method.
        cache: Folder of embeddings.
        overwrite: Replace old results.
        json: Print JSON instead of a table.
    """
    _positive(seeds, "--seeds")
    _refuse_filled(out, overwrite)
    if features is not None and kind == "text-drop":
        raise InputError("features do not change with the texts", where="--features, --kind text-drop")
    graph = read_graph(data)
    for rate in rates:
        graph_perturb(graph, kind, rate)  # refuses before anything is trained
    store = TextCache(cache)
    curves: dict[str, dict[float, list[float]]] = {method: {rate: [] for rate in rates} for method in methods}
    fixed = None if features is None else read_features(features, len(graph))
    rows, encoders = [], None
    for seed in range(seeds):
        parts = _split(graph, split, seed)
        for rate in rates:
            noisy = graph_perturb(graph, kind, rate, seed=seed)
            for method in methods:
                recipe = Recipe(
                    method=method,
                    batch_size=batch_size,
                    selection=selection,
                    text=text,
                    network=network,
                    objective=objective,
                    stages=stages,
                    optim=optim,
                    train=TrainSettings(steps=steps, seed=seed, progress=False, validate_every=10, log_every=50),
                )
                pipeline = Pipeline(selection, text, store, encoders=encoders, prompting=_prompting(recipe))
                with (
                    tempfile.TemporaryDirectory() as place,
                    RunFolder.create(Path(place) / "run", recipe.to_dict()) as run,
                ):
                    model = train_nodes(noisy, parts, recipe, pipeline, run=run, x=fixed)
                if fixed is None and encoders is None and method == "promptgnn-sim":
                    encoders = pipeline.encoders
                scores = judge_nodes(model, noisy, parts, x=fixed)["test"]
                curves[method][rate].append(scores["accuracy"])
                rows.append({"method": method, "rate": rate, "seed": seed, **scores})
                _tell(f"{kind}:{rate:g}, seed {seed}, {method}: accuracy {scores['accuracy']:.3f}")
    report = Report(f"Robustness of {data.name}: {kind}")
    report.facts({"nodes": len(graph), "edges": len(graph.edges), "split": split, "seeds": seeds, "steps": steps})
    report.figure(
        "Accuracy against noise", robustness_figure(curves, kind, "test accuracy"), "Band: standard deviation."
    )
    report.table(
        "Mean test accuracy",
        ["rate", *methods],
        [[rate, *(statistics.fmean(curves[method][rate]) for method in methods)] for rate in rates],
        best=range(1, len(methods) + 1),
    )
    write_json(out / "robustness.json", {"kind": kind, "split": split, "steps": steps, "rows": rows})
    report.write(out / "report.html")
    if json:
        print(json_format.dumps(rows, indent=2))
        return
    print(f"{'rate':<6}" + "".join(f"{method:>15}" for method in methods))
    for rate in rates:
        print(f"{rate:<6g}" + "".join(f"{statistics.fmean(curves[method][rate]):>15.3f}" for method in methods))
    print(f"report in {out / 'report.html'}")


def transfer(
    run: Path,
    data: Path,
    *,
    task: Task = "nc",
    seed: int = 0,
    text_model: str | None = None,
    cache: Path = DEFAULT_CACHE,
    json: bool = False,
) -> None:
    """Use a trained model on another graph without training it further.

    nc: zero-shot accuracy by the cosine between an embedding and the mapped text of each class of the other graph; lp:
    links of the other graph from frozen embeddings and a logistic regression on its own training links.

    Args:
        run: Run folder of `train --task nc --method promptgnn-sim`.
        data: TAG folder of the other graph.
        task: nc or lp.
        seed: Seed of the links held out.
        text_model: Where the run's text model is, if it has moved.
        cache: Folder of embeddings.
        json: Print JSON.
    """
    if RunFolder.open(run).config().get("features") is not None:
        raise InputError("another graph is read by the run's text model", where=run, why="it was trained on --features")
    model, graph, x = _opened(run, data, None, text_model, cache)
    _fused(model, run)
    if task == "nc":
        if model.task != "nc":
            raise InputError("zero-shot classes need a model of classes", where=run, remedy="train with --task nc")
        z = embed_nodes(model.network, model.view(graph, x))
        with torch.no_grad():
            scores = model.network.zero_shot(z, model.pipeline.describe_classes(graph))
        found = classification_metrics(graph.labels, scores.argmax(1).numpy())
        largest = float(np.bincount(graph.labels[graph.labels >= 0]).max() / max(1, (graph.labels >= 0).sum()))
        found["largest_class"] = largest
    else:
        links = split_links(graph, seed=seed)
        rows = embed_nodes(model.network, model.view(graph.with_edges(links.messages), x)).numpy()
        rng = np.random.default_rng(seed)
        known = graph.with_edges(np.concatenate([links.messages, links.positives]))
        none = new_edges(known, len(links.positives), rng)
        fitted = np.concatenate([links.positives, none])
        truth = (np.arange(len(fitted)) < len(links.positives)).astype(np.int64)
        probe = fit_probe(_pair_features(rows, fitted), truth, strength=1.0)
        probability = probe.predict_proba(_pair_features(rows, links.test))[:, 1]
        found = link_metrics(LinkSplit.truth(links.test).numpy(), probability.astype(np.float32))
    if json:
        print(json_format.dumps({"task": task, **found}, indent=2))
    else:
        print(", ".join(f"{name} {value:.3f}" for name, value in found.items() if name not in ("nodes", "pairs")))


def predict(
    run: Path,
    data: Path,
    out: Path,
    *,
    new: Path | None = None,
    pairs: Path | None = None,
    features: Path | None = None,
    text_model: str | None = None,
    cache: Path = DEFAULT_CACHE,
    overwrite: bool = False,
) -> None:
    """Classes of nodes, or probabilities of links; of new nodes too.

    Args:
        run: Run folder of `train`.
        data: TAG folder of the known graph.
        out: .csv to write: node_id, class and a probability a class; or src, dst, probability.
        new: Folder with nodes and edges that join the graph now; only these are predicted.
        pairs: .csv with src and dst, for runs of --task lp.
        features: .npy with embeddings, for runs trained with --features.
        text_model: Where the run's text model is, if it has moved.
        cache: Folder of embeddings.
        overwrite: Replace an existing file.
    """
    _refuse_existing(out, overwrite, ".csv")
    model, graph, x = _opened(run, data, None if new else features, text_model, cache)
    nodes = np.arange(len(graph))
    if new is not None:
        graph, nodes = extend_graph(graph, new)
        x = None if features is None else read_features(features, len(graph))
    if (model.task == "lp") != (pairs is not None):
        raise InputError(
            "links are predicted for pairs, classes without them",
            where="--pairs",
            why=f"the run's task is {model.task}",
        )
    if pairs is None:
        z = embed_nodes(model.network, model.view(graph, x), torch.from_numpy(nodes))
        probability = model.probabilities(z).numpy()
        header = ["node_id", "class", *model.classes]
        rows = [
            [graph.ids[node], model.classes[int(p.argmax())], *(f"{v:.6f}" for v in p)]
            for node, p in zip(nodes, probability, strict=True)
        ]
    else:
        ends = edge_indices(read_csv(pairs), graph.index(), pairs)
        z = embed_nodes(model.network, model.view(graph, x))
        header = ["src", "dst", "probability"]
        rows = [
            [graph.ids[a], graph.ids[b], f"{p:.6f}"]
            for (a, b), p in zip(ends.tolist(), model.link_probability(z, ends).tolist(), strict=True)
        ]
    with atomic_write(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    print(f"{len(rows)} predictions in {out}")


def embed(
    run: Path,
    data: Path,
    out: Path,
    *,
    features: Path | None = None,
    text_model: str | None = None,
    cache: Path = DEFAULT_CACHE,
    overwrite: bool = False,
) -> None:
    """Embeddings of all nodes.

    Args:
        run: Run folder of `train`.
        data: TAG folder.
        out: .npy, one row a node in the order of the nodes; or .npz with z, ids, labels and classes.
        features: .npy with embeddings of the texts, for runs trained with --features.
        text_model: Where the run's text model is, if it has moved.
        cache: Folder of embeddings.
        overwrite: Replace an existing file.
    """
    _refuse_existing(out, overwrite, ".npy", ".npz")
    model, graph, x = _opened(run, data, features, text_model, cache)
    z = embed_nodes(model.network, model.view(graph, x)).numpy()
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
    features: Path | None = None,
    text_model: str | None = None,
    cache: Path = DEFAULT_CACHE,
    json: bool = False,
) -> None:
    """What a node's embedding rests on: its chosen neighbours with scores, its keywords and its prompt.

    Args:
        run: Run folder of `train --method promptgnn-sim`.
        data: TAG folder.
        node: Its id.
        features: .npy with embeddings of the texts, for runs trained with --features.
        text_model: Where the run's text model is, if it has moved.
        cache: Folder of embeddings.
        json: Print JSON.
    """
    model, graph, x = _opened(run, data, features, text_model, cache)
    _fused(model, run)
    place = graph.index()
    if node not in place:
        raise InputError("the graph has no such node", where="--node", why=f"got {node}")
    view = model.view(graph, x)
    row = prompt_rows(model.pipeline, view, [place[node]])[0]
    row["class"] = class_name(view, place[node])
    if model.task == "nc":
        p = model.probabilities(embed_nodes(model.network, view, torch.tensor([place[node]])))[0]
        row["predicted"], row["probability"] = model.classes[int(p.argmax())], round(float(p.max()), 4)
    if json:
        print(json_format.dumps(row, indent=2, ensure_ascii=False))
        return
    print(
        f"{graph.titles[place[node]]} ({row['class']})"
        + (f", predicted {row['predicted']}" if "predicted" in row else "")
    )
    for name, score, cosine, linked in zip(
        row["neighbours"], row["scores"], row["cosines"], row["linked"], strict=True
    ):
        title = graph.titles[place[name]]
        print(
            f"  {score:.3f}  cosine {cosine:.3f}  {'link' if linked else 'text'}  "
            f"{title} ({class_name(view, place[name])})"
        )
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


def pipeline_width(pipeline: Pipeline, x: torch.Tensor, recipe: Recipe) -> int:
    """Width of what prompts are encoded in; that of the texts where there are no prompts."""
    return pipeline.encoders[1].dim if _prompting(recipe) else x.shape[1]


def _prompting(recipe: Recipe) -> bool:
    return recipe.method == "promptgnn-sim" and recipe.network.prompt and recipe.network.fusion != "graph"


def _pipeline(recipe: Recipe, cache: Path, llm: LLMSettings, classes: Sequence[str]) -> Pipeline:
    return Pipeline(
        recipe.selection,
        recipe.text,
        TextCache(cache),
        summarizer=load_summarizer(llm, labels=classes, cache=cache / "answers"),
        prompting=_prompting(recipe),
    )


def _opened(
    run: Path, data: Path, features: Path | None, text_model: str | None, cache: Path
) -> tuple[Model, TextGraph, torch.Tensor | None]:
    """A model and the graph to use it on; a summarizer of the run is made again from its settings."""
    model = Model.load(run, cache=TextCache(cache))
    if text_model is not None:
        text = dataclasses.replace(model.text_settings, model=text_model)
        model = Model.load(run, cache=TextCache(cache), text=text)
    llm = dict(RunFolder.open(run).config().get("llm") or {})
    if llm.get("model") or llm.get("answers"):
        llm["answers"] = None if llm.get("answers") is None else Path(llm["answers"])
        model.pipeline.summarizer = load_summarizer(LLMSettings(**llm), labels=model.classes, cache=cache / "answers")
    graph = read_graph(data)
    return model, graph, None if features is None else read_features(features, len(graph))


def _split(graph: TextGraph, rate: str, seed: int) -> Split:
    """The data's own split, or a drawn one."""
    if graph.split:
        missing = [part for part in PARTS if part not in graph.split]
        if missing:
            raise InputError("the split lacks a part", where="splits.json", why=", ".join(missing))
        return graph.split
    if not (graph.labels >= 0).any():
        raise InputError("the graph has no labels", where="nodes", remedy="add a column label, or use --task lp")
    return random_split(graph.labels, rate=rate, seed=seed)


def _training_report(
    run: RunFolder, model: Model, graph: TextGraph, x: torch.Tensor, results: dict[str, Any]
) -> Report:
    report = Report(f"{model.method} on {len(graph)} nodes")
    facts = results["graph"]
    report.facts({name: facts[name] for name in ("nodes", "edges", "isolated nodes", "components", "homophily")})
    columns, rows = score_rows(results["scores"])
    report.table("Scores", columns, rows)
    logged = run.metrics()
    for title, shown in (
        ("Loss", ("loss", "task", "prompt_text", "graph_text", "zero_shot")),
        ("Validation loss", ("val_loss",)),
    ):
        lines = {
            name: ([row["step"] for row in logged if name in row], [row[name] for row in logged if name in row])
            for name in shown
        }
        lines = {name: line for name, line in lines.items() if line[0]}
        if lines:
            report.curve(title, lines, "step", "loss")
    view = model.view(graph, x)
    kept = add_homophily(report, view)
    if kept is not None:
        results["links"] = kept
    add_examples(report, model.pipeline, view)
    z = embed_nodes(model.network, view)
    names = [class_name(view, i) for i in range(len(graph))]
    report.figure("Map of embeddings", map_figure(z, ["" if name == "-" else name for name in names]))
    return report


def _fused(model: Model, run: Path) -> None:
    if model.method != "promptgnn-sim":
        raise InputError("this verb needs a run of promptgnn-sim", where=run, why=f"its method is {model.method}")


def _pair_features(z: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    a, b = z[pairs[:, 0]], z[pairs[:, 1]]
    return np.concatenate([a * b, np.abs(a - b)], axis=1)


def _print_facts(facts: Mapping[str, Any], out: Path) -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items())
        print(f"{name}: {f'{value:.3f}' if isinstance(value, float) else value}")
    print(f"graph in {out}")


def _tell(line: str) -> None:
    """A result as soon as it is there: prompts are encoded anew for every noise, which takes minutes."""
    print(line, file=sys.stderr, flush=True)


def _positive(value: int, option: str) -> None:
    if value < 1:
        raise InputError("the option is at least 1", where=option, why=f"got {value}")


def _refuse_existing(path: Path, overwrite: bool, *suffixes: str) -> None:
    if path.suffix not in suffixes:
        raise InputError("the output has another ending", where=path, remedy=f"end the name in {' or '.join(suffixes)}")
    if path.exists() and not overwrite:
        raise InputError("the output exists already", where=path, remedy="name another file, or pass --overwrite")


def _refuse_filled(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError("the output is not a folder", where=folder, remedy="name another folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise InputError("the folder holds files already", where=folder, remedy="name another, or pass --overwrite")
