"""``cl-signals``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App, Command

from cl_signals import __version__

_MANTIS = "cl_signals.mantis.commands"

app = App("cl-signals", help="Contrastive representation learning for time series.", version=__version__)
app.method(
    "mantis",
    help="Embed, classify and pre-train on time series with Mantis V1/V2, and draw CauKer synthetic corpora.",
    commands=[
        Command("demo", f"{_MANTIS}:demo", "Synthetic pre-training to real series in minutes, with a report."),
        Command("sample-data", f"{_MANTIS}:sample_data", "Write a few real UCR/UEA sets in their .ts format."),
        Command("synth", f"{_MANTIS}:synth", "Draw a reproducible synthetic corpus with CauKer."),
        Command("pretrain", f"{_MANTIS}:pretrain", "Pre-train an encoder contrastively on unlabelled series."),
        Command("embed", f"{_MANTIS}:embed", "Turn series into fixed-size vectors with a frozen encoder."),
        Command("train", f"{_MANTIS}:train", "Train a classifier: head, adapter-head, full or scratch."),
        Command("predict", f"{_MANTIS}:predict", "Classify new series with a trained classifier."),
        Command(
            "evaluate",
            f"{_MANTIS}:evaluate",
            "Scores of a classifier, or of an encoder's frozen features, on labelled sets.",
        ),
        Command("import-weights", f"{_MANTIS}:import_weights", "Convert an upstream checkpoint from a local file."),
        Command("info", f"{_MANTIS}:info", "The papers, the claim and how to cite."),
    ],
)


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
