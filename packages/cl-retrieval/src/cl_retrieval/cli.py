"""``cl-retrieval``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App, Command
from contrastive_core.index.verbs import index_commands

from cl_retrieval import __version__

_SHARED, _INDEX = "cl_retrieval.hashing.commands", "contrastive_core.index.verbs"


def _verbs(module: str) -> list[Command]:
    """The verbs every method has; what needs no trained model is the same function for all."""
    return [
        Command("sample-data", f"{_SHARED}:sample_data", "Write real drawings with names, and an offline encoder."),
        Command("prepare", f"{_SHARED}:prepare", "Compute features of image-text pairs once."),
        Command("train", f"{module}:train", "Learn hash functions from a few pairs."),
        Command("evaluate", f"{module}:evaluate", "Mean average precision and curves on labelled pairs."),
        Command("embed", f"{module}:embed", "Pack images and texts into codes."),
        Command("index build", f"{module}:index_build", "Build an index of codes."),
        Command("index add", f"{module}:index_add", "Add pairs to an index."),
        Command("index delete", f"{_INDEX}:delete", "Delete items from an index."),
        Command("index info", f"{_INDEX}:info", "Show what an index holds and how it is searched."),
        Command("index optimise", f"{_INDEX}:optimise", "Compact an index and build its approximate search."),
        Command("search", f"{module}:search", "Find images and texts by text or image."),
        Command("tune", f"{module}:tune", "Rank settings by held-out pairs, without labels."),
    ]


_GNAH, _APKH = "cl_retrieval.gnah.commands", "cl_retrieval.apkh.commands"

app = App("cl-retrieval", help="Contrastive learning for search across images and text.", version=__version__)
app.method(
    "gnah",
    help="Binary codes from few pairs by prototypes and neighbourhoods (GNAH).",
    commands=[*_verbs(_GNAH), Command("info", f"{_GNAH}:info", "The paper, the claim and how to cite.")],
)
app.method(
    "apkh",
    help="Binary codes from few pairs by attributes, for categories never seen (APKH).",
    commands=[
        *_verbs(_APKH),
        Command("explain", f"{_APKH}:explain", "Attributes of images and texts, and what they share."),
        Command("attributes check", f"{_APKH}:attributes_check", "Check a bank of attributes."),
        Command("info", f"{_APKH}:info", "The paper, the claim and how to cite."),
    ],
)
app.method("index", help="An index of any vectors or codes, from files.", commands=index_commands())


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
