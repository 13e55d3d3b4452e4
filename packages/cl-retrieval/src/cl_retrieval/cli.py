"""``cl-retrieval``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App

from cl_retrieval import __version__

app = App("cl-retrieval", help="Search across images and texts with binary codes.", version=__version__)


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
