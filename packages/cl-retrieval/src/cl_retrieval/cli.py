"""``cl-retrieval``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App

from cl_retrieval import __version__

app = App("cl-retrieval", help="Contrastive learning for search across images and text.", version=__version__)


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
