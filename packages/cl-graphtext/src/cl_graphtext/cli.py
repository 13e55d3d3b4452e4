"""``cl-graphtext``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App, Command

from cl_graphtext import __version__

_PROMPTGNN_SIM = "cl_graphtext.promptgnn_sim.commands"

app = App("cl-graphtext", help="Contrastive learning for graphs whose nodes carry text.", version=__version__)
app.method(
    "promptgnn-sim",
    help="Text-attributed graphs: neighbours chosen by attention and text, prompts, fusion in both directions.",
    commands=[
        Command("sample-data", f"{_PROMPTGNN_SIM}:sample_data", "Write a real graph of packages and dependencies."),
        Command("import", f"{_PROMPTGNN_SIM}:import_graph", "Bring a published graph into the canonical folder."),
        Command("inspect", f"{_PROMPTGNN_SIM}:inspect", "What is in a graph: counts, classes, split, homophily."),
        Command("cache-text", f"{_PROMPTGNN_SIM}:cache_text", "Encode the texts of a graph once."),
        Command("prompts", f"{_PROMPTGNN_SIM}:prompts", "Write the prompt of every node, with its neighbours."),
        Command("train", f"{_PROMPTGNN_SIM}:train", "Train node classification or link prediction, or a baseline."),
        Command("evaluate", f"{_PROMPTGNN_SIM}:evaluate", "Scores of a model, also under noise."),
        Command("robustness", f"{_PROMPTGNN_SIM}:robustness", "Accuracy against noise, beside the baselines."),
        Command("transfer", f"{_PROMPTGNN_SIM}:transfer", "Zero-shot classes or links of another graph."),
        Command(
            "predict", f"{_PROMPTGNN_SIM}:predict", "Classes of nodes or probabilities of links, of new nodes too."
        ),
        Command("embed", f"{_PROMPTGNN_SIM}:embed", "Embeddings of all nodes."),
        Command("explain", f"{_PROMPTGNN_SIM}:explain", "Chosen neighbours, keywords and prompt of a node."),
        Command("info", f"{_PROMPTGNN_SIM}:info", "The paper, the claim and how to cite."),
    ],
)


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
