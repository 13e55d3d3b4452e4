"""``cl-foundations``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App, Command

from cl_foundations import __version__

_CFA = "cl_foundations.cfa.commands"

app = App("cl-foundations", help="Foundations of contrastive learning.", version=__version__)
app.method(
    "cfa",
    help="Contrastive factor analysis of images: embeddings with uncertainty (CFA) and readable factors (CNFA).",
    commands=[
        Command("sample-data", f"{_CFA}:sample_data", "Write real digits and photographs as image folders."),
        Command("train", f"{_CFA}:train", "Train CFA, CNFA, SimCLR or NCL on images without labels."),
        Command("embed", f"{_CFA}:embed", "Features, factor means, variances and uncertainties of images."),
        Command("evaluate", f"{_CFA}:evaluate", "Probes, retrieval, factor metrics and calibration on labelled data."),
        Command("factors", f"{_CFA}:factors", "Top images of every factor; which factors separate two classes."),
        Command("ood", f"{_CFA}:ood", "Uncertainty scores in- against out-of-distribution, side by side."),
        Command("predict", f"{_CFA}:predict", "Classify images with a probe, with an uncertainty each."),
        Command("info", f"{_CFA}:info", "The paper, the claim and how to cite."),
    ],
)


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
