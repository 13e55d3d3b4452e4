"""``cl-retrieval``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App, Command

from cl_retrieval import __version__

_VERBS = "cl_retrieval.verbs"


def _shared(module: str) -> list[Command]:
    """The verbs both methods have; what starts a training is each method's own."""
    return [
        Command(
            "sample-data", f"{_VERBS}:sample_data", "Write real drawings with names, and an encoder that runs offline."
        ),
        Command("encode-features", f"{_VERBS}:encode_features", "Compute features of image-text pairs once."),
        Command("train", f"{module}:train_model", "Learn hash functions from a few pairs."),
        Command("evaluate", f"{_VERBS}:evaluate", "Mean average precision and curves on labelled pairs."),
        Command("encode", f"{_VERBS}:encode", "Pack images and texts into codes."),
        Command("index build", f"{_VERBS}:index_build", "Build an index of codes."),
        Command("index add", f"{_VERBS}:index_add", "Add pairs to an index."),
        Command("index delete", f"{_VERBS}:index_delete", "Delete items from an index."),
        Command("index info", f"{_VERBS}:index_info", "What an index holds."),
        Command("search", f"{_VERBS}:search", "Find images and texts by text or image."),
        Command("tune", f"{module}:tune", "Rank settings by held-out pairs, without labels."),
    ]


_GNAH, _APKH = "cl_retrieval.gnah.commands", "cl_retrieval.apkh.commands"

app = App("cl-retrieval", help="Contrastive learning for search across images and text.", version=__version__)
app.method(
    "gnah",
    help="Binary codes from few pairs by prototypes and neighbourhoods (GNAH).",
    commands=[*_shared(_GNAH), Command("info", f"{_GNAH}:info", "The paper, the claim and how to cite.")],
)
app.method(
    "apkh",
    help="Binary codes from few pairs by attributes, for categories never seen (APKH).",
    commands=[
        *_shared(_APKH),
        Command("explain", f"{_APKH}:explain", "Attributes of images and texts, and what they share."),
        Command("attributes check", f"{_APKH}:attributes_check", "Check a bank of attributes."),
        Command("info", f"{_APKH}:info", "The paper, the claim and how to cite."),
    ],
)


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
