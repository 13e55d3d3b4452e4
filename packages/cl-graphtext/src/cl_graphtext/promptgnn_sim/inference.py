"""The trained object: a network with everything around it that reading, choosing and prompting need."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.devices import pick_device
from contrastive_core.errors import InputError
from contrastive_core.weights import load_model, save_weights
from jaxtyping import Float, Int
from torch import Tensor

from cl_graphtext.graphs.in_memory import Graph, as_graph
from cl_graphtext.promptgnn_sim.data import Fitted, GraphView, Pipeline, prompt_rows
from cl_graphtext.promptgnn_sim.model import ModelConfig, Network, embed_nodes
from cl_graphtext.promptgnn_sim.selection import SelectionSettings
from cl_graphtext.promptgnn_sim.system import Settings
from cl_graphtext.texts.answers import load_summarizer
from cl_graphtext.texts.cache import TextCache
from cl_graphtext.texts.encoders import TextSettings, TransformerEncoder
from cl_graphtext.texts.llm import LLMSettings

KIND = "promptgnn-sim"


@dataclasses.dataclass
class GraphModel:
    """A trained network; :func:`cl_graphtext.promptgnn_sim.train_graph` makes it.

    Graphs are given as ``TextGraph`` or as ``torch_geometric`` ``Data`` with texts, embeddings ``x`` of their texts
    where they are known (and always where the model was trained on such).

    Attributes:
        network: The network, in eval mode.
        pipeline: Text model, selection and prompts as in training.
        settings: What it was trained with.
        classes: Names of the classes.
        own_features: Whether it was trained on embeddings made elsewhere.
    """

    network: Network
    pipeline: Pipeline
    settings: Settings
    classes: tuple[str, ...]
    own_features: bool = False

    def view(self, graph: Graph, x: Float[Tensor, "n d"] | None = None, *, encode: bool = True) -> GraphView:
        """A graph with its texts embedded and, for PromptGNN-sim, its neighbours chosen and prompts encoded.

        Args:
            graph: The graph.
            x: Embeddings of its texts, if known.
            encode: Encode prompts too; without, the view shows who is chosen.

        Raises:
            InputError: The embeddings are missing, or not of the width the network was trained on.
        """
        graph = as_graph(graph)
        if x is None and self.own_features:
            raise InputError(
                "the model was trained on embeddings made elsewhere",
                where="--features",
                remedy="give those of this graph's texts, made in the same way",
            )
        x = self.pipeline.embed(graph) if x is None else x
        if x.shape[1] != self.network.dim:
            raise InputError(
                "the text embeddings have another width than those the model was trained on",
                where="--text.model, --features",
                why=f"{x.shape[1]} numbers a text, the model takes {self.network.dim}",
                remedy="use the text model of the training run",
            )
        # Prompts ask for the classes the model knows, whatever the graph calls its own.
        asked = dataclasses.replace(
            graph, classes=self.classes, descriptions=self.classes, labels=np.full(len(graph), -1)
        )
        view = self.pipeline.view(asked, x, select=self.settings.fused)
        if self.settings.fused:
            self.pipeline.choose(view, self.network.selector, encode=encode)
        view.graph = graph
        return view

    def embed(self, graph: Graph, x: Float[Tensor, "n d"] | None = None) -> Float[Tensor, "n w"]:
        """Embeddings of all nodes."""
        return embed_nodes(self.network, self.view(graph, x))

    def predict(self, graph: Graph, x: Float[Tensor, "n d"] | None = None) -> Float[Tensor, "n c"]:
        """Probabilities of the classes of all nodes."""
        return self.probabilities(self.embed(graph, x))

    def predict_links(
        self, graph: Graph, pairs: Int[np.ndarray, "p 2"], x: Float[Tensor, "n d"] | None = None
    ) -> Float[Tensor, " p"]:
        """Probability of a link of every pair of nodes."""
        return self.link_probabilities(self.embed(graph, x), pairs)

    @torch.no_grad()
    def probabilities(self, z: Float[Tensor, "n w"]) -> Float[Tensor, "n c"]:
        """Class probabilities from embeddings.

        Raises:
            InputError: The model was trained on links.
        """
        self._check_task("nc")
        return self.network.head(z.to(self.network.device)).softmax(1).cpu()

    @torch.no_grad()
    def link_probabilities(self, z: Float[Tensor, "n w"], pairs: Int[np.ndarray, "p 2"]) -> Float[Tensor, " p"]:
        """Probability of a link of every pair, from embeddings.

        Raises:
            InputError: The model was trained on classes.
        """
        self._check_task("lp")
        ends = z[torch.from_numpy(np.asarray(pairs, np.int64))].to(self.network.device)
        return self.network.link(ends[:, 0], ends[:, 1]).sigmoid().cpu()

    @torch.no_grad()
    def zero_shot(self, graph: Graph, x: Float[Tensor, "n d"] | None = None) -> Float[Tensor, "n c"]:
        """Cosine of every node with the mapped descriptions of the graph's own classes, none of them trained on.

        Raises:
            InputError: The model is a baseline, was trained on links, or on embeddings made elsewhere.
        """
        graph = as_graph(graph)
        self._check_task("nc")
        self.check_fused()
        if self.own_features:
            raise InputError("another graph is read by the run's text model", why="it was trained on --features")
        described = self.pipeline.describe_classes(graph).to(self.network.device)
        return self.network.zero_shot(self.embed(graph, x).to(self.network.device), described).cpu()

    def prompts(self, graph: Graph, x: Float[Tensor, "n d"] | None = None) -> list[dict[str, Any]]:
        """Chosen neighbours, keywords and prompt of every node; nothing is encoded.

        Raises:
            InputError: The model is a baseline.
        """
        self.check_fused()
        view = self.view(graph, x, encode=False)
        return prompt_rows(self.pipeline, view, range(len(view.graph)))

    def explain(
        self, graph: Graph, nodes: Sequence[int], x: Float[Tensor, "n d"] | None = None
    ) -> list[dict[str, Any]]:
        """What embeddings rest on: chosen neighbours with scores, keywords, prompt, and the predicted class.

        Raises:
            InputError: The model is a baseline.
        """
        self.check_fused()
        view = self.view(graph, x)
        rows = prompt_rows(self.pipeline, view, nodes)
        if self.settings.task == "nc":
            chances = self.probabilities(embed_nodes(self.network, view, torch.tensor(nodes)))
            for row, chance in zip(rows, chances, strict=True):
                row |= {"predicted": self.classes[int(chance.argmax())], "probability": round(float(chance.max()), 4)}
        return rows

    def check_fused(self) -> None:
        """Refuse to do with a baseline what only PromptGNN-sim can.

        Raises:
            InputError: The model is a baseline.
        """
        if not self.settings.fused:
            raise InputError("this needs a model of promptgnn-sim", why=f"its method is {self.settings.method}")

    def _check_task(self, task: str) -> None:
        if self.settings.task != task:
            needed = {"nc": "model of classes", "lp": "model of links"}[task]
            raise InputError(
                f"this needs a {needed}",
                why=f"its task is {self.settings.task}",
                remedy=f"train with --task {task}; links are predicted for --pairs",
            )

    def save(self, folder: Path | str | os.PathLike[str]) -> None:
        """Write weights and description."""
        kept = {name: getattr(self.settings, name) for name in ("task", "method", "split", "split_seed")}
        kept |= {
            name: dataclasses.asdict(getattr(self.settings, name)) for name in ("text", "llm", "selection", "model")
        }
        state = dict(self.network.state_dict())
        encoder = self.pipeline.trained_encoder() if self.settings.fused else None
        if isinstance(encoder, TransformerEncoder):
            state |= {f"text.{name}": weight for name, weight in encoder.trained().items()}
        description = {
            "kind": KIND,
            "dim": self.network.dim,
            "classes": list(self.classes),
            "own_features": self.own_features,
            "settings": kept,
            "fitted": self.pipeline.learnt.to_dict(),
        }
        save_weights(folder, state, description)

    @classmethod
    def load(
        cls,
        folder: Path | str | os.PathLike[str],
        *,
        device: str = "auto",
        cache: TextCache | None = None,
        text_model: str | None = None,
    ) -> "GraphModel":
        """What :meth:`save` wrote.

        Args:
            folder: Run folder, or any that was saved to.
            device: Torch device of network and text model.
            cache: Embeddings already known; answers of a language model are kept beside them.
            text_model: Where the run's text model is, if it has moved.

        Raises:
            InputError: The folder holds no such model.
        """
        device, cache = pick_device(device), TextCache() if cache is None else cache

        def build(state: dict[str, Tensor], about: dict[str, Any]) -> "GraphModel":
            settings = _settings(about["settings"], text_model)
            lora = {name.removeprefix("text."): state.pop(name) for name in list(state) if name.startswith("text.")}
            network = Network(settings.method, int(about["dim"]), len(about["classes"]), settings.model)
            network.load_state_dict(state)
            classes = tuple(map(str, about["classes"]))
            answers = None if cache.folder is None else cache.folder / "answers"
            pipeline = Pipeline(
                settings.selection,
                settings.text,
                cache,
                fitted=Fitted.from_dict(about["fitted"]),
                summarizer=load_summarizer(settings.llm, labels=classes, cache=answers, device=device),
                prompting=settings.prompting,
                device=device,
            )
            if lora and isinstance(encoder := pipeline.trained_encoder(), TransformerEncoder):
                encoder.load_trained(lora)
            return cls(network.to(device).eval(), pipeline, settings, classes, bool(about["own_features"]))

        return load_model(folder, KIND, build, made_by="cl-graphtext promptgnn-sim train")


def _settings(values: Mapping[str, Any], text_model: str | None) -> Settings:
    text, llm = TextSettings(**values["text"]), dict(values["llm"])
    llm["answers"] = None if llm["answers"] is None else Path(llm["answers"])
    return Settings(
        task=values["task"],
        method=values["method"],
        split=values["split"],
        split_seed=values["split_seed"],
        text=text if text_model is None else dataclasses.replace(text, model=text_model),
        llm=LLMSettings(**llm),
        selection=SelectionSettings(**values["selection"]),
        model=ModelConfig(**values["model"]),
    )


def class_table(
    ids: Sequence[str], nodes: Int[np.ndarray, " m"], probability: Float[np.ndarray, "n c"], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a node: its id, the class, and the probability of every class.

    Raises:
        InputError: A class is called like a column of the table.
    """
    clash = {"node_id", "class"} & set(classes)
    if clash:
        raise InputError("a class is called like a column of the table", why=f"got {clash.pop()}", remedy="rename it")
    return [
        {
            "node_id": ids[node],
            "class": classes[int(probability[node].argmax())],
            **{name: f"{p:.6f}" for name, p in zip(classes, probability[node], strict=True)},
        }
        for node in nodes
    ]


def link_table(
    ids: Sequence[str], pairs: Int[np.ndarray, "p 2"], probability: Float[np.ndarray, " p"]
) -> list[dict[str, Any]]:
    """A row a pair: both ids and the probability of a link."""
    return [
        {"src": ids[a], "dst": ids[b], "probability": f"{p:.6f}"}
        for (a, b), p in zip(pairs.tolist(), probability, strict=True)
    ]
